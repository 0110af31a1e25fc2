"""Parse and build the pages' URLs, which hold all page state.

Pure functions, shared by FastAPI and Flask. The panel's query string is parsed by rules that are in part stricter and
in part laxer than a web framework's: Airflow 3.1 inserts ``{RUN_ID}`` without encoding it, so the ``+`` of
``2025-01-01T00:00:00+00:00`` arrives as is. In the panel's URL a plus is a plus and a space arrives as ``%20``. The
URLs of lists come from forms, where a plus is a space.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, unquote

from airflow_worker_insight.domain.filters import (
    WORKER_ORDERS,
    AttemptFilter,
    PlacementFilter,
    WorkerFilter,
    parameters,
)
from airflow_worker_insight.domain.limits import MAX_BODY, MAX_TOTAL
from airflow_worker_insight.domain.parameters import Choice, Integer, Note, Text, Time, TryState
from airflow_worker_insight.domain.states import UNKNOWN_STATE, WorkerAvailability, WorkerState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from typing import Any

    from typing_extensions import Self

    from airflow_worker_insight.domain.filters import Filters

    Parser = Callable[[str], object]


UNFILLED = re.compile(r"\{[A-Z_]+\}")
"""Placeholder that Airflow's UI left unfilled: ``{MAP_INDEX}`` of an unmapped task."""


class InvalidUrlError(ValueError):
    """Raised when a URL is invalid; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class PanelParams:
    """Task instance that a panel shows.

    ``try_number`` is the try that the user came from, if any.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    try_number: int | None = None


def parse_panel_params(query: str) -> PanelParams:
    """Parse the panel's query string.

    :param query: the raw query string, still percent-encoded
    :raises InvalidUrlError: if an ID is missing, repeated, too long or not valid text, or a number is invalid
    """
    values = _parse_query(query)
    map_index = _integer(values, "map_index", Integer(-1))
    return PanelParams(
        dag_id=_id(values, "dag_id"),
        run_id=_id(values, "run_id"),
        task_id=_id(values, "task_id"),
        map_index=-1 if map_index is None else map_index,
        try_number=_integer(values, "try_number", Integer(0)),
    )


# --- URLs of lists --------------------------------------------------------------------------------------------------

ANY = "any"
"""Value that lifts a filter which applies by default."""

SEEN = {"": timedelta(days=1), "7d": timedelta(days=7), "30d": timedelta(days=30), ANY: None}
"""Values of ``seen``: how long ago listed workers were last seen.

The empty value is the default.
"""

WINDOWS = {
    "1h": timedelta(hours=1),
    "6h": timedelta(hours=6),
    "": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
    ANY: None,
}
"""Values of ``window``: how long ago listed tries started.

The empty value is the default.
"""

HOURS = (1, 6, 24, 168)
"""Numbers of hours that a worker's timeline may show."""


@dataclass(frozen=True, slots=True)
class ListParams:
    """URL state whose fields are its query parameters.

    Fields with their default value are left out of the query string.
    """

    def parameters(self) -> list[tuple[str, str]]:
        """Return the names and values of the parameters that differ from their defaults."""
        values = [(field.name, getattr(self, field.name), field.default) for field in fields(self)]
        return [(name, _format_value(value)) for name, value, default in values if value != default]

    def query(self) -> str:
        """Return the query string with its question mark, or nothing if all values are defaults."""
        written = "&".join(f"{name}={quote(value, safe='')}" for name, value in self.parameters())
        return f"?{written}" if written else ""

    def changed(self, **values: Any) -> Self:
        """Return a copy with other values; its offset is 0 unless they include one."""
        return replace(self, **{"offset": 0, **values})


_Params = TypeVar("_Params", bound=ListParams)


@dataclass(frozen=True, slots=True)
class WorkersParams(ListParams):
    """Filters, grouping and order of the list of workers; empty text does not filter."""

    state: str = ""
    """A state, ``unknown`` or :data:`ANY`; empty for all except gracefully stopped ones."""
    seen: str = ""
    search: str = ""
    kind: str = ""
    queue: str = ""
    label: str = ""
    """In the form ``key=value``."""
    hostname: str = ""
    availability: str = ""
    findings: str = ""
    """``open`` for workers that an open finding concerns."""
    group: str = ""
    """``queue``, ``hostname``, ``kind`` or ``label:KEY`` to list groups instead of workers."""
    order: str = "name"
    offset: int = 0


