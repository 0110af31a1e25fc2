"""Requests and responses of the REST API ``/api/v1``, independent of the web framework.

FastAPI serves them on Airflow 3 (:mod:`.routes`) and Flask on 2.11 (:mod:`airflow_worker_insight.fab.views`).
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from airflow_worker_insight import __version__
from airflow_worker_insight.api import database
from airflow_worker_insight.capture import counters
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.filters import AttemptFilter, PlacementFilter, WorkerFilter
from airflow_worker_insight.domain.limits import MAX_BODY, MAX_ID_LENGTH, MAX_INTEGER, MAX_NOTE_LENGTH, MAX_TOTAL
from airflow_worker_insight.domain.names import clean
from airflow_worker_insight.domain.reasons import PlacementReason
from airflow_worker_insight.store import placements
from airflow_worker_insight.store.attempts import queries as attempt_queries
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.migrate import Schema
from airflow_worker_insight.store.workers import availability, freshness
from airflow_worker_insight.store.workers import queries as worker_queries
from airflow_worker_insight.store.workers import services as workers_services

if TYPE_CHECKING:
    from collections.abc import Collection

    from pydantic import ValidationError
    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.workers import SourceStatus, WorkerChange, WorkerRow

MAX_LIMIT = 1000
MAX_CHANGES = 100
WORKER_ID = r"^[A-Za-z0-9._@:-]{1,64}$"

NOT_FROM_HERE = (
    "A change that carries a login's cookie must be JSON and come from a page of this server: send a bearer token "
    "instead."
)


# --- requests -------------------------------------------------------------------------------------------------------


def _require_no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain a NUL character")
    return text


def _require_iso_format(value: Any) -> Any:
    # pydantic would read a bare number as seconds since 1970.
    if isinstance(value, str) and not value[:11].replace("t", "T").endswith("T"):
        raise ValueError("must be an ISO 8601 date and time, for example 2026-01-31T08:00:00Z")
    return value


def _to_utc(value: datetime) -> datetime:
    try:
        return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)
    except OverflowError:
        raise ValueError("must be within the years 1 to 9999 in UTC") from None


def _require_known_state(value: str) -> str:
    states = metadata_database.task_instance_states()
    if value not in states:
        raise ValueError(f"must be one of {', '.join(sorted(states))}")
    return value


def _require_known_reason(value: str) -> str:
    if value not in PlacementReason.values():
        raise ValueError(f"must be one of {', '.join(sorted(PlacementReason.values()))}")
    return value


_WITHOUT_NUL: dict[str, Any] = {"pattern": r"^[^\u0000]*$"}
_Id = Annotated[
    str,
    Field(min_length=1, max_length=MAX_ID_LENGTH, json_schema_extra=_WITHOUT_NUL),
    AfterValidator(_require_no_nul),
]
_Time = Annotated[datetime, BeforeValidator(_require_iso_format), AfterValidator(_to_utc)]


def _require_reachable(offset: int) -> int:
    if offset > MAX_TOTAL:
        raise ValueError(f"at most {MAX_TOTAL} can be skipped: look further back with a filter, such as started_at_lte")
    return offset


def _require_label(value: str) -> str:
    key, separator, _ = value.partition("=")
    if not key or not separator:
        raise ValueError("must be a label as key=value, for example zone=eu-1")
    return value


_Kind = Annotated[
    str, Field(min_length=1, max_length=32, json_schema_extra=_WITHOUT_NUL), AfterValidator(_require_no_nul)
]
_Hostname = Annotated[
    str, Field(min_length=1, max_length=255, json_schema_extra=_WITHOUT_NUL), AfterValidator(_require_no_nul)
]


def _cleaned_note(note: str) -> str:
    """Remove line ends, control and format characters, as the form on a worker's page does."""
    return clean(note, MAX_NOTE_LENGTH)


