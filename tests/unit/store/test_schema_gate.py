"""When the tables are checked, and when an earlier check counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.store import migrate, session
from airflow_worker_insight.store.migrate import Schema
from airflow_worker_insight.store.schema_gate import RECHECK_SECONDS, SchemaGate, read_schema

if TYPE_CHECKING:
    from tests.unit.database import Database

NO_CONNECTION: Any = None


class Clock:
    """A clock that stands still between two calls of the test."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def a_gate(clock: Clock, *answers: Schema, **settings: float) -> SchemaGate:
    """Return a gate that gets these answers from the database, one after the other."""
    left = iter(answers)
    return SchemaGate(check=lambda _connection: next(left), clock=clock, **settings)


def test_ready_tables_are_checked_once(clock: Clock) -> None:
    gate = a_gate(clock, Schema.READY)
    assert gate.check(NO_CONNECTION) is Schema.READY
    clock.now += 1e6
    assert gate.check(NO_CONNECTION) is gate.check_within(session.PAGE) is Schema.READY


def test_tables_that_are_not_ready_are_checked_again_after_a_while(clock: Clock) -> None:
    gate = a_gate(clock, Schema.MISSING, Schema.READY)
    assert gate.check(NO_CONNECTION) is Schema.MISSING
    clock.now += RECHECK_SECONDS - 1
    assert gate.check(NO_CONNECTION) is gate.check_within(session.PAGE) is Schema.MISSING
    clock.now += 1
    assert gate.check(NO_CONNECTION) is Schema.READY


def test_without_a_pause_each_call_checks_tables_that_are_not_ready(clock: Clock) -> None:
    gate = a_gate(clock, Schema.MISSING, Schema.OLD, Schema.READY, recheck_seconds=0)
    assert [gate.check(NO_CONNECTION) for _ in range(4)] == [Schema.MISSING, Schema.OLD, Schema.READY, Schema.READY]


def test_what_was_forgotten_is_checked_again(clock: Clock) -> None:
    gate = a_gate(clock, Schema.READY, Schema.MISSING)
    assert gate.check(NO_CONNECTION) is Schema.READY
    gate.forget()
    assert gate.check(NO_CONNECTION) is Schema.MISSING


def test_a_gate_reads_the_database_that_airflow_uses(database: Database) -> None:
    gate = SchemaGate()
    assert (gate.check_within(session.PAGE), read_schema(session.PAGE)) == (Schema.READY, Schema.READY)
    migrate.downgrade("base")
    assert (gate.check_within(session.PAGE), read_schema(session.PAGE)) == (Schema.READY, Schema.MISSING)
    gate.forget()
    with database.engine.connect() as connection:
        assert gate.check(connection) is Schema.MISSING
