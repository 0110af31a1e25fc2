"""Runs outside a scheduler, odd run IDs, recreated runs, and users' XComs under our key."""

from __future__ import annotations

import json
import subprocess
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.accounting import attempts, wait_accounted
from tests.support.deployment import Deployment
from tests.support.fleet import WITNESS, start_worker

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
    @task(queue="nightly", retries=1, retry_delay=0)
    def load(**context):
        witness(context)
        if context["dag_run"].conf.get("fails"):
            raise RuntimeError("on purpose")

    load()


nightly()
"""
)

KEY = "__worker_insight_report__"
ENDS = {"works": "success", "fails": "failed", "with.dots-and_more": "success"}
"""The states in which the tasks of the Dag end."""

ODD_RUN_IDS = (
    *("plain", "with space", "a#b", "a?b=c", "a%2Fb", "100%", "späti 🐘", "x" * 240),
    "manual__2026-03-01T00:00+00:00",
)
RUN_ID_WITH_A_SLASH = "a/b"


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
        deployment.write_dag("nightly", NIGHTLY)
        deployment.migrate()
        deployment.start_all(workers=1)
        deployment.wait_dag("tested")
        yield deployment


def recorded(airflow: Deployment, run_id: str) -> dict[str, tuple[str, int, str | None]]:
    """Reconcile a run, and return attribution, number of workers and state of each task."""
    airflow.run("airflow-worker-insight", "reconcile", "--dag-id", "tested", "--run-id", run_id)
    found = attempts(airflow, "tested", run_id)
    return {key.task_id: (attempt.attribution, len(attempt.workers), attempt.state) for key, attempt in found.items()}


def workers(airflow: Deployment) -> set[str]:
    return {row["worker_id"] for row in airflow.sql("SELECT worker_id FROM worker_insight_worker")}


def run_ids(airflow: Deployment) -> set[str]:
    return {row["run_id"] for row in airflow.sql("SELECT run_id FROM dag_run")}


@pytest.fixture
def without_scheduler(airflow: Deployment) -> Iterator[None]:
    """Stop the scheduler, which on 3.3.2 may send the tasks of ``dag.test`` to its workers."""
    airflow.stop("scheduler")
    yield
    airflow.start("scheduler")


@pytest.mark.usefixtures("without_scheduler")
def test_dag_test_runs_on_no_worker(airflow: Deployment) -> None:
    if airflow.airflow3:
        # The API server polls it. On 2.11 only a command does.
        airflow.wait_for(lambda: workers(airflow), 60, "the Celery worker to be polled")
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
            # Airflow's own LocalExecutor may wait for ever for its processes, whose tasks have ended (seen on 3.3.2).
            may_hang = suppress(subprocess.TimeoutExpired) if how == "LocalExecutor" else nullcontext()
            env = {"AIRFLOW__CORE__EXECUTOR": how, **apart}
            with may_hang:
                airflow.run("python", script, "executor", check=False, env=env, timeout=80)
        (run_id,) = run_ids(airflow) - runs
        found = recorded(airflow, run_id)
        if how in ("command", "script"):
            assert found == {task_id: ("not_on_a_worker", 0, state) for task_id, state in ENDS.items()}
        else:
            # Where a task fails, 2.11 leaves the loop before the last one was handed to the executor.
            assert {attempt[:2] for attempt in found.values()} == {("not_on_a_worker", 0)}
    assert workers(airflow) == known


@pytest.fixture(scope="module")
def _odd_runs(airflow: Deployment) -> None:
    """Run the Dag once for each odd run ID, side by side."""
    for run_id in (*ODD_RUN_IDS, RUN_ID_WITH_A_SLASH):
        airflow.trigger("tested", run_id=run_id)
    for run_id in (*ODD_RUN_IDS, RUN_ID_WITH_A_SLASH):
        wait_run(airflow, run_id)


def assert_attributed(airflow: Deployment, run_id: str, attribution: str) -> None:
    """Check that the scheduler accounts for all tasks of a run, with this attribution."""
    accounted = wait_accounted(airflow, "tested", run_id)
    assert {key.task_id: (attempt.attribution, attempt.state) for key, attempt in accounted.items()} == {
        task_id: (attribution, state) for task_id, state in ENDS.items()
    }
    assert "could not record the worker" not in airflow.task_logs("tested")


@pytest.mark.usefixtures("_odd_runs")
@pytest.mark.parametrize("run_id", ODD_RUN_IDS)
def test_odd_run_ids_are_reported(airflow: Deployment, run_id: str) -> None:
    assert_attributed(airflow, run_id, "reported")


@pytest.mark.usefixtures("_odd_runs")
def test_run_id_with_a_slash_is_accounted_for(airflow: Deployment) -> None:
    assert_attributed(airflow, RUN_ID_WITH_A_SLASH, "inferred" if airflow.airflow3 else "reported")


@pytest.mark.usefixtures("_odd_runs")
@pytest.mark.parametrize("run_id", ["späti 🐘", RUN_ID_WITH_A_SLASH])
def test_the_command_reconciles_odd_run_ids(airflow: Deployment, run_id: str) -> None:
    before = wait_accounted(airflow, "tested", run_id)
    assert recorded(airflow, run_id).keys() == ENDS.keys()
    assert attempts(airflow, "tested", run_id) == before


def wait_run(airflow: Deployment, run_id: str) -> None:
    """Wait for the end of a run in the database: not every run ID fits into a URL path."""

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


# --- a run that is deleted and created again -------------------------------------------------------------------------


def nightly_attempts(airflow: Deployment) -> list[tuple[int, str | None, list[str], str | None]]:
    """Return number, state, workers and deletion of the attempts that the command lists."""
    printed = airflow.run(
        "airflow-worker-insight", "attempts", "list", "--run-id", "nightly", "--output", "json", timeout=120
    )
    # Airflow logs other lines beside it.
    answer = next(line for line in printed.splitlines() if line == "[]" or line.startswith("[{"))
    rows: list[dict[str, Any]] = json.loads(answer)
    return [
        (row["try_number"], row["state"], [by["name"].partition("@")[0] for by in row["workers"]], row["deleted"])
        for row in rows
    ]


def wait_closed(airflow: Deployment, tries: int) -> None:
    """Wait until so many tries of the nightly run are recorded and closed."""
    query = "SELECT 1 FROM worker_insight_attempt WHERE run_id = 'nightly' AND ended_at IS NOT NULL"
    airflow.wait_for(lambda: len(airflow.sql(query)) == tries, 120, f"{tries} tries to be recorded and closed")


@pytest.fixture
def on_nightly_worker(airflow: Deployment) -> Iterator[Callable[[str], None]]:
    """Return a function that starts the only worker for the tasks of the nightly Dag."""
    started: list[str] = []

    def only(name: str) -> None:
        for other in started:
            airflow.stop(other)
        start_worker(airflow, name, "--queues", "nightly", instance=name)
        started.append(name)

    yield only
    for name in started:
        airflow.stop(name)


def test_recreated_run_has_no_attempts_of_the_deleted_run(
    airflow: Deployment, on_nightly_worker: Callable[[str], None]
) -> None:
    """Nothing of the deleted run is shown for the new one of the same name."""
    on_nightly_worker("n1")
    airflow.trigger("nightly", run_id="nightly", conf={"fails": True})
    airflow.wait_run("nightly", "nightly", expect="failed")
    wait_closed(airflow, 2)
    before = [(2, "failed", ["n1"]), (1, "failed", ["n1"])]
    assert nightly_attempts(airflow) == [(*row, None) for row in before]
    deleted = [(*row, "run") for row in before]
    answer = airflow.api("DELETE", "/dags/nightly/dagRuns/nightly")
    assert answer.status_code == 204, answer.text
    assert nightly_attempts(airflow) == deleted

    on_nightly_worker("n2")
    airflow.trigger("nightly", run_id="nightly")
    airflow.wait_run("nightly", "nightly", expect="success")
    wait_closed(airflow, 3)
    assert nightly_attempts(airflow) == [(1, "success", ["n2"], None), *deleted]
    if airflow.airflow3:
        names = {"dag_id": "nightly", "run_id": "nightly", "task_id": "load"}
        page = airflow.api("GET", "/worker-insight/panel", params=names).text
        assert "The only try so far succeeded on n2@" in page
        assert "n1@" not in page
