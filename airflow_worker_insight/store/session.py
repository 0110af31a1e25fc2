"""Open connections to Airflow's database with time limits; no other module opens one.

A lock on one of our tables (``VACUUM FULL``, ``ALTER TABLE``, a forgotten open transaction) must never block Airflow.
So each of our transactions first sets how long it waits for a lock and how long a statement may run: :class:`Bounds`,
one per kind of caller. On PostgreSQL both settings end with the transaction (``SET LOCAL``), also behind PgBouncer. On
MySQL, MariaDB and SQLite they apply to the connection, which gets its former values back before it returns to Airflow's
pool.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from airflow_worker_insight.compat import metadata_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy import Table
    from sqlalchemy.engine import Connection, Transaction


@dataclass(frozen=True, slots=True)
class Bounds:
    """Time limits of one of our transactions, in seconds."""

    lock: float
    """Longest wait of a statement for a lock; at least 1 on MySQL, which takes whole seconds."""

    statement: float | None
    """Longest run time of a statement, including its wait for locks; ``None`` sets no limit.

    On MySQL (not MariaDB) this limits SELECT statements only; SQLite has no such limit.
    """

    total: float | None = None
    """Total run time after which no further statement starts.

    All statements together take at most ``total + statement``.
    """


START = Bounds(lock=0.3, statement=0.4, total=0.6)
"""Claiming the start of a try, inside one of Airflow's API requests: one second in total."""

TASK = Bounds(lock=0.3, statement=1, total=3)
"""Claiming the start of a try in Airflow 2.11's task process.

The wait for locks is as short as for :data:`START`, but the process runs each statement for the first time.
"""

EXPLAIN = Bounds(lock=0.05, statement=0.1)
"""Reading our version table after a failed claim, still inside Airflow's API request."""

SCHEDULER = Bounds(lock=0.5, statement=3)
"""Executors, inside the scheduler's loop."""

PAGE = Bounds(lock=1, statement=5)
"""Pages, REST, FAB views and operators' decisions.

A user waits, and a connection of Airflow's pool is in use.
"""

EXTRA = Bounds(lock=0.2, statement=0.5)
"""What a page shows beside its content and can do without; set last, with :func:`limit`."""

BACKGROUND = Bounds(lock=1, statement=30)
"""Our threads in the API server and the scheduler, which run again after a failure."""

COMMAND = Bounds(lock=10, statement=600)
"""Commands that an operator runs, each in its own process."""

MIGRATION_STEP = Bounds(lock=0.1, statement=None)
"""One step of a migration, which may rewrite a table.

Other transactions queue behind its wait for a lock, so it is shorter than that of :data:`START`.
"""

CONCURRENT_INDEX = Bounds(lock=300, statement=None)
"""Creating or dropping an index concurrently, which waits for all open transactions but blocks none."""


DATABASE_ERRORS = (OperationalError, ProgrammingError)
"""Errors of a database that is unreachable or rejects a statement (a table is missing)."""


class OutOfTimeError(RuntimeError):
    """Raised when a transaction has used up its :attr:`Bounds.total`."""

    def __init__(self) -> None:
        super().__init__("the database was too slow, or another transaction held a lock for too long")


class TablesLockedError(OutOfTimeError):
    """Raised when another transaction holds a table lock that the caller must not wait for."""


# --- our own transactions --------------------------------------------------------------------------------------------


@contextmanager
def reading(bounds: Bounds) -> Iterator[Connection]:
    """Yield a new connection in a transaction that is rolled back at the end."""
    with _transaction(bounds) as (connection, transaction):
        yield connection
        transaction.rollback()


@contextmanager
def writing(bounds: Bounds) -> Iterator[Connection]:
    """Yield a new connection in a transaction that is committed, or rolled back on an error."""
    with _transaction(bounds) as (connection, _):
        yield connection


@contextmanager
def _transaction(bounds: Bounds) -> Iterator[tuple[Connection, Transaction]]:
    with metadata_database.engine().connect() as connection:
        restore_sql = None
        try:
            with connection.begin() as transaction:
                restore_sql = _restore_statement(connection)
                connection.exec_driver_sql(setting(connection, bounds))
                yield _limit_total(connection, bounds), transaction
        finally:
            if restore_sql is not None:
                _restore(connection, restore_sql)


def database_name() -> str:
    """Return the URL of Airflow's database, as the engine has it, with the password masked."""
    return str(metadata_database.engine().url.render_as_string(hide_password=True))


# --- inside one of Airflow's transactions ----------------------------------------------------------------------------

_SAVEPOINT = "worker_insight"

_TIMEOUTS = ("lock_timeout", "statement_timeout")


def _copy_settings(names: Iterable[tuple[str, str]]) -> str:
    """Return SQL that copies PostgreSQL settings for this transaction.

    :param names: pairs of the setting to write and the setting to read
    """
    return "SELECT " + ", ".join(f"set_config('{target}', current_setting('{name}'), true)" for target, name in names)


