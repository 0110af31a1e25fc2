"""Whole polls, with sources that say what a test wants."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, select, update

from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.states import SourceName
from airflow_worker_insight.registry import poll as module
from airflow_worker_insight.registry.liveness import NOT_CONFIGURED
from airflow_worker_insight.registry.observations import (
    PollContext,
    PollResult,
    SourceUnavailableError,
    WorkerObservation,
)
from airflow_worker_insight.registry.poll import PollOutcome, SourceOutcome, refresh, run_once
from airflow_worker_insight.store import clock
from airflow_worker_insight.store.airflow_history import find_run
from airflow_worker_insight.store.attempts import start as attempts_start
from airflow_worker_insight.store.tables import change, worker, worker_source
from airflow_worker_insight.store.workers import instances as store
from airflow_worker_insight.store.workers.queries import get_worker
from airflow_worker_insight.store.workers.upsert import upsert_worker
from tests.unit.database import Database, a_worker, add_run, add_try, change_try, on_both, on_postgresql, record_start
from tests.unit.registry.polling import FakeSource, Time, poll

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_mock import MockerFixture

INTERVAL = 30


@pytest.fixture
def celery(sources: list[Any]) -> FakeSource:
    sources.append(FakeSource())
    return sources[0]


def states(database: Database) -> dict[str, tuple[str | None, str | None]]:
    return {row["name"]: (row["state"], row["state_reason"]) for row in database.workers()}


def history(database: Database) -> list[tuple[str, str | None]]:
    statement = select(worker.c.name, change.c.state).join(worker, worker.c.id == change.c.worker_ref)
    with database.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(statement.order_by(change.c.id))]


# --- instances -------------------------------------------------------------------------------------------------------


@on_both
def test_a_worker_is_registered_and_then_kept(database: Database, celery: FakeSource) -> None:
    celery.workers = {"w1@host-1": {"concurrency": 16}, "w2@host-1": {}}
    assert poll() == SourceOutcome(SourceName.CELERY, polled=True, states={"online": 2}, registered=2)
    assert poll() == SourceOutcome(SourceName.CELERY, polled=True, states={"online": 2})
    assert [(row["name"], row["concurrency"]) for row in database.workers()] == [("w1@host-1", 16), ("w2@host-1", None)]
    assert history(database) == []


@on_both
def test_a_worker_that_falls_silent_is_lost_and_may_come_back(
    database: Database, celery: FakeSource, time: Time
) -> None:
    celery.workers = {"w1": {"started_at": None}}
    poll()
    (before,) = database.workers()
    facts, celery.workers = celery.workers, {}
    for seconds, state in ((30, "online"), (60, "unresponsive"), (60, "unresponsive"), (60, "lost")):
        time.passes(seconds)
        poll()
        assert states(database)["w1"][0] == state
    (row,) = database.workers()
    assert row["ended_at"] == row["last_seen_at"] == before["last_seen_at"]
    celery.workers = facts
    assert poll().changes == 1
    (row,) = database.workers()
    assert (row["state"], row["state_reason"], row["ended_at"]) == ("online", None, None)
    assert row["last_seen_at"] > before["last_seen_at"]
    assert history(database) == [("w1", "unresponsive"), ("w1", "lost"), ("w1", "online")]


@on_both
def test_a_restart_begins_a_new_instance_and_ends_the_old_one(database: Database, celery: FakeSource) -> None:
    celery.workers = {"w1": {"pid": 100}}
    poll()
    celery.workers = {"w1": {"pid": 200, "concurrency": 4}}
    assert poll().registered == 1
    assert [(row["pid"], row["state"]) for row in database.workers()] == [(100, "offline"), (200, "online")]
    assert poll() == SourceOutcome(SourceName.CELERY, polled=True, states={"online": 1})


@on_both
def test_a_worker_that_died_while_tries_ran_on_it_is_lost_though_it_was_restarted_at_once(
    database: Database, celery: FakeSource
) -> None:
    celery.workers = {"w1": {"pid": 100}}
    poll()
    with database.engine.begin() as connection:
        key = add_try(connection, add_run(connection, state="running", ended_at=None), state="running", ended_at=None)
        one = a_worker("celery-x", engine_name="w1", pid=100, name="w1")
        now = clock.database_now(connection)
        record_start(connection, key, one, try_started_at=now, state="running", now=now)
    poll()
    assert [row["running"] for row in database.workers()] == [1]
    celery.workers = {"w1": {"pid": 200}}
    poll()
    assert [(row["pid"], row["state"], row["running"]) for row in database.workers()] == [
        (100, "lost", 0),
        (200, "online", 0),
    ]


def test_of_two_workers_with_one_name_one_that_misses_a_poll_is_not_replaced_by_the_other(
    database: Database, celery: FakeSource, time: Time
) -> None:
    with database.engine.connect() as connection:
        began = clock.database_now(connection)
    alive = {1: began - timedelta(hours=2), 2: began - timedelta(hours=1)}

    def answer(context: PollContext) -> PollResult:
        known = {"kind": "celery", "engine_name": "w@h", "hostname": "h", "heartbeat_at": context.clock()}
        return PollResult(tuple(WorkerObservation(pid=pid, started_at=start, **known) for pid, start in alive.items()))

    celery.poll = answer  # type: ignore[method-assign]
    poll()
    with database.engine.begin() as connection:
        key = add_try(connection, add_run(connection, state="running", ended_at=None), state="running", ended_at=None)
        one = a_worker("x", engine_name="w@h", hostname="h", pid=1, name="w@h", started_at=alive[1])
        record_start(connection, key, one, try_started_at=began, state="running", now=began)
    time.passes(30)
    poll()
    first = alive.pop(1)
    time.passes(30)
    poll()
    assert [(row["pid"], row["state"]) for row in database.workers()] == [(1, "online"), (2, "online")]
    alive[1] = first
    time.passes(30)
    poll()
    assert history(database) == []
    # A restart in its place.
    alive[1] = began + timedelta(seconds=100)
    time.passes(30)
    poll()
    assert [(row["pid"], row["state"]) for row in database.workers()] == [(1, "lost"), (2, "online"), (1, "online")]


@on_both
def test_a_shutdown_event_and_a_removed_mailbox_are_offline(database: Database, celery: FakeSource) -> None:
    celery.workers = {"w1": {}, "w2": {}, "w3": {}}
    celery.mailboxes = frozenset(celery.workers)
    poll()
    celery.workers = {"w1": {"has_left": True, "heartbeat_at": None}}
    celery.mailboxes = frozenset({"w3"})
    poll()
    found = {name: state for name, (state, _) in states(database).items()}
    assert found == {"w1": "offline", "w2": "offline", "w3": "online"}
    assert all(row["ended_at"] is not None for row in database.workers() if row["state"] == "offline")
    assert poll().changes == 0


def test_a_shutdown_event_of_an_unknown_worker_registers_none(database: Database, celery: FakeSource) -> None:
    celery.workers = {"w1": {"has_left": True, "heartbeat_at": None}}
    poll()
    assert database.workers() == []


@on_both
def test_a_report_and_the_source_name_one_worker(database: Database, celery: FakeSource) -> None:
    """Whichever comes first, and also where both come at once."""
    reported = a_worker("celery-x", engine_name="w1", pid=100, name="etl-large")

    def report() -> None:
        with database.engine.begin() as connection:
            upsert_worker(connection, reported, now=clock.database_now(connection))

    celery.workers = {"w1": {}}
    report()
    poll()
    assert len(database.workers()) == 1
    celery.workers["w2"] = {}
    poll()
    reported = a_worker("celery-y", engine_name="w2", pid=100, name="etl-small")
    report()
    poll()
    assert len(database.workers()) == 2
    # Neither has seen the other's row.
    celery.workers["w3"] = {}
    poll()
    with database.engine.begin() as connection:
        connection.execute(update(worker).where(worker.c.name == "w3").values(engine_name="not yet"))
    reported = a_worker("celery-z", engine_name="w3", pid=100, name="etl-tiny")
    report()
    with database.engine.begin() as connection:
        connection.execute(update(worker).where(worker.c.name == "w3").values(engine_name="w3"))
    poll()
    rows = [row for row in database.workers() if row["ended_at"] is None]
    assert sorted(row["name"] for row in rows) == ["etl-large", "etl-small", "etl-tiny"]
    assert {row["state"] for row in rows} == {"online"}


@on_both
@pytest.mark.parametrize(("name", "pid"), [(SourceName.CELERY, 7), (SourceName.EDGE, None)])
@pytest.mark.parametrize("skew", [-600, 0, 600])
def test_a_try_reported_before_the_restart_was_seen_is_of_the_new_instance(
    database: Database, sources: list[Any], time: Time, name: str, pid: int | None, skew: float
) -> None:
    """In a container the next instance has the same process ID, and of Edge workers only the name is known."""
    with database.engine.connect() as connection:
        began = clock.database_now(connection)
    one = FakeSource(name, name, {"w1": {"pid": pid, "started_at": began - timedelta(hours=5), "queues": ("default",)}})
    sources.append(one)
    poll()
    time.passes(40)
    restarted = began + timedelta(seconds=40)
    told = restarted + timedelta(seconds=skew)
    report = a_worker("new", kind=name, engine_name="w1", pid=7, name="w1", started_at=told)
    with database.engine.begin() as connection:
        key = add_try(connection, add_run(connection, state="running", ended_at=None), state="running", ended_at=None)
        record_start(connection, key, report, try_started_at=told, state="running", now=restarted)
    one.workers = {"w1": {"pid": pid, "started_at": restarted}}
    for _ in range(3):
        time.passes(30)
        poll()
    assert [(row["reported_id"], row["state"]) for row in database.workers()] == [(None, "offline"), ("new", "online")]
    assert [row["worker_id"] for row in database.attempts()] == ["new"]


@on_both
@pytest.mark.parametrize(("name", "pid"), [(SourceName.CELERY, 7), (SourceName.EDGE, None)])
@pytest.mark.parametrize("skew", [-7200, -600, 0, 600])
def test_a_worker_whose_clock_is_wrong_is_one_worker_after_the_next_poll(
    database: Database, sources: list[Any], time: Time, name: str, pid: int | None, skew: float
) -> None:
    with database.engine.connect() as connection:
        began = clock.database_now(connection)
    one = FakeSource(name, name, {"w1": {"pid": pid, "started_at": began - timedelta(minutes=1)}})
    sources.append(one)
    poll()
    told = began - timedelta(minutes=1) + timedelta(seconds=skew)
    report = a_worker("mine", kind=name, engine_name="w1", pid=7, name="w1", started_at=told)
    with database.engine.begin() as connection:
        upsert_worker(connection, report, now=began)
    assert len(database.workers()) == (2 if skew else 1)
    time.passes(30)
    poll()
    rows = [row for row in database.workers() if row["ended_at"] is None]
    assert [(row["reported_id"], row["state"]) for row in rows] == [("mine", "online")]
    assert history(database) == []


def test_what_is_registered_during_a_poll_is_not_judged_by_it(database: Database, sources: list[Any]) -> None:
    """A pod that came while the running tries were read would seem to have none."""

    def pod_comes() -> None:
        with database.engine.begin() as connection:
            upsert_worker(connection, a_worker("pod-1", kind="kubernetes"), now=clock.database_now(connection))

    sources.append(FakeSource(SourceName.TRIES, "kubernetes", meanwhile=pod_comes))
    poll()
    assert [row["state"] for row in database.workers()] == ["online"]
    sources[0].meanwhile = lambda: None
    poll()
    assert [row["state"] for row in database.workers()] == ["offline"]
    assert history(database) == [], "a pod's try has a history of its own"


def test_an_answer_that_comes_twice_is_one_worker(database: Database, celery: FakeSource) -> None:
    one = WorkerObservation(kind="celery", engine_name="w1", hostname="h", pid=1)
    celery.poll = lambda context: PollResult((replace(one, heartbeat_at=context.clock()),) * 2)  # type: ignore[method-assign]
    assert poll().registered == 1
    poll()
    assert len(database.workers()) == 1


def test_a_time_in_the_future_does_not_keep_a_worker_alive(database: Database, celery: FakeSource, time: Time) -> None:
    """An API server whose clock is ahead has written it with the start of a try."""
    celery.workers = {"w1": {}}
    poll()
    with database.engine.begin() as connection:
        ahead = clock.database_now(connection) + timedelta(minutes=10)
        connection.execute(update(worker).values(last_seen_at=ahead))
    celery.workers = {}
    for _ in range(8):
        time.passes(30)
        poll()
    assert states(database)["w1"][0] == "lost"


def test_a_clock_that_was_set_back_does_not_keep_a_worker_from_being_lost(
    database: Database, celery: FakeSource, time: Time
) -> None:
    time.passes(7200)
    celery.workers = {"w1": {}}
    poll()
    time.passes(-7200)
    celery.workers = {}
    for _ in range(8):
        time.passes(30)
        poll()
    assert states(database)["w1"][0] == "lost"


@on_both
def test_two_thousand_workers_cost_a_handful_of_statements(database: Database, celery: FakeSource, time: Time) -> None:
    sent: list[str] = []

    def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        # How long SQLite waits is set for each transaction.
        if not statement.startswith("PRAGMA"):
            sent.append(statement)

    event.listen(database.engine, "before_cursor_execute", count)
    celery.workers = {f"w{number}@host-{number // 10}": {"pid": number + 1} for number in range(2000)}
    assert poll().registered == 2000
    for workers, changes in ((dict(celery.workers), 0), ({}, 2000)):
        sent.clear()
        celery.workers = workers
        time.passes(61)
        assert poll().changes == changes
        assert len(sent) <= 30


# --- sources ---------------------------------------------------------------------------------------------------------


@on_both
def test_a_source_that_is_down_makes_its_workers_unresponsive_and_never_lost(
    database: Database, celery: FakeSource, time: Time
) -> None:
    celery.workers = {"w1": {}}
    poll()
    celery.error = SourceUnavailableError("Celery's broker cannot be reached: Connection refused.")
    for _ in range(20):
        time.passes(30)
        assert poll().error == str(celery.error)
    assert states(database) == {"w1": ("unresponsive", "Celery's broker cannot be reached: Connection refused.")}
    celery.error = None
    time.passes(30)
    poll()
    assert states(database) == {"w1": ("online", None)}


@on_both
@pytest.mark.parametrize("error", [str, SourceUnavailableError, RuntimeError])
def test_however_long_the_error_is_it_is_written(
    database: Database, celery: FakeSource, time: Time, error: Callable[[str], Any]
) -> None:
    """Of several brokers that are down each says why."""
    celery.workers = {"w1": {}}
    poll()
    celery.workers = {}
    celery.error = error("Celery's broker cannot be reached: Connection refused.\n" * 50)
    time.passes(90)
    outcome = poll()
    assert (outcome.polled, outcome.states) == (True, {"unresponsive": 1})
    assert 400 < len(outcome.error or "") <= 500
    assert states(database)["w1"] == ("unresponsive", outcome.error)


def test_an_hour_without_a_poll_does_not_count(database: Database, celery: FakeSource, time: Time) -> None:
    celery.workers = {"w1": {}}
    poll()
    time.passes(3600)
    facts, celery.workers = celery.workers, {}
    poll()
    time.passes(30)
    poll()
    assert states(database)["w1"][0] == "unresponsive"
    celery.workers = facts
    poll()
    assert states(database)["w1"][0] == "online"


@on_both
@pytest.mark.parametrize("minutes", [1, 2, 5, 10, 60])
def test_polls_from_cron_find_shutdowns_and_deaths(
    database: Database, celery: FakeSource, time: Time, minutes: int
) -> None:
    celery.workers = {"w1": {}, "w2": {}, "w3": {}}
    celery.mailboxes = frozenset(celery.workers)
    for _ in range(3):
        poll()
        time.passes(60 * minutes)
    celery.workers = {"w1": {}}
    celery.mailboxes = frozenset({"w1", "w3"})
    for _ in range(5):
        poll()
        time.passes(60 * minutes)
    assert {name: state for name, (state, _) in states(database).items()} == {
        "w1": "online",
        "w2": "offline",
        "w3": "lost",
    }


@on_both
def test_workers_of_an_executor_that_is_not_configured_any_more_end(
    database: Database, sources: list[Any], time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources += [FakeSource(workers={"w1": {}, "busy": {"pid": 200}}), FakeSource(SourceName.TRIES, "kubernetes")]
    refresh(only_if_due=False)
    with database.engine.begin() as connection:
        key = add_try(connection, add_run(connection, state="running", ended_at=None), state="running", ended_at=None)
        now = clock.database_now(connection)
        one = a_worker("busy", engine_name="busy", pid=200, name="busy", started_at=None)
        record_start(connection, key, one, try_started_at=now, state="running", now=now)
    refresh(only_if_due=False)
    celery = sources.pop(0)
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    time.passes(3600)
    poll()
    assert states(database)["w1"] == ("online", None), "its provider may be installed elsewhere"
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "KubernetesExecutor")
    poll()
    assert states(database) == {"w1": ("offline", NOT_CONFIGURED), "busy": ("online", None)}
    assert [row["ended_at"] == row["last_seen_at"] for row in database.workers()] == [True, False]
    assert history(database) == [("w1", "offline")]
    sources.insert(0, celery)
    poll()
    assert states(database)["w1"] == ("online", None)
    assert len(database.workers()) == 2


def shown(database: Database, worker_id: str) -> tuple[str | None, str]:
    """Return the state and the reason that a page shows."""
    with database.engine.connect() as connection:
        one = get_worker(connection, worker_id)
    assert one is not None
    return one.state, one.state_reason or ""


@on_both
def test_workers_of_a_source_never_polled_end_after_a_day_without_a_try(
    database: Database, sources: list[Any], time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 2.11's workers after an upgrade. A server may also be configured in another way than those who run them."""
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "KubernetesExecutor")
    sources.append(FakeSource(SourceName.TRIES, "kubernetes"))

    def runs_a_try(worker_id: str, number: int) -> None:
        with database.engine.begin() as connection:
            run = find_run(connection, "etl", "run-1") or add_run(connection)
            key = add_try(connection, run, f"{worker_id}-{number}")
            now = time(connection)
            attempts_start.seen_workers(connection).forget()
            record_start(connection, key, a_worker(worker_id), try_started_at=now, state="running", now=now)

    runs_a_try("celery-1", 1)
    time.passes(80_000)
    runs_a_try("celery-2", 1)
    time.passes(80_000)
    poll()
    assert {row["worker_id"]: row["state"] for row in database.workers()} == {
        "celery-1": "online",
        "celery-2": "online",
    }, "the executor is at work somewhere"
    state, reason = shown(database, "celery-1")
    assert state is None
    assert "no executor in [core] executor has such workers" in reason
    assert "refresh" not in reason

    time.passes(10_000)
    poll()
    for worker_id in ("celery-1", "celery-2"):
        assert shown(database, worker_id) == ("offline", NOT_CONFIGURED)

    runs_a_try("celery-2", 2)
    poll()
    assert shown(database, "celery-1")[0] == "offline"
    assert [(row["state"], row["ended_at"]) for row in database.workers()][1] == ("online", None)


