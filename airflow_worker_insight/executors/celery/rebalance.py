"""Rebalancing of messages that wait at Celery workers which will not run them soon.

It reclaims messages and has them placed again: those at a worker that is gone, drained, quarantined or silent; those at
a slow worker while others are fast; and those at a busy worker while others are idle. One scheduler at a time does so.
"""

from __future__ import annotations

import logging
import random
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_worker_insight.capture.counters import count, warn_once
from airflow_worker_insight.executors.celery import reclaim
from airflow_worker_insight.executors.celery.consumers import is_usable
from airflow_worker_insight.executors.celery.queues import dedicated_queue
from airflow_worker_insight.executors.placement.policy import is_out
from airflow_worker_insight.executors.placement.rules import WAIT
from airflow_worker_insight.store import leases, placements, session
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.workers import queries as worker_queries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from airflow_worker_insight.domain.workers import WorkerRow
    from airflow_worker_insight.executors.celery.consumers import ConsumerManager
    from airflow_worker_insight.executors.placement.policy import Candidate
    from airflow_worker_insight.executors.placement.service import PlacementService, Snapshot

log = logging.getLogger(__name__)

BEGINS_WITHIN = 20.0
"""Seconds after which no further worker is handled: the snapshot must not become too old."""

MAY_TAKE = timedelta(seconds=60)
"""Duration of the lease, after which another scheduler takes over."""

LEASE = "placing"
"""Row of the worker sources' table that is the lease for rebalancing."""


def level(app: Any, service: PlacementService, consumers: ConsumerManager, snapshot: Snapshot) -> None:
    """Rebalance once, unless another scheduler is doing so.

    :param consumers: the latest answers on which worker consumes which queues
    """
    with session.reading(session.BACKGROUND) as connection:
        queues = placements.dedicated_queues(connection)
        loads = placements.count_open(connection)
        names = worker_queries.worker_names(connection, {ref for refs in queues.values() for ref in refs})
        # Read after the queues: another scheduler may have sent a task to a worker that has just started.
        rows, unavailable_reason = worker_queries.live_workers(connection, "celery")
    if unavailable_reason is not None:
        return
    snapshot = _as_now(snapshot, rows)
    usable = [worker for worker in snapshot.candidates if is_out(worker) is None]
    if not usable and service.rules.fallback == WAIT:
        # No worker could take the messages.
        return
    reclaim_tasks = partial(reclaim.reclaim_tasks, app, desk=service)
    ends_at = time.monotonic() + BEGINS_WITHIN
    moves = []
    for queue, refs in queues.items():
        is_gone = _is_gone(queue, rows, consumers)
        if is_gone is not None:
            came_from = next((names[ref] for ref in refs if ref in names), "a worker that is gone")
            moves.append(partial(reclaim_tasks, queue=queue, snapshot=snapshot, came_from=came_from, is_gone=is_gone))
    # In random order, because there may be no time for all.
    random.shuffle(moves)
    with _lease(bool(moves)) as is_ours:
        # Messages that no other worker has room for, or may take, stay there and block no others.
        moved = sum(_count_moved(move) for move in moves if is_ours and time.monotonic() < ends_at)
    if not moved:
        _move_waiting(reclaim_tasks, usable, snapshot, loads, ends_at=ends_at)


def _as_now(snapshot: Snapshot, rows: list[WorkerRow]) -> Snapshot:
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


def _move_waiting(
    reclaim_tasks: Callable[..., int],
    usable: list[Candidate],
    snapshot: Snapshot,
    loads: Mapping[int, int],
    *,
    ends_at: float,
) -> None:
    """Move messages from slow workers to fast ones, or from busy workers to idle ones."""
    fast = [worker for worker in usable if not worker.is_slow]
    idle = [worker for worker in fast if loads.get(worker.ref, 0) < worker.concurrency]
    busy = [worker for worker in usable if loads.get(worker.ref, 0) > worker.concurrency]
    slow = [worker for worker in busy if worker.is_slow]
    with _lease(bool((idle and busy) or (fast and slow))) as is_ours:
        if is_ours and fast and slow:
            # Fast workers may exceed their capacity here: the tasks are done sooner there all the same.
            room = {worker.ref: worker.capacity + worker.concurrency for worker in fast}
            _move(reclaim_tasks, slow, room, snapshot, loads, ends_at=ends_at)
        elif is_ours:
            room = {worker.ref: worker.concurrency for worker in idle}
            _move(reclaim_tasks, busy, room, snapshot, loads, ends_at=ends_at)


def _move(
    reclaim_tasks: Callable[..., int],
    busy: list[Candidate],
    room: Mapping[int, int],
    snapshot: Snapshot,
    loads: Mapping[int, int],
    *,
    ends_at: float,
) -> None:
    """Move messages from busy workers to others.

    :param room: how many tasks each of the others may have then, by its ``ref``
    :param ends_at: when to stop with further workers, in seconds of this process's monotonic clock
    """
    free = sum(most - loads.get(ref, 0) for ref, most in room.items())
    # All other workers count as full, not as absent: a retry returns to the worker that failed it only without others.
    snapshot = replace(
        snapshot,
        candidates=tuple(replace(candidate, capacity=room.get(candidate.ref, 0)) for candidate in snapshot.candidates),
        may_share=False,
    )
    for worker in busy:
        if free <= 0 or time.monotonic() >= ends_at:
            return
        most = min(free, loads[worker.ref] - worker.concurrency)
        queue = dedicated_queue(worker.worker_id)
        free -= _count_moved(partial(reclaim_tasks, queue=queue, snapshot=snapshot, came_from=worker.name, most=most))


@contextmanager
def _lease(is_wanted: bool) -> Iterator[bool]:
    """Yield whether this scheduler holds the lease to move messages within the context."""
    if not is_wanted:
        yield False
        return
    with session.writing(session.BACKGROUND) as connection:
        now = database_now(connection)
        leases.get_or_create_source(connection, LEASE, now=now)
        until = now + MAY_TAKE
        is_ours = leases.acquire_lease(
            connection, LEASE, now=now, until=until, at_most=until + MAY_TAKE, only_if_due=True
        )
    try:
        yield is_ours
    finally:
        if is_ours:
            with suppress(Exception), session.writing(session.BACKGROUND) as connection:
                leases.release_lease(connection, LEASE, until=until, due_at=now)


def _count_moved(move: Callable[[], int]) -> int:
    """Return how many messages were moved; count a failure, log it once, and go on."""
    try:
        return move()
    except Exception as error:
        count("placement.failed")
        log.debug("Taking tasks back failed", exc_info=True)
        warn_once("placing.moving", "Airflow Worker Insight could not take tasks back: %s", error)
        return 0
