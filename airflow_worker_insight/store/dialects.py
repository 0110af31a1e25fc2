"""Say it so that PostgreSQL plans it well; the other databases are told in their plain words."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING

from sqlalchemy import String, any_, bindparam, cast, func, literal, select, text, tuple_
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.dialects.postgresql import ARRAY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from sqlalchemy import Table
    from sqlalchemy.engine import Connection


def disable_jit(connection: Connection) -> None:
    """Have PostgreSQL not compile statements until the end of the transaction.

    It guesses that looking through thousands of rows costs much, and compiling takes longer than that.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL jit = off")


def in_list(connection: Connection, column: Any, values: Sequence[Any]) -> Any:
    """Say that a column has one of these values, thousands of them if need be: on PostgreSQL in one parameter."""
    if len(values) == 1:
        return column == values[0]
    return column == any_(_array(column, values)) if connection.dialect.name == "postgresql" else column.in_(values)


def in_rows(connection: Connection, columns: Sequence[Any], rows: Sequence[tuple[Any, ...]]) -> Any:
    """Say that several columns together have the values of one of these rows.

    PostgreSQL would plan each member of a long IN on its own.
    """
    if connection.dialect.name != "postgresql":
        return tuple_(*columns).in_(rows)
    arrays = (_array(column, [row[place] for row in rows]) for place, column in enumerate(columns))
    names = [f"v{place}" for place in range(len(columns))]
    given = func.unnest(*arrays).table_valued(*names).render_derived()
    return tuple_(*columns).in_(select(*(given.c[name] for name in names)))


def in_given_rows(dialect: str, columns: Sequence[Any], name: str) -> Any:
    """Say the same of rows that come with the statement's execution, under a name: see :func:`given`.

    For a statement that is built once: SQLAlchemy takes longer to build a long one than the database to answer it.
    """
    if dialect != "postgresql":
        return tuple_(*columns).in_(bindparam(name, expanding=True))
    kinds = {f"{name}_{place}": _many(column) for place, column in enumerate(columns)}
    arrays = (cast(bindparam(place, type_=kind), kind) for place, kind in kinds.items())
    rows = func.unnest(*arrays).table_valued(*kinds).render_derived()
    return tuple_(*columns).in_(select(*(rows.c[place] for place in kinds)))


def given(connection: Connection, rows: Sequence[tuple[Any, ...]], name: str) -> dict[str, Any]:
    """Return the parameters of :func:`in_given_rows`; there is one row at least."""
    if connection.dialect.name != "postgresql":
        return {name: rows}
    return {f"{name}_{place}": list(values) for place, values in enumerate(zip(*rows, strict=True))}


def unnest(column: Any, values: Sequence[Any]) -> Any:
    """Return these values of a column as a table with the column ``value``; PostgreSQL only."""
    return func.unnest(_array(column, values)).table_valued("value").render_derived()


def changed_rows(connection: Connection, statement: Any, parameters: Mapping[str, Any] | None = None) -> int:
    """Execute an INSERT, UPDATE or DELETE of one table and return how many rows it wrote.

    PostgreSQL returns the rows themselves, because its drivers disagree on ``rowcount``: of an INSERT … SELECT
    SQLAlchemy reports -1 with psycopg 3. On MySQL and SQLite ``rowcount`` is exact.
    """
    statement = counted(statement, connection.dialect.name)
    return rows_written(connection.execute(statement, dict(parameters or {})))


def counted(statement: Any, dialect: str) -> Any:
    """Return an INSERT, UPDATE or DELETE so that :func:`rows_written` can tell how many rows it writes.

    A statement that runs often is prepared once: SQLAlchemy compiles what is built anew only after it has hashed it.
    """
    return statement.returning(next(iter(statement.table.primary_key))) if dialect == "postgresql" else statement


def rows_written(result: Any) -> int:
    """Return how many rows a statement of :func:`counted` has written."""
    return len(result.all()) if result.returns_rows else int(result.rowcount)


def upsert_many(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, each a value for each column, in the place of those with their primary keys; PostgreSQL only.

    All go in one parameter, as JSON: psycopg2 sends an ``executemany`` row by row
    (https://www.psycopg.org/docs/extras.html#fast-execution-helpers), and arrays of thousands take it twice as long.
    """
    dialect = connection.dialect
    as_stored = {
        column.name: process
        for column in table.c
        if (process := column.type.dialect_impl(dialect).bind_processor(dialect)) is not None
    }
    given = [{**row, **{name: process(row[name]) for name, process in as_stored.items()}} for row in rows]
    connection.execute(_upsert_many(table), {"rows": json.dumps(given, default=str)})


@cache
def _upsert_many(table: Table) -> Any:
    """Return the statement, in plain SQL: SQLAlchemy compiles an ``INSERT … ON CONFLICT`` anew each time."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    name = dialect.identifier_preparer.format_table(table)
    columns = ", ".join(column.name for column in table.c)
    typed = ", ".join(f"{column.name} {column.type.compile(dialect)}" for column in table.c)
    keys = ", ".join(column.name for column in table.primary_key)
    new = ", ".join(f"{column.name} = excluded.{column.name}" for column in table.c if not column.primary_key)
    return text(
        f"INSERT INTO {name} ({columns}) SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS given ({typed}) "  # noqa: S608
        f"ON CONFLICT ({keys}) DO UPDATE SET {new}"
    )


def _array(column: Any, values: Sequence[Any]) -> Any:
    kind = _many(column)
    return cast(literal(list(values), kind), kind)


def _many(column: Any) -> Any:
    return ARRAY(String if isinstance(column.type, String) else column.type)


def insert_new(dialect: str, table: Table, values: Mapping[str, Any]) -> Any:
    """Return an INSERT of a row that does nothing where there is one of the same in any unique index.

    It names no index: of a row that two insert at once PostgreSQL looks for the named one only, and fails at others.

    :param dialect: ``postgresql``, ``sqlite`` or ``mysql``
    """
    if dialect == "postgresql":
        return postgresql.insert(table).values(values).on_conflict_do_nothing()
    if dialect == "sqlite":
        return sqlite.insert(table).values(values).on_conflict_do_nothing()
    key = next(iter(table.primary_key))
    return mysql.insert(table).values(values).on_duplicate_key_update({key.name: key})


def upsert(dialect: str, table: Table, values: Any, *, key: Sequence[str], update: Mapping[str, Any]) -> Any:
    """Return an INSERT of ``values`` that updates ``update`` where a row with the same ``key`` exists.

    :param dialect: ``postgresql``, ``sqlite`` or ``mysql``
    :param values: a row as a mapping, or ``None`` to pass rows at execution
    """
    if dialect == "postgresql":
        pg = postgresql.insert(table)
        pg = pg.values(values) if values is not None else pg
        return pg.on_conflict_do_update(index_elements=list(key), set_=dict(update))
    if dialect == "sqlite":
        lite = sqlite.insert(table)
        lite = lite.values(values) if values is not None else lite
        return lite.on_conflict_do_update(index_elements=list(key), set_=dict(update))
    my = mysql.insert(table)
    my = my.values(values) if values is not None else my
    return my.on_duplicate_key_update(**dict(update))
