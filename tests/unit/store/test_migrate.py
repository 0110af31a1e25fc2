"""The tables are made by migrations, on every database and by whichever command."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import insert, inspect, select, text
from sqlalchemy.exc import OperationalError

from airflow_worker_insight import compat
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.domain.states import STATES, Attribution, WorkerAvailability, WorkerState
from airflow_worker_insight.store import migrate, session
from airflow_worker_insight.store.migrate import Schema
from airflow_worker_insight.store.tables import NO_WORKER, VERSION_TABLE, Coded, attempt, metadata, start_slot, worker
from airflow_worker_insight.store.workers.upsert import upsert_worker
from tests.unit.database import (
    NOON,
    OUR_COMMAND,
    Database,
    a_worker,
    at,
    locked,
    on_both,
    on_postgresql,
    record_start,
    run_command,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_mock import MockerFixture

    from tests.support.services import Postgres

TABLES = {table.name for table in metadata.sorted_tables}

airflow_3 = pytest.mark.skipif(not compat.is_airflow_3(), reason="Airflow 2.11 has no DB managers")
runs_managers = pytest.mark.skipif(
    compat.airflow_version() < (3, 2), reason="Airflow finds DB managers of providers from 3.2 on"
)


def schema(database: Database) -> Schema:
    with database.engine.connect() as connection:
        return migrate.check(connection)


def tables(database: Database) -> set[str]:
    return TABLES & set(inspect(database.engine).get_table_names())


def at_version(database: Database, version: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '{version}'"))


@on_both
def test_up_and_down_and_up_again(database: Database) -> None:
    assert (schema(database), tables(database)) == (Schema.READY, TABLES)
    migrate.downgrade("base")
    assert (schema(database), tables(database)) == (Schema.MISSING, set())
    migrate.upgrade()
    migrate.upgrade()
    assert (schema(database), tables(database)) == (Schema.READY, TABLES)
    with database.engine.begin() as connection:
        assert upsert_worker(connection, a_worker(), now=NOON)


BY_START = {f"worker_insight_attempt_{name}" for name in ("start_slot", "worker_ref", "dag_id")}


@on_both
def test_the_migrations_make_the_tables_that_the_code_uses(database: Database) -> None:
    def ours(item: Any, name: str | None, kind: str, *_: Any) -> bool:
        # On PostgreSQL these indexes say NULLS FIRST, which is not in the metadata; the next test looks at it.
        if kind == "index" and name in BY_START:
            return False
        return name in TABLES if kind == "table" else item.table.name in TABLES

    with database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"include_object": ours, "compare_type": True, "version_table": VERSION_TABLE}
        )
        assert compare_metadata(context, metadata) == []
        found = inspect(connection)
        for table in metadata.sorted_tables:
            columns = {column["name"]: column["nullable"] for column in found.get_columns(table.name)}
            assert columns == {column.name: column.nullable for column in table.c}
            primary_key = found.get_pk_constraint(table.name)["constrained_columns"]
            assert set(primary_key) == {column.name for column in table.primary_key}


@on_both
def test_the_indexes_are_in_the_order_of_lists(database: Database) -> None:
    indexes = {index["name"]: index for index in inspect(database.engine).get_indexes(attempt.name)}
    assert indexes.keys() == BY_START
    for index in indexes.values():
        assert index["column_names"][-1] == "start_slot"
        if database.engine.dialect.name == "postgresql":
            assert index["column_sorting"] == {"start_slot": ("nulls_first",)}


@on_both
def test_the_front_of_the_primary_key_finds_all_workers_of_a_try(database: Database) -> None:
    primary_key = inspect(database.engine).get_pk_constraint(attempt.name)["constrained_columns"]
    assert primary_key == ["run_key", "task_key", "try_number", "worker_ref"]


def test_airflows_own_tables_stay(database: Database) -> None:
    before = set(inspect(database.engine).get_table_names())
    migrate.downgrade("base")
    assert before > TABLES
    assert set(inspect(database.engine).get_table_names()) == before - TABLES
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()


@on_both
def test_nothing_was_ever_made(database: Database) -> None:
    with database.engine.begin() as connection:
        for name in (*TABLES, VERSION_TABLE):
            connection.execute(text(f"DROP TABLE {name}"))
    assert schema(database) is Schema.MISSING


def drop(database: Database, *names: str) -> None:
    with database.engine.begin() as connection:
        for name in names:
            connection.execute(text(f"DROP TABLE {name}"))


@on_both
def test_a_version_without_any_table_is_missing_and_all_are_made_again(database: Database) -> None:
    """Airflow's `db reset` has left the version where the tables were in a schema of their own."""
    drop(database, *TABLES)
    assert schema(database) is Schema.MISSING
    migrate.upgrade()
    assert (schema(database), tables(database)) == (Schema.READY, TABLES)


