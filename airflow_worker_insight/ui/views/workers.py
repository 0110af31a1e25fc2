"""List of workers: filtered, sorted, or grouped by queue, host, kind or label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.limits import MAX_TOTAL
from airflow_worker_insight.domain.states import UNKNOWN_STATE, WorkerAvailability, WorkerState
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
    StateText,
    ago,
    load,
    options,
    pages,
    worker_state,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from airflow_worker_insight.domain.workers import SourceStatus, WorkerChange, WorkerGroup, WorkerRow

PAGE_SIZE, GROUPS_PAGE_SIZE = 100, 200
"""Numbers of workers and of groups on a page."""

REFRESH_SECONDS, REFRESH_IDLE_SECONDS = 10, 20
"""Refresh intervals in seconds.

The first applies while a listed worker is alive or no worker is known yet, the second once all listed ones are gone.
"""

STATES = (WorkerState.ONLINE, WorkerState.UNRESPONSIVE, WorkerState.LOST, UNKNOWN_STATE, WorkerState.OFFLINE)
"""Worker states, the most relevant to an operator first."""

LISTED = frozenset({WorkerState.ONLINE, WorkerState.UNRESPONSIVE, WorkerState.LOST, UNKNOWN_STATE})
"""States listed by default; workers that shut down gracefully need no attention."""

MAX_QUEUES = 3
"""Queues named in a row; further ones are counted, and the worker's page names them all."""

REFRESH_COMMAND = "airflow-worker-insight refresh"

_SOURCE_NAMES = {
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
    """Number of workers in a state; a link that sets the filter by state or clears it."""

    key: str
    text: str
    count: str
    address: WorkersAddress
    is_chosen: bool


@dataclass(frozen=True, slots=True)
class Column:
    """Heading of a column; ``address`` sorts by it, or reverses the order if it is sorted so."""

    text: str
    address: WorkersAddress | None
    direction: str
    """``ascending`` or ``descending`` if the list is sorted by this column, else empty."""


@dataclass(frozen=True, slots=True)
class WorkerLine:
    """Row of the list: one worker."""

    worker_id: str
    name: str
    kind: str
    hostname: str
    state: StateText
    decision: Decision | None
    """Drain or quarantine decision in force; ``None`` if the worker is available."""
    queues: tuple[str, ...]
    more_queues: str
    load: Load | None
    last_seen: Ago


@dataclass(frozen=True, slots=True)
class Share:
    """Share of a group's workers that are in one state.

    ``x`` and ``width`` are percentages of the group's bar, ready to print.
    """

    key: str
    text: str
    x: str
    width: str


@dataclass(frozen=True, slots=True)
class GroupLine:
    """Row of the grouped list: one group; ``address`` lists its workers."""

    name: str
    address: WorkersAddress | None
    """``None`` for the group of workers whose value is unknown."""
    count: str
    shares: tuple[Share, ...]
    text: str
    load: Load | None


@dataclass(frozen=True, slots=True)
class WorkersPage:
    """Page with the list of workers."""

    address: WorkersAddress
    chips: tuple[StateChip, ...]
    sentence: str
    """Description of the listed workers; empty if no worker is known."""
    everything: WorkersAddress | None
    """Unfiltered list; ``None`` if this is it."""
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
    """Reasons why worker states may be missing or stale."""
    notice: Notice | None
    refresh_seconds: int


@dataclass(frozen=True, slots=True)
class Listing:
    """Query results for the list; either ``rows`` or ``groups`` is empty."""

    rows: Sequence[WorkerRow]
    groups: Sequence[WorkerGroup]
    total: int
    """Number of workers, or of groups, on all pages."""
    counts: Mapping[str | None, int]
    """Number of workers by state, including states that are not listed."""
    decisions: Mapping[int, WorkerChange]
    """Decision in force for each row whose worker is not available, by ``ref``."""
    label_keys: Sequence[str]
    any_worker: bool
    """Whether any worker is known, regardless of age."""
    engines: Sequence[SourceStatus]


def listed_states(address: WorkersAddress) -> frozenset[str] | None:
    """Return the states to list; ``None`` for all."""
    if address.state == ANY:
        return None
    return frozenset({address.state}) if address.state else LISTED


def build_workers_page(
    address: WorkersAddress, listing: Listing, *, now: datetime, looks_by_itself: bool = True
) -> WorkersPage:
    """Return the list of workers.

    :param looks_by_itself: whether Airflow's web server polls the workers by itself, so that no command has to
    """
    shown = len(listing.groups or listing.rows)
    alive = listing.counts.get(WorkerState.ONLINE, 0) + listing.counts.get(WorkerState.UNRESPONSIVE, 0)
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
        troubles=tuple(_warnings(listing, now)),
        notice=None if shown else _notice(address, listing, looks_by_itself=looks_by_itself),
        refresh_seconds=REFRESH_SECONDS if alive or not listing.any_worker else REFRESH_IDLE_SECONDS,
    )