@dataclass(frozen=True, slots=True)
class WorkerParams(ListParams):
    """Hours of the timeline and page of the tries on a worker's page."""

    hours: int | None = None
    """``None`` for the fewest that cover the worker instance's lifetime, at most a day."""
    until: datetime | None = None
    """End of the timeline; ``None`` for now."""
    offset: int = 0


@dataclass(frozen=True, slots=True)
class AttemptsParams(ListParams):
    """Filters of the list of tries; empty text does not filter."""

    dag_id: str = ""
    run_id: str = ""
    task_id: str = ""
    worker: str = ""
    """ID or name of a worker."""
    hostname: str = ""
    state: str = ""
    window: str = ""
    """How long ago the tries started; ignored if ``since`` or ``until`` is set."""
    since: datetime | None = None
    until: datetime | None = None
    offset: int = 0


@dataclass(frozen=True, slots=True)
class WaitingParams(ListParams):
    """Filters of the list of waiting tries; empty text does not filter."""

    state: str = ""
    """``waiting`` for a worker, or ``placed`` on one that has not started the try yet."""
    dag_id: str = ""
    run_id: str = ""
    task_id: str = ""
    worker: str = ""
    """ID or name of the worker that the try is placed on."""
    reason: str = ""
    offset: int = 0


@dataclass(frozen=True, slots=True)
class InsightParams(ListParams):
    """What the heat map shows, and the page of the closed findings."""

    measure: str = ""
    """``utilization`` or ``queue`` (delay); empty for failures above expectation."""
    offset: int = 0


def parse_insight_params(query: str) -> InsightParams:
    """Parse the query string of the page of findings.

    :raises InvalidUrlError: if a name or value is unknown
    """
    return _parse_list(query, InsightParams, {"measure": Choice(("utilization", "queue")).parse})


def parse_waiting_params(query: str) -> WaitingParams:
    """Parse the query string of the list of waiting tries.

    :raises InvalidUrlError: if a name or value is unknown, or a value is too long
    """
    return _parse_list(query, WaitingParams, _filter_parsers(PlacementFilter))


def parse_workers_params(query: str) -> WorkersParams:
    """Parse the query string of the list of workers.

    :raises InvalidUrlError: if a name or value is unknown, or a value is too long
    """
    own: dict[str, Parser] = {
        "state": Choice((*WorkerState.values(), UNKNOWN_STATE, ANY)).parse,
        "seen": Choice(tuple(SEEN)).parse,
        "group": _parse_group,
        "order": Choice(tuple(order for name in WORKER_ORDERS for order in (name, f"-{name}"))).parse,
    }
    return _parse_list(query, WorkersParams, {**_filter_parsers(WorkerFilter), **own})


def parse_worker_params(query: str) -> WorkerParams:
    """Parse the query string of a worker's page.

    :raises InvalidUrlError: if a name or value is unknown
    """
    return _parse_list(query, WorkerParams, {"hours": _parse_hours, "until": _parse_time})


def parse_attempts_params(query: str, *, states: Collection[str]) -> AttemptsParams:
    """Parse the query string of the list of tries.

    :param states: the states that a task instance may have
    :raises InvalidUrlError: if a name or value is unknown, a value is too long, or the window ends before it begins
    """
    own: dict[str, Parser] = {
        "state": Choice(tuple(states)).parse,
        "window": Choice(tuple(WINDOWS)).parse,
        "since": _parse_time,
        "until": _parse_time,
    }
    params = _parse_list(query, AttemptsParams, {**_filter_parsers(AttemptFilter), **own})
    if AttemptFilter(started_at_gte=params.since, started_at_lte=params.until).is_reversed:
        raise InvalidUrlError("The time window in the URL ends before it begins.")
    return params


# --- form data ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AvailabilityForm:
    """Decision on a worker's availability, as the form on its page posts it."""

    availability: str
    note: str = ""


def parse_availability_form(body: bytes) -> AvailabilityForm:
    """Parse the body that the form on a worker's page posts.

    :raises InvalidUrlError: if the body does not come from this form, or the note is too long
    """
    if len(body) > MAX_BODY:
        raise InvalidUrlError(f"The form is longer than {MAX_BODY} bytes.")
    return parse_form(_parse_query(body.decode("latin-1"), plus_is_space=True))


def parse_form(form: Mapping[str, str]) -> AvailabilityForm:
    """Build the decision from the form's fields.

    :raises InvalidUrlError: as :func:`parse_availability_form`
    """
    availability = form.get("availability", "")
    if availability not in WorkerAvailability.values():
        raise InvalidUrlError("The availability in the form is not available, draining or quarantined.")
    return AvailabilityForm(availability, parse_note(form))