@pytest.mark.parametrize("error", [ValueError("an answer made no sense"), RuntimeError()])
def test_an_error_of_one_source_leaves_the_others_alone(
    database: Database, sources: list[Any], error: Exception
) -> None:
    sources += [FakeSource(error=error), FakeSource(SourceName.EDGE, "edge", {"edge-1": {}})]
    broken, working = refresh(only_if_due=False).sources
    assert type(error).__name__ in (broken.error or "")
    assert working.states == {"online": 1}
    with database.engine.connect() as connection:
        errors = dict(connection.execute(select(worker_source.c.name, worker_source.c.error)).all())
    assert errors == {SourceName.CELERY: broken.error, SourceName.EDGE: None}


def test_a_failed_write_is_an_error_of_that_source_only(database: Database, sources: list[Any]) -> None:
    def too_long(context: PollContext) -> PollResult:
        return PollResult(
            (WorkerObservation(kind="celery", engine_name="w", hostname=None, heartbeat_at=context.clock()),)
        )  # type: ignore[arg-type]

    sources += [FakeSource(), FakeSource(SourceName.EDGE, "edge", {"edge-1": {}})]
    sources[0].poll = too_long
    broken, working = refresh(only_if_due=False).sources
    assert broken.error
    assert not broken.polled
    assert working.registered == 1
    assert [row["name"] for row in database.workers()] == ["edge-1"]


