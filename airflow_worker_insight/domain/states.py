"""States of tries and workers, availabilities of workers, and attributions of tries."""

from __future__ import annotations

# The database stores positions in this order: append new values, never move existing ones.
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
"""Kind of a scheduler's own workers."""

SOURCE_KINDS = ("celery", "edge", LOCAL)
"""Kinds of workers that a worker source lists; all others are known by their tries only."""

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
"""Names of the worker sources, as :func:`source_of` returns them.

JOBS lists LocalExecutor's workers, TRIES all workers that no other source knows.
"""

UNKNOWN_STATE = "unknown"
"""Filter value for workers without a known state."""

SOURCE_OF_KIND = {"celery": "celery", "edge": "edge", "local": "jobs"}
OTHER_KINDS = "tries"


def source_of(kind: str) -> str:
    """Return the name of the worker source that lists workers of a kind."""
    return SOURCE_OF_KIND.get(kind, OTHER_KINDS)


QUEUED = "queued"
"""Airflow's state of a try that waits in its executor or as a message."""

UNAFFECTED_STATES = frozenset(
    {None, "success", "skipped", "deferred", "up_for_reschedule", "scheduled", "queued", "awaiting_input"}
)
"""States of tries that the loss of a worker does not affect.

They ended well, had no running process, or their end is unknown.
"""
