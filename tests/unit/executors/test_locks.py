"""Others' locks on our tables, inside the scheduler's loop: an executor goes on, and writes when it can."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.capture import counters
from airflow_worker_insight.domain.reasons import PlacementReason
from airflow_worker_insight.executors import base
from airflow_worker_insight.executors.base import GIVES_UP_AFTER, PlacementMixin
from airflow_worker_insight.executors.placement.policy import Candidate
from airflow_worker_insight.executors.placement.rules import HOLD, SEND, Rules
from airflow_worker_insight.executors.placement.service import PlacementRequest, PlacementService, Snapshot
from airflow_worker_insight.store import placements
from airflow_worker_insight.store.tables import placement, worker
from tests.unit.database import NOON, OUR_TABLES, Database, add_run, add_try, change_try, locked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_worker_insight.domain.keys import TryKey

pytestmark = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
each_table = pytest.mark.parametrize("table", OUR_TABLES)


class Parent:
    """What is left of an executor of Airflow's where nothing is to be run."""

    job_id = 7

    def __init__(self) -> None:
        self.queued_tasks: dict[Any, Any] = {}

    def sync(self) -> None:
        """Learn nothing."""


class Executor(PlacementMixin, Parent):  # type: ignore[misc]
    def __init__(self, when_unseen: str = SEND) -> None:
        super().__init__()
        self._desk = PlacementService(Rules(PlacementReason.LEAST_LOADED, 4, when_unseen=when_unseen))
        one = Candidate(ref=1, worker_id="w1", name="w1@host", queues=frozenset({"default"}), concurrency=4, capacity=8)
        self._watch: Any = SimpleNamespace(snapshot=lambda: Snapshot((one,), time.monotonic()))
        self._started_at = -1000.0

    def dedicated_queue(self, worker: Candidate) -> str | None:
        return worker.name

    def names(self, asked: Sequence[PlacementRequest]) -> list[str] | None:
        placed = self.place(asked, 4)
        return None if placed is None else [one.asked.key.task_id for one in placed]


@pytest.fixture(autouse=True)
def nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_warned", set())


@pytest.fixture
def key(database: Database) -> TryKey:
    """Return a try that is queued."""
    with database.engine.begin() as connection:
        run = add_run(connection, state="running", ended_at=None)
        return add_try(connection, run, state="queued", ended_at=None, hostname=None)


def open_placements(database: Database) -> dict[str, str]:
    with database.engine.connect() as connection:
        return {one.key.task_id: one.reason for one in placements.open_placements(connection)}


@each_table
def test_what_cannot_be_placed_waits_and_is_then_sent_as_airflow_would(
    database: Database, key: TryKey, table: str
) -> None:
    executor, asked = Executor(), [PlacementRequest(key, "default")]
    with locked(database, table):
        came = [executor.names(asked) for _ in range(GIVES_UP_AFTER)]
    if table in {placement.name, worker.name}:
        assert came == [[]] * (GIVES_UP_AFTER - 1) + [None]
    else:
        assert came == [["extract"]] * GIVES_UP_AFTER
    assert executor.names(asked) == ["extract"]
    assert open_placements(database) == {"extract": PlacementReason.LEAST_LOADED}


def test_an_executor_that_holds_tasks_holds_them_and_writes_why_afterwards(
    database: Database, key: TryKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, asked = Executor(HOLD), [PlacementRequest(key, "default")]
    monkeypatch.setattr(base, "WRITE_AGAIN", 0.0)
    with locked(database, placement.name):
        assert [executor.names(asked) for _ in range(GIVES_UP_AFTER + 1)] == [[]] * (GIVES_UP_AFTER + 1)
    with locked(database, worker.name):
        assert executor.names(asked) == []
    assert open_placements(database) == {"extract": PlacementReason.WORKERS_UNREACHABLE}
    assert executor.names(asked) == ["extract"]


@each_table
def test_ends_that_cannot_be_written_are_written_later(
    database: Database, key: TryKey, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = Executor()
    monkeypatch.setattr(base, "ENDS_AGAIN_AFTER", 0.0)
    assert executor.names([PlacementRequest(key, "default")]) == ["extract"]
    executor._note_end(key)
    with locked(database, table):
        executor.sync()
        assert bool(executor._ended) == (table == placement.name)
    executor.sync()
    assert not executor._ended
    assert open_placements(database) == {}


@each_table
def test_a_sweep_that_cannot_be_made_drops_nothing_and_is_made_later(
    database: Database, key: TryKey, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = Executor()
    monkeypatch.setattr(base, "UNWANTED_EVERY", 0.0)
    monkeypatch.setattr(base, "ENDS_AGAIN_AFTER", 0.0)
    with database.engine.begin() as connection:
        placements.write(
            connection,
            [placements.Placement(key, PlacementReason.WORKERS_UNREACHABLE, "waits", placed_at=NOON)],
            now=NOON,
        )
        change_try(connection, key, state="failed")
    executor.queued_tasks[key] = None
    executor._waiting, executor._placed_at = {key: "waits"}, {key: NOON}
    executor._waited = frozenset({key})
    with locked(database, table):
        executor.sync()
    executor.sync()
    assert executor.queued_tasks == {}
    assert open_placements(database) == {}
