"""Decide what a poll says about a worker instance: a pure state machine, no I/O.

    online ──silent──► unresponsive ──silent for longer──► lost
       ▲                    │                                │
       └──── seen again ────┴────────────────────────────────┘        shut down gracefully: offline

An instance is never lost only because its source was unavailable or was not polled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.clock import CLOCK_SKEW
from airflow_worker_insight.domain.states import SOURCE_KINDS, WorkerState
from airflow_worker_insight.store.leases import POLL_TIMEOUT

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from airflow_worker_insight.domain.workers import WorkerInstance
    from airflow_worker_insight.registry.observations import WorkerObservation
    from airflow_worker_insight.store.leases import SourceRow

MISSED_INTERVALS = 3
"""Number of intervals without a poll that make a pause: silence during it does not count."""

LEFT = "Shut down gracefully."
REPLACED = "A new instance of this worker has started; no try ran on this one."
GONE_BEFORE = "Already gone at the first health check."
TRY_ENDED = "Its try has ended."
IDLE = "State unknown while no try runs on it."
NOT_CONFIGURED = "No executor that has such workers is configured any more ([core] executor)."
"""``instances.refs_seen_after_end`` finds stored rows by this text: do not change it."""

REPORT_ONLY = "Only reports of tasks name it: its source does not know it."
WAITING = "Its heartbeat is old or its clock is wrong. It becomes online when the heartbeat moves."


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a worker may be silent."""

    heartbeat: timedelta
    """Longer silence makes it unresponsive."""
    lost: timedelta
    """Longer silence makes it lost."""


@dataclass(frozen=True, slots=True)
class Reachability:
    """Whether polls have reached the source, and since when."""

    since: datetime | None
    """Since when every poll reached it; ``None`` where this one did not."""
    error: str | None = None
    """Why this poll did not reach it, or only parts of it."""
    since_before_pause: datetime | None = None
    """After a pause in polling: since when the polls before it had reached the source.

    ``None`` where there was no pause, or where the last poll before it had failed.
    """


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one poll found out about one worker instance."""

    observation: WorkerObservation | None = None
    lost_mailbox: bool = False
    """Whether the source has dropped the mailbox that it kept for the worker."""
    is_replaced: bool = False
    """Whether another process has its name now."""
    running: int = 0
    """Number of tries that run on it, as far as Airflow knows."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The state to write of a worker instance."""

    state: str | None
    reason: str | None = None
    ended_at: datetime | None = None
    seen: bool = False
    """Whether it was seen alive."""


def update_reachability(source: SourceRow, error: str | None, *, now: datetime, interval: timedelta) -> Reachability:
    """Return since when polls have reached a source, up to this poll.

    :param source: its row as it was before this poll
    :param error: why this poll did not reach it, or only parts of it
    :param interval: how far apart polls are meant to be
    """
    if error is not None:
        return Reachability(None, error)
    if source.polled_at is None or source.reached_since is None:
        return Reachability(now)
    if now - source.polled_at > MISSED_INTERVALS * interval + POLL_TIMEOUT:
        return Reachability(now, since_before_pause=source.reached_since)
    # A time in the future was written before the database's clock was set back: silence would never count.
    return Reachability(min(source.reached_since, now))


def judge(  # noqa: PLR0911  (each line is a rule)
    instance: WorkerInstance, evidence: Evidence, reachability: Reachability, *, now: datetime, timeouts: Timeouts
) -> Judgement | None:
    """Return what a poll says about a worker instance; ``None`` where nothing changes.

    :param now: by the database's clock, as all times of an instance but its source's heartbeat
    """
    observation = evidence.observation
    if observation is not None and shut_down_gracefully(observation, instance):
        return None if instance.state == WorkerState.OFFLINE else Judgement(WorkerState.OFFLINE, LEFT, ended_at=now)
    if observation is not None and is_alive(observation, instance):
        return Judgement(WorkerState.ONLINE, observation.unavailable_reason, seen=True)
    if instance.ended_at is not None:
        return None
    if reachability.error is None and reachability.since is not None:
        if is_report_only(instance):
            return _judge_reported_only(instance, evidence, reachability.since, now=now, timeouts=timeouts)
        ended = _judge_silent(instance, evidence, reachability, reachability.since, now=now, timeouts=timeouts)
        if ended is not None:
            return ended
    if instance.state is None or now - last_seen(instance, now) <= timeouts.heartbeat:
        return None
    silent = f"No heartbeat for more than {timeouts.heartbeat.total_seconds():g} seconds."
    return Judgement(
        WorkerState.UNRESPONSIVE, reachability.error or (observation and observation.unavailable_reason) or silent
    )


