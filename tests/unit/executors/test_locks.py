"""Tables locked by others, in the scheduler's loop: an executor goes on, and writes when it can."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.domain.reasons import PlacementReason
from airflow_worker_insight.executors.base import DEFAULTS, PlacementMixin, PlacementSettings
from airflow_worker_insight.executors.placement.policy import Candidate
from airflow_worker_insight.executors.placement.rules import HOLD, SEND, Rules
from airflow_worker_insight.executors.placement.service import PlacementRequest, PlacementService, Snapshot
from airflow_worker_insight.executors.recorder import PlacementRecorder, RecorderSettings
from airflow_worker_insight.store import placements
from airflow_worker_insight.store.tables import placement, worker
from tests.unit.database import NOON, OUR_TABLES, Database, add_run, add_try, change_try, locked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_worker_insight.domain.keys import TryKey
    from airflow_worker_insight.executors.monitor import WorkerMonitor

pytestmark = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
FAILURES = DEFAULTS.fallback_after_failures

each_table = pytest.mark.parametrize("table", OUR_TABLES)


class Parent:
    """The part of an Airflow executor that is needed if no task runs."""

    job_id = 7

    def __init__(self) -> None:
        self.queued_tasks: dict[Any, Any] = {}

    def sync(self) -> None:
        """Learn nothing."""


class Executor(PlacementMixin, Parent):  # type: ignore[misc]
    """An executor with one worker, which writes again at once what it could not write."""

    def __init__(self, when_workers_unseen: str = SEND) -> None:
        super().__init__(
            settings=PlacementSettings(first_snapshot_timeout=0.0),
            recorder=PlacementRecorder(
                settings=RecorderSettings(unwanted_check_interval=0.0, reason_retry_delay=0.0, ends_retry_delay=0.0)
            ),
        )
        self._service = PlacementService(
            Rules(PlacementReason.LEAST_LOADED, 4, when_workers_unseen=when_workers_unseen)
        )
        candidate = Candidate(
            ref=1, worker_id="w1", name="w1@host", queues=frozenset({"default"}), concurrency=4, capacity=8
        )
        self._monitor: Any = SimpleNamespace(snapshot=lambda: Snapshot((candidate,), time.monotonic()))

    def make_monitor(self, service: PlacementService) -> WorkerMonitor:
        raise NotImplementedError

    def dedicated_queue(self, worker: Candidate) -> str | None:
        return worker.name

    def task_ids(self, requests: Sequence[PlacementRequest]) -> list[str] | None:
        placed = self.place(requests, 4)
        return None if placed is None else [result.request.key.task_id for result in placed]


@pytest.fixture
def key(database: Database) -> TryKey:
    """Return a try that is queued."""
    with database.engine.begin() as connection:
        run = add_run(connection, state="running", ended_at=None)
        return add_try(connection, run, state="queued", ended_at=None, hostname=None)


def open_placements(database: Database) -> dict[str, str]:
    with database.engine.connect() as connection:
        return {record.key.task_id: record.reason for record in placements.open_placements(connection)}


@each_table
def test_locked_table_holds_tasks_back_for_some_heartbeats_and_then_starts_fallback_mode(
    database: Database, key: TryKey, table: str
) -> None:
    executor, requests = Executor(), [PlacementRequest(key, "default")]
    with locked(database, table):
        came = [executor.task_ids(requests) for _ in range(FAILURES)]
    if table in {placement.name, worker.name}:
        assert came == [[]] * (FAILURES - 1) + [None]
    else:
        assert came == [["extract"]] * FAILURES
    assert executor.task_ids(requests) == ["extract"]
    assert open_placements(database) == {"extract": PlacementReason.LEAST_LOADED}


def test_executor_that_holds_tasks_records_why_after_the_lock(database: Database, key: TryKey) -> None:
    executor, requests = Executor(HOLD), [PlacementRequest(key, "default")]
    with locked(database, placement.name):
        assert [executor.task_ids(requests) for _ in range(FAILURES + 1)] == [[]] * (FAILURES + 1)
    with locked(database, worker.name):
        assert executor.task_ids(requests) == []
    assert open_placements(database) == {"extract": PlacementReason.WORKERS_UNREACHABLE}
    assert executor.task_ids(requests) == ["extract"]


@each_table
def test_ends_are_written_after_the_lock(database: Database, key: TryKey, table: str) -> None:
    executor = Executor()
    assert executor.task_ids([PlacementRequest(key, "default")]) == ["extract"]
    executor._recorder.note_end(key)
    with locked(database, table):
        executor.sync()
        assert bool(executor._recorder._ended) == (table == placement.name)
    executor.sync()
    assert not executor._recorder._ended
    assert open_placements(database) == {}


@each_table
def test_unwanted_tasks_are_removed_after_the_lock(database: Database, key: TryKey, table: str) -> None:
    executor = Executor()
    with database.engine.begin() as connection:
        placements.write(
            connection,
            [placements.Placement(key, PlacementReason.WORKERS_UNREACHABLE, "waits", placed_at=NOON)],
            now=NOON,
        )
        change_try(connection, key, state="failed")
    executor.queued_tasks[key] = None
    recorder = executor._recorder
    recorder._waiting, recorder._placed_at = {key: "waits"}, {key: NOON}
    recorder._waited_before = frozenset({key})
    with locked(database, table):
        executor.sync()
    executor.sync()
    assert executor.queued_tasks == {}
    assert open_placements(database) == {}
