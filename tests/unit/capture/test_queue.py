"""The queue beside the scheduler's loop. Its work is done in the test's own thread, except where the thread matters."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from airflow_worker_insight.capture.counters import Counters
from airflow_worker_insight.capture.queue import QueueSettings, ReconcileQueue
from tests.unit.database import Database, add_run, add_try, change_try

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_mock import MockerFixture

    from airflow_worker_insight.capture.queue import _QueuedRun

NOW: dict[str, Any] = {"commit_delay": 0.0, "retry_delays": (), "idle_timeout": 0.0, "poll_interval": 0.0}
LATER: dict[str, Any] = {**NOW, "commit_delay": 3600.0}


class Parked(ReconcileQueue):
    """A queue that starts no thread and only notes what it would reconcile."""

    def __init__(self, fails: Callable[[list[str]], bool] = lambda _: False, **settings: Any) -> None:
        super().__init__(QueueSettings(**{**NOW, **settings}), counters=Counters())
        self.batches: list[list[str]] = []
        self.fails = fails

    def _start_thread(self) -> None:
        pass

    def _queue_recent(self) -> None:
        pass

    def _reconcile(self, batch: Sequence[_QueuedRun]) -> None:
        runs = [run.run_id for run in batch]
        self.batches.append(runs)
        if self.fails(runs):
            raise RuntimeError("the database is gone")

    @property
    def runs(self) -> list[str]:
        return [run for batch in self.batches for run in batch]


def test_runs_are_reconciled_in_batches_in_the_order_they_ended() -> None:
    queue = Parked(batch_size=2)
    for number in range(5):
        queue.put("etl", f"run-{number}")
    queue._work()
    assert queue.batches == [["run-0", "run-1"], ["run-2", "run-3"], ["run-4"]]


def test_queued_run_is_not_queued_twice() -> None:
    queue = Parked()
    for dag_id in ("etl", "etl", "elt"):
        queue.put(dag_id, "run")
    queue._work()
    assert queue.runs == ["run", "run"]


def test_reconciled_run_can_be_queued_again() -> None:
    queue = Parked()
    for _ in range(2):
        queue.put("etl", "run")
        queue._work()
    assert queue.runs == ["run", "run"]


def test_run_due_for_a_recheck_that_ends_again_is_reconciled_at_once() -> None:
    from airflow_worker_insight.capture.queue import _QueuedRun

    queue = Parked()
    queue._put(_QueuedRun(float("inf"), "etl", "run", 1))
    queue.put("etl", "run")
    assert [run.run_id for run in queue._pop_due()] == ["run"]


def test_run_is_not_read_before_airflow_has_committed_its_end() -> None:
    queue = Parked(**LATER)
    queue.put("etl", "run")
    assert queue._pop_due() == []
    assert not queue._end_if_idle(0.0)


def test_full_queue_counts_the_runs_it_refuses(caplog: pytest.LogCaptureFixture) -> None:
    queue = Parked(**LATER, max_queued=3)
    for number in range(10):
        queue.put("etl", f"run-{number}")
    assert len(queue._heap) == len(queue._known) == 3
    assert queue.counters.snapshot() == {"runs.not_reconciled": 7}
    assert len([record for record in caplog.records if "reconcile command" in record.getMessage()]) == 1


def test_a_run_that_cannot_be_reconciled_does_not_take_the_others_with_it(caplog: pytest.LogCaptureFixture) -> None:
    queue = Parked(lambda runs: "run-1" in runs, retry_delays=(0.0,))
    for number in range(3):
        queue.put("etl", f"run-{number}")
    queue._work()
    together = ["run-0", "run-1", "run-2"]
    assert queue.batches == [together, together, ["run-0"], ["run-1"], ["run-2"]]
    assert queue.counters.snapshot() == {"runs.not_reconciled": 1}
    assert [record.levelname for record in caplog.records if "could not reconcile" in record.getMessage()] == [
        "WARNING"
    ]


def test_a_database_that_comes_back_costs_nothing() -> None:
    failures = iter([True, True, False])
    queue = Parked(lambda _: next(failures), retry_delays=(0.0, 0.0))
    queue.put("etl", "run")
    queue._work()
    assert queue.runs == ["run"] * 3
    assert queue.counters.snapshot() == {}


def test_a_catch_up_that_fails_keeps_no_run_from_being_reconciled() -> None:
    class WithoutHistory(Parked):
        def _queue_recent(self) -> None:
            raise RuntimeError("the database is gone")

    queue = WithoutHistory()
    queue.put("etl", "run")
    queue._work()
    assert queue.runs == ["run"]


# --- the thread ------------------------------------------------------------------------------------------------------


class Threaded(Parked):
    """A queue with its thread, which notes in which threads it worked."""

    threads: list[threading.Thread]

    def _start_thread(self) -> None:
        ReconcileQueue._start_thread(self)

    def _reconcile(self, batch: Sequence[_QueuedRun]) -> None:
        super()._reconcile(batch)
        self.threads.append(threading.current_thread())


def test_the_thread_lives_only_while_there_is_work() -> None:
    queue = Threaded()
    queue.threads = []
    for number in (1, 2):
        queue.put("etl", f"run-{number}")
        thread = queue._thread
        if thread is not None:
            thread.join(60)
        assert queue._thread is None
        assert len(queue.threads) == number
    assert threading.current_thread() not in queue.threads
    assert all(thread.daemon and not thread.is_alive() for thread in queue.threads)


def test_a_process_that_cannot_start_a_thread_tries_again_with_the_next_run(mocker: MockerFixture) -> None:
    queue = Threaded()
    queue.threads = []
    start = mocker.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread"))
    with pytest.raises(RuntimeError):
        queue.put("etl", "run-1")
    mocker.stop(start)
    queue.put("etl", "run-2")
    thread = queue._thread
    if thread is not None:
        thread.join(60)
    assert sorted(queue.runs) == ["run-1", "run-2"]


# --- with a database -------------------------------------------------------------------------------------------------


class Unthreaded(ReconcileQueue):
    """A queue that reconciles for real, in the test's own thread."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(QueueSettings(**{**NOW, **settings}), counters=Counters())
        self.passes = 0
        self.before_pass: Callable[[int], None] = lambda _: None

    def _start_thread(self) -> None:
        pass

    def _reconcile(self, batch: Sequence[_QueuedRun]) -> None:
        self.passes += 1
        self.before_pass(self.passes)
        super()._reconcile(batch)