@on_postgresql
def test_an_open_transaction_does_not_keep_the_first_tables_from_being_made(database: Database) -> None:
    """Airflow's `db migrate` has one itself, and with psycopg 3 it keeps the snapshot of its last statement."""
    migrate.downgrade("base")
    dag = metadata_database.dag_table()
    with database.engine.connect() as idle:
        idle.execute(select(dag.c.dag_id).where(dag.c.dag_id == "none")).all()
        migrate.upgrade()
    assert schema(database) is Schema.READY


@pytest.mark.parametrize("name", sorted(TABLES))
def test_no_table_can_be_missing_unnoticed(database: Database, name: str) -> None:
    drop(database, name)
    assert schema(database) is Schema.INCOMPLETE
    with pytest.raises(migrate.IncompleteTablesError, match="restore them from a backup"):
        migrate.upgrade()
    migrate.downgrade("base")
    assert (schema(database), tables(database)) == (Schema.MISSING, set())
    migrate.upgrade()
    assert (schema(database), tables(database)) == (Schema.READY, TABLES)


@pytest.mark.parametrize("name", [attempt.name, worker.name])
def test_no_table_of_an_earlier_package_can_be_missing_unnoticed(database: Database, name: str) -> None:
    migrate.downgrade("0001")
    drop(database, name)
    assert schema(database) is Schema.INCOMPLETE


@on_both
def test_the_tables_of_a_later_package(database: Database) -> None:
    at_version(database, "9999")
    assert schema(database) is Schema.NEWER


def test_the_tables_of_an_earlier_package(database: Database) -> None:
    migrate.downgrade("0001")
    assert schema(database) is Schema.OLD


@pytest.mark.parametrize("found", [Schema.MISSING, Schema.OLD])
def test_the_explanation_says_how_to_migrate(found: Schema) -> None:
    assert "`airflow db migrate`" in found.explanation
    assert "`airflow-worker-insight db migrate`" in found.explanation


def test_an_old_package_does_not_say_to_migrate() -> None:
    assert "newer" in Schema.NEWER.explanation
    assert "db migrate" not in Schema.NEWER.explanation


# --- from one version to another, with rows in the tables -------------------------------------------------------------

SLOTS = {
    "at-its-start": at(600),
    "at-its-end": at(599.9999996),
    "in-its-middle": at(100.5),
    "never-started": None,
}


def a_try(task_id: str) -> TryKey:
    return TryKey("etl", "run-1", task_id, -1, 1)


def try_row(key: TryKey, ref: int, **others: Any) -> dict[str, Any]:
    """Return a row of the attempt table as it was at 0001."""
    names = {name: getattr(key, name) for name in ("dag_id", "run_id", "task_id", "map_index", "try_number")}
    known = {"process_count": 1, "ordinal": 0, "state": "success", "attribution": "reported", "started_at": NOON}
    return {"run_key": key.run_key, "task_key": key.task_key, "worker_ref": ref, **names, **known, **others}


