"""Parse and build the pages' URLs, which hold all page state.

Pure functions, shared by FastAPI and Flask. The panel's query string is parsed by rules that are in part stricter and
in part laxer than a web framework's: Airflow 3.1 inserts ``{RUN_ID}`` without encoding it, so the ``+`` of
``2025-01-01T00:00:00+00:00`` arrives as is. In the panel's URL a plus is a plus and a space arrives as ``%20``. The
URLs of lists come from forms, where a plus is a space.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from airflow_worker_insight.domain.filters import WORKER_ORDERS, PlacementState
from airflow_worker_insight.domain.limits import MAX_BODY, MAX_ID_LENGTH, MAX_INTEGER, MAX_NOTE_LENGTH, MAX_TOTAL
from airflow_worker_insight.domain.reasons import PlacementReason
from airflow_worker_insight.domain.states import UNKNOWN_STATE, WorkerAvailability, WorkerState

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any

    from typing_extensions import Self


UNFILLED = re.compile(r"\{[A-Z_]+\}")
"""Placeholder that Airflow's UI left unfilled: ``{MAP_INDEX}`` of an unmapped task."""


class InvalidUrlError(ValueError):
    """Invalid URL; the message tells the user what is wrong with it."""


@dataclass(frozen=True, slots=True)
class PanelAddress:
    """Task instance that a panel shows.

    ``try_number`` is the try that the user came from, if any.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    try_number: int | None = None


def parse_panel_address(query: str) -> PanelAddress:
    """Parse the panel's query string.

    :param query: the raw query string, still percent-encoded
    :raises InvalidUrlError: if an ID is missing, repeated, too long or not valid text, or a number is invalid
    """
    params = _parse_query(query)
    map_index = _integer(params, "map_index", minimum=-1)
    return PanelAddress(
        dag_id=_id(params, "dag_id"),
        run_id=_id(params, "run_id"),
        task_id=_id(params, "task_id"),
        map_index=-1 if map_index is None else map_index,
        try_number=_integer(params, "try_number", minimum=0),
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
class ListAddress:
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


@dataclass(frozen=True, slots=True)
class WorkersAddress(ListAddress):
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
    group: str = ""
    """``queue``, ``hostname``, ``kind`` or ``label:KEY`` to list groups instead of workers."""
    order: str = "name"
    offset: int = 0


@dataclass(frozen=True, slots=True)
class WorkerAddress(ListAddress):
    """Hours of the timeline and page of the tries on a worker's page."""

    hours: int | None = None
    """``None`` for the fewest that cover the worker instance's lifetime, at most a day."""
    until: datetime | None = None
    """End of the timeline; ``None`` for now."""
    offset: int = 0


@dataclass(frozen=True, slots=True)
class AttemptsAddress(ListAddress):
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
class WaitingAddress(ListAddress):
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


def parse_waiting_address(query: str) -> WaitingAddress:
    """Parse the query string of the list of waiting tries.

    :raises InvalidUrlError: if a name or value is unknown, or a value is too long
    """
    params = _list_params(query, WaitingAddress)
    return WaitingAddress(
        state=_choice(params, "state", PlacementState.values()),
        dag_id=_text(params, "dag_id"),
        run_id=_text(params, "run_id"),
        task_id=_text(params, "task_id"),
        worker=_text(params, "worker"),
        reason=_choice(params, "reason", PlacementReason.values()),
        offset=_offset(params),
    )


def parse_workers_address(query: str) -> WorkersAddress:
    """Parse the query string of the list of workers.

    :raises InvalidUrlError: if a name or value is unknown, or a value is too long
    """
    params = _list_params(query, WorkersAddress)
    label = _text(params, "label")
    if label and not label.partition("=")[0].strip():
        raise InvalidUrlError("The label in the address is not written key=value.")
    group = _text(params, "group")
    if group and group not in ("queue", "hostname", "kind") and not re.fullmatch(r"label:.+", group):
        raise InvalidUrlError("The group in the address is none of queue, hostname, kind and label:KEY.")
    return WorkersAddress(
        state=_choice(params, "state", (*WorkerState.values(), UNKNOWN_STATE, ANY)),
        seen=_choice(params, "seen", SEEN),
        search=_text(params, "search"),
        kind=_text(params, "kind"),
        queue=_text(params, "queue"),
        label=label,
        hostname=_text(params, "hostname", max_length=255),
        availability=_choice(params, "availability", WorkerAvailability.values()),
        group=group,
        order=_choice(params, "order", [*WORKER_ORDERS, *(f"-{order}" for order in WORKER_ORDERS)]) or "name",
        offset=_offset(params),
    )


def parse_worker_address(query: str) -> WorkerAddress:
    """Parse the query string of a worker's page.

    :raises InvalidUrlError: if a name or value is unknown
    """
    params = _list_params(query, WorkerAddress)
    hours = _choice(params, "hours", [str(hours) for hours in HOURS])
    return WorkerAddress(
        hours=int(hours) if hours else None,
        until=_moment(params, "until"),
        offset=_offset(params),
    )


def parse_attempts_address(query: str, *, states: Collection[str]) -> AttemptsAddress:
    """Parse the query string of the list of tries.

    :param states: the states that a task instance may have
    :raises InvalidUrlError: if a name or value is unknown, a value is too long, or the window ends before it begins
    """
    params = _list_params(query, AttemptsAddress)
    since, until = _moment(params, "since"), _moment(params, "until")
    if since is not None and until is not None and since > until:
        raise InvalidUrlError("The window in the address ends before it begins.")
    return AttemptsAddress(
        dag_id=_text(params, "dag_id"),
        run_id=_text(params, "run_id"),
        task_id=_text(params, "task_id"),
        worker=_text(params, "worker"),
        hostname=_text(params, "hostname", max_length=255),
        state=_choice(params, "state", states),
        window=_choice(params, "window", WINDOWS),
        since=since,
        until=until,
        offset=_offset(params),
    )


