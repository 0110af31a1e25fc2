"""The Celery executor beside Airflow's own, on real workers: where tasks run and wait."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.integration.placing import (
    EXECUTOR,
    HELD,
    HOST,
    QUICK,
    HeldRun,
    open_on,
    placements,
    release_all,
    wait_consuming,
)
from tests.support.deployment import Deployment
from tests.support.fleet import WITNESS, start_workers, witnessed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.environments import Environment
    from tests.support.services import Postgres, Redis

HERE = '"executor": "placed"'

POISONED = (
    WITNESS
    + f"""
from airflow.sdk import dag, task


@dag(schedule=None, default_args={{{HERE}}})
def poisoned():
    @task(retries=1, retry_delay=0)
    def picky(number, **context):
        witness(context)
        if os.environ["TEST_WORKER_INSTANCE"] == "w1":
            raise RuntimeError("this machine is broken")

    picky.expand(number=list(range(12)))


poisoned()
"""
)

BOTH = (
    WITNESS
    + """
from datetime import timedelta
from pathlib import Path
import time

from airflow.sdk import DeadlineAlert, DeadlineReference, SyncCallback, dag, task


@dag(
    schedule=None,
    deadline=DeadlineAlert(
        DeadlineReference.DAGRUN_QUEUED_AT, timedelta(seconds=1), SyncCallback("calls.late", executor="placed")
    ),
)
def both():
    @task(executor="placed")
    def by_this(**context):
        witness(context)
        while not Path(os.environ["AIRFLOW_HOME"], "late").exists():
            time.sleep(0.1)

    @task
    def by_airflows_own(**context):
        witness(context)

    by_this()
    by_airflows_own()


both()
"""
)

CALLS = """
import os
from pathlib import Path


def late(context):
    Path(os.environ["AIRFLOW_HOME"], "late").write_text(os.environ["TEST_WORKER_INSTANCE"])
