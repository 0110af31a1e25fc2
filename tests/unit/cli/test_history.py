"""``reconcile``, ``backfill`` and ``prune``."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import insert, select

from airflow_worker_insight import compat
from airflow_worker_insight.capture import backfill, reconcile
from airflow_worker_insight.cli import history
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.store import retention
from airflow_worker_insight.store.tables import attempt, change, worker
from tests.unit.cli.running import Printed, ends_with, printed, refused, run
from tests.unit.database import NOON, Database, a_worker, add_run, add_try, at, record_start

if TYPE_CHECKING:
    from pytest_mock import MockerFixture


def recorded(database: Database) -> list[tuple[str, str]]:
    return sorted((row["run_id"], row["attribution"]) for row in database.attempts())


def ago(**time: float) -> datetime:
    return datetime.now(timezone.utc) - timedelta(**time)


@pytest.fixture
def runs(database: Database) -> Database:
    """Have runs of two Dags that ended at different times, and one that runs."""
    ends = {"new": ("etl", ago(hours=1)), "other": ("elt", ago(hours=2)), "old": ("etl", ago(hours=25))}
    with database.engine.begin() as connection:
        for run_id, (dag_id, ended_at) in ends.items():
            add_try(connection, add_run(connection, dag_id, run_id, ended_at=ended_at))
        running = add_run(connection, run_id="running", state="running", ended_at=None)
        add_try(connection, running, state="failed")
    return database


def test_reconcile_takes_the_last_day(runs: Database, capsys: Printed) -> None:
    run("reconcile")
    assert recorded(runs) == [("new", "inferred"), ("other", "inferred")]
    assert capsys.readouterr().out == "2 Dag runs: 2 tries added, 0 closed, 0 reports claimed\n"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--dag-id", "etl"], ["new"]),
        (["--since", "2000-01-01"], ["new", "old", "other"]),
        (["--dag-id", "etl", "--since", "2000-01-01"], ["new", "old"]),
        (["--dag-id", "etl", "--run-id", "old"], ["old"]),
        (["--dag-id", "etl", "--run-id", "running"], ["running"]),
        (["--dag-id", "nothing"], []),
    ],
    ids=" ".join,
)
def test_reconcile_takes_what_is_asked_for(runs: Database, options: list[str], found: list[str]) -> None:
    run("reconcile", *options)
    assert [run_id for run_id, _ in recorded(runs)] == found


def test_reconcile_of_a_run_needs_its_dag(runs: Database) -> None:
    assert "--dag-id" in refused("reconcile", "--run-id", "new")
    assert "'never'" in refused("reconcile", "--dag-id", "etl", "--run-id", "never")
    assert "'elt'" in refused("reconcile", "--dag-id", "elt", "--run-id", "new")
    assert recorded(runs) == []


@pytest.mark.skipif(not compat.is_airflow_3(), reason="Airflow 2.11 records without reports")
def test_reconcile_takes_the_reports_that_wait_also_of_runs_that_run(database: Database, capsys: Printed) -> None:
    from tests.unit.capture.reports import a_report, a_running_try, push, stored_xcoms

    one = a_running_try(database)
    push(one, a_report(one.try_id))
    run("reconcile")
    assert recorded(database) == [("run-1", "reported")]
    assert stored_xcoms(database) == []
    assert "1 report claimed" in capsys.readouterr().out


def test_backfill_takes_everything_that_has_ended(runs: Database, capsys: Printed) -> None:
    run("backfill")
    everything = [("new", "backfilled"), ("old", "backfilled"), ("other", "backfilled")]
    assert recorded(runs) == everything
    assert "3 Dag runs: 3 tries added" in capsys.readouterr().out

    run("backfill")
    assert recorded(runs) == everything
    assert "3 Dag runs: 0 tries added, 0 closed" in capsys.readouterr().out


def test_backfill_can_be_limited(runs: Database) -> None:
    run("backfill", "--dag-id", "etl", "--since", ago(hours=3).isoformat())
    assert [run_id for run_id, _ in recorded(runs)] == ["new"]


def test_backfill_shows_how_far_it_is_beside_its_result(runs: Database, capsys: Printed) -> None:
    run("backfill")
    shown = capsys.readouterr()
    assert "3/3" in shown.err
    assert shown.out.count("\n") == 1
    assert recorded(runs)


@pytest.mark.parametrize(("stop", "ended"), [(KeyboardInterrupt, SystemExit), (RuntimeError, RuntimeError)])
def test_an_interrupted_backfill_says_how_to_go_on(
    database: Database,
    mocker: MockerFixture,
    capsys: Printed,
    stop: type[BaseException],
    ended: type[BaseException],
) -> None:
    with database.engine.begin() as connection:
        for number in range(5):
            add_try(connection, add_run(connection, run_id=f"run-{number}", ended_at=at(number)))
    mocker.patch.object(history, "reconcile_selected", partial(backfill.reconcile_selected, runs_per_read=2))
    real, batches = reconcile.reconcile_runs, iter([True, False])

    def second_batch_stops(*arguments: object, **options: object) -> object:
        if not next(batches):
            raise stop("stopped here")
        return real(*arguments, **options)  # type: ignore[arg-type]

    stopping = mocker.patch.object(backfill, "reconcile_runs", second_batch_stops)
    with pytest.raises(ended) as end:
        run("backfill", "--dag-id", "etl", "--since", "2026-01-01")
    mocker.stop(stopping)
    if isinstance(end.value, SystemExit):
        assert end.value.code == 130
    shown = capsys.readouterr()
    assert "2 Dag runs: 2 tries added" in shown.out
    _, _, command = shown.err.partition("continue with: airflow-worker-insight ")
    assert command.split()[:-1] == [
        "backfill", "--dag-id", "etl", "--since", "2026-01-01T00:00:00+00:00", "--after"
    ]  # fmt: skip

    run(*command.split())
    assert "3 Dag runs: 3 tries added" in capsys.readouterr().out
    assert [run_id for run_id, _ in recorded(database)] == [f"run-{number}" for number in range(5)]


# --- prune -----------------------------------------------------------------------------------------------------------

KEPT = "The oldest remaining try started at 2026-03-01 12:00:00 UTC."
BEFORE_NOON = NOON.isoformat()


@pytest.fixture
def tries(database: Database) -> Database:
    """Have an old try, and its worker with two entries in its history, and a new try."""
    with database.engine.begin() as connection:
        for worker_id, started in (("old", at(-600)), ("new", at(0))):
            record_start(
                connection,
                TryKey("etl", worker_id, "extract", -1, 1),
                a_worker(worker_id),
                try_started_at=started,
                state="running",
                now=started,
            )
        connection.execute(attempt.update().where(attempt.c.run_id == "old").values(ended_at=at(-1), state="success"))
        connection.execute(attempt.update().where(attempt.c.run_id == "new").values(ended_at=at(9), state="success"))
        left = worker.c.worker_id == "old"
        connection.execute(worker.update().where(left).values(state="offline", ended_at=at(-1)))
        ref = connection.execute(select(worker.c.id).where(left)).scalar_one()
        for _ in range(2):
            connection.execute(insert(change).values(worker_ref=ref, changed_at=at(-1), state="offline"))
    return database


def names(database: Database) -> list[str]:
    return [row["worker_id"] for row in database.workers()]


def test_a_dry_run_says_what_would_go_and_removes_nothing(tries: Database, capsys: Printed) -> None:
    assert printed(capsys, "prune", "--older-than", BEFORE_NOON, "--dry-run") == (
        f"1 try, 1 worker, 2 entries of workers' histories and 0 rows of statistics would be removed. {KEPT}\n"
    )
    assert names(tries) == ["old", "new"]
    assert len(tries.attempts()) == 2


def test_prune_removes_what_is_older(tries: Database, capsys: Printed) -> None:
    assert printed(capsys, "prune", "--older-than", BEFORE_NOON, "--yes") == (
        "Removed 1 try, 1 worker, 2 entries of workers' histories and 0 rows of statistics.\n"
    )
    assert names(tries) == ["new"]
    assert [row["run_id"] for row in tries.attempts()] == ["new"]
    assert printed(capsys, "prune", "--older-than", BEFORE_NOON) == f"Nothing to remove. {KEPT}\n"


@pytest.mark.parametrize("answer", ["", "n", None], indirect=True)
def test_prune_asks_first(tries: Database, answer: list[str]) -> None:
    assert refused("prune", "--older-than", BEFORE_NOON) == "Nothing was removed."
    assert "1 try, 1 worker" in answer[0]
    assert "2026-03-01 12:00:00 UTC" in answer[0]
    assert names(tries) == ["old", "new"]


@pytest.mark.parametrize("answer", ["y"], indirect=True)
@pytest.mark.usefixtures("answer")
def test_prune_after_a_yes(tries: Database) -> None:
    run("prune", "--older-than", BEFORE_NOON)
    assert names(tries) == ["new"]


def test_prune_takes_an_age(tries: Database) -> None:
    run("prune", "--older-than", "1d", "--yes")
    assert tries.attempts() == []


def test_prune_shows_how_far_it_is_beside_its_result(tries: Database, capsys: Printed) -> None:
    del tries
    run("prune", "--older-than", BEFORE_NOON, "--yes")
    assert "2/2" in capsys.readouterr().err


def test_an_interrupted_prune_says_what_is_done(tries: Database, capsys: Printed, mocker: MockerFixture) -> None:
    def interrupted(*_: object, **__: object) -> object:
        yield retention.Removed(attempts=1)
        raise KeyboardInterrupt

    mocker.patch.object(history.retention, "prune", interrupted)
    ends_with(130, "prune", "--older-than", BEFORE_NOON, "--yes")
    said = capsys.readouterr()
    assert "1 try, 0 workers" in said.out
    assert "Interrupted by SIGINT. Progress is kept; run the same command again." in said.err
    assert names(tries) == ["old", "new"]