# --- form data ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WrittenDecision:
    """Decision on a worker's availability, as the form on its page posts it."""

    availability: str
    note: str = ""


def parse_decision(body: bytes) -> WrittenDecision:
    """Parse the body that the form on a worker's page posts.

    :raises InvalidUrlError: if the body does not come from this form, or the note is too long
    """
    if len(body) > MAX_BODY:
        raise InvalidUrlError("The form is larger than any of these pages.")
    return decision_of(_parse_query(body.decode("latin-1"), plus_is_space=True))


def decision_of(form: Mapping[str, str]) -> WrittenDecision:
    """Build the decision from the form's fields.

    :raises InvalidUrlError: as :func:`parse_decision`
    """
    availability = form.get("availability", "")
    if availability not in WorkerAvailability.values():
        raise InvalidUrlError("A worker can be made available, draining or quarantined, and nothing else.")
    note = "".join(character if character.isprintable() else " " for character in form.get("note", "")).strip()
    if len(note) > MAX_NOTE_LENGTH:
        raise InvalidUrlError(f"The note is longer than {MAX_NOTE_LENGTH} characters.")
    return WrittenDecision(availability, note)


# --- parsing --------------------------------------------------------------------------------------------------------


def _format_value(value: object) -> str:
    return value.strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(value, datetime) else str(value)


def _parse_query(query: str, *, plus_is_space: bool = False) -> dict[str, str]:
    params: dict[str, str] = {}
    for pair in filter(None, (query.replace("+", " ") if plus_is_space else query).split("&")):
        name, _, value = pair.partition("=")
        try:
            name, value = unquote(name, errors="strict"), unquote(value, errors="strict")
        except UnicodeDecodeError:
            raise InvalidUrlError("The address is not valid UTF-8.") from None
        if name in params:
            raise InvalidUrlError(f"The address gives {name[:40]} twice.")
        params[name] = value
    return params


def _list_params(query: str, address: type[ListAddress]) -> dict[str, str]:
    """Return the parameters of a list's URL and reject unknown ones.

    A misspelt filter must not list everything. Airflow adds no parameters to these URLs, but it may add some to the
    panel's, which therefore accepts unknown ones.
    """
    params = _parse_query(query, plus_is_space=True)
    known = [field.name for field in fields(address)]
    for name in params:
        if name not in known:
            raise InvalidUrlError(f"“{name[:40]}” is no filter of this page; there are {', '.join(known)}.")
    return params


def _id(params: dict[str, str], name: str) -> str:
    value = params.get(name, "")
    if not value or UNFILLED.fullmatch(value):
        raise InvalidUrlError(f"The address does not say which {name} is meant.")
    if len(value) > MAX_ID_LENGTH:
        raise InvalidUrlError(f"The {name} in the address is longer than {MAX_ID_LENGTH} characters.")
    if "\0" in value:
        raise InvalidUrlError(f"The {name} in the address contains a NUL character.")
    return value


def _integer(params: dict[str, str], name: str, *, minimum: int) -> int | None:
    """Return an integer parameter, or ``None`` if it is missing or an unfilled placeholder."""
    value = params.get(name, "")
    if not value or UNFILLED.fullmatch(value):
        return None
    # Limit the digits first: int() of a megabyte of digits is slow.
    number = int(value) if re.fullmatch(r"-?[0-9]{1,10}", value) else None
    if number is None or not minimum <= number <= MAX_INTEGER:
        raise InvalidUrlError(f"The {name} in the address is not a whole number from {minimum} on.")
    return number


def _offset(params: dict[str, str]) -> int:
    """Return how many entries to skip.

    At most as many as are counted, because the database has to sort all skipped entries.
    """
    offset = _integer(params, "offset", minimum=0) or 0
    if offset > MAX_TOTAL:
        raise InvalidUrlError(f"The offset in the address is larger than {MAX_TOTAL:,}: look further with a filter.")
    return offset


def _text(params: dict[str, str], name: str, *, max_length: int = MAX_ID_LENGTH) -> str:
    """Return a text field without surrounding whitespace, which is part of no name."""
    value = params.get(name, "").strip()
    if len(value) > max_length:
        raise InvalidUrlError(f"The {name} in the address is longer than {max_length} characters.")
    if "\0" in value:
        raise InvalidUrlError(f"The {name} in the address contains a NUL character.")
    return value


def _choice(params: dict[str, str], name: str, values: Collection[str]) -> str:
    value = params.get(name, "")
    if value and value not in values:
        raise InvalidUrlError(f"The {name} in the address is none of {', '.join(sorted(filter(None, values)))}.")
    return value


def _moment(params: dict[str, str], name: str) -> datetime | None:
    """Return a timestamp parameter in UTC; without an offset it is taken as UTC."""
    value = params.get(name, "")
    if not value:
        return None
    try:
        # Python 3.10 does not parse "Z". A form's plus arrives as %2B, one typed into the URL as a space.
        moment = datetime.fromisoformat(value.replace(" ", "+").replace("Z", "+00:00"))
        moment = moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise InvalidUrlError(f"The {name} in the address is not a date and time, such as 2026-01-31T08:00Z.") from None
    # Leave room: callers add and subtract days.
    if not 1970 < moment.year < 9999:  # noqa: PLR2004
        raise InvalidUrlError(f"The {name} in the address is not within the years 1971 to 9998.")
    return moment
