"""A database that fails while an executor uses it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import text

from airflow_worker_insight.store.tables import placement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.database import Database


@contextmanager
def missing_table(database: Database, table: str = placement.name) -> Iterator[None]:
    """Take a table away within the context, so that statements on it fail."""
    _execute(database, f"ALTER TABLE {table} RENAME TO {table}_away")
    try:
        yield
    finally:
        _execute(database, f"ALTER TABLE {table}_away RENAME TO {table}")


@contextmanager
def refused_placements(database: Database) -> Iterator[None]:
    """Refuse to store placements within the context (SQLite)."""
    refuse = "BEGIN SELECT RAISE(ABORT, 'refused'); END"
    _execute(database, f"CREATE TRIGGER refuse BEFORE INSERT ON {placement.name} {refuse}")
    try:
        yield
    finally:
        _execute(database, "DROP TRIGGER refuse")


def _execute(database: Database, statement: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(text(statement))
