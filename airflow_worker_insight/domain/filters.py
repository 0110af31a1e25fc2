"""Filters and orders of lists. Each filter is declared here once.

REST (``api.queries``) and the command (``cli.arguments``) derive their parameters from these declarations. A page
(``ui.query_params``) derives its parsers, and has only the filters that its class of parameters has a field for. A
filter without a declaration is internal. ``CONTRIBUTING.md`` says how to add one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_worker_insight.domain.findings import FindingOutcome, FindingState, SubjectKind
from airflow_worker_insight.domain.parameters import (
    Choice,
    Choices,
    Integer,
    Kind,
    Label,
    Parameter,
    Text,
    Time,
    TryState,
    WorkerId,
)
from airflow_worker_insight.domain.reasons import PlacementReason
from airflow_worker_insight.domain.states import QUEUED, UNKNOWN_STATE, StrEnum, WorkerAvailability, WorkerState

if TYPE_CHECKING:
    from datetime import datetime

    Filters = TypeVar("Filters", bound="AttemptFilter | PlacementFilter | WorkerFilter | ServiceFilter | FindingFilter")


class AllDags:
    """All Dags, including deleted ones: for readers with direct access to the database."""


def _filter(meaning: str, kind: Kind, *, name: str = "", rest: bool = True, command: bool = True) -> Any:
    """Declare a filter; its parameter is named as the field unless ``name`` says otherwise."""
    return field(default=None, metadata={"parameter": Parameter(name, meaning, kind, rest=rest, command=command)})


def parameters(filters: type[Filters]) -> dict[str, Parameter]:
    """Return the declared filters by the names of their fields, in order."""
    return {
        entry.name: _named(entry.metadata["parameter"], entry.name)
        for entry in fields(filters)
        if "parameter" in entry.metadata
    }


def _named(parameter: Parameter, name: str) -> Parameter:
    return parameter if parameter.name else replace(parameter, name=name)


def build(filters: type[Filters], values: object) -> Filters:
    """Return filters from an object that has their parameters as attributes.

    An attribute that is missing, ``None`` or empty does not filter.
    """
    found: dict[str, Any] = {}
    for name, parameter in parameters(filters).items():
        value = getattr(values, parameter.name, None)
        if value not in ("", []):
            found[name] = frozenset(value) if isinstance(value, list) else value
    return filters(**found)


class PlacementState(StrEnum):
    """Whether an unfinished try waits for a worker."""

    WAITING = "waiting"
    """It waits for a worker."""
    PLACED = "placed"
    """It was placed: on a worker or in the shared queue."""


SERVICE_KINDS = ("scheduler", "triggerer", "dag_processor", "worker")

WORKER_ORDERS = ("name", "hostname", "kind", "state", "running", "registered_at", "last_seen_at")
"""Columns by which lists of workers can be ordered; a leading ``-`` means descending."""

_HOSTNAME = Text(255)
_STATES = (*WorkerState.values(), UNKNOWN_STATE)


@dataclass(frozen=True, slots=True)
class AttemptFilter:
    """Filter of the list of attempts; ``None`` does not filter."""

    dag_id: str | None = _filter("ID of the Dag.", Text())
    run_id: str | None = _filter("ID of the Dag run.", Text())
    task_id: str | None = _filter("ID of the task.", Text())
    map_index: int | None = _filter("Index of the mapped task instance; -1 for tasks that are not mapped.", Integer(-1))
    try_number: int | None = _filter("Number of the try.", Integer(0))
    worker_id: str | None = _filter("ID of a worker instance that ran the try.", WorkerId())
    worker_name: str | None = _filter("Name of a worker that ran the try; it outlives restarts.", Text())
    hostname: str | None = _filter("Host of a worker that ran the try.", _HOSTNAME)
    state: str | None = _filter("State of the try, as Airflow names states of task instances.", TryState())
    started_at_gte: datetime | None = _filter("Started at this time (ISO 8601, UTC) or later.", Time())  # noqa: RUF009 - a declaration
    started_at_lte: datetime | None = _filter("Started at this time or earlier.", Time())  # noqa: RUF009 - a declaration

    @property
    def is_reversed(self) -> bool:
        """Whether the time window ends before it begins."""
        since, until = self.started_at_gte, self.started_at_lte
        return since is not None and until is not None and since > until


@dataclass(frozen=True, slots=True)
class PlacementFilter:
    """Filter of the list of unfinished tries; ``None`` does not filter."""

    state: str | None = _filter(
        "Whether the try waits for a worker or is placed: on a worker or in the shared queue.",
        Choice(PlacementState.values()),
    )
    dag_id: str | None = _filter("ID of the Dag.", Text())
    run_id: str | None = _filter("ID of the Dag run.", Text())
    task_id: str | None = _filter("ID of the task.", Text())
    worker_id: str | None = _filter("ID of the worker instance that the try is placed on.", WorkerId())
    worker_name: str | None = None
    """The worker's own name or the name in its worker source."""
    reason: str | None = _filter(
        "Why the try waits, or why it was placed there, as one word.", Choice(tuple(sorted(PlacementReason.values())))
    )
    try_state: str | None = _filter(
        "Airflow's state of the try: queued until a worker starts it.",
        Choice((QUEUED, "running", "restarting")),
        command=False,
    )


