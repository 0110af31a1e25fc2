"""States of tries and workers, availabilities, attributions, and names of worker sources."""

from __future__ import annotations

from enum import Enum


class StrEnum(str, Enum):
    """Enum whose members are strings in every respect; Python's own ``StrEnum`` needs Python 3.11."""

    def __str__(self) -> str:
        return str.__str__(self)

    def __format__(self, format_spec: str) -> str:
        return str.__format__(self, format_spec)

    @classmethod
    def values(cls) -> tuple[str, ...]:
        """Return the values of all members as plain strings, in the order of definition."""
        return tuple(str(member) for member in cls)


# --- tries -----------------------------------------------------------------------------------------------------------

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
"""Airflow's states of a task instance."""

QUEUED = "queued"
"""Airflow's state of a try that waits in its executor or as a message."""

FINISHED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
"""Airflow's final states of a task instance (``airflow.utils.state.State.finished``)."""

FINISHED_RUN = ("success", "failed")
"""Airflow's final states of a Dag run."""

UNAFFECTED_STATES = frozenset(
    {None, "success", "skipped", "deferred", "up_for_reschedule", "scheduled", "queued", "awaiting_input"}
)
"""States of tries that the loss of a worker does not affect.

They ended well, had no running process, or their end is unknown.
"""


# The database stores positions in this order: append new members, never move existing ones.
class Attribution(StrEnum):
    """How it is known which worker ran a try."""

    REPORTED = "reported"
    """The worker itself said that it ran this try, while it did."""
    INFERRED = "inferred"
    """No report arrived: what Airflow kept of the try leaves no other worker, or only the host is known."""
    BACKFILLED = "backfilled"
    """The try is older than the installation: the worker or the host comes from what Airflow kept of it."""
    NOT_ON_A_WORKER = "not_on_a_worker"
    """Skipped, failed upstream, ended by the scheduler, the triggerer or a person, or run in a test."""
    NEVER_STARTED = "never_started"
    """The try ended before a worker started its process."""
    UNKNOWN = "unknown"
    """No report arrived, and Airflow kept no host of the try."""


# --- workers ---------------------------------------------------------------------------------------------------------


# The database stores positions in this order: append new members, never move existing ones.
class WorkerState(StrEnum):
    """What was seen of a worker; ``None`` where nothing tells, or its source was not polled lately."""

    ONLINE = "online"
    """It was seen alive at the last poll, or not long before."""
    UNRESPONSIVE = "unresponsive"
    """It has been silent for longer than ``heartbeat_timeout``, or its source could not be polled for as long."""
    OFFLINE = "offline"
    """It shut down gracefully, or a new instance began while no try ran on this one."""
    LOST = "lost"
    """It was silent for longer than ``lost_timeout``, or a new instance began while tries ran on this one."""


UNKNOWN_STATE = "unknown"
"""Filter value for workers without a known state."""


# The database stores positions in this order: append new members, never move existing ones.
class WorkerAvailability(StrEnum):
    """What an operator decided about a worker, from the most lenient to the strictest."""

    AVAILABLE = "available"
    """It takes work as usual."""
    DRAINING = "draining"
    """It finishes what it runs and gets nothing new; this ends with the instance."""
    QUARANTINED = "quarantined"
    """It gets nothing new until an operator releases it; the next instance inherits this."""


ANALYSIS = "Airflow Worker Insight"
"""Who decided about a worker if no user did, but the analysis: see :mod:`.analysis.quarantine`."""

_STRICTNESS = {availability: rank for rank, availability in enumerate(WorkerAvailability.values())}


def strictest(*availabilities: str) -> str:
    """Return the strictest of these availabilities."""
    return max(availabilities, key=_STRICTNESS.__getitem__)


# --- worker sources --------------------------------------------------------------------------------------------------


class SourceName(StrEnum):
    """Names of the worker sources, as :func:`source_of` returns them."""

    CELERY = "celery"
    """Celery workers, which answer over the broker."""
    EDGE = "edge"
    """Edge workers, from the Edge provider's table."""
    JOBS = "jobs"
    """Local workers, from the schedulers' rows in Airflow's job table."""
    TRIES = "tries"
    """All workers that no other source knows: they are known from their tries only."""


LOCAL = "local"
"""Kind of a scheduler's own workers."""

SOURCE_OF_KIND = {"celery": SourceName.CELERY, "edge": SourceName.EDGE, LOCAL: SourceName.JOBS}

SOURCE_KINDS = tuple(SOURCE_OF_KIND)
"""Kinds of workers that a worker source lists; all others are known by their tries only."""


def source_of(kind: str) -> SourceName:
    """Return the name of the worker source that lists workers of a kind."""
    return SOURCE_OF_KIND.get(kind, SourceName.TRIES)
