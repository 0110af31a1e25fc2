"""Measure the listener's work and its round trip to the API server in a real deployment."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.results import SERIES, Grid, Result, Summary, Target
from tests.benchmarks.setting import INSIDE, distributions
from tests.support.deployment import Deployment

if TYPE_CHECKING:
    from tests.benchmarks.setting import Setting

AT_MOST_MS = 3.0

DAG = """
from airflow.sdk import dag, task


@dag(schedule=None)
def benchmark():
    @task
    def nothing(number):
        return None

    nothing.expand(number=list(range({tasks})))


benchmark()
"""


def run(setting: Setting) -> Result:
    """Measure fresh task processes below a worker, then real tasks of a real Celery worker."""
    forked = _forked(setting)
    real = _real(setting)
    work, work_real = (Summary.of([measured["work_ms"] for measured in found]) for found in (forked, real))
    round_trip = Summary.of([measured["round_trip_ms"] for measured in real])
    ordinary = Summary.of([measured["ordinary_ms"] for measured in real if measured["ordinary_ms"] is not None])
    grid = Grid("on_task_instance_running in a task process, Airflow 3.3.2 (ms, once per process)", SERIES)
    grid.add_summary("work outside the channel: forked below a worker", work)
    grid.add_summary("work outside the channel: real Celery worker", work_real)
    grid.add_summary("the channel's round trip: the report", round_trip)
    grid.add_summary("the channel's round trip: an ordinary XCom of that size", ordinary)
    return Result(
        "hook",
        [grid],
        [
            Target("hook: work outside the channel, forked (median)", work.median, AT_MOST_MS, "ms"),
            Target("hook: work outside the channel, real Celery (median)", work_real.median, AT_MOST_MS, "ms"),
        ],
        {
            "report_bytes": forked[0]["report_bytes"],
            "forked": {"work_ms": work.as_dict(), "all": [round(measured["work_ms"], 3) for measured in forked]},
            "real": {
                "work_ms": work_real.as_dict(),
                "round_trip_ms": round_trip.as_dict(),
                "ordinary_xcom_round_trip_ms": ordinary.as_dict(),
                "all": real,
            },
        },
        {
            **distributions(setting.environment(), "apache-airflow", "celery", "airflow-worker-insight"),
            "postgresql": setting.postgres.execute("SHOW server_version")[0]["server_version"],
        },
    )


def _forked(setting: Setting) -> list[dict[str, Any]]:
    processes = setting.size(100, 10) + 2
    with tempfile.TemporaryDirectory(prefix="worker-insight-bench-") as folder:
        output = Path(folder) / "found.json"
        setting.environment().run(
            INSIDE / "hook_probe.py",
            *("--output", output, "--processes", str(processes)),
            env={
                "AIRFLOW_HOME": folder,
                "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
                "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            },
            cwd=Path(folder),
        )
        found: list[dict[str, Any]] = json.loads(output.read_text())[2:]
    if (wrong := found[0]["kind"], found[0]["name"]) != ("celery", "w1@benchmark"):
        raise RuntimeError(f"the worker was taken for {wrong}: this is not what was to be measured")
    return found


def _real(setting: Setting) -> list[dict[str, Any]]:
    tasks = setting.size(32, 4) + 2
    with Deployment(
        setting.environment(),
        executor="CeleryExecutor",
        postgres=setting.postgres,
        redis=setting.redis,
        # One task at a time: two would share a processor.
        config={"celery.worker_concurrency": "1"},
    ) as airflow:
        plugins = airflow.home / "plugins"
        plugins.mkdir()
        shutil.copy(INSIDE / "stopwatch_plugin.py", plugins)
        airflow.write_dag("benchmark", DAG.format(tasks=tasks))
        airflow.migrate()
        airflow.start_all(workers=1)
        run_id = airflow.trigger("benchmark")
        airflow.wait_run("benchmark", run_id, timeout=600, expect="success")
        files = sorted((airflow.home / "stopwatch").glob("*.txt"), key=lambda file: file.name.split(".")[1])
        found = [json.loads(file.read_text()) for file in files]
        left = airflow.sql("SELECT count(*) AS n FROM xcom WHERE key = :key", key="__worker_insight_report__")[0]["n"]
    if len(found) != tasks or left:
        raise RuntimeError(f"{len(found)} of {tasks} tasks reported, {left} reports were not claimed")
    return found[2:]
