"""Locks on workers until the end of a transaction, also on SQLite, which has no row locks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import false, update

from airflow_worker_insight.store.tables import worker

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


def acquire_write_lock(connection: Connection) -> None:
    """Take SQLite's write lock now instead of with the first change.

    Does nothing on other databases.
    """
    if connection.dialect.name == "sqlite":
        connection.execute(update(worker).where(false()).values(id=worker.c.id))


def lock_for_share(connection: Connection, statement: Any) -> Any:
    """Return a SELECT of workers that protects its rows until the end of the transaction.

    No other transaction can delete these workers or change their IDs. Others may hold the same lock and update all
    other columns.

    :param statement: a SELECT from the worker table
    """
    acquire_write_lock(connection)
    if connection.dialect.name == "mysql":
        # MySQL does not lock a row if an index has all selected columns; no index has this one.
        statement = statement.add_columns(worker.c.fingerprint)
    return statement.with_for_update(read=True, key_share=True)
