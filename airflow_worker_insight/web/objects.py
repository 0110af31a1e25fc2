"""The objects of the REST API ``/api/v1`` and how they are filled, without a web framework.

FastAPI serves them on Airflow 3 (``rest``) and Flask on 2.11 (``fab``).
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from airflow_worker_insight import __version__, compat
from airflow_worker_insight.capture import counters
from airflow_worker_insight.store import reading
from airflow_worker_insight.store.migrate import Schema
from airflow_worker_insight.web import database
from airflow_worker_insight.web.address import MAX_ID_LENGTH, MAX_INTEGER

if TYPE_CHECKING:
    from collections.abc import Collection

MAX_LIMIT = 1000


# --- what goes in ---------------------------------------------------------------------------------------------------


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain a NUL character")
    return text


def _written_as_time(value: Any) -> Any:
    # pydantic would take a bare number for seconds since 1970.
    if isinstance(value, str) and not value[:11].replace("t", "T").endswith("T"):
        raise ValueError("must be an ISO 8601 date and time, for example 2026-01-31T08:00:00Z")
    return value


def _aware(value: datetime) -> datetime:
    try:
        return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)
    except OverflowError:
        raise ValueError("must be within the years 1 to 9999 in UTC") from None


def _known_state(value: str) -> str:
    states = compat.task_instance_states()
    if value not in states:
        raise ValueError(f"must be one of {', '.join(sorted(states))}")
    return value


_Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH), AfterValidator(_storable)]
_Time = Annotated[datetime, BeforeValidator(_written_as_time), AfterValidator(_aware)]


class AttemptQuery(BaseModel):
    """What attempts to list. Filters are combined with "and" and match whole values."""

    model_config = ConfigDict(extra="forbid")

    dag_id: _Id | None = Field(None, description="The Dag. A Dag that the reader may not see is answered with 403.")
    run_id: _Id | None = Field(None, description="The Dag run.")
    task_id: _Id | None = Field(None, description="The task.")
    map_index: Annotated[int, Field(ge=-1, le=MAX_INTEGER)] | None = Field(
        None, description="The index of a mapped task instance; -1 for tasks that are not mapped."
    )
    try_number: Annotated[int, Field(ge=0, le=MAX_INTEGER)] | None = Field(None, description="The try's number.")
    worker_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._@:-]{1,64}$")] | None = Field(
        None, description="One life of a worker."
    )
    worker_name: _Id | None = Field(None, description="A worker's name, which outlives its restarts.")
    hostname: Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_storable)] | None = Field(
        None, description="The host of a worker."
    )
    state: Annotated[str, AfterValidator(_known_state)] | None = Field(
        None, description="The try's state, as Airflow names states of task instances."
    )
    started_at_gte: _Time | None = Field(
        None, description="Started at this time or later: ISO 8601, in UTC where no offset is given."
    )
    started_at_lte: _Time | None = Field(None, description="Started at this time or earlier.")
    limit: int = Field(50, ge=1, le=MAX_LIMIT, description="How many attempts to return at most.")
    offset: int = Field(0, ge=0, le=MAX_INTEGER, description="How many attempts to skip.")

    @model_validator(mode="after")
    def _window_is_not_reversed(self) -> AttemptQuery:
        since, until = self.started_at_gte, self.started_at_lte
        if since is not None and until is not None and since > until:
            raise ValueError("started_at_gte must not be later than started_at_lte")
        return self

    def filters(self) -> reading.AttemptFilter:
        """Return what the store filters by."""
        return reading.AttemptFilter(**self.model_dump(exclude={"limit", "offset"}))


# --- what comes out -------------------------------------------------------------------------------------------------


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


class AttemptResponse(BaseModel):
    """One try of one task instance."""

    model_config = ConfigDict(from_attributes=True)

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    state: str | None
    started_at: datetime | None
    ended_at: datetime | None
    duration: float | None = Field(description="Seconds between start and end.")
    attribution: str = Field(
        description="reported, inferred, backfilled, not_on_a_worker, never_started or unknown: how it is known."
    )
    workers: list[AttemptWorkerResponse]


class AttemptsResponse(BaseModel):
    """A page of attempts; ``total_entries`` counts only those that the reader may see."""

    attempts: list[AttemptResponse]
    total_entries: int


class HealthResponse(BaseModel):
    """Whether this package works in the API server process that answers."""

    status: Literal["healthy", "unhealthy"]
    version: str = Field(description="The version of this package.")
    tables: Literal["ready", "missing", "old", "newer"]
    explanation: str = Field(description="What is wrong with the tables and what to do, in one sentence.")
    counters: dict[str, int] = Field(
        description="What became of reports in this process since it started; other processes count for themselves."
    )


# --- how it is filled -----------------------------------------------------------------------------------------------


def list_attempts(query: AttemptQuery, *, dag_ids: Collection[str]) -> dict[str, Any]:
    """Return the fields of an :class:`AttemptsResponse`: tries and their workers, the latest start first.

    :param dag_ids: the Dags that the reader may see
    """
    with database.reading() as connection:
        attempts, total = reading.list_attempts(
            connection, query.filters(), dag_ids=dag_ids, limit=query.limit, offset=query.offset
        )
    return {"attempts": attempts, "total_entries": total}


def health() -> dict[str, Any]:
    """Return the fields of a :class:`HealthResponse`."""
    schema = database.schema_now()
    return {
        "status": "healthy" if schema is Schema.READY else "unhealthy",
        "version": __version__,
        "tables": schema.value,
        "explanation": schema.explanation,
        "counters": counters.snapshot(),
    }
