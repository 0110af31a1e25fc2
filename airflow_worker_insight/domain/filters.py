"""What lists of attempts, workers and placements can be filtered and ordered by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


class EveryDag:
    """All Dags, also those that are gone: for a reader who has the database itself."""


WAITS, PLACED = LISTED_STATES = ("waiting", "placed")
"""Whether a try waits for a worker, or was placed on one (or handed to the queue that all workers share)."""


@dataclass(frozen=True, slots=True)
class PlacementFilter:
    """Which of the tries that have not ended to list; ``None`` does not filter."""

    state: str | None = None
    """One of :data:`LISTED_STATES`."""
    dag_id: str | None = None
    run_id: str | None = None
    task_id: str | None = None
    worker_id: str | None = None
    worker_name: str | None = None
    """The worker's own name, or what its engine calls it."""
    reason: str | None = None
    try_state: str | None = None
    """Airflow's state of the try, one of :data:`.placements.PLACES_TAKEN`."""


@dataclass(frozen=True, slots=True)
class AttemptFilter:
    """What to list; ``None`` does not filter. ``started_at_*`` are inclusive."""

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
"""What lists of workers can be ordered by; with a ``-`` in front descending."""


@dataclass(frozen=True, slots=True)
class WorkerFilter:
    """Which workers to list; ``None`` does not filter. Rows that stand for a whole host are never listed."""

    states: frozenset[str] | None = None
    kind: str | None = None
    name: str | None = None
    """The exact name, an operator's or the engine's."""
    hostname: str | None = None
    label: tuple[str, str] | None = None
    queue: str | None = None
    availability: str | None = None
    """What is decided of them. It is nothing any more of a life that has ended and that another one followed."""
    search: str | None = None
    """A part of the name, the host name or the ID, whatever its case."""
    seen_since: datetime | None = None
    """Last seen at this time or later, or known to be online or unresponsive when the fleet was last looked at."""
    last_seen_at_gte: datetime | None = None
    last_seen_at_lte: datetime | None = None
    """Last seen not before, and not after, whatever the state."""
    refs: tuple[int, ...] | None = None
    """The rows of which all but ``states`` is known to be so: see :func:`.queries.narrowed`."""
