"""Steps of migrations that let reports through while the tables are full.

A migration that is one transaction holds its locks until its end: on a large table that is minutes in which nothing can
be recorded. The steps here are transactions of their own, each done in a moment, and waiting for a lock so briefly that
nobody queues up behind them for long. Each looks first whether it is done already: a migration that was interrupted
goes on where it stopped when it is run again. So *all* steps of a migration that uses one of these must be of this kind
(data by :func:`in_batches` with a condition that finds what is still to do).

On MySQL and MariaDB each statement on a table is a transaction of its own anyway. On SQLite writers take turns.
In offline mode (``--show-sql-only``) plain SQL is printed that does the same.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from alembic import op

from airflow_worker_insight.store.session import is_timeout
from airflow_worker_insight.store.tables import metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy.engine import Connection

T = TypeVar("T")

log = logging.getLogger(__name__)

LOCK_TIMEOUT = timedelta(milliseconds=100)
"""How long a step waits for a table's lock. Whoever comes meanwhile queues up behind it: less than a claim waits."""

MYSQL_LOCK_TIMEOUT = 1
"""The same in seconds: MySQL's shortest."""

RETRY_EVERY = timedelta(milliseconds=500)
"""How long a step lets others through before it asks for the lock again."""

GIVE_UP_AFTER = timedelta(minutes=10)
"""How long a step goes on asking, for example while somebody else's transaction is open."""

CONCURRENT_TIMEOUT = timedelta(minutes=5)
"""How long making an index waits for transactions that were open before."""

BATCH = 2_000
"""Rows that one transaction changes: a fraction of a second."""


class TableInUseError(RuntimeError):
    """Somebody else held a lock for all of :data:`GIVE_UP_AFTER`."""


def step(action: Callable[[], T]) -> T:
    """Do something in a short transaction of its own, and again until it finds nobody else's lock in its way.

    :param action: uses ``op``; it may be called several times, and nothing of a call that failed stays
    """
    context = op.get_context()
    if context.as_sql:
        return action()
    give_up_at = time.monotonic() + GIVE_UP_AFTER.total_seconds()
    while True:
        try:
            with context.autocommit_block(), _transaction(op.get_bind()):
                return action()
        except sa.exc.DBAPIError as error:
            # Or a report has just written the row that was about to be written.
            if not (is_timeout(error) or isinstance(error, sa.exc.IntegrityError)):
                raise
            if time.monotonic() >= give_up_at:
                raise TableInUseError(
                    f"Another transaction has held a lock on a table of Airflow Worker Insight for {GIVE_UP_AFTER} "
                    f"({str(error.orig).strip()}). End it and run the same command again: it goes on where it stopped."
                ) from error
        log.info("Waiting for others' locks on the tables of Airflow Worker Insight")
        time.sleep(RETRY_EVERY.total_seconds())


@contextmanager
def _transaction(connection: Connection) -> Iterator[None]:
    """Begin a transaction that waits briefly for locks, on a connection that is in autocommit mode."""
    dialect = connection.dialect.name
    if dialect == "mysql":
        before = connection.exec_driver_sql("SELECT @@SESSION.lock_wait_timeout").scalar_one()
        connection.exec_driver_sql(f"SET SESSION lock_wait_timeout = {MYSQL_LOCK_TIMEOUT}")
    connection.exec_driver_sql({"sqlite": "BEGIN IMMEDIATE", "mysql": "START TRANSACTION"}.get(dialect, "BEGIN"))
    try:
        if dialect == "postgresql":
            wait = int(LOCK_TIMEOUT.total_seconds() * 1000)
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {wait}")
        yield
    except BaseException:
        connection.exec_driver_sql("ROLLBACK")
        raise
    else:
        connection.exec_driver_sql("COMMIT")
    finally:
        if dialect == "mysql":
            connection.exec_driver_sql(f"SET SESSION lock_wait_timeout = {int(before)}")


# --- tables and columns ----------------------------------------------------------------------------------------------


def create_table(name: str, *columns: Any) -> None:
    """Make a table unless it is there."""
    step(lambda: None if _has_table(name) else op.create_table(name, *columns, schema=metadata.schema))


def drop_table(name: str) -> None:
    """Drop a table if it is there."""
    step(lambda: op.drop_table(name, schema=metadata.schema) if _has_table(name, offline=True) else None)


def add_columns(table: str, *columns: sa.Column[Any]) -> None:
    """Add those columns that are not there.

    They must be nullable or have a constant ``server_default``: then no database rewrites the table.
    """

    def add() -> None:
        there = _column_names(table)
        for column in columns:
            if column.name not in there:
                # A column belongs to one table only, and this may be called again.
                op.add_column(table, column._copy(), schema=metadata.schema)  # noqa: SLF001

    step(add)


def drop_columns(table: str, *names: str) -> None:
    """Drop those columns that are there."""

    def drop() -> None:
        there = names if op.get_context().as_sql else _column_names(table)
        for name in names:
            if name in there:
                op.drop_column(table, name, schema=metadata.schema)

    step(drop)


# --- indexes ---------------------------------------------------------------------------------------------------------


def create_index(name: str, table: str, columns: Sequence[Any], *, unique: bool = False) -> None:
    """Make an index while others write, unless it is there; what an interrupted attempt left behind is dropped."""
    context = op.get_context()
    if context.dialect.name != "postgresql":
        step(
            lambda: (
                None
                if name in _index_names(table)
                else op.create_index(name, table, columns, unique=unique, schema=metadata.schema)
            )
        )
        return
    if not context.as_sql:
        if _is_valid(name):
            return
        drop_index(name, table)
        if step(lambda: _is_empty(table)):
            step(lambda: op.create_index(name, table, columns, unique=unique, schema=metadata.schema))
            return
    with _waits_for_transactions(name), context.autocommit_block():
        op.create_index(name, table, columns, unique=unique, schema=metadata.schema, postgresql_concurrently=True)


