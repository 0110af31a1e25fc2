"""One connection per request, and only to tables that this version of the package can read."""

from __future__ import annotations

import time
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

from airflow_worker_insight import compat
from airflow_worker_insight.store import migrate
from airflow_worker_insight.store.migrate import Schema

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection

RECHECK_SECONDS = 10.0
"""How long tables that are missing, old or newer are taken to stay so."""


class SchemaNotReady(RuntimeError):  # noqa: N818
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


@contextmanager
def reading() -> Iterator[Connection]:
    """Yield a connection to Airflow's database in which our tables are ready to be read.

    :raises SchemaNotReady: when they are not, also when they vanished while being read
    """
    with _only_if_ready(), compat.engine().connect() as connection:
        _require_ready(schema_check(connection))
        yield connection


@contextmanager
def writing() -> Iterator[Connection]:
    """Yield the same with a transaction, which is committed at the end.

    :raises SchemaNotReady: as for :func:`reading`
    """
    with _only_if_ready(), compat.engine().begin() as connection:
        _require_ready(schema_check(connection))
        yield connection


@contextmanager
def _only_if_ready() -> Iterator[None]:
    """Say of a failure that the tables are the reason, where they are."""
    try:
        yield
    except SchemaNotReady:
        raise
    except Exception:
        schema_check.forget()
        _require_ready(schema_now())
        raise


def _require_ready(schema: Schema) -> None:
    if schema is not Schema.READY:
        raise SchemaNotReady(schema)


def schema_now() -> Schema:
    """Return what the tables are like, without raising for those that are not ready."""
    with compat.engine().connect() as connection:
        return schema_check(connection)
