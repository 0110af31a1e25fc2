"""The list of workers: the fleet at a glance, filtered, sorted, or grouped by what workers have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.limits import MAX_TOTAL
from airflow_worker_insight.domain.states import AVAILABLE, LOST, OFFLINE, ONLINE, UNKNOWN_STATE, UNRESPONSIVE
from airflow_worker_insight.ui import formatting
from airflow_worker_insight.ui.query_params import ANY, WorkersAddress
from airflow_worker_insight.ui.views.availability import Decision, decision
from airflow_worker_insight.ui.views.parts import (
    Ago,
    Count,
    Filter,
    Load,
    Notice,
    Option,
    Pages,
    WorkerState,
    ago,
    load,
    options,
    pages,
    worker_state,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from airflow_worker_insight.domain.workers import Change, Group, SourceStatus, WorkerRow

PAGE_SIZE, GROUPS_PAGE_SIZE = 100, 200
"""How many workers, or groups of them, are on a page."""

REFRESH_SECONDS, REFRESH_IDLE_SECONDS = 10, 20
"""How often the list asks again: while a worker lives or there is none yet, and while all that fit are gone."""

STATES = (ONLINE, UNRESPONSIVE, LOST, UNKNOWN_STATE, OFFLINE)
"""In the order in which they matter to an operator."""

LISTED = frozenset({ONLINE, UNRESPONSIVE, LOST, UNKNOWN_STATE})
"""The states that are listed by default: a worker that left in order is nobody's concern."""

MAX_QUEUES = 3
"""More queues than these are counted in a row; the worker's page names them all."""

REFRESH_COMMAND = "airflow-worker-insight refresh"

_ENGINES = {
    "celery": "Celery’s workers",
    "edge": "Edge workers",
    "jobs": "Local workers",
    "tries": "Pods and the workers of other executors",
}
_KINDS = ("celery", "local", "kubernetes", "edge")
_SEEN = (("", "Last 24 hours"), ("7d", "Last 7 days"), ("30d", "Last 30 days"), (ANY, "Any time"))
_AVAILABILITIES = (("", "Any"), ("available", "Available"), ("draining", "Draining"), ("quarantined", "Quarantined"))
_COLUMNS = (
    ("state", "State"),
    ("name", "Worker"),
    ("kind", "Kind"),
    ("hostname", "Host"),
    ("", "Queues"),
    ("running", "Running"),
    ("last_seen_at", "Last seen"),
)
_GROUPS = {"queue": "Queue", "hostname": "Host", "kind": "Kind"}


