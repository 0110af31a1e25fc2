"""The monitor of Celery workers and what it does for them, with workers and a broker that a test makes up."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, update

from airflow_worker_insight.domain.reasons import PlacementReason
from airflow_worker_insight.executors.celery import rebalance
from airflow_worker_insight.executors.celery.consumers import ConsumerManager, ConsumerSettings
from airflow_worker_insight.executors.celery.monitor import CeleryMonitorSettings, CeleryWorkerMonitor
from airflow_worker_insight.executors.celery.queues import dedicated_queue
from airflow_worker_insight.executors.celery.rebalance import Rebalancer
from airflow_worker_insight.executors.monitor import MonitorSettings
from airflow_worker_insight.executors.placement.policy import Candidate, Placer, Task, exclusion_reason
from airflow_worker_insight.executors.placement.rules import Rules
from airflow_worker_insight.executors.placement.service import PlacementService, Snapshot
from airflow_worker_insight.registry.observations import SourceUnavailableError
from airflow_worker_insight.store import leases, migrate, placements
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.placements import Placement
from airflow_worker_insight.store.tables import worker, worker_source
from airflow_worker_insight.store.workers.upsert import upsert_worker
from tests.support.processes import wait_for
from tests.unit.database import NOON, Database, a_worker, add_run, add_try, on_both, record_start

if TYPE_CHECKING:
    from collections.abc import Callable

RULES = Rules("least_loaded", 4)

ALWAYS_DUE = ConsumerSettings(poll_interval=0.0, unsettled_poll_interval=0.0)


class Workers:
    """The workers as they answer, and the queues that they were to consume."""

    def __init__(self) -> None:
        self.queues: dict[str, set[str]] = {}
        self.polls: list[tuple[dict[str, str], dict[str, str]]] = []
        self.error: Exception | None = None
        self.obey = True
        self.before_poll: Callable[[], Any] = lambda: None
        self.silent: set[str] = set()
        """Nodes that obey but whose answers are lost."""

    def sync_consumers(self, _app: Any, *, add: dict[str, str], cancel: dict[str, str]) -> dict[str, frozenset[str]]:
        self.polls.append((add, cancel))
        self.before_poll()
        if self.error is not None:
            raise self.error
        if self.obey:
            for node in add.keys() & self.queues.keys():
                self.queues[node].add(add[node])
            for node in cancel.keys() & self.queues.keys():
                self.queues[node].discard(cancel[node])
        return {node: frozenset(queues) for node, queues in self.queues.items() if node not in self.silent}


class Reclaimer:
    """Moves as many messages as it may, one at least, and notes how it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, bool]] = []
        """The queue, the worker's name, and whether that worker is gone."""
        self.limits: list[int | None] = []
        self.candidates: tuple[Candidate, ...] = ()
        """The workers of the last call's snapshot."""
        self.removed: list[str] = []
        self.results: dict[str, int | Exception] = {}
        """Results of calls for certain queues."""
        self.before_call: Callable[[], Any] = lambda: None

    def reclaim_tasks(
        self, queue: str, snapshot: Snapshot, *, worker_name: str, is_gone: bool = False, limit: int | None = None
    ) -> int:
        self.before_call()
        self.calls.append((queue, worker_name, is_gone))
        self.limits.append(limit)
        self.candidates = snapshot.candidates
        result = self.results.get(queue, limit or 1)
        if isinstance(result, Exception):
            raise result
        return result

    def remove_queues(self, queues: list[str]) -> None:
        self.removed.extend(queues)


@pytest.fixture
def workers() -> Workers:
    return Workers()


@pytest.fixture
def reclaimer() -> Reclaimer:
    return Reclaimer()


