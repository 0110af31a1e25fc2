"""The pages: the Worker panel, workers, one worker, attempts and what waits.

The view model (``views``), the templates and ``query_params`` know no web framework: the FastAPI app (Airflow 3) and
the Flask-AppBuilder views (Airflow 2.11, and 3 with its auth manager) share them. No SQL here: ``store`` reads.
"""

from __future__ import annotations
