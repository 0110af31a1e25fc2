"""Measure statistics of 90 days: their queries, their size, and what a step of the analysis adds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks.results import SERIES, Grid, Result, Summary, Target
from tests.benchmarks.setting import distributions, probe
from tests.support.deployment import Deployment

if TYPE_CHECKING:
    from tests.benchmarks.setting import Setting

AT_MOST_MS = 300.0
AT_MOST_MS_PER_TRY = 0.3
"""Of the whole analysis, of which these statistics are a part."""


def run(setting: Setting) -> Result:
    """Fill the tables of a fresh deployment and measure them."""
    workers, tasks = setting.size(2_000, 50), setting.size(4_000, 100)
    with Deployment(setting.environment(), executor="CeleryExecutor", postgres=setting.postgres) as airflow:
        airflow.migrate()
        sizes = ("--workers", str(workers), "--tasks", str(tasks), "--times", str(setting.size(20, 3)))
        found = probe(airflow, "statistics_probe", *sizes, timeout=4 * 3600)
    rows = Grid(f"Statistics of 90 days, {workers:,} workers and {tasks:,} tasks", ["table", "rows", "MB"])
    for table, size in found["rows"].items():
        rows.add(table, f"{size['rows']:,}", size["bytes"] / 1e6)
    times = Grid("Queries (ms)", SERIES)
    summaries = {name: Summary.of(spent) for name, spent in found["milliseconds"].items()}
    for name, summary in summaries.items():
        times.add_summary(name, summary)
    step = Summary.of(found["steps"])
    times.add_summary(f"adding {found['tries_per_step']:,} tries and the slots of all workers", step)
    targets = [
        Target(f"statistics: {name} (p95)", summary.p95, AT_MOST_MS, "ms") for name, summary in summaries.items()
    ]
    per_try = step.median / found["tries_per_step"]
    targets.append(Target("statistics: adding a try (median)", per_try, AT_MOST_MS_PER_TRY, "ms"))
    return Result(
        "statistics",
        [rows, times],
        targets,
        {
            "workers": workers,
            "tasks": tasks,
            "rows": found["rows"],
            "milliseconds": {name: summary.as_dict() for name, summary in summaries.items()},
            "step": step.as_dict(),
        },
        {
            **distributions(setting.environment(), "apache-airflow", "sqlalchemy", "airflow-worker-insight"),
            "postgresql": setting.postgres.execute("SHOW server_version")[0]["server_version"],
        },
    )
