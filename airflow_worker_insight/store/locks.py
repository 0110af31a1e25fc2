"""Keep rows as they are until a transaction ends, on databases that lock rows and on SQLite, which does not.

And wait for those who do so no longer than a task can bear.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import false, text, update
from sqlalchemy.exc import DBAPIError

from airflow_worker_insight.store.tables import worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection


def be_the_only_writer(connection: Connection) -> None:
    """Take SQLite's one lock for writing, which else is taken with the first change; nothing on other databases."""
    if connection.dialect.name == "sqlite":
        connection.execute(update(worker).where(false()).values(id=worker.c.id))


def kept(connection: Connection, statement: Any) -> Any:
    """Return a SELECT of workers so that none of those it finds is removed before the caller's transaction ends.

    Others may hold the same lock, and write anything of the workers but their IDs.
    """
    be_the_only_writer(connection)
    if connection.dialect.name == "mysql":
        # It locks no row that it need not read, because an index has all that is asked for.
        statement = statement.add_columns(worker.c.fingerprint)
    return statement.with_for_update(read=True, key_share=True)


@contextmanager
def short_waits(connection: Connection) -> Iterator[None]:
    """Wait at most a second for another's lock on a row meanwhile, in whosever transaction, and fail then.

    What Airflow does later with the connection waits as before. Nothing changes on SQLite, which locks no rows.
    """
    if connection.dialect.name == "mysql":
        patience = connection.execute(text("SELECT @@SESSION.innodb_lock_wait_timeout")).scalar_one()
        set_patience = text("SET SESSION innodb_lock_wait_timeout = :patience")
        connection.execute(set_patience, {"patience": 1})
        try:
            yield
        finally:
            # An error has undone no more than its own statement.
            connection.execute(set_patience, {"patience": int(patience)})
        return
    if connection.dialect.name != "postgresql":
        yield
        return
    patience = connection.execute(
        text(
            "WITH before AS MATERIALIZED (SELECT current_setting('lock_timeout') AS patience) "
            "SELECT patience, set_config('lock_timeout', '1s', true) FROM before"
        )
    ).scalar_one()
    set_patience = text("SELECT set_config('lock_timeout', :patience, true)")
    try:
        yield
    except DBAPIError:
        # Nothing more can be said in this transaction; rolling back, if only to a savepoint, undoes the setting.
        raise
    except BaseException:
        connection.execute(set_patience, {"patience": patience})
        raise
    connection.execute(set_patience, {"patience": patience})
