"""Page of a worker instance: its state, its machine, its running and its past tries."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.states import WorkerAvailability, WorkerState
from airflow_worker_insight.ui import formatting
from airflow_worker_insight.ui.views.availability import Availability, build_availability
from airflow_worker_insight.ui.views.parts import (
    Ago,
    Count,
    Fact,
    Load,
    Notice,
    Pages,
    StateText,
    ago,
    load,
    pages,
    worker_state,
)
from airflow_worker_insight.ui.views.placement import PlacedTries, build_placed
from airflow_worker_insight.ui.views.timeline import Chart, Timeline, build_chart, build_timeline
from airflow_worker_insight.ui.views.tries import Row, build_row

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from airflow_worker_insight.domain.attempts import Attempt, AttemptPage
    from airflow_worker_insight.domain.workers import WorkerChange, WorkerRow
    from airflow_worker_insight.store.attempts.by_worker import Outcomes, Stay
    from airflow_worker_insight.store.placements import Placement
    from airflow_worker_insight.ui.query_params import WorkerAddress

PAGE_SIZE = 25

MAX_TRIES_NOW = 50
"""Maximum number of running, of placed and of lost tries that are listed."""

MAX_CHANGES = 20
MAX_INSTANCES = 10

EXPECTED_BACK = timedelta(hours=1)
"""How long the page of a worker without a heartbeat keeps refreshing."""

REFRESH_BUSY_SECONDS, REFRESH_IDLE_SECONDS = 5, 15
"""Refresh intervals in seconds: while a try runs on the worker, and while none does."""

NO_DAG = Notice(
    "info",
    "No tries to show",
    "Airflow lets you see no task instances, so none of the tries of this worker is listed or counted here.",
)


@dataclass(frozen=True, slots=True)
class WorkerInstance:
    """Query results for one worker instance.

    Tries are only those of Dags that the user may read.
    """

    row: WorkerRow
    is_whole: bool
    """Whether the user may read all Dags, so that no try is left out."""
    changes: Sequence[WorkerChange]
    decision: WorkerChange | None
    others: Sequence[WorkerRow]
    running: tuple[Sequence[Attempt], int]
    struck: tuple[Sequence[Attempt], int]
    drawn: Sequence[Stay]
    is_cut: bool
    """Whether the timeline's hours hold more tries than are drawn."""
    outcomes: Sequence[Outcomes]
    attempts: AttemptPage
    placed: tuple[Sequence[Placement], int] = ((), 0)
    """Placed tries that wait to start here, and their number."""
    taken: int = 0
    """Number of tries of all Dags that are placed here and have not ended."""
    places: bool = False
    """Whether an executor that places tasks is configured."""


@dataclass(frozen=True, slots=True)
class ChangeLine:
    """Entry of a worker's history."""

    changed: Ago
    state: StateText | None
    availability: str
    """Key of the decision, if the entry is one; ``text`` is its label."""
    text: str
    reason: str
    changed_by: str


@dataclass(frozen=True, slots=True)
class OtherInstance:
    """Another instance of the worker with this name."""

    worker_id: str
    state: StateText
    began: formatting.Moment
    last_seen: Ago


@dataclass(frozen=True, slots=True)
class Tries:
    """Group of tries: their number in words, the first of them, and how many more there are."""

    text: str
    rows: tuple[Row, ...]
    rest: str


@dataclass(frozen=True, slots=True)
class WorkerPage:
    """Page of one worker instance."""

    worker_id: str
    name: str
    kind: str
    address: WorkerAddress
    introduction: str
    state: StateText | None
    """``None`` for a host that stands for all its workers."""
    since: Ago | None
    load: Load | None
    facts: tuple[Fact, ...]
    labels: tuple[tuple[str, str], ...]
    queues: tuple[str, ...]
    availability: Availability | None
    struck: Tries | None
    running: Tries | None
    placed: PlacedTries | None
    timeline: Timeline | None
    chart: Chart | None
    history: tuple[ChangeLine, ...]
    others: tuple[OtherInstance, ...]
    rows: tuple[Row, ...]
    pages: Pages
    empty_text: str
    notice: Notice | None
    refresh_seconds: int


def build_worker_page(
    instance: WorkerInstance, address: WorkerAddress, *, may_read: bool, may_decide: bool, now: datetime
) -> WorkerPage:
    """Return the page of a worker.

    :param may_read: whether the user may see any tries
    :param may_decide: whether the user may change the worker's availability
    """
    row = instance.row
    page = instance.attempts
    running = _running(instance, now) if may_read else None
    return WorkerPage(
        worker_id=row.worker_id,
        name=f"A {formatting.kind(row.kind)} worker on {row.hostname}" if row.host_only else row.name,
        kind=formatting.kind(row.kind),
        address=address,
        introduction=_introduction(row),
        state=None if row.host_only else worker_state(row),
        since=_since(instance, now),
        load=load(row.running, row.concurrency) if row.state not in (WorkerState.LOST, WorkerState.OFFLINE) else None,
        facts=tuple(_facts(row)),
        labels=tuple(sorted((str(key), str(value)) for key, value in row.labels.items())),
        queues=row.queues or (),
        availability=None
        if row.host_only
        else build_availability(row, instance.decision, may_decide=may_decide, places=instance.places),
        struck=_lost_tries(instance, now) if may_read and row.state == WorkerState.LOST else None,
        running=running,
        placed=_placed(instance) if may_read else None,
        timeline=build_timeline(row, instance.drawn, address, is_cut=instance.is_cut, now=now) if may_read else None,
        chart=build_chart(row, instance.outcomes, address, now=now) if may_read else None,
        history=tuple(_change(change, now) for change in instance.changes),
        others=tuple(
            OtherInstance(
                other.worker_id,
                worker_state(other),
                _moment(other.started_at or other.registered_at),
                ago(other.last_seen_at, now),
            )
            for other in instance.others
        ),
        rows=tuple(build_row(attempt, {}, now=now, worker_id=row.worker_id) for attempt in page.attempts),
        pages=pages(
            address,
            Count(len(page.attempts), page.total, page.total_is_exact),
            size=PAGE_SIZE,
            singular="try",
            plural="tries",
        ),
        empty_text=(
            "There are no more tries here."
            if page.total
            else "No try of this worker was recorded."
            if instance.is_whole
            else "No try of this worker was recorded in a Dag that you may read."
        ),
        notice=None if may_read else NO_DAG,
        refresh_seconds=_refresh(row, running, now),
    )


