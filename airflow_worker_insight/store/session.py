"""Open connections to Airflow's database: the only module that does, so that none of them waits without a bound.

A lock on one of our tables (``VACUUM FULL``, ``ALTER TABLE``, somebody's forgotten transaction) must never make Airflow
wait. So each transaction of ours says first how long it waits for a lock and how long a statement may take:
:class:`Bounds`, by who asks. PostgreSQL forgets both at the end of the transaction (``SET LOCAL``), also behind
PgBouncer. MySQL, MariaDB and SQLite know such limits for a connection only. It goes back to Airflow's pool with the
values that it had.
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
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Table
    from sqlalchemy.engine import Connection, Transaction


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long a transaction of ours may keep its caller; all in seconds."""

    lock: float
    """A statement waits for a lock. MySQL knows whole seconds only, so there it is one at least."""

    statement: float
    """A statement runs, waiting included. On MySQL (not MariaDB) this bounds reading only; SQLite has no such limit."""

    total: float | None = None
    """After so much time in statements no further one begins: together they take at most ``total + statement``."""


START = Bounds(lock=0.3, statement=0.4, total=0.6)
"""The claim of a try's start, inside a request of Airflow's: a second in all."""

TASK = Bounds(lock=0.3, statement=1, total=3)
"""The same in 2.11's task process. It waits for locks as briefly, but it runs each statement for the first time."""

EXPLAIN = Bounds(lock=0.05, statement=0.1)
"""The look at our version table after a claim that failed, still inside Airflow's request."""

SCHEDULER = Bounds(lock=0.5, statement=3)
"""Executors, inside the scheduler's loop."""

PAGE = Bounds(lock=1, statement=5)
"""Pages, REST, FAB's views, decisions: a person waits, and a connection of Airflow's pool is in use."""

BACKGROUND = Bounds(lock=1, statement=30)
"""Threads of ours in the API server and the scheduler: they come round again."""

COMMAND = Bounds(lock=10, statement=600)
"""A person's command, in a process of its own."""


REFUSALS = (OperationalError, ProgrammingError)
"""How a database says that it cannot do what it is asked for: a table is missing, or it cannot be reached."""


class OutOfTimeError(RuntimeError):
    """A transaction has used up its :attr:`Bounds.total`."""

    def __init__(self) -> None:
        super().__init__("the database was too slow, or others held locks for too long")


class TablesLockedError(OutOfTimeError):
    """Somebody holds a lock on a whole table, and the caller was not to wait for it."""


# --- transactions of our own -----------------------------------------------------------------------------------------


@contextmanager
def reading(bounds: Bounds) -> Iterator[Connection]:
    """Yield a connection of our own in a transaction that is rolled back at the end."""
    with _transaction(bounds) as (connection, transaction):
        yield connection
        transaction.rollback()


@contextmanager
def writing(bounds: Bounds) -> Iterator[Connection]:
    """Yield a connection of our own in a transaction that is committed at the end, or rolled back on an error."""
    with _transaction(bounds) as (connection, _):
        yield connection


@contextmanager
def _transaction(bounds: Bounds) -> Iterator[tuple[Connection, Transaction]]:
    with metadata_database.engine().connect() as connection:
        restoring = None
        try:
            with connection.begin() as transaction:
                restoring = _restoring(connection)
                connection.exec_driver_sql(_setting(connection, bounds))
                yield _within(connection, bounds), transaction
        finally:
            if restoring is not None:
                _restore(connection, restoring)


def database_name() -> str:
    """Return the URL of Airflow's database without its password, as the engine has it."""
    return str(metadata_database.engine().url.render_as_string(hide_password=True))


# --- inside a transaction of Airflow's -------------------------------------------------------------------------------

_SAVEPOINT = "worker_insight"

_TIMEOUTS = ("lock_timeout", "statement_timeout")


def _copied(values: Iterable[tuple[str, str]]) -> str:
    """Return SQL that copies PostgreSQL's settings for this transaction, from the second name to the first."""
    return "SELECT " + ", ".join(f"set_config('{to}', current_setting('{name}'), true)" for to, name in values)


_KEEP = _copied((f"worker_insight.{name}", name) for name in _TIMEOUTS)
_GIVE_BACK = _copied((name, f"worker_insight.{name}") for name in _TIMEOUTS)


