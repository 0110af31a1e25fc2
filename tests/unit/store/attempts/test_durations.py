"""How long tries took lately, and on which worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_worker_insight.store.attempts.durations import recent_stays
from tests.unit.database import NOON, Database, a_worker, add_run, add_try, at, change_try, close, on_both, record_start

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.keys import TryKey


def ran(connection: Connection, task_id: str, state: str, began: datetime, ended: datetime | None = None) -> TryKey:
    run = add_run(connection, run_id=f"run-{task_id}", state="running", ended_at=None)
    key = add_try(connection, run, task_id, state=state, started_at=began, ended_at=ended)
    record_start(connection, key, a_worker(), try_started_at=began, state="running", now=began)
    return key


@on_both
def test_recent_stays_are_listed_latest_first(database: Database) -> None:
    with database.engine.begin() as connection:
        done = ran(connection, "done", "success", at(10), at(25))
        runs = ran(connection, "runs", "running", at(20))
        ran(connection, "failed", "failed", at(30), at(31))
        ran(connection, "early", "success", at(-1), at(5))
        found = recent_stays(connection, since=NOON, most=10)
        assert [(one.key, one.started_at, one.ended_at) for one in found] == [
            (runs, at(20), None),
            (done, at(10), at(25)),
        ]
        assert len({one.ref for one in found}) == 1
        assert [one.key for one in recent_stays(connection, since=NOON, most=2)] == [runs]


@on_both
def test_what_was_rescheduled_says_nothing_of_a_worker(database: Database) -> None:
    with database.engine.begin() as connection:
        sensor = ran(connection, "sensor", "running", at(10))
        record_start(connection, sensor, a_worker(), try_started_at=at(10), state="running", now=at(60))
        assert recent_stays(connection, since=NOON, most=10) == []


@on_both
def test_what_is_closed_needs_no_row_of_airflows(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection, ended_at=at(30))
        key = add_try(connection, run, state="success", started_at=at(10), ended_at=at(25))
        record_start(connection, key, a_worker(), try_started_at=at(10), state="running", now=at(10))
        close(connection, run)
    with database.engine.begin() as connection:
        change_try(connection, key, try_number=2, state="running", end_date=None)
        (one,) = recent_stays(connection, since=NOON, most=10)
        assert (one.key, one.ended_at) == (key, at(25))