_SAVE_TIMEOUTS = _copy_settings((f"worker_insight.{name}", name) for name in _TIMEOUTS)
_RESTORE_TIMEOUTS = _copy_settings((name, f"worker_insight.{name}") for name in _TIMEOUTS)


@contextmanager
def savepoint(connection: Connection, bounds: Bounds, *, nowait_tables: Iterable[Table] = ()) -> Iterator[Connection]:
    """Yield a bounded connection on a savepoint in a caller's transaction.

    Afterwards the transaction has its former time limits again. An error rolls back to the savepoint and is raised. On
    PostgreSQL this takes no more messages than a savepoint alone.

    :param nowait_tables: tables that the caller writes to. On PostgreSQL a lock on a whole table fails at once
    :raises TablesLockedError: when another transaction holds such a lock
    """
    restore_sql = None
    if connection.dialect.name == "postgresql":
        # One message each: without parameters, psycopg2 and psycopg 3 send it unchanged. The database stores the former
        # values, because rolling back to the savepoint undoes the settings, but releasing it does not.
        before = (
            f"SAVEPOINT {_SAVEPOINT}; {_SAVE_TIMEOUTS}; "
            f"{setting(connection, bounds)}{_lock_nowait(connection, nowait_tables)}"
        )
        after = f"{_RESTORE_TIMEOUTS}; RELEASE SAVEPOINT {_SAVEPOINT}"
    else:
        before, after = f"SAVEPOINT {_SAVEPOINT}", f"RELEASE SAVEPOINT {_SAVEPOINT}"
        restore_sql = _restore_statement(connection)
        connection.exec_driver_sql(setting(connection, bounds))
    try:
        try:
            try:
                connection.exec_driver_sql(before).close()
            except DBAPIError as error:
                if not is_timeout(error):
                    raise
                raise TablesLockedError from error
            yield _limit_total(connection, bounds)
            connection.exec_driver_sql(after).close()
        except BaseException:
            # There may be no savepoint if the first message failed; raise that first error, not this one.
            with suppress(SQLAlchemyError):
                connection.exec_driver_sql(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
                connection.exec_driver_sql(f"RELEASE SAVEPOINT {_SAVEPOINT}")
            raise
    finally:
        if restore_sql is not None:
            _restore(connection, restore_sql)


@contextmanager
def bounded(connection: Connection, bounds: Bounds) -> Iterator[Connection]:
    """Yield the connection of a caller's transaction with time limits but without a savepoint.

    For work whose failure ends the transaction. On MySQL, creating or dropping a table would end a savepoint.
    """
    is_postgresql = connection.dialect.name == "postgresql"
    restore_sql = _RESTORE_TIMEOUTS if is_postgresql else _restore_statement(connection)
    set_bounds = setting(connection, bounds)
    connection.exec_driver_sql(f"{_SAVE_TIMEOUTS}; {set_bounds}" if is_postgresql else set_bounds).close()
    try:
        yield connection
    except BaseException:
        if not is_postgresql:
            _restore(connection, str(restore_sql))
        raise
    connection.exec_driver_sql(str(restore_sql)).close()


def _lock_nowait(connection: Connection, tables: Iterable[Table]) -> str:
    """Return SQL that takes the table locks that writing needs, and fails instead of waiting."""
    names = ", ".join(connection.dialect.identifier_preparer.format_table(table) for table in tables)
    return f"; LOCK TABLE {names} IN ROW EXCLUSIVE MODE NOWAIT" if names else ""


class _TimedConnection:
    """Connection that starts no statement after its time is used up; it delegates all else."""

    def __init__(self, connection: Connection, seconds: float) -> None:
        self._connection = connection
        self._seconds_left = seconds

    def execute(self, *arguments: Any, **options: Any) -> Any:
        if self._seconds_left <= 0:
            raise OutOfTimeError
        started = time.monotonic()
        try:
            return self._connection.execute(*arguments, **options)
        finally:
            self._seconds_left -= time.monotonic() - started

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def _limit_total(connection: Connection, bounds: Bounds) -> Connection:
    return connection if bounds.total is None else cast("Connection", _TimedConnection(connection, bounds.total))


# --- settings --------------------------------------------------------------------------------------------------------

_FORMER_VALUES = "worker_insight.former_bounds"
"""Key in ``Connection.info`` for the values from before this module first changed them."""


def setting(connection: Connection, bounds: Bounds) -> str:
    """Return the SQL that sets these time limits in the current transaction."""
    if connection.dialect.name == "postgresql":
        values = zip(_TIMEOUTS, (bounds.lock, bounds.statement), strict=True)
        return "; ".join(f"SET LOCAL {name} = {_milliseconds(value)}" for name, value in values if value is not None)
    if connection.dialect.name == "sqlite":
        return f"PRAGMA busy_timeout = {_milliseconds(bounds.lock)}"
    statement_limit = (bounds.statement or 0) if _is_mariadb(connection) else _milliseconds(bounds.statement or 0)
    lock_timeout = max(1, math.ceil(bounds.lock))
    return _set_session(connection, (lock_timeout, lock_timeout, statement_limit))


def limit(connection: Connection, bounds: Bounds) -> None:
    """Set other time limits for the rest of one of our own transactions."""
    connection.exec_driver_sql(setting(connection, bounds))


def _restore_statement(connection: Connection) -> str | None:
    """Return the SQL that restores the connection's former values.

    :return: ``None`` on PostgreSQL, where the end of the transaction restores them
    """
    if connection.dialect.name == "postgresql":
        return None
    former = _former_values(connection)
    if connection.dialect.name == "sqlite":
        return f"PRAGMA busy_timeout = {int(former[0])}"
    return _set_session(connection, former)


def _former_values(connection: Connection) -> tuple[Any, ...]:
    """Return the connection's own time limits, which only this module changes."""
    values: tuple[Any, ...] | None = connection.info.get(_FORMER_VALUES)
    if values is None:
        query = "PRAGMA busy_timeout"
        if connection.dialect.name != "sqlite":
            query = "SELECT " + ", ".join(f"@@SESSION.{name}" for name in _mysql_names(connection))
        values = tuple(connection.exec_driver_sql(query).one())
        connection.info[_FORMER_VALUES] = values
    return values


def _restore(connection: Connection, sql: str) -> None:
    try:
        connection.exec_driver_sql(sql)
    except Exception:  # noqa: BLE001 - whatever the driver raises
        # A connection that keeps our limits must not return to Airflow's pool.
        connection.invalidate()


def _set_session(connection: Connection, values: tuple[Any, ...]) -> str:
    names = _mysql_names(connection)
    return "SET SESSION " + ", ".join(f"{name} = {value}" for name, value in zip(names, values, strict=True))


def _mysql_names(connection: Connection) -> tuple[str, str, str]:
    # lock_wait_timeout is for metadata locks, which ALTER TABLE and LOCK TABLES take.
    limit = "max_statement_time" if _is_mariadb(connection) else "max_execution_time"
    return "lock_wait_timeout", "innodb_lock_wait_timeout", limit


def _is_mariadb(connection: Connection) -> bool:
    return bool(getattr(connection.dialect, "is_mariadb", False))


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


# --- timeouts --------------------------------------------------------------------------------------------------------

_POSTGRESQL_TIMEOUTS = frozenset({"55P03", "57014"})
"""SQLSTATE of a lock timeout and of a cancelled statement; a statement timeout cancels."""

_MYSQL_TIMEOUTS = frozenset({1205, 1969, 3024})
"""Errors: lock wait timeout (row or metadata), statement timeout on MariaDB, and on MySQL."""

_SQLITE_TIMEOUTS = ("database is locked", "database table is locked", "database schema is locked")


def is_timeout(error: BaseException | None) -> bool:
    """Return whether an error means that a lock, a statement or the pool took too long."""
    # PoolTimeoutError: no connection of Airflow's pool became free in time.
    if isinstance(error, OutOfTimeError | PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError) or error.orig is None:
        return False
    original: Any = error.orig
    # psycopg2 calls the SQLSTATE pgcode.
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    if state is not None:
        return state in _POSTGRESQL_TIMEOUTS
    code = original.args[0] if original.args else None
    return code in _MYSQL_TIMEOUTS or str(original) in _SQLITE_TIMEOUTS


class CircuitBreaker:
    """Circuit breaker: keeps callers off the database for a while after a timeout.

    After that time it lets one caller try whether the database answers again.
    """

    def __init__(self, seconds: float, *, trial: float = 2.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Start closed.

        :param seconds: how long the breaker stays open after a timeout
        :param trial: how long it keeps the other callers off while one caller tries, in seconds
        :param clock: returns seconds that never go back
        """
        self._clock = clock
        self._seconds = seconds
        self._trial = trial
        self._open_until: float | None = None
        self._lock = Lock()

    def allows(self) -> bool:
        """Return whether this caller may use the database.

        If so, the caller must then report the outcome with :meth:`open` or :meth:`close`.
        """
        with self._lock:
            now = self._clock()
            if self._open_until is None:
                return True
            if now < self._open_until:
                return False
            self._open_until = now + self._trial
            return True

    @property
    def is_open(self) -> bool:
        """Whether the latest reported outcome was a timeout."""
        return self._open_until is not None

    def open(self) -> None:
        """Keep callers off for a while, because the database timed out."""
        with self._lock:
            self._open_until = self._clock() + self._seconds

    def close(self) -> None:
        """Let all callers through, because the database answered."""
        if self._open_until is not None:
            with self._lock:
                self._open_until = None