def test_a_source_is_called_back_once_its_result_is_written(database: Database, celery: FakeSource) -> None:
    told: list[str] = []
    facts: dict[str, Any] = {}

    def written() -> None:
        told.extend(row["name"] for row in database.workers())
        raise OSError("the broker went away")

    def one(context: PollContext) -> PollResult:
        seen = {"hostname": "host-1", "heartbeat_at": context.clock(), **facts}
        return PollResult((WorkerObservation(kind="celery", engine_name="w1", **seen),), on_written=written)

    celery.poll = one  # type: ignore[method-assign]
    facts["hostname"] = None
    assert poll().error
    assert told == []
    facts.clear()
    assert poll() == SourceOutcome(SourceName.CELERY, polled=True, states={"online": 1}, registered=1)
    assert told == ["w1"]


def test_after_a_failed_write_the_source_is_polled_an_interval_later(
    database: Database, sources: list[Any], time: Time
) -> None:
    """And not only when the lease runs out, which is later."""
    one = FakeSource(workers={"w1": {"hostname": None}})
    sources.append(one)
    assert refresh(only_if_due=True).sources[0].error
    one.workers = {"w1": {}}
    assert not refresh(only_if_due=True).sources[0].polled
    time.passes(INTERVAL)
    assert refresh(only_if_due=True).sources[0].registered == 1
    assert [row["name"] for row in database.workers()] == ["w1"]


