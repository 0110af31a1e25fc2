"""What an executor knows of its workers, and what it does for them, with workers and a broker that a test makes up."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import insert, update

from airflow_worker_insight.domain.reasons import PlacementReason
from airflow_worker_insight.executors import monitor
from airflow_worker_insight.executors.celery import consumers, rebalance
from airflow_worker_insight.executors.celery import monitor as module
from airflow_worker_insight.executors.celery.monitor import CeleryWorkerMonitor
from airflow_worker_insight.executors.celery.queues import dedicated_queue
from airflow_worker_insight.executors.placement.policy import Candidate, Placer, Task, is_out
from airflow_worker_insight.executors.placement.rules import Rules
from airflow_worker_insight.executors.placement.service import PlacementService, Snapshot
from airflow_worker_insight.registry.observations import SourceUnavailableError
from airflow_worker_insight.store import leases, migrate, placements
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.placements import Placement
from airflow_worker_insight.store.tables import engine, worker
from airflow_worker_insight.store.workers.upsert import upsert_worker
from tests.support.processes import wait_for
from tests.unit.database import NOON, Database, a_worker, add_run, add_try, on_both, record_start

RULES = Rules("least_loaded", 4)

levelled: list[int | None] = []
"""How many were to be taken back at most, each time."""

offered: list[Candidate] = []
"""The workers among which was chosen the last time."""


class Workers:
    """The workers as they answer, and what they were told."""

    def __init__(self) -> None:
        self.queues: dict[str, set[str]] = {}
        self.asked: list[tuple[dict[str, str], dict[str, str]]] = []
        self.error: Exception | None = None
        self.obey = True

    def sync_consumers(self, _app: Any, *, give: dict[str, str], hold: dict[str, str]) -> dict[str, frozenset[str]]:
        self.asked.append((give, hold))
        if self.error is not None:
            raise self.error
        if self.obey:
            for node in give.keys() & self.queues.keys():
                self.queues[node].add(give[node])
            for node in hold.keys() & self.queues.keys():
                self.queues[node].discard(hold[node])
        return {node: frozenset(queues) for node, queues in self.queues.items()}


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    made = Workers()
    monkeypatch.setattr(consumers, "sync_consumers", made.sync_consumers)
    monkeypatch.setattr(module, "refresh", lambda **_: None)
    monkeypatch.setattr(consumers, "ASK_EVERY", 0.0)
    monkeypatch.setattr(consumers, "ASK_AGAIN", 0.0)
    monkeypatch.setattr(module, "LEVEL_EVERY", 0.0)
    return made


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, bool]]:
    """Collect what is taken back: the queue, whose it is, and whether that worker is gone."""
    found: list[tuple[str, str, bool]] = []
    levelled.clear()

    def reclaim_tasks(
        _app: Any,
        queue: str,
        desk: PlacementService,
        snapshot: Snapshot,
        *,
        came_from: str,
        is_gone: bool = False,
        **others: Any,
    ) -> int:
        found.append((queue, came_from, is_gone))
        levelled.append(others.get("most"))
        assert isinstance(desk, PlacementService)
        offered[:] = snapshot.candidates
        return others.get("most") or 1

    monkeypatch.setattr(rebalance.reclaim, "reclaim_tasks", reclaim_tasks)
    return found


def look_at(database: Database, workers: Workers, *names: str, **others: Any) -> dict[str, int]:
    """Have workers that live and that were looked at just now; return their rows' IDs."""
    refs = {}
    with database.engine.begin() as connection:
        now = database_now(connection)
        connection.execute(engine.delete())
        connection.execute(insert(engine).values(name="celery", due_at=now, looked_at=now))
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
        one = Placement(key, PlacementReason.LEAST_LOADED, "", worker_ref=ref, dedicated_queue=dedicated_queue(name))
        placements.write(connection, [one], now=NOON)


def candidates(watch: CeleryWorkerMonitor) -> dict[str, Candidate]:
    snapshot = watch.snapshot()
    assert snapshot is not None
    assert snapshot.unavailable_reason is None
    return {one.name: one for one in snapshot.candidates}