def _pages(address: WorkersAddress, listing: Listing, shown: int) -> Pages:
    if not address.group:
        count = Count(shown, listing.total, listing.total < MAX_TOTAL)
        return pages(address, count, size=PAGE_SIZE, singular="worker", plural="workers")
    # Only the latest workers are grouped if there are more than are counted. A worker is in one group per queue.
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
    """Describe which workers are listed, before further filters."""
    seen = "at any time" if address.seen == ANY else f"in the {dict(_SEEN)[address.seen].lower()}"
    if address.state == ANY:
        return "All workers that were ever seen." if address.seen == ANY else f"All workers that were seen {seen}."
    if address.state in (WorkerState.ONLINE, WorkerState.UNRESPONSIVE):
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
    texts = (
        ("search", "Contains “{}”"),
        ("kind", "Kind {}"),
        ("queue", "Queue {}"),
        ("label", "Label {}"),
        ("hostname", "Host {}"),
        ("availability", "Availability {}"),
    )
    for name, text in texts:
        value = getattr(address, name)
        if value:
            shown = formatting.kind(value) if name == "kind" else value
            yield Filter(text.format(shown), address.changed(**{name: ""}))


def _column(name: str, text: str, address: WorkersAddress) -> Column:
    if not name:
        return Column(text, None, "")
    is_first, is_reversed = address.order == name, address.order == f"-{name}"
    # The most recent and the busiest come first; other columns start in ascending order.
    first_order = f"-{name}" if name in ("running", "last_seen_at") else name
    order = f"-{name}" if is_first else name if is_reversed else first_order
    return Column(
        text,
        address.changed(order=order),
        "ascending" if is_first else "descending" if is_reversed else "",
    )


def _line(row: WorkerRow, latest: WorkerChange | None, now: datetime) -> WorkerLine:
    queues = row.queues or ()
    hidden = len(queues) - MAX_QUEUES
    return WorkerLine(
        worker_id=row.worker_id,
        name=row.name,
        kind=formatting.kind(row.kind),
        hostname=row.hostname,
        state=worker_state(row),
        decision=None if row.availability == WorkerAvailability.AVAILABLE else decision(row.availability, latest),
        queues=tuple(queues[:MAX_QUEUES]),
        more_queues=f"and {hidden:,} more" if hidden > 0 else "",
        # The last reported load says nothing about a worker that is gone.
        load=load(row.running, row.concurrency) if row.state not in (WorkerState.LOST, WorkerState.OFFLINE) else None,
        last_seen=ago(row.last_seen_at, now),
    )


def _group(group: WorkerGroup, address: WorkersAddress) -> GroupLine:
    total = sum(group.states.values())
    shares = []
    offset = 0
    for state in STATES:
        count = group.states.get(None if state == UNKNOWN_STATE else state, 0)
        if count:
            text = f"{count:,} {state}"
            shares.append(Share(state, text, f"{100 * offset / total:.2f}%", f"{100 * count / total:.2f}%"))
            offset += count
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


def _warnings(listing: Listing, now: datetime) -> Iterable[Notice]:
    """Say why workers, or their states, may be missing or stale."""
    if listing.any_worker and not any(source.is_current for source in listing.engines):
        latest = max((source.polled_at for source in listing.engines if source.polled_at), default=None)
        when = "never looked at" if latest is None else f"last looked at {formatting.ago(latest, now)}"
        text = (
            f"Whether workers live was {when}. An API server of Airflow 3 does that by itself; by hand, or "
            "every minute on Airflow 2.11, this does:"
        )
        yield Notice("warning", "Nobody looks at the workers", text, REFRESH_COMMAND)
    for source in listing.engines:
        if source.error and source.is_current:
            yield Notice("warning", f"{_SOURCE_NAMES.get(source.name, source.name)} cannot be asked", source.error)


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
