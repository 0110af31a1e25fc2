"""Page of a worker instance: its state, its machine, its running and its past tries."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.states import WorkerAvailability, WorkerState
from airflow_worker_insight.ui import formatting
from airflow_worker_insight.ui.views.availability import Availability, build_availability
from airflow_worker_insight.ui.views.parts import (
    Count,
    Fact,
    Load,
    Notice,
    Pages,
    load,
    pages,
)
from airflow_worker_insight.ui.views.placement import PlacedTries, build_placed
from airflow_worker_insight.ui.views.timeline import Chart, Timeline, build_chart, build_timeline
from airflow_worker_insight.ui.views.tries import Row, build_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from airflow_worker_insight.domain.attempts import Attempt, AttemptPage
    from airflow_worker_insight.domain.enforcement import EnforcementStatus
    from airflow_worker_insight.domain.workers import WorkerChange, WorkerRow
    from airflow_worker_insight.store.attempts.by_worker import Outcomes, Stay
    from airflow_worker_insight.store.placements import Placement
    from airflow_worker_insight.ui.query_params import WorkerParams
    from airflow_worker_insight.ui.views.comparison import Comparison
    from airflow_worker_insight.ui.views.findings import FindingCard

PAGE_SIZE = 25

MAX_TRIES_NOW = 50
"""Maximum number of running, of placed and of lost tries that are listed."""

MAX_CHANGES = 20
MAX_FINDINGS = 20
MAX_INSTANCES = 10

REFRESH_LIMIT = timedelta(hours=1)
"""How long the page of a worker without a heartbeat keeps refreshing."""

REFRESH_BUSY_SECONDS, REFRESH_IDLE_SECONDS = 5, 15
"""Refresh intervals in seconds: while a try runs on the worker, and while none does."""

NO_DAG = Notice(
    "info",
    "No tries to show",
    "You do not have permission to view task instances, so no tries of this worker are shown.",
)


@dataclass(frozen=True, slots=True)
class WorkerInstance:
    """Query results for one worker instance.

    Tries are only those of Dags that the user may read.
    """

    row: WorkerRow
    sees_all_dags: bool
    """Whether the user may read all Dags, so that no try is left out."""
    changes: Sequence[WorkerChange]
    decision: WorkerChange | None
    others: Sequence[WorkerRow]
    running: tuple[Sequence[Attempt], int]
    lost_tries: tuple[Sequence[Attempt], int]
    stays: Sequence[Stay]
    is_truncated: bool
    """Whether the timeline's hours hold more tries than are drawn."""
    outcomes: Sequence[Outcomes]
    attempts: AttemptPage
    placed: tuple[Sequence[Placement], int] = ((), 0)
    """Placed tries that wait to start here, and their number."""
    open_tries: int = 0
    """Number of tries of all Dags that are placed here and have not ended."""
    places: bool = False
    """Whether an executor that places tasks is configured."""
    effect: str = ""
    """What a decision on it does: :func:`.enforcement.effect`."""
    enforcement: EnforcementStatus | None = None
    findings: Sequence[FindingCard] = ()
    """About it, open ones first."""
    comparison: Comparison | None = None
    """Against the other workers of the same tasks; ``None`` if the user may see no tries."""


@dataclass(frozen=True, slots=True)
class Tries:
    """Group of tries: their number in words, the first of them, and how many more there are."""

    text: str
    rows: tuple[Row, ...]
    rest: str


@dataclass(frozen=True, slots=True)
class WorkerPage:
    """Page of one worker instance."""

    row: WorkerRow
    name: str
    introduction: str
    since: datetime | None
    """When the worker entered its state; ``None`` if unknown."""
    load: Load | None
    facts: tuple[Fact, ...]
    availability: Availability | None
    lost_tries: Tries | None
    running: Tries | None
    placed: PlacedTries | None
    timeline: Timeline | None
    chart: Chart | None
    open_findings: tuple[FindingCard, ...]
    closed_findings: tuple[FindingCard, ...]
    comparison: Comparison | None
    history: Sequence[WorkerChange]
    others: Sequence[WorkerRow]
    """Other instances of this name."""
    rows: tuple[Row, ...]
    pages: Pages
    empty_text: str
    notice: Notice | None
    refresh_seconds: int
    now: datetime


