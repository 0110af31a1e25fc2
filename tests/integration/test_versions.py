"""Every try is accounted for on each supported Airflow before the newest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.accounting import left_in_xcom, mentions, wait_accounted
from tests.integration.dags import TRAP
from tests.support.deployment import Deployment
from tests.support.fleet import WITNESS, Try, witnessed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.environments import Environment
    from tests.support.services import Postgres

DAG = (
    WITNESS
    + """
from datetime import datetime

try:
    from airflow.sdk import dag, task
except ImportError:
    from airflow.decorators import dag, task


"""
    + TRAP
    + """

@dag(schedule=None, start_date=datetime(2025, 1, 1), catchup=False)
def core():
    @task(retries=1, retry_delay=0)
    def fails_first(**context):
        witness(context)
        if context["ti"].try_number == 1:
            raise RuntimeError("on purpose")

    @task
    def mapped(number, **context):
        witness(context)

    @task
    def killed(**context):
        witness(context)
        die()

    @task
    def killed_before_its_code(bait):
        raise AssertionError("never reached")

    # Airflow refuses Dags with such tasks while it knows of any listener, in the Dag processor as in the worker.
    fails_first().operator.end_from_trigger = True
    mapped.expand(number=[1, 2])
    # SequentialExecutor needs several seconds for each try.
    if os.environ["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor":
        killed()
        killed_before_its_code(Trap())


core()
"""
)

RAN = {
    Try("fails_first", -1, 1): "failed",
    Try("fails_first", -1, 2): "success",
    Try("mapped", 0, 1): "success",
    Try("mapped", 1, 1): "success",
}
KILLED = {Try("killed", -1, 1): "failed"}
KILLED_EARLY = {Try("killed_before_its_code", -1, 1): "failed"}

DB_MANAGER = "airflow_worker_insight.store.db_manager.WorkerInsightDBManager"


@pytest.mark.parametrize(
    ("version", "executor", "own_migration"),
    [
        pytest.param("2.11.2", "LocalExecutor", True, id="2.11-local-postgresql"),
        pytest.param("2.11.2", "SequentialExecutor", True, id="2.11-sequential-sqlite"),
        pytest.param("3.0.6", "LocalExecutor", False, id="3.0-local-postgresql"),
        pytest.param("3.1.8", "LocalExecutor", True, id="3.1-local-postgresql"),
        pytest.param("3.2.2", "LocalExecutor", False, id="3.2-local-postgresql"),
    ],
)
def test_every_try_is_accounted_for(
    airflow_env: Callable[[str], Environment],
    postgres: Postgres,
    version: str,
    executor: str,
    own_migration: bool,
) -> None:
    killing = executor == "LocalExecutor"
    config = {}
    if version == "3.0.6":
        # It runs four server processes by default, and each of them must claim.
        config = {"database.external_db_managers": DB_MANAGER, "api.workers": "2"}
    with Deployment(
        airflow_env(version),
        executor=executor,
        postgres=None if executor == "SequentialExecutor" else postgres,
        config=config,
    ) as airflow:
        airflow.write_dag("core", DAG)
        airflow.migrate(own_tables=False)
        if own_migration:
            assert "up to date" in airflow.run("airflow-worker-insight", "db", "migrate")
        assert "up to date" in airflow.run("airflow-worker-insight", "db", "check")
        airflow.start_all()
        run_id = airflow.trigger("core")
        airflow.wait_run("core", run_id, expect="failed" if killing else "success")
        recorded = wait_accounted(airflow, "core", run_id)

        reached_their_code = {**RAN, **KILLED} if killing else RAN
        expected = {**reached_their_code, **KILLED_EARLY} if killing else RAN
        assert {key: attempt.state for key, attempt in recorded.items()} == expected
        assert witnessed(airflow, "core", run_id).keys() == reached_their_code.keys()
        for key, attempt in recorded.items():
            assert attempt.attribution == ("reported" if key in reached_their_code else "inferred"), (key, attempt)

        # One scheduler runs them all; inferred tries of LocalExecutor name it too.
        scheduler = airflow.components["scheduler"].pid
        assert {(attempt.worker.pid, attempt.worker.host_only) for attempt in recorded.values()} == {(scheduler, False)}
        assert len({attempt.worker.worker_id for attempt in recorded.values()}) == 1
        kind = "local" if executor == "LocalExecutor" else executor
        assert {attempt.worker.kind for attempt in recorded.values()} == {kind}
        assert left_in_xcom(airflow, "core", run_id) == []
        assert mentions(airflow) == []
