"""Check that the tables are of this package's version, at most as often as needed."""

from __future__ import annotations

import time
from threading import Lock
from typing import TYPE_CHECKING

from airflow_worker_insight.store import migrate, session
from airflow_worker_insight.store.migrate import Schema

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.store.session import Bounds

RECHECK_SECONDS = 10.0
"""How long to trust a check that found the tables missing, old or newer."""


def read_schema(bounds: Bounds) -> Schema:
    """Check the tables on a connection of its own."""
    with session.reading(bounds) as connection:
        return migrate.check(connection)


class SchemaGate:
    """Cached check of the tables, so that callers need not query the database's catalogue each time.

    Tables that were ready count as ready until :meth:`forget` is called, because using them failed.
    """

    def __init__(
        self,
        *,
        recheck_seconds: float = RECHECK_SECONDS,
        check: Callable[[Connection], Schema] = migrate.check,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start without a result.

        :param recheck_seconds: how long to trust a check that found the tables not ready
        :param check: reads the state of the tables
        :param clock: returns seconds that never go back
        """
        self._recheck_seconds = recheck_seconds
        self._check = check
        self._clock = clock
        self._lock = Lock()
        self._schema: Schema | None = None
        self._checked_at = 0.0

    def check(self, connection: Connection) -> Schema:
        """Return the state of the tables, from the cache if it is fresh."""
        cached = self._cached()
        return cached if cached is not None else self._read(connection)

    def check_within(self, bounds: Bounds) -> Schema:
        """Return the state of the tables; open a connection only if the cache is not fresh."""
        cached = self._cached()
        if cached is not None:
            return cached
        with session.reading(bounds) as connection:
            return self._read(connection)

    def forget(self) -> None:
        """Clear the cache, so that the next call reads the state of the tables again."""
        with self._lock:
            self._schema = None

    def _cached(self) -> Schema | None:
        with self._lock:
            is_fresh = self._schema is Schema.READY or self._clock() - self._checked_at < self._recheck_seconds
            return self._schema if is_fresh else None

    def _read(self, connection: Connection) -> Schema:
        schema = self._check(connection)
        with self._lock:
            self._schema, self._checked_at = schema, self._clock()
        return schema
