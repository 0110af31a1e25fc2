"""Measure the cost of sending tasks to Celery, with Airflow's executor and with ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks.results import SERIES, Grid, Result, Summary, Target
from tests.benchmarks.setting import distributions, probe
from tests.support.deployment import Deployment

if TYPE_CHECKING:
    from tests.benchmarks.setting import Setting

ADDS_AT_MOST = 1.05
"""Times what it costs with Airflow's own."""


def run(setting: Setting) -> Result:
    """Send tasks to a Redis, with PostgreSQL beside it, by turns."""
    rounds, tasks, workers = setting.size(15, 3), setting.size(1_000, 100), setting.size(200, 20)
    with Deployment(
        setting.environment(), executor="CeleryExecutor", postgres=setting.postgres, redis=setting.redis
    ) as airflow:
        airflow.migrate()
        numbers = ("--rounds", str(rounds), "--tasks", str(tasks), "--workers", str(workers))
        found = probe(airflow, "dispatch_probe", *numbers)
    title = f"Handing {tasks:,} tasks to Celery (ms per task; {rounds} times each, by turns; {workers} workers)"
    grid = Grid(title, SERIES)
    ours, parent = Summary.of(found["ours"]), Summary.of(found["parent"])
    grid.add_summary("CeleryExecutor", parent)
    grid.add_summary("WorkerInsightCeleryExecutor", ours)
    ratio = Summary.of([ours_ms / parent_ms for ours_ms, parent_ms in zip(found["ours"], found["parent"], strict=True)])
    grid.add_summary("ratio of each pair", ratio)
    targets = [Target("dispatch: against Airflow's own (median of the pairs)", ratio.median, ADDS_AT_MOST, "times")]
    data = {"ours": ours.as_dict(), "parent": parent.as_dict(), "ratio": ratio.as_dict()}
    names = ("apache-airflow", "apache-airflow-providers-celery", "celery", "redis", "airflow-worker-insight")
    return Result("dispatch", [grid], targets, data, distributions(setting.environment(), *names))
