"""Monitor of Celery workers, in a thread beside the scheduler's loop.

Every few seconds it reads the registry, makes each worker consume its dedicated queue, rebalances messages that wait at
workers, and frees slots of placements that were not closed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_worker_insight import config
from airflow_worker_insight.executors.celery.consumers import ConsumerManager
from airflow_worker_insight.executors.celery.queues import dedicated_queue
from airflow_worker_insight.executors.celery.rebalance import Rebalancer
from airflow_worker_insight.executors.celery.reclaim import Reclaimer
from airflow_worker_insight.executors.monitor import WorkerMonitor
from airflow_worker_insight.executors.placement.policy import Candidate
from airflow_worker_insight.executors.placement.slow_workers import TaskRun, slowness
from airflow_worker_insight.registry.poll import refresh
from airflow_worker_insight.registry.sources.celery_control import DEDICATED_QUEUE_PREFIX
from airflow_worker_insight.store import placements, session
from airflow_worker_insight.store.attempts import durations, running
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.workers import freshness
from airflow_worker_insight.store.workers import queries as worker_queries

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from airflow_worker_insight.domain.workers import WorkerRow
    from airflow_worker_insight.executors.placement.service import PlacementService
    from airflow_worker_insight.store.attempts.durations import Stay

MIN_CLOCK_DIFFERENCE = timedelta(minutes=2)
"""Minimum difference of clocks to correct for.

What is known of clocks is late by up to the interval between two polls.
"""


@dataclass(frozen=True, slots=True)
class CeleryMonitorSettings:
    """Intervals, and limits."""

    first_poll_timeout: float = 15.0
    """Seconds from the start to wait for another process's first poll of the workers."""
    rebalance_interval: float = 5.0
    """Seconds between two rebalancings, for messages at workers that will not run them soon."""
    sweep_interval: timedelta = timedelta(seconds=30)
    """Time between two sweeps, and minimum age of a placement to be swept."""
    queue_removal_delay: timedelta = timedelta(minutes=5)
    """Time from a worker's end after which its dedicated queue is removed: no scheduler sends to it any more."""
    queue_removal_period: timedelta = timedelta(hours=2)
    """Time from a worker's end until which its dedicated queue is removed."""
    max_queues_removed: int = 100
    """How many queues to remove per sweep."""
    compare_interval: float = 10.0
    """Seconds between two comparisons of how long workers take for the same tasks."""
    compared_period: timedelta = timedelta(minutes=15)
    """Maximum age of tries to compare, so that a worker that was slow gets work again later."""
    max_compared: int = 2_000
    """How many tries to compare."""


DEFAULTS = CeleryMonitorSettings()


