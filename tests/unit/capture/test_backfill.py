"""Going through the history from before the installation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight.capture.backfill import Selection, count_runs, installed_at, reconcile_selected
from airflow_worker_insight.capture.reconcile import Outcome
from airflow_worker_insight.domain.attribution import host_worker
from airflow_worker_insight.store.attempts import close
from airflow_worker_insight.store.workers.upsert import upsert_worker
from tests.unit.database import NOON, Database, a_worker, add_run, add_try, at

if TYPE_CHECKING:
    from pytest_mock import MockerFixture

    from airflow_worker_insight.capture.backfill import Progress
    from airflow_worker_insight.domain.attempts import DagRunRef


@pytest.fixture
def history(database: Database) -> list[DagRunRef]:
    """Have seven Dag runs of one task each, and one that still runs."""
    with database.engine.begin() as connection:
        runs = []
        for number in range(7):
            dag_id = "elt" if number == 3 else "etl"
            run = add_run(connection, dag_id, f"run-{number}", ended_at=at(number * 100))
            add_try(connection, run, started_at=at(number * 100 - 50), ended_at=at(number * 100))
            runs.append(run)
        add_try(connection, add_run(connection, run_id="running", state="running", ended_at=None), state="running")
    return runs


def recorded(database: Database) -> list[str]:
    return sorted(row["run_id"] for row in database.attempts())


def test_it_goes_through_all_finished_runs_in_batches(database: Database, history: list[DagRunRef]) -> None:
    steps = list(reconcile_selected(Selection(), installed_at=at(1000), runs_per_read=3))
    assert [step.runs for step in steps] == [3, 3, 1]
    assert sum((step.outcome for step in steps), Outcome()).added == count_runs(Selection()) == len(history)
    assert recorded(database) == [run.run_id for run in history]
    assert {row["attribution"] for row in database.attempts()} == {"backfilled"}


def test_running_it_twice_changes_nothing(database: Database, history: list[DagRunRef]) -> None:
    list(reconcile_selected(Selection(), installed_at=at(1000), runs_per_read=3))
    attempts, workers = database.attempts(), database.workers()
    again = list(reconcile_selected(Selection(), installed_at=at(1000), runs_per_read=3))
    assert sum(step.runs for step in again) == len(history)
    assert sum((step.outcome for step in again), Outcome()) == Outcome()
    assert (database.attempts(), database.workers()) == (attempts, workers)


def test_an_interrupted_run_goes_on_where_it_stopped(database: Database, history: list[DagRunRef]) -> None:
    first = next(reconcile_selected(Selection(), installed_at=at(1000), runs_per_read=3))
    assert recorded(database) == ["run-0", "run-1", "run-2"]
    assert first.last_row_id == history[2].row_id

    rest = Selection(after=first.last_row_id)
    assert count_runs(rest) == 4
    assert [step.runs for step in reconcile_selected(rest, installed_at=at(1000), runs_per_read=3)] == [3, 1]
    assert recorded(database) == [run.run_id for run in history]


def test_a_batch_that_fails_leaves_the_earlier_ones_done(
    database: Database, history: list[DagRunRef], mocker: MockerFixture
) -> None:
    real = close.add_tries

    def fail_at_run_4(connection: object, rows: list[tuple[object, ...]]) -> None:
        real(connection, rows)  # type: ignore[arg-type]
        if "run-4" in str(rows):
            raise RuntimeError("the database is gone")

    failing = mocker.patch.object(close, "add_tries", side_effect=fail_at_run_4)
    done: list[Progress] = []
    with pytest.raises(RuntimeError):
        done.extend(reconcile_selected(Selection(), installed_at=at(1000), runs_per_read=3))
    assert recorded(database) == ["run-0", "run-1", "run-2"]

    mocker.stop(failing)
    list(reconcile_selected(Selection(after=history[2].row_id), installed_at=at(1000), runs_per_read=3))
    assert recorded(database) == [run.run_id for run in history]


@pytest.mark.usefixtures("history")
def test_a_selection_by_dag_and_time(database: Database) -> None:
    selection = Selection(dag_id="etl", ended_since=at(200))
    assert count_runs(selection) == 4
    list(reconcile_selected(selection, installed_at=None, runs_per_read=3))
    assert recorded(database) == ["run-2", "run-4", "run-5", "run-6"]
    assert {row["attribution"] for row in database.attempts()} == {"inferred"}


def test_the_installation_divides_the_history(database: Database, history: list[DagRunRef]) -> None:
    list(reconcile_selected(Selection(), installed_at=at(250), runs_per_read=3))
    words = {row["run_id"]: row["attribution"] for row in database.attempts()}
    assert [words[run.run_id] for run in history] == ["backfilled"] * 3 + ["inferred"] * 4


def test_installed_is_when_the_first_worker_reported(database: Database) -> None:
    with database.engine.begin() as connection:
        close.ensure_hosts(connection, [host_worker("host-1", "celery")], now=at(-99))
        upsert_worker(connection, a_worker("second"), now=at(5))
        upsert_worker(connection, a_worker("first"), now=NOON)
    assert installed_at() == NOON


@pytest.mark.usefixtures("history")
def test_before_any_report_everything_is_history(database: Database) -> None:
    list(reconcile_selected(Selection(), installed_at=installed_at(), runs_per_read=3))
    assert {row["attribution"] for row in database.attempts()} == {"backfilled"}
    # ... and the hosts that were found by it are no reports.
    assert all(row["host_only"] for row in database.workers())
    assert installed_at() > max(row["registered_at"] for row in database.workers())
