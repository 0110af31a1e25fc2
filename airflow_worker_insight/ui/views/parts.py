"""Parts that pages share: notices, facts, worker states, filters and pagination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from airflow_worker_insight.domain.states import UNKNOWN_STATE
from airflow_worker_insight.ui import formatting
from airflow_worker_insight.ui.query_params import AttemptsAddress, WaitingAddress, WorkerAddress, WorkersAddress

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_worker_insight.domain.workers import WorkerRow

Address = TypeVar("Address", WorkersAddress, WorkerAddress, AttemptsAddress, WaitingAddress)


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
    """Property of a worker; ``moment`` is set if the value is a point in time."""

    name: str
    text: str
    moment: formatting.Moment | None = None
    is_code: bool = False


@dataclass(frozen=True, slots=True)
class Ago:
    """Point in time in a list: how long ago, with the exact time on demand."""

    moment: formatting.Moment
    text: str


def ago(value: datetime, now: datetime) -> Ago:
    """Return a point in time as a list shows it, relative to ``now``."""
    moment = formatting.moment(value)
    assert moment is not None
    return Ago(moment, formatting.ago(value, now))


# --- workers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StateText:
    """State of a worker: ``key`` selects its style, ``text`` names it, ``reason`` explains it."""

    key: str
    text: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """Running tries and concurrency of one or several workers.

    ``share`` is the share of busy slots in percent, ready to print; empty if the concurrency is unknown.
    """

    text: str
    title: str
    share: str
    is_full: bool


def worker_state(row: WorkerRow) -> StateText:
    """Return the state of a worker as a page shows it."""
    return StateText(row.state or UNKNOWN_STATE, formatting.worker_state(row.state), row.state_reason or "")


def load(running: int | None, concurrency: int | None) -> Load | None:
    """Return the load of a worker, or ``None`` if its worker source does not report it."""
    if running is None:
        return None
    tries = formatting.count(running, "try runs", "tries run")
    if not concurrency:
        return Load(f"{running:,}", f"{tries} here now", "", is_full=False)
    share = min(1.0, running / concurrency)
    return Load(
        f"{running:,} / {concurrency:,}", f"{tries} here now, of {concurrency:,} at once", f"{share:.1%}", share == 1
    )


# --- filters and pages ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Filter:
    """Filter in force: its text, and the list without it."""

    text: str
    without: WorkersAddress | AttemptsAddress | WaitingAddress


@dataclass(frozen=True, slots=True)
class Option:
    """Choice of a form field, or one of several links of which one is in force."""

    value: str
    text: str
    is_chosen: bool


def options(chosen: str, *choices: tuple[str, str]) -> tuple[Option, ...]:
    """Return the choices of a field, and add the chosen value if it is not among them."""
    all_choices = [*choices, *([(chosen, chosen)] if chosen not in dict(choices) else [])]
    return tuple(Option(value, text, value == chosen) for value, text in all_choices)


@dataclass(frozen=True, slots=True)
class Pages:
    """Pagination of a list: the range in words, and the previous and next page."""

    range_text: str
    previous: WorkersAddress | WorkerAddress | AttemptsAddress | WaitingAddress | None
    following: WorkersAddress | WorkerAddress | AttemptsAddress | WaitingAddress | None


@dataclass(frozen=True, slots=True)
class Count:
    """Number of entries on a page of a list and in total.

    ``total`` is a lower bound unless ``is_exact``, because not all entries were counted.
    """

    shown: int
    total: int
    is_exact: bool = True


def pages(address: Address, count: Count, *, size: int, singular: str, plural: str) -> Pages:
    """Return the pagination of a list.

    :param size: the number of entries on a full page
    """
    shown, total = count.shown, count.total
    offset = address.offset
    before = max(0, min(offset - size, total - 1)) if offset > 0 else None
    after = offset + shown if shown and offset + shown < total else None
    return Pages(
        range_text=_range_text(count, offset, singular, plural),
        previous=None if before is None else address.changed(offset=before),
        following=None if after is None else address.changed(offset=after),
    )


def _range_text(count: Count, offset: int, singular: str, plural: str) -> str:
    if not count.shown:
        return ""
    least = "" if count.is_exact else "at least "
    if count.shown == count.total:
        return least + formatting.count(count.total, singular, plural)
    return f"{offset + 1:,} to {offset + count.shown:,} of {least}{count.total:,} {plural}"