_Note = Annotated[
    str,
    Field(max_length=MAX_NOTE_LENGTH, json_schema_extra=_WITHOUT_NUL),
    AfterValidator(_require_no_nul),
    AfterValidator(_cleaned_note),
]
_Label = Annotated[
    str,
    Field(max_length=320, json_schema_extra={"pattern": r"^[^=\u0000]+=[^\u0000]*$"}),
    AfterValidator(_require_no_nul),
    AfterValidator(_require_label),
]
_TryState = Annotated[
    str,
    Field(json_schema_extra={"enum": sorted(metadata_database.task_instance_states())}),
    AfterValidator(_require_known_state),
]
_Reason = Annotated[
    str, Field(json_schema_extra={"enum": sorted(PlacementReason.values())}), AfterValidator(_require_known_reason)
]
_WorkerId = Annotated[str, Field(pattern=WORKER_ID)]
Availability = Literal["available", "draining", "quarantined"]
_WorkerState = Literal["online", "unresponsive", "offline", "lost", "unknown"]
_WorkerOrder = Literal[
    "name", "-name", "hostname", "-hostname", "kind", "-kind", "state", "-state", "running", "-running",
    "registered_at", "-registered_at", "last_seen_at", "-last_seen_at",
]  # fmt: skip


class _Query(BaseModel):
    """Parameters that all lists share."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(50, ge=1, le=MAX_LIMIT, description="How many to return at most.")
    offset: Annotated[int, Field(ge=0), AfterValidator(_require_reachable)] = Field(
        0, description="How many to skip.", json_schema_extra={"maximum": MAX_TOTAL}
    )


class WorkerAttemptQuery(_Query):
    """Filters for one worker's attempts, combined with "and"; each matches a whole value."""

    dag_id: _Id | None = Field(None, description="The Dag. A Dag that the reader may not see is answered with 403.")
    run_id: _Id | None = Field(None, description="The Dag run.")
    task_id: _Id | None = Field(None, description="The task.")
    map_index: Annotated[int, Field(ge=-1, le=MAX_INTEGER)] | None = Field(
        None, description="The index of a mapped task instance; -1 for tasks that are not mapped."
    )
    try_number: Annotated[int, Field(ge=0, le=MAX_INTEGER)] | None = Field(None, description="The try's number.")
    hostname: _Hostname | None = Field(None, description="The host of a worker.")
    state: _TryState | None = Field(None, description="The try's state, as Airflow names states of task instances.")
    started_at_gte: _Time | None = Field(
        None, description="Started at this time or later: ISO 8601, in UTC where no offset is given."
    )
    started_at_lte: _Time | None = Field(None, description="Started at this time or earlier.")

    @model_validator(mode="after")
    def _window_is_not_reversed(self) -> WorkerAttemptQuery:
        since, until = self.started_at_gte, self.started_at_lte
        if since is not None and until is not None and since > until:
            raise ValueError("started_at_gte must not be later than started_at_lte")
        return self

    def filters(self) -> AttemptFilter:
        """Return what the store filters by."""
        return AttemptFilter(**self.model_dump(exclude={"limit", "offset"}))


class AttemptQuery(WorkerAttemptQuery):
    """Filters for attempts, combined with "and"; each matches a whole value."""

    worker_id: _WorkerId | None = Field(None, description="One life of a worker.")
    worker_name: _Id | None = Field(None, description="A worker's name, which outlives its restarts.")


class PlacementQuery(_Query):
    """Filters for placements, combined with "and"; each matches a whole value."""

    state: Literal["waiting", "placed"] | None = Field(
        None, description="waiting for a worker, or placed on one (or handed to the queue that its workers share)."
    )
    dag_id: _Id | None = Field(None, description="The Dag. A Dag that the reader may not see is answered with 403.")
    run_id: _Id | None = Field(None, description="The Dag run.")
    task_id: _Id | None = Field(None, description="The task.")
    worker_id: _WorkerId | None = Field(None, description="The worker that it is placed on.")
    reason: _Reason | None = Field(None, description="Why it waits or was placed there, in a word.")
    try_state: Literal["queued", "running", "restarting"] | None = Field(
        None, description="The try's state, as Airflow has it: queued until a worker starts it."
    )

    def filters(self) -> PlacementFilter:
        """Return what the store filters by."""
        return PlacementFilter(**self.model_dump(exclude={"limit", "offset"}))