@on_both
def test_workers_become_candidates_once_they_consume_their_own_queue(database: Database, workers: Workers) -> None:
    refs = look_at(database, workers, "w1", "w2")
    del workers.queues["w2@host"]
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    assert watch.snapshot() is None
    watch.run_once()
    one, other = candidates(watch).values()
    assert (one.ref, one.worker_id, one.queues, one.concurrency, one.capacity) == (refs["w1"], "w1", {"default"}, 2, 6)
    assert one.unavailable_reason is None
    assert other.unavailable_reason == "does not consume a queue of its own yet"
    assert workers.asked == [({"w1@host": dedicated_queue("w1"), "w2@host": dedicated_queue("w2")}, {})]


def test_decisions_of_people_are_told_to_the_worker(database: Database, workers: Workers) -> None:
    refs = look_at(database, workers, "w1", "w2")
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    watch.run_once()
    change(database, refs["w1"], availability="quarantined")
    watch.run_once()
    assert candidates(watch)["w1@host"].availability == "quarantined"
    assert dedicated_queue("w1") not in workers.queues["w1@host"]
    change(database, refs["w1"], availability="available")
    watch.run_once()
    assert candidates(watch)["w1@host"].unavailable_reason is None


def test_one_that_does_not_answer_is_given_nothing_until_it_does(
    database: Database, workers: Workers, taken: list[Any]
) -> None:
    refs = look_at(database, workers, "w1", "w2")
    place(database, refs["w1"], "w1")
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    watch.run_once()
    silent = workers.queues.pop("w1@host")
    watch.run_once()
    assert candidates(watch)["w1@host"].unavailable_reason is None, "an answer may go astray"
    assert taken == []
    watch.run_once()
    assert candidates(watch)["w1@host"].unavailable_reason == "does not answer"
    assert taken == [(dedicated_queue("w1"), "w1@host-1", False)]
    workers.queues["w1@host"] = silent
    watch.run_once()
    assert candidates(watch)["w1@host"].unavailable_reason is None


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
def test_what_waits_is_taken_back_from(
    database: Database, workers: Workers, taken: list[Any], changed: dict[str, Any], is_gone: bool | None
) -> None:
    refs = look_at(database, workers, "w1", "w2")
    place(database, refs["w1"], "w1")
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    watch.run_once()
    if changed:
        change(database, refs["w1"], **changed)
        if "ended_at" in changed:
            del workers.queues["w1@host"]
    watch.run_once()
    assert taken == ([] if is_gone is None else [(dedicated_queue("w1"), "w1@host-1", is_gone)])


def test_what_a_living_worker_has_fetched_is_left_to_it_although_its_queue_is_not_seen(
    database: Database, workers: Workers, taken: list[Any]
) -> None:
    refs = look_at(database, workers, "w1", "w2")
    place(database, refs["w1"], "w1")
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    watch.run_once()
    workers.queues["w1@host"], workers.obey = {"default"}, False
    watch.run_once()
    assert taken == [], "another scheduler may just have told it to consume it"


def test_a_worker_that_has_never_answered_here_may_be_another_teams(
    database: Database, workers: Workers, taken: list[Any]
) -> None:
    refs = look_at(database, workers, "w1", "w2")
    del workers.queues["w1@host"]
    place(database, refs["w1"], "w1")
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    for _ in range(consumers.SILENT_AFTER + 1):
        watch.run_once()
    assert taken == []
    found = candidates(watch)
    assert [found[f"{name}@host"].comes_back for name in ("w1", "w2")] == [False, True]


def test_one_that_does_not_answer_for_long_is_not_waited_for(database: Database, workers: Workers) -> None:
    look_at(database, workers, "w1", "w2")
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    watch.run_once()
    del workers.queues["w1@host"]
    for _ in range(consumers.COMES_BACK_WITHIN - 1):
        watch.run_once()
        assert candidates(watch)["w1@host"].comes_back
    watch.run_once()
    assert not candidates(watch)["w1@host"].comes_back


