"""A Dag run that is deleted and created again under its name shares nothing with the deleted run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.accounting import WITNESS, start_worker
from tests.support.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.environments import Environment
    from tests.support.services import Postgres, Redis

NIGHTLY = (
    WITNESS
    + """
from datetime import datetime

try:
    from airflow.sdk import dag, task
except ImportError:
    from airflow.decorators import dag, task


@dag(schedule=None, start_date=datetime(2025, 1, 1), catchup=False)
def nightly():
    @task(retries=1, retry_delay=0)
    def load(**context):
        witness(context)
        if context["dag_run"].conf.get("fails"):
            raise RuntimeError("on purpose")
        if context["dag_run"].conf.get("dies"):
            die()

    load()


nightly()
"""
)

RUN_ID = "nightly"


def attempts(airflow: Deployment) -> list[tuple[int, str | None, list[str], str | None]]:
    """Return the attempts that the command lists, latest start first: number, state, workers, deleted."""
    printed = airflow.run(
        "airflow-worker-insight", "attempts", "list", "--run-id", RUN_ID, "--output", "json", timeout=120
    )
    # Airflow logs other lines beside it.
    answer = next(line for line in printed.splitlines() if line == "[]" or line.startswith("[{"))
    rows: list[dict[str, Any]] = json.loads(answer)
    return [
        (row["try_number"], row["state"], [by["name"].partition("@")[0] for by in row["workers"]], row["deleted"])
        for row in rows
    ]


def delete_run(airflow: Deployment) -> None:
    answer = airflow.api("DELETE", f"/dags/nightly/dagRuns/{RUN_ID}")
    assert answer.status_code == 204, answer.text


@pytest.mark.parametrize("version", ["3.3.2", "2.11.2"])
def test_recreated_run_has_no_attempts_of_the_deleted_run(
    airflow_env: Callable[[str], Environment], postgres: Postgres, redis: Redis, version: str
) -> None:
    with Deployment(airflow_env(version), executor="CeleryExecutor", postgres=postgres, redis=redis) as airflow:
        airflow.write_dag("nightly", NIGHTLY)
        airflow.migrate()
        airflow.run("airflow-worker-insight", "db", "migrate")
        airflow.start_all()
        start_worker(airflow, "w1", instance="w1")
        airflow.trigger("nightly", run_id=RUN_ID, conf={"fails": True})
        airflow.wait_run("nightly", RUN_ID, expect="failed")
        before = [(2, "failed", ["w1"]), (1, "failed", ["w1"])]
        airflow.wait_for(
            lambda: attempts(airflow) == [(*row, None) for row in before], 120, "both tries to be recorded and closed"
        )
        airflow.stop("w1")
        deleted = [(*row, "run") for row in before]
        delete_run(airflow)
        assert attempts(airflow) == deleted

        start_worker(airflow, "w2", instance="w2")
        airflow.trigger("nightly", run_id=RUN_ID)
        airflow.wait_run("nightly", RUN_ID, expect="success")
        airflow.wait_for(
            lambda: attempts(airflow) == [(1, "success", ["w2"], None), *deleted], 120, "the new try to be recorded"
        )
        if version != "2.11.2":
            names = {"dag_id": "nightly", "run_id": RUN_ID, "task_id": "load"}
            page = airflow.api("GET", "/worker-insight/panel", params=names).text
            assert "The only try so far succeeded on w2@" in page
            assert "w1@" not in page
