"""Read and write the pages' addresses, which hold all of their state. Pure functions for FastAPI and Flask alike.

The panel's address is read by stricter and by laxer rules than a web framework's: Airflow 3.1 fills ``{RUN_ID}`` in
without encoding it, so that the ``+`` of ``2025-01-01T00:00:00+00:00`` arrives as it is. There a plus is a plus, and a
space arrives as ``%20``. The addresses of lists come from forms, where a plus is a space.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from airflow_worker_insight.domain.filters import LISTED_STATES, WORKER_ORDERS
from airflow_worker_insight.domain.limits import MAX_BODY, MAX_ID_LENGTH, MAX_INTEGER, MAX_NOTE_LENGTH, MAX_TOTAL
from airflow_worker_insight.domain.reasons import REASONS
from airflow_worker_insight.domain.states import AVAILABILITIES, UNKNOWN_STATE, WORKER_STATES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any

    from typing_extensions import Self


UNFILLED = re.compile(r"\{[A-Z_]+\}")
"""What Airflow's UI leaves where it has no value to fill in: ``{MAP_INDEX}`` of an unmapped task."""


class InvalidUrlError(ValueError):
    """An address that cannot be followed; the message says to a reader what is wrong with it."""


@dataclass(frozen=True, slots=True)
class PanelAddress:
    """The task instance that a panel shows; ``try_number`` is the try that the reader came from, if any."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    try_number: int | None = None


def parse_panel_address(query: str) -> PanelAddress:
    """Read the panel's query string.

    :param query: as it came, still percent-encoded
    :raises InvalidUrlError: when an ID is missing, given twice, too long or not text, or a number is none
    """
    given = _parameters(query)
    map_index = _integer(given, "map_index", minimum=-1)
    return PanelAddress(
        dag_id=_id(given, "dag_id"),
        run_id=_id(given, "run_id"),
        task_id=_id(given, "task_id"),
        map_index=-1 if map_index is None else map_index,
        try_number=_integer(given, "try_number", minimum=0),
    )


# --- the addresses of lists -----------------------------------------------------------------------------------------

ANY = "any"
"""Written where nothing is to be left out, of what is limited by default."""

SEEN = {"": timedelta(days=1), "7d": timedelta(days=7), "30d": timedelta(days=30), ANY: None}
"""How long ago a worker that is listed was last seen; the first is the default."""

WINDOWS = {
    "1h": timedelta(hours=1),
    "6h": timedelta(hours=6),
    "": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
    ANY: None,
}
"""How long ago a try that is listed started."""

HOURS = (1, 6, 24, 168)
"""How many hours a worker's timeline may show."""


@dataclass(frozen=True, slots=True)
class ListAddress:
    """An address whose fields are the parameters of its query string; what has its default value is not written."""

    def parameters(self) -> list[tuple[str, str]]:
        """Return the names and values to write."""
        given = [(one.name, getattr(self, one.name), one.default) for one in fields(self)]
        return [(name, _written(value)) for name, value, default in given if value != default]

    def query(self) -> str:
        """Return the query string with its question mark, or nothing where all is as by default."""
        written = "&".join(f"{name}={quote(value, safe='')}" for name, value in self.parameters())
        return f"?{written}" if written else ""

    def changed(self, **values: Any) -> Self:
        """Return the address of the first page of what is listed with other values."""
        return replace(self, **{"offset": 0, **values})


@dataclass(frozen=True, slots=True)
class WorkersAddress(ListAddress):
    """Which workers are listed and how. Empty text does not filter."""

    state: str = ""
    """A state, ``unknown`` or :data:`ANY`; empty for all but those that left in order."""
    seen: str = ""
    search: str = ""
    kind: str = ""
    queue: str = ""
    label: str = ""
    """Written ``key=value``."""
    hostname: str = ""
    availability: str = ""
    group: str = ""
    """``queue``, ``hostname``, ``kind`` or ``label:KEY``: groups are listed and not workers."""
    order: str = "name"
    offset: int = 0


@dataclass(frozen=True, slots=True)
class WorkerAddress(ListAddress):
    """What the page of a worker shows: which hours of its timeline, and which page of its tries."""

    hours: int | None = None
    """``None`` is as many as hold the worker's life, and a day at the most."""
    until: datetime | None = None
    """Where the timeline ends; ``None`` is now."""
    offset: int = 0


