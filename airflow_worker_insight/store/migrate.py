"""Bring the two tables to the version this package needs, and say which version they have.

Tables are only ever made by migrations. Airflow's own shortcut (create everything, then stamp the version) makes later
upgrades skip migrations (apache/airflow#66674).
"""

from __future__ import annotations

from enum import Enum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Column, MetaData, String, Table, inspect, select

from airflow_worker_insight import compat
from airflow_worker_insight.store.tables import HOW_TO_MIGRATE, VERSION_TABLE, attempt, metadata

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

MIGRATIONS = Path(__file__).parent / "migrations"


class Schema(Enum):
    """What the database holds, seen from this package."""

    READY = "ready"
    MISSING = "missing"
    OLD = "old"
    NEWER = "newer"

    @property
    def explanation(self) -> str:
        """One sentence for an operator: what is wrong and what to do."""
        return {
            Schema.READY: "The tables are there and up to date.",
            Schema.MISSING: f"The tables of Airflow Worker Insight do not exist yet: {HOW_TO_MIGRATE}.",
            Schema.OLD: f"The tables of Airflow Worker Insight are of an older version: {HOW_TO_MIGRATE}.",
            Schema.NEWER: (
                "The tables of Airflow Worker Insight were made by a newer version of the package: install that "
                "version here too, or run its `airflow-worker-insight db downgrade`."
            ),
        }[self]


def alembic_config() -> Config:
    """Return Alembic's configuration for our migrations in Airflow's database."""
    config = Config()
    config.set_main_option("script_location", MIGRATIONS.as_posix().replace("%", "%%"))
    config.set_main_option("sqlalchemy.url", compat.database_url().replace("%", "%%"))
    return config


def head() -> str:
    """Return the newest migration of this package."""
    return _revisions()[0]


@cache
def _revisions() -> tuple[str, ...]:
    """Return all migrations, newest first."""
    script = ScriptDirectory.from_config(alembic_config())
    return tuple(revision.revision for revision in script.walk_revisions())


def current(connection: Connection) -> str | None:
    """Return the migration that the database is at, or ``None`` where it has none of ours."""
    versions = Table(VERSION_TABLE, MetaData(schema=metadata.schema), Column("version_num", String(32)))
    if not inspect(connection).has_table(versions.name, schema=versions.schema):
        return None
    revision: str | None = connection.execute(select(versions.c.version_num)).scalar()
    return revision


def check(connection: Connection) -> Schema:
    """Compare the database with this package."""
    revision = current(connection)
    if revision is None or not inspect(connection).has_table(attempt.name, schema=attempt.schema):
        return Schema.MISSING
    if revision == head():
        return Schema.READY
    return Schema.OLD if revision in _revisions() else Schema.NEWER


def upgrade(to_revision: str = "head", *, sql_only: bool = False) -> None:
    """Run the migrations up to ``to_revision``; with ``sql_only`` print their SQL instead."""
    command.upgrade(alembic_config(), to_revision, sql=sql_only)


def downgrade(to_revision: str, *, sql_only: bool = False) -> None:
    """Run the migrations down to ``to_revision`` (``base`` removes the tables); ``sql_only`` prints their SQL.

    :param to_revision: a migration; with ``sql_only`` also ``from:to``, else the SQL is that from the newest on
    """
    if sql_only and ":" not in to_revision:
        to_revision = f"{head()}:{to_revision}"
    command.downgrade(alembic_config(), to_revision, sql=sql_only)
