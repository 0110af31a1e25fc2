"""Stored reasons why a try was placed on a worker or why it waits."""

from __future__ import annotations

from airflow_worker_insight.domain.states import StrEnum


class PlacementStrategy(StrEnum):
    """How an executor chooses among the eligible workers."""

    LEAST_LOADED = "least_loaded"
    """The worker with the fewest tries for its size."""
    ROUND_ROBIN = "round_robin"
    """The worker that got nothing for the longest time."""
    STICKY = "sticky"
    """The same worker for the same task, as long as it can be."""


# The database stores positions in this order: append new members, never move existing ones.
class PlacementReason(StrEnum):
    """Why a try was placed where it was, or why it waits for a worker."""

    LEAST_LOADED = "least_loaded"
    """Chosen by :attr:`PlacementStrategy.LEAST_LOADED`; nothing overruled it."""
    ROUND_ROBIN = "round_robin"
    """Chosen by :attr:`PlacementStrategy.ROUND_ROBIN`; nothing overruled it."""
    STICKY = "sticky"
    """Chosen by :attr:`PlacementStrategy.STICKY`; nothing overruled it."""
    STICKY_NEXT = "sticky_next"
    """The next worker in the task's order: the one it sticks to was full or not eligible."""
    RETRY_ELSEWHERE = "elsewhere"
    """A retry that avoids a worker which has failed this task instance."""
    RETRY_AGAIN = "again"
    """A retry on a worker that has failed this task instance: no other worker is eligible."""
    SHARED_QUEUE = "shared_queue"
    """No worker was eligible, so the task was sent to the queue that all workers share."""
    NO_WORKER = "waits_no_worker"
    """No known worker consumes its queue."""
    NOT_AVAILABLE = "waits_not_available"
    """No worker of its queue is available."""
    NO_LABEL = "waits_no_label"
    """No available worker has the requested labels."""
    FULL = "waits_full"
    """All eligible workers are full."""
    OTHERS_FULL = "waits_others_full"
    """The workers that have not failed the task are full, or do not answer."""
    INVALID_REQUEST = "waits_bad_wish"
    """The task's request is invalid."""
    SLOW = "slow"
    """A worker much slower than the others on the same tasks; these took no more tasks."""
    NO_SUCH_WORKER = "waits_no_such_worker"
    """No worker has the requested name."""
    WORKERS_UNREACHABLE = "waits_workers_unseen"
    """The workers cannot be reached."""


WAITING_REASONS = (
    PlacementReason.NO_WORKER,
    PlacementReason.NOT_AVAILABLE,
    PlacementReason.NO_LABEL,
    PlacementReason.NO_SUCH_WORKER,
    PlacementReason.FULL,
    PlacementReason.OTHERS_FULL,
    PlacementReason.INVALID_REQUEST,
    PlacementReason.WORKERS_UNREACHABLE,
)
"""Reasons why a task waits for a worker."""
