"""Watch Celery's workers, from a thread beside the scheduler's loop.

Every few seconds it reads the registry, has each worker consume a queue of its own, takes back what waits at workers
that will not run it, and gives back places that nobody gave back.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_worker_insight import config
from airflow_worker_insight.executors.celery import reclaim
from airflow_worker_insight.executors.celery.consumers import ConsumerManager
from airflow_worker_insight.executors.celery.queues import own_queue
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
"""Seconds between two looks for messages that wait at workers that will not run them, or not soon."""

SWEEP_EVERY = timedelta(seconds=30)
"""Time between two sweeps, and how old a placement is at least that is swept."""

REMOVED_AFTER, REMOVED_WITHIN = timedelta(minutes=5), timedelta(hours=2)
"""How long after a worker's end its own queue is removed: by then nobody sends to it any more."""

MOST_REMOVED = 100
"""Queues that are removed at once."""

COMPARE_EVERY = 10.0
"""Seconds between two looks at how long the workers take for the same tasks."""

COMPARED = timedelta(minutes=15)
"""How old a try is at most that is compared: a worker that was slow is given work again some time later."""

MOST_COMPARED = 2_000
"""Tries that are compared at most."""

CLOCKS_DIFFER_FROM = timedelta(minutes=2)
"""How far clocks differ at least to be reckoned with: what is known of them is late by an interval of looking."""

FIRST_LOOK_WITHIN = 15.0
"""Seconds from the start for which somebody else's first look at the workers is waited for."""


class CeleryWorkerMonitor(WorkerMonitor):
    """Watches the Celery workers of one executor."""

    thread_name = "worker-insight-placing"

    def __init__(self, app: Any, desk: PlacementService) -> None:
        super().__init__()
        self.app = app
        self.desk = desk
        self.asking = ConsumerManager(app)
        self._made_at = time.monotonic()
        self._level_due = self._sweep_due = self._compare_due = 0.0
        self._slowness: dict[int, float] = {}
        self._unplaced: dict[int, int] = {}
        self._removed: frozenset[str] = frozenset()

    def run_once(self) -> None:
        """Do everything that is due once."""
        if config.enabled() and self.tables_unavailable_reason() is None:
            # The API servers of Airflow 3 do it too; whoever finds it due is the one.
            refresh(only_if_due=True)
        living, unavailable_reason = self._registry()
        if (
            unavailable_reason == freshness.NOBODY_LOOKS
            and self._snapshot is None
            and time.monotonic() < self._made_at + FIRST_LOOK_WITHIN
        ):
            # An API server or the executor of another team is at it. As long as nothing is known the executor waits.
            return
        if unavailable_reason is None:
            self.asking.ask(living)
            unavailable_reason = self.asking.unavailable_reason
            self._compare(living)
        snapshot = self.publish(
            tuple(map(self._candidate, living)),
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

    def _registry(self) -> tuple[list[WorkerRow], str | None]:
        """Return the workers that live, or why nobody knows."""
        unavailable_reason = self.tables_unavailable_reason()
        if unavailable_reason is not None:
            return [], unavailable_reason
        with session.reading(session.BACKGROUND) as connection:
            return worker_queries.living(connection, "celery")

    def _candidate(self, one: WorkerRow) -> Candidate:
        node = one.known_as
        concurrency = max(1, one.concurrency or 1)
        consumed = self.asking.consumed(node)
        queues = consumed if consumed is not None else one.queues or ()
        return Candidate(
            ref=one.ref,
            worker_id=one.worker_id,
            name=node,
            queues=frozenset(queue for queue in queues if not queue.startswith(OWN_QUEUE_PREFIX)),
            concurrency=concurrency,
            capacity=self.desk.rules.capacity(concurrency),
            labels=self.desk.rules.worker_has(node, one.labels),
            state=one.state,
            availability=one.availability,
            alias=one.name if self.desk.rules.trusts_reports else None,
            slowness=self._slowness.get(one.ref, 1.0),
            unavailable_reason=self._unavailable_reason_of(one),
            comes_back=self.asking.comes_back(node),
        )

    def _unavailable_reason_of(self, one: WorkerRow) -> str | None:
        if self.asking.is_silent(one.known_as):
            return "does not answer"
        if own_queue(one.worker_id) not in (self.asking.consumed(one.known_as) or ()):
            return "does not consume a queue of its own yet"
        return None

    def _compare(self, living: list[WorkerRow]) -> None:
        """Look at how long the workers take for the same tasks, if that is due."""
        slow_from = self.desk.rules.slow_from
        if not slow_from or time.monotonic() < self._compare_due:
            return
        self._compare_due = time.monotonic() + COMPARE_EVERY
        ahead = {one.ref: _clock_ahead(one) for one in living}
        if len(ahead) < 2:  # noqa: PLR2004
            self._slowness = {}
            return
        with session.reading(session.BACKGROUND) as connection:
            now = database_now(connection)
            stays = durations.recent_stays(connection, since=now - COMPARED, most=MOST_COMPARED)
        # By the worker's own clock, as its start is.
        ran = (_ran(one, now + ahead[one.ref]) for one in stays if one.ref in ahead)
        self._slowness = slowness(ran, slow_from)

    def _sweep(self) -> None:
        """Give back places that nobody gave back, count what nobody placed, and remove queues of workers long gone."""
        with session.writing(session.BACKGROUND) as connection:
            settled = database_now(connection) - SWEEP_EVERY
            swept = placements.sweep(connection, running.running_on(connection), settled=settled)
            placements.trim(connection, now=settled)
            ended = worker_queries.ended(
                connection, "celery", since=settled - REMOVED_WITHIN, until=settled - REMOVED_AFTER
            )
        self._unplaced = dict(swept.unplaced)
        left = [queue for queue in map(own_queue, ended) if queue not in self._removed][:MOST_REMOVED]
        if left:
            reclaim.remove_queues(self.app, left)
            self._removed = frozenset(map(own_queue, ended)) & (self._removed | frozenset(left))


def _ran(one: Stay, now: datetime) -> Ran:
    seconds = ((one.ended_at or now) - one.started_at).total_seconds()
    return Ran(one.ref, (one.key.dag_id, one.key.task_id), seconds, has_ended=one.ended_at is not None)


def _clock_ahead(one: WorkerRow) -> timedelta:
    """Return how far a worker's clock is ahead, where that is more than the time that telling it takes."""
    found = one.clock_ahead or timedelta(0)
    return found if abs(found) >= CLOCKS_DIFFER_FROM else timedelta(0)
