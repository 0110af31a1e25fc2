"""Online steps of migrations: reports can be recorded while a large table is migrated.

A migration in a single transaction holds its locks until its end. On a large table nothing could be recorded for
minutes. Each step here is a short transaction of its own, and waits for a lock so briefly that no other transaction
queues behind it for long. Each step first checks whether it is done already, so an interrupted migration continues
where it stopped when it is run again. Therefore *all* steps of a migration that uses one of these must be of this kind
(for data: :func:`update_in_batches` with a condition that selects the rows still to be changed).

On MySQL and MariaDB each DDL statement is a transaction of its own anyway. On SQLite there is one writer at a time.
In offline mode (``--show-sql-only``) the steps print plain SQL that does the same.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from alembic import op

from airflow_worker_insight.store import session
from airflow_worker_insight.store.session import Bounds, is_timeout
from airflow_worker_insight.store.tables import metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy.engine import Connection

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MigrationLimits:
    """How long the steps of a migration wait for other transactions, and how much one of them changes."""

    step_bounds: Bounds = session.MIGRATION_STEP
    """Limits of one step."""
    index_bounds: Bounds = session.CONCURRENT_INDEX
    """Limits of creating or dropping an index concurrently."""
    retry_every: timedelta = timedelta(milliseconds=500)
    """How long a step lets other transactions proceed before it requests the lock again."""
    give_up_after: timedelta = timedelta(minutes=10)
    """How long a step retries, for example while another transaction stays open."""
    batch: int = 2_000
    """Number of rows that one transaction changes, which takes a fraction of a second."""


LIMITS = "worker_insight.limits"
"""Key of the limits in the attributes of Alembic's configuration."""


def _limits() -> MigrationLimits:
    """Return the limits of the migration that runs."""
    environment = op.get_context().environment_context
    limits = None if environment is None else environment.config.attributes.get(LIMITS)
    return limits or MigrationLimits()


class TableInUseError(RuntimeError):
    """Raised when a step or an index waited too long for another transaction.

    See :class:`MigrationLimits`.
    """


def run_step(action: Callable[[], T]) -> T:
    """Run an action in a short transaction of its own, and retry it while a lock blocks it.

    :param action: uses ``op``. It may be called several times; a failed call is rolled back
    :return: the result of the action
    :raises TableInUseError: when another transaction held a lock for all of :attr:`MigrationLimits.give_up_after`
    """
    context = op.get_context()
    if context.as_sql:
        return action()
    limits = _limits()
    give_up_at = time.monotonic() + limits.give_up_after.total_seconds()
    while True:
        try:
            with context.autocommit_block(), _transaction(op.get_bind(), limits.step_bounds):
                return action()
        except sa.exc.DBAPIError as error:
            # IntegrityError: a concurrent report has just written the same row.
            if not (is_timeout(error) or isinstance(error, sa.exc.IntegrityError)):
                raise
            if time.monotonic() >= give_up_at:
                raise TableInUseError(
                    f"Another transaction has held a lock on a table of Airflow Worker Insight for "
                    f"{limits.give_up_after} "
                    f"({str(error.orig).strip()}). End it and run the same command again: it continues where it was."
                ) from error
        log.info("Waiting for a lock on the tables of Airflow Worker Insight")
        time.sleep(limits.retry_every.total_seconds())


@contextmanager
def _transaction(connection: Connection, bounds: Bounds) -> Iterator[None]:
    """Begin a transaction with a short lock timeout, on a connection in autocommit mode."""
    dialect = connection.dialect.name
    if dialect == "mysql":
        former_timeout = connection.exec_driver_sql("SELECT @@SESSION.lock_wait_timeout").scalar_one()
        # MySQL takes whole seconds.
        connection.exec_driver_sql(f"SET SESSION lock_wait_timeout = {max(1, math.ceil(bounds.lock))}")
    connection.exec_driver_sql({"sqlite": "BEGIN IMMEDIATE", "mysql": "START TRANSACTION"}.get(dialect, "BEGIN"))
    try:
        if dialect == "postgresql":
            connection.exec_driver_sql(session.setting(connection, bounds))
        yield
    except BaseException:
        connection.exec_driver_sql("ROLLBACK")
        raise
    else:
        connection.exec_driver_sql("COMMIT")
    finally:
        if dialect == "mysql":
            connection.exec_driver_sql(f"SET SESSION lock_wait_timeout = {int(former_timeout)}")


# --- tables and columns ----------------------------------------------------------------------------------------------


def create_table(name: str, *columns: Any) -> None:
    """Create a table unless it exists."""
    run_step(lambda: None if _has_table(name) else op.create_table(name, *columns, schema=metadata.schema))


def drop_table(name: str) -> None:
    """Drop a table if it exists."""
    run_step(lambda: op.drop_table(name, schema=metadata.schema) if _has_table(name, offline=True) else None)


def add_columns(table: str, *columns: sa.Column[Any]) -> None:
    """Add those columns that do not exist.

    They must be nullable or have a constant ``server_default``, so that no database rewrites the table.
    """

    def add() -> None:
        existing = _column_names(table)
        for column in columns:
            if column.name not in existing:
                # Copied, because a column belongs to one table only, and this may be called again.
                op.add_column(table, column._copy(), schema=metadata.schema)  # noqa: SLF001 - a column belongs to one table

    run_step(add)


def drop_columns(table: str, *names: str) -> None:
    """Drop those columns that exist."""

    def drop() -> None:
        existing = names if op.get_context().as_sql else _column_names(table)
        for name in names:
            if name in existing:
                op.drop_column(table, name, schema=metadata.schema)

    run_step(drop)


