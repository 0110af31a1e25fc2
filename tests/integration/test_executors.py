"""The executor that places tasks, on real Celery workers and beside Airflow's own: where tasks go, and what waits."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.integration.accounting import WITNESS, witnessed
from tests.integration.placing import (
    EXECUTOR,
    HELD,
    HOST,
    QUICK,
    Held,
    let_all_go,
    open_on,
    placements,
    start_workers,
    wait_consuming,
)
from tests.support.deployment import Deployment

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
        if os.environ["TEST_WORKER_LIFE"] == "w1":
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
    Path(os.environ["AIRFLOW_HOME"], "late").write_text(os.environ["TEST_WORKER_LIFE"])
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
def nothing_is_left(airflow: Deployment) -> Iterator[None]:
    """Have the tasks of a test that failed leave the workers to the next one."""
    yield
    let_all_go(airflow)


def worker_id(airflow: Deployment, name: str) -> str:
    """Return the worker's ID once it is known by one: a busy machine may have missed it for a moment."""
    query = "SELECT worker_id FROM worker_insight_worker WHERE engine_name = :name AND ended_at IS NULL"

    def found() -> str | None:
        rows = airflow.sql(query, name=f"{name}@{HOST}")
        return str(rows[0]["worker_id"]) if len(rows) == 1 else None

    return airflow.wait_for(found, 60, f"{name} to live")


def decide(airflow: Deployment, name: str, availability: str) -> None:
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


def panel(airflow: Deployment, run: Held, task_id: str) -> str:
    where = {"dag_id": run.dag_id, "run_id": run.run_id, "task_id": task_id}
    answer = airflow.api("GET", "/worker-insight/panel", params=where)
    assert answer.ok, answer.text
    return answer.text


def settled(airflow: Deployment, **loads: int) -> None:
    """Wait until so many tries are placed on each worker."""
    airflow.wait_for(lambda: {name: open_on(airflow, name) for name in loads} == loads, 60, f"{loads} to be placed")


def test_tasks_are_spread_over_the_workers(airflow: Deployment) -> None:
    run = Held(airflow, 20)
    # Each runs two and is given four more; for the rest there is no room.
    run.wait_states(running=4, queued=16)
    settled(airflow, w1=6, w2=6)
    waiting = [row for row in placements(airflow, run.run_id) if row["is_open"] and row["on"] is None]
    assert {row["detail"] for row in waiting} == {"waits: all eligible workers are full"}
    run.finish()
    assert set(run.ran()) == {"w1", "w2"}


def test_each_first_retry_succeeds_elsewhere(airflow: Deployment) -> None:
    run_id = airflow.trigger("poisoned")
    airflow.wait_run("poisoned", run_id, timeout=300, expect="success")
    found = witnessed(airflow, "poisoned", run_id)
    first = Counter(lives[0] for key, lives in found.items() if key.try_number == 1)
    second = Counter(lives[0] for key, lives in found.items() if key.try_number == 2)
    assert first["w1"] > 0
    assert second == {"w2": first["w1"]}


def test_a_drained_worker_finishes_what_it_runs_and_gets_nothing_new(airflow: Deployment) -> None:
    run = Held(airflow, 8)
    run.wait_states(running=4, queued=4)
    airflow.wait_for(lambda: open_on(airflow, "w1") + open_on(airflow, "w2") == 8, 60, "all to be placed")
    decide(airflow, "w1", "draining")
    try:
        # What waits there goes to the other.
        settled(airflow, w1=2, w2=6)
        assert "The worker gets no new tasks. 2 tries still run or wait." in page_of_worker(airflow, "w1")
        more = Held(airflow, 10)
        run.finish()
        # (There is more to do all the time: those wait for the test's word.)
        is_empty = "The worker is empty and gets no new tasks."
        airflow.wait_for(lambda: is_empty in page_of_worker(airflow, "w1"), 60, "the page to say that it is empty")
        more.finish()
        assert run.ran() == {"w1": 2, "w2": 6}
        assert more.ran() == {"w2": 10}
    finally:
        decide(airflow, "w1", "available")
    # It is given work again.
    run = Held(airflow, 4)
    settled(airflow, w1=2, w2=2)
    run.finish()


def test_with_everybody_in_quarantine_tasks_wait_and_say_why(airflow: Deployment) -> None:
    runs = []

    def waits() -> Held | None:
        """Have another run, and return it if its first task waits: deciding takes effect after some seconds."""
        runs.append(run := Held(airflow, 1))
        row, *_ = airflow.wait_for(lambda: placements(airflow, run.run_id), 60, "it to be placed or to wait")
        return run if row["on"] is None else None

    for name in ("w1", "w2"):
        decide(airflow, name, "quarantined")
    try:
        waiting = airflow.wait_for(waits, 60, "a task to wait")
        said = panel(airflow, waiting, "numbers")
        assert "Not placed yet: no worker of the queue default is available" in said
        assert "(quarantined)" in said
    finally:
        for name in ("w1", "w2"):
            decide(airflow, name, "available")
    # All at once: which of them have the four places now is nobody's promise.
    let_all_go(airflow)
    for run in runs:
        run.finish()


def test_beside_airflows_own_executor_and_with_callbacks(airflow: Deployment) -> None:
    run_id = airflow.trigger("both")
    placed = airflow.wait_for(lambda: placements(airflow, run_id), 60, "it to be placed")
    assert {row["task_id"] for row in placed} == {"by_this"}
    airflow.wait_run("both", run_id, expect="success")
    assert (airflow.home / "late").read_text() in {"w1", "w2"}
    assert len(witnessed(airflow, "both", run_id)) == 2


def test_what_waits_at_a_worker_and_is_failed_or_cleared(airflow: Deployment) -> None:
    run = Held(airflow, 12)
    run.wait_states(running=4, queued=8)
    settled(airflow, w1=6, w2=6)
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
    run.go()
    airflow.wait_run(run.dag_id, run.run_id, expect="failed")
    did = Counter(key.map_index for key, lives in witnessed(airflow, run.dag_id, run.run_id).items() for _ in lives)
    assert did == dict.fromkeys(set(range(12)) - {failed}, 1)
    settled(airflow, w1=0, w2=0)


def test_messages_that_the_broker_has_lost(airflow: Deployment, redis: Redis) -> None:
    airflow.stop("scheduler")
    impatient = {"TASK_QUEUED_TIMEOUT": "10", "TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "2"}
    airflow.start("scheduler", env={f"AIRFLOW__SCHEDULER__{name}": value for name, value in impatient.items()})
    run = Held(airflow, 12)
    run.wait_states(running=4, queued=8)
    settled(airflow, w1=6, w2=6)
    redis.client(int(airflow.env["AIRFLOW__CELERY__BROKER_URL"].rpartition("/")[2])).flushdb()

    def requeued() -> bool:
        events = "SELECT 1 FROM log WHERE run_id = :run_id AND event = 'stuck in queued reschedule'"
        return len(airflow.sql(events, run_id=run.run_id)) >= 8

    airflow.wait_for(requeued, 60, "Airflow to queue again what waited")
    run.finish()
    settled(airflow, w1=0, w2=0)