def parse_note_form(body: bytes) -> str:
    """Return the note that a form of a finding posts.

    :raises InvalidUrlError: if the body does not come from this form, or the note is too long
    """
    if len(body) > MAX_BODY:
        raise InvalidUrlError(f"The form is longer than {MAX_BODY} bytes.")
    return parse_note(_parse_query(body.decode("latin-1"), plus_is_space=True))


def parse_note(form: Mapping[str, str]) -> str:
    """Return the note of a form's fields.

    :raises InvalidUrlError: if it is too long
    """
    try:
        return Note().parse(form.get("note", ""))
    except ValueError as error:
        raise InvalidUrlError(f"The note {error}.") from None


# --- parsing --------------------------------------------------------------------------------------------------------


def _format_value(value: object) -> str:
    return value.strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(value, datetime) else str(value)


def _parse_query(query: str, *, plus_is_space: bool = False) -> dict[str, str]:
    values: dict[str, str] = {}
    for pair in filter(None, (query.replace("+", " ") if plus_is_space else query).split("&")):
        name, _, value = pair.partition("=")
        try:
            name, value = unquote(name, errors="strict"), unquote(value, errors="strict")
        except UnicodeDecodeError:
            raise InvalidUrlError("The URL is not valid UTF-8.") from None
        if name in values:
            raise InvalidUrlError(f"The URL has {name[:40]} twice.")
        values[name] = value
    return values


def _parse_group(text: str) -> str:
    if text not in ("queue", "hostname", "kind") and not re.fullmatch(r"label:.+", Text().parse(text)):
        raise ValueError("is not one of queue, hostname, kind and label:KEY")
    return text


def _parse_hours(text: str) -> int:
    return int(Choice(tuple(str(hours) for hours in HOURS)).parse(text))


def _parse_time(text: str) -> datetime:
    # A form's plus arrives as %2B, one typed into the URL as a space.
    return Time().parse(text.replace(" ", "+"))


def _parse_offset(text: str) -> int:
    """Parse how many entries to skip.

    At most as many as are counted, because the database has to sort all skipped entries.
    """
    offset = Integer(0).parse(text)
    if offset > MAX_TOTAL:
        raise ValueError(f"is larger than {MAX_TOTAL:,}: look further with a filter")
    return offset


def _filter_parsers(filters: type[Filters]) -> dict[str, Parser]:
    """Return the parsers of filters by their parameters, except those that depend on Airflow's version."""
    return {
        parameter.name: parameter.kind.parse
        for parameter in parameters(filters).values()
        if not isinstance(parameter.kind, TryState)
    }


def _parse_list(query: str, params: type[_Params], parsers: Mapping[str, Parser]) -> _Params:
    """Parse a list's query string and reject unknown parameters.

    A misspelt filter must not list everything. Airflow adds no parameters to these URLs, but it may add some to the
    panel's, which therefore accepts unknown ones.
    """
    parsers = {"offset": _parse_offset, **parsers}
    known = [field.name for field in fields(params)]
    values: dict[str, Any] = {}
    for name, value in _parse_query(query, plus_is_space=True).items():
        if name not in known:
            raise InvalidUrlError(f"“{name[:40]}” is not a filter of this page; the filters are {', '.join(known)}.")
        # Surrounding whitespace is part of no name.
        if text := value.strip():
            values[name] = _parse_value(name, text, parsers.get(name, Text().parse))
    return params(**values)


def _parse_value(name: str, text: str, parser: Parser) -> Any:
    try:
        value = parser(text)
    except ValueError as error:
        raise InvalidUrlError(f"The {name} in the URL {error}.") from None
    # Pages keep the text of words and labels: it goes back into their forms and links.
    return value if isinstance(value, (int, datetime)) else text


def _id(values: dict[str, str], name: str) -> str:
    value = values.get(name, "")
    if not value or UNFILLED.fullmatch(value):
        raise InvalidUrlError(f"The URL has no {name}.")
    return str(_parse_value(name, value, Text().parse))


def _integer(values: dict[str, str], name: str, kind: Integer) -> int | None:
    """Return an integer parameter, or ``None`` if it is missing or an unfilled placeholder."""
    value = values.get(name, "")
    if not value or UNFILLED.fullmatch(value):
        return None
    return int(_parse_value(name, value, kind.parse))
