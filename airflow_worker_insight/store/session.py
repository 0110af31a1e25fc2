"""Open connections to Airflow's database: the only module that does, so that none of them waits without a bound.

A lock on one of our tables (``VACUUM FULL``, ``ALTER TABLE``, somebody's forgotten transaction) must never make Airflow
wait. So each transaction of ours says first how long it waits for a lock and how long a statement may take.
PostgreSQL forgets both at the end of the transaction (``SET LOCAL``), also behind PgBouncer. MySQL, MariaDB and SQLite
know such limits for a connection only. It goes back to Airflow's pool with the values that it had.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.exc import DBAPIError

_POSTGRESQL_TIMEOUTS = frozenset({"55P03", "57014"})
"""SQLSTATE of a lock time-out and of a cancelled statement, which a statement time-out is."""

_MYSQL_TIMEOUTS = frozenset({1205, 1969, 3024})
"""A lock wait (of a row or of a table's metadata); a statement's time on MariaDB, and on MySQL."""

_SQLITE_TIMEOUTS = ("database is locked", "database table is locked", "database schema is locked")


def is_timeout(error: BaseException | None) -> bool:
    """Return whether a statement failed because it waited for a lock, or ran, longer than it may."""
    if not isinstance(error, DBAPIError) or error.orig is None:
        return False
    original: Any = error.orig
    # psycopg2 calls it pgcode.
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    if state is not None:
        return state in _POSTGRESQL_TIMEOUTS
    code = original.args[0] if original.args else None
    return code in _MYSQL_TIMEOUTS or str(original) in _SQLITE_TIMEOUTS