@dataclass(frozen=True, slots=True)
class StateChip:
    """How many workers are in a state; leads to them, and back where only they are listed."""

    key: str
    text: str
    count: str
    address: WorkersAddress
    is_chosen: bool


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading; ``address`` sorts by it, the other way round where that is so already."""

    text: str
    address: WorkersAddress | None
    direction: str
    """``ascending`` or ``descending`` where the list is sorted by it."""


@dataclass(frozen=True, slots=True)
class WorkerLine:
    """One worker."""

    worker_id: str
    name: str
    kind: str
    hostname: str
    state: WorkerState
    decision: Decision | None
    """What somebody decided of it; ``None`` where nothing keeps work away."""
    queues: tuple[str, ...]
    more_queues: str
    load: Load | None
    last_seen: Ago


@dataclass(frozen=True, slots=True)
class Share:
    """The workers of a group in one state; ``x`` and ``width`` are percentages of its bar, ready to print."""

    key: str
    text: str
    x: str
    width: str


@dataclass(frozen=True, slots=True)
class GroupLine:
    """Workers that have something in common; ``address`` lists them."""

    name: str
    address: WorkersAddress | None
    """``None`` where they have in common that nothing is known."""
    count: str
    shares: tuple[Share, ...]
    text: str
    load: Load | None


@dataclass(frozen=True, slots=True)
class WorkersPage:
    """The list of workers."""

    address: WorkersAddress
    chips: tuple[StateChip, ...]
    sentence: str
    """Which workers are listed; empty where there is none at all."""
    everything: WorkersAddress | None
    """Where nothing is left out; ``None`` here."""
    filters: tuple[Filter, ...]
    columns: tuple[Column, ...]
    lines: tuple[WorkerLine, ...]
    groups: tuple[GroupLine, ...]
    group_name: str
    group_options: tuple[Option, ...]
    kind_options: tuple[Option, ...]
    seen_options: tuple[Option, ...]
    availability_options: tuple[Option, ...]
    pages: Pages
    troubles: tuple[Notice, ...]
    """What keeps the states from being known."""
    notice: Notice | None
    refresh_seconds: int


@dataclass(frozen=True, slots=True)
class Listing:
    """What the store says of the workers that were asked for; of ``rows`` and ``groups`` one is empty."""

    rows: Sequence[WorkerRow]
    groups: Sequence[Group]
    total: int
    """How many workers, or groups, there are on all pages."""
    counts: Mapping[str | None, int]
    """Workers by state, whichever states are listed."""
    decisions: Mapping[int, Change]
    """The decision in force on each of the rows that are not available, by ``ref``."""
    label_keys: Sequence[str]
    any_worker: bool
    """Whether there is any worker at all, of whatever age."""
    engines: Sequence[SourceStatus]


def listed_states(address: WorkersAddress) -> frozenset[str] | None:
    """Return the states that an address lists; ``None`` for all."""
    if address.state == ANY:
        return None
    return frozenset({address.state}) if address.state else LISTED


def build_workers_page(
    address: WorkersAddress, listing: Listing, *, now: datetime, looks_by_itself: bool = True
) -> WorkersPage:
    """Return the list of workers.

    :param looks_by_itself: whether Airflow's web server looks at the fleet, and not a command
    """
    shown = len(listing.groups or listing.rows)
    alive = listing.counts.get(ONLINE, 0) + listing.counts.get(UNRESPONSIVE, 0)
    everything = WorkersAddress(state=ANY, seen=ANY, group=address.group, order=address.order)
    return WorkersPage(
        address=address,
        chips=tuple(_chip(state, address, listing.counts) for state in STATES),
        sentence=_sentence(address) if listing.any_worker else "",
        everything=everything if address.changed() != everything else None,
        filters=tuple(_filters(address)),
        columns=tuple(_column(name, text, address) for name, text in _COLUMNS),
        lines=tuple(_line(row, listing.decisions.get(row.ref), now) for row in listing.rows),
        groups=tuple(_group(group, address) for group in listing.groups),
        group_name=_group_name(address.group),
        group_options=options(
            address.group,
            ("", "Nothing"),
            *_GROUPS.items(),
            *((f"label:{key}", f"Label {key}") for key in listing.label_keys),
        ),
        kind_options=options(address.kind, ("", "Any"), *((kind, formatting.kind(kind)) for kind in _KINDS)),
        seen_options=options(address.seen, *_SEEN),
        availability_options=options(address.availability, *_AVAILABILITIES),
        pages=_pages(address, listing, shown),
        troubles=tuple(_troubles(listing, now)),
        notice=None if shown else _notice(address, listing, looks_by_itself=looks_by_itself),
        refresh_seconds=REFRESH_SECONDS if alive or not listing.any_worker else REFRESH_IDLE_SECONDS,
    )


def _pages(address: WorkersAddress, listing: Listing, shown: int) -> Pages:
    if not address.group:
        count = Count(shown, listing.total, listing.total < MAX_TOTAL)
        return pages(address, count, size=PAGE_SIZE, singular="worker", plural="workers")
    # Of more workers than are counted the latest are grouped. A worker of several queues is in several groups.
    states = listed_states(address)
    grouped = sum(
        count for state, count in listing.counts.items() if states is None or (state or UNKNOWN_STATE) in states
    )
    count = Count(shown, min(listing.total, MAX_TOTAL), max(grouped, listing.total) < MAX_TOTAL)
    return pages(address, count, size=GROUPS_PAGE_SIZE, singular="group", plural="groups")


def _chip(state: str, address: WorkersAddress, counts: Mapping[str | None, int]) -> StateChip:
    is_chosen = address.state == state
    return StateChip(
        key=state,
        text=formatting.worker_state(state),
        count=f"{counts.get(None if state == UNKNOWN_STATE else state, 0):,}",
        address=address.changed(state="" if is_chosen else state),
        is_chosen=is_chosen,
    )


def _sentence(address: WorkersAddress) -> str:
    """Say which workers are listed, before further filters."""
    seen = "at any time" if address.seen == ANY else f"in the {dict(_SEEN)[address.seen].lower()}"
    if address.state == ANY:
        return "All workers that were ever seen." if address.seen == ANY else f"All workers that were seen {seen}."
    if address.state in (ONLINE, UNRESPONSIVE):
        return f"Workers that are {address.state} now."
    if address.state:
        state = (
            "of which nothing tells whether they live"
            if address.state == UNKNOWN_STATE
            else f"that are {address.state}"
        )
        return f"Workers {state}, last seen {seen}."
    return f"Workers that live, and those that were lost and last seen {seen}. Not those that left in order."


def _filters(address: WorkersAddress) -> Iterable[Filter]:
    says = (
        ("search", "Contains “{}”"),
        ("kind", "Kind {}"),
        ("queue", "Queue {}"),
        ("label", "Label {}"),
        ("hostname", "Host {}"),
        ("availability", "Availability {}"),
    )
    for name, text in says:
        value = getattr(address, name)
        if value:
            shown = formatting.kind(value) if name == "kind" else value
            yield Filter(text.format(shown), address.changed(**{name: ""}))


def _column(name: str, text: str, address: WorkersAddress) -> Column:
    if not name:
        return Column(text, None, "")
    is_first, is_reversed = address.order == name, address.order == f"-{name}"
    # What is new and what is busy comes first; everything else begins at A.
    begins = f"-{name}" if name in ("running", "last_seen_at") else name
    order = f"-{name}" if is_first else name if is_reversed else begins
    return Column(
        text,
        address.changed(order=order),
        "ascending" if is_first else "descending" if is_reversed else "",
    )


def _line(row: WorkerRow, latest: Change | None, now: datetime) -> WorkerLine:
    queues = row.queues or ()
    rest = len(queues) - MAX_QUEUES
    return WorkerLine(
        worker_id=row.worker_id,
        name=row.name,
        kind=formatting.kind(row.kind),
        hostname=row.hostname,
        state=worker_state(row),
        decision=None if row.availability == AVAILABLE else decision(row.availability, latest),
        queues=tuple(queues[:MAX_QUEUES]),
        more_queues=f"and {rest:,} more" if rest > 0 else "",
        # What it ran when it was last heard of says nothing of a worker that is gone.
        load=load(row.running, row.concurrency) if row.state not in (LOST, OFFLINE) else None,
        last_seen=ago(row.last_seen_at, now),
    )


def _group(group: Group, address: WorkersAddress) -> GroupLine:
    total = sum(group.states.values())
    shares = []
    reached = 0
    for state in STATES:
        count = group.states.get(None if state == UNKNOWN_STATE else state, 0)
        if count:
            text = f"{count:,} {state}"
            shares.append(Share(state, text, f"{100 * reached / total:.2f}%", f"{100 * count / total:.2f}%"))
            reached += count
    return GroupLine(
        name=group.name or "Not known",
        address=_members(group.name, address) if group.name else None,
        count=formatting.count(total, "worker", "workers"),
        shares=tuple(shares),
        text=", ".join(share.text for share in shares),
        load=load(group.running, group.concurrency) if group.concurrency or group.running else None,
    )


def _members(name: str, address: WorkersAddress) -> WorkersAddress:
    by, _, key = address.group.partition(":")
    changed = {"label": f"{key}={name}"} if by == "label" else {by: name}
    return address.changed(group="", **changed)


def _group_name(group: str) -> str:
    by, _, key = group.partition(":")
    return f"Label {key}" if key else _GROUPS.get(by, "")


def _troubles(listing: Listing, now: datetime) -> Iterable[Notice]:
    """Say what keeps workers, or their states, from being known."""
    if listing.any_worker and not any(one.is_current for one in listing.engines):
        latest = max((one.looked_at for one in listing.engines if one.looked_at), default=None)
        when = "never looked at" if latest is None else f"last looked at {formatting.ago(latest, now)}"
        text = (
            f"Whether workers live was {when}. An API server of Airflow 3 does that by itself; by hand, or "
            "every minute on Airflow 2.11, this does:"
        )
        yield Notice("warning", "Nobody looks at the workers", text, REFRESH_COMMAND)
    for one in listing.engines:
        if one.error and one.is_current:
            yield Notice("warning", f"{_ENGINES.get(one.name, one.name)} cannot be asked", one.error)


def _notice(address: WorkersAddress, listing: Listing, *, looks_by_itself: bool) -> Notice:
    if not listing.any_worker:
        text = (
            "A worker is listed as soon as its executor tells of it, or when it starts its first try. If workers run "
            "and none is listed, look whether a scheduler runs and whether this page’s server reaches the broker."
        )
        if looks_by_itself:
            return Notice("info", "No worker is known yet", text)
        text += " On this version of Airflow the fleet is looked at by a command, which is best run every minute:"
        return Notice("info", "No worker is known yet", text, REFRESH_COMMAND)
    if address.offset:
        return Notice("info", "", f"There are no more {'groups' if address.group else 'workers'} here.")
    if list(_filters(address)):
        return Notice("info", "No worker fits", "No worker fits all of these filters.")
    if address.group and listing.counts:
        return Notice("info", "", "None of these workers is in such a group.")
    return Notice("info", "No such worker", "No worker is in this state now. Older ones are among all workers.")
