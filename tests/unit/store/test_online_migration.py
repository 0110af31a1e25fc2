"""Migrations of full tables: interrupted and run again, and beside others who use the tables."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, inspect, select, text

from airflow_worker_insight.capture import claim, reconcile
from airflow_worker_insight.capture.claim import Claimer
from airflow_worker_insight.store import migrate, online_migration
from airflow_worker_insight.store.migrate import Schema
from airflow_worker_insight.store.online_migration import MigrationLimits
from airflow_worker_insight.store.session import Bounds, CircuitBreaker, is_timeout
from airflow_worker_insight.store.tables import attempt, metadata, start_slot, worker
from tests.support.processes import wait_for
from tests.unit.bounds import ANY_MACHINE, ANY_MACHINE_EXPLAINS
from tests.unit.capture.reports import a_report, a_running_try, airflow_3, push, stored_xcoms
from tests.unit.database import NOON, STARTED, Database, on_both
from tests.unit.store.test_migrate import a_try, schema, try_row, worker_row

if TYPE_CHECKING:
    from pytest_mock import MockerFixture

ROWS = 25


class InterruptedHereError(Exception):
    """What the tests stop a migration with."""


def fill_at_0001(database: Database) -> None:
    """Go back to the first tables and fill them."""
    migrate.downgrade("0001")
    with database.engine.begin() as connection:
        connection.execute(insert(worker), [worker_row(number, f"celery-{number}") for number in range(1, ROWS + 1)])
        connection.execute(insert(attempt), [try_row(a_try(f"task-{number}"), number) for number in range(1, ROWS + 1)])


def assert_complete(database: Database) -> None:
    """All rows have what the migrations fill in, and all indexes are there."""
    assert schema(database) is Schema.READY
    assert {row["start_slot"] for row in database.attempts()} == {start_slot(NOON)}
    assert {row["reported_id"] for row in database.workers()} == {f"celery-{number}" for number in range(1, ROWS + 1)}
    found = inspect(database.engine)
    for table in metadata.sorted_tables:
        assert {index["name"] for index in found.get_indexes(table.name)} == {index.name for index in table.indexes}


@on_both
@pytest.mark.parametrize("kind", ["upgrade", "downgrade"])
def test_a_migration_that_is_interrupted_at_any_step_goes_on_when_it_is_run_again(
    database: Database, mocker: MockerFixture, kind: str
) -> None:
    fill_at_0001(database)
    if kind == "downgrade":
        migrate.upgrade()
    original, calls, stop_at = online_migration.run_step, 0, 0

    def interrupted(action: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            # What the step itself has done is there, but nothing after it.
            original(action)
            raise InterruptedHereError
        return original(action)

    mocker.patch.object(online_migration, "run_step", interrupted)
    limits = MigrationLimits(batch=10)
    was_interrupted = True
    while was_interrupted:
        calls, stop_at = 0, stop_at + 1
        try:
            if kind == "upgrade":
                migrate.upgrade(limits=limits)
            else:
                migrate.downgrade("0001", limits=limits)
        except InterruptedHereError:
            pass
        else:
            was_interrupted = False
    assert stop_at > 5
    if kind == "downgrade":
        assert "start_slot" not in {column["name"] for column in inspect(database.engine).get_columns(attempt.name)}
        calls, stop_at = 0, 0
        migrate.upgrade()
    assert_complete(database)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_an_index_that_was_interrupted_is_made_anew(database: Database) -> None:
    fill_at_0001(database)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ALTER TABLE worker_insight_worker ADD COLUMN reported_id varchar(64)"))
        connection.execute(text("UPDATE worker_insight_worker SET reported_id = 'twice' WHERE id < 3"))
        with pytest.raises(Exception, match="twice"):
            # PostgreSQL leaves an index that it never uses.
            connection.execute(
                text(
                    "CREATE UNIQUE INDEX CONCURRENTLY worker_insight_worker_reported_id "
                    "ON worker_insight_worker (reported_id)"
                )
            )
        connection.execute(text("UPDATE worker_insight_worker SET reported_id = NULL"))
    migrate.upgrade()
    assert_complete(database)
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM pg_index WHERE NOT indisvalid")).scalar_one() == 0


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_no_transaction_queues_behind_a_migration_that_waits(database: Database, mocker: MockerFixture) -> None:
    """A transaction that reads a table and stays open is in the way of each ALTER TABLE."""
    fill_at_0001(database)
    has_waited = Event()
    mocker.patch.object(online_migration, "is_timeout", lambda error: has_waited.set() or is_timeout(error))
    with database.engine.connect() as reader, database.engine.connect() as writer:
        with reader.begin():
            reader.execute(select(text("1")).select_from(attempt).limit(1))
            reader.execute(select(text("1")).select_from(worker).limit(1))
            migrating = Thread(target=migrate.upgrade, daemon=True)
            migrating.start()
            assert has_waited.wait(60)
            # More often than it tries: one of these comes while it waits.
            for number in range(ROWS + 1, 3 * ROWS):
                with writer.begin():
                    writer.execute(text("SET LOCAL lock_timeout = '20s'"))
                    writer.execute(insert(attempt).values(try_row(a_try(f"task-{number}"), 1)))
            assert migrating.is_alive()
        migrating.join(60)
    assert not migrating.is_alive()
    assert_complete(database)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_lock_that_is_held_for_long_is_explained(database: Database) -> None:
    fill_at_0001(database)
    with database.engine.connect() as reader, reader.begin():
        reader.execute(select(text("1")).select_from(worker).limit(1))
        with pytest.raises(online_migration.TableInUseError, match="run the same command again"):
            migrate.upgrade(limits=MigrationLimits(give_up_after=timedelta(0)))
    migrate.upgrade()
    assert_complete(database)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_an_index_does_not_wait_for_ever_for_a_transaction_that_is_open(database: Database) -> None:
    """As that of ``airflow db migrate`` is with psycopg 3, which waits for the migration itself."""
    limits = MigrationLimits(index_bounds=Bounds(lock=0.3, statement=None))
    fill_at_0001(database)
    with database.engine.connect() as reader:
        # A snapshot, and no lock on any of our tables.
        reader.execution_options(isolation_level="REPEATABLE READ").execute(text("SELECT 1")).all()
        with pytest.raises(online_migration.TableInUseError, match="airflow-worker-insight db migrate"):
            migrate.upgrade(limits=limits)
    migrate.upgrade()
    assert schema(database) is Schema.READY
    with database.engine.connect() as connection:
        assert connection.execute(text("SHOW lock_timeout")).scalar() == "0"


# --- while reports arrive --------------------------------------------------------------------------------------------

MANY, BATCH = 3_000, 200
REPORTERS, REPORTS = 3, 1_000


@airflow_3
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_reports_that_arrive_during_an_upgrade_are_recorded_or_wait(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    # Each report tries: a pause would keep most of them away from the tables that change.
    claimer = Claimer(breaker=CircuitBreaker(0.0, trial=0.0), bounds=ANY_MACHINE, explain_bounds=ANY_MACHINE_EXPLAINS)
    migrate.downgrade("0001")
    with database.engine.begin() as connection:
        connection.execute(insert(worker), [worker_row(number, f"celery-{number}") for number in range(1, 51)])
        connection.execute(text("SELECT setval(pg_get_serial_sequence('worker_insight_worker', 'id'), 50)"))
        rows = [try_row(a_try(f"task-{number}"), number % 50 + 1) for number in range(MANY)]
        connection.execute(insert(attempt), rows)
    running = [a_running_try(database, f"reports-{number}") for number in range(REPORTS)]
    left, is_over = iter(running), Event()
    reported: list[str] = []

    def report() -> None:
        while not is_over.is_set() and (one := next(left, None)) is not None:
            name = f"celery-{len(reported) % 60 + 1}"
            push(one, a_report(one.try_id, worker_id=name, name=f"{name}@host-1", engine_name=f"{name}@host-1"))
            reported.append(one.key.task_id)

    claim.install(claimer)
    try:
        with ThreadPoolExecutor(REPORTERS) as pool:
            reporting = [pool.submit(report) for _ in range(REPORTERS)]
            wait_for(lambda: len(reported) >= REPORTERS, 60, "the first reports")
            try:
                migrate.upgrade(limits=MigrationLimits(batch=BATCH))
                during = len(reported)
                wait_for(lambda: len(reported) >= min(REPORTS, during + 3 * REPORTERS), 60, "reports after it")
            finally:
                is_over.set()
            for one in reporting:
                one.result()
    finally:
        claim.uninstall()
    assert during > REPORTERS, "none arrived meanwhile"
    waiting = [task_id for task_id, _, _ in stored_xcoms(database)]
    recorded = [row["task_id"] for row in database.attempts()]
    assert sorted([*waiting, *recorded]) == sorted([*reported, *(f"task-{number}" for number in range(MANY))])
    assert waiting, "no report met tables of an older version"
    assert len(recorded) > MANY, "no report was recorded at once"

    assert reconcile.claim_all_stored_reports() == len(waiting)
    assert stored_xcoms(database) == []
    assert schema(database) is Schema.READY
    rows = database.attempts()
    assert sorted(row["task_id"] for row in rows) == sorted([*reported, *(f"task-{number}" for number in range(MANY))])
    assert {row["start_slot"] for row in rows} == {start_slot(NOON), start_slot(STARTED)}