@dataclass(frozen=True, slots=True)
class WorkerFilter:
    """Filter of the list of workers; ``None`` does not filter.

    Rows that stand for a whole host are never listed.
    """

    states: frozenset[str] | None = _filter(
        "State of the worker; unknown if no source knows it.", Choices(_STATES), name="state"
    )
    kind: str | None = _filter("Kind of the worker: celery, local, kubernetes, edge, or an executor's name.", Text(32))
    name: str | None = _filter("Name of the worker: the one that an operator set or the one in its source.", Text())
    hostname: str | None = _filter("Host of the worker.", _HOSTNAME)
    label: tuple[str, str] | None = _filter("Label of the worker, as key=value.", Label())
    queue: str | None = _filter("Queue that the worker takes tasks from.", Text())
    availability: str | None = _filter(
        "Availability that a user set; not that of ended instances that have a successor.",
        Choice(WorkerAvailability.values()),
    )
    findings: str | None = _filter(
        "Only workers that an open finding concerns; findings about tasks do not count.", Choice(("open",))
    )
    search: str | None = _filter("Part of the worker's name, host name or ID; case is ignored.", Text(), rest=False)
    seen_since: datetime | None = None
    """Last seen at this time or later, or online or unresponsive at the latest poll."""
    last_seen_at_gte: datetime | None = None
    last_seen_at_lte: datetime | None = None
    """Last seen between ``last_seen_at_gte`` and this time, both inclusive, in any state."""
    refs: tuple[int, ...] | None = None
    """Rows that are known to match all filters but ``states``: see :func:`.queries.with_matching_refs`."""


@dataclass(frozen=True, slots=True)
class ServiceFilter:
    """Filter of the list of services; ``None`` does not filter."""

    kind: str | None = _filter("Kind of the service.", Choice(SERVICE_KINDS))
    state: str | None = _filter("State of the service; unknown if no source knows it.", Choice(_STATES))


@dataclass(frozen=True, slots=True)
class FindingFilter:
    """Filter of the list of findings; ``None`` does not filter."""

    state: frozenset[str] | None = _filter("State of the finding.", Choices(FindingState.values()))
    subject_kind: str | None = _filter("What the finding is about.", Choice(SubjectKind.values()))
    outcome: str | None = _filter("What the finding counts.", Choice(FindingOutcome.values()))
    worker_id: str | None = _filter("ID of a worker instance that the finding concerns.", WorkerId())
    dag_id: str | None = _filter("ID of a Dag in whose tasks it was found.", Text())
