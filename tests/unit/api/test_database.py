"""What is known of the tables between requests, and what a request finds that hits missing ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.api import database as web_database
from airflow_worker_insight.api.database import RECHECK_SECONDS, SchemaCheck, SchemaNotReadyError, reading
from airflow_worker_insight.store import migrate
from airflow_worker_insight.store.migrate import Schema

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY: Any = None


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Schema]:
    """Return a list of what the database answers, one after the other."""
    found: list[Schema] = []
    monkeypatch.setattr(migrate, "check", lambda _connection: found.pop(0))
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [100.0]
    monkeypatch.setattr(web_database.time, "monotonic", lambda: now[0])
    return now


def test_ready_tables_are_asked_for_once(answers: list[Schema], clock: list[float]) -> None:
    check = SchemaCheck()
    answers.append(Schema.READY)
    assert check(NOBODY) is Schema.READY
    clock[0] += 1e6
    assert check(NOBODY) is Schema.READY


def test_tables_that_are_not_ready_are_asked_for_again_after_a_while(answers: list[Schema], clock: list[float]) -> None:
    check = SchemaCheck()
    answers += [Schema.MISSING, Schema.READY]
    assert check(NOBODY) is Schema.MISSING
    clock[0] += RECHECK_SECONDS - 1
    assert check(NOBODY) is Schema.MISSING
    clock[0] += 1
    assert check(NOBODY) is Schema.READY


@pytest.mark.usefixtures("database")
def test_tables_that_vanish_are_named_instead_of_the_databases_error() -> None:
    web_database.schema_check.forget()
    with reading() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM worker_insight_attempt")
    migrate.downgrade("base")
    with pytest.raises(SchemaNotReadyError, match="db migrate"), reading() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM worker_insight_attempt")
    migrate.upgrade()
    web_database.schema_check.forget()
    with reading() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM worker_insight_attempt")


@pytest.mark.usefixtures("database")
def test_another_error_stays_what_it_is() -> None:
    web_database.schema_check.forget()
    with pytest.raises(ZeroDivisionError), reading():
        raise ZeroDivisionError
