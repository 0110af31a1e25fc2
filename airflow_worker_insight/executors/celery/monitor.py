"""Monitor of Celery workers, in a thread beside the scheduler's loop.

Every few seconds it reads the registry, makes each worker consume its dedicated queue, reclaims messages that wait at
workers which will not run them, and frees slots of placements that were not closed.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_worker_insight import config
from airflow_worker_insight.executors.celery import reclaim
from airflow_worker_insight.executors.celery.consumers import ConsumerManager
from airflow_worker_insight.executors.celery.queues import dedicated_queue
from airflow_worker_insight.executors.celery.rebalance import level
from airflow_worker_insight.executors.monitor import WorkerMonitor
from airflow_worker_insight.executors.placement.policy import Candidate
from airflow_worker_insight.executors.placement.slow_workers import Ran, slowness
from airflow_worker_insight.registry.poll import refresh
from airflow_worker_insight.registry.sources.celery import OWN_QUEUE_PREFIX
from airflow_worker_insight.store import placements, session
from airflow_worker_insight.store.attempts import durations, running
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.workers import freshness
from airflow_worker_insight.store.workers import queries as worker_queries

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_worker_insight.domain.workers import WorkerRow
    from airflow_worker_insight.executors.placement.service import PlacementService
    from airflow_worker_insight.store.attempts.durations import Stay

LEVEL_EVERY = 5.0
"""Seconds between two rebalancings, for messages at workers that will not run them soon."""

SWEEP_EVERY = timedelta(seconds=30)
"""Time between two sweeps, and minimum age of a placement to be swept."""

REMOVED_AFTER, REMOVED_WITHIN = timedelta(minutes=5), timedelta(hours=2)
"""Minimum and maximum time from a worker's end to the removal of its dedicated queue.

After the minimum no scheduler sends to it any more.
"""

MOST_REMOVED = 100
"""Maximum number of queues removed per sweep."""

COMPARE_EVERY = 10.0
"""Seconds between two comparisons of how long workers take for the same tasks."""

COMPARED = timedelta(minutes=15)
"""Maximum age of tries to compare, so that a worker that was slow gets work again later."""

MOST_COMPARED = 2_000
"""Maximum number of tries to compare."""

CLOCKS_DIFFER_FROM = timedelta(minutes=2)
"""Minimum difference of clocks to correct for.

What is known of clocks is late by up to the interval between two polls.
"""

FIRST_LOOK_WITHIN = 15.0
"""Seconds from the start to wait for another process's first poll of the workers."""


