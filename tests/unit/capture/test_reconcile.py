"""Reconciling: every try of an ended run gets its final state and an honest word."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text

from airflow_worker_insight import compat
from airflow_worker_insight.capture.reconcile import Outcome, claim_all_stored_reports, reconcile_runs
from airflow_worker_insight.capture.report import REPORT_KEY
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.attribution import host_worker
from airflow_worker_insight.store.airflow_history import find_run
from airflow_worker_insight.store.attempts.queries import task_instance_attempts
from airflow_worker_insight.store.tables import attempt, start_slot
from tests.unit.capture.reports import a_report, a_running_try, airflow_3, push, stored_xcoms
from tests.unit.database import (
    NOON,
    STARTED,
    Database,
    a_worker,
    add_run,
    add_try,
    at,
    change_try,
    on_both,
    record_start,
)

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_worker_insight.capture.counters import Counters
    from airflow_worker_insight.domain.attempts import DagRunRef
    from airflow_worker_insight.domain.keys import TryKey
    from airflow_worker_insight.domain.workers import WorkerRecord


@pytest.fixture(autouse=True)
def executor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")


def reconciled(database: Database, *runs: DagRunRef, installed_at: datetime | None = None, **options: Any) -> Outcome:
    with database.engine.begin() as connection:
        return reconcile_runs(connection, runs, installed_at=installed_at, **options)


def report_start(database: Database, key: TryKey, record: WorkerRecord, *, now: datetime = NOON) -> None:
    with database.engine.begin() as connection:
        record_start(connection, key, record, try_started_at=at(10), state="running", now=now)


def words(database: Database) -> dict[tuple[str, int, int], tuple[str, str | None]]:
    """Return attribution and worker of each try by task, map index and number."""
    return {
        (row["task_id"], row["map_index"], row["try_number"]): (row["attribution"], row["worker_id"])
        for row in database.attempts()
    }


# --- closing ---------------------------------------------------------------------------------------------------------


@on_both
@pytest.mark.parametrize("state", ["success", "failed", "skipped"])
def test_a_reported_try_gets_its_final_state_and_times(database: Database, state: str) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection)
        key = add_try(connection, run, state=state, started_at=at(11), ended_at=at(20.5))
    report_start(database, key, a_worker())

    assert reconciled(database, run) == Outcome(closed=1)

    (row,) = database.attempts()
    assert (row["state"], row["started_at"], row["ended_at"]) == (state, at(11), at(20.5))
    assert (row["attribution"], row["worker_id"]) == ("reported", "celery-1")


@on_both
def test_a_try_that_several_workers_ran_is_closed_on_all_of_them(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection)
        key = add_try(connection, run)
    for worker_id in ("one", "two"):
        report_start(database, key, a_worker(worker_id))
    assert reconciled(database, run) == Outcome(closed=1)
    assert [row["ended_at"] for row in database.attempts()] == [at(20), at(20)]


@on_both
@pytest.mark.parametrize("late", ["one", "two"])
def test_a_process_that_reported_after_the_try_was_closed_opens_nothing(database: Database, late: str) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection)
        key = add_try(connection, run)
    for worker_id in ("one", "two"):
        report_start(database, key, a_worker(worker_id))
    reconciled(database, run)
    report_start(database, key, a_worker(late))

    assert {row["worker_id"]: row["ended_at"] for row in database.attempts()} == {"one": at(20), "two": at(20)}
    assert reconciled(database, run) == Outcome()


@on_both
@pytest.mark.parametrize("is_closed", [True, False])
def test_a_try_of_an_older_version_gets_its_slot_of_time(database: Database, is_closed: bool) -> None:
    """Processes of schema 0001 go on beside newer ones, and write none: neither at its start nor at its end."""
    with database.engine.begin() as connection:
        run = add_run(connection)
        key = add_try(connection, run)
    for worker_id in ("one", "two"):
        report_start(database, key, a_worker(worker_id))
    if is_closed:
        assert reconciled(database, run) == Outcome(closed=1)
    ref = min(row["worker_ref"] for row in database.attempts())
    with database.engine.begin() as connection:
        connection.execute(attempt.update().where(attempt.c.worker_ref == ref).values(start_slot=None))

    assert reconciled(database, run) == Outcome(closed=1)
    assert {row["start_slot"] for row in database.attempts()} == {start_slot(STARTED)}
    assert reconciled(database, run) == Outcome()


def test_a_try_that_has_not_ended_stays_open(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection, state="failed")
        recorded = add_try(connection, run, state="running", ended_at=None)
        for state in ("running", "deferred", "up_for_reschedule", "queued", None):
            add_try(connection, run, f"not-recorded-{state}", state=state, ended_at=None)
    report_start(database, recorded, a_worker())

    assert reconciled(database, run) == Outcome(unfinished_runs=frozenset({run}))

    (row,) = database.attempts()
    assert (row["state"], row["ended_at"]) == ("running", None)


def test_only_runs_with_tasks_that_run_are_still_running(database: Database) -> None:
    with database.engine.begin() as connection:
        busy, done, cleared = (add_run(connection, run_id=name) for name in ("busy", "done", "cleared"))
        add_try(connection, busy, state="queued", ended_at=None)
        add_try(connection, done)
        add_try(connection, cleared, state=None, ended_at=None)
    assert reconciled(database, busy, done, cleared).unfinished_runs == {busy}


def test_a_try_that_a_person_changed_afterwards_is_corrected(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection)
        key = add_try(connection, run, state="failed")
    report_start(database, key, a_worker())
    reconciled(database, run)
    with database.engine.begin() as connection:
        change_try(connection, key, state="success", end_date=at(99))
    assert reconciled(database, run) == Outcome(closed=1)
    assert [(row["state"], row["ended_at"]) for row in database.attempts()] == [("success", at(99))]


# --- adding ----------------------------------------------------------------------------------------------------------


@on_both
def test_every_try_gets_a_word(database: Database) -> None:
    nowhere: dict[str, Any] = {"hostname": None, "started_at": None, "ended_at": None}
    with database.engine.begin() as connection:
        run = add_run(connection)
        reported = add_try(connection, run, "reported", try_number=3)
        add_try(connection, run, "reported", try_number=2, state="failed", history=True)
        add_try(connection, run, "reported", try_number=1, state="failed", hostname="host-2", history=True)
        add_try(connection, run, "mapped", map_index=0, hostname="host-2")
        add_try(connection, run, "mapped", map_index=1, state="failed")
        add_try(connection, run, "skipped", state="skipped", **nowhere)
        add_try(connection, run, "upstream", try_number=0, state="upstream_failed", **nowhere)
        add_try(connection, run, "removed", state="removed", **nowhere)
        add_try(connection, run, "empty", state="success", hostname=None)
        add_try(connection, run, "never", state="failed", **nowhere)
        add_try(connection, run, "lost", state="failed", hostname=None, started_at=at(10), ended_at=at(99))
    report_start(database, reported, a_worker(), now=at(10))

    outcome = reconciled(database, run)

    one, two = (host_worker(name, "celery").worker_id for name in ("host-1", "host-2"))
    assert words(database) == {
        ("reported", -1, 3): ("reported", "celery-1"),
        # That a worker of this host reported another try does not say that it ran this one.
        ("reported", -1, 2): ("inferred", one),
        ("reported", -1, 1): ("inferred", two),
        ("mapped", 0, 1): ("inferred", two),
        ("mapped", 1, 1): ("inferred", one),
        ("skipped", -1, 1): ("not_on_a_worker", None),
        ("upstream", -1, 0): ("not_on_a_worker", None),
        ("removed", -1, 1): ("not_on_a_worker", None),
        ("empty", -1, 1): ("not_on_a_worker", None),
        ("never", -1, 1): ("never_started", None),
        ("lost", -1, 1): ("unknown", None),
    }
    assert (outcome.closed, outcome.added) == (1, 10)


def test_a_row_that_is_added_says_all_that_airflow_keeps(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection)
        add_try(connection, run, "load", map_index=4, state="failed", started_at=at(1), ended_at=at(2))
    reconciled(database, run)
    (row,) = database.attempts()
    assert (row["dag_id"], row["run_id"], row["task_id"], row["map_index"], row["try_number"]) == (
        "etl",
        "run-1",
        "load",
        4,
        1,
    )
    assert (row["state"], row["started_at"], row["ended_at"], row["ordinal"]) == ("failed", at(1), at(2), 0)
    (host,) = database.workers()
    assert (host["host_only"], host["name"], host["kind"], host["hostname"]) == (True, "host-1", "celery", "host-1")


@on_both
def test_doing_it_again_changes_nothing(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection)
        key = add_try(connection, run, try_number=2)
        add_try(connection, run, try_number=1, state="failed", hostname="host-2", history=True)
        add_try(connection, run, "skipped", state="skipped", hostname=None, started_at=None, ended_at=None)
    report_start(database, key, a_worker())
    assert reconciled(database, run) == Outcome(closed=1, added=2)
    attempts, workers = database.attempts(), database.workers()

    assert reconciled(database, run) == Outcome()
    assert reconciled(database, run, installed_at=at(9e6)) == Outcome()
    assert (database.attempts(), database.workers()) == (attempts, workers)


def test_one_host_is_one_worker_for_all_runs(database: Database) -> None:
    with database.engine.begin() as connection:
        runs = [add_run(connection, run_id=f"run-{number}") for number in range(3)]
        for run in runs:
            add_try(connection, run)
    reconciled(database, *runs[:2])
    reconciled(database, runs[2])
    assert len(database.workers()) == 1
    assert len(database.attempts()) == 3


def test_no_other_run_is_touched(database: Database) -> None:
    with database.engine.begin() as connection:
        run, other = add_run(connection), add_run(connection, "elt")
        for one in (run, other):
            add_try(connection, one)
    reconciled(database, run)
    assert {row["dag_id"] for row in database.attempts()} == {"etl"}


def test_a_run_that_airflow_deleted_keeps_what_was_recorded(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection)
        key = add_try(connection, run)
    report_start(database, key, a_worker())
    with database.engine.begin() as connection:
        for table in (metadata_database.task_instance_table(), metadata_database.dag_run_table()):
            connection.execute(table.delete())
    assert reconciled(database, run) == Outcome()
    assert len(database.attempts()) == 1
    with database.engine.connect() as connection:
        assert find_run(connection, "etl", "run-1") is None


def test_nothing_to_do(database: Database) -> None:
    assert reconciled(database) == Outcome()


@on_both
def test_a_second_scheduler_that_was_faster_is_no_error(database: Database) -> None:
    """Both find the same try missing; the one that comes second leaves the row of the first as it is."""
    from airflow_worker_insight.store import airflow_history
    from airflow_worker_insight.store.attempts import close

    with database.engine.begin() as connection:
        run = add_run(connection)
        add_try(connection, run, hostname=None, state="failed", started_at=None)
        (one,) = airflow_history.tries_of_runs(connection, [run])
    reconciled(database, run)
    with database.engine.begin() as connection:
        close.add_tries(connection, [(one, "unknown", 0)])
    assert [row["attribution"] for row in database.attempts()] == ["never_started"]


# --- what it costs ---------------------------------------------------------------------------------------------------


def count_statements(database: Database, runs: int, tries: int) -> int:
    with database.engine.begin() as connection:
        added = []
        for number in range(runs):
            run = add_run(connection, f"etl-{runs}-{tries}", f"run-{number}")
            added.append(run)
            for index in range(tries):
                key = add_try(connection, run, map_index=index, hostname=f"host-{index % 3}")
                if index % 2:
                    record_start(connection, key, a_worker(), try_started_at=at(10), state="running", now=NOON)
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    outcome = reconciled(database, *added)
    event.remove(database.engine, "before_cursor_execute", note)
    assert outcome.closed + outcome.added == runs * tries
    return len(sent)


@on_both
def test_the_number_of_statements_does_not_grow_with_the_number_of_tries(database: Database) -> None:
    few = count_statements(database, runs=1, tries=6)
    many = count_statements(database, runs=4, tries=60)
    # The hosts are new the first time only.
    assert many <= few <= 15


# --- run in a test ---------------------------------------------------------------------------------------------------


@on_both
def test_a_try_of_a_test_is_on_no_worker_and_makes_no_host(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection)
        # 2.11 keeps no start of it.
        start = at(10) if compat.is_airflow_3() else None
        add_try(connection, run, "tested", state="failed", started_at=start, external_executor_id=None)
        add_try(connection, run, "queued")
        add_try(connection, run, "skipped", state="skipped", hostname=None, started_at=None)
        names = {"dag_id": run.dag_id, "run_id": run.run_id, "task_id": "tested", "map_index": -1}
        (before,) = task_instance_attempts(connection, **names)
    reconciled(database, run)
    assert words(database) == {
        ("tested", -1, 1): ("not_on_a_worker", None),
        ("queued", -1, 1): ("inferred", host_worker("host-1", "celery").worker_id),
        ("skipped", -1, 1): ("not_on_a_worker", None),
    }
    assert [row["kind"] for row in database.workers()] == ["celery"]
    with database.engine.connect() as connection:
        (after,) = task_instance_attempts(connection, **names)
        (skipped,) = task_instance_attempts(connection, **{**names, "task_id": "skipped"})
    # Before the run's end as well as after it.
    assert [(one.attribution, one.workers, one.ran_in_a_test) for one in (before, after)] == [
        ("not_on_a_worker", (), True)
    ] * 2
    assert (skipped.attribution, skipped.ran_in_a_test) == ("not_on_a_worker", False)


# --- backfilled ------------------------------------------------------------------------------------------------------


def test_what_is_older_than_the_installation_is_backfilled(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection)
        kept: dict[str, dict[str, Any]] = {
            "before": {"started_at": at(99), "ended_at": at(999)},
            "at": {"started_at": at(100), "ended_at": at(999)},
            "after": {"started_at": at(101), "ended_at": at(999)},
            "no-start": {"started_at": None, "ended_at": at(99)},
            "no-times": {"started_at": None, "ended_at": None, "queued_dttm": at(99)},
            "nothing": {"started_at": None, "ended_at": None},
        }
        for task_id, times in kept.items():
            add_try(connection, run, task_id, **times)
    reconciled(database, run, installed_at=at(100))
    assert {task_id: word for (task_id, _, _), (word, _) in words(database).items()} == {
        "before": "backfilled",
        "at": "inferred",
        "after": "inferred",
        "no-start": "backfilled",
        "no-times": "backfilled",
        "nothing": "inferred",
    }


# --- reports that wait -----------------------------------------------------------------------------------------------


@airflow_3
@on_both
def test_unclaimed_report_is_claimed_late(database: Database) -> None:
    one = a_running_try(database)
    push(one, a_report(one.try_id))
    push(one, "mine", key="return_value")
    with database.engine.begin() as connection:
        change_try(connection, one.key, state="success", end_date=at(20))

    assert reconciled(database, one.run) == Outcome(claimed=1)

    assert words(database) == {("extract", -1, 1): ("reported", "celery-1")}
    assert [(row["state"], row["ended_at"]) for row in database.attempts()] == [("success", at(20))]
    assert [key for _, key, _ in stored_xcoms(database)] == ["return_value"]
    assert reconciled(database, one.run) == Outcome()


@airflow_3
def test_late_report_of_an_earlier_try_is_recorded_for_that_try(database: Database) -> None:
    first_id = uuid.uuid4()
    one = a_running_try(database, try_number=2, state="success", ended_at=at(90))
    with database.engine.begin() as connection:
        add_try(connection, one.run, try_number=1, state="failed", try_id=first_id, history=True, hostname="host-9")
    push(one, a_report(first_id, hostname="host-9.example.org"))
    reconciled(database, one.run)
    assert words(database)["extract", -1, 1] == ("reported", "celery-1")
    assert words(database)["extract", -1, 2][0] == "inferred"


@airflow_3
def test_late_report_of_another_host_than_airflows_is_dropped(database: Database, counters: Counters) -> None:
    """Its try has deferred and gone on elsewhere: which worker was there Airflow does not say any more."""
    one = a_running_try(database, state="success", ended_at=at(90), hostname="host-9")
    push(one, a_report(one.try_id))
    reconciled(database, one.run, counters=counters)
    assert words(database)["extract", -1, 1][0] == "inferred"
    assert counters.snapshot()["reports.dropped.not_this_host"] == 1


@airflow_3
@pytest.mark.parametrize(
    "value", ["hello", {"version": 2}, a_report(uuid.UUID(int=0))], ids=["text", "later", "forged"]
)
def test_late_report_that_is_not_valid_is_dropped(database: Database, counters: Counters, value: Any) -> None:
    one = a_running_try(database, state="success", ended_at=at(20))
    push(one, value)
    reconciled(database, one.run, counters=counters)
    assert stored_xcoms(database) == []
    assert words(database)["extract", -1, 1][0] == "inferred"
    assert [name.rpartition(".")[0] for name in counters.snapshot()] == ["reports.dropped", "tries"]


@airflow_3
def test_reports_of_other_runs_stay_stored(database: Database) -> None:
    one = a_running_try(database)
    push(one, a_report(one.try_id))
    with database.engine.begin() as connection:
        other = add_run(connection, "elt")
    reconciled(database, other)
    assert [key for _, key, _ in stored_xcoms(database)] == [REPORT_KEY]


@airflow_3
def test_all_stored_reports_are_claimed_page_by_page(database: Database) -> None:
    for map_index in range(5):
        one = a_running_try(database, map_index=map_index)
        push(one, a_report(one.try_id))
    assert claim_all_stored_reports(page_size=2) == 5
    assert len(database.attempts()) == 5
    assert stored_xcoms(database) == []


@airflow_3
def test_reports_that_cannot_be_claimed_are_read_once(database: Database, counters: Counters) -> None:
    with database.engine.begin() as connection:
        connection.execute(
            text("CREATE TRIGGER no BEFORE INSERT ON worker_insight_attempt BEGIN SELECT RAISE(ABORT, 'no'); END")
        )
    for map_index in range(5):
        one = a_running_try(database, map_index=map_index)
        push(one, a_report(one.try_id))
    assert claim_all_stored_reports(page_size=2, counters=counters) == 0
    assert len(stored_xcoms(database)) == 5
    assert counters.snapshot() == {"reports.unclaimed": 5}
