"""Helpers that several commands share."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_worker_insight.store.migrate import Schema

T = TypeVar("T")

PAGE = 1000
"""Rows to read per query."""


def schema() -> Schema:
    """Return the state of the tables."""
    from airflow_worker_insight.store import session
    from airflow_worker_insight.store.schema_gate import read_schema

    return read_schema(session.COMMAND)


def require_tables() -> None:
    """Require up-to-date tables.

    :raises SystemExit: if they are not, with the command to run
    """
    from airflow_worker_insight.store.migrate import Schema

    tables = schema()
    if tables is not Schema.READY:
        raise SystemExit(tables.explanation)


@contextmanager
def exit_on_timeout() -> Iterator[None]:
    """Exit with one line instead of a traceback after a lock or database timeout.

    :raises SystemExit: after a timeout, or if a migration finds a table in use
    """
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
            "Insight. Run the command again when that transaction has ended."
        ) from None


def confirm(question: str) -> bool:
    """Ask the user a yes/no question; without any input the answer is no."""
    try:
        return input(f"{question} [y/N] ").strip().lower() == "y"
    except EOFError:
        return False


def read_pages(
    read: Callable[[int, int], tuple[list[T], int]], args: Any, *, page_size: int = PAGE
) -> tuple[list[T], int]:
    """Read as many rows as ``--limit`` and ``--all`` allow, page by page.

    :param read: takes a limit and an offset; returns a page of rows and the total
    :param args: the parsed arguments, with ``limit`` and ``all``
    :param page_size: the number of rows to read per query
    :return: the rows, and the number of rows that exist
    """
    rows: list[T] = []
    while True:
        size = page_size if args.all else min(page_size, args.limit - len(rows))
        page, total = read(size, len(rows))
        rows += page
        if len(page) < size or (not args.all and len(rows) >= args.limit):
            return rows, max(total, len(rows))
