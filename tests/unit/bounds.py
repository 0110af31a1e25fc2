"""Find statements of the package on its own tables that no lock or statement time-out of its own bounds."""

from __future__ import annotations

import contextlib
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.engine import Engine

import airflow_worker_insight
from airflow_worker_insight.store import session

ANY_MACHINE = replace(session.START, statement=60, total=60)
"""Bounds of a claim on a machine of any speed: how long a statement takes says something of the machine only."""

ANY_MACHINE_EXPLAINS = replace(session.EXPLAIN, statement=60)
"""Bounds of explaining a failed claim on such a machine."""

PACKAGE = f"{Path(airflow_worker_insight.__file__).parent}/"
TESTS = f"{Path(__file__).resolve().parents[1]}/"

_PASSED_OVER = (f"{Path(sqlalchemy.__file__).parent}/", contextlib.__file__, __file__)
"""Files whose frames only hand on what others send."""

_OUR_TABLE = re.compile(r"\b(worker_insight_[a-z]|alembic_version_worker_insight\b)")
_SETTING = re.compile(r"SET LOCAL (lock_timeout|statement_timeout) = ([0-9]+)")
_KEEPS = "set_config('worker_insight.lock_timeout'"
_GIVES_BACK = "set_config('lock_timeout', current_setting('worker_insight.lock_timeout')"
_GOES_BACK = "ROLLBACK TO SAVEPOINT worker_insight"
_KEY = "tests.bounds"

BOTH = frozenset({"lock_timeout", "statement_timeout"})
LOCKS = frozenset({"lock_timeout"})


@dataclass
class _Transaction:
    """What was set in the transaction that a connection to the database is in."""

    is_tests: bool = False
    """Whether a test opened the connection."""

    is_migrations: bool = False
    """Whether our migrations opened it: their steps wait briefly for locks, but may run for long."""

    bounded: frozenset[str] = frozenset()
    before: list[frozenset[str]] = field(default_factory=list)
    """What was set before each savepoint that is open."""

    def note(self, statement: str) -> None:
        """Note what a statement sets."""
        if statement in ("BEGIN", "COMMIT", "ROLLBACK"):
            self.end()
        if _KEEPS in statement:
            self.before.append(self.bounded)
        if _GIVES_BACK in statement or statement.startswith(_GOES_BACK):
            self.bounded = self.before.pop() if self.before else frozenset()
        for name, value in _SETTING.findall(statement):
            self.bounded = self.bounded | {name} if int(value) else self.bounded - {name}

    def end(self) -> None:
        self.bounded = frozenset()
        self.before.clear()

    def allows(self, statement: str) -> bool:
        # An index that is made or dropped CONCURRENTLY waits for others, but nobody waits for it.
        if self.is_migrations:
            return self.bounded >= LOCKS or " CONCURRENTLY " in statement
        return self.is_tests or self.bounded >= BOTH


def _caller() -> str:
    """Return file and line of the innermost frame that is neither SQLAlchemy's nor a test tool's."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PASSED_OVER):
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _transaction(connection: Any) -> _Transaction | None:
    # Of one that is closed or lost nothing can be asked.
    if connection.dialect.name != "postgresql" or connection.closed or connection.invalidated:
        return None
    found: _Transaction | None = connection.info.get(_KEY)
    return found


class UnboundedStatements:
    """Watches all connections to PostgreSQL in this process. It sends nothing, and nothing fails because of it."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._listeners = {
            "engine_connect": self._connected,
            "begin": self._ended,
            "commit": self._ended,
            "rollback": self._ended,
            "before_cursor_execute": self._executes,
        }

    def install(self) -> None:
        """Begin to watch all engines, also those that are made later."""
        for name, listener in self._listeners.items():
            event.listen(Engine, name, listener)

    def uninstall(self) -> None:
        """Stop watching."""
        for name, listener in self._listeners.items():
            event.remove(Engine, name, listener)

    def _connected(self, connection: Any, *_: Any) -> None:
        if connection.dialect.name == "postgresql":
            caller = _caller()
            connection.info[_KEY] = _Transaction(
                is_tests=caller.startswith(TESTS), is_migrations=caller.startswith(f"{PACKAGE}store/migrations/")
            )

    def _ended(self, connection: Any) -> None:
        transaction = _transaction(connection)
        if transaction is not None:
            transaction.end()

    def _executes(self, connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        transaction = _transaction(connection)
        if transaction is None:
            return
        transaction.note(statement)
        if _OUR_TABLE.search(statement) is None or transaction.allows(statement):
            return
        caller = _caller()
        if caller.startswith(PACKAGE):
            self.found.append(f"{caller.removeprefix(PACKAGE)}: {' '.join(statement.split())[:300]}")
