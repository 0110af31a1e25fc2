"""Statements whose outcome does not depend on the database's driver."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import delete, insert, literal, select, update

from airflow_worker_insight.domain.states import SourceName, WorkerState
from airflow_worker_insight.store.dialects import execute_and_count, in_list, in_rows, row_count, with_row_count
from airflow_worker_insight.store.tables import change, worker_source
from tests.unit.database import NOON, Database, on_both

ENTRY = {"changed_at": NOON, "state": "online"}


def add(ref: int, *, rows: int = 1) -> Any:
    """Return an INSERT … SELECT, of which SQLAlchemy does not know how many rows it writes."""
    values = select(literal(ref), literal(NOON, change.c.changed_at.type)).where(literal(rows) > 0)
    return insert(change).from_select(["worker_ref", "changed_at"], values)


@on_both
def test_written_rows_are_counted(database: Database) -> None:
    with database.engine.begin() as connection:
        assert execute_and_count(connection, add(1)) == 1
        assert execute_and_count(connection, add(2, rows=0)) == 0
        assert execute_and_count(connection, add(1)) == 1
        assert execute_and_count(connection, update(change).where(change.c.worker_ref == 1).values(state="lost")) == 2
        assert execute_and_count(connection, update(change).where(change.c.worker_ref == 2).values(state="lost")) == 0
        assert execute_and_count(connection, insert(change), {"worker_ref": 3, **ENTRY}) == 1
        assert execute_and_count(connection, delete(change).where(change.c.worker_ref == 1)) == 2
        assert execute_and_count(connection, delete(change).where(change.c.worker_ref == 1)) == 0


@on_both
@pytest.mark.parametrize("rows", [0, 1])
def test_a_prepared_statement_counts_its_rows_each_time(database: Database, rows: int) -> None:
    statement = with_row_count(add(1, rows=rows), database.engine.dialect.name)
    with database.engine.begin() as connection:
        assert [row_count(connection.execute(statement)) for _ in range(2)] == [rows, rows]


@on_both
def test_members_of_enums_are_bound_and_read_as_their_values(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(insert(worker_source).values(name=SourceName.CELERY, due_at=NOON, error=WorkerState.LOST))
        connection.execute(insert(change).values(worker_ref=1, changed_at=NOON, state=WorkerState.LOST))
        conditions = (
            worker_source.c.name == SourceName.CELERY,
            worker_source.c.name.in_([SourceName.CELERY, SourceName.EDGE]),
            in_list(connection, worker_source.c.name, [SourceName.CELERY, SourceName.EDGE]),
            in_rows(connection, (worker_source.c.name, worker_source.c.error), [(SourceName.CELERY, WorkerState.LOST)]),
        )
        for condition in conditions:
            rows = connection.execute(select(worker_source.c.name, worker_source.c.error).where(condition)).all()
            assert [tuple(row) for row in rows] == [("celery", "lost")]
            assert {type(value) for value in rows[0]} == {str}
        states = connection.execute(select(change.c.state).where(change.c.state == WorkerState.LOST)).scalars().all()
        assert [(type(state), state) for state in states] == [(str, "lost")]
