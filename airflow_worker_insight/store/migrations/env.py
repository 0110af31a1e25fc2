"""Runs our migrations in Airflow's database, on a version table of our own."""

from __future__ import annotations

from alembic import context

from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.store.tables import VERSION_TABLE, metadata


def run_migrations_offline() -> None:
    """Print the migrations' SQL."""
    context.configure(
        url=metadata_database.database_url(),
        target_metadata=metadata,
        literal_binds=True,
        version_table=VERSION_TABLE,
        version_table_schema=metadata.schema,
    )
    with context.begin_transaction():
        context.run_migrations()


def run_migrations_online() -> None:
    """Run the migrations on a connection of our own."""
    with metadata_database.engine().connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=metadata,
            transaction_per_migration=True,
            render_as_batch=True,
            version_table=VERSION_TABLE,
            version_table_schema=metadata.schema,
        )
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    run_migrations_offline()
else:
    run_migrations_online()
