"""Query strings and bodies that the REST API takes, independent of the web framework.

The filters come from :mod:`airflow_worker_insight.domain.filters`.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator

from airflow_worker_insight.api.errors import InvalidRequestError
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.filters import (
    WORKER_ORDERS,
    AttemptFilter,
    FindingFilter,
    PlacementFilter,
    ServiceFilter,
    WorkerFilter,
    build,
    parameters,
)
from airflow_worker_insight.domain.limits import MAX_BODY, MAX_INTEGER, MAX_NOTE_LENGTH, MAX_TOTAL
from airflow_worker_insight.domain.names import LABEL_KEY
from airflow_worker_insight.domain.parameters import (
    WORKER_ID,
    Choice,
    Choices,
    Integer,
    Kind,
    Label,
    Note,
    Text,
    Time,
    TryState,
    WorkerId,
    is_worker_id,
)
from airflow_worker_insight.domain.statistics import GROUPS, LABEL_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from pydantic import ValidationError
    from typing_extensions import Self

    Query = TypeVar("Query", bound="ListQuery")
    DecisionType = TypeVar("DecisionType", bound=BaseModel)

MAX_LIMIT = 1000
_WITHOUT_NUL: dict[str, Any] = {"pattern": r"^[^\u0000]*$"}


# --- types of parameters ---------------------------------------------------------------------------------------------


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


def _require_reachable(offset: int) -> int:
    if offset > MAX_TOTAL:
        raise ValueError(f"skips at most {MAX_TOTAL} entries: look further back with a filter, such as started_at_lte")
    return offset


_UtcTime = Annotated[datetime, BeforeValidator(_require_iso_format), AfterValidator(_to_utc)]


def _type_of(kind: Kind) -> Any:  # noqa: PLR0911 - one line per kind
    """Return the pydantic type of a kind of parameter."""
    match kind:
        case Text():
            constraints = Field(min_length=1, max_length=kind.max_length, json_schema_extra=_WITHOUT_NUL)
            return Annotated[str, constraints, AfterValidator(kind.parse)]
        case WorkerId():
            return Annotated[str, Field(pattern=WORKER_ID)]
        case Integer():
            return Annotated[int, Field(ge=kind.minimum, le=MAX_INTEGER)]
        case Time():
            return _UtcTime
        case Choices():
            return list[Literal[kind.values]]  # type: ignore[name-defined]  # words that are known when it runs
        case Choice():
            return Literal[kind.values]
        case TryState():
            return Literal[tuple(sorted(metadata_database.task_instance_states()))]
        case Label():
            schema: dict[str, Any] = {"pattern": r"^[^=\u0000]+=[^\u0000]*$"}
            constraints = Field(max_length=kind.max_length, json_schema_extra=schema)
            return Annotated[str, constraints, AfterValidator(kind.parse)]


# --- query strings ---------------------------------------------------------------------------------------------------


class ListQuery(BaseModel):
    """Parameters that all lists share."""

    model_config = ConfigDict(extra="forbid")

    repeatable: ClassVar[frozenset[str]] = frozenset()
    """Parameters that a request may repeat: a row matches if it has any of the values."""

    limit: int = Field(50, ge=1, le=MAX_LIMIT, description="Maximum number of entries to return.")
    offset: Annotated[int, Field(ge=0), AfterValidator(_require_reachable)] = Field(
        0, description="Number of entries to skip.", json_schema_extra={"maximum": MAX_TOTAL}
    )


def _with_filters(filters: type[Any], *, without: Collection[str] = ()) -> Callable[[type[Query]], type[Query]]:
    """Return a class decorator that adds declared filters to a query."""
    declared: dict[str, Any] = {
        parameter.name: (_type_of(parameter.kind) | None, Field(None, description=parameter.meaning))
        for parameter in parameters(filters).values()
        if parameter.rest and parameter.name not in without
    }

    def add(query: type[Query]) -> type[Query]:
        made = create_model(
            query.__name__, __base__=query, __module__=query.__module__, __doc__=query.__doc__, **declared
        )
        made.repeatable = frozenset(
            parameter.name for parameter in parameters(filters).values() if isinstance(parameter.kind, Choices)
        )
        return made

    return add


@_with_filters(AttemptFilter, without=("worker_id", "worker_name"))
class WorkerAttemptQuery(ListQuery):
    """Filters for one worker's attempts, combined with "and"; each matches a whole value."""

    def filters(self) -> AttemptFilter:
        """Return what the store filters by."""
        return build(AttemptFilter, self)

    @model_validator(mode="after")
    def _window_is_not_reversed(self) -> Self:
        if self.filters().is_reversed:
            raise ValueError("started_at_gte must not be later than started_at_lte")
        return self


@_with_filters(AttemptFilter)
class AttemptQuery(WorkerAttemptQuery):
    """Filters for attempts, combined with "and"; each matches a whole value."""


@_with_filters(PlacementFilter)
class PlacementQuery(ListQuery):
    """Filters for placements, combined with "and"; each matches a whole value."""

    def filters(self) -> PlacementFilter:
        """Return what the store filters by."""
        return build(PlacementFilter, self)


_ORDERS = Choice(tuple(order for name in WORKER_ORDERS for order in (name, f"-{name}")))


