"""The thread that polls the workers in an API server."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight import compat
from airflow_worker_insight.registry.background import PollThread, poll_lifespan
from airflow_worker_insight.registry.poll import PollOutcome, SourceOutcome
from airflow_worker_insight.store import leases
from airflow_worker_insight.store.migrate import Schema
from airflow_worker_insight.store.schema_gate import SchemaGate
from tests.support.processes import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_mock import MockerFixture

    from tests.unit.database import Database


class Polls:
    """What the next polls come to, the last again and again, and the threads that polled."""

    def __init__(self, *outcomes: PollOutcome | Exception) -> None:
        self._outcomes = [*outcomes, PollOutcome((), due_in=0.0)]
        self.threads: list[threading.Thread] = []

    def __call__(self) -> PollOutcome:
        self.threads.append(threading.current_thread())
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def __len__(self) -> int:
        return len(self.threads)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def ready() -> Schema:
    return Schema.READY


def no_jitter() -> float:
    return 0.0


def gate_of(check: Callable[[], Schema]) -> SchemaGate:
    """Return a gate that checks the tables in this way."""
    return SchemaGate(recheck_seconds=0, check=lambda _connection: check())


def poll_thread(polls: Callable[[], PollOutcome], **others: Any) -> PollThread:
    """Return a thread that polls as fast as it can."""
    settings = {"claim_reports": list, "schema_gate": gate_of(ready), "jitter": no_jitter, "claim_interval": 0.01}
    return PollThread(poll=polls, **{**settings, **others})


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "worker-insight-poll"]


def run_while(thread: PollThread, condition: Callable[[], Any]) -> None:
    """Run the lifespan until the condition holds."""

    async def serve() -> None:
        async with poll_lifespan(None, thread):
            await asyncio.to_thread(wait_for, condition, 30, "the thread")

    asyncio.run(serve())


def test_a_server_polls_while_it_runs_and_no_longer() -> None:
    polls = Polls()
    run_while(poll_thread(polls), lambda: len(polls) >= 3)
    assert threads() == []
    assert {thread.daemon for thread in polls.threads} == {True}
    assert len(set(polls.threads)) == 1


def test_switched_off_it_does_not_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__ENABLED", "False")
    polls = Polls()
    run_while(poll_thread(polls), lambda: threads() == [])
    assert polls.threads == []


def test_an_error_is_logged_once_and_is_not_the_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__REFRESH_INTERVAL", "1")
    polls = Polls(RuntimeError("the database went away"), RuntimeError("the database went away"))
    run_while(poll_thread(polls), lambda: len(polls) >= 3)
    assert [record.getMessage() for record in caplog.records if "database went away" in record.getMessage()] == [
        "Airflow Worker Insight cannot poll the workers now and will try again: RuntimeError: the database went away"
    ]


def test_one_failure_that_passes_is_not_worth_a_warning(
    caplog: pytest.LogCaptureFixture, mocker: MockerFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__REFRESH_INTERVAL", "1")
    warn_once = mocker.patch("airflow_worker_insight.registry.background.warn_once")
    locked = PollOutcome((SourceOutcome("jobs", polled=False, error="database is locked"),), due_in=0.0)
    polled = PollOutcome((SourceOutcome("jobs", polled=True),), due_in=0.0)
    polls = Polls(locked, polled, RuntimeError("database is locked"), polled, locked, polled)
    run_while(poll_thread(polls), lambda: len(polls) >= 6)
    assert not warn_once.called
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def test_source_that_cannot_be_polled_twice_in_a_row_is_warned_of(mocker: MockerFixture) -> None:
    warn_once = mocker.patch("airflow_worker_insight.registry.background.warn_once")
    locked = PollOutcome((SourceOutcome("jobs", polled=False, error="database is locked"),), due_in=0.0)
    thread = poll_thread(Polls(locked, locked))
    thread.run_once()
    thread.run_once()
    ((topic, _message, *named),) = [call.args for call in warn_once.call_args_list]
    assert (topic, named) == ("refresh.jobs", ["jobs", "database is locked"])


def test_between_two_failed_polls_a_source_may_be_not_due(mocker: MockerFixture) -> None:
    warn_once = mocker.patch("airflow_worker_insight.registry.background.warn_once")
    locked = PollOutcome((SourceOutcome("jobs", polled=False, error="database is locked"),), due_in=0.0)
    not_due = PollOutcome((SourceOutcome("jobs", polled=False),), due_in=0.0)
    thread = poll_thread(Polls(locked, not_due, locked))
    for _ in range(3):
        thread.run_once()
    assert [call.args[0] for call in warn_once.call_args_list] == ["refresh.jobs"]


def test_starting_again_delays_no_poll() -> None:
    polls, jitters = Polls(), []
    thread = poll_thread(polls, jitter=lambda: jitters.append(1) or 600.0, claim_interval=600.0)
    thread.start()
    thread.start()
    thread.stop()
    assert len(jitters) == 1


def test_after_an_error_the_next_poll_is_due_an_interval_later() -> None:
    clock, polls = Clock(), Polls(RuntimeError("the database went away"))
    thread = poll_thread(polls, clock=clock)
    thread.run_once()
    clock.now += 29.0
    thread.run_once()
    assert len(polls) == 1
    clock.now += 1.0
    thread.run_once()
    assert len(polls) == 2


def test_between_polls_it_claims_the_reports_left_behind() -> None:
    clock, polls, claims = Clock(), Polls(PollOutcome((), due_in=30.0)), []
    thread = poll_thread(polls, clock=clock, claim_reports=lambda: claims.append(clock()), claim_interval=5.0)
    waits = []
    for _ in range(8):
        waits.append(thread.run_once())
        clock.now += waits[-1]
    assert (len(claims), len(polls)) == (8, 3)
    assert waits == [5.0] * 6 + [0.0, 0.0]


def test_a_claim_that_fails_delays_no_poll() -> None:
    def fail() -> None:
        raise OSError("away")

    polls = Polls()
    poll_thread(polls, claim_reports=fail).run_once()
    assert len(polls) == 1


def test_without_tables_it_says_what_to_do_and_begins_when_they_are_there(
    mocker: MockerFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__REFRESH_INTERVAL", "1")
    warn_once = mocker.patch("airflow_worker_insight.registry.background.warn_once")
    schemas = [Schema.MISSING, Schema.OLD]
    polls = Polls()
    run_while(
        poll_thread(polls, schema_gate=gate_of(lambda: schemas.pop(0) if schemas else Schema.READY)),
        lambda: polls.threads,
    )
    topics = {call.args[0] for call in warn_once.call_args_list}
    (_, message, explanation), *_ = [call.args for call in warn_once.call_args_list]
    assert topics == {"schema"}
    assert "not polled" in message
    assert "db migrate" in explanation


def test_tables_that_were_removed_are_checked_again() -> None:
    checks: list[Schema] = []

    def check_schema() -> Schema:
        checks.append(Schema.READY)
        return checks[-1]

    polls = Polls(PollOutcome((SourceOutcome("celery", polled=False, error="no such table"),), due_in=0.0))
    thread = poll_thread(polls, schema_gate=gate_of(check_schema))
    for _ in range(4):
        thread.run_once()
    assert len(polls) == 4
    assert len(checks) == 2


def test_a_server_that_stops_does_not_wait_for_a_poll_that_hangs() -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    def hang() -> PollOutcome:
        hangs.set()
        goes_on.wait()
        return PollOutcome((), 0.0)

    run_while(poll_thread(hang, stop_timeout=0.01), hangs.is_set)
    (abandoned,) = threads()
    assert abandoned.daemon
    goes_on.set()
    abandoned.join()


def test_an_interval_that_is_no_number_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__REFRESH_INTERVAL", "often")
    polls = Polls()
    thread = PollThread(poll=polls, schema_gate=gate_of(ready), claim_reports=list)
    run_while(thread, lambda: polls.threads)


def test_by_itself_it_polls_the_configured_sources(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_polled() -> bool:
        with database.engine.connect() as connection:
            source = leases.find_source(connection, "tries")
        return source is not None and source.polled_at is not None

    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "KubernetesExecutor")
    run_while(PollThread(), is_polled)


@pytest.mark.skipif(not compat.is_airflow_3(), reason="2.11 has no FastAPI apps")
def test_airflow_enters_the_lifespan_of_our_app(mocker: MockerFixture) -> None:
    """Through its own, in each process that serves."""
    from airflow.api_fastapi.app import lifespan
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    from airflow_worker_insight.capture import claim
    from airflow_worker_insight.plugin import WorkerInsightPlugin

    entered: list[str] = []
    mocker.patch.object(PollThread, "start", side_effect=lambda: entered.append("started"))
    mocker.patch.object(PollThread, "stop", side_effect=lambda: entered.append("stopped"))
    (ours,) = WorkerInsightPlugin().fastapi_apps
    claim.uninstall()
    root = FastAPI(lifespan=lifespan)
    root.mount(ours["url_prefix"], ours["app"])
    with TestClient(root):
        assert entered == ["started"]
    assert entered == ["started", "stopped"]
