"""Airflow on PostgreSQL by psycopg 3, which Airflow is moving to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.integration.accounting import assert_rest_agrees, attributions, left_in_xcom, mentions, wait_accounted
from tests.support.deployment import Deployment
from tests.support.fleet import WITNESS, Try, witnessed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.environments import Environment
    from tests.support.services import Postgres

DAG = (
    WITNESS
    + """
from airflow.sdk import dag, task


@dag(schedule=None)
def drivers():
    @task(retries=1, retry_delay=0)
    def fails_first(**context):
        witness(context)
        if context["ti"].try_number == 1:
            raise RuntimeError("on purpose")

    @task
    def mapped(number, **context):
        witness(context)

    fails_first()
    mapped.expand(number=[1, 2])


drivers()
"""
)

STATES = {
    Try("fails_first", -1, 1): "failed",
    Try("fails_first", -1, 2): "success",
    Try("mapped", 0, 1): "success",
    Try("mapped", 1, 1): "success",
}


def test_every_try_is_reported_and_its_link_names_the_worker(
    airflow_env: Callable[[str], Environment], postgres: Postgres
) -> None:
    with Deployment(airflow_env("3.3.2"), executor="LocalExecutor", postgres=postgres, driver="psycopg") as airflow:
        assert airflow.database_url.startswith("postgresql+psycopg://")
        airflow.write_dag("drivers", DAG)
        airflow.migrate(fresh=True)
        airflow.start_all()
        run_id = airflow.trigger("drivers")
        airflow.wait_run("drivers", run_id, expect="success")

        recorded = wait_accounted(airflow, "drivers", run_id)
        assert {key: attempt.state for key, attempt in recorded.items()} == STATES
        assert attributions(recorded) == {"reported": len(STATES)}
        assert witnessed(airflow, "drivers", run_id).keys() == STATES.keys()
        scheduler = airflow.components["scheduler"].pid
        assert {attempt.worker.pid for attempt in recorded.values()} == {scheduler}
        assert left_in_xcom(airflow, "drivers", run_id) == []
        assert_rest_agrees(airflow, "drivers", run_id)

        (worker_id,) = {attempt.worker.worker_id for attempt in recorded.values()}
        links = airflow.api("GET", f"/dags/drivers/dagRuns/{run_id}/taskInstances/fails_first/links").json()
        page = airflow.api("GET", links["extra_links"]["Worker"].removeprefix(airflow.base_url))
        assert page.status_code == 200
        assert worker_id in page.text
        assert mentions(airflow) == []
