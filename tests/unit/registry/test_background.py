"""The thread that looks at the workers from within an API server."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight import compat
from airflow_worker_insight.capture import counters
from airflow_worker_insight.registry import background
from airflow_worker_insight.registry.background import Refresher, refreshing
from airflow_worker_insight.registry.poll import PollOutcome, SourceOutcome
from airflow_worker_insight.store import migrate
from tests.support.processes import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.database import Database


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[PollOutcome | Exception]:
    """Return what the next rounds come to; the last is repeated, and each that was gone is counted on the function."""
    outcomes: list[PollOutcome | Exception] = [PollOutcome((), due_in=0.0)]
    monkeypatch.setattr(background, "JITTER", 0.0)
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__REFRESH_INTERVAL", "1")
    monkeypatch.setattr(counters, "_warned", set())

    def run_once() -> PollOutcome:
        gone.append(threading.current_thread())
        outcome = outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(background, "run_once", run_once)
    return outcomes


gone: list[threading.Thread] = []


@pytest.fixture(autouse=True)
def _nothing_gone() -> None:
    gone.clear()


def refreshers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "worker-insight-refresh"]


def run_while(condition: Callable[[], Any]) -> None:
    """Run the lifespan until the condition holds."""

    async def serve() -> None:
        async with refreshing(None):
            await asyncio.to_thread(wait_for, condition, 30, "the thread")

    asyncio.run(serve())


@pytest.mark.usefixtures("rounds", "database")
def test_a_server_looks_while_it_runs_and_no_longer() -> None:
    run_while(lambda: len(gone) >= 3)
    assert refreshers() == []
    assert {thread.daemon for thread in gone} == {True}
    assert len(set(gone)) == 1


@pytest.mark.usefixtures("rounds", "database")
def test_switched_off_it_does_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__ENABLED", "False")
    run_while(lambda: refreshers() == [])
    assert gone == []


@pytest.mark.usefixtures("database")
def test_an_error_is_said_once_and_is_not_the_end(
    rounds: list[PollOutcome | Exception], caplog: pytest.LogCaptureFixture
) -> None:
    rounds[:0] = [RuntimeError("the database went away"), RuntimeError("the database went away")]
    run_while(lambda: len(gone) >= 3)
    assert [record.getMessage() for record in caplog.records if "database went away" in record.getMessage()] == [
        "Airflow Worker Insight cannot look at the workers now: RuntimeError: the database went away"
    ]


@pytest.mark.usefixtures("rounds")
def test_without_tables_it_says_what_to_do_and_begins_when_they_are_there(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert database.url
    answers = [migrate.Schema.MISSING, migrate.Schema.OLD]
    monkeypatch.setattr(
        background.migrate, "check", lambda _connection: answers.pop(0) if answers else migrate.Schema.READY
    )
    run_while(lambda: gone)
    (warning,) = [record.getMessage() for record in caplog.records if "nobody looks" in record.getMessage()]
    assert "db migrate" in warning


@pytest.mark.usefixtures("database")
def test_tables_that_were_taken_away_are_looked_for_again(
    rounds: list[PollOutcome | Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[Any] = []
    monkeypatch.setattr(
        background.migrate, "check", lambda connection: (checks.append(connection), migrate.Schema.READY)[1]
    )
    rounds[:0] = [PollOutcome((SourceOutcome("celery", looked=False, error="no such table"),), due_in=0.0)]
    run_while(lambda: len(gone) >= 4)
    assert len(checks) == 2


@pytest.mark.usefixtures("rounds", "database")
def test_a_server_that_stops_does_not_wait_for_a_look_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "STOP_SECONDS", 0.01)
    hangs, goes_on = threading.Event(), threading.Event()

    def hang() -> PollOutcome:
        hangs.set()
        goes_on.wait()
        return PollOutcome((), 0.0)

    monkeypatch.setattr(background, "run_once", hang)
    run_while(hangs.is_set)
    (left_behind,) = refreshers()
    assert left_behind.daemon
    goes_on.set()
    left_behind.join()


@pytest.mark.usefixtures("database")
def test_options_that_are_no_numbers_do_not_end_it(
    rounds: list[PollOutcome | Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rounds
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__REFRESH_INTERVAL", "often")
    run_while(lambda: gone)


@pytest.mark.skipif(not compat.is_airflow_3(), reason="2.11 has no FastAPI apps")
def test_airflow_enters_the_lifespan_of_our_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through its own, in each process that serves."""
    from airflow.api_fastapi.app import lifespan
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    from airflow_worker_insight.capture import claim
    from airflow_worker_insight.plugin import WorkerInsightPlugin

    entered: list[str] = []
    monkeypatch.setattr(Refresher, "start", lambda _self: entered.append("started"))
    monkeypatch.setattr(Refresher, "stop", lambda _self: entered.append("stopped"))
    (ours,) = WorkerInsightPlugin().fastapi_apps
    claim.uninstall()
    root = FastAPI(lifespan=lifespan)
    root.mount(ours["url_prefix"], ours["app"])
    with TestClient(root):
        assert entered == ["started"]
    assert entered == ["started", "stopped"]
