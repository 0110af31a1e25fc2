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
from airflow_worker_insight.executors.placement import service as the_desk
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
    database: Database, desk: PlacementService, asked: list[PlacementRequest], *candidates: Candidate, **others: Any
) -> list[Any]:
    most = others.pop("most", None)
    snapshot = Snapshot(candidates, time.monotonic(), **others)
    with database.engine.begin() as connection:
        return desk.decide(connection, asked, snapshot, most=most)


@on_both
def test_what_is_placed_and_what_runs_besides_counts(database: Database) -> None:
    keys = store(database, 6)
    with database.engine.begin() as connection:
        placements.write(
            connection, [Placement(key, PlacementReason.LEAST_LOADED, "", worker_ref=1) for key in keys[:2]], now=NOON
        )
    asked = [PlacementRequest(key, "default") for key in keys[2:]]
    found = decide(database, PlacementService(Rules(PlacementReason.LEAST_LOADED, 4)), asked, W1, W2, unplaced={2: 1})
    assert [one.decision.worker.name for one in found] == ["w2@host", "w1@host", "w2@host", "w1@host"]


def test_no_more_are_placed_than_are_wanted_and_those_that_wait_do_not_count(database: Database) -> None:
    waits, *rest = store(database, 4)
    nowhere = {"worker_insight": {"labels": {"zone": "moon"}}}
    asked = [PlacementRequest(waits, "default", nowhere), *(PlacementRequest(key, "default") for key in rest)]
    found = decide(database, PlacementService(Rules(PlacementReason.LEAST_LOADED, 4)), asked, W1, most=2)
    assert [one.waits for one in found] == [True, False, False]


@on_both
@pytest.mark.parametrize("availability", ["draining", "quarantined"])
def test_one_that_has_been_taken_out_since_is_given_nothing(database: Database, availability: str) -> None:
    (key,) = store(database, 1)
    with database.engine.begin() as connection:
        refs = [upsert_worker(connection, a_worker(name), now=NOON) for name in ("w1", "w2")]
        connection.execute(update(worker_table).where(worker_table.c.id == refs[0]).values(availability=availability))
    known = [replace(one, ref=ref) for one, ref in zip((W1, W2), refs, strict=True)]
    (one,) = decide(
        database, PlacementService(Rules(PlacementReason.LEAST_LOADED, 4)), [PlacementRequest(key, "default")], *known
    )
    assert one.decision.worker.name == "w2@host"
    assert f"w1@host ({availability})" in one.decision.text
    (one,) = decide(
        database, PlacementService(Rules(PlacementReason.LEAST_LOADED, 4)), [PlacementRequest(key, "default")], known[0]
    )
    assert one.waits


@pytest.mark.parametrize("pool", [None, "default_pool"])
def test_labels_of_a_pool(database: Database, pool: str | None) -> None:
    (key,) = store(database, 1)
    desk = PlacementService(Rules(PlacementReason.LEAST_LOADED, 4, pool_labels={"default_pool": {"gpu": "yes"}}))
    (one,) = decide(database, desk, [PlacementRequest(key, "default", pool=pool)], W1)
    assert (one.decision.worker, one.decision.reason) == (None, PlacementReason.NO_LABEL)
    (one,) = decide(
        database, desk, [PlacementRequest(key, "default", pool=pool)], W1, replace(W2, labels={"gpu": "yes"})
    )
    assert one.decision.worker.name == "w2@host"


def test_to_the_shared_queue_with_the_reason(database: Database) -> None:
    (key,) = store(database, 1)
    (one,) = decide(
        database,
        PlacementService(Rules(PlacementReason.LEAST_LOADED, 4, "shared_queue")),
        [PlacementRequest(key, "large")],
        W1,
    )
    assert not one.waits
    assert one.decision.reason == PlacementReason.SHARED_QUEUE
    assert one.decision.text == ("to the queue large that all share: no worker that is known consumes the queue large")


def test_what_makes_no_sense_waits_for_a_person_whatever_the_fallback(database: Database) -> None:
    (key,) = store(database, 1)
    asked = PlacementRequest(key, "default", {"worker_insight": {"labels": "moon"}})
    (one,) = decide(database, PlacementService(Rules(PlacementReason.LEAST_LOADED, 4, "shared_queue")), [asked], W1)
    assert (one.waits, one.decision.reason) == (True, PlacementReason.INVALID_REQUEST)


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
    """Return a list to which all that is asked of the database is added."""
    asked: list[str] = []

    def note(*arguments: Any) -> None:
        asked.append(arguments[2])

    event.listen(database.engine, "before_cursor_execute", note)
    yield asked
    event.remove(database.engine, "before_cursor_execute", note)