@pytest.fixture
def make_monitor(workers: Workers, reclaimer: Reclaimer) -> Callable[..., CeleryWorkerMonitor]:
    """Return a function that makes a monitor to which everything is due at each run."""

    def make(
        rules: Rules = RULES,
        *,
        polling: ConsumerSettings = ALWAYS_DUE,
        poll_clock: Callable[[], float] = time.monotonic,
        rebalance_clock: Callable[[], float] = time.monotonic,
        run_interval: float = 2.0,
        refresh: Callable[..., None] = lambda **_: None,
        **settings: Any,
    ) -> CeleryWorkerMonitor:
        consumers = ConsumerManager(None, settings=polling, sync=workers.sync_consumers, clock=poll_clock)
        fake: Any = reclaimer
        return CeleryWorkerMonitor(
            None,
            PlacementService(rules),
            settings=CeleryMonitorSettings(**{"rebalance_interval": 0.0, **settings}),
            consumers=consumers,
            reclaimer=fake,
            rebalancer=Rebalancer(fake, rules, consumers, clock=rebalance_clock),
            refresh=refresh,
            monitor_settings=MonitorSettings(run_interval=run_interval),
        )

    return make


def store_workers(database: Database, workers: Workers, *names: str, **others: Any) -> dict[str, int]:
    """Store live workers that were polled just now; return their rows' IDs."""
    refs = {}
    with database.engine.begin() as connection:
        now = database_now(connection)
        connection.execute(worker_source.delete())
        connection.execute(insert(worker_source).values(name="celery", due_at=now, looked_at=now))
        for name in names:
            refs[name] = upsert_worker(connection, a_worker(name, engine_name=f"{name}@host"), now=now)
            values = {"state": "online", "concurrency": 2, "queues": ["default"], "engine_heartbeat_at": now, **others}
            connection.execute(update(worker).where(worker.c.id == refs[name]).values(**values))
            workers.queues.setdefault(f"{name}@host", {"default"})
    return refs


def change(database: Database, ref: int, **values: Any) -> None:
    with database.engine.begin() as connection:
        connection.execute(update(worker).where(worker.c.id == ref).values(**values))


def place(database: Database, ref: int, name: str, task_id: str = "extract") -> None:
    with database.engine.begin() as connection:
        run = add_run(connection, run_id=f"run-{name}-{task_id}", state="running", ended_at=None)
        key = add_try(connection, run, task_id, state="queued", ended_at=None, hostname=None)
        record = Placement(key, PlacementReason.LEAST_LOADED, "", worker_ref=ref, dedicated_queue=dedicated_queue(name))
        placements.write(connection, [record], now=NOON)


def candidates(monitor: CeleryWorkerMonitor) -> dict[str, Candidate]:
    snapshot = monitor.snapshot()
    assert snapshot is not None
    assert snapshot.unavailable_reason is None
    return {candidate.name: candidate for candidate in snapshot.candidates}