@_with_filters(WorkerFilter)
class WorkerQuery(ListQuery):
    """Filters for workers, combined with "and"; each matches a whole value."""

    order_by: Annotated[str, AfterValidator(_ORDERS.parse)] = Field(
        "-registered_at",
        description="Column to order by; a leading - means descending. Unknown values come last.",
        json_schema_extra={"enum": list(_ORDERS.values)},
    )

    def filters(self) -> WorkerFilter:
        """Return what the store filters by."""
        return build(WorkerFilter, self)


@_with_filters(ServiceFilter)
class ServiceQuery(ListQuery):
    """Filters for services."""

    def filters(self) -> ServiceFilter:
        """Return what the store filters by."""
        return build(ServiceFilter, self)


_GROUP = f"^({'|'.join(GROUPS)}|{LABEL_PREFIX}{LABEL_KEY})$"


def _require_group(value: str) -> str:
    if not re.fullmatch(_GROUP, value):
        raise ValueError(f"must be {', '.join(GROUPS)}, or {LABEL_PREFIX} and a label's key, such as label:zone")
    return value


@_with_filters(AttemptFilter)
class StatisticsQuery(ListQuery):
    """What to group by, the window, and filters for tries, combined with "and"."""

    group_by: Annotated[str, AfterValidator(_require_group)] = Field(
        "worker",
        description=f"What makes a group: {', '.join(GROUPS)}, or label: and a label's key.",
        json_schema_extra={"pattern": _GROUP},
    )
    bucket: Literal["hour", "day", "none"] = Field(
        "none", description="Length of the time that a row covers: an hour, a day in UTC, or the whole window."
    )
    since: _UtcTime | None = Field(
        None, alias="from", description="Begin of the window; by default 24 hours before its end."
    )
    until: _UtcTime | None = Field(None, alias="to", description="End of the window; by default now.")

    def filters(self) -> AttemptFilter:
        """Return what the store filters by."""
        return build(AttemptFilter, self)

    @model_validator(mode="after")
    def _window_is_not_reversed(self) -> Self:
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError("from must be earlier than to")
        if self.filters().is_reversed:
            raise ValueError("started_at_gte must not be later than started_at_lte")
        return self


@_with_filters(FindingFilter)
class FindingQuery(ListQuery):
    """Filters for findings, combined with "and"; each matches a whole value."""

    def filters(self) -> FindingFilter:
        """Return what the store filters by."""
        return build(FindingFilter, self)


def require_worker_id(worker_id: str) -> None:
    """Check the form of a worker ID, as FastAPI does for its routes.

    :raises InvalidRequestError: if no worker can have this ID
    """
    if not is_worker_id(worker_id):
        raise InvalidRequestError("A worker's ID has at most 64 characters from A-Z, a-z, 0-9 and ._@:-")


def parse_finding_id(text: str) -> int:
    """Return the ID of a finding in a path, as FastAPI does for its routes.

    :raises InvalidRequestError: if no finding can have this ID
    """
    try:
        return Integer(1).parse(text)
    except ValueError as error:
        raise InvalidRequestError(f"The ID of the finding {error}.") from None


def error_details(error: ValidationError, location: str) -> list[dict[str, Any]]:
    """Return the errors of a request in FastAPI's format.

    :param location: the part of the request: ``query``, ``path`` or ``body``
    """
    details = error.errors(include_url=False, include_context=False, include_input=False)
    return [{**detail, "loc": [location, *detail["loc"]]} for detail in details]


# --- bodies ----------------------------------------------------------------------------------------------------------

Availability = Literal["available", "draining", "quarantined"]


_NoteText = Annotated[
    str,
    Field(max_length=MAX_NOTE_LENGTH, json_schema_extra=_WITHOUT_NUL),
    AfterValidator(Text(MAX_NOTE_LENGTH).parse),
    AfterValidator(Note().parse),
]


class Decision(BaseModel):
    """A user's decision on a worker's availability."""

    model_config = ConfigDict(extra="forbid")

    availability: Availability = Field(
        description="A draining worker finishes its tasks and gets no new ones; a quarantined one also after a restart."
    )
    note: _NoteText | None = Field(None, description="Reason for the decision.")


class FindingDecision(BaseModel):
    """A user's decision on a finding."""

    model_config = ConfigDict(extra="forbid")

    state: Literal["closed"] = Field(description="Dismisses the finding: it needs no action.")
    note: _NoteText | None = Field(None, description="Reason for the decision.")


def parse_decision(decision: type[DecisionType], body: bytes, *, is_json: bool) -> DecisionType:
    """Parse the body of a request that changes something.

    :param decision: the model of the body
    :param body: the body, or its beginning if it is longer than :data:`MAX_BODY`
    :param is_json: whether the content type is JSON
    :raises InvalidRequestError: if the content type is not JSON or the body is too long
    :raises pydantic.ValidationError: if the body is not a valid ``decision``
    """
    if not is_json:
        raise InvalidRequestError("The body must be JSON: send it with the content type application/json.")
    if len(body) > MAX_BODY:
        raise InvalidRequestError(f"The body is longer than {MAX_BODY} bytes.")
    return decision.model_validate_json(body)
