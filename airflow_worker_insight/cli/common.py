"""What several commands do in the same way."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_worker_insight.store.migrate import Schema

T = TypeVar("T")

PAGE = 1000
"""Rows that are read at once."""


def schema() -> Schema:
    """Return what the database holds."""
    from airflow_worker_insight.store import migrate, session

    with session.reading(session.COMMAND) as connection:
        return migrate.check(connection)


def require_tables() -> None:
    """End with the command to run unless the tables are up to date."""
    from airflow_worker_insight.store.migrate import Schema

    found = schema()
    if found is not Schema.READY:
        raise SystemExit(found.explanation)


@contextmanager
def ends_in_plain_words() -> Iterator[None]:
    """End with one line instead of a traceback where others' locks, or a slow database, kept a command waiting."""
    from airflow_worker_insight.store import session
    from airflow_worker_insight.store.online_migration import TableInUseError

    try:
        yield
    except TableInUseError as error:
        raise SystemExit(str(error)) from None
    except Exception as error:
        if not session.is_timeout(error):
            raise
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise SystemExit(
            f"This took too long: {reason}. Another transaction may hold a lock on the tables of Airflow Worker "
            "Insight. Run the command again when it has ended."
        ) from None


def confirmed(question: str) -> bool:
    """Ask a person; without one to ask the answer is no."""
    try:
        return input(f"{question} [y/N] ").strip().lower() == "y"
    except EOFError:
        return False


def read_pages(read: Callable[[int, int], tuple[list[T], int]], args: Any) -> tuple[list[T], int]:
    """Return as many rows as ``--limit`` and ``--all`` ask for, and how many there are.

    :param read: returns a page of rows and their total, given a limit and an offset
    """
    rows: list[T] = []
    while True:
        size = PAGE if args.all else min(PAGE, args.limit - len(rows))
        page, total = read(size, len(rows))
        rows += page
        if len(page) < size or (not args.all and len(rows) >= args.limit):
            return rows, max(total, len(rows))
