"""Read the panel's address: which task instance is meant. Pure functions for FastAPI and Flask alike.

The address is read by stricter and by laxer rules than a web framework's: Airflow 3.1 fills ``{RUN_ID}`` in without
encoding it, so that the ``+`` of ``2025-01-01T00:00:00+00:00`` arrives as it is. Here a plus is a plus. A space arrives
as ``%20``, and no form posts to these pages.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

MAX_ID_LENGTH = 250
"""As long as Airflow's own IDs may be."""

MAX_INTEGER = 2**31 - 1
"""What the databases' integer columns hold."""

UNFILLED = re.compile(r"\{[A-Z_]+\}")
"""What Airflow's UI leaves where it has no value to fill in: ``{MAP_INDEX}`` of an unmapped task."""


class BadAddress(ValueError):  # noqa: N818
    """An address that names no task instance; the message says to a reader what is wrong with it."""


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
    :raises BadAddress: when an ID is missing, given twice, too long or not text, or a number is none
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


def parse_offset(query: str) -> int:
    """Read where a page of a list begins; 0 where the query string says nothing of it."""
    return _integer(_parameters(query), "offset", minimum=0) or 0


def _parameters(query: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        try:
            name, value = unquote(name, errors="strict"), unquote(value, errors="strict")
        except UnicodeDecodeError:
            raise BadAddress("The address is not valid UTF-8.") from None
        if name in found:
            raise BadAddress(f"The address gives {name[:40]} twice.")
        found[name] = value
    return found


def _id(given: dict[str, str], name: str) -> str:
    value = given.get(name, "")
    if not value or UNFILLED.fullmatch(value):
        raise BadAddress(f"The address does not say which {name} is meant.")
    if len(value) > MAX_ID_LENGTH:
        raise BadAddress(f"The {name} in the address is longer than {MAX_ID_LENGTH} characters.")
    if "\0" in value:
        raise BadAddress(f"The {name} in the address contains a NUL character.")
    return value


def _integer(given: dict[str, str], name: str, *, minimum: int) -> int | None:
    """Return a number of the address, or ``None`` where it is not given or was left unfilled."""
    value = given.get(name, "")
    if not value or UNFILLED.fullmatch(value):
        return None
    # No more digits than the largest number has: int() of a megabyte of digits takes its time.
    number = int(value) if re.fullmatch(r"-?[0-9]{1,10}", value) else None
    if number is None or not minimum <= number <= MAX_INTEGER:
        raise BadAddress(f"The {name} in the address is not a whole number from {minimum} on.")
    return number
