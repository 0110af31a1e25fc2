"""Query helpers that differ by database, most of them to keep PostgreSQL's planner fast."""

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
    """Turn off PostgreSQL's JIT compiler until the end of the transaction.

    PostgreSQL overestimates the cost of scanning thousands of rows, and compiling takes longer than the scan.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL jit = off")


def in_list(connection: Connection, column: Any, values: Sequence[Any]) -> Any:
    """Return the condition that a column has one of these values.

    On PostgreSQL they are one parameter, so there may be thousands.
    """
    if len(values) == 1:
        return column == values[0]
    return column == any_(_array(column, values)) if connection.dialect.name == "postgresql" else column.in_(values)


def in_rows(connection: Connection, columns: Sequence[Any], rows: Sequence[tuple[Any, ...]]) -> Any:
    """Return the condition that these columns have the values of one of these rows.

    PostgreSQL gets one array per column, because it would plan each member of a long IN separately.
    """
    if connection.dialect.name != "postgresql":
        return tuple_(*columns).in_(rows)
    return _in_arrays(
        columns, {f"v{index}": _array(column, [row[index] for row in rows]) for index, column in enumerate(columns)}
    )


def in_bound_rows(dialect: str, columns: Sequence[Any], name: str) -> Any:
    """Return the condition of :func:`in_rows` for rows that are bound at execution.

    For a statement that is built once: building a long one takes SQLAlchemy longer than the database takes to answer.
    A statement needs another name for each such condition, because SQLAlchemy cannot expand a list of tuples twice.

    :param dialect: ``postgresql``, ``sqlite`` or ``mysql``
    :param name: name of the parameters, for which :func:`row_parameters` returns the values
    """
    if dialect != "postgresql":
        return tuple_(*columns).in_(bindparam(name, expanding=True))
    types = {f"{name}_{index}": _array_type(column) for index, column in enumerate(columns)}
    return _in_arrays(
        columns,
        {parameter: cast(bindparam(parameter, type_=array), array) for parameter, array in types.items()},
    )


def row_parameters(connection: Connection, rows: Sequence[tuple[Any, ...]], name: str) -> dict[str, Any]:
    """Return the parameters of :func:`in_bound_rows`.

    :param rows: at least one row
    """
    if connection.dialect.name != "postgresql":
        return {name: rows}
    return {f"{name}_{index}": list(values) for index, values in enumerate(zip(*rows, strict=True))}


def _in_arrays(columns: Sequence[Any], arrays: Mapping[str, Any]) -> Any:
    """Return the condition that these columns have the values at one position of these arrays; PostgreSQL only."""
    rows = func.unnest(*arrays.values()).table_valued(*arrays).render_derived()
    return tuple_(*columns).in_(select(*(rows.c[name] for name in arrays)))


def unnest(column: Any, values: Sequence[Any]) -> Any:
    """Return values of a column as a table with the column ``value``; PostgreSQL only."""
    return func.unnest(_array(column, values)).table_valued("value").render_derived()


def execute_and_count(connection: Connection, statement: Any, parameters: Mapping[str, Any] | None = None) -> int:
    """Execute an INSERT, UPDATE or DELETE of one table and return the number of written rows.

    On PostgreSQL the statement returns its rows, because the drivers disagree on ``rowcount``: for an INSERT … SELECT
    SQLAlchemy reports -1 with psycopg 3. On MySQL and SQLite ``rowcount`` is exact.
    """
    statement = with_row_count(statement, connection.dialect.name)
    return row_count(connection.execute(statement, dict(parameters or {})))


def with_row_count(statement: Any, dialect: str) -> Any:
    """Return an INSERT, UPDATE or DELETE whose written rows :func:`row_count` can count.

    Use it to build a frequent statement once: SQLAlchemy must hash a rebuilt one before it finds the compiled one.
    """
    return statement.returning(next(iter(statement.table.primary_key))) if dialect == "postgresql" else statement


def row_count(result: Any) -> int:
    """Return the number of rows that a statement of :func:`with_row_count` has written."""
    return len(result.all()) if result.returns_rows else int(result.rowcount)


def upsert_many(
    connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], *, added: tuple[str, ...] = ()
) -> None:
    """Insert rows, or update those with the same primary keys.

    On PostgreSQL all rows are one JSON parameter: psycopg2 sends an ``executemany`` row by row
    (https://www.psycopg.org/docs/extras.html#fast-execution-helpers), and arrays of thousands take it twice as long.

    :param rows: at least one, each with a value for each column, none of which is of the type JSON
    :param added: columns whose value is added to that of an existing row, where NULL counts as 0; all others replace it
    """
    dialect = connection.dialect
    if dialect.name != "postgresql":
        connection.execute(_upsert_each_statement(dialect.name, table, added), [*rows])
        return
    processors = {
        column.name: process
        for column in table.c
        if (process := column.type.dialect_impl(dialect).bind_processor(dialect)) is not None
    }
    stored = [{**row, **{name: process(row[name]) for name, process in processors.items()}} for row in rows]
    connection.execute(_upsert_many_statement(table, added), {"rows": json.dumps(stored, default=str)})


def replace_many(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, or replace those with the same primary keys.

    :param rows: each with a value for each column
    """
    if connection.dialect.name == "postgresql":
        upsert_many(connection, table, rows)
        return
    others = [column.name for column in table.c if not column.primary_key]
    if connection.dialect.name == "sqlite":
        into_sqlite = sqlite.insert(table)
        new_values = {name: into_sqlite.excluded[name] for name in others}
        statement: Any = into_sqlite.on_conflict_do_update(index_elements=list(table.primary_key), set_=new_values)
    else:
        into_mysql = mysql.insert(table)
        statement = into_mysql.on_duplicate_key_update(**{name: into_mysql.inserted[name] for name in others})
    connection.execute(statement, list(rows))


@cache
def _upsert_many_statement(table: Table, added: tuple[str, ...]) -> Any:
    """Return SQL text: SQLAlchemy would compile an ``INSERT … ON CONFLICT`` anew each time."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    name = dialect.identifier_preparer.format_table(table)
    columns = ", ".join(column.name for column in table.c)
    typed = ", ".join(f"{column.name} {column.type.compile(dialect)}" for column in table.c)
    keys = ", ".join(column.name for column in table.primary_key)
    updates = ", ".join(
        f"{column.name} = {_sum_sql(column.name) if column.name in added else f'excluded.{column.name}'}"
        for column in table.c
        if not column.primary_key
    )
    return text(
        f"INSERT INTO {name} AS present ({columns}) "  # noqa: S608 - our own names
        f"SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS given ({typed}) "
        f"ON CONFLICT ({keys}) DO UPDATE SET {updates}"
    )


def _sum_sql(column: str) -> str:
    return f"coalesce(present.{column} + excluded.{column}, present.{column}, excluded.{column})"


@cache
def _upsert_each_statement(dialect: str, table: Table, added: tuple[str, ...]) -> Any:
    insert: Any = mysql.insert(table) if dialect == "mysql" else sqlite.insert(table)
    given = insert.inserted if dialect == "mysql" else insert.excluded
    updates = {
        column.name: func.coalesce(column + given[column.name], column, given[column.name])
        if column.name in added
        else given[column.name]
        for column in table.c
        if not column.primary_key
    }
    if dialect == "mysql":
        return insert.on_duplicate_key_update(updates)
    return insert.on_conflict_do_update(index_elements=[*table.primary_key], set_=updates)


def _array(column: Any, values: Sequence[Any]) -> Any:
    array_type = _array_type(column)
    return cast(literal(list(values), array_type), array_type)


def _array_type(column: Any) -> Any:
    return ARRAY(String if isinstance(column.type, String) else column.type)


def insert_new(dialect: str, table: Table, values: Mapping[str, Any]) -> Any:
    """Return an INSERT of a row that does nothing if the row conflicts with any unique index.

    It names no index: PostgreSQL would then ignore conflicts of concurrent inserts in that index only, and fail at
    others.

    :param dialect: ``postgresql``, ``sqlite`` or ``mysql``
    """
    if dialect == "postgresql":
        return postgresql.insert(table).values(values).on_conflict_do_nothing()
    if dialect == "sqlite":
        return sqlite.insert(table).values(values).on_conflict_do_nothing()
    key = next(iter(table.primary_key))
    return mysql.insert(table).values(values).on_duplicate_key_update({key.name: key})


def upsert(dialect: str, table: Table, values: Any, *, key: Sequence[str], update: Mapping[str, Any]) -> Any:
    """Return an INSERT that instead updates the row with the same ``key``, if there is one.

    :param dialect: ``postgresql``, ``sqlite`` or ``mysql``
    :param values: a row as a mapping, or ``None`` to pass rows at execution
    :param key: names of the columns of a unique index
    :param update: what an existing row gets, by column name
    """
    if dialect == "postgresql":
        postgresql_insert = postgresql.insert(table)
        postgresql_insert = postgresql_insert.values(values) if values is not None else postgresql_insert
        return postgresql_insert.on_conflict_do_update(index_elements=list(key), set_=dict(update))
    if dialect == "sqlite":
        sqlite_insert = sqlite.insert(table)
        sqlite_insert = sqlite_insert.values(values) if values is not None else sqlite_insert
        return sqlite_insert.on_conflict_do_update(index_elements=list(key), set_=dict(update))
    mysql_insert = mysql.insert(table)
    mysql_insert = mysql_insert.values(values) if values is not None else mysql_insert
    return mysql_insert.on_duplicate_key_update(**dict(update))
