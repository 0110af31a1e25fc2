"""The local executor with named workers: where tasks run, and what happens to them."""

from __future__ import annotations

import socket
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.accounting import attempts, wait_accounted
from tests.integration.test_versions import DB_MANAGER
from tests.support.deployment import Deployment
from tests.support.fleet import WITNESS, Try, witnessed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.environments import Environment
    from tests.support.services import Postgres

HOST = socket.gethostname()
EXECUTOR = "airflow_worker_insight.executors.local.WorkerInsightLocalExecutor"
SEVERAL = f"LocalExecutor,placed:{EXECUTOR}"

CONFIG = {
    "worker_insight.local_workers": "w1:2, w2:2",
    "worker_insight.refresh_interval": "2",
    "worker_insight.heartbeat_timeout": "10",
    "worker_insight.lost_timeout": "15",
    "dag_processor.min_file_process_interval": "600",
    "core.max_active_tasks_per_dag": "64",
    "scheduler.orphaned_tasks_check_interval": "3",
    "scheduler.scheduler_health_check_threshold": "8",
}

DAG = (
    WITNESS
    + """
import time
from datetime import datetime

try:
    from airflow.sdk import dag, task
except ImportError:
    from airflow.decorators import dag, task

# The worker name that the executor gave to the process; the task writes it.
NAME = os.environ.get("AIRFLOW__WORKER_INSIGHT__WORKER_NAME", "plain")
os.environ["TEST_WORKER_INSTANCE"] = NAME
# Set where the executor is one of several.
EXECUTOR = {{}}


@dag(schedule=None, start_date=datetime(2025, 1, 1), catchup=False)
def placed():
    @task(retries=1, retry_delay=0, **EXECUTOR)
    def picky(number, **context):
        witness(context)
        if NAME == "w1":
            raise RuntimeError("this machine is broken")

    @task
    def other(**context):
        witness(context)

    picky.expand(number=list(range(6)))
    other()


@dag(schedule=None, start_date=datetime(2025, 1, 1), catchup=False, params={{"hold": False}})
def many():
    @task(retries=1, retry_delay=0, **EXECUTOR)
    def short(number, **context):
        witness(context)
        released = os.path.join(os.environ["AIRFLOW_HOME"], context["run_id"])
        while context["params"]["hold"] and not os.path.exists(released):
            time.sleep(0.1)

    short.expand(number=list(range(6)))


placed()
many()
"""
)


def dag(**executor: str) -> str:
    return DAG.replace("EXECUTOR = {{}}", f"EXECUTOR = {executor}").replace("{{", "{").replace("}}", "}")


def ran_on(airflow: Deployment, dag_id: str, run_id: str, task_id: str, try_number: int | None = None) -> Counter[str]:
    found = witnessed(airflow, dag_id, run_id)
    return Counter(
        str(instances[-1])
        for key, instances in found.items()
        if key.task_id == task_id and try_number in (None, key.try_number)
    )


def workers(airflow: Deployment, name: str | None = None) -> list[dict[str, Any]]:
    """Return the workers of the running scheduler."""
    answer = airflow.api("GET", "/worker-insight/api/v1/workers", params={"limit": 1000})
    assert answer.ok, answer.text
    pid = airflow.components["scheduler"].pid
    return [row for row in answer.json()["workers"] if row["pid"] == pid and name in (None, row["name"])]


def set_availability(airflow: Deployment, name: str, availability: str) -> None:
    (row,) = workers(airflow, name)
    answer = airflow.api(
        "PATCH",
        f"/worker-insight/api/v1/workers/{row['worker_id']}",
        json={"availability": availability, "note": "a test"},
    )
    assert answer.ok, answer.text


def details(airflow: Deployment, run_id: str) -> list[str]:
    rows = airflow.sql("SELECT detail FROM worker_insight_placement WHERE run_id = :run_id", run_id=run_id)
    return [str(row["detail"]) for row in rows]


def release(airflow: Deployment, run_id: str) -> None:
    """Let the held tasks of a run go on."""
    (airflow.home / run_id).touch()


@pytest.fixture(scope="module")
def deployment(airflow_env: Callable[[str], Environment], postgres: Postgres) -> Iterator[Deployment]:
    with Deployment(airflow_env("3.3.2"), executor=EXECUTOR, postgres=postgres, config=CONFIG) as airflow:
        airflow.write_dag("placed", dag())
        airflow.migrate()
        airflow.start_all()
        yield airflow


@pytest.fixture
def airflow(deployment: Deployment) -> Iterator[Deployment]:
    """Restore a scheduler, available workers and free slots after a failed test."""
    yield deployment
    if not deployment.components["scheduler"].alive:
        deployment.start("scheduler")
    for row in deployment.wait_for(lambda: workers(deployment), 30, "workers"):
        if row["availability"] != "available":
            set_availability(deployment, row["name"], "available")
    for row in deployment.sql("SELECT run_id FROM dag_run"):
        release(deployment, row["run_id"])
    unfinished = "SELECT 1 FROM dag_run WHERE state IN ('queued', 'running')"
    deployment.wait_for(lambda: not deployment.sql(unfinished), 120, "all runs to end")


def test_workers_are_known_before_their_first_task(airflow: Deployment) -> None:
    # A scheduler's job is there a moment before its executors have started.
    found = airflow.wait_for(lambda: workers(airflow), 30, "workers")
    assert [row["name"] for row in sorted(found, key=lambda row: str(row["name"]))] == ["w1", "w2"]
    assert {(row["kind"], row["state"], row["concurrency"]) for row in found} == {("local", "online", 2)}
    assert len({row["worker_id"] for row in found}) == 2


