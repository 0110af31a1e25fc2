"""What readers get of what a worker ran and runs."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import update

from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.store.attempts import by_worker
from airflow_worker_insight.store.attempts.search import SearchLimits
from airflow_worker_insight.store.tables import attempt, worker
from tests.unit.database import (
    NOON,
    Database,
    a_worker,
    add_run,
    add_try,
    at,
    change_try,
    instance_of,
    on_both,
    record_start,
)
from tests.unit.store.fleet import get

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_worker_insight.domain.attempts import DagRunRef
    from airflow_worker_insight.domain.keys import TryKey

READABLE = {"etl"}

pytestmark = pytest.mark.usefixtures("polled_sources")


def a_start(
    database: Database,
    run: DagRunRef,
    task_id: str,
    *on: str,
    started_at: datetime = NOON,
    state: str | None = "running",
    ended_at: datetime | None = None,
    closed: bool = False,
) -> TryKey:
    """Store a try that these workers ran one after the other, as Airflow has it; ``closed`` also by our own word."""
    with database.engine.begin() as connection:
        key = add_try(connection, run, task_id, state=state, started_at=started_at, ended_at=ended_at)
        for number, worker_id in enumerate(on):
            moment = started_at + timedelta(seconds=number)
            record_start(connection, key, a_worker(worker_id), try_started_at=started_at, state="running", now=moment)
        if closed:
            connection.execute(
                update(attempt)
                .where(attempt.c.run_key == key.run_key, attempt.c.task_key == instance_of(connection, key))
                .values(ended_at=ended_at, state=state)
            )
    return key


@pytest.fixture
def run(database: Database) -> DagRunRef:
    with database.engine.begin() as connection:
        return add_run(connection, state="running", ended_at=None)


@on_both
def test_what_runs_now_is_what_airflow_says(database: Database, run: DagRunRef) -> None:
    with database.engine.begin() as connection:
        secret = add_run(connection, "secret", state="running", ended_at=None)
    a_start(database, run, "first", "one")
    a_start(database, run, "second", "one", started_at=at(5))
    a_start(database, run, "moved-away", "one", "two")
    a_start(database, run, "moved-here", "two", "one", started_at=at(-5))
    a_start(database, run, "elsewhere", "two")
    a_start(database, run, "deferred", "one", state="deferred")
    a_start(database, run, "over", "one", state="success", ended_at=at(9))
    a_start(database, secret, "hidden", "one")
    one = get(database, "one")
    with database.engine.connect() as connection:
        found, total = by_worker.running_now(connection, one, dag_ids=READABLE, limit=2)
        assert ([one_try.task_id for one_try in found], total) == (["second", "first"], 3)
        found, total = by_worker.running_now(connection, one, dag_ids=READABLE, limit=10)
        assert [one_try.task_id for one_try in found] == ["second", "first", "moved-here"]
        assert {one_try.state for one_try in found} == {"running"}
        assert by_worker.running_now(connection, one, dag_ids=set(), limit=10) == ([], 0)


@on_both
def test_a_lost_worker_took_with_it_what_had_not_ended(database: Database, run: DagRunRef) -> None:
    with database.engine.begin() as connection:
        secret = add_run(connection, "secret", state="running", ended_at=None)
    a_start(database, run, "over", "one", state="failed", ended_at=at(99), closed=True)
    a_start(database, run, "killed", "one", started_at=at(1), state="failed", ended_at=at(300), closed=True)
    a_start(database, run, "killed-open", "one", started_at=at(2), state="failed", ended_at=at(301))
    a_start(database, run, "not-noticed", "one", started_at=at(3))
    a_start(database, run, "retried", "one", started_at=at(4), state="up_for_retry", ended_at=at(302))
    a_start(database, run, "just-started", "one", started_at=at(110))
    a_start(database, run, "made-it", "one", started_at=at(5), state="success", ended_at=at(130), closed=True)
    a_start(database, run, "deferred", "one", started_at=at(6), state="deferred")
    a_start(database, run, "moved-away", "one", "two", started_at=at(7))
    a_start(database, secret, "hidden", "one", started_at=at(8))
    with database.engine.begin() as connection:
        forgotten = add_try(connection, run, "forgotten", state="running")
        record_start(connection, forgotten, a_worker("one"), try_started_at=NOON, state="running", now=NOON)
        table = metadata_database.task_instance_table()
        connection.execute(table.delete().where(table.c.task_id == "forgotten"))
        lost = {"state": "lost", "last_seen_at": at(100), "ended_at": at(100)}
        connection.execute(update(worker).where(worker.c.worker_id == "one").values(lost))
    with database.engine.connect() as connection:
        found, total = by_worker.lost_attempts(connection, get(database, "one"), dag_ids=READABLE, limit=3)
        everything, _ = by_worker.lost_attempts(connection, get(database, "one"), dag_ids=READABLE, limit=10)
        assert by_worker.lost_attempts(connection, get(database, "two"), dag_ids=READABLE, limit=10) == ([], 0)
    assert total == 5
    assert [one_try.task_id for one_try in everything] == [
        "just-started",
        "retried",
        "not-noticed",
        "killed-open",
        "killed",
    ]
    assert found == everything[:3]


def test_a_worker_that_left_in_order_took_nothing_with_it(database: Database, run: DagRunRef) -> None:
    a_start(database, run, "running", "one")
    with database.engine.begin() as connection:
        connection.execute(update(worker).values(state="offline", ended_at=at(100)))
    with database.engine.connect() as connection:
        assert by_worker.lost_attempts(connection, get(database, "one"), dag_ids=READABLE, limit=10) == ([], 0)


@on_both
def test_what_ran_between_two_moments(database: Database, run: DagRunRef) -> None:
    with database.engine.begin() as connection:
        secret = add_run(connection, "secret", state="running", ended_at=None)
    hour = timedelta(hours=1)
    since, until = NOON, NOON + hour
    a_start(database, run, "before", "one", started_at=NOON - hour, state="success", ended_at=at(-1), closed=True)
    a_start(database, run, "into", "one", started_at=NOON - hour, state="success", ended_at=at(1), closed=True)
    a_start(database, run, "through", "one", started_at=NOON - 9 * hour)
    a_start(database, run, "at-the-start", "one", started_at=since, state="failed", ended_at=since, closed=True)
    a_start(database, run, "at-the-end", "one", started_at=until)
    a_start(database, run, "after", "one", started_at=until + timedelta(seconds=1))
    a_start(database, run, "elsewhere", "two")
    a_start(database, secret, "hidden", "one")
    with database.engine.connect() as connection:

        def between(limit: int) -> list[str]:
            found = by_worker.stays_between(
                connection, get(database, "one"), dag_ids=READABLE, since=since, until=until, limit=limit
            )
            return [stay.key.task_id for stay in found]

        assert between(10) == ["at-the-end", "at-the-start", "into", "through"]
        assert between(3) == ["at-the-end", "at-the-start", "into"]
        assert between(1) == ["at-the-end"]


@on_both
def test_outcomes_hour_by_hour(database: Database, run: DagRunRef) -> None:
    with database.engine.begin() as connection:
        secret = add_run(connection, "secret", state="running", ended_at=None)
    hour = timedelta(hours=1)
    for number, (started_at, state) in enumerate(
        [
            (NOON - hour, "success"),
            (NOON, "success"),
            (NOON + timedelta(minutes=59), "success"),
            (NOON + timedelta(minutes=30), "failed"),
            (NOON + 3 * hour, "failed"),
        ]
    ):
        ended_at = started_at + timedelta(seconds=9)
        a_start(database, run, f"t{number}", "one", started_at=started_at, state=state, ended_at=ended_at, closed=True)
    # What Airflow knows better than our row counts.
    key = a_start(database, run, "open", "one", started_at=NOON)
    a_start(database, run, "elsewhere", "two", started_at=NOON)
    a_start(database, secret, "hidden", "one", started_at=NOON)
    with database.engine.begin() as connection:
        change_try(connection, key, state="failed", end_date=at(60))
        found = by_worker.outcomes_per_hour(
            connection, get(database, "one"), dag_ids=READABLE, since=NOON, until=NOON + 4 * hour
        )
    assert [(one.hour, one.states) for one in found] == [
        (NOON, {"success": 2, "failed": 2}),
        (NOON + 3 * hour, {"failed": 1}),
    ]


def test_a_worker_with_a_long_past_is_not_read_whole(database: Database, run: DagRunRef) -> None:
    for number in range(4):
        a_start(database, run, f"t{number}", "one", started_at=at(number))
    with database.engine.connect() as connection:
        found = by_worker.stays_between(
            connection, get(database, "one"), dag_ids=READABLE, since=at(100), until=at(200), limit=10, max_scanned=2
        )
    assert [stay.key.task_id for stay in found] == ["t3", "t2"]


@on_both
def test_a_stay_ends_where_the_try_went_on(database: Database, run: DagRunRef) -> None:
    a_start(database, run, "moved", "one", "two", started_at=NOON)
    a_start(database, run, "back", "two", "one", started_at=at(10), state="deferred")
    a_start(database, run, "ended", "one", started_at=at(20), state="failed", ended_at=at(30))
    key = a_start(database, run, "forgotten", "one", started_at=at(40))
    with database.engine.begin() as connection:
        connection.execute(
            metadata_database.task_instance_table()
            .delete()
            .where(metadata_database.task_instance_table().c.task_id == key.task_id)
        )
        found = by_worker.stays_between(
            connection, get(database, "one"), dag_ids=READABLE, since=NOON, until=at(100), limit=10
        )
    assert [
        (one.key.task_id, one.state, one.first_process_at, one.ended_at, one.continued_elsewhere) for one in found
    ] == [
        ("forgotten", None, at(40), None, False),
        ("ended", "failed", at(20), at(30), False),
        ("back", "deferred", at(11), None, False),
        ("moved", "running", NOON, None, True),
    ]


def test_only_so_many_running_tries_are_looked_through(database: Database, run: DagRunRef) -> None:
    for number in range(4):
        a_start(database, run, f"t{number}", "one", started_at=at(number))
    with database.engine.connect() as connection:
        found, total = by_worker.running_now(
            connection, get(database, "one"), dag_ids=READABLE, limit=10, limits=SearchLimits(total=2)
        )
    assert ([one_try.task_id for one_try in found], total) == (["t3", "t2"], 2)