class WorkerQuery(_Query):
    """Filters for workers, combined with "and"; each matches a whole value."""

    state: _WorkerState | None = Field(None, description="The worker's state; unknown where nothing tells.")
    kind: _Kind | None = Field(None, description="celery, local, kubernetes, edge, or the executor's own name.")
    name: _Id | None = Field(None, description="The worker's name, an operator's or its engine's.")
    hostname: _Hostname | None = Field(None, description="The worker's host.")
    label: _Label | None = Field(None, description="A label as key=value.")
    queue: _Id | None = Field(None, description="A queue that the worker takes tasks from.")
    availability: Availability | None = Field(
        None,
        description="What a person decided of the worker; not of lives that have ended and were followed by others.",
    )
    order_by: _WorkerOrder = Field(
        "-registered_at", description="What to order by; with a - in front descending. What is not known comes last."
    )

    def filters(self) -> WorkerFilter:
        """Return what the store filters by."""
        key, _, value = (self.label or "").partition("=")
        return WorkerFilter(
            states=None if self.state is None else frozenset({self.state}),
            kind=self.kind,
            name=self.name,
            hostname=self.hostname,
            label=None if self.label is None else (key, value),
            queue=self.queue,
            availability=self.availability,
        )


class ServiceQuery(_Query):
    """Filters for services."""

    kind: Literal["scheduler", "triggerer", "dag_processor", "worker"] | None = Field(
        None, description="What the service is."
    )
    state: _WorkerState | None = Field(None, description="The service's state; unknown where nothing tells.")


class Decision(BaseModel):
    """What a person decides of a worker."""

    model_config = ConfigDict(extra="forbid")

    availability: Availability = Field(
        description="draining: it is to finish what it runs; quarantined: the same, and a restart does not end it."
    )
    note: _Note | None = Field(None, description="Why.")


def require_worker_id(worker_id: str) -> None:
    """Check the form of a worker ID, as FastAPI does for its routes.

    :raises InvalidChangeError: if no worker can have this ID
    """
    if re.fullmatch(WORKER_ID, worker_id) is None:
        raise InvalidChangeError("A worker's ID has at most 64 characters from A-Z, a-z, 0-9 and ._@:-")


class InvalidChangeError(ValueError):
    """Raised when a request cannot be carried out as sent; the message says why."""


def parse_decision(body: bytes, *, is_json: bool) -> Decision:
    """Parse the body of a request that changes a worker's availability.

    :param body: the body, or its beginning if it is longer than :data:`MAX_BODY`
    :param is_json: whether the content type is JSON
    :raises InvalidChangeError: if the content type is not JSON or the body is too long
    :raises pydantic.ValidationError: if the body is not a valid :class:`Decision`
    """
    if not is_json:
        raise InvalidChangeError("The body must be JSON: send it with the content type application/json.")
    if len(body) > MAX_BODY:
        raise InvalidChangeError(f"The body is longer than {MAX_BODY} bytes.")
    return Decision.model_validate_json(body)


def problems(error: ValidationError, place: str) -> list[dict[str, Any]]:
    """Return the errors of a request in FastAPI's format.

    :param place: the part of the request: ``query``, ``path`` or ``body``
    """
    details = error.errors(include_url=False, include_context=False, include_input=False)
    return [{**detail, "loc": [place, *detail["loc"]]} for detail in details]


# --- responses ------------------------------------------------------------------------------------------------------


class AttemptWorkerResponse(BaseModel):
    """A worker that ran an attempt."""

    model_config = ConfigDict(from_attributes=True)

    worker_id: str = Field(description="One life of a worker; begins with host- where only the host is known.")
    name: str
    kind: str = Field(description="celery, local, kubernetes, edge, or the executor's own name.")
    hostname: str
    process_count: int = Field(description="How many task processes of this try ran on this worker.")
    first_started_at: datetime | None
    last_started_at: datetime | None
    load: float | None = Field(description="The machine's load average per CPU when the try started there.")
    memory_free: float | None = Field(description="The machine's free memory at that time, as a share of all.")
    running_beside: int | None = Field(
        description="How many other tries ran on the worker at that time; null for a reader who may not see workers."
    )