def worker_row(row_id: int, worker_id: str, **others: Any) -> dict[str, Any]:
    """Return a row of the worker table as it was at 0001."""
    record = a_worker(worker_id, **others)
    times = {"registered_at": NOON, "last_seen_at": NOON}
    return {"id": row_id, "worker_id": worker_id, "fingerprint": "0" * 32, **times, **record.description()}


def ids(database: Database) -> set[tuple[int, str]]:
    """Return the workers' rows, by the columns that every version has."""
    with database.engine.connect() as connection:
        return {(row.id, row.worker_id) for row in connection.execute(select(worker.c.id, worker.c.worker_id))}


def tries_by_worker(database: Database) -> dict[str, str | None]:
    """Return the ID of each try's worker, by the columns that every version has."""
    statement = select(attempt.c.task_id, worker.c.worker_id).select_from(
        attempt.outerjoin(worker, worker.c.id == attempt.c.worker_ref)
    )
    with database.engine.connect() as connection:
        return {row.task_id: row.worker_id for row in connection.execute(statement)}


@on_both
def test_what_was_recorded_before_the_fleet_was_known_stays(database: Database) -> None:
    migrate.downgrade("0001")
    with database.engine.begin() as connection:
        for row in (worker_row(1, "celery-1"), worker_row(2, "host-1f", host_only=True, pid=None)):
            connection.execute(insert(worker).values(row))
        for task_id, started_at in SLOTS.items():
            connection.execute(insert(attempt).values(try_row(a_try(task_id), 1, started_at=started_at)))
        connection.execute(insert(attempt).values(try_row(a_try("inferred"), 2, attribution="inferred")))
        connection.execute(insert(attempt).values(try_row(a_try("unknown"), NO_WORKER, attribution="unknown")))

    migrate.upgrade()

    assert schema(database) is Schema.READY
    assert ids(database) == {(1, "celery-1"), (2, "host-1f")}
    first, host = database.workers()
    assert (first["reported_id"], first["availability"], first["state"]) == ("celery-1", "available", None)
    assert (first["labels"], first["started_at"]) == ({"zone": "a"}, at(-3600))
    assert host["reported_id"] is None
    rows = {row["task_id"]: row for row in database.attempts()}
    assert {name: rows[name]["start_slot"] for name in SLOTS} == {
        name: start_slot(start) for name, start in SLOTS.items()
    }
    assert {row["load"] for row in rows.values()} == {None}
    assert {name: row["worker_id"] for name, row in rows.items()} == {
        **dict.fromkeys(SLOTS, "celery-1"),
        "inferred": "host-1f",
        "unknown": None,
    }

    # The worker has been running all the while: what it reports next is still its own.
    with database.engine.begin() as connection:
        known = a_worker("celery-1", engine_name="w1@host-1")
        record_start(connection, a_try("next"), known, try_started_at=NOON, state="running", now=NOON)
    assert [(row["id"], row["engine_name"]) for row in database.workers()] == [(1, "w1@host-1"), (2, None)]
    assert tries_by_worker(database)["next"] == "celery-1"