class CeleryWorkerMonitor(WorkerMonitor):
    """Monitor of one executor's Celery workers."""

    thread_name = "worker-insight-placing"

    def __init__(
        self,
        app: Any,
        service: PlacementService,
        *,
        settings: CeleryMonitorSettings = DEFAULTS,
        consumers: ConsumerManager | None = None,
        reclaimer: Reclaimer | None = None,
        rebalancer: Rebalancer | None = None,
        refresh: Callable[..., Any] = refresh,
        **options: Any,
    ) -> None:
        """Take the app of the workers and what places tasks on them.

        :param refresh: polls the workers, as :func:`airflow_worker_insight.registry.poll.refresh` does
        :param options: arguments of :class:`.WorkerMonitor`
        """
        super().__init__(**options)
        self._settings = settings
        self._rules = service.rules
        self._consumers = consumers or ConsumerManager(app)
        self._reclaimer = reclaimer or Reclaimer(app, service)
        self._rebalancer = rebalancer or Rebalancer(self._reclaimer, service.rules, self._consumers)
        self._refresh = refresh
        self._created_at = time.monotonic()
        self._rebalance_at = self._sweep_at = self._compare_at = 0.0
        self._slowness: dict[int, float] = {}
        self._unplaced: dict[int, int] = {}
        self._removed: frozenset[str] = frozenset()

    def run_once(self) -> None:
        """Do everything that is due, once."""
        if config.enabled() and self.tables_unavailable_reason() is None:
            # API servers of Airflow 3 poll too; the first process that finds a poll due does it.
            self._refresh(only_if_due=True)
        rows, unavailable_reason = self._read_registry()
        if (
            unavailable_reason == freshness.STATES_ARE_STALE
            and self._snapshot is None
            and time.monotonic() < self._created_at + self._settings.first_poll_timeout
        ):
            # An API server or another team's executor is polling. The executor waits until there is a snapshot.
            return
        if unavailable_reason is None:
            self._consumers.poll(rows)
            unavailable_reason = self._consumers.unavailable_reason
            self._compare_durations(rows)
        snapshot = self.publish(
            tuple(map(self._candidate, rows)),
            unavailable_reason,
            unplaced=self._unplaced,
            answered_at=self._consumers.answered_at,
        )
        if unavailable_reason is not None:
            return
        now = time.monotonic()
        if now >= self._rebalance_at:
            self._rebalance_at = now + self._settings.rebalance_interval
            self._rebalancer.run_once(snapshot)
        if now >= self._sweep_at:
            self._sweep_at = now + self._settings.sweep_interval.total_seconds()
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
        consumed = self._consumers.consumed(node)
        queues = consumed if consumed is not None else row.queues or ()
        return Candidate(
            ref=row.ref,
            worker_id=row.worker_id,
            name=node,
            queues=frozenset(queue for queue in queues if not queue.startswith(DEDICATED_QUEUE_PREFIX)),
            concurrency=concurrency,
            capacity=self._rules.capacity(concurrency),
            labels=self._rules.labels_of_worker(node, row.labels),
            state=row.state,
            availability=row.availability,
            alias=row.name if self._rules.trusts_reports else None,
            slowness=self._slowness.get(row.ref, 1.0),
            unavailable_reason=self._unavailable_reason_of(row),
            may_return=self._consumers.may_return(node),
        )

    def _unavailable_reason_of(self, row: WorkerRow) -> str | None:
        if self._consumers.is_silent(row.display_name):
            return "does not answer"
        if dedicated_queue(row.worker_id) not in (self._consumers.consumed(row.display_name) or ()):
            return "does not consume its dedicated queue yet"
        return None

    def _compare_durations(self, rows: list[WorkerRow]) -> None:
        """Compare how long the workers take for the same tasks, if due."""
        slow_from = self._rules.slow_from
        if not slow_from or time.monotonic() < self._compare_at:
            return
        self._compare_at = time.monotonic() + self._settings.compare_interval
        ahead = {row.ref: _clock_ahead(row) for row in rows}
        if len(ahead) <= 1:
            self._slowness = {}
            return
        with session.reading(session.BACKGROUND) as connection:
            now = database_now(connection)
            stays = durations.recent_stays(
                connection, since=now - self._settings.compared_period, most=self._settings.max_compared
            )
        # A try's start is by the worker's clock, so the current time must be, too.
        runs = (_task_run(stay, now + ahead[stay.ref]) for stay in stays if stay.ref in ahead)
        self._slowness = slowness(runs, slow_from)

    def _sweep(self) -> None:
        """Free leaked slots, count tries not placed here, and remove queues of long-gone workers."""
        with session.writing(session.BACKGROUND) as connection:
            placed_before = database_now(connection) - self._settings.sweep_interval
            swept = placements.sweep(connection, running.running_on(connection), placed_before=placed_before)
            placements.prune(connection, now=placed_before)
            ended = worker_queries.ended_workers(
                connection,
                "celery",
                since=placed_before - self._settings.queue_removal_period,
                until=placed_before - self._settings.queue_removal_delay,
            )
        self._unplaced = dict(swept.unplaced)
        unused = [queue for queue in map(dedicated_queue, ended) if queue not in self._removed][
            : self._settings.max_queues_removed
        ]
        if unused:
            self._reclaimer.remove_queues(unused)
            self._removed = frozenset(map(dedicated_queue, ended)) & (self._removed | frozenset(unused))


def _task_run(stay: Stay, now: datetime) -> TaskRun:
    seconds = ((stay.ended_at or now) - stay.started_at).total_seconds()
    return TaskRun(stay.ref, (stay.key.dag_id, stay.key.task_id), seconds, has_ended=stay.ended_at is not None)


def _clock_ahead(row: WorkerRow) -> timedelta:
    """Return how far a worker's clock is ahead, or 0 if less than the measurement's delay."""
    difference = row.clock_ahead or timedelta(0)
    return difference if abs(difference) >= MIN_CLOCK_DIFFERENCE else timedelta(0)
