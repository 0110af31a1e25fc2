"""Decide what a look says of a worker's life: a pure state machine, no I/O.

    online ──silent──► unresponsive ──silent for longer──► lost
       ▲                    │                                │
       └──── seen again ────┴────────────────────────────────┘        said goodbye: offline

Nothing is ever said to be lost because its engine could not be asked, or because nobody asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.clock import CLOCK_SKEW
from airflow_worker_insight.domain.states import ENGINE_KINDS, LOST, OFFLINE, ONLINE, UNRESPONSIVE
from airflow_worker_insight.store.leases import LOOK_TAKES

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from airflow_worker_insight.domain.workers import WorkerInstance
    from airflow_worker_insight.registry.observations import WorkerObservation
    from airflow_worker_insight.store.leases import SourceRow

MISSED_INTERVALS = 3
"""After so many intervals without a look nobody has looked: silence in that time counts for nothing."""

LEFT = "It was stopped in order."
REPLACED = "A new life of this worker has begun; no try ran on this one."
GONE_BEFORE = "It was gone before anybody looked at the workers."
TRY_ENDED = "Its try has ended."
IDLE = "Nothing tells whether it lives while no try runs on it."
NOT_CONFIGURED = "No executor that has such workers is configured any more ([core] executor)."
TOLD_ONLY = "Only reports of tasks tell of it: its engine does not know it."
WAITING = "Its heartbeat is by a clock that is wrong, or old: it has to move before it counts."


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a worker may be silent."""

    heartbeat: timedelta
    """Longer, and it is unresponsive."""
    lost: timedelta
    """Longer, and it is lost."""


@dataclass(frozen=True, slots=True)
class Reached:
    """How the engine could be asked."""

    since: datetime | None
    """Since when every look reached it; ``None`` where this one did not."""
    error: str | None = None
    """Why this look did not, or not all of it."""
    before: datetime | None = None
    """Where nobody had looked for long: since when the looks until then had reached it, if the last one had."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one look found out about one life."""

    sighting: WorkerObservation | None = None
    lost_mailbox: bool = False
    """Whether the engine has dropped the mailbox that it kept for the worker."""
    is_replaced: bool = False
    """Whether another process bears its name now."""
    running: int = 0
    """Tries that run on it, as far as Airflow knows."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be written of a life."""

    state: str | None
    reason: str | None = None
    ended_at: datetime | None = None
    seen: bool = False
    """Whether it gave a sign of life."""


def reach(engine: SourceRow, error: str | None, *, now: datetime, interval: timedelta) -> Reached:
    """Return how an engine has been asked, and has answered, up to this look.

    :param engine: as it was before this look
    :param error: why this look did not reach it
    """
    if error is not None:
        return Reached(None, error)
    if engine.looked_at is None or engine.reached_since is None:
        return Reached(now)
    if now - engine.looked_at > MISSED_INTERVALS * interval + LOOK_TAKES:
        return Reached(now, before=engine.reached_since)
    # A time that is yet to come was written before the database's clock was set back: silence would never count.
    return Reached(min(engine.reached_since, now))


def judge(  # noqa: PLR0911  (each line is a rule)
    life: WorkerInstance, evidence: Evidence, reached: Reached, *, now: datetime, timeouts: Timeouts
) -> Verdict | None:
    """Say what a look tells of a life; ``None`` where all stays as it is.

    :param now: by the database's clock, as all times of a life but its engine's heartbeat
    """
    sighting = evidence.sighting
    if sighting is not None and says_goodbye(sighting, life):
        return None if life.state == OFFLINE else Verdict(OFFLINE, LEFT, ended_at=now)
    if sighting is not None and gives_sign_of_life(sighting, life):
        return Verdict(ONLINE, sighting.unavailable_reason, seen=True)
    if life.ended_at is not None:
        return None
    if reached.error is None and reached.since is not None:
        if is_told_only(life):
            return _told_only(life, evidence, reached.since, now=now, timeouts=timeouts)
        ended = _ended(life, evidence, reached, reached.since, now=now, timeouts=timeouts)
        if ended is not None:
            return ended
    if life.state is None or now - last_seen(life, now) <= timeouts.heartbeat:
        return None
    silent = f"It has been silent for more than {timeouts.heartbeat.total_seconds():g} seconds."
    return Verdict(UNRESPONSIVE, reached.error or (sighting and sighting.unavailable_reason) or silent)