@on_both
def test_workers_become_candidates_once_they_consume_their_dedicated_queue(
    database: Database, workers: Workers, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    refs = store_workers(database, workers, "w1", "w2")
    del workers.queues["w2@host"]
    monitor = make_monitor()
    assert monitor.snapshot() is None
    monitor.run_once()
    candidate, other = candidates(monitor).values()
    assert (candidate.ref, candidate.worker_id, candidate.queues, candidate.concurrency, candidate.capacity) == (
        refs["w1"],
        "w1",
        {"default"},
        2,
        6,
    )
    assert candidate.unavailable_reason is None
    assert other.unavailable_reason == "does not consume its dedicated queue yet"
    assert workers.polls == [({"w1@host": dedicated_queue("w1"), "w2@host": dedicated_queue("w2")}, {})]


def test_quarantined_worker_stops_consuming_its_dedicated_queue(
    database: Database, workers: Workers, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    refs = store_workers(database, workers, "w1", "w2")
    monitor = make_monitor()
    monitor.run_once()
    change(database, refs["w1"], availability="quarantined")
    monitor.run_once()
    assert candidates(monitor)["w1@host"].availability == "quarantined"
    assert dedicated_queue("w1") not in workers.queues["w1@host"]
    change(database, refs["w1"], availability="available")
    monitor.run_once()
    assert candidates(monitor)["w1@host"].unavailable_reason is None


def test_silent_worker_gets_no_task_until_it_answers(
    database: Database, workers: Workers, reclaimer: Reclaimer, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    refs = store_workers(database, workers, "w1", "w2")
    place(database, refs["w1"], "w1")
    monitor = make_monitor()
    monitor.run_once()
    silent = workers.queues.pop("w1@host")
    monitor.run_once()
    assert candidates(monitor)["w1@host"].unavailable_reason is None, "an answer may go astray"
    assert reclaimer.calls == []
    monitor.run_once()
    assert candidates(monitor)["w1@host"].unavailable_reason == "does not answer"
    assert reclaimer.calls == [(dedicated_queue("w1"), "w1@host-1", False)]
    workers.queues["w1@host"] = silent
    monitor.run_once()
    assert candidates(monitor)["w1@host"].unavailable_reason is None


@pytest.mark.parametrize(
    ("changed", "is_gone"),
    [
        ({"state": "lost", "ended_at": NOON}, True),
        ({"state": "offline", "ended_at": NOON}, True),
        ({"state": "unresponsive"}, False),
        ({"availability": "quarantined"}, False),
        ({"availability": "draining"}, False),
        ({}, None),
    ],
)
def test_messages_are_reclaimed_from_workers_that_will_not_run_them(
    database: Database,
    workers: Workers,
    reclaimer: Reclaimer,
    changed: dict[str, Any],
    is_gone: bool | None,
    make_monitor: Callable[..., CeleryWorkerMonitor],
) -> None:
    refs = store_workers(database, workers, "w1", "w2")
    place(database, refs["w1"], "w1")
    monitor = make_monitor()
    monitor.run_once()
    if changed:
        change(database, refs["w1"], **changed)
        if "ended_at" in changed:
            del workers.queues["w1@host"]
    monitor.run_once()
    assert reclaimer.calls == ([] if is_gone is None else [(dedicated_queue("w1"), "w1@host-1", is_gone)])


def test_nothing_is_reclaimed_from_a_worker_that_does_not_consume_its_queue_yet(
    database: Database, workers: Workers, reclaimer: Reclaimer, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    refs = store_workers(database, workers, "w1", "w2")
    place(database, refs["w1"], "w1")
    monitor = make_monitor()
    monitor.run_once()
    workers.queues["w1@host"], workers.obey = {"default"}, False
    monitor.run_once()
    assert reclaimer.calls == [], "another scheduler may just have made it consume the queue"


def test_worker_that_never_answered_may_be_another_teams(
    database: Database, workers: Workers, reclaimer: Reclaimer, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    refs = store_workers(database, workers, "w1", "w2")
    del workers.queues["w1@host"]
    place(database, refs["w1"], "w1")
    monitor = make_monitor()
    for _ in range(ALWAYS_DUE.silent_after_missed + 1):
        monitor.run_once()
    assert reclaimer.calls == []
    found = candidates(monitor)
    assert [found[f"{name}@host"].may_return for name in ("w1", "w2")] == [False, True]


def test_tasks_do_not_wait_for_a_worker_that_is_silent_for_long(
    database: Database, workers: Workers, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    store_workers(database, workers, "w1", "w2")
    monitor = make_monitor()
    monitor.run_once()
    del workers.queues["w1@host"]
    for _ in range(ALWAYS_DUE.gone_after_missed - 1):
        monitor.run_once()
        assert candidates(monitor)["w1@host"].may_return
    monitor.run_once()
    assert not candidates(monitor)["w1@host"].may_return


def test_drained_worker_is_polled_at_once(
    database: Database, workers: Workers, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    refs = store_workers(database, workers, "w1", "w2")
    monitor = make_monitor(polling=ConsumerSettings(poll_interval=3600.0, unsettled_poll_interval=3600.0))
    for _ in range(2):
        monitor.run_once()
    assert len(workers.polls) == 1
    change(database, refs["w1"], availability="draining")
    for _ in range(2):
        monitor.run_once()
    assert len(workers.polls) == 2
    assert dedicated_queue("w1") not in workers.queues["w1@host"]


def test_dedicated_queues_of_ended_workers_are_removed_once(
    database: Database,
    workers: Workers,
    reclaimer: Reclaimer,
    make_monitor: Callable[..., CeleryWorkerMonitor],
) -> None:
    refs = store_workers(database, workers, "w1", "w2", "w3")
    with database.engine.begin() as connection:
        now = database_now(connection)
    change(database, refs["w1"], state="offline", ended_at=now - timedelta(minutes=10))
    change(database, refs["w2"], state="lost", ended_at=now - timedelta(minutes=1))
    monitor = make_monitor(sweep_interval=timedelta(0))
    for _ in range(3):
        monitor.run_once()
    assert reclaimer.removed == [dedicated_queue("w1")]


def test_messages_stay_while_no_other_worker_could_run_them(
    database: Database, workers: Workers, reclaimer: Reclaimer, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    refs = store_workers(database, workers, "w1")
    place(database, refs["w1"], "w1")
    monitor = make_monitor()
    monitor.run_once()
    change(database, refs["w1"], availability="quarantined")
    monitor.run_once()
    assert reclaimer.calls == []
    make_monitor(Rules("least_loaded", 4, "shared_queue")).run_once()
    assert reclaimer.calls == [(dedicated_queue("w1"), "w1@host-1", False)]


def test_messages_of_a_worker_that_has_just_started_stay(
    database: Database, workers: Workers, reclaimer: Reclaimer, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    store_workers(database, workers, "w1")

    def another_scheduler_sends() -> None:
        # It knows of the new worker before this one has its answer.
        place(database, store_workers(database, workers, "w2")["w2"], "w2")
        workers.queues["w2@host"].add(dedicated_queue("w2"))

    workers.before_poll, workers.silent = another_scheduler_sends, {"w2@host"}
    make_monitor().run_once()
    assert reclaimer.calls == []


@pytest.mark.parametrize("changed", [{"availability": "draining"}, {"state": "unresponsive"}])
def test_worker_that_changed_during_the_poll_does_not_get_its_messages_back(
    database: Database,
    workers: Workers,
    reclaimer: Reclaimer,
    make_monitor: Callable[..., CeleryWorkerMonitor],
    changed: dict[str, Any],
) -> None:
    refs = store_workers(database, workers, "w1", "w2")
    place(database, refs["w1"], "w1")
    monitor = make_monitor()
    monitor.run_once()
    workers.before_poll = lambda: change(database, refs["w1"], **changed)
    monitor.run_once()
    assert [queue for queue, *_ in reclaimer.calls] == [dedicated_queue("w1")]
    assert [candidate.name for candidate in reclaimer.candidates if exclusion_reason(candidate) is None] == ["w2@host"]


@pytest.mark.parametrize("result", [0, OSError("refused")], ids=["no worker has room", "it fails"])
def test_messages_that_cannot_be_reclaimed_do_not_keep_others_from_being_balanced(
    database: Database,
    workers: Workers,
    reclaimer: Reclaimer,
    make_monitor: Callable[..., CeleryWorkerMonitor],
    result: int | Exception,
) -> None:
    refs = store_workers(database, workers, "w1", "w2", "dead")
    place(database, refs["dead"], "dead")
    for number in range(4):
        place(database, refs["w1"], "w1", f"task-{number}")
    change(database, refs["dead"], state="lost", ended_at=NOON)
    reclaimer.results[dedicated_queue("dead")] = result
    monitor = make_monitor()
    del workers.queues["dead@host"]
    monitor.run_once()
    assert [queue for queue, *_ in reclaimer.calls] == [dedicated_queue("dead"), dedicated_queue("w1")]


def test_slow_reclaiming_stops_in_time_and_each_worker_gets_its_turn(
    database: Database, workers: Workers, reclaimer: Reclaimer, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    dead = [f"dead-{number}" for number in range(4)]
    refs = store_workers(database, workers, "w1", *dead)
    for name in dead:
        place(database, refs[name], name)
        change(database, refs[name], state="lost", ended_at=NOON)
        del workers.queues[f"{name}@host"]
        reclaimer.results[dedicated_queue(name)] = OSError("refused")
    clock = SimpleNamespace(now=0.0)

    def take_long() -> None:
        clock.now += rebalance.DEFAULTS.timeout / 2

    reclaimer.before_call = take_long
    monitor = make_monitor(rebalance_clock=lambda: clock.now)
    monitor.run_once()
    assert len(reclaimer.calls) == 2
    for _ in range(100):
        monitor.run_once()
    assert {queue for queue, *_ in reclaimer.calls} == set(map(dedicated_queue, dead))


def test_one_scheduler_at_a_time_reclaims(
    database: Database, workers: Workers, reclaimer: Reclaimer, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    refs = store_workers(database, workers, "w1", "w2")
    place(database, refs["w1"], "w1")
    monitor = make_monitor()
    monitor.run_once()
    change(database, refs["w1"], state="unresponsive")
    with database.engine.begin() as connection:
        due = database_now(connection) + timedelta(seconds=30)
        connection.execute(insert(worker_source).values(name=rebalance.LEASE, due_at=due))
    monitor.run_once()
    assert reclaimer.calls == []
    with database.engine.begin() as connection:
        connection.execute(update(worker_source).where(worker_source.c.name == rebalance.LEASE).values(due_at=NOON))
    monitor.run_once()
    monitor.run_once()
    assert len(reclaimer.calls) == 2, "the lease is given back"


def test_messages_move_from_a_busy_worker_to_an_idle_one(
    database: Database, workers: Workers, reclaimer: Reclaimer, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    refs = store_workers(database, workers, "w1", "w2")
    monitor = make_monitor()
    monitor.run_once()
    # Each runs two at once.
    for number in range(5):
        place(database, refs["w1"], "w1", f"task-{number}")
    for number in range(2):
        place(database, refs["w2"], "w2", f"other-{number}")
    monitor.run_once()
    assert reclaimer.calls == []
    with database.engine.begin() as connection:
        found = placements.open_placements(connection)
        placements.close(
            connection, {record.key: record.placed_at or NOON for record in found if record.worker_ref == refs["w2"]}
        )
    monitor.run_once()
    assert reclaimer.calls == [(dedicated_queue("w1"), "w1@host", False)]
    assert reclaimer.limits == [2]
    # A task that has failed on the idle worker stays at the busy one.
    placer = Placer(PlacementReason.LEAST_LOADED, reclaimer.candidates)
    retry = Task("etl", "run-1", "extract", -1, 2, "default", avoid=frozenset({"w2@host"}))
    assert placer.place(retry).reason == PlacementReason.OTHERS_FULL
    assert placer.place(replace(retry, avoid=frozenset())).worker == replace(candidates(monitor)["w2@host"], capacity=2)


def run(database: Database, name: str, number: int, *, seconds: float, state: str) -> None:
    """Have tries of one task run on a worker since so many seconds ago, to their end or until now."""
    record = a_worker(name, engine_name=f"{name}@host")
    with database.engine.begin() as connection:
        now = database_now(connection)
        began = now - timedelta(seconds=seconds)
        dag_run = add_run(connection, run_id=f"run-{name}-{state}", state="running", ended_at=None)
        for map_index in range(number):
            ended_at = now if state == "success" else None
            key = add_try(connection, dag_run, "load", map_index, state=state, started_at=began, ended_at=ended_at)
            record_start(connection, key, record, try_started_at=began, state="running", now=began)


def test_slow_worker_is_recognised_by_the_tries_that_it_still_runs(
    database: Database, workers: Workers, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    store_workers(database, workers, "w1", "w2")
    run(database, "w1", 3, seconds=10, state="success")
    run(database, "w2", 4, seconds=100, state="running")
    monitor = make_monitor(compare_interval=0.0)
    monitor.run_once()
    found = candidates(monitor)
    assert found["w1@host"].slowness == 1
    assert round(found["w2@host"].slowness) == 10
    # Tries of longer ago do not count.
    monitor._settings = replace(monitor._settings, compared_period=timedelta(seconds=50))
    monitor.run_once()
    assert candidates(monitor)["w2@host"].slowness == 1


def test_no_worker_is_slow_if_slow_from_is_0(
    database: Database, workers: Workers, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    store_workers(database, workers, "w1", "w2")
    run(database, "w1", 3, seconds=10, state="success")
    run(database, "w2", 4, seconds=100, state="running")
    monitor = make_monitor(replace(RULES, slow_from=0))
    monitor.run_once()
    assert not any(candidate.is_slow for candidate in candidates(monitor).values())


def test_messages_move_from_a_slow_worker_and_never_to_it(
    database: Database, workers: Workers, reclaimer: Reclaimer, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    refs = store_workers(database, workers, "w1", "w2", "w3")
    run(database, "w1", 3, seconds=10, state="success")
    run(database, "w2", 4, seconds=100, state="running")
    monitor = make_monitor()
    monitor.run_once()
    for number in range(4):
        place(database, refs["w1"], "w1", f"task-{number}")
    for number in range(3):
        place(database, refs["w2"], "w2", f"other-{number}")
    monitor.run_once()
    # The one that waits at the slow one goes first, whether or not the others are full.
    assert reclaimer.calls == [(dedicated_queue("w2"), "w2@host", False)]
    assert reclaimer.limits == [1]
    reclaimer.calls.clear()
    with database.engine.begin() as connection:
        found = placements.open_placements(connection)
        placements.close(
            connection, {record.key: record.placed_at or NOON for record in found if record.worker_ref == refs["w2"]}
        )
    change(database, refs["w3"], availability="draining")
    monitor.run_once()
    assert reclaimer.calls == [], "the slow one alone has nothing to do"


def test_labels_are_those_of_the_previous_instance_until_the_worker_reports_some(
    database: Database, workers: Workers, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    refs = store_workers(database, workers, "w1", ended_at=NOON, state="lost", labels={"zone": "b"})
    new = store_workers(database, workers, "w1b")
    change(database, new["w1b"], engine_name="w1@host", reported_id=None, labels={})
    assert refs != new
    monitor = make_monitor(replace(RULES, trusts_reports=True))
    monitor.run_once()
    (candidate,) = candidates(monitor).values()
    assert (candidate.name, candidate.labels) == ("w1@host", {"zone": "b"})


def test_reported_labels_count_only_if_reports_are_trusted(
    database: Database, workers: Workers, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    store_workers(database, workers, "w1", "w2", labels={"zone": "secure"}, name="etl-1")
    by_operator = {"w2@*": {"zone": "a"}}
    for trusts, labels, alias in ((False, {}, None), (True, {"zone": "secure"}, "etl-1")):
        monitor = make_monitor(replace(RULES, trusts_reports=trusts, worker_labels=by_operator))
        monitor.run_once()
        found = candidates(monitor)
        assert (found["w1@host"].labels, found["w1@host"].alias) == (labels, alias)
        assert found["w2@host"].labels == {"zone": "a"}


def test_worker_known_only_from_reports_is_no_candidate(
    database: Database, workers: Workers, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    store_workers(database, workers, "w1")
    store_workers(database, workers, "made-up", engine_heartbeat_at=None)
    change(
        database,
        store_workers(database, workers, "duplicate", engine_heartbeat_at=None)["duplicate"],
        engine_name="w1@host",
    )
    monitor = make_monitor()
    monitor.run_once()
    assert [candidate.worker_id for candidate in candidates(monitor).values()] == ["w1"]


# --- unavailable -----------------------------------------------------------------------------------------------------


def unavailable_reason(monitor: CeleryWorkerMonitor) -> str | None:
    snapshot = monitor.snapshot()
    assert snapshot is not None
    return snapshot.unavailable_reason


def test_workers_are_unavailable_if_no_process_polls_them(
    database: Database, workers: Workers, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    store_workers(database, workers, "w1")
    with database.engine.begin() as connection:
        connection.execute(update(worker_source).values(looked_at=NOON))
    monitor = make_monitor(first_poll_timeout=0.0)
    monitor.run_once()
    assert "Worker states are stale" in (unavailable_reason(monitor) or "")


def test_monitor_waits_for_the_first_poll_of_another_process(
    database: Database, workers: Workers, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    store_workers(database, workers, "w1")
    with database.engine.begin() as connection:
        # The executor of another team polls, or an API server: all were started a moment ago.
        connection.execute(update(worker_source).values(looked_at=None))
    monitor = make_monitor()
    monitor.run_once()
    assert monitor.snapshot() is None, "the executor waits as long as nothing is known"
    store_workers(database, workers, "w1")
    monitor.run_once()
    assert candidates(monitor)["w1@host"].unavailable_reason is None
    with database.engine.begin() as connection:
        connection.execute(update(worker_source).values(looked_at=NOON))
    monitor.run_once()
    assert "Worker states are stale" in (unavailable_reason(monitor) or ""), "it was known before"


def test_workers_stay_known_if_the_polling_process_died(
    database: Database,
    workers: Workers,
    monkeypatch: pytest.MonkeyPatch,
    make_monitor: Callable[..., CeleryWorkerMonitor],
) -> None:
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__REFRESH_INTERVAL", "3")
    store_workers(database, workers, "w1")
    with database.engine.begin() as connection:
        connection.execute(update(worker_source).values(looked_at=database_now(connection) - leases.POLL_TIMEOUT))
    monitor = make_monitor()
    monitor.run_once()
    assert candidates(monitor)["w1@host"].state == "online", "until another process may poll"


@pytest.mark.usefixtures("database")
def test_workers_are_unavailable_without_tables() -> None:
    migrate.downgrade("base")
    monitor = CeleryWorkerMonitor(None, PlacementService(RULES))
    monitor.run_once()
    assert "do not exist" in (unavailable_reason(monitor) or "")


@pytest.mark.parametrize("state", ["online", "unresponsive", "lost", None])
def test_workers_are_unavailable_without_remote_control(
    database: Database, workers: Workers, state: str | None, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    store_workers(database, workers, *([] if state is None else ["w1"]), state=state)
    workers.error = SourceUnavailableError("it is off")
    monitor = make_monitor()
    monitor.run_once()
    assert unavailable_reason(monitor) == "it is off"


def test_workers_are_unavailable_if_none_has_ever_answered(
    database: Database, workers: Workers, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    store_workers(database, workers)
    clock = SimpleNamespace(now=0.0)
    monitor = make_monitor(poll_clock=lambda: clock.now)
    monitor.run_once()
    assert unavailable_reason(monitor) is None, "they may be about to start"
    clock.now += ALWAYS_DUE.first_answer_timeout
    monitor.run_once()
    assert unavailable_reason(monitor) == "No Celery worker answers."
    # Those of a deployment that has just been set up.
    workers.queues["w1@host"] = {"default"}
    monitor.run_once()
    assert unavailable_reason(monitor) is None


def test_tasks_wait_for_new_workers_once_all_have_gone(
    database: Database, workers: Workers, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    store_workers(database, workers, "w1", state="offline", ended_at=NOON, engine_heartbeat_at=NOON)
    workers.queues.clear()
    monitor = make_monitor()
    monitor.run_once()
    assert candidates(monitor) == {}


@pytest.mark.parametrize(
    ("setting", "waits"), [("CeleryExecutor", False), ("LocalExecutor;one=CeleryExecutor;two=CeleryExecutor", True)]
)
def test_workers_of_another_team_need_not_answer(
    database: Database,
    workers: Workers,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    waits: bool,
    make_monitor: Callable[..., CeleryWorkerMonitor],
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", setting)
    refs = store_workers(database, workers, "w1", "w2", engine_heartbeat_at=NOON)
    del workers.queues["w2@host"]
    monitor = make_monitor()
    monitor.run_once()
    change(database, refs["w1"], state="offline", ended_at=NOON)
    workers.queues.clear()
    for _ in range(ALWAYS_DUE.unavailable_after_failures):
        monitor.run_once()
    assert (unavailable_reason(monitor) is None) == waits


@pytest.mark.parametrize("how", ["the broker", "the workers"])
def test_workers_are_unavailable_after_some_failed_polls(
    database: Database, workers: Workers, how: str, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    store_workers(database, workers, "w1")
    monitor = make_monitor()
    monitor.run_once()
    queues = dict(workers.queues)
    if how == "the broker":
        workers.error = ConnectionError("refused")
    else:
        workers.queues.clear()
    for _ in range(ALWAYS_DUE.unavailable_after_failures - 1):
        monitor.run_once()
        assert unavailable_reason(monitor) is None
    monitor.run_once()
    assert unavailable_reason(monitor) is not None
    workers.error = None
    workers.queues.update(queues)
    monitor.run_once()
    assert unavailable_reason(monitor) is None


def test_thread_goes_on_after_failures_and_ends(
    database: Database, workers: Workers, make_monitor: Callable[..., CeleryWorkerMonitor]
) -> None:
    store_workers(database, workers, "w1")
    calls = []

    def refresh(**_: Any) -> None:
        calls.append(1)
        if len(calls) < 3:
            raise OSError("away")

    monitor = make_monitor(run_interval=0.01, refresh=refresh)
    monitor.start()
    monitor.start()
    wait_for(lambda: monitor.snapshot() is not None and unavailable_reason(monitor) is None, 20, "the third run")
    monitor.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "worker-insight-placing"]