def test_who_is_drained_is_told_at_once(database: Database, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    refs = look_at(database, workers, "w1", "w2")
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    watch.run_once()
    monkeypatch.setattr(consumers, "ASK_EVERY", 3600.0)
    monkeypatch.setattr(consumers, "ASK_AGAIN", 3600.0)
    watch.run_once()
    assert len(workers.asked) == 1
    change(database, refs["w1"], availability="draining")
    for _ in range(2):
        watch.run_once()
    assert len(workers.asked) == 2
    assert dedicated_queue("w1") not in workers.queues["w1@host"]


def test_own_queues_of_workers_that_ended_are_removed_once(
    database: Database, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = look_at(database, workers, "w1", "w2", "w3")
    removed: list[str] = []
    monkeypatch.setattr(module.reclaim, "remove_queues", lambda _app, queues: removed.extend(queues))
    monkeypatch.setattr(module, "SWEEP_EVERY", timedelta(0))
    with database.engine.begin() as connection:
        now = database_now(connection)
    change(database, refs["w1"], state="offline", ended_at=now - timedelta(minutes=10))
    change(database, refs["w2"], state="lost", ended_at=now - timedelta(minutes=1))
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    for _ in range(3):
        watch.run_once()
    assert removed == [dedicated_queue("w1")]


def test_with_nobody_to_give_it_to_it_stays(database: Database, workers: Workers, taken: list[Any]) -> None:
    refs = look_at(database, workers, "w1")
    place(database, refs["w1"], "w1")
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    watch.run_once()
    change(database, refs["w1"], availability="quarantined")
    watch.run_once()
    assert taken == []
    watch.desk = PlacementService(Rules("least_loaded", 4, "shared_queue"))
    watch.run_once()
    assert taken == [(dedicated_queue("w1"), "w1@host-1", False)]


def test_what_was_sent_to_a_worker_that_has_just_begun_is_left_to_it(
    database: Database, workers: Workers, taken: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    look_at(database, workers, "w1")
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))

    def sync_consumers(app: Any, **told: Any) -> Any:
        # Another scheduler knows of a new worker by then, and has sent something to it.
        place(database, look_at(database, workers, "w2")["w2"], "w2")
        workers.queues["w2@host"].add(dedicated_queue("w2"))
        answers = workers.sync_consumers(app, **told)
        return {node: queues for node, queues in answers.items() if node != "w2@host"}

    monkeypatch.setattr(consumers, "sync_consumers", sync_consumers)
    watch.run_once()
    assert taken == []


@pytest.mark.parametrize("changed", [{"availability": "draining"}, {"state": "unresponsive"}])
def test_what_is_taken_back_from_a_worker_is_not_given_to_it_because_it_was_there_a_moment_ago(
    database: Database, workers: Workers, taken: list[Any], monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    refs = look_at(database, workers, "w1", "w2")
    place(database, refs["w1"], "w1")
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    watch.run_once()

    def sync_consumers(app: Any, **told: Any) -> Any:
        change(database, refs["w1"], **changed)
        return workers.sync_consumers(app, **told)

    monkeypatch.setattr(consumers, "sync_consumers", sync_consumers)
    watch.run_once()
    assert [queue for queue, *_ in taken] == [dedicated_queue("w1")]
    assert [one.name for one in offered if is_out(one) is None] == ["w2@host"]


@pytest.mark.parametrize("how", ["nobody has room", "it fails"])
def test_what_cannot_be_taken_back_keeps_nothing_else_from_its_place(
    database: Database, workers: Workers, taken: list[Any], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    refs = look_at(database, workers, "w1", "w2", "dead")
    place(database, refs["dead"], "dead")
    for number in range(4):
        place(database, refs["w1"], "w1", f"task-{number}")
    change(database, refs["dead"], state="lost", ended_at=NOON)
    reclaim_tasks = rebalance.reclaim.reclaim_tasks

    def take_nothing_of_the_dead(app: Any, queue: str, *others: Any, **named: Any) -> int:
        number = reclaim_tasks(app, queue, *others, **named)
        if queue != dedicated_queue("dead"):
            return number
        if how == "it fails":
            raise OSError("refused")
        return 0

    monkeypatch.setattr(rebalance.reclaim, "reclaim_tasks", take_nothing_of_the_dead)
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    del workers.queues["dead@host"]
    watch.run_once()
    assert [queue for queue, *_ in taken] == [dedicated_queue("dead"), dedicated_queue("w1")]


def test_what_takes_long_keeps_nobody_from_looking_at_the_workers_and_nothing_from_its_turn(
    database: Database, workers: Workers, taken: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = [f"dead-{number}" for number in range(4)]
    refs = look_at(database, workers, "w1", *dead)
    for name in dead:
        place(database, refs[name], name)
        change(database, refs[name], state="lost", ended_at=NOON)
        del workers.queues[f"{name}@host"]
    clock = SimpleNamespace(now=0.0)
    reclaim_tasks = rebalance.reclaim.reclaim_tasks

    def take_long(*others: Any, **named: Any) -> int:
        clock.now += rebalance.BEGINS_WITHIN / 2
        reclaim_tasks(*others, **named)
        raise OSError("refused")

    monkeypatch.setattr(rebalance, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(rebalance.reclaim, "reclaim_tasks", take_long)
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    watch.run_once()
    assert len(taken) == 2
    for _ in range(100):
        watch.run_once()
    assert {queue for queue, *_ in taken} == set(map(dedicated_queue, dead))


def test_one_scheduler_at_a_time_takes_back(database: Database, workers: Workers, taken: list[Any]) -> None:
    refs = look_at(database, workers, "w1", "w2")
    place(database, refs["w1"], "w1")
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    watch.run_once()
    change(database, refs["w1"], state="unresponsive")
    with database.engine.begin() as connection:
        due = database_now(connection) + timedelta(seconds=30)
        connection.execute(insert(engine).values(name=rebalance.LEASE, due_at=due))
    watch.run_once()
    assert taken == []
    with database.engine.begin() as connection:
        connection.execute(update(engine).where(engine.c.name == rebalance.LEASE).values(due_at=NOON))
    watch.run_once()
    watch.run_once()
    assert len(taken) == 2, "the lease is given back"


def test_what_waits_at_one_is_taken_back_for_another_that_has_nothing_to_do(
    database: Database, workers: Workers, taken: list[Any]
) -> None:
    refs = look_at(database, workers, "w1", "w2")
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    watch.run_once()
    # Each runs two at once.
    for number in range(5):
        place(database, refs["w1"], "w1", f"task-{number}")
    for number in range(2):
        place(database, refs["w2"], "w2", f"other-{number}")
    watch.run_once()
    assert taken == []
    with database.engine.begin() as connection:
        found = placements.open_placements(connection)
        placements.close(connection, {one.key: one.placed_at or NOON for one in found if one.worker_ref == refs["w2"]})
    watch.run_once()
    assert taken == [(dedicated_queue("w1"), "w1@host", False)]
    assert levelled == [2]
    # What waits at the slow one and has failed on the idle one stays.
    placer = Placer(PlacementReason.LEAST_LOADED, offered)
    retry = Task("etl", "run-1", "extract", -1, 2, "default", avoid=frozenset({"w2@host"}))
    assert placer.place(retry).reason == PlacementReason.OTHERS_FULL
    assert placer.place(replace(retry, avoid=frozenset())).worker == replace(candidates(watch)["w2@host"], capacity=2)


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


def test_a_slow_worker_is_known_by_what_it_still_runs(
    database: Database, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_at(database, workers, "w1", "w2")
    run(database, "w1", 3, seconds=10, state="success")
    run(database, "w2", 4, seconds=100, state="running")
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    watch.run_once()
    found = candidates(watch)
    assert found["w1@host"].slowness == 1
    assert round(found["w2@host"].slowness) == 10
    # What was slow is forgotten some time later.
    monkeypatch.setattr(module, "COMPARED", timedelta(seconds=50))
    watch._compare_due = 0.0
    watch.run_once()
    assert candidates(watch)["w2@host"].slowness == 1


def test_nobody_is_slow_where_the_operator_says_so(database: Database, workers: Workers) -> None:
    look_at(database, workers, "w1", "w2")
    run(database, "w1", 3, seconds=10, state="success")
    run(database, "w2", 4, seconds=100, state="running")
    watch = CeleryWorkerMonitor(None, PlacementService(replace(RULES, slow_from=0)))
    watch.run_once()
    assert not any(one.is_slow for one in candidates(watch).values())


def test_what_waits_at_a_slow_worker_is_taken_back_and_nothing_is_taken_for_it(
    database: Database, workers: Workers, taken: list[Any]
) -> None:
    refs = look_at(database, workers, "w1", "w2", "w3")
    run(database, "w1", 3, seconds=10, state="success")
    run(database, "w2", 4, seconds=100, state="running")
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    watch.run_once()
    for number in range(4):
        place(database, refs["w1"], "w1", f"task-{number}")
    for number in range(3):
        place(database, refs["w2"], "w2", f"other-{number}")
    watch.run_once()
    # The one that waits at the slow one goes first, whether or not the others are full.
    assert taken == [(dedicated_queue("w2"), "w2@host", False)]
    assert levelled == [1]
    taken.clear()
    with database.engine.begin() as connection:
        found = placements.open_placements(connection)
        placements.close(connection, {one.key: one.placed_at or NOON for one in found if one.worker_ref == refs["w2"]})
    change(database, refs["w3"], availability="draining")
    watch.run_once()
    assert taken == [], "the slow one alone has nothing to do"


def test_labels_are_those_of_the_life_before_until_the_worker_tells_them(database: Database, workers: Workers) -> None:
    refs = look_at(database, workers, "w1", ended_at=NOON, state="lost", labels={"zone": "b"})
    new = look_at(database, workers, "w1b")
    change(database, new["w1b"], engine_name="w1@host", reported_id=None, labels={})
    assert refs != new
    watch = CeleryWorkerMonitor(None, PlacementService(replace(RULES, trusts_reports=True)))
    watch.run_once()
    (one,) = candidates(watch).values()
    assert (one.name, one.labels) == ("w1@host", {"zone": "b"})


def test_what_workers_report_counts_only_where_reports_are_trusted(database: Database, workers: Workers) -> None:
    look_at(database, workers, "w1", "w2", labels={"zone": "secure"}, name="etl-1")
    by_operator = {"w2@*": {"zone": "a"}}
    for trusts, labels, alias in ((False, {}, None), (True, {"zone": "secure"}, "etl-1")):
        watch = CeleryWorkerMonitor(
            None, PlacementService(replace(RULES, trusts_reports=trusts, worker_labels=by_operator))
        )
        watch.run_once()
        found = candidates(watch)
        assert (found["w1@host"].labels, found["w1@host"].alias) == (labels, alias)
        assert found["w2@host"].labels == {"zone": "a"}


def test_a_worker_that_only_reports_tell_of_is_no_candidate(database: Database, workers: Workers) -> None:
    look_at(database, workers, "w1")
    look_at(database, workers, "made-up", engine_heartbeat_at=None)
    change(database, look_at(database, workers, "twin", engine_heartbeat_at=None)["twin"], engine_name="w1@host")
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    watch.run_once()
    assert [one.worker_id for one in candidates(watch).values()] == ["w1"]


# --- unavailable -----------------------------------------------------------------------------------------------------


def unavailable_reason(watch: CeleryWorkerMonitor) -> str | None:
    snapshot = watch.snapshot()
    assert snapshot is not None
    return snapshot.unavailable_reason


def test_nobody_looks(database: Database, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_LOOK_WITHIN", 0.0)
    look_at(database, workers, "w1")
    with database.engine.begin() as connection:
        connection.execute(update(engine).values(looked_at=NOON))
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    watch.run_once()
    assert "Worker states are stale" in (unavailable_reason(watch) or "")


def test_somebody_elses_first_look_is_waited_for(database: Database, workers: Workers) -> None:
    look_at(database, workers, "w1")
    with database.engine.begin() as connection:
        # The executor of another team looks, or an API server: all were started a moment ago.
        connection.execute(update(engine).values(looked_at=None))
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    watch.run_once()
    assert watch.snapshot() is None, "the executor waits as long as nothing is known"
    look_at(database, workers, "w1")
    watch.run_once()
    assert candidates(watch)["w1@host"].unavailable_reason is None
    with database.engine.begin() as connection:
        connection.execute(update(engine).values(looked_at=NOON))
    watch.run_once()
    assert "Worker states are stale" in (unavailable_reason(watch) or ""), "it was known before"


def test_whoever_looks_died_while_it_did(database: Database, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__REFRESH_INTERVAL", "3")
    look_at(database, workers, "w1")
    with database.engine.begin() as connection:
        connection.execute(update(engine).values(looked_at=database_now(connection) - leases.POLL_TIMEOUT))
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    watch.run_once()
    assert candidates(watch)["w1@host"].state == "online", "until another one may look"


def test_there_are_no_tables(database: Database, workers: Workers) -> None:
    assert workers.asked == []
    assert database.url
    migrate.downgrade("base")
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    watch.run_once()
    assert "do not exist" in (unavailable_reason(watch) or "")


@pytest.mark.parametrize("state", ["online", "unresponsive", "lost", None])
def test_remote_control_is_off(database: Database, workers: Workers, state: str | None) -> None:
    look_at(database, workers, *([] if state is None else ["w1"]), state=state)
    workers.error = SourceUnavailableError("it is off")
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    watch.run_once()
    assert unavailable_reason(watch) == "it is off"


def test_where_no_worker_has_ever_answered_none_can_be_seen(
    database: Database, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_at(database, workers)
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    watch.run_once()
    assert unavailable_reason(watch) is None, "they may be about to start"
    monkeypatch.setattr(consumers, "FIRST_ANSWER_WITHIN", 0.0)
    watch.run_once()
    assert unavailable_reason(watch) == "None of Celery's workers answers."
    # Those of a deployment that has just been set up.
    workers.queues["w1@host"] = {"default"}
    watch.run_once()
    assert unavailable_reason(watch) is None


def test_where_all_workers_have_gone_tasks_wait_for_new_ones(database: Database, workers: Workers) -> None:
    look_at(database, workers, "w1", state="offline", ended_at=NOON, engine_heartbeat_at=NOON)
    workers.queues.clear()
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    watch.run_once()
    assert candidates(watch) == {}


@pytest.mark.parametrize(
    ("setting", "waits"), [("CeleryExecutor", False), ("LocalExecutor;one=CeleryExecutor;two=CeleryExecutor", True)]
)
def test_where_all_workers_of_a_team_have_gone_those_of_another_are_not_to_answer(
    database: Database, workers: Workers, monkeypatch: pytest.MonkeyPatch, setting: str, waits: bool
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", setting)
    refs = look_at(database, workers, "w1", "w2", engine_heartbeat_at=NOON)
    del workers.queues["w2@host"]
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    watch.run_once()
    change(database, refs["w1"], state="offline", ended_at=NOON)
    workers.queues.clear()
    for _ in range(consumers.GIVES_UP_AFTER):
        watch.run_once()
    assert (unavailable_reason(watch) is None) == waits


@pytest.mark.parametrize("how", ["the broker", "the workers"])
def test_a_broker_or_workers_that_do_not_answer_for_a_while(database: Database, workers: Workers, how: str) -> None:
    look_at(database, workers, "w1")
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    watch.run_once()
    queues = dict(workers.queues)
    if how == "the broker":
        workers.error = ConnectionError("refused")
    else:
        workers.queues.clear()
    for _ in range(consumers.GIVES_UP_AFTER - 1):
        watch.run_once()
        assert unavailable_reason(watch) is None
    watch.run_once()
    assert unavailable_reason(watch) is not None
    workers.error = None
    workers.queues.update(queues)
    watch.run_once()
    assert unavailable_reason(watch) is None


def test_the_thread_goes_on_after_failures_and_ends(
    database: Database, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_at(database, workers, "w1")
    monkeypatch.setattr(monitor, "ROUND_SECONDS", 0.01)
    watch = CeleryWorkerMonitor(None, PlacementService(RULES))
    run_once, calls = watch.run_once, []

    def fails() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise OSError("away")
        run_once()

    monkeypatch.setattr(watch, "run_once", fails)
    watch.start()
    watch.start()
    wait_for(lambda: watch.snapshot() is not None and unavailable_reason(watch) is None, 20, "the third round")
    watch.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "worker-insight-placing"]