def is_told_only(life: WorkerInstance) -> bool:
    """Return whether a life is of a kind that an engine tells of, and only reports tell of this one."""
    return life.kind in ENGINE_KINDS and not life.is_known_to_engine


def _told_only(
    life: WorkerInstance, evidence: Evidence, since: datetime, *, now: datetime, timeouts: Timeouts
) -> Verdict | None:
    """Say what is known of a life that its engine, which was reached, does not know: never that it was lost."""
    seen = last_seen(life, now)
    if evidence.is_replaced or now - max(seen, since) > timeouts.lost:
        return Verdict(None, GONE_BEFORE, ended_at=seen)
    return None if life.state is None else Verdict(None, TOLD_ONLY)


def judge_by_tries(
    life: WorkerInstance, evidence: Evidence, reached: Reached, *, now: datetime, timeouts: Timeouts
) -> Verdict | None:
    """Say the same of a worker that nothing but its tries tells of: it lives as long as they do."""
    if evidence.sighting is None and reached.error is None:
        if life.ended_at is not None or life.state is None:
            return None
        return Verdict(OFFLINE, TRY_ENDED, ended_at=now) if life.kind == "kubernetes" else Verdict(None, IDLE)
    return judge(life, evidence, reached, now=now, timeouts=timeouts)


def first_verdict(sighting: WorkerObservation, *, now: datetime, timeouts: Timeouts) -> Verdict | None:
    """Say what a worker that was never seen before begins with; ``None`` for one that is only remembered.

    An engine's table names workers that are gone for months. Whether a heartbeat moves is not known at the first
    sight, so it has to be a recent one.
    """
    if sighting.has_left or sighting.is_partial or sighting.heartbeat_at is None:
        return None
    age = abs(now - sighting.heartbeat_at)
    if age <= timeouts.heartbeat:
        return Verdict(ONLINE, sighting.unavailable_reason, seen=True)
    return Verdict(UNRESPONSIVE, WAITING) if age <= timeouts.lost + CLOCK_SKEW else None


def gives_sign_of_life(sighting: WorkerObservation, life: WorkerInstance) -> bool:
    """Return whether a worker lives: its heartbeat has moved, by whichever clock."""
    has_moved = sighting.heartbeat_at is not None and sighting.heartbeat_at != life.engine_heartbeat_at
    return has_moved and not sighting.has_left


def says_goodbye(sighting: WorkerObservation, life: WorkerInstance) -> bool:
    """Return whether a worker left in order: it said so itself, with a heartbeat where its engine has these.

    An engine may also write that a worker is gone because it was silent, which is no goodbye.
    """
    return sighting.has_left and (sighting.heartbeat_at is None or sighting.heartbeat_at != life.engine_heartbeat_at)


def last_seen(life: WorkerInstance, now: datetime) -> datetime:
    """Return when a worker was last seen; a time that is yet to come was written by a clock that is wrong."""
    return min(life.last_seen_at, now)


def _ended(
    life: WorkerInstance, evidence: Evidence, reached: Reached, since: datetime, *, now: datetime, timeouts: Timeouts
) -> Verdict | None:
    """Say how a life ended of which this look, by an engine that was reached, shows no sign."""
    seen = last_seen(life, now)
    answered = life.engine_heartbeat_at
    if evidence.lost_mailbox and answered is not None and answered >= (reached.before or since):
        return Verdict(OFFLINE, LEFT, ended_at=now)
    # Who was silent already at the last look before the pause, and is so now, was missed at both ends of it.
    counts_from = seen if reached.before is not None and life.state == UNRESPONSIVE else max(seen, since)
    is_gone = evidence.is_replaced or now - counts_from > timeouts.lost
    if life.state is None and is_gone:
        return Verdict(None, GONE_BEFORE, ended_at=seen)
    if evidence.is_replaced and evidence.running:
        return Verdict(LOST, f"A new life of this worker began while tries ran on this one: {evidence.running}.", seen)
    if evidence.is_replaced:
        return Verdict(OFFLINE, REPLACED, ended_at=seen)
    # Not in one step: it may be that this one answer got lost.
    if is_gone and life.state == UNRESPONSIVE:
        silent = f"It gave no sign of life for more than {timeouts.lost.total_seconds():g} seconds."
        return Verdict(LOST, silent, ended_at=seen)
    return None
