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
            "The worker itself said that it ran this try, while it did.",
        ),
        Attribution(
            "inferred",
            "Worked out",
            "No report of the worker arrived, and what Airflow kept of the try leaves no other worker.",
        ),
        Attribution(
            "backfilled",
            "From history",
            "The try is older than the installation of Worker Insight; the worker comes from what Airflow kept of it.",
        ),
        Attribution(
            "not_on_a_worker",
            "Not on a worker",
            "No worker ran this try: it was skipped, or the scheduler or the triggerer ended it.",
        ),
        Attribution(
            "never_started",
            "Never started",
            "The try ended before a worker started its process: Airflow kept neither a host nor a process of it.",
        ),
        Attribution(
            "unknown",
            "Not known",
            "No report of a worker arrived, and Airflow kept no host of this try.",
        ),
    )
}

_HOST_ONLY = {
    "inferred": Attribution(
        "inferred",
        "Host worked out",
        "No report of the worker arrived, and Airflow keeps only the host: it was one of the workers of this host, not "
        "known which.",
    ),
    "backfilled": Attribution(
        "backfilled",
        "Host from history",
        "The try is older than the installation of Worker Insight, and Airflow kept only the host: it was one of the "
        "workers of this host, not known which.",
    ),
}

_RUN_IN_A_TEST = Attribution(
    "not_on_a_worker",
    "Run in a test",
    "No worker ran this try: somebody ran its Dag in a test, as dag.test() and airflow dags test do, in a process of "
    "their own.",
)
_NOT_REPORTED_YET = Attribution(
    "inferred",
    "Not reported yet",
    "The try runs, and its worker has not reported yet: Airflow names the host, on which there may be several workers.",
)
_NOT_STARTED_YET = Attribution(
    "never_started",
    "Not started yet",
    "No worker has started this try so far.",
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
