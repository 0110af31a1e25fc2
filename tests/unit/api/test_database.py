"""What is known of the tables between requests, and what a request finds that hits missing ones."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_worker_insight.api import database as web_database
from airflow_worker_insight.api.database import RECHECK_SECONDS, SchemaCheck, SchemaNotReadyError, reading
from airflow_worker_insight.store import migrate
from airflow_worker_insight.store.migrate import Schema

NOBODY: Any = None


def schema_check(answers: list[Schema], now: list[float]) -> SchemaCheck:
    """Return a check that gets the answers of the database one after the other."""
    return SchemaCheck(lambda _connection: answers.pop(0), clock=lambda: now[0])


def test_ready_tables_are_checked_once() -> None:
    clock = [100.0]
    check = schema_check([Schema.READY], clock)
    assert check(NOBODY) is Schema.READY
    clock[0] += 1e6
    assert check(NOBODY) is Schema.READY


def test_tables_that_are_not_ready_are_checked_again_after_a_while() -> None:
    clock = [100.0]
    check = schema_check([Schema.MISSING, Schema.READY], clock)
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
