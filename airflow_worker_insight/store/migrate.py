"""Schema version: migrate the tables to the version of this package, and check it.

Only migrations create tables. Airflow's own shortcut (create all tables, then stamp the version) makes later upgrades
skip migrations (apache/airflow#66674).
"""

from __future__ import annotations

from enum import Enum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Column, MetaData, String, Table, inspect, select

import airflow_worker_insight.store.insight_tables  # noqa: F401 - adds its tables to the metadata
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.store import session
from airflow_worker_insight.store.online_migration import LIMITS, MigrationLimits
from airflow_worker_insight.store.tables import HOW_TO_MIGRATE, VERSION_TABLE, attempt, metadata, worker

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

MIGRATIONS = Path(__file__).parent / "migrations"


RevisionError = CommandError
"""Raised when no migrations lead to a revision."""


class IncompleteTablesError(RuntimeError):
    """Raised when tables are missing that exist according to the version table."""


class Schema(Enum):
    """State of the tables in the database, compared with this package."""

    READY = "ready"
    MISSING = "missing"
    OLD = "old"
    NEWER = "newer"
    INCOMPLETE = "incomplete"

    @property
    def explanation(self) -> str:
        """One sentence for operators: what is wrong and what to do."""
        return {
            Schema.READY: "The tables are up to date.",
            Schema.MISSING: f"The tables of Airflow Worker Insight do not exist yet: {HOW_TO_MIGRATE}.",
            Schema.OLD: f"The tables of Airflow Worker Insight are out of date: {HOW_TO_MIGRATE}.",
            Schema.NEWER: (
                "The tables of Airflow Worker Insight were created by a newer version of the package: install that "
                "version here too, or run its `airflow-worker-insight db downgrade`."
            ),
            Schema.INCOMPLETE: (
                "Some tables of Airflow Worker Insight are missing: restore them from a backup, or start over with "
                "`airflow-worker-insight db downgrade --to-revision base` and then `db migrate`."
            ),
        }[self]


def alembic_config(*, printed_to: TextIO | None = None, limits: MigrationLimits | None = None) -> Config:
    """Return Alembic's configuration for our migrations in Airflow's database.

    :param printed_to: where offline mode prints the SQL, by default the standard output
    :param limits: how long the migrations wait for other transactions
    """
    config = Config(output_buffer=printed_to, attributes={LIMITS: limits or MigrationLimits()})
    config.set_main_option("script_location", MIGRATIONS.as_posix().replace("%", "%%"))
    config.set_main_option("sqlalchemy.url", metadata_database.database_url().replace("%", "%%"))
    return config


def head() -> str:
    """Return the revision of this package's newest migration."""
    return _revisions()[0]


@cache
def _revisions() -> tuple[str, ...]:
    """Return the revisions of all migrations, newest first."""
    script = ScriptDirectory.from_config(alembic_config())
    return tuple(revision.revision for revision in script.walk_revisions())


def _version_table() -> Table:
    """Return Alembic's version table of our migrations.

    It is in the schema of Airflow's tables; Airflow's own version table may be in another schema.
    """
    return Table(VERSION_TABLE, MetaData(schema=metadata.schema), Column("version_num", String(32)))


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the database, or ``None`` if none of our migrations has run."""
    versions = _version_table()
    if not inspect(connection).has_table(versions.name, schema=versions.schema):
        return None
    revision: str | None = connection.execute(select(versions.c.version_num)).scalar()
    return revision


def check(connection: Connection) -> Schema:
    """Return how the database compares with this package: its revision and its tables."""
    revision = current_revision(connection)
    if revision is None:
        return Schema.MISSING
    missing = _missing_tables(connection)
    if {worker.name, attempt.name} <= missing:
        return Schema.MISSING
    if revision == head():
        return Schema.INCOMPLETE if missing else Schema.READY
    if revision not in _revisions():
        return Schema.NEWER
    # These two tables exist since the first migration.
    return Schema.INCOMPLETE if missing & {worker.name, attempt.name} else Schema.OLD


def _missing_tables(connection: Connection) -> set[str]:
    existing = set(inspect(connection).get_table_names(schema=metadata.schema))
    return {table.name for table in metadata.sorted_tables} - existing


def upgrade(
    to_revision: str = "head",
    *,
    sql_only: bool = False,
    printed_to: TextIO | None = None,
    limits: MigrationLimits | None = None,
) -> None:
    """Run the migrations up to ``to_revision``.

    :param sql_only: print the SQL instead of executing it
    :param printed_to: where the SQL is printed, by default the standard output
    :param limits: how long the migrations wait for other transactions
    :raises IncompleteTablesError: when a table is missing that an earlier migration created; no migration creates it
        again
    """
    if not sql_only:
        _drop_version_without_tables()
    command.upgrade(alembic_config(printed_to=printed_to, limits=limits), to_revision, sql=sql_only)
    if not sql_only:
        with session.reading(session.COMMAND) as connection:
            schema = check(connection)
        if schema is Schema.INCOMPLETE:
            raise IncompleteTablesError(schema.explanation)


def _drop_version_without_tables() -> None:
    """Drop the version table if all tables are missing, because no migration would run.

    Some versions of ``airflow db reset`` drop the tables but not the version table.
    """
    with session.writing(session.COMMAND) as connection:
        if current_revision(connection) is not None and len(_missing_tables(connection)) == len(metadata.tables):
            _version_table().drop(connection)


def drop_tables(connection: Connection) -> None:
    """Drop all tables that exist, and the version table."""
    metadata.drop_all(connection)
    _version_table().drop(connection, checkfirst=True)


def downgrade(
    to_revision: str,
    *,
    sql_only: bool = False,
    printed_to: TextIO | None = None,
    limits: MigrationLimits | None = None,
) -> None:
    """Run the migrations down to ``to_revision``; ``base`` drops all tables.

    :param to_revision: a revision; with ``sql_only`` also ``from:to``, by default from the newest
    :param sql_only: print the SQL instead of executing it
    :param printed_to: where the SQL is printed, by default the standard output
    :param limits: how long the migrations wait for other transactions
    """
    if sql_only and ":" not in to_revision:
        to_revision = f"{head()}:{to_revision}"
    if to_revision == "base" and not sql_only:
        with session.writing(session.COMMAND) as connection:
            if check(connection) is Schema.INCOMPLETE:
                # The migrations would fail on the missing tables.
                drop_tables(connection)
                return
    command.downgrade(alembic_config(printed_to=printed_to, limits=limits), to_revision, sql=sql_only)
