"""The page of a worker: its life, its machine, what it runs now and all that it ran."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.states import AVAILABLE, LOST, OFFLINE, ONLINE, UNRESPONSIVE
from airflow_worker_insight.ui import formatting
from airflow_worker_insight.ui.views.availability import Availability, build_availability
from airflow_worker_insight.ui.views.parts import (
    Ago,
    Count,
    Fact,
    Load,
    Notice,
    Pages,
    WorkerState,
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
    from airflow_worker_insight.domain.workers import Change, WorkerRow
    from airflow_worker_insight.store.attempts.by_worker import Outcomes, Stay
    from airflow_worker_insight.store.placements import Placement
    from airflow_worker_insight.ui.query_params import WorkerAddress

PAGE_SIZE = 25

MAX_TRIES_NOW = 50
"""Tries that run now, or that ended with the worker, that are listed."""

MAX_CHANGES = 20
MAX_LIVES = 10

EXPECTED_BACK = timedelta(hours=1)
"""How long the page of a silent worker goes on asking."""

REFRESH_BUSY_SECONDS, REFRESH_IDLE_SECONDS = 5, 15
"""How often the page of a worker asks again: while a try runs on it, and while none does."""

NO_DAG = Notice(
    "info",
    "No tries to show",
    "Airflow lets you see no task instances, so none of the tries of this worker is listed or counted here.",
)


@dataclass(frozen=True, slots=True)
class WorkerInstance:
    """What the store says of one life of a worker; of tries, only of Dags that the reader may read."""

    row: WorkerRow
    is_whole: bool
    """Whether the reader may read all Dags: nothing of what it ran is left out."""
    changes: Sequence[Change]
    decision: Change | None
    others: Sequence[WorkerRow]
    running: tuple[Sequence[Attempt], int]
    struck: tuple[Sequence[Attempt], int]
    drawn: Sequence[Stay]
    is_cut: bool
    """Whether there are more tries in the hours to draw."""
    outcomes: Sequence[Outcomes]
    attempts: AttemptPage
    placed: tuple[Sequence[Placement], int] = ((), 0)
    """What waits here for its start."""
    taken: int = 0
    """How many tries of all Dags are placed here and have not ended."""
    places: bool = False
    """Whether an executor that places tasks is configured."""


@dataclass(frozen=True, slots=True)
class ChangeLine:
    """One entry of a worker's history."""

    changed: Ago
    state: WorkerState | None
    availability: str
    """The key of what was decided, where somebody decided; its word is ``text``."""
    text: str
    reason: str
    changed_by: str


@dataclass(frozen=True, slots=True)
class OtherInstance:
    """Another life of a worker of this name."""

    worker_id: str
    state: WorkerState
    began: formatting.Moment
    last_seen: Ago


@dataclass(frozen=True, slots=True)
class Tries:
    """Tries that have something in common: how many there are, in words, and the first of them."""

    text: str
    rows: tuple[Row, ...]
    rest: str


@dataclass(frozen=True, slots=True)
class WorkerPage:
    """One life of a worker."""

    worker_id: str
    name: str
    kind: str
    address: WorkerAddress
    introduction: str
    state: WorkerState | None
    """``None`` for a host, which has none."""
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
    life: WorkerInstance, address: WorkerAddress, *, may_read: bool, may_decide: bool, now: datetime
) -> WorkerPage:
    """Return the page of a worker.

    :param may_read: whether the reader may see tries at all
    :param may_decide: whether the reader may change the worker's availability
    """
    row = life.row
    found = life.attempts
    running = _running(life, now) if may_read else None
    return WorkerPage(
        worker_id=row.worker_id,
        name=f"A {formatting.kind(row.kind)} worker on {row.hostname}" if row.host_only else row.name,
        kind=formatting.kind(row.kind),
        address=address,
        introduction=_introduction(row),
        state=None if row.host_only else worker_state(row),
        since=_since(life, now),
        load=load(row.running, row.concurrency) if row.state not in (LOST, OFFLINE) else None,
        facts=tuple(_facts(row)),
        labels=tuple(sorted((str(key), str(value)) for key, value in row.labels.items())),
        queues=row.queues or (),
        availability=None
        if row.host_only
        else build_availability(row, life.decision, may_decide=may_decide, places=life.places),
        struck=_struck(life, now) if may_read and row.state == LOST else None,
        running=running,
        placed=_placed(life) if may_read else None,
        timeline=build_timeline(row, life.drawn, address, is_cut=life.is_cut, now=now) if may_read else None,
        chart=build_chart(row, life.outcomes, address, now=now) if may_read else None,
        history=tuple(_change(change, now) for change in life.changes),
        others=tuple(
            OtherInstance(
                other.worker_id,
                worker_state(other),
                _moment(other.started_at or other.registered_at),
                ago(other.last_seen_at, now),
            )
            for other in life.others
        ),
        rows=tuple(build_row(one, {}, now=now, worker_id=row.worker_id) for one in found.attempts),
        pages=pages(
            address,
            Count(len(found.attempts), found.total, found.total_is_exact),
            size=PAGE_SIZE,
            singular="try",
            plural="tries",
        ),
        empty_text=(
            "There are no more tries here."
            if found.total
            else "No try of this worker was recorded."
            if life.is_whole
            else "No try of this worker was recorded in a Dag that you may read."
        ),
        notice=None if may_read else NO_DAG,
        refresh_seconds=_refresh(row, running, now),
    )