"""


@pytest.fixture(scope="module")
def airflow(airflow_env: Callable[[str], Environment], postgres: Postgres, redis: Redis) -> Iterator[Deployment]:
    executors = f"CeleryExecutor,placed:{EXECUTOR}"
    with Deployment(airflow_env("3.3.2"), executor=executors, postgres=postgres, redis=redis, config=QUICK) as airflow:
        airflow.write_dag("held", HELD.replace('"retries"', f'{HERE}, "retries"'))
        airflow.write_dag("poisoned", POISONED)
        airflow.write_dag("both", BOTH)
        (airflow.home / "config").mkdir()
        (airflow.home / "config" / "calls.py").write_text(CALLS)
        airflow.migrate()
        start_workers(airflow, "w1", "w2", wait=False)
        airflow.start_all()
        wait_consuming(airflow, "w1", "w2")
        yield airflow


@pytest.fixture(autouse=True)
def release_held_tasks(airflow: Deployment) -> Iterator[None]:
    """Release the tasks of a failed test, which would occupy the workers of the next."""
    yield
    release_all(airflow)


def worker_id(airflow: Deployment, name: str) -> str:
    """Return the ID of a worker once exactly one instance of it lives."""
    query = "SELECT worker_id FROM worker_insight_worker WHERE engine_name = :name AND ended_at IS NULL"

    def found() -> str | None:
        rows = airflow.sql(query, name=f"{name}@{HOST}")
        return str(rows[0]["worker_id"]) if len(rows) == 1 else None

    return airflow.wait_for(found, 60, f"{name} to live")


def set_availability(airflow: Deployment, name: str, availability: str) -> None:
    answer = airflow.api(
        "PATCH",
        f"/worker-insight/api/v1/workers/{worker_id(airflow, name)}",
        json={"availability": availability, "note": "a test"},
    )
    assert answer.ok, answer.text


def page_of_worker(airflow: Deployment, name: str) -> str:
    answer = airflow.api("GET", f"/worker-insight/workers/{worker_id(airflow, name)}")
    assert answer.ok, answer.text
    return answer.text


def panel(airflow: Deployment, run: HeldRun, task_id: str) -> str:
    where = {"dag_id": run.dag_id, "run_id": run.run_id, "task_id": task_id}
    answer = airflow.api("GET", "/worker-insight/panel", params=where)
    assert answer.ok, answer.text
    return answer.text


def wait_loads(airflow: Deployment, **loads: int) -> None:
    """Wait until so many tries are placed on each worker."""
    airflow.wait_for(lambda: {name: open_on(airflow, name) for name in loads} == loads, 60, f"{loads} to be placed")


def test_tasks_are_spread_over_the_workers(airflow: Deployment) -> None:
    run = HeldRun(airflow, 20)
    # Each worker runs two tasks and gets four more; the rest have no slot.
    run.wait_states(running=4, queued=16)
    wait_loads(airflow, w1=6, w2=6)
    waiting = [row for row in placements(airflow, run.run_id) if row["is_open"] and row["on"] is None]
    assert {row["detail"] for row in waiting} == {"waits: all eligible workers are full"}
    run.finish()
    assert set(run.ran()) == {"w1", "w2"}


def test_each_retry_avoids_the_worker_that_failed_it(airflow: Deployment) -> None:
    run_id = airflow.trigger("poisoned")
    airflow.wait_run("poisoned", run_id, timeout=300, expect="success")
    found = witnessed(airflow, "poisoned", run_id)
    first = Counter(instances[0] for key, instances in found.items() if key.try_number == 1)
    second = Counter(instances[0] for key, instances in found.items() if key.try_number == 2)
    assert first["w1"] > 0
    assert second == {"w2": first["w1"]}


def test_drained_worker_finishes_its_tasks_and_gets_no_new_ones(airflow: Deployment) -> None:
    run = HeldRun(airflow, 8)
    run.wait_states(running=4, queued=4)
    airflow.wait_for(lambda: open_on(airflow, "w1") + open_on(airflow, "w2") == 8, 60, "all to be placed")
    set_availability(airflow, "w1", "draining")
    try:
        # Tasks that wait there move to the other worker.
        wait_loads(airflow, w1=2, w2=6)
        assert "The worker gets no new tasks. 2 tries still run or wait." in page_of_worker(airflow, "w1")
        more = HeldRun(airflow, 10)
        run.finish()
        # More tasks wait all the time, held by the test.
        is_empty = "The worker is empty and gets no new tasks."
        airflow.wait_for(lambda: is_empty in page_of_worker(airflow, "w1"), 60, "the page to say that it is empty")
        more.finish()
        assert run.ran() == {"w1": 2, "w2": 6}
        assert more.ran() == {"w2": 10}
    finally:
        set_availability(airflow, "w1", "available")
    # It gets tasks again.
    run = HeldRun(airflow, 4)
    wait_loads(airflow, w1=2, w2=2)
    run.finish()


def test_tasks_wait_and_say_why_while_all_workers_are_quarantined(airflow: Deployment) -> None:
    runs = []

    def waits() -> HeldRun | None:
        """Start another run, and return it if its first task waits."""
        runs.append(run := HeldRun(airflow, 1))
        row, *_ = airflow.wait_for(lambda: placements(airflow, run.run_id), 60, "it to be placed or to wait")
        return run if row["on"] is None else None

    for name in ("w1", "w2"):
        set_availability(airflow, name, "quarantined")
    try:
        waiting = airflow.wait_for(waits, 60, "a task to wait")
        panel_text = panel(airflow, waiting, "numbers")
        assert "Not placed yet: no worker of the queue default is available" in panel_text
        assert "(quarantined)" in panel_text
    finally:
        for name in ("w1", "w2"):
            set_availability(airflow, name, "available")
    # All at once: any of them may hold the four slots now.
    release_all(airflow)
    for run in runs:
        run.finish()


def test_runs_beside_airflows_own_executor_and_runs_callbacks(airflow: Deployment) -> None:
    run_id = airflow.trigger("both")
    placed = airflow.wait_for(lambda: placements(airflow, run_id), 60, "it to be placed")
    assert {row["task_id"] for row in placed} == {"by_this"}
    airflow.wait_run("both", run_id, expect="success")
    assert (airflow.home / "late").read_text() in {"w1", "w2"}
    assert len(witnessed(airflow, "both", run_id)) == 2


def test_waiting_task_never_runs_if_failed_and_runs_once_if_cleared(airflow: Deployment) -> None:
    run = HeldRun(airflow, 12)
    run.wait_states(running=4, queued=8)
    wait_loads(airflow, w1=6, w2=6)
    failed, cleared, *_ = (
        row["map_index"]
        for row in airflow.task_instances(run.dag_id, run.run_id)
        if row["task_id"] == "effect" and row["state"] == "queued"
    )
    task = f"/dags/{run.dag_id}/dagRuns/{run.run_id}/taskInstances/effect"
    answer = airflow.api("PATCH", f"{task}/{failed}", json={"new_state": "failed"})
    assert answer.ok, answer.text
    body = {"dag_run_id": run.run_id, "task_ids": [["effect", cleared]], "dry_run": False, "only_failed": False}
    answer = airflow.api("POST", f"/dags/{run.dag_id}/clearTaskInstances", json=body)
    assert answer.ok, answer.text
    run.release()
    airflow.wait_run(run.dag_id, run.run_id, expect="failed")
    did = Counter(
        key.map_index for key, instances in witnessed(airflow, run.dag_id, run.run_id).items() for _ in instances
    )
    assert did == dict.fromkeys(set(range(12)) - {failed}, 1)
    wait_loads(airflow, w1=0, w2=0)


def test_tasks_whose_messages_the_broker_lost_run_once(airflow: Deployment, redis: Redis) -> None:
    airflow.stop("scheduler")
    impatient = {"TASK_QUEUED_TIMEOUT": "10", "TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "2"}
    airflow.start("scheduler", env={f"AIRFLOW__SCHEDULER__{name}": value for name, value in impatient.items()})
    run = HeldRun(airflow, 12)
    run.wait_states(running=4, queued=8)
    wait_loads(airflow, w1=6, w2=6)
    redis.client(int(airflow.env["AIRFLOW__CELERY__BROKER_URL"].rpartition("/")[2])).flushdb()

    def requeued() -> bool:
        events = "SELECT 1 FROM log WHERE run_id = :run_id AND event = 'stuck in queued reschedule'"
        return len(airflow.sql(events, run_id=run.run_id)) >= 8

    airflow.wait_for(requeued, 60, "Airflow to requeue the waiting tasks")
    run.finish()
    wait_loads(airflow, w1=0, w2=0)