@dataclass(frozen=True, slots=True)
class AttemptsAddress(ListAddress):
    """Which tries are listed. Empty text does not filter."""

    dag_id: str = ""
    run_id: str = ""
    task_id: str = ""
    worker: str = ""
    """A worker's ID or its name."""
    hostname: str = ""
    state: str = ""
    window: str = ""
    """How long ago they started; does not count where ``since`` or ``until`` is given."""
    since: datetime | None = None
    until: datetime | None = None
    offset: int = 0


@dataclass(frozen=True, slots=True)
class WaitingAddress(ListAddress):
    """Which of the tries that wait are listed. Empty text does not filter."""

    state: str = ""
    """``waiting`` for a worker, or ``placed`` on one that has not started it."""
    dag_id: str = ""
    run_id: str = ""
    task_id: str = ""
    worker: str = ""
    """The ID or the name of the worker that it is placed on."""
    reason: str = ""
    offset: int = 0


def parse_waiting_address(query: str) -> WaitingAddress:
    """Read the query string of the list of tries that wait.

    :raises InvalidUrlError: when a name or a value is none that there is, or a value is too long
    """
    given = _given(query, WaitingAddress)
    return WaitingAddress(
        state=_one_of(given, "state", LISTED_STATES),
        dag_id=_text(given, "dag_id"),
        run_id=_text(given, "run_id"),
        task_id=_text(given, "task_id"),
        worker=_text(given, "worker"),
        reason=_one_of(given, "reason", REASONS),
        offset=_offset(given),
    )


def parse_workers_address(query: str) -> WorkersAddress:
    """Read the query string of the list of workers.

    :raises InvalidUrlError: when a name or a value is none that there is, or a value is too long
    """
    given = _given(query, WorkersAddress)
    label = _text(given, "label")
    if label and not label.partition("=")[0].strip():
        raise InvalidUrlError("The label in the address is not written key=value.")
    group = _text(given, "group")
    if group and group not in ("queue", "hostname", "kind") and not re.fullmatch(r"label:.+", group):
        raise InvalidUrlError("The group in the address is none of queue, hostname, kind and label:KEY.")
    return WorkersAddress(
        state=_one_of(given, "state", (*WORKER_STATES, UNKNOWN_STATE, ANY)),
        seen=_one_of(given, "seen", SEEN),
        search=_text(given, "search"),
        kind=_text(given, "kind"),
        queue=_text(given, "queue"),
        label=label,
        hostname=_text(given, "hostname", longest=255),
        availability=_one_of(given, "availability", AVAILABILITIES),
        group=group,
        order=_one_of(given, "order", [*WORKER_ORDERS, *(f"-{order}" for order in WORKER_ORDERS)]) or "name",
        offset=_offset(given),
    )


def parse_worker_address(query: str) -> WorkerAddress:
    """Read the query string of a worker's page.

    :raises InvalidUrlError: when a name or a value is none that there is
    """
    given = _given(query, WorkerAddress)
    hours = _one_of(given, "hours", [str(hours) for hours in HOURS])
    return WorkerAddress(
        hours=int(hours) if hours else None,
        until=_moment(given, "until"),
        offset=_offset(given),
    )


def parse_attempts_address(query: str, *, states: Collection[str]) -> AttemptsAddress:
    """Read the query string of the list of tries.

    :param states: the states that a task instance may have
    :raises InvalidUrlError: when a name or value does not exist, is too long, or the window ends before it begins
    """
    given = _given(query, AttemptsAddress)
    since, until = _moment(given, "since"), _moment(given, "until")
    if since is not None and until is not None and since > until:
        raise InvalidUrlError("The window in the address ends before it begins.")
    return AttemptsAddress(
        dag_id=_text(given, "dag_id"),
        run_id=_text(given, "run_id"),
        task_id=_text(given, "task_id"),
        worker=_text(given, "worker"),
        hostname=_text(given, "hostname", longest=255),
        state=_one_of(given, "state", states),
        window=_one_of(given, "window", WINDOWS),
        since=since,
        until=until,
        offset=_offset(given),
    )


# --- what a form posts ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WrittenDecision:
    """What a person decided of a worker, as the form on its page posts it."""

    availability: str
    note: str = ""


def parse_decision(body: bytes) -> WrittenDecision:
    """Read what the form on a worker's page posts.

    :raises InvalidUrlError: when it is not what the form posts, or the note is too long
    """
    if len(body) > MAX_BODY:
        raise InvalidUrlError("The form is larger than any of these pages.")
    return decision_of(_parameters(body.decode("latin-1"), plus_is_space=True))