def is_report_only(instance: WorkerInstance) -> bool:
    """Return whether only reports name an instance although its kind has a source to know it."""
    return instance.kind in SOURCE_KINDS and not instance.is_known_to_source


def _judge_reported_only(
    instance: WorkerInstance, evidence: Evidence, since: datetime, *, now: datetime, timeouts: Timeouts
) -> Judgement | None:
    """Judge an instance that its source, which was reached, does not know: it is never lost."""
    seen = last_seen(instance, now)
    if evidence.is_replaced or now - max(seen, since) > timeouts.lost:
        return Judgement(None, GONE_BEFORE, ended_at=seen)
    return None if instance.state is None else Judgement(None, REPORT_ONLY)


def judge_by_tries(
    instance: WorkerInstance, evidence: Evidence, reachability: Reachability, *, now: datetime, timeouts: Timeouts
) -> Judgement | None:
    """Judge a worker that is known by its tries only: it is alive while one runs."""
    if evidence.observation is None and reachability.error is None:
        if instance.ended_at is not None or instance.state is None:
            return None
        return (
            Judgement(WorkerState.OFFLINE, TRY_ENDED, ended_at=now)
            if instance.kind == "kubernetes"
            else Judgement(None, IDLE)
        )
    return judge(instance, evidence, reachability, now=now, timeouts=timeouts)


def judge_new(observation: WorkerObservation, *, now: datetime, timeouts: Timeouts) -> Judgement | None:
    """Return the state of a new worker; ``None`` for one that its source only remembers.

    A source's table names workers that have been gone for months. One observation does not tell whether the heartbeat
    moves, so it has to be recent.
    """
    if observation.has_left or observation.is_partial or observation.heartbeat_at is None:
        return None
    age = abs(now - observation.heartbeat_at)
    if age <= timeouts.heartbeat:
        return Judgement(WorkerState.ONLINE, observation.unavailable_reason, seen=True)
    return Judgement(WorkerState.UNRESPONSIVE, WAITING) if age <= timeouts.lost + CLOCK_SKEW else None


def is_alive(observation: WorkerObservation, instance: WorkerInstance) -> bool:
    """Return whether a worker is alive: its heartbeat has moved, by whichever clock."""
    has_moved = observation.heartbeat_at is not None and observation.heartbeat_at != instance.engine_heartbeat_at
    return has_moved and not observation.has_left


def shut_down_gracefully(observation: WorkerObservation, instance: WorkerInstance) -> bool:
    """Return whether a worker shut down gracefully: it said so itself.

    Where its source has heartbeats, this comes with a new one. A source may also write that a worker is gone because
    it was silent, which is no graceful shutdown.
    """
    return observation.has_left and (
        observation.heartbeat_at is None or observation.heartbeat_at != instance.engine_heartbeat_at
    )


def last_seen(instance: WorkerInstance, now: datetime) -> datetime:
    """Return when a worker was last seen; a time in the future, by a wrong clock, becomes now."""
    return min(instance.last_seen_at, now)


def _judge_silent(
    instance: WorkerInstance,
    evidence: Evidence,
    reachability: Reachability,
    since: datetime,
    *,
    now: datetime,
    timeouts: Timeouts,
) -> Judgement | None:
    """Return how an instance ended that this poll, which reached its source, shows no sign of."""
    seen = last_seen(instance, now)
    answered_at = instance.engine_heartbeat_at
    if evidence.lost_mailbox and answered_at is not None and answered_at >= (reachability.since_before_pause or since):
        return Judgement(WorkerState.OFFLINE, LEFT, ended_at=now)
    # An instance that was unresponsive before the pause and is silent after it was missed at both ends of it.
    counts_from = (
        seen
        if reachability.since_before_pause is not None and instance.state == WorkerState.UNRESPONSIVE
        else max(seen, since)
    )
    is_gone = evidence.is_replaced or now - counts_from > timeouts.lost
    if instance.state is None and is_gone:
        return Judgement(None, GONE_BEFORE, ended_at=seen)
    if evidence.is_replaced and evidence.running:
        return Judgement(
            WorkerState.LOST,
            f"A new instance of this worker started while tries ran on this one: {evidence.running}.",
            seen,
        )
    if evidence.is_replaced:
        return Judgement(WorkerState.OFFLINE, REPLACED, ended_at=seen)
    # Not in one step: this one answer may have got lost.
    if is_gone and instance.state == WorkerState.UNRESPONSIVE:
        silent = f"No heartbeat for more than {timeouts.lost.total_seconds():g} seconds."
        return Judgement(WorkerState.LOST, silent, ended_at=seen)
    return None
