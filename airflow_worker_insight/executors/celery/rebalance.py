"""Rebalancing of messages that wait at Celery workers which will not run them soon.

It reclaims messages and places them again: those at a worker that is gone, drained, quarantined or silent; those at a
slow worker while others are fast; and those at a busy worker while others are idle. One scheduler at a time does so.
"""

from __future__ import annotations

import logging
import random
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from airflow_worker_insight.capture.counters import count, warn_once
from airflow_worker_insight.executors.celery.consumers import is_usable
from airflow_worker_insight.executors.celery.queues import dedicated_queue
from airflow_worker_insight.executors.placement.policy import exclusion_reason
from airflow_worker_insight.executors.placement.rules import WAIT
from airflow_worker_insight.store import leases, placements, session
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.workers import queries as worker_queries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from airflow_worker_insight.domain.workers import WorkerRow
    from airflow_worker_insight.executors.celery.consumers import ConsumerManager
    from airflow_worker_insight.executors.celery.reclaim import Reclaimer
    from airflow_worker_insight.executors.placement.policy import Candidate
    from airflow_worker_insight.executors.placement.rules import Rules
    from airflow_worker_insight.executors.placement.service import Snapshot

log = logging.getLogger(__name__)

LEASE = "placing"
"""Row of the worker sources' table that is the lease for rebalancing."""


@dataclass(frozen=True, slots=True)
class RebalanceSettings:
    """Time limits."""

    timeout: float = 20.0
    """Seconds after which to handle no further worker: the snapshot must not become too old."""
    lease_duration: timedelta = timedelta(seconds=60)
    """Time after which another scheduler takes over."""


DEFAULTS = RebalanceSettings()


