"""What sums by hour cannot answer is counted from the attempts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import update

from airflow_worker_insight.domain.filters import AttemptFilter
from airflow_worker_insight.domain.statistics import Bucket, Selection
from airflow_worker_insight.store import statistics
from airflow_worker_insight.store.attempts import totals
from airflow_worker_insight.store.statistics import StatisticsError
from airflow_worker_insight.store.tables import attempt, worker
from tests.unit.database import NOON, Database, a_worker, add_run, add_try, at, on_both, record_start

if TYPE_CHECKING:
    from pytest_mock import MockerFixture

    from airflow_worker_insight.domain.statistics import StatisticsPage

DAY = 86400


def record(
    database: Database,
    worker_id: str,
    started: float,
    ended: float | None,
    *,
    state: str = "success",
    dag_id: str = "etl",
    task_id: str = "load",
    is_closed: bool = True,
) -> None:
    """Store a try of a Dag run of its own; of an open run only Airflow knows how it ended."""
    with database.engine.begin() as connection:
        run = add_run(connection, dag_id, f"run-{worker_id}-{started}-{task_id}", started_at=at(started))
        ended_at = None if ended is None else at(ended)
        key = add_try(connection, run, task_id, state=state, started_at=at(started), ended_at=ended_at)
        record_start(connection, key, a_worker(worker_id), try_started_at=at(started), state="running", now=at(started))
        if is_closed:
            closed = update(attempt).where(attempt.c.run_id == run.run_id)
            connection.execute(closed.values(state=state, ended_at=ended_at))


def ask(
    database: Database,
    group_by: str = "worker",
    *,
    bucket: Bucket = Bucket.NONE,
    since: float = 0,
    until: float = 3600,
    dag_ids: set[str] | None = None,
    **filters: Any,
) -> StatisticsPage:
    with database.engine.connect() as connection:
        return statistics.query(
            connection,
            Selection(group_by, bucket, at(since), at(until), AttemptFilter(**filters)),
            dag_ids=None if dag_ids is None else frozenset(dag_ids),
            limit=100,
            offset=0,
        )


def tries(page: StatisticsPage) -> dict[str | None, int]:
    return {row.group: row.tries for row in page.rows}


@on_both
def test_the_workers_of_one_dag(database: Database) -> None:
    record(database, "w1", 10, 20)
    record(database, "w1", 30, 60, state="failed")
    record(database, "w2", 10, 20)
    record(database, "w2", 10, 30, dag_id="other")
    page = ask(database, dag_id="etl")
    assert tries(page) == {"w1@host-1": 2, "w2@host-1": 1}
    row = page.rows[0]
    assert (row.tries, row.failed, row.lost, row.busy_seconds, row.mean_duration) == (2, 1, 0, 40, 20)
    assert (row.utilization, row.mean_queue_seconds, row.bucket) == (None, None, None)
    assert tries(ask(database, dag_id="etl", state="failed")) == {"w1@host-1": 1}
    assert tries(ask(database, "task", worker_id="w2")) == {"etl.load": 1, "other.load": 1}
    assert tries(ask(database, "dag", worker_name="w2@host-1", dag_ids={"etl"})) == {"etl": 1}
    assert tries(ask(database, "dag", hostname="host-9")) == {}
    assert tries(ask(database, "kind", run_id="run-w1-10-load", dag_id="etl")) == {"celery": 1}
    assert tries(ask(database, "label:zone", dag_id="etl")) == {"a": 3}
    assert tries(ask(database, "label:rack", dag_id="etl")) == {None: 3}


@on_both
def test_a_try_counts_where_it_ended_and_its_seconds_where_they_passed(database: Database) -> None:
    record(database, "w1", -100, 50)
    record(database, "w1", 3500, 3700)
    page = ask(database, bucket=Bucket.HOUR, dag_id="etl", until=7200)
    assert [(row.bucket, row.tries, row.busy_seconds) for row in page.rows] == [
        (NOON, 1, 150),
        (at(3600), 1, 100),
    ]
    assert [row.tries for row in ask(database, bucket=Bucket.DAY, dag_id="etl", until=7200).rows] == [2]


@on_both
def test_tries_of_open_runs_are_as_airflow_has_them(database: Database) -> None:
    record(database, "w1", 10, 30, state="failed", is_closed=False)
    record(database, "w1", 20, None, state="running", is_closed=False)
    (row,) = ask(database, dag_id="etl").rows
    assert (row.tries, row.failed, row.busy_seconds) == (1, 1, 20)


@on_both
def test_skipped_tries_are_not_counted(database: Database) -> None:
    record(database, "w1", 10, 30, state="skipped")
    (row,) = ask(database, dag_id="etl").rows
    assert (row.tries, row.busy_seconds, row.mean_duration) == (0, 20, None)


@on_both
def test_what_failed_after_its_worker_was_last_seen_is_lost_with_it(database: Database) -> None:
    record(database, "w1", 10, 20, state="failed")
    record(database, "w1", 30, 300, state="failed")
    with database.engine.begin() as connection:
        connection.execute(update(worker).values(state="lost", last_seen_at=at(100)))
    (row,) = ask(database, dag_id="etl").rows
    assert (row.tries, row.failed, row.lost) == (2, 1, 1)


@on_both
def test_too_many_tries_are_refused_with_what_to_narrow(database: Database, mocker: MockerFixture) -> None:
    mocker.patch.object(totals, "MAX_TRIES", 2)
    for second in range(3):
        record(database, "w1", second, 60)
    with pytest.raises(StatisticsError, match=r"More than 2 tries .* make the window shorter, or name a dag_id"):
        ask(database, state="success")
    assert tries(ask(database, dag_id="etl", since=DAY * 2, until=DAY * 3)) == {}
