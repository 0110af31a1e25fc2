"""Table rows of tries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.states import WorkerState
from airflow_worker_insight.ui import formatting
from airflow_worker_insight.ui.views.attribution import UNFINISHED, Attribution, attribution_of
from airflow_worker_insight.ui.views.parts import Hint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from airflow_worker_insight.domain.attempts import Attempt, AttemptWorker
    from airflow_worker_insight.domain.workers import WorkerRow

_NOT_ONLINE = (WorkerState.UNRESPONSIVE, WorkerState.LOST, WorkerState.OFFLINE)


_DELETED = {
    "run": Hint(
        "Deleted Dag run",
        "The Dag run of this try was deleted. A Dag run with the same ID is a different one.",
    ),
    "task_instance": Hint(
        "Deleted task instance",
        "The task instance of this try was deleted. A task instance with the same IDs is a different one.",
    ),
}


@dataclass(frozen=True, slots=True)
class WorkerCell:
    """Worker in a row.

    ``mark`` is the letter of its lane in the strip, ``note`` a remark such as its number of processes.
    """

    worker: AttemptWorker
    mark: str
    name: str
    has_page: bool
    instance: WorkerRow | None
    """Set if the worker is not online and the user may see its state."""
    note: str
    conditions: Hint | None
    """State of the worker's machine when the try started there."""


@dataclass(frozen=True, slots=True)
class Row:
    """Row of one try of a task instance."""

    attempt: Attempt
    workers: tuple[WorkerCell, ...]
    no_worker_text: str
    duration: str
    attribution: Attribution
    is_selected: bool
    conditions: Hint | None
    """Conditions on the worker whose page this is."""
    why: str = ""
    """Why the try was placed there, or waits, if an executor of this package decides."""
    deleted: Hint | None = None
    """Set if Airflow deleted its Dag run or task instance, so that Airflow has no page for it."""


def build_row(
    attempt: Attempt,
    marks: Mapping[str, str],
    instances: Mapping[str, WorkerRow] | None = None,
    *,
    now: datetime,
    selected_try: int | None = None,
    worker_id: str | None = None,
    why: str = "",
) -> Row:
    """Return a try as a row.

    :param marks: the letters of the workers' lanes by worker ID; empty without a strip
    :param instances: the worker instances whose state is shown, by worker ID
    :param selected_try: the number of the try that the user came from
    :param worker_id: the worker whose page this is
    :param why: why the try was placed on its worker, or waits
    """
    return Row(
        attempt=attempt,
        workers=tuple(
            _cell(attempt, worker, marks, (instances or {}).get(worker.worker_id)) for worker in attempt.workers
        ),
        no_worker_text="" if attempt.workers else _no_worker_text(attempt),
        duration=_duration(attempt, now),
        attribution=attribution_of(attempt),
        is_selected=attempt.try_number == selected_try,
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
        worker=worker,
        mark=marks.get(worker.worker_id, ""),
        name="A worker on this host" if worker.host_only else worker.name,
        has_page=attempt.is_recorded,
        instance=instance if instance is not None and instance.state in _NOT_ONLINE else None,
        note=note,
        conditions=_conditions(worker),
    )


def _conditions(worker: AttemptWorker) -> Hint | None:
    parts = []
    if worker.load is not None:
        parts.append((f"load {worker.load:.1f}", f"load {worker.load:.2f} per CPU"))
    if worker.memory_free is not None:
        parts.append((f"{worker.memory_free:.0%} free", f"{worker.memory_free:.0%} of memory free"))
    if worker.running_beside is not None:
        others = formatting.count(worker.running_beside, "other try running", "other tries running")
        parts.append((formatting.count(worker.running_beside, "other try", "other tries"), others))
    if not parts:
        return None
    return Hint(
        text=" · ".join(short for short, _ in parts),
        title="When the try started: " + ", ".join(sentence for _, sentence in parts),
    )


def _no_worker_text(attempt: Attempt) -> str:
    if attempt.attribution == "unknown" and attempt.state not in UNFINISHED:
        return "Unknown"
    return "None yet" if attempt.state in UNFINISHED else "None"


def _duration(attempt: Attempt, now: datetime) -> str:
    if attempt.duration is not None:
        return formatting.duration(attempt.duration)
    if attempt.state == "running" and attempt.started_at is not None:
        return f"{formatting.duration((now - attempt.started_at).total_seconds())} so far"
    return ""
