"""Take back what waits at Celery workers that will not run it, or not soon, and have it placed again.

That is: what waits at a worker that is gone, drained, quarantined or silent; what waits at a slow one while others are
fast; and what waits at a busy one while others are idle. One scheduler at a time does it.
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
from airflow_worker_insight.executors.celery.queues import own_queue
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
"""Seconds after which no further worker is begun with: what is known of the workers must not grow old meanwhile."""

MAY_TAKE = timedelta(seconds=60)
"""How long it may take before another scheduler takes over."""

LEASE = "placing"
"""The row of the engines' table by which one scheduler at a time takes back."""


def level(app: Any, desk: PlacementService, asking: ConsumerManager, snapshot: Snapshot) -> None:
    """Do all of it once, unless another scheduler is at it.

    :param asking: what is known of who consumes what
    """
    with session.reading(session.BACKGROUND) as connection:
        queues = placements.own_queues(connection)
        loads = placements.loads(connection)
        names = worker_queries.names(connection, {ref for refs in queues.values() for ref in refs})
        # After the queues: another scheduler may have sent something to a worker that has just begun.
        living, unavailable_reason = worker_queries.living(connection, "celery")
    if unavailable_reason is not None:
        return
    snapshot = _as_now(snapshot, living)
    usable = [one for one in snapshot.candidates if is_out(one) is None]
    if not usable and desk.rules.fallback == WAIT:
        # There is nobody to give it to.
        return
    reclaim_tasks = partial(reclaim.reclaim_tasks, app, desk=desk)
    ends_at = time.monotonic() + BEGINS_WITHIN
    moves = []
    for queue, refs in queues.items():
        is_gone = _is_gone(queue, living, asking)
        if is_gone is not None:
            came_from = next((names[ref] for ref in refs if ref in names), "a worker that is gone")
            moves.append(partial(reclaim_tasks, queue=queue, snapshot=snapshot, came_from=came_from, is_gone=is_gone))
    # By turns: there may be no time for all of them.
    random.shuffle(moves)
    with _lease(bool(moves)) as is_ours:
        # What nobody has room for, or may have, stays there and keeps nothing else from its place.
        moved = sum(_do(move) for move in moves if is_ours and time.monotonic() < ends_at)
    if not moved:
        _relieve_some(reclaim_tasks, usable, snapshot, loads, ends_at=ends_at)


def _as_now(snapshot: Snapshot, living: list[WorkerRow]) -> Snapshot:
    """Return what is known with the workers as they are now.

    Asking them takes seconds, and a worker may be drained meanwhile: it would be given what is taken back from it.
    """
    rows = {one.ref: one for one in living}
    return replace(
        snapshot,
        candidates=tuple(
            replace(one, state=rows[one.ref].state, availability=rows[one.ref].availability)
            for one in snapshot.candidates
            if one.ref in rows
        ),
    )


def _is_gone(queue: str, living: list[WorkerRow], asking: ConsumerManager) -> bool | None:
    """Return whether the worker of an own queue is no more; ``None`` where nothing is to be taken back from it."""
    one = next((one for one in living if own_queue(one.worker_id) == queue), None)
    if one is None:
        # Its row may have been merged with another of the same worker, which goes on consuming the queue.
        return None if asking.is_consumed(queue) else True
    if not asking.has_answered(one.known_as):
        # It may be of another team, with a broker of its own.
        return None
    # That it does not consume the queue is no sign: another scheduler may just have told it to. Of a worker that was
    # restarted the next look at the engine ends the row.
    return None if is_usable(one) and not asking.is_silent(one.known_as) else False


def _relieve_some(
    reclaim_tasks: Callable[..., int],
    usable: list[Candidate],
    snapshot: Snapshot,
    loads: Mapping[int, int],
    *,
    ends_at: float,
) -> None:
    """Give what waits at slow workers to the others, or what waits at busy ones to idle ones."""
    fast = [one for one in usable if not one.is_slow]
    idle = [one for one in fast if loads.get(one.ref, 0) < one.concurrency]
    busy = [one for one in usable if loads.get(one.ref, 0) > one.concurrency]
    slow = [one for one in busy if one.is_slow]
    with _lease(bool((idle and busy) or (fast and slow))) as is_ours:
        if is_ours and fast and slow:
            # The others may have more than their share for once: there it is done sooner all the same.
            room = {one.ref: one.capacity + one.concurrency for one in fast}
            _relieve(reclaim_tasks, slow, room, snapshot, loads, ends_at=ends_at)
        elif is_ours:
            room = {one.ref: one.concurrency for one in idle}
            _relieve(reclaim_tasks, busy, room, snapshot, loads, ends_at=ends_at)


def _relieve(
    reclaim_tasks: Callable[..., int],
    busy: list[Candidate],
    room: Mapping[int, int],
    snapshot: Snapshot,
    loads: Mapping[int, int],
    *,
    ends_at: float,
) -> None:
    """Take what waits at some workers back for others.

    :param room: how much these others may have then
    :param ends_at: from when on none is begun with, by this process's monotonic clock
    """
    free = sum(most - loads.get(ref, 0) for ref, most in room.items())
    # All but they are full, but not unknown: a retry goes back to the worker that failed it only where no other is.
    snapshot = replace(
        snapshot,
        candidates=tuple(replace(one, capacity=room.get(one.ref, 0)) for one in snapshot.candidates),
        may_share=False,
    )
    for one in busy:
        if free <= 0 or time.monotonic() >= ends_at:
            return
        most = min(free, loads[one.ref] - one.concurrency)
        queue = own_queue(one.worker_id)
        free -= _do(partial(reclaim_tasks, queue=queue, snapshot=snapshot, came_from=one.name, most=most))


@contextmanager
def _lease(is_wanted: bool) -> Iterator[bool]:
    """Say whether this scheduler is the one to move messages meanwhile."""
    if not is_wanted:
        yield False
        return
    with session.writing(session.BACKGROUND) as connection:
        now = database_now(connection)
        leases.get_engine(connection, LEASE, now=now)
        until = now + MAY_TAKE
        is_ours = leases.take_lease(connection, LEASE, now=now, until=until, at_most=until + MAY_TAKE, only_if_due=True)
    try:
        yield is_ours
    finally:
        if is_ours:
            with suppress(Exception), session.writing(session.BACKGROUND) as connection:
                leases.give_back_lease(connection, LEASE, until=until, due_at=now)


def _do(move: Callable[[], int]) -> int:
    """Return how many messages were moved; a failure is counted and told once, and stops no other."""
    try:
        return move()
    except Exception as error:
        count("placement.failed")
        log.debug("Taking tasks back failed", exc_info=True)
        warn_once("placing.moving", "Airflow Worker Insight could not take tasks back: %s", error)
        return 0
