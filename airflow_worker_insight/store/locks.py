"""Keep rows as they are until a transaction ends, on databases that lock rows and on SQLite, which does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import false, update

from airflow_worker_insight.store.tables import worker

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


def acquire_write_lock(connection: Connection) -> None:
    """Take SQLite's one lock for writing, which else is taken with the first change; nothing on other databases."""
    if connection.dialect.name == "sqlite":
        connection.execute(update(worker).where(false()).values(id=worker.c.id))


def lock_for_share(connection: Connection, statement: Any) -> Any:
    """Return a SELECT of workers so that none of those it finds is removed before the caller's transaction ends.

    Others may hold the same lock, and write anything of the workers but their IDs.
    """
    acquire_write_lock(connection)
    if connection.dialect.name == "mysql":
        # It locks no row that it need not read, because an index has all that is asked for.
        statement = statement.add_columns(worker.c.fingerprint)
    return statement.with_for_update(read=True, key_share=True)