class AttemptResponse(BaseModel):
    """One try of one task instance."""

    model_config = ConfigDict(from_attributes=True)

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    state: str | None = Field(description="null where Airflow has none, or forgot the try before it ended.")
    started_at: datetime | None
    ended_at: datetime | None
    duration: float | None = Field(description="Seconds between start and end.")
    attribution: str = Field(
        description="reported, inferred, backfilled, not_on_a_worker, never_started or unknown: how it is known."
    )
    workers: list[AttemptWorkerResponse]
    placement: str | None = Field(
        description="What an executor of this package decided of it last, in a word: why it was placed where it was, "
        "or what it waited for; null where none decided."
    )
    placement_detail: str | None = Field(
        description="The same in a sentence, with who was left out: for 30 days at most; null for a reader who may not "
        "see workers."
    )
    deleted: Literal["run", "task_instance"] | None = Field(
        description="What Airflow has deleted, with the try: its Dag run or its task instance. What bears the same "
        "names in Airflow now is another one. null for a try that Airflow has, or whose history alone it has removed."
    )


class _ListResponse(BaseModel):
    """Fields that all lists share."""

    total_entries: int = Field(description=f"How many there are, counted up to {MAX_TOTAL}.")
    total_is_exact: bool = Field(
        description="false where counting ended early: at the most that is counted, or at the most tries that are "
        "looked through for a state, task_id, map_index or try_number."
    )


class AttemptsResponse(_ListResponse):
    """A page of attempts; ``total_entries`` counts only those that the reader may see."""

    attempts: list[AttemptResponse]


class PlacementWorkerResponse(BaseModel):
    """The worker that a try is placed on."""

    worker_id: str
    name: str


class PlacementResponse(BaseModel):
    """A try that waits for a worker, or that an executor of this package has placed, until it has ended."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    state: Literal["waiting", "placed"]
    worker: PlacementWorkerResponse | None = Field(
        description="null while it waits, and where it was handed to the queue that its workers share."
    )
    reason: str = Field(description="Why it waits or was placed there, in a word.")
    detail: str | None = Field(
        description="The same in a sentence, with who was left out; null for a reader who may not see workers."
    )
    since: datetime = Field(description="When it began to wait, or was placed.")
    queue: str
    try_state: str = Field(description="Airflow's state of the try: queued until a worker starts it, then running.")


class PlacementsResponse(_ListResponse):
    """A page of placements; ``total_entries`` counts only those that the reader may see."""

    placements: list[PlacementResponse]


class WorkerResponse(BaseModel):
    """One life of a worker."""

    worker_id: str
    name: str = Field(description="What an operator calls it; outlives restarts.")
    kind: str = Field(description="celery, local, kubernetes, edge, or the executor's own name.")
    hostname: str
    pid: int | None
    state: Literal["online", "unresponsive", "offline", "lost"] | None = Field(description="null where nothing tells.")
    state_reason: str | None = Field(description="Why it is in this state, or why none is known.")
    availability: Availability = Field(description="What a person decided of it.")
    availability_note: str | None = Field(description="Why, in that person's words.")
    availability_changed_by: str | None
    availability_changed_at: datetime | None
    queues: list[str] | None
    concurrency: int | None
    running: int | None = Field(description="How many tries ran on it when its engine was last looked at.")
    started_at: datetime | None
    registered_at: datetime
    last_seen_at: datetime
    ended_at: datetime | None
    labels: dict[str, str]
    resources: dict[str, Any]
    versions: dict[str, Any]


class ChangeResponse(BaseModel):
    """One entry of a worker's history: either its state or its availability changed."""

    model_config = ConfigDict(from_attributes=True)

    changed_at: datetime
    state: str | None
    availability: str | None
    reason: str | None
    changed_by: str | None = Field(description="Who decided; null for what was seen.")


class OneWorkerResponse(WorkerResponse):
    """One life of a worker with its history."""

    changes: list[ChangeResponse] = Field(description=f"The latest {MAX_CHANGES} at most, the latest first.")


class WorkersResponse(_ListResponse):
    """A page of workers."""

    workers: list[WorkerResponse]


class ServiceResponse(BaseModel):
    """A process of the deployment: one of Airflow's own, or a worker."""

    model_config = ConfigDict(from_attributes=True)

    kind: str = Field(description="scheduler, triggerer, dag_processor or worker.")
    service_id: str = Field(description="The ID of Airflow's job, or of the worker.")
    name: str
    hostname: str
    state: str | None = Field(description="online, unresponsive, offline or lost; null where nothing tells.")
    started_at: datetime | None
    last_seen_at: datetime | None
    ended_at: datetime | None


