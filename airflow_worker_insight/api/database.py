"""Database connections for requests, limited in number and time.

A connection is handed out only if the tables are of the version that this package reads.

The connections come from Airflow's own pool, which all its requests share (15 by default). So our requests use only a
few of them, and none for a while after one has timed out waiting for a lock.
"""

from __future__ import annotations

from contextlib import contextmanager
from threading import BoundedSemaphore
from typing import TYPE_CHECKING

from airflow_worker_insight.api.errors import RequestError
from airflow_worker_insight.capture.counters import count, warn_once
from airflow_worker_insight.store import session
from airflow_worker_insight.store.migrate import Schema
from airflow_worker_insight.store.schema_gate import SchemaGate
from airflow_worker_insight.store.session import CircuitBreaker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection

MAX_CONNECTIONS = 4
"""Connections of Airflow's pool that our requests may hold at once, per process."""

WAIT_SECONDS = 1.0
"""How long a request waits for a connection, occupying a thread of the API server."""

BREAKER_OPEN_SECONDS = 3.0
"""How long to refuse all requests after a timeout."""


class DatabaseBusyError(RequestError):
    """Raised when the database is too busy to read or write; the message says what to do."""

    status = 503

    def __init__(self) -> None:
        super().__init__(
            "The recorded tries cannot be read now: the database is busy, or a lock is held on the tables of Airflow "
            "Worker Insight (for example by a migration or VACUUM FULL). Nothing was changed, and tasks are not "
            "affected. Try again in a few seconds."
        )


class SchemaNotReadyError(RequestError):
    """Raised when the tables are missing or of another version; the message says what to do."""

    status = 503

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema.explanation)
        self.schema = schema


schema_gate = SchemaGate()
breaker = CircuitBreaker(BREAKER_OPEN_SECONDS)
_connection_slots = BoundedSemaphore(MAX_CONNECTIONS)


@contextmanager
def reading() -> Iterator[Connection]:
    """Check that our tables are ready, and yield a connection for reading.

    The transaction is rolled back at the end.

    :raises SchemaNotReadyError: if the tables are not ready, or become unavailable during the read
    :raises DatabaseBusyError: if connecting or reading takes too long
    """
    with _explain_schema_errors(), _limited_connection(), session.reading(session.PAGE) as connection:
        _require_ready(schema_gate.check(connection))
        yield connection


@contextmanager
def writing() -> Iterator[Connection]:
    """Yield a connection for writing, as :func:`reading` does, and commit at the end.

    :raises SchemaNotReadyError: as for :func:`reading`
    :raises DatabaseBusyError: as for :func:`reading`
    """
    with _explain_schema_errors(), _limited_connection(), session.writing(session.PAGE) as connection:
        _require_ready(schema_gate.check(connection))
        yield connection


@contextmanager
def _limited_connection() -> Iterator[None]:
    """Limit how many requests use the database, and refuse all for a while after a timeout."""
    was_open = breaker.is_open
    if not breaker.allows() or not _connection_slots.acquire(timeout=WAIT_SECONDS):
        raise _count_refusal()
    # Another request may have timed out while this one waited.
    if breaker.is_open and not was_open:
        _connection_slots.release()
        raise _count_refusal()
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
        raise _count_refusal() from error
    else:
        breaker.close()
    finally:
        _connection_slots.release()


def _count_refusal() -> DatabaseBusyError:
    count("pages.refused")
    return DatabaseBusyError()


@contextmanager
def _explain_schema_errors() -> Iterator[None]:
    """Turn an error into :class:`SchemaNotReadyError` if the state of the tables explains it."""
    try:
        yield
    except RequestError:
        raise
    except Exception:
        schema_gate.forget()
        _require_ready(schema_now())
        raise


def _require_ready(schema: Schema) -> None:
    if schema is not Schema.READY:
        raise SchemaNotReadyError(schema)


def schema_now() -> Schema:
    """Return the state of the tables, whether or not they are ready.

    :raises DatabaseBusyError: if the check takes too long
    """
    with _limited_connection(), session.reading(session.PAGE) as connection:
        return schema_gate.check(connection)
