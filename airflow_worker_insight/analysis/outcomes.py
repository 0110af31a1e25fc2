"""Decide how a try ended, as far as its worker may have played a part: pure functions, no I/O.

A failure alone does not say whether the worker died with the try, because a dead worker is noticed later. So it is held
back until the worker was seen again, or is known to be gone, or :data:`HOLD` is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_worker_insight.domain.clock import CLOCK_SKEW
from airflow_worker_insight.domain.states import FINISHED
from airflow_worker_insight.domain.tries import TryOutcome

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_worker_insight.domain.attempts import AirflowTry
    from airflow_worker_insight.store.tries import WorkerSight

HOLD = CLOCK_SKEW
"""Longest time for which a failure is held back."""

UP_FOR_RETRY = "up_for_retry"

_FAILED = frozenset({"failed", UP_FOR_RETRY})


def has_ended(airflow_try: AirflowTry) -> bool:
    """Return whether a try has ended; a deferred or rescheduled one goes on."""
    return airflow_try.is_lost or airflow_try.state in FINISHED or airflow_try.state == UP_FOR_RETRY


def may_be_lost(airflow_try: AirflowTry) -> bool:
    """Return whether a try that has ended may have ended with its worker: whether it failed."""
    return not airflow_try.is_lost and airflow_try.state in _FAILED


def outcome_of(airflow_try: AirflowTry) -> TryOutcome:
    """Return the outcome of a try that has ended and was not lost."""
    if airflow_try.is_lost or airflow_try.state not in {"success", *_FAILED}:
        return TryOutcome.OTHER
    return TryOutcome.FAILED if airflow_try.state in _FAILED else TryOutcome.SUCCESS


def outcome_of_failure(
    ended_at: datetime, sight: WorkerSight | None, *, now: datetime, has_moved: bool
) -> TryOutcome | None:
    """Return whether a failed try failed by itself or was lost with its worker.

    :param ended_at: as Airflow has it, by any clock
    :param sight: its first worker; ``None`` if that was deleted
    :param now: by the database's clock
    :param has_moved: whether another worker went on with the try
    :return: ``None`` while that is not known
    """
    if sight is None or has_moved:
        return TryOutcome.FAILED
    if sight.lost_after is not None:
        return TryOutcome.LOST if ended_at > sight.lost_after else TryOutcome.FAILED
    is_known = sight.is_gone or sight.last_seen_at >= min(ended_at, now) or now - ended_at >= HOLD
    return TryOutcome.FAILED if is_known else None
