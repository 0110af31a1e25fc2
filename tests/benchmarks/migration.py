"""Upgrade full tables from their first version while tasks report to a running API server."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.benchmarks.results import SERIES, Grid, Result, Summary, Target
from tests.benchmarks.setting import distributions, probe
from tests.support.deployment import Deployment

if TYPE_CHECKING:
    from tests.benchmarks.setting import Setting

AT_MOST_MS = 1_000.0


def run(setting: Setting) -> Result:
    """Fill the tables, downgrade them, and measure the requests of tasks during the upgrade."""
    (size,) = setting.sizes((400_000,), (20_000,))
    with Deployment(setting.environment(), executor="CeleryExecutor", postgres=setting.postgres) as airflow:
        airflow.migrate()
        filled = probe(airflow, "migration_probe", "--fill", str(size))["attempts"]
        airflow.run("airflow-worker-insight", "db", "downgrade", "--to-revision", "0001", "--yes", timeout=900)
        airflow.start("api-server")
        ready, enough = airflow.home / "reports-arrive", airflow.home / "enough-reports"
        files = ("--ready", str(ready), "--enough", str(enough))
        with ThreadPoolExecutor(1) as threads:
            reports = threads.submit(probe, airflow, "migration_probe", "--url", airflow.base_url, *files)
            try:
                airflow.wait_for(lambda: ready.exists() or reports.done(), 120, "the first report")
                time.sleep(5)
                began = time.perf_counter()
                airflow.run("airflow-worker-insight", "db", "migrate", timeout=1800)
                seconds = time.perf_counter() - began
                time.sleep(5)
            finally:
                enough.touch()
            spent = reports.result()["milliseconds"]
        lost = _lost(airflow, filled + len(spent))
    times = Summary.of(spent)
    grid = Grid(f"Reports during the upgrade of {filled:,} attempts (ms)", SERIES)
    grid.add_summary("POST /execution/xcoms", times)
    return Result(
        "migration",
        [grid],
        [
            Target("migration: the slowest report", times.most, AT_MOST_MS, "ms"),
            Target("migration: attempts lost, old and new", float(lost), 0, ""),
        ],
        {"attempts": filled, "upgrade_seconds": round(seconds, 1), "reports": len(spent), "ms": times.as_dict()},
        {
            **distributions(setting.environment(), "apache-airflow", "sqlalchemy", "airflow-worker-insight"),
            "postgresql": setting.postgres.execute("SHOW server_version")[0]["server_version"],
        },
    )


def _lost(airflow: Deployment, expected: int) -> int:
    """Return how many attempts are missing once waiting reports were claimed."""
    recorded = 0

    def all_are_there() -> bool:
        nonlocal recorded
        recorded = airflow.sql("SELECT count(*) AS n FROM worker_insight_attempt")[0]["n"]
        return recorded == expected

    with suppress(TimeoutError):
        airflow.wait_for(all_are_there, 300, "the reports that waited", interval=2)
    return expected - recorded