def test_tasks_are_spread_and_each_try_is_reported_with_its_worker(airflow: Deployment) -> None:
    before = {row["worker_id"]: row["name"] for row in workers(airflow)}
    run_id = airflow.trigger("many")
    airflow.wait_run("many", run_id, expect="success")
    spread = ran_on(airflow, "many", run_id, "short")
    assert sum(spread.values()) == 6
    assert min(spread["w1"], spread["w2"]) >= 2, spread
    recorded = wait_accounted(airflow, "many", run_id)
    said = witnessed(airflow, "many", run_id)
    assert {key: (attempt.attribution, attempt.worker.name) for key, attempt in recorded.items()} == {
        key: ("reported", instances[0]) for key, instances in said.items()
    }
    assert {attempt.worker.worker_id: attempt.worker.name for attempt in recorded.values()} == before


def test_each_retry_avoids_the_worker_that_failed_it(airflow: Deployment) -> None:
    def run_with_a_retry() -> str | None:
        # Short tasks that never overlap may all be placed on the worker that has run fewer so far: w2.
        run_id = airflow.trigger("placed")
        airflow.wait_run("placed", run_id, expect="success")
        return run_id if ran_on(airflow, "placed", run_id, "picky", 1)["w1"] else None

    run_id = airflow.wait_for(run_with_a_retry, 120, "a first try on w1")
    assert run_id is not None
    first, second = (ran_on(airflow, "placed", run_id, "picky", number) for number in (1, 2))
    assert second == {"w2": first["w1"]}, details(airflow, run_id)


def test_quarantined_worker_gets_no_new_task(airflow: Deployment) -> None:
    set_availability(airflow, "w1", "quarantined")

    # The scheduler reads it within some seconds.
    def all_on_w2() -> bool:
        run_id = airflow.trigger("many")
        airflow.wait_run("many", run_id, expect="success")
        return ran_on(airflow, "many", run_id, "short") == {"w2": 6}

    airflow.wait_for(all_on_w2, 60, "a run without w1")

    set_availability(airflow, "w2", "quarantined")
    run_id = airflow.trigger("many", conf={"hold": True})

    def waiting() -> list[str]:
        return [detail for detail in details(airflow, run_id) if "is available" in detail]

    (detail, *_) = airflow.wait_for(waiting, 60, "a task to wait for a worker")
    assert detail.startswith("waits: no worker of the queue default is available; left out: ")
    assert f"w1@{HOST}" in detail
    assert "(quarantined)" in detail

    set_availability(airflow, "w1", "available")
    airflow.wait_for(lambda: ran_on(airflow, "many", run_id, "short")["w1"], 60, "w1 to get tasks again")
    set_availability(airflow, "w2", "available")
    release(airflow, run_id)
    airflow.wait_run("many", run_id, expect="success")
    assert sum(ran_on(airflow, "many", run_id, "short").values()) == 6


def test_workers_of_a_killed_scheduler_are_lost_and_replaced(airflow: Deployment) -> None:
    before = workers(airflow)
    run_id = airflow.trigger("many", conf={"hold": True})
    airflow.wait_for(lambda: len(witnessed(airflow, "many", run_id)) == 4, 60, "all slots to be taken")
    airflow.kill("scheduler", descendants=True)
    release(airflow, run_id)
    airflow.start("scheduler")
    after = airflow.wait_for(lambda: workers(airflow), 30, "workers")
    assert {row["name"] for row in after} == {"w1", "w2"}
    assert not {row["worker_id"] for row in before} & {row["worker_id"] for row in after}
    airflow.wait_run("many", run_id, expect="success")
    done = [row for row in airflow.task_instances("many", run_id) if row["state"] == "success"]
    assert len(done) == 6

    def gone() -> bool:
        paths = [f"/worker-insight/api/v1/workers/{row['worker_id']}" for row in before]
        return all(airflow.api("GET", path).json()["state"] == "lost" for path in paths)

    airflow.wait_for(gone, 60, "the workers of the killed scheduler to be lost")
    assert {row["state"] for row in workers(airflow)} == {"online"}


@pytest.mark.parametrize("version", ["2.11.2", "3.0.6", "3.1.8", "3.2.2", "3.3.2"])
def test_tasks_are_spread_and_retries_avoid_the_worker_that_failed_them(
    airflow_env: Callable[[str], Environment], postgres: Postgres, version: str
) -> None:
    # On the newest it is one of several executors.
    is_newest = version == "3.3.2"
    config = {**CONFIG, "scheduler.standalone_dag_processor": "False"}
    if version in ("3.0.6", "3.1.8"):
        config["database.external_db_managers"] = DB_MANAGER
    executor = SEVERAL if is_newest else EXECUTOR
    with Deployment(airflow_env(version), executor=executor, postgres=postgres, config=config) as airflow:
        airflow.write_dag("placed", dag(executor="placed") if is_newest else dag())
        airflow.migrate()
        airflow.start_all()
        run_id = airflow.trigger("placed")
        airflow.wait_run("placed", run_id, expect="success")
        first, second = (ran_on(airflow, "placed", run_id, "picky", number) for number in (1, 2))
        assert set(first) == {"w1", "w2"}
        assert sum(first.values()) == 6
        assert second == {"w2": first["w1"]}, details(airflow, run_id)
        recorded = wait_accounted(airflow, "placed", run_id)
        assert {attempt.attribution for attempt in recorded.values()} == {"reported"}
        names = {row["engine_name"] for row in airflow.sql("SELECT * FROM worker_insight_worker WHERE NOT host_only")}
        own = {f"w1@{HOST}", f"w2@{HOST}"}
        assert names == (own | {f"local@{HOST}"} if is_newest else own)
        if is_newest:
            assert recorded[Try("other", -1, 1)].worker.name == f"local@{HOST}"
            assert {attempt.worker.kind for attempt in attempts(airflow, "placed", run_id).values()} == {"local"}
