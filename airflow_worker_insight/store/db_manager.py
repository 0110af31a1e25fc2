"""Database manager: our tables in Airflow 3's own ``airflow db`` commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.store import migrate, session
from airflow_worker_insight.store.tables import VERSION_TABLE, metadata

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy.engine import Connection


class WorkerInsightDBManager(metadata_database.db_manager_base()):  # type: ignore[misc]
    """Database manager that ``airflow db migrate`` and ``airflow db reset`` call."""

    metadata = metadata
    version_table_name = VERSION_TABLE
    migration_dir = migrate.MIGRATIONS.as_posix()
    alembic_file = ""
    supports_table_dropping = True
    bounds = session.COMMAND
    """Time limits of statements on a connection of Airflow's."""
    revision_heads_map: dict[str, str] = {"0.1.0": "0005"}  # noqa: RUF012  (Airflow's own annotation)

    def get_alembic_config(self) -> Config:
        """Return :func:`.migrate.alembic_config`, because there is no ``alembic.ini``."""
        return migrate.alembic_config()

    def get_current_revision(self) -> str | None:
        """Return the revision of our tables, or ``None``.

        Airflow's own method reads the version table in the default schema, but ours may be in another.
        """
        with session.savepoint(self.session.connection(), self.bounds) as connection:
            return migrate.current_revision(connection)

    def check_migration(self) -> bool:
        """Return whether all tables exist and are up to date.

        Airflow repeats the check while they are not. Locked tables count as not up to date.
        """
        try:
            with session.savepoint(self.session.connection(), self.bounds) as connection:
                return migrate.check(connection) is migrate.Schema.READY
        except Exception as error:
            if not session.is_timeout(error):
                raise
            return False

    def drop_tables(self, connection: Connection) -> None:
        """Drop our tables and their version table, whichever schema they are in."""
        with session.bounded(connection, self.bounds):
            migrate.drop_tables(connection)

    def create_db_from_orm(self) -> None:
        """Run the migrations.

        :mod:`airflow_worker_insight.store.migrate` explains why this never uses ``create_all``.
        """
        self._release_locks()
        migrate.upgrade()

    def initdb(self, use_migration_files: bool = False) -> None:  # noqa: ARG002 - Airflow's signature
        """Create the tables, or bring them up to date."""
        self.create_db_from_orm()

    def upgradedb(
        self,
        to_revision: str | None = None,
        from_revision: str | None = None,  # noqa: ARG002 - Airflow's signature
        show_sql_only: bool = False,
        use_migration_files: bool = False,  # noqa: ARG002 - Airflow's signature
    ) -> None:
        """Run the migrations up to ``to_revision``, all of them by default."""
        self._release_locks()
        migrate.upgrade(to_revision or "head", sql_only=show_sql_only)

    def downgrade(self, to_revision: str, from_revision: str | None = None, show_sql_only: bool = False) -> None:
        """Run the migrations down to ``to_revision``."""
        self._release_locks()
        range_ = f"{from_revision}:{to_revision}" if from_revision else to_revision
        migrate.downgrade(range_, sql_only=show_sql_only)

    def _release_locks(self) -> None:
        # On MySQL the open read transaction of Airflow's session holds metadata locks that block our DDL.
        release_locks: Any = getattr(self, "_release_metadata_locks_if_needed", None)
        if release_locks is not None:
            release_locks()
