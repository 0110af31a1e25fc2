"""What several pages are made of: notices, facts, states of workers, filters and the way to the next page."""

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
    """A sentence in a box: why something is not there, and what to do. ``tone`` is ``info`` or ``warning``."""

    tone: str
    title: str
    text: str
    command: str = ""


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of what a worker is; ``moment`` is set where the value is a point in time."""

    name: str
    text: str
    moment: formatting.Moment | None = None
    is_code: bool = False


@dataclass(frozen=True, slots=True)
class Ago:
    """A point in time as a list shows it: how long ago, and exactly where somebody asks."""

    moment: formatting.Moment
    text: str


def ago(value: datetime, now: datetime) -> Ago:
    """Return a point in time for a list."""
    moment = formatting.moment(value)
    assert moment is not None
    return Ago(moment, formatting.ago(value, now))


# --- workers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkerState:
    """Whether a worker lives: ``key`` decides its look, ``text`` is the word, ``reason`` says why it is so."""

    key: str
    text: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """How many tries run on a worker, or on several, of those that could. ``share`` is ready to print."""

    text: str
    title: str
    share: str
    is_full: bool


def worker_state(row: WorkerRow) -> WorkerState:
    """Return a worker's state in words."""
    return WorkerState(row.state or UNKNOWN_STATE, formatting.worker_state(row.state), row.state_reason or "")


def load(running: int | None, concurrency: int | None) -> Load | None:
    """Return how busy a worker is, or ``None`` where its engine does not tell."""
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
    """A filter in force: what it says, and the address without it."""

    text: str
    without: WorkersAddress | AttemptsAddress | WaitingAddress


@dataclass(frozen=True, slots=True)
class Option:
    """A choice of a form, or a link beside others of which one is in force."""

    value: str
    text: str
    is_chosen: bool


def options(chosen: str, *choices: tuple[str, str]) -> tuple[Option, ...]:
    """Return the choices of a field; what is in force is among them, also where it is none of those that are named."""
    known = [*choices, *([(chosen, chosen)] if chosen not in dict(choices) else [])]
    return tuple(Option(value, text, value == chosen) for value, text in known)


@dataclass(frozen=True, slots=True)
class Pages:
    """Where a page of a list is among its others, in words, and the addresses beside it."""

    range_text: str
    previous: WorkersAddress | WorkerAddress | AttemptsAddress | WaitingAddress | None
    following: WorkersAddress | WorkerAddress | AttemptsAddress | WaitingAddress | None


@dataclass(frozen=True, slots=True)
class Count:
    """How many entries a page of a list has and how many there are, or at least, where not all were counted."""

    shown: int
    total: int
    is_exact: bool = True


def pages(address: Address, count: Count, *, size: int, singular: str, plural: str) -> Pages:
    """Return the way to the pages beside this one.

    :param size: how many entries a full page has
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