def build_worker_page(
    instance: WorkerInstance, params: WorkerParams, *, may_read: bool, may_decide: bool, now: datetime
) -> WorkerPage:
    """Return the page of a worker.

    :param may_read: whether the user may see any tries
    :param may_decide: whether the user may change the worker's availability
    """
    row = instance.row
    page = instance.attempts
    running = _running(instance, now) if may_read else None
    return WorkerPage(
        row=row,
        name=f"A {formatting.kind(row.kind)} worker on {row.hostname}" if row.host_only else row.name,
        introduction=_introduction(row),
        since=_since(instance),
        load=load(row.running, row.concurrency) if row.state not in (WorkerState.LOST, WorkerState.OFFLINE) else None,
        facts=tuple(_facts(row)),
        availability=None
        if row.host_only
        else build_availability(
            row,
            instance.decision,
            may_decide=may_decide,
            effect=instance.effect,
            status=instance.enforcement,
        ),
        lost_tries=_lost_tries(instance, now) if may_read and row.state == WorkerState.LOST else None,
        running=running,
        placed=_placed(instance) if may_read else None,
        timeline=build_timeline(row, instance.stays, params, is_truncated=instance.is_truncated, now=now)
        if may_read
        else None,
        chart=build_chart(row, instance.outcomes, params, now=now) if may_read else None,
        open_findings=tuple(finding for finding in instance.findings if finding.is_open),
        closed_findings=tuple(finding for finding in instance.findings if not finding.is_open),
        comparison=instance.comparison,
        history=instance.changes,
        others=instance.others,
        rows=_rows(page.attempts, row, now),
        pages=pages(
            params,
            Count(len(page.attempts), page.total, page.total_is_exact),
            size=PAGE_SIZE,
            singular="try",
            plural="tries",
        ),
        empty_text=(
            "No more tries."
            if page.total
            else "No tries recorded for this worker."
            if instance.sees_all_dags
            else "No tries recorded for this worker in Dags that you can read."
        ),
        notice=None if may_read else NO_DAG,
        refresh_seconds=_refresh(row, running, now),
        now=now,
    )


def _rows(attempts: Iterable[Attempt], row: WorkerRow, now: datetime) -> tuple[Row, ...]:
    return tuple(build_row(attempt, {}, now=now, worker_id=row.worker_id) for attempt in attempts)


def _refresh(row: WorkerRow, running: Tries | None, now: datetime) -> int:
    if running is not None and running.rows:
        return REFRESH_BUSY_SECONDS
    # A worker without a heartbeat may come back as this instance. After a graceful shutdown, or most probably after a
    # long silence, it comes back as a new instance.
    is_expected = row.state != WorkerState.OFFLINE and not row.host_only and now - row.last_seen_at < REFRESH_LIMIT
    return REFRESH_IDLE_SECONDS if is_expected or row.state in (WorkerState.ONLINE, WorkerState.UNRESPONSIVE) else 0


def _introduction(row: WorkerRow) -> str:
    if row.host_only:
        return "Airflow recorded only the host of these tries: each ran on one of its workers."
    return "One instance of this worker: after a restart it has a new ID and a new page."


def _since(instance: WorkerInstance) -> datetime | None:
    """Return when the worker entered its current state."""
    if instance.row.state is None or instance.row.host_only:
        return None
    latest = next((change for change in instance.changes if change.state is not None), None)
    if latest is not None and latest.state == instance.row.state:
        return latest.changed_at
    return instance.row.ended_at or instance.row.registered_at