def decision_of(given: Mapping[str, str]) -> WrittenDecision:
    """Read the same from a form's fields.

    :raises InvalidUrlError: as :func:`parse_decision`
    """
    availability = given.get("availability", "")
    if availability not in AVAILABILITIES:
        raise InvalidUrlError("A worker can be made available, draining or quarantined, and nothing else.")
    note = "".join(letter if letter.isprintable() else " " for letter in given.get("note", "")).strip()
    if len(note) > MAX_NOTE_LENGTH:
        raise InvalidUrlError(f"The note is longer than {MAX_NOTE_LENGTH} characters.")
    return WrittenDecision(availability, note)


# --- reading --------------------------------------------------------------------------------------------------------


def _written(value: object) -> str:
    return value.strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(value, datetime) else str(value)


def _parameters(query: str, *, plus_is_space: bool = False) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in filter(None, (query.replace("+", " ") if plus_is_space else query).split("&")):
        name, _, value = pair.partition("=")
        try:
            name, value = unquote(name, errors="strict"), unquote(value, errors="strict")
        except UnicodeDecodeError:
            raise InvalidUrlError("The address is not valid UTF-8.") from None
        if name in found:
            raise InvalidUrlError(f"The address gives {name[:40]} twice.")
        found[name] = value
    return found


def _given(query: str, address: type[ListAddress]) -> dict[str, str]:
    """Return the parameters of a list's address; a misspelt filter must not list everything.

    Airflow adds nothing to these addresses. To the panel's it may, so that one takes whatever else is there.
    """
    given = _parameters(query, plus_is_space=True)
    names = [one.name for one in fields(address)]
    for name in given:
        if name not in names:
            raise InvalidUrlError(f"“{name[:40]}” is no filter of this page; there are {', '.join(names)}.")
    return given


def _id(given: dict[str, str], name: str) -> str:
    value = given.get(name, "")
    if not value or UNFILLED.fullmatch(value):
        raise InvalidUrlError(f"The address does not say which {name} is meant.")
    if len(value) > MAX_ID_LENGTH:
        raise InvalidUrlError(f"The {name} in the address is longer than {MAX_ID_LENGTH} characters.")
    if "\0" in value:
        raise InvalidUrlError(f"The {name} in the address contains a NUL character.")
    return value


def _integer(given: dict[str, str], name: str, *, minimum: int) -> int | None:
    """Return a number of the address, or ``None`` where it is not given or was left unfilled."""
    value = given.get(name, "")
    if not value or UNFILLED.fullmatch(value):
        return None
    # No more digits than the largest number has: int() of a megabyte of digits takes its time.
    number = int(value) if re.fullmatch(r"-?[0-9]{1,10}", value) else None
    if number is None or not minimum <= number <= MAX_INTEGER:
        raise InvalidUrlError(f"The {name} in the address is not a whole number from {minimum} on.")
    return number


def _offset(given: dict[str, str]) -> int:
    """Return how many entries are skipped: no more than are counted, because all that are skipped have to be sorted."""
    offset = _integer(given, "offset", minimum=0) or 0
    if offset > MAX_TOTAL:
        raise InvalidUrlError(f"The offset in the address is larger than {MAX_TOTAL:,}: look further with a filter.")
    return offset


def _text(given: dict[str, str], name: str, *, longest: int = MAX_ID_LENGTH) -> str:
    """Return what was written into a field of a form; what is around it is no part of any name."""
    value = given.get(name, "").strip()
    if len(value) > longest:
        raise InvalidUrlError(f"The {name} in the address is longer than {longest} characters.")
    if "\0" in value:
        raise InvalidUrlError(f"The {name} in the address contains a NUL character.")
    return value


def _one_of(given: dict[str, str], name: str, values: Collection[str]) -> str:
    value = given.get(name, "")
    if value and value not in values:
        raise InvalidUrlError(f"The {name} in the address is none of {', '.join(sorted(filter(None, values)))}.")
    return value


def _moment(given: dict[str, str], name: str) -> datetime | None:
    """Return a point in time of the address, in UTC where it names no offset."""
    value = given.get(name, "")
    if not value:
        return None
    try:
        # Python 3.10 does not know the Z. A form's plus came as %2B; one in an address by hand came as a space.
        found = datetime.fromisoformat(value.replace(" ", "+").replace("Z", "+00:00"))
        found = found.replace(tzinfo=timezone.utc) if found.tzinfo is None else found.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise InvalidUrlError(f"The {name} in the address is not a date and time, such as 2026-01-31T08:00Z.") from None
    # Days are taken from it and added to it.
    if not 1970 < found.year < 9999:  # noqa: PLR2004
        raise InvalidUrlError(f"The {name} in the address is not within the years 1971 to 9998.")
    return found
