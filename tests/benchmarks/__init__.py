"""
Benchmarks: ``python -m tests.benchmarks`` prints tables and writes ``.build/bench``.

What is compared is measured side by side in one run, alternating; nothing here passes or fails. A target that was not
reached is printed as missed. ``inside`` holds what runs under the Python of the Airflow that is measured. See
``docs/benchmarks.md``.
"""