def _refresh(row: WorkerRow, running: Tries | None, now: datetime) -> int:
    if running is not None and running.rows:
        return REFRESH_BUSY_SECONDS
    # One that is silent may come back; one that left in order has a new life then, and so has most probably one that
    # has been silent for long.
    is_expected = row.state != OFFLINE and not row.host_only and now - row.last_seen_at < EXPECTED_BACK
    return REFRESH_IDLE_SECONDS if is_expected or row.state in (ONLINE, UNRESPONSIVE) else 0


def _introduction(row: WorkerRow) -> str:
    if row.host_only:
        return (
            "Airflow kept only the host of these tries: each ran on one of the workers of this host, not known which."
        )
    return "One life of a worker: after a restart it has a new ID and a page of its own."


def _since(life: WorkerInstance, now: datetime) -> Ago | None:
    """Return when the worker came into the state in which it is."""
    if life.row.state is None or life.row.host_only:
        return None
    latest = next((change for change in life.changes if change.state is not None), None)
    if latest is not None and latest.state == life.row.state:
        return ago(latest.changed_at, now)
    return ago(life.row.ended_at or life.row.registered_at, now)


def _running(life: WorkerInstance, now: datetime) -> Tries | None:
    rows, total = life.running
    # One that was told to stop may let its tries end: a warm shutdown takes as long as they do.
    if life.row.host_only or life.row.state == LOST or (life.row.state == OFFLINE and not total):
        return None
    if life.row.state == OFFLINE:
        text = f"It was told to stop; {formatting.count(total, 'try still runs', 'tries still run')} on it."
    elif total:
        text = f"{formatting.count(total, 'try runs', 'tries run')} on it now."
    else:
        text = "Nothing runs on it now." if life.is_whole else "Nothing that you may see runs on it now."
    return Tries(
        text=text,
        rows=tuple(build_row(one, {}, now=now, worker_id=life.row.worker_id) for one in rows),
        rest=_rest(len(rows), total),
    )


def _placed(life: WorkerInstance) -> PlacedTries | None:
    row = life.row
    if row.host_only or row.state in (LOST, OFFLINE):
        return None
    if not (life.places or life.taken):
        return None
    # What runs here without having been placed here counts too.
    taken = max(life.taken, row.running or 0)
    return build_placed(life.placed, taken, may_be_given=row.availability == AVAILABLE, worker_id=row.worker_id)


def _struck(life: WorkerInstance, now: datetime) -> Tries:
    rows, total = life.struck
    if total:
        text = f"{formatting.count(total, 'try', 'tries')} had not ended when it was last seen, and went with it."
        if any(one.state in ("running", "restarting") for one in rows):
            text += " Airflow says that they run until its own heartbeat of tasks times out."
    else:
        what = "No try" if life.is_whole else "No try that you may see"
        text = f"{what} was running on it when it was last seen."
    return Tries(
        text, tuple(build_row(one, {}, now=now, worker_id=life.row.worker_id) for one in rows), _rest(len(rows), total)
    )


def _rest(shown: int, total: int) -> str:
    return f"And {total - shown:,} more." if total > shown else ""


def _change(change: Change, now: datetime) -> ChangeLine:
    return ChangeLine(
        changed=ago(change.changed_at, now),
        state=WorkerState(change.state, formatting.worker_state(change.state)) if change.state else None,
        availability=change.availability or "",
        text=(change.availability or "").capitalize(),
        reason=change.reason or "",
        changed_by=change.changed_by or "",
    )


# --- facts ----------------------------------------------------------------------------------------------------------


def _facts(row: WorkerRow) -> list[Fact]:
    found = [Fact("Kind", formatting.kind(row.kind)), Fact("Host", row.hostname)]
    if row.engine_name and row.engine_name != row.name:
        found.append(Fact("Its executor’s name", row.engine_name))
    if row.pid is not None:
        found.append(Fact("Process", str(row.pid)))
    if row.concurrency is not None:
        found.append(Fact("Concurrency", f"{row.concurrency:,}"))
    if row.started_at is not None:
        found.append(Fact("Started", "", formatting.moment(row.started_at)))
    found.append(Fact("First seen", "", formatting.moment(row.registered_at)))
    found.append(Fact("Last seen", "", formatting.moment(row.last_seen_at)))
    if row.ended_at is not None:
        found.append(Fact("Ended", "", formatting.moment(row.ended_at)))
    found += [_resource(name, value) for name, value in sorted(row.resources.items())]
    found += [
        Fact(_VERSION_NAMES.get(name, name.replace("_", " ")), str(value))
        for name, value in sorted(row.versions.items())
    ]
    found.append(Fact("Worker ID", row.worker_id, is_code=True))
    return found


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
    found = formatting.moment(value)
    assert found is not None
    return found
