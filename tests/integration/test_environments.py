"""Runs outside a scheduler, odd run IDs, and XComs that a user stores under our key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.accounting import attempts
from tests.support.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.environments import Environment
    from tests.support.services import Postgres, Redis

DAG = """
try:
    from airflow.sdk import dag, task
except ImportError:
    from airflow.decorators import dag, task


@dag(schedule=None)
def tested():
    @task
    def works(): ...

    @task
    def fails():
        raise RuntimeError("on purpose")

    @task(task_id="with.dots-and_more")
    def dotted(): ...

    works()
    fails()
    dotted()


the_dag = tested()
if __name__ == "__main__":
    import sys

    the_dag.test(use_executor="executor" in sys.argv)
"""

KEY = "__worker_insight_report__"
TASKS = ("works", "fails", "with.dots-and_more")


@pytest.fixture(scope="module", params=["2.11.2", "3.3.2"])
def airflow(
    request: pytest.FixtureRequest, airflow_env: Callable[[str], Environment], postgres: Postgres, redis: Redis
) -> Iterator[Deployment]:
    any_run_id = {"scheduler.allowed_run_id_pattern": "^.+$"}
    environment = airflow_env(request.param)
    with Deployment(
        environment, executor="CeleryExecutor", postgres=postgres, redis=redis, config=any_run_id
    ) as deployment:
        deployment.write_dag("tested", DAG)
        deployment.migrate()
        if not deployment.airflow3:
            deployment.run("airflow-worker-insight", "db", "migrate")
        deployment.start_all(workers=1)
        deployment.wait_dag("tested")
        yield deployment


def recorded(airflow: Deployment, run_id: str) -> dict[str, tuple[str, int, str | None]]:
    """Return attribution, number of workers and state of each task of a run, once the run has been reconciled."""
    airflow.run("airflow-worker-insight", "reconcile", "--dag-id", "tested", "--run-id", run_id)
    found = attempts(airflow, "tested", run_id)
    return {key.task_id: (attempt.attribution, len(attempt.workers), attempt.state) for key, attempt in found.items()}


def workers(airflow: Deployment) -> set[str]:
    return {row["worker_id"] for row in airflow.sql("SELECT worker_id FROM worker_insight_worker")}


def run_ids(airflow: Deployment) -> set[str]:
    return {row["run_id"] for row in airflow.sql("SELECT run_id FROM dag_run")}


@pytest.fixture
def without_scheduler(airflow: Deployment) -> Iterator[None]:
    """Stop the scheduler, which on 3.3.2 may take the tasks of ``dag.test`` and send them to its workers."""
    airflow.stop("scheduler")
    yield
    airflow.start("scheduler")


@pytest.mark.usefixtures("without_scheduler")
def test_dag_test_runs_on_no_worker(airflow: Deployment) -> None:
    known, script = workers(airflow), airflow.dags_folder / "tested.py"
    named = "airflow_worker_insight.executors.local.WorkerInsightLocalExecutor"
    for how in ("command", "script", "LocalExecutor", named):
        runs = run_ids(airflow)
        if how == "command":
            airflow.airflow("dags", "test", "tested", check=False)
        elif how == "script":
            airflow.run("python", script, check=False)
        else:
            # 2.11's LocalExecutor forks its tasks off the test, with the session in which that has a transaction open:
            # both then read from one connection, and one in some five such tests waits for ever, without this package
            # too. A new interpreter has none.
            apart = {"AIRFLOW__CORE__EXECUTE_TASKS_NEW_PYTHON_INTERPRETER": "True"}
            airflow.run("python", script, "executor", check=False, env={"AIRFLOW__CORE__EXECUTOR": how, **apart})
        (run_id,) = run_ids(airflow) - runs
        found = recorded(airflow, run_id)
        if how in ("command", "script"):
            assert found == {
                "works": ("not_on_a_worker", 0, "success"),
                "fails": ("not_on_a_worker", 0, "failed"),
                "with.dots-and_more": ("not_on_a_worker", 0, "success"),
            }
        else:
            # Where a task fails, 2.11 leaves the loop before the last one was handed to the executor.
            assert {attempt[:2] for attempt in found.values()} == {("not_on_a_worker", 0)}
    assert workers(airflow) == known


@pytest.mark.parametrize(
    "run_id",
    ["plain", "with space", "a#b", "a?b=c", "a%2Fb", "100%", "späti 🐘", "x" * 240, "manual__2026-03-01T00:00+00:00"],
)
def test_odd_run_ids_are_reported(airflow: Deployment, run_id: str) -> None:
    airflow.trigger("tested", run_id=run_id)
    wait_run(airflow, run_id)
    found = recorded(airflow, run_id)
    assert {task: attribution for task, (attribution, _, _) in found.items()} == dict.fromkeys(TASKS, "reported")
    assert "could not record the worker" not in airflow.task_logs("tested")


def test_run_id_with_a_slash_is_accounted_for(airflow: Deployment) -> None:
    airflow.trigger("tested", run_id="a/b")
    wait_run(airflow, "a/b")
    found = recorded(airflow, "a/b")
    word = "inferred" if airflow.airflow3 else "reported"
    assert {task: attribution for task, (attribution, _, _) in found.items()} == dict.fromkeys(TASKS, word)
    assert "could not record the worker" not in airflow.task_logs("tested")


def wait_run(airflow: Deployment, run_id: str) -> None:
    """Wait for the end of a run in the database, because not every run ID fits into a URL path."""

    def ended() -> bool:
        rows = airflow.sql("SELECT state FROM dag_run WHERE run_id = :run_id", run_id=run_id)
        return bool(rows) and rows[0]["state"] in ("success", "failed")

    airflow.wait_for(ended, 240, f"the end of {run_id}")


def test_xcom_that_a_user_stores_under_the_reserved_key_changes_no_attempt(airflow: Deployment) -> None:
    if not airflow.airflow3:
        pytest.skip("2.11 has no such route")
    run_id = airflow.trigger("tested", run_id="forged")
    wait_run(airflow, run_id)
    before = recorded(airflow, run_id)
    path = f"/dags/tested/dagRuns/{run_id}/taskInstances/works/xcomEntries"
    value: Any = {"version": 1, "worker": {"name": "forged"}}
    answer = airflow.api("POST", path, json={"key": KEY, "value": value, "map_index": -1})
    assert answer.status_code == 201, answer.text
    assert airflow.api("GET", f"{path}/{KEY}").json()["key"] == KEY
    patched = airflow.api("PATCH", f"{path}/{KEY}", json={"value": value, "map_index": -1})
    assert patched.status_code == 200, patched.text
    assert recorded(airflow, run_id) == before
    assert airflow.api("GET", f"{path}/{KEY}").status_code == 404
