"""First tries by which a worker is compared with others: which count, and how they ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import update

from airflow_worker_insight.store.attempts import first_tries
from airflow_worker_insight.store.tables import worker
from tests.unit.database import Database, a_worker, add_run, add_try, at, close, on_both, record_start

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.attempts import DagRunRef
    from airflow_worker_insight.domain.keys import TryKey
    from airflow_worker_insight.domain.workers import WorkerRecord

LOAD = [("etl", "load")]


def a_try(
    connection: Connection,
    run: DagRunRef,
    start: float,
    on: str | WorkerRecord = "w1",
    task_id: str = "load",
    **others: Any,
) -> TryKey:
    """Store a try that a worker started so many seconds after noon."""
    state = others.pop("state", "success")
    ended_at = None if state == "running" else at(start + 5)
    record = a_worker(on) if isinstance(on, str) else on
    key = add_try(connection, run, task_id, started_at=at(start), ended_at=ended_at, state=state, **others)
    record_start(connection, key, record, try_started_at=at(start), state="running", now=at(start))
    return key


def of_load(database: Database, **others: Any) -> list[tuple[str, float, bool]]:
    """Return worker, start in seconds after noon, and whether it failed, of the first tries of ``load``."""
    with database.engine.connect() as connection:
        found = first_tries.of_tasks(connection, LOAD, **{"until": at(9999), "limit": 64, **others})
    return [(one.worker_name, (one.started_at - at(0)).total_seconds(), one.has_failed) for one in found]


@on_both
def test_first_tries_of_a_task_come_with_worker_and_outcome_the_latest_first(database: Database) -> None:
    with database.engine.begin() as connection:
        for number, (worker_id, state) in enumerate([("w1", "success"), ("w2", "failed"), ("w1", "failed")]):
            run = add_run(connection, run_id=f"run-{number}")
            a_try(connection, run, 10 * number, worker_id, state=state)
            a_try(connection, run, 10 * number, worker_id, "other", state="failed")
            close(connection, run)
        a_try(connection, add_run(connection, "other dag"), 50)
    assert of_load(database) == [("w1@host-1", 20, True), ("w2@host-1", 10, True), ("w1@host-1", 0, False)]
    assert of_load(database, limit=1) == [("w1@host-1", 20, True)]
    assert of_load(database, since=at(5), until=at(15)) == [("w2@host-1", 10, True)]


@on_both
@pytest.mark.parametrize(
    ("state", "has_failed"),
    [("failed", True), ("up_for_retry", True), ("success", False), ("running", False), ("deferred", False)],
)
def test_open_try_has_the_state_that_airflow_has(database: Database, state: str, has_failed: bool) -> None:
    with database.engine.begin() as connection:
        a_try(connection, add_run(connection, state="running", ended_at=None), 10, state=state)
    assert of_load(database) == [("w1@host-1", 10, has_failed)]


@pytest.mark.parametrize("state", ["skipped", "removed", "restarting", None])
def test_try_that_says_nothing_of_its_worker_does_not_count(database: Database, state: str | None) -> None:
    with database.engine.begin() as connection:
        a_try(connection, add_run(connection), 10, state=state)
    assert of_load(database) == []


def test_running_try_of_a_lost_worker_has_failed(database: Database) -> None:
    with database.engine.begin() as connection:
        a_try(connection, add_run(connection, state="running", ended_at=None), 10, state="running")
        connection.execute(update(worker).values(state="lost"))
    assert of_load(database) == [("w1@host-1", 10, True)]


def test_retries_do_not_count(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection)
        a_try(connection, run, 20, try_number=2)
        a_try(connection, run, 10, try_number=1, state="failed", history=True)
    assert of_load(database) == [("w1@host-1", 10, True)]


def test_try_counts_for_its_first_worker_only(database: Database) -> None:
    with database.engine.begin() as connection:
        key = a_try(connection, add_run(connection), 10, "w1")
        record_start(connection, key, a_worker("w2"), try_started_at=at(10), state="running", now=at(12))
    assert of_load(database) == [("w1@host-1", 10, False)]


def test_worker_that_is_not_known_by_name_is_no_peer(database: Database) -> None:
    with database.engine.begin() as connection:
        a_try(connection, add_run(connection), 10)
        connection.execute(update(worker).values(host_only=True))
    assert of_load(database) == []


@on_both
def test_mapped_instances_of_a_run_on_one_worker_count_once(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection)
        for index in range(6):
            worker_id = "w1" if index < 4 else "w2"
            a_try(connection, run, 10 + index, worker_id, map_index=index, state="failed" if index == 0 else "success")
        a_try(connection, add_run(connection, run_id="run-2"), 30, map_index=0)
    counted = [("w1@host-1", 30, False), ("w2@host-1", 14, False), ("w1@host-1", 10, True)]
    assert of_load(database, is_mapped=True) == counted
    assert of_load(database, is_mapped=True, limit=2) == counted[:2]


@on_both
def test_first_tries_of_a_worker_are_those_of_its_instance_and_of_readable_dags(database: Database) -> None:
    with database.engine.begin() as connection:
        run, secret = add_run(connection), add_run(connection, "secret")
        keys = [a_try(connection, run, 10, task_id="a"), a_try(connection, run, 20, task_id="b")]
        a_try(connection, run, 30, "w2", "c")
        a_try(connection, secret, 40)
        ref = connection.execute(worker.select().where(worker.c.worker_id == "w1")).one().id
        found = first_tries.of_worker(connection, ref, dag_ids={"etl"}, limit=10)
        assert [one.key for one in found] == keys[::-1]
        assert [one.key for one in first_tries.of_worker(connection, ref, dag_ids={"etl"}, limit=1)] == keys[1:]
        assert first_tries.of_worker(connection, ref, dag_ids=set(), limit=10) == []