@contextmanager
def _waits_for_transactions(name: str) -> Iterator[None]:
    """Make or drop an index concurrently: it waits for open transactions, nobody for it, and not without an end.

    One of these is Airflow's own in ``airflow db migrate``. With psycopg 3 it may keep a snapshot while it is idle, and
    waits for us.
    """
    context = op.get_context()
    if context.as_sql:
        yield
        return
    wait = int(CONCURRENT_TIMEOUT.total_seconds() * 1000)
    with context.autocommit_block():
        op.get_bind().exec_driver_sql(f"SET lock_timeout = {wait}")
    try:
        yield
    except sa.exc.DBAPIError as error:
        if not is_timeout(error):
            raise
        raise TableInUseError(
            f"The index {name} waits for a transaction that is open in this database (pg_stat_activity shows it). "
            "End it, or run `airflow-worker-insight db migrate` in the place of `airflow db migrate`: it goes on where "
            "this stopped."
        ) from error
    finally:
        with context.autocommit_block():
            op.get_bind().exec_driver_sql("RESET lock_timeout")


def _is_empty(table: str) -> bool:
    """Return whether a table has no row: then an index is made at once, whoever has a transaction open.

    `airflow db migrate` has one itself when it makes all tables. With psycopg 3 an idle transaction keeps the snapshot
    of its last statement, and what is made concurrently would wait for that forever.
    """
    rows = sa.select(sa.literal(1)).select_from(sa.table(table, schema=metadata.schema)).limit(1)
    return op.get_bind().execute(rows).first() is None


def drop_index(name: str, table: str) -> None:
    """Drop an index while others write, if it is there."""
    context = op.get_context()
    if not context.as_sql and name not in _index_names(table):
        return
    if context.dialect.name != "postgresql":
        step(lambda: op.drop_index(name, table, schema=metadata.schema))
        return
    with _waits_for_transactions(name), context.autocommit_block():
        op.drop_index(name, table, schema=metadata.schema, postgresql_concurrently=True)


def _is_valid(name: str) -> bool:
    """Return whether there is an index of this name that was completed; PostgreSQL only."""
    # PostgreSQL's own way to look a name up, which quotes and schemas are part of.
    qualified = op.get_context().dialect.identifier_preparer.quote(name)
    if metadata.schema:
        qualified = f"{op.get_context().dialect.identifier_preparer.quote(metadata.schema)}.{qualified}"
    found = op.get_bind().execute(
        sa.text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"), {"name": qualified}
    )
    return bool(found.scalar())


# --- rows ------------------------------------------------------------------------------------------------------------


def in_batches(
    table: sa.TableClause,
    key: Sequence[str],
    change: Callable[[sa.ColumnElement[bool]], None],
    *,
    size: int = BATCH,
) -> None:
    """Go through a table in the order of a key and change its rows batch by batch, each in a transaction of its own.

    :param key: columns of the table that an index begins with and that together name few rows, at best one
    :param change: changes (by ``op.execute``) the rows of the condition that it is given; it may be called twice for
        the same rows, so it says itself which of them are still to be changed
    """
    if op.get_context().as_sql:
        change(sa.true())
        return
    columns = [table.c[name] for name in key]
    last: tuple[Any, ...] | None = None
    while True:
        began = time.monotonic()
        behind = last

        def batch(behind: tuple[Any, ...] | None = behind) -> tuple[Any, ...] | None:
            above = [] if behind is None else [columns[0] >= behind[0], _compare(columns, behind, above=True)]
            statement = sa.select(*columns).where(*above).order_by(*columns).offset(size - 1).limit(1)
            end = op.get_bind().execute(statement).first()
            upto = [] if end is None else [columns[0] <= end[0], _compare(columns, end, above=False)]
            change(sa.and_(sa.true(), *above, *upto))
            return None if end is None else tuple(end)

        last = step(batch)
        if last is None:
            return
        # Half of the time is others'.
        time.sleep(time.monotonic() - began)


def _compare(columns: Sequence[Any], values: Sequence[Any], *, above: bool) -> Any:
    row = sa.tuple_(*columns)
    bound = sa.tuple_(
        *(sa.bindparam(None, value, type_=column.type) for column, value in zip(columns, values, strict=True))
    )
    return row > bound if above else row <= bound


# --- what is there ---------------------------------------------------------------------------------------------------


def has_column(table: str, name: str) -> bool:
    """Return whether a table has a column; offline it is taken to have it."""
    return op.get_context().as_sql or name in _column_names(table)


def index_columns(table: str, name: str) -> list[str | None]:
    """Return the columns of an index, none where there is no such index, or offline."""
    if op.get_context().as_sql:
        return []
    indexes = sa.inspect(op.get_bind()).get_indexes(table, schema=metadata.schema)
    return next((list(index["column_names"]) for index in indexes if index["name"] == name), [])


def _has_table(name: str, *, offline: bool = False) -> bool:
    if op.get_context().as_sql:
        return offline
    return bool(sa.inspect(op.get_bind()).has_table(name, schema=metadata.schema))


def _column_names(table: str) -> set[str]:
    if op.get_context().as_sql:
        return set()
    return {column["name"] for column in sa.inspect(op.get_bind()).get_columns(table, schema=metadata.schema)}


def _index_names(table: str) -> set[str | None]:
    if op.get_context().as_sql:
        return set()
    return {index["name"] for index in sa.inspect(op.get_bind()).get_indexes(table, schema=metadata.schema)}
