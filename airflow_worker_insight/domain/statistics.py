"""Statistics over tries: sums by hour, the units that they are of, and the rows that are shown.

Hours are whole numbers, counted from 1970 in UTC, so a day begins at each multiple of 24.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.keys import digest
from airflow_worker_insight.domain.states import StrEnum

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from airflow_worker_insight.domain.filters import AttemptFilter
    from airflow_worker_insight.domain.tries import TryWorker

HOUR = 3600
"""Seconds of an hour."""

DAY_HOURS = 24
"""Hours of a day."""

HOURS_KEPT = 14 * DAY_HOURS
"""Hours before the end of the latest complete day for which sums by hour are kept."""

MAX_SPLIT_HOURS = 31 * DAY_HOURS
"""Latest hours of a try that get its busy seconds: a wrong clock must not make rows for decades."""


def hour_of(time: datetime) -> int:
    """Return the hour that contains an aware time."""
    return math.floor(time.timestamp() / HOUR)


def hour_start(hour: int) -> datetime:
    """Return when an hour begins, in UTC."""
    return _EPOCH + timedelta(hours=hour)


_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def whole_hours(since: datetime, until: datetime) -> tuple[int, int]:
    """Return the first hour of a window and the one after its last; both are the same if it is empty."""
    first = hour_of(since)
    return first, max(first, math.ceil(until.timestamp() / HOUR))


def day_floor(hour: int) -> int:
    """Return the first hour of an hour's day."""
    return hour - hour % DAY_HOURS


def day_ceil(hour: int) -> int:
    """Return the hour itself if a day begins with it, else the first hour of the next day."""
    return day_floor(hour + DAY_HOURS - 1)


def split_hours(since: datetime, until: datetime) -> Iterator[tuple[int, float]]:
    """Yield the hours of an interval, each with the seconds of it that are in the interval.

    Nothing is yielded for an interval that ends before it begins; of a long one only the latest
    :data:`MAX_SPLIT_HOURS` are.
    """
    begin, end = since.timestamp(), until.timestamp()
    last = math.floor(end / HOUR)
    for hour in range(max(math.floor(begin / HOUR), last - MAX_SPLIT_HOURS + 1), last + 1):
        seconds = min(end, (hour + 1) * HOUR) - max(begin, hour * HOUR)
        if seconds > 0:
            yield hour, seconds


# --- what is summed up -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unit:
    """Workers whose tries are summed up together: those of one name, host and labels.

    Of workers that run one try each, those of one Kubernetes node and labels: a row for each would be one for each try.
    """

    kind: str
    name: str | None
    """``None`` for workers that run one try each."""
    hostname: str
    """The host; of workers that run one try each the Kubernetes node, empty if unknown."""
    labels: tuple[tuple[str, str], ...] = ()
    """Sorted; the image and the Kubernetes node are among them."""

    @property
    def digest(self) -> int:
        """Its key in the database."""
        return digest(json.dumps([self.kind, self.name, self.hostname, self.labels]))


def unit_of(worker: TryWorker) -> Unit:
    """Return the unit that a worker belongs to."""
    known = {"image": worker.image, "node": worker.node}
    labels = {**{key: value for key, value in known.items() if value}, **worker.labels}
    single = worker.is_single_try
    return Unit(
        kind=worker.kind,
        name=None if single else worker.name,
        # The host of a pod is the pod.
        hostname=(worker.node or "") if single else worker.hostname,
        labels=tuple(sorted(labels.items())),
    )


@dataclass(slots=True)
class Sums:
    """Sums over tries in one hour.

    All but ``busy_seconds`` and ``slot_seconds`` are over the tries that ended in it with success, failed or lost.
    """

    tries: int = 0
    failed: int = 0
    """Without those in ``lost``."""
    lost: int = 0
    expected_failed: float = 0.0
    """Failures that the tries would have had at the usual rate of their tasks."""
    busy_seconds: float = 0.0
    """Seconds that tries ran in this hour, however they ended."""
    duration_seconds: float = 0.0
    """From start to end."""
    queue_seconds: float = 0.0
    """From queued to started, of the ``queued_tries``."""
    queued_tries: int = 0
    """Tries of which it is known when they were queued."""
    slot_seconds: float | None = None
    """Slots times the seconds that the worker was online; ``None`` if unknown."""

    def add(self, other: Sums) -> None:
        """Add other sums to these."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if other.slot_seconds is not None:
            self.slot_seconds = (self.slot_seconds or 0.0) + other.slot_seconds


COUNTS = tuple(field.name for field in fields(Sums) if field.name != "slot_seconds")
"""Sums that are always known."""


@dataclass(frozen=True, slots=True)
class Deltas:
    """Sums that the store adds to the stored statistics."""

    units: Mapping[tuple[int, Unit], Sums]
    """By hour and unit."""
    queues: Mapping[tuple[int, str], Sums]
    """By hour and queue; empty for a try of which Airflow kept no queue."""
    tasks: Mapping[tuple[int, str, str], Sums]
    """By hour, Dag ID and task ID."""


# --- what is shown ---------------------------------------------------------------------------------------------------

LABEL_PREFIX = "label:"
"""Prefix of a grouping by a label; the label's key follows."""