@contextmanager
def savepoint(connection: Connection, bounds: Bounds, *, unlocked: Iterable[Table] = ()) -> Iterator[Connection]:
    """Yield a bounded connection on a savepoint in somebody else's transaction, which then waits as before.

    An error goes back to the savepoint and is raised. On PostgreSQL this costs no message more than a savepoint does.

    :param unlocked: tables that are written to. On PostgreSQL a lock on a whole one is not waited for
    :raises TablesLockedError: when somebody holds such a lock
    """
    restoring = None
    if connection.dialect.name == "postgresql":
        # One message each, which both psycopg2 and psycopg 3 send as it is, because it has no parameters. The database
        # keeps the former values. Going back to the savepoint undoes all that was set; releasing it does not.
        before = f"SAVEPOINT {_SAVEPOINT}; {_KEEP}; {_setting(connection, bounds)}{_lock_at_once(connection, unlocked)}"
        after = f"{_GIVE_BACK}; RELEASE SAVEPOINT {_SAVEPOINT}"
    else:
        before, after = f"SAVEPOINT {_SAVEPOINT}", f"RELEASE SAVEPOINT {_SAVEPOINT}"
        restoring = _restoring(connection)
        connection.exec_driver_sql(_setting(connection, bounds))
    try:
        try:
            try:
                connection.exec_driver_sql(before).close()
            except DBAPIError as error:
                if not is_timeout(error):
                    raise
                raise TablesLockedError from error
            yield _within(connection, bounds)
            connection.exec_driver_sql(after).close()
        except BaseException:
            # Where the first message failed there may be no savepoint: that error is the news then.
            with suppress(SQLAlchemyError):
                connection.exec_driver_sql(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
                connection.exec_driver_sql(f"RELEASE SAVEPOINT {_SAVEPOINT}")
            raise
    finally:
        if restoring is not None:
            _restore(connection, restoring)


@contextmanager
def bounded(connection: Connection, bounds: Bounds) -> Iterator[Connection]:
    """Yield the connection of somebody else's transaction with bounds, for what ends that transaction if it fails.

    Without a savepoint: on MySQL there is none any more after a statement that makes or drops a table.
    """
    is_postgresql = connection.dialect.name == "postgresql"
    restoring = _GIVE_BACK if is_postgresql else _restoring(connection)
    setting = _setting(connection, bounds)
    connection.exec_driver_sql(f"{_KEEP}; {setting}" if is_postgresql else setting).close()
    try:
        yield connection
    except BaseException:
        if not is_postgresql:
            _restore(connection, str(restoring))
        raise
    connection.exec_driver_sql(str(restoring)).close()


def _lock_at_once(connection: Connection, tables: Iterable[Table]) -> str:
    """Return SQL that takes the locks that writing takes anyway, and fails where that would have to wait."""
    names = ", ".join(connection.dialect.identifier_preparer.format_table(table) for table in tables)
    return f"; LOCK TABLE {names} IN ROW EXCLUSIVE MODE NOWAIT" if names else ""


class _Within:
    """A connection on which no statement begins when a time is used up; all else is the connection's own."""

    def __init__(self, connection: Connection, seconds: float) -> None:
        self._connection = connection
        self._left = seconds

    def execute(self, *arguments: Any, **options: Any) -> Any:
        if self._left <= 0:
            raise OutOfTimeError
        began = time.monotonic()
        try:
            return self._connection.execute(*arguments, **options)
        finally:
            self._left -= time.monotonic() - began

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def _within(connection: Connection, bounds: Bounds) -> Connection:
    return connection if bounds.total is None else cast("Connection", _Within(connection, bounds.total))


# --- settings --------------------------------------------------------------------------------------------------------

_FORMER = "worker_insight.former_bounds"
"""Under which name a connection to the database remembers the values that it had when we first met it."""


def _setting(connection: Connection, bounds: Bounds) -> str:
    """Return the SQL that bounds what follows."""
    if connection.dialect.name == "postgresql":
        values = zip(_TIMEOUTS, (bounds.lock, bounds.statement), strict=True)
        return "; ".join(f"SET LOCAL {name} = {_milliseconds(value)}" for name, value in values)
    if connection.dialect.name == "sqlite":
        return f"PRAGMA busy_timeout = {_milliseconds(bounds.lock)}"
    limit = bounds.statement if _is_mariadb(connection) else _milliseconds(bounds.statement)
    wait = max(1, math.ceil(bounds.lock))
    return _set_session(connection, (wait, wait, limit))


def _restoring(connection: Connection) -> str | None:
    """Return the SQL that gives the connection its former values back; ``None`` where the transaction's end does."""
    if connection.dialect.name == "postgresql":
        return None
    former = _former(connection)
    if connection.dialect.name == "sqlite":
        return f"PRAGMA busy_timeout = {int(former[0])}"
    return _set_session(connection, former)


def _former(connection: Connection) -> tuple[Any, ...]:
    """Return the connection's own values, which nobody but this module changes."""
    known: tuple[Any, ...] | None = connection.info.get(_FORMER)
    if known is None:
        asking = "PRAGMA busy_timeout"
        if connection.dialect.name != "sqlite":
            asking = "SELECT " + ", ".join(f"@@SESSION.{name}" for name in _mysql_names(connection))
        known = tuple(connection.exec_driver_sql(asking).one())
        connection.info[_FORMER] = known
    return known


def _restore(connection: Connection, sql: str) -> None:
    try:
        connection.exec_driver_sql(sql)
    except Exception:  # noqa: BLE001
        # It must not go back to Airflow's pool as it is.
        connection.invalidate()


def _set_session(connection: Connection, values: tuple[Any, ...]) -> str:
    names = _mysql_names(connection)
    return "SET SESSION " + ", ".join(f"{name} = {value}" for name, value in zip(names, values, strict=True))


def _mysql_names(connection: Connection) -> tuple[str, str, str]:
    # The first is for metadata locks: those of ALTER TABLE and LOCK TABLES.
    limit = "max_statement_time" if _is_mariadb(connection) else "max_execution_time"
    return "lock_wait_timeout", "innodb_lock_wait_timeout", limit


def _is_mariadb(connection: Connection) -> bool:
    return bool(getattr(connection.dialect, "is_mariadb", False))


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


# --- what came of it -------------------------------------------------------------------------------------------------

_POSTGRESQL_TIMEOUTS = frozenset({"55P03", "57014"})
"""SQLSTATE of a lock time-out and of a cancelled statement, which a statement time-out is."""

_MYSQL_TIMEOUTS = frozenset({1205, 1969, 3024})
"""A lock wait (of a row or of a table's metadata); a statement's time on MariaDB, and on MySQL."""

_SQLITE_TIMEOUTS = ("database is locked", "database table is locked", "database schema is locked")


def is_timeout(error: BaseException | None) -> bool:
    """Return whether something failed because it waited for a lock, or ran, longer than it may."""
    # The latter: no connection of Airflow's pool was free in time.
    if isinstance(error, OutOfTimeError | PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError) or error.orig is None:
        return False
    original: Any = error.orig
    # psycopg2 calls it pgcode.
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    if state is not None:
        return state in _POSTGRESQL_TIMEOUTS
    code = original.args[0] if original.args else None
    return code in _MYSQL_TIMEOUTS or str(original) in _SQLITE_TIMEOUTS


class CircuitBreaker:
    """Leave the database alone for a while after a time-out; then let one caller try whether it is usable again."""

    def __init__(self, seconds: float, *, trial: float = 2.0) -> None:
        """Begin closed.

        :param seconds: how long it stays open
        :param trial: how long all others wait for the one who tries
        """
        self._seconds = seconds
        self._trial = trial
        self._until: float | None = None
        self._lock = Lock()

    def allows(self) -> bool:
        """Return whether this caller may use the database; it says then by the methods below what came of it."""
        with self._lock:
            now = time.monotonic()
            if self._until is None:
                return True
            if now < self._until:
                return False
            self._until = now + self._trial
            return True

    @property
    def is_open(self) -> bool:
        """Whether the last that was heard was a time-out."""
        return self._until is not None

    def open(self) -> None:
        """Allow nobody for a while: there was a time-out."""
        with self._lock:
            self._until = time.monotonic() + self._seconds

    def close(self) -> None:
        """Allow everybody: the database answered."""
        if self._until is not None:
            with self._lock:
                self._until = None