def test_who_failed_a_retry_is_asked_once_while_it_waits(
    database: Database, failed: tuple[Candidate, list[PlacementRequest]], statements: list[str]
) -> None:
    worker, asked = failed
    desk = PlacementService(Rules(PlacementReason.LEAST_LOADED, 4))
    others_full = (worker, replace(W2, ref=worker.ref + 1, capacity=0))
    counts = []
    for _ in range(3):
        statements.clear()
        found = decide(database, desk, asked, *others_full)
        assert [one.decision.reason for one in found] == [PlacementReason.OTHERS_FULL] * 3
        counts.append(len(statements))
        # What the watch takes back meanwhile makes nobody forget it.
        decide(database, desk, [PlacementRequest(replace(asked[0].key, try_number=3), "default")], *others_full)
    # How much each worker has, and which of them people have taken out.
    assert counts[0] > counts[1] == counts[2] == 2
    # The shared queue would lead it back to the worker that failed it.
    found = decide(
        database, PlacementService(Rules(PlacementReason.LEAST_LOADED, 4, "shared_queue")), asked, *others_full
    )
    assert [one.decision.reason for one in found] == [PlacementReason.OTHERS_FULL] * 3
    found = decide(database, desk, asked, worker, replace(W2, ref=worker.ref + 1))
    assert [one.decision.reason for one in found] == [PlacementReason.RETRY_ELSEWHERE] * 3


def test_who_failed_a_retry_is_forgotten_when_nobody_asks_for_it_any_more(
    database: Database,
    failed: tuple[Candidate, list[PlacementRequest]],
    statements: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker, asked = failed
    desk = PlacementService(Rules(PlacementReason.LEAST_LOADED, 4))
    decide(database, desk, asked, worker)
    monkeypatch.setattr(the_desk, "RETENTION", 0.0)
    decide(database, desk, asked[:1], worker)
    assert set(desk._failed) == {asked[0].key}
    statements.clear()
    decide(database, desk, asked[1:], worker)
    assert len(statements) > 2


# --- the scheduler's loop and the watch ------------------------------------------------------------------------------

NO_DATABASE: Any = None
"""For first tries, where the executor knows loads and pools itself and nobody has taken out a worker."""


@pytest.fixture
def nobody_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(the_desk.worker_queries, "unavailable_workers", lambda _connection: {})


@pytest.mark.usefixtures("nobody_is_out")
def test_the_watch_reads_what_was_given_to_whom_while_the_loop_adds_to_it() -> None:
    placing, reads, added = Event(), Event(), Event()

    class Ref(int):
        """A worker's number, at which the watch stops as it reads until the loop has added another."""

        def __hash__(self) -> int:
            if current_thread() is not main_thread():
                reads.set()
                added.wait(10)
            return super().__hash__()

    class Slow(Rules):
        """The rules of the loop, which lets the watch go first before it places its first task of two."""

        def labels_for(self, pool: str | None, executor_config: Any) -> dict[str, str]:  # noqa: ARG002
            if pool == "first":
                placing.set()
                reads.wait(0.2)
            elif pool == "second":
                added.set()
            return {}

    desk = PlacementService(Slow(PlacementReason.LEAST_LOADED, 4))
    loop = Snapshot((replace(W1, ref=Ref(1)), replace(W2, ref=Ref(2))), 0.0, loads={})

    def watch() -> None:
        assert placing.wait(60)
        desk.decide(NO_DATABASE, [], Snapshot((W1, W2), 0.0, loads={}))

    key = TryKey("etl", "run-1", "extract", -1, 1)
    desk.decide(NO_DATABASE, [PlacementRequest(key, "default", pool="before")], loop)
    with ThreadPoolExecutor(1) as thread:
        watched = thread.submit(watch)
        desk.decide(NO_DATABASE, [PlacementRequest(key, "default", pool=pool) for pool in ("first", "second")], loop)
        watched.result(timeout=60)
    assert set(desk._history) == {W1.ref, W2.ref}


@pytest.mark.usefixtures("nobody_is_out")
def test_nobody_waits_for_what_the_other_one_asks_of_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = PlacementService(Rules(PlacementReason.LEAST_LOADED, 4))
    asks, answered = Event(), Event()

    def failed_on(connection: Any, keys: list[TryKey]) -> dict[TryKey, frozenset[str]]:  # noqa: ARG001
        if keys:
            asks.set()
            assert answered.wait(60)
        return {}

    monkeypatch.setattr(placements, "failed_on", failed_on)
    first, second = (
        PlacementRequest(TryKey("etl", "run-1", "extract", -1, number), "default", pool="a") for number in (1, 2)
    )
    with ThreadPoolExecutor(2) as threads:
        snapshot = Snapshot((W1,), 0.0, loads={})
        slow = threads.submit(desk.decide, NO_DATABASE, [second], snapshot)
        assert asks.wait(60)
        try:
            (one,) = threads.submit(desk.decide, NO_DATABASE, [first], snapshot).result(timeout=30)
        finally:
            answered.set()
        assert one.decision.worker == W1
        assert len(slow.result(timeout=60)) == 1