@on_both
def test_going_back_to_before_the_fleet_was_known_loses_no_try_and_no_worker_of_one(database: Database) -> None:
    """The engine made these workers known first, under IDs of its own."""
    by_engine = {"state": "online", "availability": "quarantined", "engine_name": "w@host-1"}
    with database.engine.begin() as connection:
        for row in (
            {**worker_row(1, "fleet-1"), "reported_id": "celery-1"},
            {**worker_row(2, "fleet-2"), "reported_id": None},
            {**worker_row(3, "fleet-3"), "reported_id": None},
        ):
            connection.execute(insert(worker).values({**row, **by_engine}))
        connection.execute(insert(worker).values(worker_row(4, "host-1f", host_only=True, pid=None)))
        for task_id, ref in {"reported": 1, "inferred": 2, "by-host": 4, "unknown": NO_WORKER}.items():
            connection.execute(insert(attempt).values(try_row(a_try(task_id), ref)))

    migrate.downgrade("0001")

    assert ids(database) == {(1, "celery-1"), (2, "fleet-2"), (4, "host-1f")}
    workers = {"reported": "celery-1", "inferred": "fleet-2", "by-host": "host-1f", "unknown": None}
    assert tries_by_worker(database) == workers
    assert tables(database) == {attempt.name, worker.name}
    assert {index["name"] for index in inspect(database.engine).get_indexes(attempt.name)} == {
        "worker_insight_attempt_worker_ref",
        "worker_insight_attempt_started_at",
    }

    migrate.upgrade()
    assert schema(database) is Schema.READY
    assert tries_by_worker(database) == workers


# --- without a connection --------------------------------------------------------------------------------------------

URLS = {
    "mysql": "mysql+mysqldb://airflow:p%40ss%25word@db/airflow",
    "postgresql": "postgresql+psycopg2://airflow:p%40ss%25word@db/airflow",
    "sqlite": "sqlite:////nowhere/airflow.db",
}


@pytest.fixture
def url(request: pytest.FixtureRequest, mocker: MockerFixture) -> str:
    """Have Airflow's database at a URL that nothing answers at."""
    from airflow import settings

    mocker.patch.object(settings, "SQL_ALCHEMY_CONN", URLS[request.param])
    return str(request.param)


