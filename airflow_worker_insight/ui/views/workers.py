"""List of workers: filtered, sorted, or grouped by queue, host, kind or label."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.limits import MAX_TOTAL
from airflow_worker_insight.domain.states import UNKNOWN_STATE, WorkerAvailability, WorkerState
from airflow_worker_insight.ui import formatting
from airflow_worker_insight.ui.query_params import ANY, WorkersParams
from airflow_worker_insight.ui.views.availability import current_change
from airflow_worker_insight.ui.views.parts import (
    Count,
    Filter,
    Load,
    Notice,
    Option,
    Pages,
    filters,
    load,
    options,
    pages,
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
    "celery": "Celery workers",
    "edge": "Edge workers",
    "jobs": "Local workers",
    "tries": "Pods and workers of other executors",
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
_FILTERS = {
    "search": "Contains “{}”",
    "kind": "Kind {}",
    "queue": "Queue {}",
    "label": "Label {}",
    "hostname": "Host {}",
    "availability": "Availability {}",
    "findings": "With open findings",
}
_GROUPS = {"queue": "Queue", "hostname": "Host", "kind": "Kind"}


@dataclass(frozen=True, slots=True)
class StateChip:
    """Number of workers in a state; a link that sets the filter by state or clears it."""

    key: str
    text: str
    count: str
    params: WorkersParams
    is_chosen: bool


@dataclass(frozen=True, slots=True)
class Column:
    """Heading of a column; ``params`` sorts by it, or reverses the order if it is sorted so."""

    text: str
    params: WorkersParams | None
    direction: str
    """``ascending`` or ``descending`` if the list is sorted by this column, else empty."""


@dataclass(frozen=True, slots=True)
class WorkerLine:
    """Row of the list: one worker."""

    row: WorkerRow
    change: WorkerChange | None
    """Change that made it draining or quarantined."""
    findings: tuple[int, ...]
    """IDs of the open findings that concern it."""
    queues: tuple[str, ...]
    more_queues: str
    load: Load | None


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
    """Row of the grouped list: one group; ``params`` lists its workers."""

    name: str
    params: WorkersParams | None
    """``None`` for the group of workers whose value is unknown."""
    count: str
    shares: tuple[Share, ...]
    text: str
    load: Load | None
    findings: tuple[int, ...]
    """IDs of the open findings about the group itself."""


@dataclass(frozen=True, slots=True)
class WorkersPage:
    """Page with the list of workers."""

    params: WorkersParams
    chips: tuple[StateChip, ...]
    sentence: str
    """Description of the listed workers; empty if no worker is known."""
    unfiltered: WorkersParams | None
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
    findings_options: tuple[Option, ...]
    pages: Pages
    warnings: tuple[Notice, ...]
    """Reasons why worker states may be missing or stale."""
    notice: Notice | None
    refresh_seconds: int
    now: datetime


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
    sources: Sequence[SourceStatus]
    findings: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """IDs of open findings by the names of the workers that they concern."""
    group_findings: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """IDs of open findings by the names of the groups that they are about."""


def listed_states(params: WorkersParams) -> frozenset[str] | None:
    """Return the states to list; ``None`` for all."""
    if params.state == ANY:
        return None
    return frozenset({params.state}) if params.state else LISTED


def build_workers_page(
    params: WorkersParams, listing: Listing, *, now: datetime, polls_by_itself: bool = True
) -> WorkersPage:
    """Return the list of workers.

    :param polls_by_itself: whether Airflow's web server polls the workers by itself, so that no command has to
    """
    shown = len(listing.groups or listing.rows)
    alive = listing.counts.get(WorkerState.ONLINE, 0) + listing.counts.get(WorkerState.UNRESPONSIVE, 0)
    unfiltered = WorkersParams(state=ANY, seen=ANY, group=params.group, order=params.order)
    return WorkersPage(
        params=params,
        chips=tuple(_chip(state, params, listing.counts) for state in STATES),
        sentence=_sentence(params) if listing.any_worker else "",
        unfiltered=unfiltered if params.changed() != unfiltered else None,
        filters=tuple(filters(params, _FILTERS, {"kind": formatting.kind})),
        columns=tuple(_column(name, text, params) for name, text in _COLUMNS),
        lines=tuple(
            _line(row, listing.decisions.get(row.ref), listing.findings.get(row.name, ())) for row in listing.rows
        ),
        groups=tuple(_group(group, params, listing.group_findings.get(group.name, ())) for group in listing.groups),
        group_name=_group_name(params.group),
        group_options=options(
            params.group,
            ("", "Nothing"),
            *_GROUPS.items(),
            *((f"label:{key}", f"Label {key}") for key in listing.label_keys),
        ),
        kind_options=options(params.kind, ("", "Any"), *((kind, formatting.kind(kind)) for kind in _KINDS)),
        seen_options=options(params.seen, *_SEEN),
        availability_options=options(params.availability, *_AVAILABILITIES),
        findings_options=options(params.findings, ("", "Any"), ("open", "Open")),
        pages=_pages(params, listing, shown),
        warnings=tuple(_warnings(listing, now)),
        notice=None if shown else _notice(params, listing, polls_by_itself=polls_by_itself),
        refresh_seconds=REFRESH_SECONDS if alive or not listing.any_worker else REFRESH_IDLE_SECONDS,
        now=now,
    )


def _pages(params: WorkersParams, listing: Listing, shown: int) -> Pages:
    if not params.group:
        count = Count(shown, listing.total, listing.total < MAX_TOTAL)
        return pages(params, count, size=PAGE_SIZE, singular="worker", plural="workers")
    # Only the latest workers are grouped if there are more than are counted. A worker is in one group per queue.
    states = listed_states(params)
    grouped = sum(
        count for state, count in listing.counts.items() if states is None or (state or UNKNOWN_STATE) in states
    )
    count = Count(shown, min(listing.total, MAX_TOTAL), max(grouped, listing.total) < MAX_TOTAL)
    return pages(params, count, size=GROUPS_PAGE_SIZE, singular="group", plural="groups")


def _chip(state: str, params: WorkersParams, counts: Mapping[str | None, int]) -> StateChip:
    is_chosen = params.state == state
    return StateChip(
        key=state,
        text=formatting.worker_state(state),
        count=f"{counts.get(None if state == UNKNOWN_STATE else state, 0):,}",
        params=params.changed(state="" if is_chosen else state),
        is_chosen=is_chosen,
    )


def _sentence(params: WorkersParams) -> str:
    """Describe which workers are listed, before further filters."""
    seen = "at any time" if params.seen == ANY else f"in the {dict(_SEEN)[params.seen].lower()}"
    if params.state == ANY:
        return "All workers ever seen." if params.seen == ANY else f"All workers seen {seen}."
    if params.state in (WorkerState.ONLINE, WorkerState.UNRESPONSIVE):
        return f"{params.state.capitalize()} workers."
    if params.state:
        workers = (
            "Workers of unknown state" if params.state == UNKNOWN_STATE else f"{params.state.capitalize()} workers"
        )
        return f"{workers}, last seen {seen}."
    return f"Current workers, and lost ones last seen {seen}. Offline workers are hidden."


def _column(name: str, text: str, params: WorkersParams) -> Column:
    if not name:
        return Column(text, None, "")
    is_first, is_reversed = params.order == name, params.order == f"-{name}"
    # The most recent and the busiest come first; other columns start in ascending order.
    first_order = f"-{name}" if name in ("running", "last_seen_at") else name
    order = f"-{name}" if is_first else name if is_reversed else first_order
    return Column(
        text,
        params.changed(order=order),
        "ascending" if is_first else "descending" if is_reversed else "",
    )


def _line(row: WorkerRow, latest: WorkerChange | None, findings: Sequence[int]) -> WorkerLine:
    queues = row.queues or ()
    hidden = len(queues) - MAX_QUEUES
    return WorkerLine(
        row=row,
        change=None if row.availability == WorkerAvailability.AVAILABLE else current_change(row, latest),
        findings=tuple(findings),
        queues=tuple(queues[:MAX_QUEUES]),
        more_queues=f"and {hidden:,} more" if hidden > 0 else "",
        # The last reported load says nothing about a worker that is gone.
        load=load(row.running, row.concurrency) if row.state not in (WorkerState.LOST, WorkerState.OFFLINE) else None,
    )


def _group(group: WorkerGroup, params: WorkersParams, findings: Sequence[int]) -> GroupLine:
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
        name=group.name or "Unknown",
        params=_members(group.name, params) if group.name else None,
        count=formatting.count(total, "worker", "workers"),
        shares=tuple(shares),
        text=", ".join(share.text for share in shares),
        load=load(group.running, group.concurrency) if group.concurrency or group.running else None,
        findings=tuple(findings),
    )


def _members(name: str, params: WorkersParams) -> WorkersParams:
    by, _, key = params.group.partition(":")
    changed = {"label": f"{key}={name}"} if by == "label" else {by: name}
    return params.changed(group="", **changed)


def _group_name(group: str) -> str:
    by, _, key = group.partition(":")
    return f"Label {key}" if key else _GROUPS.get(by, "")


def _warnings(listing: Listing, now: datetime) -> Iterable[Notice]:
    """Say why workers, or their states, may be missing or stale."""
    if listing.any_worker and not any(source.is_current for source in listing.sources):
        latest = max((source.polled_at for source in listing.sources if source.polled_at), default=None)
        when = "never checked" if latest is None else f"last checked {formatting.ago(latest, now)}"
        text = (
            "On Airflow 3, API servers check the workers: make sure that one is running. On Airflow 2.11, run this "
            "command every minute:"
        )
        yield Notice("warning", f"Worker states are stale: {when}", text, REFRESH_COMMAND)
    for source in listing.sources:
        if source.error and source.is_current:
            yield Notice("warning", f"{_SOURCE_NAMES.get(source.name, source.name)} cannot be reached", source.error)


def _notice(params: WorkersParams, listing: Listing, *, polls_by_itself: bool) -> Notice:
    if not listing.any_worker:
        text = (
            "A worker is listed when its executor reports it, or when it starts its first try. If workers are running "
            "and none is listed, check that a scheduler is running and that this server can reach the broker."
        )
        if polls_by_itself:
            return Notice("info", "No workers yet", text)
        text += " On this version of Airflow, run this command every minute to check the workers:"
        return Notice("info", "No workers yet", text, REFRESH_COMMAND)
    if params.offset:
        return Notice("info", "", f"No more {'groups' if params.group else 'workers'}.")
    if any(filters(params, _FILTERS)):
        return Notice("info", "No workers found", "No worker matches these filters. Remove a filter to see more.")
    if params.group and listing.counts:
        return Notice("info", "", "None of these workers has a value to group by.")
    return Notice("info", "No workers found", "No worker is in this state. Show all workers to see older ones.")
