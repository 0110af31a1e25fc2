"""Names come again in Airflow: a deleted Dag run under its ID, a mapped task instance under its index."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import delete, insert, select, update

from airflow_worker_insight import compat
from airflow_worker_insight.capture.reconcile import Outcome, reconcile_runs
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.attempts import StartedTry
from airflow_worker_insight.domain.filters import AllDags, AttemptFilter
from airflow_worker_insight.domain.keys import TryKey, instance_key_by_run
from airflow_worker_insight.store import migrate, placements
from airflow_worker_insight.store.airflow_history import find_run
from airflow_worker_insight.store.attempts import queries as attempt_queries
from airflow_worker_insight.store.attempts import start
from airflow_worker_insight.store.placements import Placement
from airflow_worker_insight.store.tables import attempt
from airflow_worker_insight.store.workers.upsert import upsert_worker
from tests.unit.database import NOON, Database, a_worker, add_run, add_try, at, change_try, on_both, record_start

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.attempts import Attempt, DagRunRef

airflow_3 = pytest.mark.skipif(not compat.is_airflow_3(), reason="task instances of 2.11 have no ID")

NIGHTLY = {"dag_id": "etl", "run_id": "nightly", "task_id": "load", "map_index": -1}
AGAIN = 3600
"""Seconds after which the Dag run is made again."""


def panel(connection: Connection, **names: object) -> list[Attempt]:
    return attempt_queries.task_instance_attempts(connection, **{**NIGHTLY, **names})  # type: ignore[arg-type]


def listed(connection: Connection, **filters: object) -> list[Attempt]:
    found, _ = attempt_queries.list_attempts(
        connection,
        AttemptFilter(**filters),  # type: ignore[arg-type]
        dag_ids=AllDags(),
        limit=50,
        offset=0,
    )
    return found


def told(attempts: list[Attempt]) -> list[tuple[int, str | None, list[str], str | None]]:
    """Return number, state, workers and what is deleted of each try."""
    return [(one.try_number, one.state, [by.worker_id for by in one.workers], one.deleted) for one in attempts]


def a_run_that_failed_twice(connection: Connection, *, last_state: str = "failed") -> DagRunRef:
    """Store a Dag run whose only task failed on w1 and was tried again there."""
    run = add_run(connection, run_id="nightly", state="failed")
    ended_at = at(90) if last_state == "failed" else None
    second = add_try(connection, run, "load", try_number=2, state=last_state, started_at=at(60), ended_at=ended_at)
    first = add_try(connection, run, "load", try_number=1, state="failed", history=True)
    for key, began in ((first, at(10)), (second, at(60))):
        record_start(connection, key, a_worker("w1"), try_started_at=began, state="running", now=began)
    return run


def delete_run(connection: Connection, run: DagRunRef) -> None:
    """Delete a Dag run as Airflow does: with all that it has of it."""
    for table in (
        metadata_database.task_instance_history_table(),
        metadata_database.task_instance_table(),
        metadata_database.dag_run_table(),
    ):
        connection.execute(delete(table).where(table.c.dag_id == run.dag_id, table.c.run_id == run.run_id))


def made_again(connection: Connection, *, state: str = "running", try_number: int = 1) -> tuple[DagRunRef, TryKey]:
    """Store a Dag run of the same name, whose task has begun."""
    run = add_run(connection, run_id="nightly", state="running", started_at=at(AGAIN), ended_at=None)
    key = add_try(
        connection,
        run,
        "load",
        try_number=try_number,
        state=state,
        started_at=at(AGAIN + 5),
        ended_at=None,
        hostname="host-2",
        try_id=uuid.uuid4(),
    )
    return run, key


@on_both
def test_a_dag_run_that_is_made_again_has_its_own_tries_only(database: Database) -> None:
    with database.engine.begin() as connection:
        before = a_run_that_failed_twice(connection)
        reconcile_runs(connection, [before])
        delete_run(connection, before)
        run, key = made_again(connection)
        began = at(AGAIN + 5)
        record_start(connection, key, a_worker("w2"), try_started_at=began, state="running", now=began)

        assert told(panel(connection)) == [(1, "running", ["w2"], None)]
        assert told(listed(connection, run_id="nightly")) == [
            (1, "running", ["w2"], None),
            (2, "failed", ["w1"], "run"),
            (1, "failed", ["w1"], "run"),
        ]
        assert told(listed(connection, worker_id="w1", state="failed")) == [
            (2, "failed", ["w1"], "run"),
            (1, "failed", ["w1"], "run"),
        ]
        change_try(connection, key, state="success", end_date=at(AGAIN + 9))
        assert reconcile_runs(connection, [run]) == Outcome(closed=1)
        assert told(panel(connection)) == [(1, "success", ["w2"], None)]
        assert [one.ended_at for one in listed(connection, run_id="nightly")] == [at(AGAIN + 9), at(90), at(20)]


@on_both
def test_a_try_that_dies_before_it_reports_has_nothing_of_a_deleted_one(database: Database) -> None:
    with database.engine.begin() as connection:
        before = a_run_that_failed_twice(connection)
        reconcile_runs(connection, [before])
        delete_run(connection, before)
        run, key = made_again(connection, state="failed")
        change_try(connection, key, end_date=at(AGAIN + 6))

        (one,) = panel(connection)
        assert (one.attribution, [by.hostname for by in one.workers]) == ("inferred", ["host-2"])
        assert reconcile_runs(connection, [run]).added == 1
        (one,) = panel(connection)
        assert (one.attribution, [by.hostname for by in one.workers]) == ("inferred", ["host-2"])
        assert [one.attribution for one in listed(connection, run_id="nightly")] == ["inferred", "reported", "reported"]


@on_both
def test_what_ran_when_its_run_was_deleted_is_not_what_runs_now(database: Database) -> None:
    with database.engine.begin() as connection:
        before = a_run_that_failed_twice(connection, last_state="running")
        delete_run(connection, before)
        assert told(panel(connection)) == [(2, None, ["w1"], "run"), (1, None, ["w1"], "run")]
        made_again(connection, state="success")

        assert told(listed(connection, worker_id="w1")) == [(2, None, ["w1"], "run"), (1, None, ["w1"], "run")]
        for state in ("success", "running", "failed"):
            assert listed(connection, worker_id="w1", state=state) == []


@on_both
def test_a_retry_does_not_avoid_the_worker_that_failed_a_deleted_run(database: Database) -> None:
    with database.engine.begin() as connection:
        before = a_run_that_failed_twice(connection)
        delete_run(connection, before)
        run, second = made_again(connection, try_number=2)
        first = add_try(connection, run, "load", state="failed", history=True, try_id=uuid.uuid4())
        record_start(
            connection, first, a_worker("w2"), try_started_at=at(AGAIN + 1), state="running", now=at(AGAIN + 1)
        )
        assert placements.failed_on(connection, [second]) == {second: frozenset({"w2@host-1"})}


@on_both
def test_a_new_run_does_not_show_the_placement_of_a_deleted_one(database: Database) -> None:
    with database.engine.begin() as connection:
        before = add_run(connection, run_id="nightly", state="failed")
        key = add_try(connection, before, "load", state="failed")
        ref = upsert_worker(connection, a_worker("w1"), now=at(1))
        line = Placement(key, "least_loaded", "w1@host-1: least loaded of 4", worker_ref=ref)
        placements.write(connection, [line], now=at(5))
        placements.close(connection, {key: at(5)})
        # Before anybody has reconciled it.
        delete_run(connection, before)
        run, again = made_again(connection, state="upstream_failed")
        change_try(connection, again, hostname="", end_date=at(AGAIN + 5))
        assert placements.task_instance_explanations(connection, again, {}) == {}
        reconcile_runs(connection, [run])
        (one,) = panel(connection)
        assert (one.placement, one.placement_detail) == (None, None)


@on_both
def test_a_run_that_was_cleared_keeps_its_tries_also_without_history(database: Database) -> None:
    with database.engine.begin() as connection:
        run = a_run_that_failed_twice(connection)
        reconcile_runs(connection, [run])
        table = metadata_database.dag_run_table()
        # Clearing sets the start anew.
        connection.execute(update(table).values(start_date=at(AGAIN), clear_number=1))
        second = add_try_again(connection)
        assert told(panel(connection))[1:] == [(2, "failed", ["w1"], None), (1, "failed", ["w1"], None)]
        connection.execute(delete(metadata_database.task_instance_history_table()))
        assert [(one.try_number, [by.worker_id for by in one.workers]) for one in panel(connection)][1:] == [
            (2, ["w1"]),
            (1, ["w1"]),
        ]
        assert {one.deleted for one in listed(connection, run_id="nightly")} == {None}
        assert second.try_number == 3


def add_try_again(connection: Connection) -> TryKey:
    """Clear the task: its latest try goes to the history, and the third one begins."""
    run = find_run(connection, "etl", "nightly")
    assert run is not None
    table = metadata_database.task_instance_table()
    ids = [row.id for row in connection.execute(select(table.c.id))] if compat.is_airflow_3() else [None]
    connection.execute(delete(table))
    key = add_try(connection, run, "load", try_number=3, state="running", started_at=at(AGAIN + 9), ended_at=None)
    add_try(
        connection,
        run,
        "load",
        try_number=2,
        state="failed",
        started_at=at(60),
        ended_at=at(90),
        history=True,
        **({"try_id": ids[0]} if ids[0] is not None else {}),
    )
    add_try(connection, run, "load", try_number=1, state="failed", history=True)
    return key


@airflow_3
@on_both
def test_a_mapped_task_instance_does_not_get_the_try_that_was_lost_of_the_one_before(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection, run_id="nightly", state="running", ended_at=None)
        first = add_try(connection, run, "load", 3, state="failed", try_id=uuid.uuid4())
        record_start(connection, first, a_worker("w1"), try_started_at=at(10), now=at(10))
        reconcile_runs(connection, [run])
        connection.execute(delete(metadata_database.task_instance_table()))
        # Its first try was lost while it was queued.
        second = add_try(
            connection,
            run,
            "load",
            3,
            try_number=2,
            state="running",
            started_at=at(99),
            ended_at=None,
            try_id=uuid.uuid4(),
        )
        record_start(connection, second, a_worker("w2"), try_started_at=at(99), now=at(99))
        assert told(panel(connection, map_index=3)) == [(2, "running", ["w2"], None), (1, None, [], None)]


@on_both
def test_a_try_that_goes_on_after_an_upgrade_has_all_its_workers(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection, run_id="nightly", state="running", ended_at=None)
        key = add_try(connection, run, "load", state="running", started_at=at(10), ended_at=None)
        ref = upsert_worker(connection, a_worker("w1"), now=at(10))
        row = {name: getattr(key, name) for name in ("dag_id", "run_id", "task_id", "map_index", "try_number")}
        by_names = {"run_key": key.run_key, "task_key": key.task_key, "worker_ref": ref}
        others = {"ordinal": 0, "process_count": 1, "state": "running", "attribution": "reported", "started_at": at(10)}
        connection.execute(insert(attempt).values(**row, **by_names, **others))
        # It defers, the package is upgraded, and it goes on: elsewhere, and where it was.
        for worker_id in ("w2", "w1"):
            record_start(connection, key, a_worker(worker_id), try_started_at=at(10), now=at(50))
        change_try(connection, key, state="success", end_date=at(90))
        reconcile_runs(connection, [run])
        (one,) = panel(connection)
        assert [(by.worker_id, by.process_count) for by in one.workers] == [("w1", 2), ("w2", 1)]
        assert len(listed(connection)) == 1


@airflow_3
@on_both
def test_a_mapped_task_instance_that_comes_again_is_another_one(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection, run_id="nightly", state="running", ended_at=None)
        for number, worker_id in enumerate(("w1", "w2")):
            began = at(10 + number)
            key = add_try(
                connection, run, "load", 3, state="running", started_at=began, ended_at=None, try_id=uuid.uuid4()
            )
            record_start(connection, key, a_worker(worker_id), try_started_at=began, state="running", now=began)
            if not number:
                table = metadata_database.task_instance_table()
                connection.execute(delete(table).where(table.c.map_index == 3))
        (one,) = panel(connection, map_index=3)
        assert [(by.worker_id, by.process_count) for by in one.workers] == [("w2", 1)]
        assert told(listed(connection)) == [(1, "running", ["w2"], None), (1, None, ["w1"], "task_instance")]


@on_both
def test_a_task_that_is_mapped_at_last_leaves_no_try_of_before(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection, run_id="nightly", state="failed")
        key = add_try(connection, run, "load", state="upstream_failed", hostname=None)
        assert reconcile_runs(connection, [run]).added == 1
        # Airflow makes the first mapped one of it.
        change_try(connection, key, map_index=0)
        reconcile_runs(connection, [run])
    assert [(row["map_index"], row["state"]) for row in database.attempts()] == [(0, "upstream_failed")]


@airflow_3
@on_both
def test_what_was_recorded_on_2_11_is_known_after_the_upgrade(database: Database) -> None:
    with database.engine.begin() as connection:
        table = metadata_database.dag_run_table()
        run = add_run(connection, run_id="nightly")
        connection.execute(update(table).values(logical_date=NOON))
        key = add_try(connection, run, "load")
        by_run = instance_key_by_run(run.row_id, NOON, "load", -1)
        started = StartedTry(key, by_run, at(10))
        start.record_start(connection, started, a_worker("w1"), now=at(10))

        assert told(panel(connection)) == [(1, "success", ["w1"], None)]
        assert told(listed(connection)) == [(1, "success", ["w1"], None)]
        assert reconcile_runs(connection, [run]) == Outcome(closed=1)
        assert told(panel(connection)) == [(1, "success", ["w1"], None)]


@on_both
def test_what_was_recorded_by_names_gets_its_own_key_once(database: Database) -> None:
    with database.engine.begin() as connection:
        gone = a_run_that_failed_twice(connection)
        reconcile_runs(connection, [gone])
        delete_run(connection, gone)
        run, second = made_again(connection, try_number=2)
        first = add_try(
            connection,
            run,
            "load",
            state="failed",
            started_at=at(AGAIN + 1),
            ended_at=at(AGAIN + 2),
            history=True,
            try_id=uuid.uuid4(),
        )
        for key, began in ((first, at(AGAIN + 1)), (second, at(AGAIN + 5))):
            record_start(connection, key, a_worker("w2"), try_started_at=began, state="running", now=began)
    migrate.downgrade("0003")
    rows = {row["started_at"]: row["task_key"] for row in keys_and_starts(database)}
    # As an older version has it: the latest of each name is known by it.
    assert [rows[at(AGAIN + 1)], rows[at(AGAIN + 5)]] == [first.task_key, second.task_key]

    migrate.upgrade()

    with database.engine.begin() as connection:
        assert told(panel(connection)) == [(2, "running", ["w2"], None), (1, "failed", ["w2"], None)]
        assert [one.deleted for one in listed(connection)] == [None, None, "run", "run"]


@on_both
def test_an_older_api_server_beside_a_newer_one_loses_no_try(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection, run_id="nightly")
        key = add_try(connection, run, "load")
        ref = upsert_worker(connection, a_worker("w1"), now=NOON)
        row = {name: getattr(key, name) for name in ("dag_id", "run_id", "task_id", "map_index", "try_number")}
        by_names = {"run_key": key.run_key, "task_key": key.task_key, "worker_ref": ref}
        others = {"ordinal": 0, "process_count": 1, "state": "running", "attribution": "reported", "started_at": at(10)}
        connection.execute(insert(attempt).values(**row, **by_names, **others))
        assert reconcile_runs(connection, [run]) == Outcome(closed=1)
        assert told(panel(connection)) == [(1, "success", ["w1"], None)]
        assert find_run(connection, "etl", "nightly") == run


def keys_and_starts(database: Database) -> list[dict[str, object]]:
    with database.engine.connect() as connection:
        rows = connection.execute(select(attempt.c.task_key, attempt.c.started_at))
        return [dict(row._mapping) for row in rows]