@pytest.mark.parametrize("url", URLS, indirect=True)
def test_the_sql_can_be_printed_for_every_database(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    migrate.upgrade(sql_only=True)
    sql = capsys.readouterr().out
    for name in TABLES:
        assert f"CREATE TABLE {name} " in sql
    for index in (index for table in metadata.sorted_tables for index in table.indexes):
        assert re.search(rf"CREATE (UNIQUE )?INDEX (CONCURRENTLY )?{index.name} ON ", sql)
    assert f"INSERT INTO {VERSION_TABLE} (version_num) VALUES ('0001')" in sql
    for version in ("0002", "0003"):
        assert f"UPDATE {VERSION_TABLE} SET version_num='{version}'" in sql
    if url == "mysql":
        times = re.findall(r"(?m)^\s*\w+_at ([A-Z]+(?:\(\d\))?)", sql)
        assert set(times) == {"DATETIME(6)"}


@pytest.mark.parametrize("url", URLS, indirect=True)
def test_the_sql_of_going_back_can_be_printed_too(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    migrate.downgrade("base", sql_only=True)
    dropped = re.findall(r"DROP TABLE (\w+)", capsys.readouterr().out)
    assert set(dropped) >= TABLES, url
    migrate.downgrade(f"{migrate.head()}:base", sql_only=True)
    assert re.findall(r"DROP TABLE (\w+)", capsys.readouterr().out) == dropped


# --- by Airflow ------------------------------------------------------------------------------------------------------


@runs_managers
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_airflow_db_migrate_runs_the_migrations(database: Database) -> None:
    """The fixture has run nothing else on these versions; ``create_all`` would leave no version or skip upgrades."""
    with database.engine.connect() as connection:
        assert migrate.current_revision(connection) == migrate.head()
    migrate.downgrade("base")
    run_command(database.url, "-m", "airflow", "db", "migrate")
    assert schema(database) is Schema.READY
    run_command(database.url, "-m", "airflow", "db", "check-migrations", "--migration-wait-timeout", "1")


@pytest.fixture
def manager(database: Database) -> Iterator[Any]:
    from airflow.utils.session import create_session

    from airflow_worker_insight.store.db_manager import WorkerInsightDBManager

    assert schema(database) is Schema.READY
    with create_session() as airflows:
        yield WorkerInsightDBManager(airflows)


@airflow_3
def test_the_manager_knows_the_version(database: Database, manager: Any) -> None:
    assert manager.check_migration()
    at_version(database, "9999")
    assert not manager.check_migration()


@airflow_3
@pytest.mark.parametrize("make", ["initdb", "upgradedb", "create_db_from_orm"])
def test_the_manager_makes_the_tables_by_migrations(database: Database, manager: Any, make: str) -> None:
    migrate.downgrade("base")
    getattr(manager, make)()
    assert schema(database) is Schema.READY
    getattr(manager, make)()
    assert schema(database) is Schema.READY


@airflow_3
def test_the_manager_takes_what_later_versions_of_airflow_pass(database: Database, manager: Any) -> None:
    manager.downgrade("base")
    assert schema(database) is Schema.MISSING
    manager.initdb(use_migration_files=True)
    manager.upgradedb(use_migration_files=True)
    assert schema(database) is Schema.READY


@airflow_3
def test_the_manager_prints_sql_and_changes_nothing(
    database: Database, manager: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    manager.upgradedb(show_sql_only=True)
    assert f"CREATE TABLE {attempt.name}" in capsys.readouterr().out
    manager.downgrade("base", from_revision=migrate.head(), show_sql_only=True)
    assert f"DROP TABLE {attempt.name}" in capsys.readouterr().out
    assert schema(database) is Schema.READY


@airflow_3
def test_airflow_db_reset_drops_the_tables(database: Database, manager: Any) -> None:
    with database.engine.begin() as connection:
        manager.drop_tables(connection)
    assert schema(database) is Schema.MISSING
    assert tables(database) == set()
    manager.initdb()
    assert schema(database) is Schema.READY


@airflow_3
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_the_manager_waits_briefly_for_locks(database: Database, manager: Any) -> None:
    """``airflow db check-migrations`` asks again; ``db reset`` would keep recording waiting behind itself."""
    manager.bounds = replace(session.COMMAND, lock=0.2)
    with locked(database, VERSION_TABLE):
        assert not manager.check_migration()
        with pytest.raises(OperationalError, match="lock timeout"):
            manager.get_current_revision()
    assert manager.check_migration()
    assert manager.get_current_revision() == migrate.head()
    manager.session.rollback()
    for table in (worker.name, VERSION_TABLE):
        with (
            locked(database, table),
            pytest.raises(OperationalError, match="lock timeout"),
            database.engine.begin() as connection,
        ):
            manager.drop_tables(connection)
    assert schema(database) is Schema.READY
    with database.engine.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '7s'"))
        manager.drop_tables(connection)
        assert connection.execute(text("SHOW lock_timeout")).scalar_one() == "7s"


@airflow_3
def test_a_missing_table_is_no_finished_migration(database: Database, manager: Any) -> None:
    drop(database, "worker_insight_change")
    assert not manager.check_migration()


@pytest.fixture(params=[None, "elsewhere"], ids=["default-schema", "own-schema"])
def empty(request: pytest.FixtureRequest, postgres: Postgres) -> Iterator[Empty]:
    name = postgres.create_database()
    if request.param:
        postgres.execute(f"CREATE SCHEMA {request.param}", database=name)
    yield Empty(postgres, name, request.param)
    postgres.drop_database(name)


@dataclass(frozen=True)
class Empty:
    """A PostgreSQL database with no tables, and the schema in which Airflow is to make them."""

    server: Postgres
    name: str
    schema: str | None

    def run(self, *arguments: str, expect: int = 0) -> str:
        env = {"AIRFLOW__DATABASE__SQL_ALCHEMY_SCHEMA": self.schema} if self.schema else {}
        return run_command(self.server.url(self.name), *arguments, expect=expect, **env)

    def airflow(self, *arguments: str, expect: int = 0) -> str:
        return self.run("-m", "airflow", *arguments, expect=expect)

    def ours(self, *arguments: str, expect: int = 0) -> str:
        return self.run("-c", OUR_COMMAND, *arguments, expect=expect)

    def tables(self) -> set[str]:
        """Return our tables, and that of their version, each with its schema."""
        found = self.server.execute(
            "SELECT table_schema || '.' || table_name AS name FROM information_schema.tables "
            "WHERE table_name LIKE '%%worker_insight%%'",
            database=self.name,
        )
        return {row["name"] for row in found}

    @property
    def all_tables(self) -> set[str]:
        return {f"{self.schema or 'public'}.{name}" for name in (*TABLES, VERSION_TABLE)}


@runs_managers
def test_airflows_commands_work_in_whichever_schema_the_tables_are(empty: Empty) -> None:
    check = ("db", "check-migrations", "--migration-wait-timeout", "1")
    empty.airflow("db", "migrate")
    assert empty.tables() == empty.all_tables
    empty.airflow(*check)
    assert "up to date" in empty.ours("db", "check")

    empty.airflow("db", "reset", "--yes", "--skip-init")
    assert empty.tables() == set()
    assert "do not exist yet" in empty.ours("db", "check", expect=1)

    empty.airflow("db", "migrate")
    assert empty.tables() == empty.all_tables
    empty.airflow(*check)

    empty.ours("db", "downgrade", "--to-revision", "0001", "--yes")
    empty.airflow(*check, expect=1)
    empty.airflow("db", "migrate")
    empty.airflow(*check)


def test_our_own_command_works_in_whichever_schema_the_tables_are(empty: Empty) -> None:
    """What is done before Airflow 3.2, whose `db migrate` knows nothing of our tables."""
    empty.airflow("db", "migrate")
    assert "up to date" in empty.ours("db", "migrate")
    assert empty.tables() == empty.all_tables
    empty.ours("db", "check")
    empty.ours("db", "downgrade", "--to-revision", "base", "--yes")
    assert empty.tables() <= {f"{empty.schema or 'public'}.{VERSION_TABLE}"}
    empty.ours("db", "check", expect=1)
    assert "up to date" in empty.ours("db", "migrate")
    assert empty.tables() == empty.all_tables


@airflow_3
def test_the_manager_passes_airflows_own_check() -> None:
    from airflow.utils.db_manager import RunDBManager

    from airflow_worker_insight.store.db_manager import WorkerInsightDBManager

    manager: Any = WorkerInsightDBManager
    RunDBManager._validate(manager)


@airflow_3
def test_every_release_knows_its_migration() -> None:
    from airflow_worker_insight.store.db_manager import WorkerInsightDBManager

    assert list(WorkerInsightDBManager.revision_heads_map.values())[-1] == migrate.head()


# --- codes -----------------------------------------------------------------------------------------------------------


def test_every_state_of_airflow_has_a_code_and_keeps_it() -> None:
    assert metadata_database.task_instance_states() <= set(STATES)
    # What is stored cannot change: new words go to the end.
    assert STATES[:6] == ("running", "success", "failed", "skipped", "upstream_failed", "removed")
    assert Attribution.values() == ("reported", "inferred", "backfilled", "not_on_a_worker", "never_started", "unknown")
    assert WorkerState.values() == ("online", "unresponsive", "offline", "lost")
    assert WorkerAvailability.values() == ("available", "draining", "quarantined")


@pytest.mark.parametrize("words", [STATES, Attribution.values(), WorkerState.values(), WorkerAvailability.values()])
def test_a_code_gives_its_word_back(words: tuple[str, ...]) -> None:
    coded = Coded(words)
    for word in (*words, None):
        code = coded.process_bind_param(word, None)
        assert coded.process_result_value(code, None) == word


def test_a_state_of_a_later_airflow_and_a_code_of_a_later_package_are_no_error() -> None:
    coded = Coded(STATES)
    assert coded.process_bind_param("paused", None) is None
    assert [coded.process_result_value(code, None) for code in (0, -1, 99)] == [None] * 3