def test_a_source_gets_its_open_instances_and_the_start_of_the_previous_poll(
    database: Database, sources: list[Any], time: Time
) -> None:
    sources += [FakeSource(workers={"w1": {}, "w2": {}}), FakeSource(SourceName.EDGE, "edge", {"edge-1": {}})]
    refresh(only_if_due=False)
    time.passes(INTERVAL)
    refresh(only_if_due=False)
    first, second = sources[0].contexts
    assert first.instances == ()
    assert [instance.engine_name for instance in second.instances] == ["w1", "w2"]
    assert first.previous_started_at is None
    assert second.previous_started_at == first.started_at
    assert second.started_at - first.started_at >= timedelta(seconds=INTERVAL)
    assert [instance.engine_name for instance in sources[1].contexts[1].instances] == ["edge-1"]
    assert database.workers()


# --- leases ----------------------------------------------------------------------------------------------------------


@on_both
def test_only_one_process_polls_in_an_interval(database: Database, celery: FakeSource, time: Time) -> None:
    assert refresh(only_if_due=True).sources[0].polled
    later = refresh(only_if_due=True)
    assert not later.sources[0].polled
    assert 0 < later.due_in <= INTERVAL
    time.passes(INTERVAL)
    assert refresh(only_if_due=True).sources[0].polled
    assert celery.polls == 2
    assert refresh(only_if_due=False).sources[0].polled, "a person who asks gets a poll"
    assert database.workers() == []