def _refresh(row: WorkerRow, running: Tries | None, now: datetime) -> int:
    if running is not None and running.rows:
        return REFRESH_BUSY_SECONDS
    # A worker without a heartbeat may come back as this instance. After a graceful shutdown, or most probably after a
    # long silence, it comes back as a new instance.
    is_expected = row.state != WorkerState.OFFLINE and not row.host_only and now - row.last_seen_at < EXPECTED_BACK
    return REFRESH_IDLE_SECONDS if is_expected or row.state in (WorkerState.ONLINE, WorkerState.UNRESPONSIVE) else 0


def _introduction(row: WorkerRow) -> str:
    if row.host_only:
        return (
            "Airflow kept only the host of these tries: each ran on one of the workers of this host, not known which."
        )
    return "One life of a worker: after a restart it has a new ID and a page of its own."


def _since(instance: WorkerInstance, now: datetime) -> Ago | None:
    """Return when the worker entered its current state."""
    if instance.row.state is None or instance.row.host_only:
        return None
    latest = next((change for change in instance.changes if change.state is not None), None)
    if latest is not None and latest.state == instance.row.state:
        return ago(latest.changed_at, now)
    return ago(instance.row.ended_at or instance.row.registered_at, now)


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
        text = f"It was told to stop; {formatting.count(total, 'try still runs', 'tries still run')} on it."
    elif total:
        text = f"{formatting.count(total, 'try runs', 'tries run')} on it now."
    else:
        text = "Nothing runs on it now." if instance.is_whole else "Nothing that you may see runs on it now."
    return Tries(
        text=text,
        rows=tuple(build_row(attempt, {}, now=now, worker_id=instance.row.worker_id) for attempt in rows),
        rest=_rest_text(len(rows), total),
    )


def _placed(instance: WorkerInstance) -> PlacedTries | None:
    row = instance.row
    if row.host_only or row.state in (WorkerState.LOST, WorkerState.OFFLINE):
        return None
    if not (instance.places or instance.taken):
        return None
    # Include tries that run here without having been placed here.
    taken = max(instance.taken, row.running or 0)
    return build_placed(
        instance.placed, taken, may_be_given=row.availability == WorkerAvailability.AVAILABLE, worker_id=row.worker_id
    )


def _lost_tries(instance: WorkerInstance, now: datetime) -> Tries:
    rows, total = instance.struck
    if total:
        text = f"{formatting.count(total, 'try', 'tries')} had not ended when it was last seen, and went with it."
        if any(attempt.state in ("running", "restarting") for attempt in rows):
            text += " Airflow says that they run until its own heartbeat of tasks times out."
    else:
        subject = "No try" if instance.is_whole else "No try that you may see"
        text = f"{subject} was running on it when it was last seen."
    return Tries(
        text,
        tuple(build_row(attempt, {}, now=now, worker_id=instance.row.worker_id) for attempt in rows),
        _rest_text(len(rows), total),
    )


def _rest_text(shown: int, total: int) -> str:
    return f"And {total - shown:,} more." if total > shown else ""


def _change(change: WorkerChange, now: datetime) -> ChangeLine:
    return ChangeLine(
        changed=ago(change.changed_at, now),
        state=StateText(change.state, formatting.worker_state(change.state)) if change.state else None,
        availability=change.availability or "",
        text=(change.availability or "").capitalize(),
        reason=change.reason or "",
        changed_by=change.changed_by or "",
    )


# --- facts ----------------------------------------------------------------------------------------------------------


def _facts(row: WorkerRow) -> list[Fact]:
    facts = [Fact("Kind", formatting.kind(row.kind)), Fact("Host", row.hostname)]
    if row.engine_name and row.engine_name != row.name:
        facts.append(Fact("Its executor’s name", row.engine_name))
    if row.pid is not None:
        facts.append(Fact("Process", str(row.pid)))
    if row.concurrency is not None:
        facts.append(Fact("Concurrency", f"{row.concurrency:,}"))
    if row.started_at is not None:
        facts.append(Fact("Started", "", formatting.moment(row.started_at)))
    facts.append(Fact("First seen", "", formatting.moment(row.registered_at)))
    facts.append(Fact("Last seen", "", formatting.moment(row.last_seen_at)))
    if row.ended_at is not None:
        facts.append(Fact("Ended", "", formatting.moment(row.ended_at)))
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
    "os": "System",
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


def _moment(value: datetime) -> formatting.Moment:
    moment = formatting.moment(value)
    assert moment is not None
    return moment
