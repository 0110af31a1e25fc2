"""Parts that pages share: notices, facts, worker states, filters and pagination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from airflow_worker_insight.ui import formatting
from airflow_worker_insight.ui.query_params import (
    AttemptsParams,
    InsightParams,
    WaitingParams,
    WorkerParams,
    WorkersParams,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime

    from airflow_worker_insight.ui.query_params import ListParams

Params = TypeVar("Params", WorkersParams, WorkerParams, AttemptsParams, WaitingParams, InsightParams)


@dataclass(frozen=True, slots=True)
class Notice:
    """Box that says why something is missing and what to do.

    ``tone`` is ``info`` or ``warning``.
    """

    tone: str
    title: str
    text: str
    command: str = ""


@dataclass(frozen=True, slots=True)
class Fact:
    """Property of a worker; ``time`` is set if the value is a point in time."""

    name: str
    text: str
    time: datetime | None = None
    is_code: bool = False


@dataclass(frozen=True, slots=True)
class Hint:
    """Short text, with the full sentence as its tooltip."""

    text: str
    title: str


# --- workers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Load:
    """Running tries and concurrency of one or several workers.

    ``share`` is the share of busy slots in percent, ready to print; empty if the concurrency is unknown.
    """

    text: str
    title: str
    share: str
    is_full: bool


def load(running: int | None, concurrency: int | None) -> Load | None:
    """Return the load of a worker, or ``None`` if its worker source does not report it."""
    if running is None:
        return None
    tries = formatting.count(running, "running try", "running tries")
    if not concurrency:
        return Load(f"{running:,}", tries, "", is_full=False)
    share = min(1.0, running / concurrency)
    return Load(
        f"{running:,} / {concurrency:,}",
        f"{tries}, {formatting.count(concurrency, 'slot', 'slots')}",
        f"{share:.1%}",
        share == 1,
    )


# --- filters and pages ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Filter:
    """Filter in force: its text, and the list without it."""

    text: str
    without: ListParams


def filters(
    params: Params, texts: Mapping[str, str], terms: Mapping[str, Callable[[str], str]] | None = None
) -> Iterable[Filter]:
    """Return the filters in force, each with its value in words.

    :param texts: by parameter, the text in which to put the value
    :param terms: by parameter, the function that puts its value in words
    """
    for name, text in texts.items():
        value = getattr(params, name)
        if value:
            shown = (terms or {}).get(name, str)(value)
            yield Filter(text.format(shown), params.changed(**{name: ""}))


@dataclass(frozen=True, slots=True)
class Option:
    """Choice of a form field, or one of several links of which one is in force."""

    value: str
    text: str
    is_chosen: bool
    meaning: str = ""


MAX_DAG_SUGGESTIONS = 500
"""Maximum number of suggestions for the Dag field; more would make the page heavy."""


def options(chosen: str, *choices: tuple[str, str]) -> tuple[Option, ...]:
    """Return the choices of a field, and add the chosen value if it is not among them."""
    all_choices = [*choices, *([(chosen, chosen)] if chosen not in dict(choices) else [])]
    return tuple(Option(value, text, value == chosen) for value, text in all_choices)


@dataclass(frozen=True, slots=True)
class Pages:
    """Pagination of a list: the range in words, and the previous and next page."""

    range_text: str
    previous: ListParams | None
    following: ListParams | None


@dataclass(frozen=True, slots=True)
class Count:
    """Number of entries on a page of a list and in total.

    ``total`` is a lower bound unless ``is_exact``, because not all entries were counted.
    """

    shown: int
    total: int
    is_exact: bool = True


def pages(params: Params, count: Count, *, size: int, singular: str, plural: str) -> Pages:
    """Return the pagination of a list.

    :param size: the number of entries on a full page
    """
    shown, total = count.shown, count.total
    offset = params.offset
    before = max(0, min(offset - size, total - 1)) if offset > 0 else None
    after = offset + shown if shown and offset + shown < total else None
    return Pages(
        range_text=_range_text(count, offset, singular, plural),
        previous=None if before is None else params.changed(offset=before),
        following=None if after is None else params.changed(offset=after),
    )


def _range_text(count: Count, offset: int, singular: str, plural: str) -> str:
    if not count.shown:
        return ""
    least = "" if count.is_exact else "at least "
    if count.shown == count.total:
        return least + formatting.count(count.total, singular, plural)
    return f"{offset + 1:,} to {offset + count.shown:,} of {least}{count.total:,} {plural}"