class ServicesResponse(_ListResponse):
    """A page of services: Airflow's own first."""

    services: list[ServiceResponse]


class EngineResponse(BaseModel):
    """When the workers of one engine were last looked at."""

    model_config = ConfigDict(from_attributes=True)

    name: str = Field(description="celery, edge, jobs (local workers) or tries (pods and other executors).")
    looked_at: datetime | None
    is_current: bool = Field(description="false where nobody has looked for long: states are not known then.")
    error: str | None = Field(description="Why the latest look failed.")


class HealthResponse(BaseModel):
    """Whether this package works in the API server process that answers."""

    status: Literal["healthy", "unhealthy"]
    version: str = Field(description="The version of this package.")
    tables: Literal["ready", "missing", "old", "newer", "incomplete"]
    explanation: str = Field(description="What is wrong with the tables and what to do, in one sentence.")
    counters: dict[str, int] = Field(
        description="What became of reports in this process since it started; other processes count for themselves."
    )
    engines: list[EngineResponse] | None = Field(
        description="Those that were ever looked at; null for a reader who may not see workers."
    )


# --- queries and changes --------------------------------------------------------------------------------------------


class WorkerNotFoundError(LookupError):
    """Raised when no worker has the requested ID; the message says so."""

    def __init__(self) -> None:
        super().__init__("No worker with this ID was recorded here.")


def list_attempts(query: AttemptQuery, *, dag_ids: Collection[str], sees_workers: bool) -> dict[str, Any]:
    """Return the fields of an :class:`AttemptsResponse`, latest start first.

    :param dag_ids: the Dags that the reader may see
    :param sees_workers: whether the reader may see workers, and so how much runs on them
    """
    with database.reading() as connection:
        fields = _attempts_page(connection, query, query.filters(), dag_ids)
    if not sees_workers:
        fields["attempts"] = [attempt_queries.redact_other_dags(attempt) for attempt in fields["attempts"]]
    return fields


def list_placements(query: PlacementQuery, *, dag_ids: Collection[str], sees_workers: bool) -> dict[str, Any]:
    """Return the fields of a :class:`PlacementsResponse`, oldest first.

    They cover tries that wait for a worker and tries that are placed on one.

    :param dag_ids: the Dags that the reader may see
    :param sees_workers: whether the reader may see workers that a try neither ran on nor was placed on
    """
    with database.reading() as connection:
        rows, total = placements.find(
            connection, query.filters(), dag_ids=dag_ids, limit=query.limit, offset=query.offset
        )
    return {
        "placements": [placement_fields(row, sees_workers=sees_workers) for row in rows],
        "total_entries": total,
        "total_is_exact": total < MAX_TOTAL,
    }


def placement_fields(listed: placements.ListedPlacement, *, sees_workers: bool = True) -> dict[str, Any]:
    """Return the fields of a :class:`PlacementResponse`.

    :param sees_workers: whether the reader may see workers; if not, ``detail`` is ``None``
    """
    names = ("dag_id", "run_id", "task_id", "map_index", "try_number")
    return {
        **{name: getattr(listed.placement.key, name) for name in names},
        "state": listed.state,
        "worker": None if listed.worker_id is None else {"worker_id": listed.worker_id, "name": listed.worker_name},
        "reason": listed.placement.reason,
        "detail": listed.placement.sentence if sees_workers else None,
        "since": listed.placement.placed_at,
        "queue": listed.queue,
        "try_state": listed.try_state,
    }


def list_worker_attempts(worker_id: str, query: WorkerAttemptQuery, *, dag_ids: Collection[str]) -> dict[str, Any]:
    """Return the fields of an :class:`AttemptsResponse` for one worker, latest start first.

    :param dag_ids: the Dags that the reader may see
    :raises WorkerNotFoundError: if no worker has the ID
    """
    with database.reading() as connection:
        row = _require_worker(connection, worker_id)
        return _attempts_page(connection, query, replace(query.filters(), worker_id=row.worker_id), dag_ids)