GROUPS = ("worker", "host", "queue", "kind", "dag", "task")
"""What statistics are grouped by, beside labels."""


class Bucket(StrEnum):
    """Length of time that a row of statistics covers."""

    HOUR = "hour"
    DAY = "day"
    """A day in UTC."""
    NONE = "none"
    """The whole window."""

    def begin(self, hour: int) -> int:
        """Return the first hour of the bucket that contains an hour; 0 for the whole window."""
        if self == Bucket.NONE:
            return 0
        return hour if self == Bucket.HOUR else day_floor(hour)


@dataclass(frozen=True, slots=True)
class Selection:
    """What statistics are asked for."""

    group_by: str
    """``worker``, ``host``, ``kind``, ``queue``, ``dag``, ``task``, or :data:`LABEL_PREFIX` and a label's key."""
    bucket: Bucket
    since: datetime
    """Aware; widened to the begin of its hour, or of its day where no hours are kept."""
    until: datetime
    """Aware; widened likewise to an end."""
    filters: AttemptFilter

    @property
    def label(self) -> str | None:
        """The key of the label that makes the groups."""
        return self.group_by.removeprefix(LABEL_PREFIX) if self.group_by.startswith(LABEL_PREFIX) else None


def is_of_tasks(group_by: str) -> bool:
    """Return whether the groups are of tasks; else they are of workers, which not every reader may see."""
    return group_by in {"dag", "task"}


def other_filters(group_by: str, filters: AttemptFilter) -> set[str]:
    """Return the names of the filters that the sums of these groups cannot answer."""
    given = {each.name for each in fields(filters) if getattr(filters, each.name) is not None}
    if group_by == "queue":
        return given
    return given - ({"dag_id", "task_id"} if is_of_tasks(group_by) else {"worker_name", "hostname"})


@dataclass(frozen=True, slots=True)
class StatisticsRow:
    """Statistics of one group in one bucket; the fields are those of the REST API."""

    group: str | None
    """``None`` for tries without one: without that label, a known queue, or a worker name of its own."""
    bucket: datetime | None
    """Begin of the hour or day in UTC; ``None`` for the whole window."""
    tries: int
    failed: int
    lost: int
    busy_seconds: float
    utilization: float | None
    """Busy seconds per slot second; ``None`` if unknown."""
    mean_duration: float | None
    """Seconds; ``None`` if no try ended."""
    mean_queue_seconds: float | None
    """Seconds; ``None`` if it is not known of any try when it was queued."""


@dataclass(frozen=True, slots=True)
class StatisticsPage:
    """A page of statistics."""

    rows: list[StatisticsRow]
    total: int
    """Number of rows on all pages."""
    since: datetime
    until: datetime
    """End of what was counted; both are in UTC and widened to whole hours, or whole days where no hours are kept."""


@dataclass(frozen=True, slots=True)
class HeatMapCell:
    """One worker in one hour."""

    tries: int
    failed: int
    lost: int
    expected_failed: float
    utilization: float | None
    mean_queue_seconds: float | None


@dataclass(frozen=True, slots=True)
class HeatMapRow:
    """A worker by name; of workers that run one try each, those of a Kubernetes node."""

    kind: str
    name: str | None
    hostname: str
    """Its latest host in alphabetical order; the node if it has no name."""
    cells: Mapping[datetime, HeatMapCell]
    """By the begin of the hour in UTC; an hour without anything is missing."""


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Workers by hour."""

    rows: list[HeatMapRow]
    others: int
    """Number of workers that were left out."""


def ratio(part: float, whole: float | None) -> float | None:
    """Return a ratio, ``None`` where there is nothing to divide by."""
    return part / whole if whole else None