class Rebalancer:
    """Moves messages of one executor's workers, unless another scheduler is doing so."""

    def __init__(
        self,
        reclaimer: Reclaimer,
        rules: Rules,
        consumers: ConsumerManager,
        *,
        settings: RebalanceSettings = DEFAULTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what moves messages and what knows the consumers.

        :param consumers: the latest answers on which worker consumes which queues
        """
        self._reclaimer = reclaimer
        self._rules = rules
        self._consumers = consumers
        self._settings = settings
        self._clock = clock

    def run_once(self, snapshot: Snapshot) -> None:
        """Reclaim from workers that will not run their messages; if there are none, balance the others."""
        with session.reading(session.BACKGROUND) as connection:
            queues = placements.dedicated_queues(connection)
            loads = placements.count_open(connection)
            names = worker_queries.worker_names(connection, {ref for refs in queues.values() for ref in refs})
            # Read after the queues: another scheduler may have sent a task to a worker that has just started.
            rows, unavailable_reason = worker_queries.live_workers(connection, "celery")
        if unavailable_reason is not None:
            return
        snapshot = _with_current_states(snapshot, rows)
        usable = [worker for worker in snapshot.candidates if exclusion_reason(worker) is None]
        if not usable and self._rules.fallback == WAIT:
            # No worker could take the messages.
            return
        ends_at = self._clock() + self._settings.timeout
        if not self._reclaim(queues, names, rows, snapshot, ends_at=ends_at):
            self._balance(usable, snapshot, loads, ends_at=ends_at)

    def _reclaim(
        self,
        queues: Mapping[str, set[int]],
        names: Mapping[int, str],
        rows: list[WorkerRow],
        snapshot: Snapshot,
        *,
        ends_at: float,
    ) -> int:
        """Reclaim the messages of workers that will not run them; return how many.

        :param ends_at: when to stop with further workers, by the clock
        """
        moves = []
        for queue, refs in queues.items():
            is_gone = _is_gone(queue, rows, self._consumers)
            if is_gone is not None:
                name = next((names[ref] for ref in refs if ref in names), "a worker that is gone")
                moves.append(partial(self._reclaimer.reclaim_tasks, queue, snapshot, worker_name=name, is_gone=is_gone))
        # In random order, because there may be no time for all.
        random.shuffle(moves)
        with self._lease(is_wanted=bool(moves)) as is_ours:
            # Messages that no other worker has room for, or may run, stay there and block no others.
            return sum(_count_moved(move) for move in moves if is_ours and self._clock() < ends_at)

    def _balance(
        self, usable: list[Candidate], snapshot: Snapshot, loads: Mapping[int, int], *, ends_at: float
    ) -> None:
        """Move messages from slow workers to fast ones, or from busy workers to idle ones."""
        fast = [worker for worker in usable if not worker.is_slow]
        idle = [worker for worker in fast if loads.get(worker.ref, 0) < worker.concurrency]
        busy = [worker for worker in usable if loads.get(worker.ref, 0) > worker.concurrency]
        slow = [worker for worker in busy if worker.is_slow]
        with self._lease(is_wanted=bool((idle and busy) or (fast and slow))) as is_ours:
            if is_ours and fast and slow:
                # Fast workers may exceed their capacity here: they still finish the tasks sooner.
                room = {worker.ref: worker.capacity + worker.concurrency for worker in fast}
                self._move(slow, room, snapshot, loads, ends_at=ends_at)
            elif is_ours:
                room = {worker.ref: worker.concurrency for worker in idle}
                self._move(busy, room, snapshot, loads, ends_at=ends_at)

    def _move(
        self,
        busy: list[Candidate],
        room: Mapping[int, int],
        snapshot: Snapshot,
        loads: Mapping[int, int],
        *,
        ends_at: float,
    ) -> None:
        """Move messages from busy workers to others.

        :param room: how many tasks each of the others may have then, by its ``ref``
        :param ends_at: when to stop with further workers, by the clock
        """
        free = sum(limit - loads.get(ref, 0) for ref, limit in room.items())
        # All other workers count as full, not as absent: a retry returns to the worker that failed it only without
        # others.
        candidates = tuple(replace(each, capacity=room.get(each.ref, 0)) for each in snapshot.candidates)
        snapshot = replace(snapshot, candidates=candidates, may_share=False)
        for worker in busy:
            if free <= 0 or self._clock() >= ends_at:
                return
            move = partial(
                self._reclaimer.reclaim_tasks,
                dedicated_queue(worker.worker_id),
                snapshot,
                worker_name=worker.name,
                limit=min(free, loads[worker.ref] - worker.concurrency),
            )
            free -= _count_moved(move)

    @contextmanager
    def _lease(self, *, is_wanted: bool) -> Iterator[bool]:
        """Yield whether this scheduler holds the lease to move messages within the context."""
        if not is_wanted:
            yield False
            return
        duration = self._settings.lease_duration
        with session.writing(session.BACKGROUND) as connection:
            now = database_now(connection)
            leases.get_or_create_source(connection, LEASE, now=now)
            until = now + duration
            is_ours = leases.acquire_lease(
                connection, LEASE, now=now, until=until, at_most=until + duration, only_if_due=True
            )
        try:
            yield is_ours
        finally:
            if is_ours:
                with suppress(Exception), session.writing(session.BACKGROUND) as connection:
                    leases.release_lease(connection, LEASE, until=until, due_at=now)


def _with_current_states(snapshot: Snapshot, rows: list[WorkerRow]) -> Snapshot:
    """Return the snapshot with the current states of the workers.

    Polling takes seconds, and a worker drained meanwhile would get back what was reclaimed from it.
    """
    rows_by_ref = {row.ref: row for row in rows}
    return replace(
        snapshot,
        candidates=tuple(
            replace(
                candidate, state=rows_by_ref[candidate.ref].state, availability=rows_by_ref[candidate.ref].availability
            )
            for candidate in snapshot.candidates
            if candidate.ref in rows_by_ref
        ),
    )


def _is_gone(queue: str, rows: list[WorkerRow], consumers: ConsumerManager) -> bool | None:
    """Return whether a dedicated queue's worker is gone; ``None`` to reclaim nothing."""
    worker = next((row for row in rows if dedicated_queue(row.worker_id) == queue), None)
    if worker is None:
        # Its row may have been merged with another of the same worker, which still consumes the queue.
        return None if consumers.is_consumed(queue) else True
    if not consumers.has_answered(worker.display_name):
        # It may be of another team, with another broker.
        return None
    # That it does not consume the queue proves nothing: another scheduler may just have told it to. If the worker was
    # restarted, the next poll of the worker source ends the row.
    return None if is_usable(worker) and not consumers.is_silent(worker.display_name) else False


def _count_moved(move: Callable[[], int]) -> int:
    """Return how many messages were moved; count a failure, log it once, and go on."""
    try:
        return move()
    except Exception as error:
        count("placement.failed")
        log.debug("Reclaiming tasks failed", exc_info=True)
        warn_once("placing.moving", "Airflow Worker Insight could not reclaim tasks: %s", error)
        return 0