def _attempts_page(
    connection: Connection, query: WorkerAttemptQuery, filters: AttemptFilter, dag_ids: Collection[str]
) -> dict[str, Any]:
    page = attempt_queries.find_attempts(connection, filters, dag_ids=dag_ids, limit=query.limit, offset=query.offset)
    return {"attempts": page.attempts, "total_entries": page.total, "total_is_exact": page.total_is_exact}


def list_workers(query: WorkerQuery) -> dict[str, Any]:
    """Return the fields of a :class:`WorkersResponse`."""
    with database.reading() as connection:
        rows, total = worker_queries.list_workers(
            connection, query.filters(), order_by=query.order_by, limit=query.limit, offset=query.offset
        )
        decisions = worker_queries.decisions(connection, rows)
    return {
        "workers": [worker_fields(row, decisions.get(row.ref)) for row in rows],
        "total_entries": total,
        "total_is_exact": total < MAX_TOTAL,
    }


def one_worker(worker_id: str) -> dict[str, Any]:
    """Return the fields of a :class:`OneWorkerResponse`.

    :raises WorkerNotFoundError: if no worker has the ID
    """
    with database.reading() as connection:
        return _worker_with_changes(connection, _require_worker(connection, worker_id))


def decide(worker_id: str, decision: Decision, *, changed_by: str) -> dict[str, Any]:
    """Set a worker's availability and return the fields of a :class:`OneWorkerResponse`.

    :param changed_by: the name of the user who decided
    :raises WorkerNotFoundError: if no worker has the ID
    :raises InvalidChangeError: if the ID stands for a host, or for a worker instance that has ended
    """
    with database.writing() as connection:
        try:
            row = availability.set_availability(
                connection,
                worker_id,
                decision.availability,
                note=decision.note or None,
                changed_by=changed_by,
                now=database_now(connection),
            )
        except availability.HostOnlyWorkerError:
            raise InvalidChangeError("This ID stands for all workers of a host: decide of one of them.") from None
        except availability.WorkerEndedError as error:
            raise InvalidChangeError(str(error)) from None
        if row is None:
            raise WorkerNotFoundError
        return _worker_with_changes(connection, row)


def list_services(query: ServiceQuery) -> dict[str, Any]:
    """Return the fields of a :class:`ServicesResponse`."""
    with database.reading() as connection:
        services, total = workers_services.list_services(
            connection, kind=query.kind, state=query.state, limit=query.limit, offset=query.offset
        )
    return {"services": services, "total_entries": total, "total_is_exact": total < MAX_TOTAL}


def health(*, with_engines: bool) -> dict[str, Any]:
    """Return the fields of a :class:`HealthResponse`.

    :param with_engines: whether the reader may see workers: the error of a worker source may name hosts
    """
    schema = database.schema_now()
    sources: list[SourceStatus] | None = None
    if with_engines:
        sources = []
        if schema is Schema.READY:
            with database.reading() as connection:
                sources = freshness.list_sources(connection)
    return {
        "status": "healthy" if schema is Schema.READY else "unhealthy",
        "version": __version__,
        "tables": schema.value,
        "explanation": schema.explanation,
        "counters": counters.snapshot(),
        "engines": sources,
    }


def _require_worker(connection: Connection, worker_id: str) -> WorkerRow:
    row = worker_queries.get_worker(connection, worker_id)
    if row is None:
        raise WorkerNotFoundError
    return row


def _worker_with_changes(connection: Connection, row: WorkerRow) -> dict[str, Any]:
    decision = worker_queries.decisions(connection, [row]).get(row.ref)
    return {**worker_fields(row, decision), "changes": worker_queries.changes(connection, row, limit=MAX_CHANGES)}


def worker_fields(row: WorkerRow, decision: WorkerChange | None) -> dict[str, Any]:
    """Return the fields of a :class:`WorkerResponse`."""
    return {
        **{name: getattr(row, name) for name in WorkerResponse.model_fields if hasattr(row, name)},
        "availability_note": None if decision is None else decision.reason,
        "availability_changed_by": None if decision is None else decision.changed_by,
        "availability_changed_at": None if decision is None else decision.changed_at,
    }
