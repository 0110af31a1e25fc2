"""Texts that say how the worker of a try is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_worker_insight.domain.attempts import Attempt

WAITING = frozenset(
    {
        None,
        "scheduled",
        "queued",
        "up_for_retry",
        "up_for_reschedule",
        "deferred",
        "awaiting_input",
        "restarting",
    }
)
"""States in which no worker runs the try now, but one may later."""

UNFINISHED = WAITING | {"running"}


@dataclass(frozen=True, slots=True)
class Attribution:
    """How the worker of a try is known: the contract's key, a label and a sentence."""

    key: str
    text: str
    explanation: str


_ATTRIBUTIONS = {
    attribution.key: attribution
    for attribution in (
        Attribution(
            "reported",
            "Reported",
            "The worker reported this try while running it.",
        ),
        Attribution(
            "inferred",
            "Inferred",
            "No worker reported this try. Airflow’s records match only this worker.",
        ),
        Attribution(
            "backfilled",
            "Backfilled",
            "The try is older than the installation of Worker Insight. Its worker comes from Airflow’s records.",
        ),
        Attribution(
            "not_on_a_worker",
            "Not on a worker",
            "No worker ran this try: it was skipped, or ended by the scheduler or the triggerer.",
        ),
        Attribution(
            "never_started",
            "Never started",
            "The try ended before a worker started it: Airflow recorded neither its host nor its process.",
        ),
        Attribution(
            "unknown",
            "Unknown",
            "No worker reported this try, and Airflow did not record its host.",
        ),
    )
}

_HOST_ONLY = {
    "inferred": Attribution(
        "inferred",
        "Host inferred",
        "No worker reported this try. Airflow recorded only its host, which may have several workers.",
    ),
    "backfilled": Attribution(
        "backfilled",
        "Host backfilled",
        "The try is older than the installation of Worker Insight. Airflow recorded only its host, which may have "
        "several workers.",
    ),
}

_RUN_IN_A_TEST = Attribution(
    "not_on_a_worker",
    "Test run",
    "No worker ran this try: it ran in the process of a test, such as dag.test() or airflow dags test.",
)
_NOT_REPORTED_YET = Attribution(
    "inferred",
    "Not reported yet",
    "The try is running and has not been reported yet. Airflow recorded its host, which may have several workers.",
)
_NOT_STARTED_YET = Attribution(
    "never_started",
    "Not started yet",
    "No worker has started this try yet.",
)


def attribution_of(attempt: Attempt) -> Attribution:
    """Return how the worker of a try is known."""
    if attempt.ran_in_a_test:
        return _RUN_IN_A_TEST
    host_only = any(worker.host_only for worker in attempt.workers)
    if attempt.state == "running" and attempt.attribution == "inferred" and host_only:
        return _NOT_REPORTED_YET
    if attempt.state in UNFINISHED and not attempt.workers and attempt.attribution in ("never_started", "unknown"):
        return _NOT_STARTED_YET
    if host_only and attempt.attribution in _HOST_ONLY:
        return _HOST_ONLY[attempt.attribution]
    # Show a key that a later version of the contract adds as it is, never blank.
    return _ATTRIBUTIONS.get(
        attempt.attribution, Attribution(attempt.attribution, attempt.attribution.replace("_", " "), "")
    )
