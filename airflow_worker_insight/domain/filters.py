"""Filters and orders of the lists of attempts, workers and placements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.states import StrEnum

if TYPE_CHECKING:
    from datetime import datetime


class AllDags:
    """All Dags, including deleted ones: for readers with direct access to the database."""


class PlacementState(StrEnum):
    """Whether an unfinished try waits for a worker."""

    WAITING = "waiting"
    """It waits for a worker."""
    PLACED = "placed"
    """It was placed: on a worker or in the shared queue."""


@dataclass(frozen=True, slots=True)
class PlacementFilter:
    """Filter of the list of unfinished tries; ``None`` does not filter."""

    state: str | None = None
    """One of :class:`PlacementState`."""
    dag_id: str | None = None
    run_id: str | None = None
    task_id: str | None = None
    worker_id: str | None = None
    worker_name: str | None = None
    """The worker's own name or the name in its worker source."""
    reason: str | None = None
    try_state: str | None = None
    """Airflow's state of the try, one of :data:`.placements.SLOT_STATES`."""


@dataclass(frozen=True, slots=True)
class AttemptFilter:
    """Filter of the list of attempts; ``None`` does not filter.

    ``started_at_*`` are inclusive.
    """

    dag_id: str | None = None
    run_id: str | None = None
    task_id: str | None = None
    map_index: int | None = None
    try_number: int | None = None
    worker_id: str | None = None
    worker_name: str | None = None
    hostname: str | None = None
    state: str | None = None
    started_at_gte: datetime | None = None
    started_at_lte: datetime | None = None


WORKER_ORDERS = ("name", "hostname", "kind", "state", "running", "registered_at", "last_seen_at")
"""Columns by which lists of workers can be ordered; a leading ``-`` means descending."""


@dataclass(frozen=True, slots=True)
class WorkerFilter:
    """Filter of the list of workers; ``None`` does not filter.

    Rows that stand for a whole host are never listed.
    """

    states: frozenset[str] | None = None
    kind: str | None = None
    name: str | None = None
    """Exact name: the one that an operator set or the one in the worker source."""
    hostname: str | None = None
    label: tuple[str, str] | None = None
    queue: str | None = None
    availability: str | None = None
    """Availability that a user set.

    It no longer applies to a worker instance that has ended and has a successor.
    """
    search: str | None = None
    """Part of the name, the host name or the ID; case is ignored."""
    seen_since: datetime | None = None
    """Last seen at this time or later, or online or unresponsive at the latest poll."""
    last_seen_at_gte: datetime | None = None
    last_seen_at_lte: datetime | None = None
    """Last seen between ``last_seen_at_gte`` and this time, both inclusive, in any state."""
    refs: tuple[int, ...] | None = None
    """Rows that are known to match all filters but ``states``: see :func:`.queries.with_matching_refs`."""
