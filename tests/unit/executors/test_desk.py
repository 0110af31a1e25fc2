"""A batch of tasks: what is read for it, and what is decided of it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.executors.desk import Asked, Desk, Snapshot
from airflow_worker_insight.executors.placement import Candidate
from airflow_worker_insight.executors.rules import Rules
from airflow_worker_insight.store import placements
from airflow_worker_insight.store.decisions import LEAST_LOADED, NO_LABEL, SHARED_QUEUE
from airflow_worker_insight.store.placements import Placement
from tests.unit.database import NOON, Database, add_run, add_try, on_both

if TYPE_CHECKING:
    from airflow_worker_insight.store.keys import TryKey

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


def decide(database: Database, desk: Desk, asked: list[Asked], *candidates: Candidate, **others: Any) -> list[Any]:
    most = others.pop("most", None)
    snapshot = Snapshot(candidates, time.monotonic(), **others)
    with database.engine.begin() as connection:
        return desk.decide(connection, asked, snapshot, most=most)


@on_both
def test_what_is_placed_and_what_runs_besides_counts(database: Database) -> None:
    keys = store(database, 6)
    with database.engine.begin() as connection:
        placements.write(connection, [Placement(key, LEAST_LOADED, "", worker_ref=1) for key in keys[:2]], now=NOON)
    asked = [Asked(key, "default") for key in keys[2:]]
    found = decide(database, Desk(Rules(LEAST_LOADED, 4)), asked, W1, W2, unplaced={2: 1})
    assert [one.decision.worker.name for one in found] == ["w2@host", "w1@host", "w2@host", "w1@host"]


def test_no_more_are_placed_than_are_wanted_and_those_that_wait_do_not_count(database: Database) -> None:
    waits, *rest = store(database, 4)
    nowhere = {"worker_insight": {"labels": {"zone": "moon"}}}
    asked = [Asked(waits, "default", nowhere), *(Asked(key, "default") for key in rest)]
    found = decide(database, Desk(Rules(LEAST_LOADED, 4)), asked, W1, most=2)
    assert [one.waits for one in found] == [True, False, False]


@pytest.mark.parametrize("pool", [None, "default_pool"])
def test_labels_of_a_pool(database: Database, pool: str | None) -> None:
    (key,) = store(database, 1)
    desk = Desk(Rules(LEAST_LOADED, 4, pool_labels={"default_pool": {"gpu": "yes"}}))
    (one,) = decide(database, desk, [Asked(key, "default", pool=pool)], W1)
    assert (one.decision.worker, one.decision.reason) == (None, NO_LABEL)
    (one,) = decide(database, desk, [Asked(key, "default", pool=pool)], W1, replace(W2, labels={"gpu": "yes"}))
    assert one.decision.worker.name == "w2@host"


def test_to_the_shared_queue_with_the_reason(database: Database) -> None:
    (key,) = store(database, 1)
    (one,) = decide(database, Desk(Rules(LEAST_LOADED, 4, "shared_queue")), [Asked(key, "large")], W1)
    assert not one.waits
    assert one.decision.reason == SHARED_QUEUE
    assert one.decision.text == ("to the queue large that all share: no worker that is known consumes the queue large")
