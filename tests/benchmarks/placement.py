"""Measure placement decisions per second, for each strategy and size, and when full."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.benchmarks.results import SERIES, Grid, Result, Summary, Target
from tests.benchmarks.setting import INSIDE, distributions

if TYPE_CHECKING:
    from tests.benchmarks.setting import Setting

WORKERS = (10, 100, 1000)

FULL, WAIT = (100, 1000), 1_000
"""Numbers of full workers and of waiting tasks: each heartbeat decides each of them."""

AT_MOST_US = 50.0
"""Microseconds for one decision with 100 workers: 20,000 a second."""


def run(setting: Setting) -> Result:
    """Place tasks in fresh interpreters, the sizes and strategies by turns."""
    environment = setting.environment("3.3.2")
    rounds, tasks = setting.size(15, 3), setting.size(20_000, 2_000)
    sizes, full = (",".join(map(str, numbers)) for numbers in (WORKERS, FULL))
    output = environment.run(INSIDE / "placement_probe.py", str(rounds), str(tasks), sizes, str(WAIT), full)
    found: dict[str, list[float]] = json.loads(output.splitlines()[-1])
    grid = Grid(
        f"One placement decision (µs; {rounds} times {tasks:,} tasks of 500 Dags, {WAIT:,} if all are full, by turns)",
        [*SERIES, "per second"],
    )
    summaries = {name: Summary.of(values) for name, values in found.items()}
    for name, summary in summaries.items():
        grid.add_summary(name, summary, f"{1e6 / summary.median:,.0f}")
    targets: list[Target] = []
    for strategy in dict.fromkeys(name.partition(",")[0] for name in found):
        ten, hundred, thousand = (summaries[f"{strategy}, {size} workers"].median for size in WORKERS)
        waits = summaries[f"{strategy}, {FULL[-1]} workers, all full"].median
        targets += [
            Target(f"placement: {strategy}, 100 workers (median)", hundred, AT_MOST_US, "µs"),
            Target(f"placement: {strategy}, {FULL[-1]:,} workers, all full (median)", waits, AT_MOST_US, "µs"),
            Target(f"placement: {strategy}, growth per worker from 10 to 1,000", thousand / ten / 100, 1.0, "times"),
        ]
    data: dict[str, Any] = {name: summary.as_dict() for name, summary in summaries.items()}
    return Result("placement", [grid], targets, data, distributions(environment, "airflow-worker-insight"))
