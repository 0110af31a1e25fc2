"""The test harness itself: a bare Airflow, one Dag, the API and a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.browser import BrowserUser
from tests.support.deployment import Deployment
from tests.support.processes import working_below

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Browser

    from tests.support.environments import Environment

DAG = """
from airflow.sdk import dag, task


@dag(schedule=None)
def smoke():
    @task(retries=1, retry_delay=0)
    def fails_first(ti):
        if ti.try_number == 1:
            raise RuntimeError("on purpose")

    fails_first()


smoke()
"""


def test_bare_airflow_runs_a_dag_and_shows_it(bare_airflow_env: Callable[[str], Environment], browser: Browser) -> None:
    with Deployment(bare_airflow_env("3.3.2")) as airflow:
        airflow.write_dag("smoke", DAG)
        airflow.migrate()
        airflow.start_all()
        run_id = airflow.trigger("smoke")
        airflow.wait_run("smoke", run_id, expect="success")

        tries = airflow.tries("smoke", run_id)
        assert [(row["try_number"], row["state"]) for row in tries] == [(1, "failed"), (2, "success")]
        listed = airflow.api("GET", "/dags", user="viewer").json()
        assert [dag["dag_id"] for dag in listed["dags"]] == ["smoke"]
        assert airflow.api("GET", "/dags", user=None).status_code == 401

        with BrowserUser(browser, airflow) as person:
            person.open(f"/dags/smoke/runs/{run_id}/tasks/fails_first")
            person.page.get_by_text("fails_first").first.wait_for()
            assert not person.foreign_requests
    assert not working_below(airflow.home)