# --- indexes ---------------------------------------------------------------------------------------------------------


def create_index(name: str, table: str, columns: Sequence[Any], *, unique: bool = False) -> None:
    """Create an index without blocking writers, unless it exists.

    On PostgreSQL the incomplete index of an interrupted migration is dropped first.
    """
    context = op.get_context()
    if context.dialect.name != "postgresql":
        run_step(
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
        if run_step(lambda: _is_empty(table)):
            run_step(lambda: op.create_index(name, table, columns, unique=unique, schema=metadata.schema))
            return
    with _bounded_wait(name), context.autocommit_block():
        op.create_index(name, table, columns, unique=unique, schema=metadata.schema, postgresql_concurrently=True)


@contextmanager
def _bounded_wait(name: str) -> Iterator[None]:
    """Limit how long a concurrent CREATE or DROP INDEX waits for open transactions.

    It blocks no other transaction, but waits for all that are open. One of them is Airflow's own in ``airflow db
    migrate``: with psycopg 3 it may keep a snapshot while it is idle and waits for this migration.

    :param name: name of the index
    :raises TableInUseError: when it waited for longer than :attr:`MigrationLimits.index_bounds`
    """
    context = op.get_context()
    if context.as_sql:
        yield
        return
    milliseconds = int(_limits().index_bounds.lock * 1000)
    with context.autocommit_block():
        op.get_bind().exec_driver_sql(f"SET lock_timeout = {milliseconds}")
    try:
        yield
    except sa.exc.DBAPIError as error:
        if not is_timeout(error):
            raise
        raise TableInUseError(
            f"The index {name} waits for a transaction that is open in this database (pg_stat_activity shows it). "
            "End it, or run `airflow-worker-insight db migrate` instead of `airflow db migrate`: it continues where "
            "this stopped."
        ) from error
    finally:
        with context.autocommit_block():
            op.get_bind().exec_driver_sql("RESET lock_timeout")


def _is_empty(table: str) -> bool:
    """Return whether a table has no rows, so that its index need not be created concurrently.

    When ``airflow db migrate`` creates all tables, it has a transaction open itself. With psycopg 3 an idle transaction
    keeps the snapshot of its last statement, and CREATE INDEX CONCURRENTLY would wait for it forever.
    """
    rows = sa.select(sa.literal(1)).select_from(sa.table(table, schema=metadata.schema)).limit(1)
    return op.get_bind().execute(rows).first() is None


def drop_index(name: str, table: str) -> None:
    """Drop an index without blocking writers, if it exists."""
    context = op.get_context()
    if not context.as_sql and name not in _index_names(table):
        return
    if context.dialect.name != "postgresql":
        run_step(lambda: op.drop_index(name, table, schema=metadata.schema))
        return
    with _bounded_wait(name), context.autocommit_block():
        op.drop_index(name, table, schema=metadata.schema, postgresql_concurrently=True)


def _is_valid(name: str) -> bool:
    """Return whether an index exists and its creation was completed; PostgreSQL only."""
    # to_regclass() expects a quoted name with its schema.
    qualified_name = op.get_context().dialect.identifier_preparer.quote(name)
    if metadata.schema:
        qualified_name = f"{op.get_context().dialect.identifier_preparer.quote(metadata.schema)}.{qualified_name}"
    result = op.get_bind().execute(
        sa.text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"), {"name": qualified_name}
    )
    return bool(result.scalar())


# --- rows ------------------------------------------------------------------------------------------------------------


def update_in_batches(
    table: sa.TableClause,
    key: Sequence[str],
    change: Callable[[sa.ColumnElement[bool]], None],
) -> None:
    """Change the rows of a table in batches, in the order of a key.

    Each batch is a transaction of its own.

    :param key: columns of the table that are the first ones of an index and together identify few rows, at best one
    :param change: is called with a condition and changes its rows by ``op.execute``. It may be called twice for the
        same rows, so it must itself select those that are still to be changed
    """
    if op.get_context().as_sql:
        change(sa.true())
        return
    columns, size = [table.c[name] for name in key], _limits().batch
    last_key: tuple[Any, ...] | None = None
    while True:
        started = time.monotonic()
        start = last_key

        def batch(start: tuple[Any, ...] | None = start) -> tuple[Any, ...] | None:
            above = [] if start is None else [columns[0] >= start[0], _compare(columns, start, above=True)]
            statement = sa.select(*columns).where(*above).order_by(*columns).offset(size - 1).limit(1)
            end = op.get_bind().execute(statement).first()
            up_to = [] if end is None else [columns[0] <= end[0], _compare(columns, end, above=False)]
            change(sa.and_(sa.true(), *above, *up_to))
            return None if end is None else tuple(end)

        last_key = run_step(batch)
        if last_key is None:
            return
        # Leave half of the time to other transactions.
        time.sleep(time.monotonic() - started)


def _compare(columns: Sequence[Any], values: Sequence[Any], *, above: bool) -> Any:
    row = sa.tuple_(*columns)
    bound = sa.tuple_(
        *(sa.bindparam(None, value, type_=column.type) for column, value in zip(columns, values, strict=True))
    )
    return row > bound if above else row <= bound


# --- inspection ------------------------------------------------------------------------------------------------------


def has_column(table: str, name: str) -> bool:
    """Return whether a table has a column; in offline mode always true."""
    return op.get_context().as_sql or name in _column_names(table)


def index_columns(table: str, name: str) -> list[str | None]:
    """Return the columns of an index; an empty list if it does not exist, or in offline mode."""
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
