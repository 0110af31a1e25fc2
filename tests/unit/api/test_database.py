"""What is known of the tables between requests, and what a request finds that hits missing ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight.api import database as web_database
from airflow_worker_insight.api import service
from airflow_worker_insight.api.database import SchemaNotReadyError, reading
from airflow_worker_insight.api.errors import WorkerNotFoundError
from airflow_worker_insight.store import migrate
from airflow_worker_insight.store.schema_gate import SchemaGate

if TYPE_CHECKING:
    from pytest_mock import MockerFixture


@pytest.mark.usefixtures("database")
def test_tables_that_vanish_are_named_instead_of_the_databases_error() -> None:
    web_database.schema_gate.forget()
    with reading() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM worker_insight_attempt")
    migrate.downgrade("base")
    with pytest.raises(SchemaNotReadyError, match="db migrate"), reading() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM worker_insight_attempt")
    migrate.upgrade()
    web_database.schema_gate.forget()
    with reading() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM worker_insight_attempt")


@pytest.mark.usefixtures("database")
def test_an_unknown_worker_costs_no_second_check_of_the_tables(mocker: MockerFixture) -> None:
    gate = mocker.patch.object(web_database, "schema_gate", SchemaGate())
    checks = mocker.spy(gate, "_check")
    for _ in range(2):
        with pytest.raises(WorkerNotFoundError):
            service.get_worker("unheard-of")
    assert checks.call_count == 1


@pytest.mark.usefixtures("database")
def test_another_error_stays_what_it_is() -> None:
    web_database.schema_gate.forget()
    with pytest.raises(ZeroDivisionError), reading():
        raise ZeroDivisionError