class CeleryWorkerMonitor(WorkerMonitor):
    """Monitor of one executor's Celery workers."""

    thread_name = "worker-insight-placing"

    def __init__(self, app: Any, service: PlacementService) -> None:
        super().__init__()
        self.app = app
        self.desk = service
        self.asking = ConsumerManager(app)
        self._created_at = time.monotonic()
        self._level_due = self._sweep_due = self._compare_due = 0.0
        self._slowness: dict[int, float] = {}
        self._unplaced: dict[int, int] = {}
        self._removed: frozenset[str] = frozenset()

    def run_once(self) -> None:
        """Do everything that is due, once."""
        if config.enabled() and self.tables_unavailable_reason() is None:
            # API servers of Airflow 3 poll too; the first process that finds a poll due does it.
            refresh(only_if_due=True)
        rows, unavailable_reason = self._read_registry()
        if (
            unavailable_reason == freshness.STATES_ARE_STALE
            and self._snapshot is None
            and time.monotonic() < self._created_at + FIRST_LOOK_WITHIN
        ):
            # An API server or another team's executor is polling. The executor waits until there is a snapshot.
            return
        if unavailable_reason is None:
            self.asking.ask(rows)
            unavailable_reason = self.asking.unavailable_reason
            self._compare_durations(rows)
        snapshot = self.publish(
            tuple(map(self._candidate, rows)),
            unavailable_reason,
            unplaced=self._unplaced,
            answered_at=self.asking.answered_at,
        )
        if unavailable_reason is not None:
            return
        now = time.monotonic()
        if now >= self._level_due:
            self._level_due = now + LEVEL_EVERY
            level(self.app, self.desk, self.asking, snapshot)
        if now >= self._sweep_due:
            self._sweep_due = now + SWEEP_EVERY.total_seconds()
            self._sweep()

    def _read_registry(self) -> tuple[list[WorkerRow], str | None]:
        """Return the live workers, or the reason why they are unknown."""
        unavailable_reason = self.tables_unavailable_reason()
        if unavailable_reason is not None:
            return [], unavailable_reason
        with session.reading(session.BACKGROUND) as connection:
            return worker_queries.live_workers(connection, "celery")

    def _candidate(self, row: WorkerRow) -> Candidate:
        node = row.display_name
        concurrency = max(1, row.concurrency or 1)
        consumed = self.asking.consumed(node)
        queues = consumed if consumed is not None else row.queues or ()
        return Candidate(
            ref=row.ref,
            worker_id=row.worker_id,
            name=node,
            queues=frozenset(queue for queue in queues if not queue.startswith(OWN_QUEUE_PREFIX)),
            concurrency=concurrency,
            capacity=self.desk.rules.capacity(concurrency),
            labels=self.desk.rules.worker_has(node, row.labels),
            state=row.state,
            availability=row.availability,
            alias=row.name if self.desk.rules.trusts_reports else None,
            slowness=self._slowness.get(row.ref, 1.0),
            unavailable_reason=self._unavailable_reason_of(row),
            comes_back=self.asking.comes_back(node),
        )

    def _unavailable_reason_of(self, row: WorkerRow) -> str | None:
        if self.asking.is_silent(row.display_name):
            return "does not answer"
        if dedicated_queue(row.worker_id) not in (self.asking.consumed(row.display_name) or ()):
            return "does not consume a queue of its own yet"
        return None

    def _compare_durations(self, rows: list[WorkerRow]) -> None:
        """Compare how long the workers take for the same tasks, if due."""
        slow_from = self.desk.rules.slow_from
        if not slow_from or time.monotonic() < self._compare_due:
            return
        self._compare_due = time.monotonic() + COMPARE_EVERY
        ahead = {row.ref: _clock_ahead(row) for row in rows}
        if len(ahead) < 2:  # noqa: PLR2004
            self._slowness = {}
            return
        with session.reading(session.BACKGROUND) as connection:
            now = database_now(connection)
            stays = durations.recent_stays(connection, since=now - COMPARED, most=MOST_COMPARED)
        # A try's start is by the worker's clock, so the current time must be, too.
        ran = (_ran(stay, now + ahead[stay.ref]) for stay in stays if stay.ref in ahead)
        self._slowness = slowness(ran, slow_from)

    def _sweep(self) -> None:
        """Free leaked slots, count tries not placed here, and remove queues of long-gone workers."""
        with session.writing(session.BACKGROUND) as connection:
            placed_before = database_now(connection) - SWEEP_EVERY
            swept = placements.sweep(connection, running.running_on(connection), placed_before=placed_before)
            placements.prune(connection, now=placed_before)
            ended = worker_queries.ended_workers(
                connection, "celery", since=placed_before - REMOVED_WITHIN, until=placed_before - REMOVED_AFTER
            )
        self._unplaced = dict(swept.unplaced)
        unused = [queue for queue in map(dedicated_queue, ended) if queue not in self._removed][:MOST_REMOVED]
        if unused:
            reclaim.remove_queues(self.app, unused)
            self._removed = frozenset(map(dedicated_queue, ended)) & (self._removed | frozenset(unused))


def _ran(stay: Stay, now: datetime) -> Ran:
    seconds = ((stay.ended_at or now) - stay.started_at).total_seconds()
    return Ran(stay.ref, (stay.key.dag_id, stay.key.task_id), seconds, has_ended=stay.ended_at is not None)


def _clock_ahead(row: WorkerRow) -> timedelta:
    """Return how far a worker's clock is ahead, or 0 if less than the measurement's delay."""
    difference = row.clock_ahead or timedelta(0)
    return difference if abs(difference) >= CLOCKS_DIFFER_FROM else timedelta(0)
