"""``refresh``: once, and until somebody stops it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import insert, select

from airflow_worker_insight.cli import fleet
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.registry.poll import PollOutcome, SourceOutcome
from airflow_worker_insight.store.tables import worker_source
from tests.support.processes import wait_for
from tests.unit.cli.running import Printed, ends_with, read, run
from tests.unit.database import OUR_COMMAND, Database

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_mock import MockerFixture

WorkerMonitor = list[bool]


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch, database: Database) -> Database:
    """Have a deployment with LocalExecutor whose scheduler runs."""
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "LocalExecutor")
    now = datetime.now(timezone.utc)
    row = {
        "id": 7,
        "job_type": "SchedulerJob",
        "state": "running",
        "hostname": "h",
        "start_date": now,
        "latest_heartbeat": now,
        "executor_class": "LocalExecutor",
    }
    with database.engine.begin() as connection:
        connection.execute(insert(metadata_database.job_table()).values(row))
    return database


def test_refresh_looks_at_the_fleet_now(local: Database, capsys: Printed) -> None:
    for _ in range(2):
        run("refresh")
        shown = capsys.readouterr()
        assert "jobs: 1 online" in shown.out
        assert shown.err == ""
    (row,) = read(capsys, "workers", "list")
    assert (row["kind"], row["state"]) == ("local", "online")
    with local.engine.connect() as connection:
        assert connection.execute(select(worker_source.c.looked_at)).scalars().all()


@pytest.fixture
def rounds(mocker: MockerFixture, database: Database) -> WorkerMonitor:
    """Have rounds that look at nothing; collect whether each was to look only if due."""
    del database
    seen: WorkerMonitor = []

    def refresh(*, only_if_due: bool) -> PollOutcome:
        seen.append(only_if_due)
        return outcome

    outcome = PollOutcome(
        (
            SourceOutcome("celery", polled=True, states={"online": 2, "lost": 1, None: 3}, registered=1, changes=4),
            SourceOutcome("edge", polled=False),
            SourceOutcome("jobs", polled=True),
        ),
        due_in=30.0,
    )
    mocker.patch.object(fleet, "refresh", refresh)
    return seen


def test_it_says_what_it_saw(rounds: WorkerMonitor, capsys: Printed) -> None:
    run("refresh")
    assert rounds == [False]
    assert capsys.readouterr().out.splitlines() == [
        "celery: 1 lost, 2 online, 3 unknown (1 new, 4 changed)",
        "jobs: no workers",
    ]


def test_an_engine_that_cannot_be_asked_is_an_error(mocker: MockerFixture, database: Database, capsys: Printed) -> None:
    del database
    broken = PollOutcome((SourceOutcome("celery", polled=True, error="the broker does not answer"),), due_in=30.0)
    mocker.patch.object(fleet, "refresh", return_value=broken)
    ends_with(1, "refresh")
    assert capsys.readouterr().err == "celery: the broker does not answer\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_goes_on_until_it_is_stopped(
    mocker: MockerFixture, database: Database, capsys: Printed, number: int
) -> None:
    """What goes wrong in one round is said, and the next one comes all the same."""
    del database
    rounds: list[str] = []

    def run_once() -> PollOutcome:
        rounds.append("round")
        if len(rounds) == 1:
            raise OSError("the database is away")
        if len(rounds) == 3:
            os.kill(os.getpid(), number)
        return PollOutcome((), due_in=30.0)

    mocker.patch.object(fleet, "run_once", run_once)
    mocker.patch.object(fleet.Event, "wait", lambda event, _: event.is_set())
    before = signal.getsignal(number)
    ends_with(128 + number, "refresh", "--every", "30")
    assert len(rounds) == 3
    said = capsys.readouterr().err
    assert "the database is away" in said
    assert f"Interrupted by {signal.Signals(number).name}. The poll under way was finished" in said
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_as_a_service_it_ends_in_order(local: Database, tmp_path: Path, number: int) -> None:
    out = tmp_path / "out"
    with out.open("w") as stream:
        service = subprocess.Popen(
            [sys.executable, "-c", OUR_COMMAND, "refresh", "--every", "600"],
            env={**os.environ, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": local.url},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lambda: "jobs: 1 online" in out.read_text(), 120, "the first round")
        service.send_signal(number)
        assert service.wait(60) == 128 + number
    finally:
        service.kill()
        service.wait()
    assert "Traceback" not in out.read_text()


def test_an_error_is_said_once_and_beside_the_result(database: Database, tmp_path: Path) -> None:
    """Airflow's own logging has messages on the standard output."""
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database.url,
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW__CELERY__BROKER_URL": "redis://127.0.0.1:1/0",
    }
    done = subprocess.run(
        [sys.executable, "-c", OUR_COMMAND, "refresh"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 1
    assert (done.stdout + done.stderr).count("Celery's broker cannot be reached") == 1
    assert done.stdout.splitlines() == ["tries: no workers", "celery: no workers"]