@on_postgresql
def test_of_many_processes_at_once_one_polls(database: Database, celery: FakeSource, time: Time) -> None:
    celery.workers = {"w1": {}}
    outcomes: list[PollOutcome] = []
    for round_ in range(1, 4):
        together = threading.Barrier(8)

        def come(together: threading.Barrier = together) -> None:
            together.wait()
            outcomes.append(refresh(only_if_due=True))

        threads = [threading.Thread(target=come) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert celery.polls == round_
        time.passes(INTERVAL)
    assert [one.sources[0].error for one in outcomes] == [None] * 24
    assert len(database.workers()) == 1


@on_postgresql
def test_processes_that_poll_at_the_same_time_write_one_after_the_other(database: Database, celery: FakeSource) -> None:
    """A person runs the command while an API server polls: each worker is registered once."""
    celery.workers = {f"w{number}": {} for number in range(50)}
    together = threading.Barrier(4)
    celery.meanwhile = lambda: (together.wait(), None)[1]  # type: ignore[func-returns-value]
    outcomes: list[PollOutcome] = []
    threads = [threading.Thread(target=lambda: outcomes.append(refresh(only_if_due=False))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(database.workers()) == 50
    assert sum(one.sources[0].registered for one in outcomes) == 50


def test_while_one_process_polls_no_other_begins(database: Database, celery: FakeSource) -> None:
    """However short the interval is."""
    inner: list[PollOutcome] = []

    def someone_else() -> None:
        celery.meanwhile = lambda: None
        inner.append(refresh(only_if_due=True))

    celery.meanwhile = someone_else
    refresh(only_if_due=True)
    assert [one.sources[0].polled for one in inner] == [False]
    assert database.workers() == []


def test_after_a_poll_gauges_are_emitted_and_the_retention_limit_is_applied(
    database: Database, celery: FakeSource, mocker: MockerFixture
) -> None:
    done = mocker.Mock()
    mocker.patch.object(module, "emit_gauges", done.emit_gauges)
    mocker.patch.object(module, "apply_retention", done.apply_retention)
    run_once()
    run_once()
    assert done.mock_calls == [mocker.call.emit_gauges(), mocker.call.apply_retention()]
    assert celery.polls == 1
    assert database.workers() == []


# --- real sources in the database ------------------------------------------------------------------------------------


@on_both
@pytest.mark.usefixtures("time")
def test_a_pod_is_online_as_long_as_its_try_runs(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "airflow.providers.example.MyPodExecutor")
    with database.engine.begin() as connection:
        key = add_try(connection, add_run(connection, state="running", ended_at=None), state="running", ended_at=None)
        now = clock.database_now(connection)
        pod = a_worker("pod-1", kind="kubernetes")
        record_start(connection, key, pod, try_started_at=now, state="running", now=now)
    assert poll() == SourceOutcome(SourceName.TRIES, polled=True, states={"online": 1})
    (row,) = database.workers()
    assert (row["state"], row["running"]) == ("online", 1)
    with database.engine.begin() as connection:
        change_try(connection, key, state="success")
    assert poll().states == {"offline": 1}
    (row,) = database.workers()
    assert (row["state"], row["running"]) == ("offline", 0)
    assert row["ended_at"] is not None
    assert poll().states == {}


@pytest.mark.parametrize(
    ("kind", "kept"),
    [("kubernetes", ["lost", "online"]), ("MyExecutor", ["unresponsive", "lost", "online"])],
)
def test_one_that_comes_back_has_a_history_that_says_so(
    database: Database, sources: list[Any], time: Time, kind: str, kept: list[str]
) -> None:
    sources.append(FakeSource(SourceName.TRIES, kind))
    with database.engine.begin() as connection:
        beat = clock.database_now(connection)
        ref = upsert_worker(connection, a_worker("one", kind=kind), now=beat)
    workers = {"one": {"ref": ref, "heartbeat_at": beat}}
    sources[0].workers = workers
    for _ in range(8):
        poll()
        time.passes(30)
    workers["one"]["heartbeat_at"] = beat + timedelta(minutes=4)
    poll()
    sources[0].workers = {}
    poll()
    (row,) = database.workers()
    assert row["state"] == ("offline" if kind == "kubernetes" else None)
    assert [state for _, state in history(database)] == kept


@on_both
@pytest.mark.usefixtures("time")
def test_an_unknown_executors_worker_is_online_only_while_it_runs_something(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "my.package.MyExecutor")
    with database.engine.begin() as connection:
        key = add_try(connection, add_run(connection, state="running", ended_at=None), state="running", ended_at=None)
        now = clock.database_now(connection)
        one = a_worker("mine-1", kind="MyExecutor")
        record_start(connection, key, one, try_started_at=now, state="running", now=now)
    for state, expected in (("running", "online"), ("success", None), ("running", "online")):
        with database.engine.begin() as connection:
            change_try(connection, key, state=state)
        poll()
        (row,) = database.workers()
        assert row["state"] == expected
        assert bool(row["state_reason"]) is (expected is None)
        assert row["ended_at"] is None
    assert history(database) == []


@pytest.mark.parametrize("is_one_of_two", [False, True])
@on_both
def test_a_scheduler_with_named_workers_is_each_of_them(
    database: Database, monkeypatch: pytest.MonkeyPatch, time: Time, is_one_of_two: bool
) -> None:
    path = "placed:airflow_worker_insight.executors.local.WorkerInsightLocalExecutor"
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", f"LocalExecutor,{path}" if is_one_of_two else path)
    job = metadata_database.job_table()
    with database.engine.begin() as connection:
        now = time(connection)
        row = {"id": 1, "job_type": "SchedulerJob", "hostname": "host-1", "start_date": now, "state": "running"}
        connection.execute(job.insert().values(**row, latest_heartbeat=now))
        for name in ("etl", "reports"):
            own = a_worker(f"local-{name}", name=name, kind="local", engine_name=f"{name}@host-1", job_id=1)
            store.register_own(connection, own, concurrency=2, now=now)
    plain = ["local@host-1"] if is_one_of_two else []
    poll()
    assert [row["name"] for row in database.workers()] == ["etl", "reports", *plain]

    def beat(**values: Any) -> None:
        time.passes(30)
        with database.engine.begin() as connection:
            connection.execute(job.update().values(latest_heartbeat=time(connection), **values))

    for _ in range(3):
        beat()
        poll()
    rows = database.workers()
    assert [(row["state"], row["job_id"]) for row in rows] == [("online", 1)] * len(rows)
    assert [row["concurrency"] for row in rows[:2]] == [2, 2]
    assert [row["worker_id"] for row in rows[:2]] == ["local-etl", "local-reports"]
    # It was frozen, and is seen again.
    for _ in range(8):
        time.passes(30)
        poll()
    assert {row["state"] for row in database.workers()} == {"lost"}
    beat()
    poll()
    assert {row["state"] for row in database.workers()} == {"online"}
    beat(state="success")
    poll()
    assert {row["state"] for row in database.workers()} == {"offline"}
    assert len(database.workers()) == len(rows)


@on_both
def test_a_scheduler_with_local_executor_is_a_worker(
    database: Database, monkeypatch: pytest.MonkeyPatch, time: Time
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "LocalExecutor")
    monkeypatch.setenv("AIRFLOW__CORE__PARALLELISM", "8")
    job = metadata_database.job_table()

    def beat(ref: int, seconds: float = 0, **others: Any) -> None:
        with database.engine.begin() as connection:
            now = time(connection) + timedelta(seconds=seconds)
            values = {"state": "running", "latest_heartbeat": now, **others}
            if connection.execute(job.update().where(job.c.id == ref).values(**values)).rowcount == 0:
                row = {"id": ref, "job_type": "SchedulerJob", "hostname": "host-1", "start_date": now, **values}
                connection.execute(job.insert().values(**row))

    beat(1)
    beat(2, seconds=-86400)
    beat(3, job_type="TriggererJob")
    poll()
    (row,) = database.workers()
    assert (row["kind"], row["name"], row["job_id"], row["concurrency"]) == ("local", "local@host-1", 1, 8)
    # The clock of the scheduler's host is ten minutes ahead: that its heartbeat moves is what counts.
    for step in range(8):
        time.passes(30)
        beat(1, seconds=600 + step)
        assert poll().states == {"online": 1}
    beat(1, state="success")
    poll()
    assert states(database)["local@host-1"][0] == "offline"
    beat(4)
    poll()
    assert [(row["job_id"], row["state"]) for row in database.workers()] == [(1, "offline"), (4, "online")]
    for _ in range(8):
        time.passes(30)
        poll()
    assert [(row["job_id"], row["state"]) for row in database.workers()] == [(1, "offline"), (4, "lost")]
