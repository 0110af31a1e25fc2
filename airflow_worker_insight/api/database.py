"""One connection per request, bounded, and only to tables that this version of the package can read.

The connections are Airflow's own, of a pool that all its requests share (15 by default). So ours use a few of them at
most, and none for a while after one has waited for a lock in vain.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from threading import BoundedSemaphore, Lock
from typing import TYPE_CHECKING

from airflow_worker_insight.capture.counters import count, warn_once
from airflow_worker_insight.store import migrate, session
from airflow_worker_insight.store.migrate import Schema
from airflow_worker_insight.store.session import CircuitBreaker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection

RECHECK_SECONDS = 10.0
"""How long tables that are missing, old or newer are taken to stay so."""


MAX_CONNECTIONS = 4
"""Connections of Airflow's pool that requests for our pages and REST hold at once, in each process."""

WAIT_SECONDS = 1.0
"""How long a request waits for one of them: it keeps one of the API server's threads busy meanwhile."""

LEAVE_ALONE_SECONDS = 3.0
"""How long all requests are refused after a time-out."""


class DatabaseBusyError(RuntimeError):
    """Nothing can be read or written now; the message says what to do."""

    def __init__(self) -> None:
        super().__init__(
            "The recorded tries cannot be read now: the database is busy, or somebody holds a lock on the tables of "
            "Airflow Worker Insight (for example a migration or VACUUM FULL). Nothing was changed, and tasks are not "
            "affected. Try again in a few seconds."
        )


class SchemaNotReadyError(RuntimeError):
    """The tables are not there, or not of this version; the message says what to do."""

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema.explanation)
        self.schema = schema


class SchemaCheck:
    """Remembers what the tables are like, so that a request does not ask for the database's catalogue.

    Tables that were fine stay fine for the life of the process, unless reading them fails.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._schema: Schema | None = None
        self._checked_at = 0.0

    def __call__(self, connection: Connection) -> Schema:
        """Return what the tables are like, from memory where it is fresh enough."""
        with self._lock:
            known = self._schema
            if known is Schema.READY or (known is not None and time.monotonic() - self._checked_at < RECHECK_SECONDS):
                return known
        schema = migrate.check(connection)
        with self._lock:
            self._schema, self._checked_at = schema, time.monotonic()
        return schema

    def forget(self) -> None:
        """Ask the database again next time."""
        with self._lock:
            self._schema = None


schema_check = SchemaCheck()
breaker = CircuitBreaker(LEAVE_ALONE_SECONDS)
_connections = BoundedSemaphore(MAX_CONNECTIONS)


@contextmanager
def reading() -> Iterator[Connection]:
    """Yield a connection to Airflow's database in which our tables are ready to be read.

    :raises SchemaNotReadyError: when they are not, also when they vanished while being read
    :raises DatabaseBusyError: when that takes too long
    """
    with _only_if_ready(), _connection(), session.reading(session.PAGE) as connection:
        _require_ready(schema_check(connection))
        yield connection


@contextmanager
def writing() -> Iterator[Connection]:
    """Yield the same with a transaction, which is committed at the end.

    :raises SchemaNotReadyError: as for :func:`reading`
    :raises DatabaseBusyError: as for :func:`reading`
    """
    with _only_if_ready(), _connection(), session.writing(session.PAGE) as connection:
        _require_ready(schema_check(connection))
        yield connection


@contextmanager
def _connection() -> Iterator[None]:
    """Allow a few to use the database, and nobody for a while after a time-out."""
    was_open = breaker.is_open
    if not breaker.allows() or not _connections.acquire(timeout=WAIT_SECONDS):
        raise _refused()
    # Another one's time may have run out meanwhile.
    if breaker.is_open and not was_open:
        _connections.release()
        raise _refused()
    try:
        yield
    except Exception as error:
        if not session.is_timeout(error):
            breaker.close()
            raise
        breaker.open()
        warn_once(
            "pages", "Airflow Worker Insight could not read its tables in time: %s", getattr(error, "orig", error)
        )
        raise _refused() from error
    else:
        breaker.close()
    finally:
        _connections.release()


def _refused() -> DatabaseBusyError:
    count("pages.refused")
    return DatabaseBusyError()


@contextmanager
def _only_if_ready() -> Iterator[None]:
    """Say of a failure that the tables are the reason, where they are."""
    try:
        yield
    except (SchemaNotReadyError, DatabaseBusyError):
        raise
    except Exception:
        schema_check.forget()
        _require_ready(schema_now())
        raise


def _require_ready(schema: Schema) -> None:
    if schema is not Schema.READY:
        raise SchemaNotReadyError(schema)


def schema_now() -> Schema:
    """Return what the tables are like, without raising for those that are not ready.

    :raises DatabaseBusyError: when that takes too long
    """
    with _connection(), session.reading(session.PAGE) as connection:
        return schema_check(connection)
