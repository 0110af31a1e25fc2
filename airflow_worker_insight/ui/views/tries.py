"""Table rows of tries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.states import WorkerState
from airflow_worker_insight.ui import formatting
from airflow_worker_insight.ui.views.attribution import UNFINISHED, Attribution, attribution_of
from airflow_worker_insight.ui.views.parts import StateText, worker_state

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from airflow_worker_insight.domain.attempts import Attempt, AttemptWorker
    from airflow_worker_insight.domain.workers import WorkerRow

_NOT_ONLINE = (WorkerState.UNRESPONSIVE, WorkerState.LOST, WorkerState.OFFLINE)


@dataclass(frozen=True, slots=True)
class Deleted:
    """Deleted object of Airflow's that the try belonged to: short text and full sentence."""

    text: str
    title: str


_DELETED = {
    "run": Deleted(
        "of a deleted run",
        "Airflow no longer has the Dag run of this try. A Dag run of the same name is another one.",
    ),
    "task_instance": Deleted(
        "of a deleted task instance",
        "Airflow no longer has the task instance of this try. One of the same name is another one.",
    ),
}


@dataclass(frozen=True, slots=True)
class Conditions:
    """State of a worker's machine when a try started there: short text and full sentence."""

    text: str
    title: str


@dataclass(frozen=True, slots=True)
class WorkerCell:
    """Worker in a row.

    ``mark`` is the letter of its lane in the strip, ``note`` a remark such as its number of processes.
    """

    worker_id: str
    mark: str
    name: str
    kind: str
    hostname: str
    host_only: bool
    has_page: bool
    state: StateText | None
    """Set if the worker is not online and the user may see its state."""
    note: str
    conditions: Conditions | None


@dataclass(frozen=True, slots=True)
class Row:
    """Row of one try of a task instance."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    state: str
    state_text: str
    workers: tuple[WorkerCell, ...]
    no_worker_text: str
    started: formatting.Moment | None
    ended: formatting.Moment | None
    duration: str
    attribution: Attribution
    is_selected: bool
    conditions: Conditions | None
    """Conditions on the worker whose page this is."""
    why: str = ""
    """Why the try was placed there, or waits, if an executor of this package decides."""
    deleted: Deleted | None = None
    """Set if Airflow deleted its Dag run or task instance, so that Airflow has no page for it."""


def build_row(
    attempt: Attempt,
    marks: Mapping[str, str],
    instances: Mapping[str, WorkerRow] | None = None,
    *,
    now: datetime,
    selected: int | None = None,
    worker_id: str | None = None,
    why: str = "",
) -> Row:
    """Return a try as a row.

    :param marks: the letters of the workers' lanes by worker ID; empty without a strip
    :param instances: the worker instances whose state is shown, by worker ID
    :param selected: the number of the try that the user came from
    :param worker_id: the worker whose page this is
    :param why: why the try was placed on its worker, or waits
    """
    return Row(
        dag_id=attempt.dag_id,
        run_id=attempt.run_id,
        task_id=attempt.task_id,
        map_index=attempt.map_index,
        try_number=attempt.try_number,
        state=attempt.state or "no_status",
        state_text=formatting.state(attempt.state),
        workers=tuple(
            _cell(attempt, worker, marks, (instances or {}).get(worker.worker_id)) for worker in attempt.workers
        ),
        no_worker_text="" if attempt.workers else _no_worker_text(attempt),
        started=formatting.moment(attempt.started_at),
        ended=formatting.moment(attempt.ended_at),
        duration=_duration(attempt, now),
        attribution=attribution_of(attempt),
        is_selected=attempt.try_number == selected,
        conditions=next((_conditions(worker) for worker in attempt.workers if worker.worker_id == worker_id), None),
        why=why,
        deleted=None if attempt.deleted is None else _DELETED[attempt.deleted],
    )


def _cell(attempt: Attempt, worker: AttemptWorker, marks: Mapping[str, str], instance: WorkerRow | None) -> WorkerCell:
    note = ""
    if worker.process_count > 1:
        note = formatting.count(worker.process_count, "process", "processes")
    elif len(attempt.workers) > 1 and worker.process_count == 1:
        note = "1 process"
    return WorkerCell(
        worker_id=worker.worker_id,
        mark=marks.get(worker.worker_id, ""),
        name="One of this host’s workers" if worker.host_only else worker.name,
        kind=formatting.kind(worker.kind),
        hostname=worker.hostname,
        host_only=worker.host_only,
        has_page=attempt.is_recorded,
        state=worker_state(instance) if instance is not None and instance.state in _NOT_ONLINE else None,
        note=note,
        conditions=_conditions(worker),
    )


def _conditions(worker: AttemptWorker) -> Conditions | None:
    parts = []
    if worker.load is not None:
        parts.append((f"load {worker.load:.1f}", f"load {worker.load:.2f} per CPU"))
    if worker.memory_free is not None:
        parts.append((f"{worker.memory_free:.0%} free", f"{worker.memory_free:.0%} of memory free"))
    if worker.running_beside is not None:
        beside = formatting.count(worker.running_beside, "try beside it", "tries beside it")
        parts.append((f"{worker.running_beside:,} beside", beside))
    if not parts:
        return None
    return Conditions(
        text=" · ".join(short for short, _ in parts),
        title="When the try started here: " + ", ".join(sentence for _, sentence in parts),
    )


def _no_worker_text(attempt: Attempt) -> str:
    if attempt.attribution == "unknown" and attempt.state not in UNFINISHED:
        return "Not known"
    return "None so far" if attempt.state in UNFINISHED else "None"


def _duration(attempt: Attempt, now: datetime) -> str:
    if attempt.duration is not None:
        return formatting.duration(attempt.duration)
    if attempt.state == "running" and attempt.started_at is not None:
        return f"{formatting.duration((now - attempt.started_at).total_seconds())} so far"
    return ""
