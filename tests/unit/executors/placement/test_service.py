"""A batch of tasks: what is read for it, and what is decided of it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event, current_thread, main_thread
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, update

from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.domain.reasons import PlacementReason
from airflow_worker_insight.executors.placement.policy import Candidate
from airflow_worker_insight.executors.placement.rules import Rules
from airflow_worker_insight.executors.placement.service import PlacementRequest, PlacementService, Snapshot
from airflow_worker_insight.store import placements
from airflow_worker_insight.store.placements import Placement
from airflow_worker_insight.store.tables import worker as worker_table
from airflow_worker_insight.store.workers.upsert import upsert_worker
from tests.unit.database import NOON, Database, a_worker, add_run, add_try, on_both

if TYPE_CHECKING:
    from collections.abc import Iterator

W1, W2 = (
    Candidate(
        ref=ref, worker_id=f"id-{ref}", name=f"w{ref}@host", queues=frozenset({"default"}), concurrency=4, capacity=8
    )
    for ref in (1, 2)
)


def store(database: Database, number: int, **others: Any) -> list[TryKey]:
    with database.engine.begin() as connection:
        run = add_run(connection, state="running", ended_at=None)
        return [
            add_try(connection, run, map_index=index, state="queued", ended_at=None, hostname=None, **others)
            for index in range(number)
        ]


def decide(
    database: Database,
    service: PlacementService,
    requests: list[PlacementRequest],
    *candidates: Candidate,
    **others: Any,
) -> list[Any]:
    limit = others.pop("limit", None)
    snapshot = Snapshot(candidates, time.monotonic(), **others)
    with database.engine.begin() as connection:
        return service.decide(connection, requests, snapshot, limit=limit)


@on_both
def test_placed_and_running_tries_count_as_load(database: Database) -> None:
    keys = store(database, 6)
    with database.engine.begin() as connection:
        placements.write(
            connection, [Placement(key, PlacementReason.LEAST_LOADED, "", worker_ref=1) for key in keys[:2]], now=NOON
        )
    requests = [PlacementRequest(key, "default") for key in keys[2:]]
    found = decide(
        database, PlacementService(Rules(PlacementReason.LEAST_LOADED, 4)), requests, W1, W2, unplaced={2: 1}
    )
    assert [result.decision.worker.name for result in found] == ["w2@host", "w1@host", "w2@host", "w1@host"]


def test_waiting_tasks_do_not_count_towards_the_limit(database: Database) -> None:
    waits, *rest = store(database, 4)
    nowhere = {"worker_insight": {"labels": {"zone": "moon"}}}
    requests = [PlacementRequest(waits, "default", nowhere), *(PlacementRequest(key, "default") for key in rest)]
    found = decide(database, PlacementService(Rules(PlacementReason.LEAST_LOADED, 4)), requests, W1, limit=2)
    assert [result.waits for result in found] == [True, False, False]


@on_both
@pytest.mark.parametrize("availability", ["draining", "quarantined"])
def test_worker_drained_since_the_snapshot_gets_no_task(database: Database, availability: str) -> None:
    (key,) = store(database, 1)
    with database.engine.begin() as connection:
        refs = [upsert_worker(connection, a_worker(name), now=NOON) for name in ("w1", "w2")]
        connection.execute(update(worker_table).where(worker_table.c.id == refs[0]).values(availability=availability))
    known = [replace(candidate, ref=ref) for candidate, ref in zip((W1, W2), refs, strict=True)]
    (result,) = decide(
        database, PlacementService(Rules(PlacementReason.LEAST_LOADED, 4)), [PlacementRequest(key, "default")], *known
    )
    assert result.decision.worker.name == "w2@host"
    assert f"w1@host ({availability})" in result.decision.text
    (result,) = decide(
        database, PlacementService(Rules(PlacementReason.LEAST_LOADED, 4)), [PlacementRequest(key, "default")], known[0]
    )
    assert result.waits


@pytest.mark.parametrize("pool", [None, "default_pool"])
def test_labels_of_a_pool_are_required(database: Database, pool: str | None) -> None:
    (key,) = store(database, 1)
    service = PlacementService(Rules(PlacementReason.LEAST_LOADED, 4, pool_labels={"default_pool": {"gpu": "yes"}}))
    (result,) = decide(database, service, [PlacementRequest(key, "default", pool=pool)], W1)
    assert (result.decision.worker, result.decision.reason) == (None, PlacementReason.NO_LABEL)
    (result,) = decide(
        database, service, [PlacementRequest(key, "default", pool=pool)], W1, replace(W2, labels={"gpu": "yes"})
    )
    assert result.decision.worker.name == "w2@host"


def test_shared_queue_decision_names_the_reason(database: Database) -> None:
    (key,) = store(database, 1)
    (result,) = decide(
        database,
        PlacementService(Rules(PlacementReason.LEAST_LOADED, 4, "shared_queue")),
        [PlacementRequest(key, "large")],
        W1,
    )
    assert not result.waits
    assert result.decision.reason == PlacementReason.SHARED_QUEUE
    assert result.decision.text == "sent to the shared queue large: no known worker consumes the queue large"


def test_invalid_request_never_goes_to_the_shared_queue(database: Database) -> None:
    (key,) = store(database, 1)
    requests = PlacementRequest(key, "default", {"worker_insight": {"labels": "moon"}})
    (result,) = decide(
        database, PlacementService(Rules(PlacementReason.LEAST_LOADED, 4, "shared_queue")), [requests], W1
    )
    assert (result.waits, result.decision.reason) == (True, PlacementReason.INVALID_REQUEST)


# --- retries that wait -----------------------------------------------------------------------------------------------


@pytest.fixture
def failed(database: Database) -> tuple[Candidate, list[PlacementRequest]]:
    """Have three second tries, and the worker that failed the first ones."""
    keys = store(database, 3, try_number=2)
    with database.engine.begin() as connection:
        ref = upsert_worker(connection, a_worker("w1", engine_name=W1.name), now=NOON)
        first = [
            Placement(replace(key, try_number=1), PlacementReason.LEAST_LOADED, "", ref, is_open=False) for key in keys
        ]
        placements.write(connection, first, now=NOON)
    return replace(W1, ref=ref), [PlacementRequest(key, "default") for key in keys]


@pytest.fixture
def statements(database: Database) -> Iterator[list[str]]:
    """Return a list to which every statement is added."""
    executed: list[str] = []

    def note(*arguments: Any) -> None:
        executed.append(arguments[2])

    event.listen(database.engine, "before_cursor_execute", note)
    yield executed
    event.remove(database.engine, "before_cursor_execute", note)


def test_workers_that_failed_a_retry_are_queried_once_while_it_waits(
    database: Database, failed: tuple[Candidate, list[PlacementRequest]], statements: list[str]
) -> None:
    worker, requests = failed
    service = PlacementService(Rules(PlacementReason.LEAST_LOADED, 4))
    others_full = (worker, replace(W2, ref=worker.ref + 1, capacity=0))
    counts = []
    for _ in range(3):
        statements.clear()
        found = decide(database, service, requests, *others_full)
        assert [result.decision.reason for result in found] == [PlacementReason.OTHERS_FULL] * 3
        counts.append(len(statements))
        # A request of the monitor for another retry meanwhile does not clear the cache.
        decide(database, service, [PlacementRequest(replace(requests[0].key, try_number=3), "default")], *others_full)
    # How much each worker has, and which of them people have taken out.
    assert counts[0] > counts[1] == counts[2] == 2
    # The shared queue would lead it back to the worker that failed it.
    found = decide(
        database, PlacementService(Rules(PlacementReason.LEAST_LOADED, 4, "shared_queue")), requests, *others_full
    )
    assert [result.decision.reason for result in found] == [PlacementReason.OTHERS_FULL] * 3
    found = decide(database, service, requests, worker, replace(W2, ref=worker.ref + 1))
    assert [result.decision.reason for result in found] == [PlacementReason.RETRY_ELSEWHERE] * 3


def test_workers_that_failed_a_retry_are_forgotten_some_time_after_its_last_request(
    database: Database, failed: tuple[Candidate, list[PlacementRequest]], statements: list[str]
) -> None:
    worker, requests = failed
    service = PlacementService(Rules(PlacementReason.LEAST_LOADED, 4), failed_workers_ttl=0.0)
    decide(database, service, requests, worker)
    decide(database, service, requests[:1], worker)
    assert set(service._failed) == {requests[0].key}
    statements.clear()
    decide(database, service, requests[1:], worker)
    assert len(statements) > 2


# --- the scheduler's loop and the monitor ----------------------------------------------------------------------------


def test_monitor_reads_the_history_while_the_loop_adds_to_it(database: Database) -> None:
    placing, reads, added = Event(), Event(), Event()

    class Ref(int):
        """A worker's number, at which the monitor stops as it reads until the loop has added another."""

        def __hash__(self) -> int:
            if current_thread() is not main_thread():
                reads.set()
                added.wait(10)
            return super().__hash__()

    class Slow(Rules):
        """The rules of the loop, which lets the monitor go first before it places its first task of two."""

        def labels_for_task(self, pool: str | None, _executor_config: Any) -> dict[str, str]:
            if pool == "first":
                placing.set()
                reads.wait(0.2)
            elif pool == "second":
                added.set()
            return {}

    service = PlacementService(Slow(PlacementReason.LEAST_LOADED, 4))
    workers = replace(W1, ref=Ref(1)), replace(W2, ref=Ref(2))
    key = TryKey("etl", "run-1", "extract", -1, 1)

    def loop(*pools: str) -> None:
        decide(database, service, [PlacementRequest(key, "default", pool=pool) for pool in pools], *workers, loads={})

    def monitor() -> None:
        assert placing.wait(60)
        decide(database, service, [], W1, W2, loads={})

    loop("before")
    with ThreadPoolExecutor(1) as thread:
        monitored = thread.submit(monitor)
        loop("first", "second")
        monitored.result(timeout=60)
    assert set(service._history) == {W1.ref, W2.ref}


def test_neither_thread_waits_for_the_queries_of_the_other(database: Database) -> None:
    service = PlacementService(Rules(PlacementReason.LEAST_LOADED, 4))
    queries, answered = Event(), Event()

    def wait(*_: Any) -> None:
        if current_thread().name.startswith("slow"):
            queries.set()
            assert answered.wait(60)

    first, second = (
        PlacementRequest(TryKey("etl", "run-1", "extract", -1, number), "default", pool="a") for number in (1, 2)
    )
    event.listen(database.engine, "before_cursor_execute", wait)
    try:
        with ThreadPoolExecutor(1, "slow") as slow_thread, ThreadPoolExecutor(1, "fast") as thread:
            slow = slow_thread.submit(decide, database, service, [second], W1, loads={})
            assert queries.wait(60)
            try:
                (result,) = thread.submit(decide, database, service, [first], W1, loads={}).result(timeout=30)
            finally:
                answered.set()
            assert result.decision.worker == W1
            assert len(slow.result(timeout=60)) == 1
    finally:
        event.remove(database.engine, "before_cursor_execute", wait)