def ago(**time: float) -> datetime:
    return datetime.now(timezone.utc) - timedelta(**time)


def test_an_ended_run_is_reconciled(database: Database) -> None:
    with database.engine.begin() as connection:
        add_try(connection, add_run(connection))
    queue = Unthreaded()
    queue.put("etl", "run-1")
    queue._work()
    assert [(row["task_id"], row["attribution"]) for row in database.attempts()] == [("extract", "inferred")]


def test_a_run_that_is_gone_is_forgotten(database: Database) -> None:
    queue = Unthreaded()
    queue.put("etl", "never-was")
    queue._work()
    assert queue.passes == 1
    assert database.attempts() == []
    assert queue.counters.snapshot() == {}


def test_run_with_unfinished_tasks_is_rechecked(database: Database) -> None:
    """A run that fails fast, or that a person ends, has tasks that end after it."""
    with database.engine.begin() as connection:
        key = add_try(connection, add_run(connection, state="failed"), state="running", ended_at=None)
    queue = Unthreaded(recheck_delays=(0.0, 0.0, 0.0))

    def end_the_task(number: int) -> None:
        if number == 3:
            with database.engine.begin() as connection:
                change_try(connection, key, state="failed")

    queue.before_pass = end_the_task
    queue.put("etl", "run-1")
    queue._work()

    assert queue.passes == 3
    assert [row["state"] for row in database.attempts()] == ["failed"]


def test_rechecks_of_a_task_that_never_ends_stop(database: Database) -> None:
    with database.engine.begin() as connection:
        add_try(connection, add_run(connection, state="failed"), state="running", ended_at=None)
    queue = Unthreaded(recheck_delays=(0.0, 0.0))
    queue.put("etl", "run-1")
    queue._work()
    assert queue.passes == 3


def test_the_first_run_brings_those_that_ended_before_this_process(database: Database) -> None:
    with database.engine.begin() as connection:
        for run_id, ended_at in (("now", ago(seconds=1)), ("missed", ago(minutes=59)), ("old", ago(minutes=61))):
            add_try(connection, add_run(connection, run_id=run_id, ended_at=ended_at))
    queue = Unthreaded()
    queue.put("etl", "now")
    queue._work()
    assert sorted(row["run_id"] for row in database.attempts()) == ["missed", "now"]


def test_lock_timeout_of_the_queue_does_not_stay_on_the_schedulers_connections(database: Database) -> None:
    def waits() -> set[int]:
        with ExitStack() as stack:
            connections = [stack.enter_context(database.engine.connect()) for _ in range(3)]
            return {connection.execute(text("PRAGMA busy_timeout")).scalar_one() for connection in connections}

    before = waits()
    queue = Unthreaded()
    queue.put("etl", "run-1")
    queue._work()
    assert waits() == before
