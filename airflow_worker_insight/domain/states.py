"""States of tries and workers, what a person decides of a worker, and what is said of who ran a try."""

from __future__ import annotations

# The order is what the database holds: words may be added at the end and never moved.
STATES = (
    "running",
    "success",
    "failed",
    "skipped",
    "upstream_failed",
    "removed",
    "restarting",
    "up_for_retry",
    "up_for_reschedule",
    "deferred",
    "queued",
    "scheduled",
    "awaiting_input",
    "shutdown",
)
ATTRIBUTIONS = ("reported", "inferred", "backfilled", "not_on_a_worker", "never_started", "unknown")

WORKER_STATES = ("online", "unresponsive", "offline", "lost")
AVAILABILITIES = ("available", "draining", "quarantined")

REPORTED = "reported"
ONLINE, UNRESPONSIVE, OFFLINE, LOST = WORKER_STATES
AVAILABLE, DRAINING, QUARANTINED = AVAILABILITIES
LOCAL = "local"
"""The kind of a scheduler's own workers."""

ENGINE_KINDS = ("celery", "edge", LOCAL)
"""The kinds of workers that an engine tells of. Of all others only their tries tell."""

INFERRED = "inferred"
BACKFILLED = "backfilled"
NOT_ON_A_WORKER = "not_on_a_worker"
NEVER_STARTED = "never_started"
UNKNOWN = "unknown"

FINISHED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
"""Airflow's final states of a task instance (``airflow.utils.state.State.finished``)."""

FINISHED_RUN = ("success", "failed")
"""Airflow's final states of a Dag run."""

CELERY, EDGE, JOBS, TRIES = "celery", "edge", "jobs", "tries"
"""The engines' names, as in :func:`.liveness.engine_of`: JOBS knows LocalExecutor's workers, TRIES all that no other
engine knows."""

UNKNOWN_STATE = "unknown"
"""What filters call the state of a worker of which nothing tells."""

ENGINE_OF_KIND = {"celery": "celery", "edge": "edge", "local": "jobs"}
OTHER_KINDS = "tries"


def engine_of(kind: str) -> str:
    """Return the name of the engine that tells of workers of a kind."""
    return ENGINE_OF_KIND.get(kind, OTHER_KINDS)


QUEUED = "queued"
"""Airflow's state of a try that waits, with its executor or as a message."""

UNAFFECTED_STATES = frozenset(
    {None, "success", "skipped", "deferred", "up_for_reschedule", "scheduled", "queued", "awaiting_input"}
)
"""States of tries that a lost worker did not take with it: they ended well, or no process of theirs ran, or
nobody knows what became of them."""