def _running(instance: WorkerInstance, now: datetime) -> Tries | None:
    rows, total = instance.running
    # A stopped worker may still finish its tries: a warm shutdown lasts as long as they do.
    if (
        instance.row.host_only
        or instance.row.state == WorkerState.LOST
        or (instance.row.state == WorkerState.OFFLINE and not total)
    ):
        return None
    if instance.row.state == WorkerState.OFFLINE:
        text = f"Shutting down: {formatting.count(total, 'try is', 'tries are')} still running."
    elif total:
        text = f"{formatting.count(total, 'try is', 'tries are')} running."
    else:
        text = "No try is running." if instance.sees_all_dags else "No try that you can see is running."
    return Tries(text, _rows(rows, instance.row, now), _rest_text(len(rows), total))


def _placed(instance: WorkerInstance) -> PlacedTries | None:
    row = instance.row
    if row.host_only or row.state in (WorkerState.LOST, WorkerState.OFFLINE):
        return None
    if not (instance.places or instance.open_tries):
        return None
    # Include tries that run here without having been placed here.
    open_tries = max(instance.open_tries, row.running or 0)
    return build_placed(
        instance.placed,
        open_tries,
        gets_new_tasks=row.availability == WorkerAvailability.AVAILABLE,
        worker_id=row.worker_id,
    )


def _lost_tries(instance: WorkerInstance, now: datetime) -> Tries:
    rows, total = instance.lost_tries
    if total:
        text = f"{formatting.count(total, 'try', 'tries')} had not ended when the worker was last seen."
        if any(attempt.state in ("running", "restarting") for attempt in rows):
            text += " A lost try counts as running in Airflow until its heartbeat times out."
    else:
        subject = "No try" if instance.sees_all_dags else "No try that you can see"
        text = f"{subject} was running when the worker was last seen."
    return Tries(text, _rows(rows, instance.row, now), _rest_text(len(rows), total))


def _rest_text(shown: int, total: int) -> str:
    return f"And {total - shown:,} more." if total > shown else ""


# --- facts ----------------------------------------------------------------------------------------------------------


def _facts(row: WorkerRow) -> list[Fact]:
    facts = [Fact("Kind", formatting.kind(row.kind)), Fact("Host", row.hostname)]
    if row.engine_name and row.engine_name != row.name:
        facts.append(Fact("Name in its executor", row.engine_name))
    if row.pid is not None:
        facts.append(Fact("Process ID", str(row.pid)))
    if row.concurrency is not None:
        facts.append(Fact("Concurrency", f"{row.concurrency:,}"))
    if row.started_at is not None:
        facts.append(Fact("Started", "", row.started_at))
    facts.append(Fact("First seen", "", row.registered_at))
    facts.append(Fact("Last seen", "", row.last_seen_at))
    if row.ended_at is not None:
        facts.append(Fact("Ended", "", row.ended_at))
    facts += [_resource(name, value) for name, value in sorted(row.resources.items())]
    facts += [
        Fact(_VERSION_NAMES.get(name, name.replace("_", " ")), str(value))
        for name, value in sorted(row.versions.items())
    ]
    facts.append(Fact("Worker ID", row.worker_id, is_code=True))
    return facts


_RESOURCE_NAMES = {
    "cpus": "CPUs",
    "memory_bytes": "Memory",
    "os": "Operating system",
    "architecture": "Architecture",
    "image": "Image",
}
_VERSION_NAMES = {
    "airflow": "Airflow",
    "celery": "Celery",
    "celery_provider": "Celery provider",
    "edge_provider": "Edge provider",
    "provider": "Worker Insight",
    "python": "Python",
}


def _resource(name: str, value: object) -> Fact:
    if name.endswith("_bytes") and isinstance(value, (int, float)):
        return Fact(_RESOURCE_NAMES.get(name, name.removesuffix("_bytes").replace("_", " ")), formatting.size(value))
    return Fact(_RESOURCE_NAMES.get(name, name.replace("_", " ")), str(value))
