"""Tries as rows of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.states import LOST, OFFLINE, UNRESPONSIVE
from airflow_worker_insight.ui import formatting
from airflow_worker_insight.ui.views.attribution import UNFINISHED, Attribution, attribution_of
from airflow_worker_insight.ui.views.parts import WorkerState, worker_state

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from airflow_worker_insight.domain.attempts import Attempt, AttemptWorker
    from airflow_worker_insight.domain.workers import WorkerRow

_NOT_ONLINE = (UNRESPONSIVE, LOST, OFFLINE)


@dataclass(frozen=True, slots=True)
class Deleted:
    """What is deleted: in short, and in a sentence."""

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
    """What a worker's machine was like when a try started there: in short, and in a sentence."""

    text: str
    title: str


@dataclass(frozen=True, slots=True)
class WorkerCell:
    """A worker in a row. ``mark`` is the letter of its lane in the strip, ``note`` what is to be known beside it."""

    worker_id: str
    mark: str
    name: str
    kind: str
    hostname: str
    host_only: bool
    has_page: bool
    state: WorkerState | None
    """What became of it, where it is not online and the reader may know."""
    note: str
    conditions: Conditions | None


@dataclass(frozen=True, slots=True)
class Row:
    """One try of one task instance."""

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
    """Of the worker whose page this is."""
    why: str = ""
    """Why it was placed where it was, or waits, where an executor of this package decides."""
    deleted: Deleted | None = None
    """What of Airflow's it was part of that is deleted: then no page of Airflow's is of it any more."""


def build_row(
    one: Attempt,
    marks: Mapping[str, str],
    lives: Mapping[str, WorkerRow] | None = None,
    *,
    now: datetime,
    selected: int | None = None,
    worker_id: str | None = None,
    why: str = "",
) -> Row:
    """Return a try as a row.

    :param marks: the letters of the workers' lanes in the strip, by worker ID, where there is one
    :param lives: the workers whose state is to be told, by their IDs
    :param selected: the number of the try that the reader came from
    :param worker_id: the worker whose page this is
    :param why: why it was placed where it was
    """
    return Row(
        dag_id=one.dag_id,
        run_id=one.run_id,
        task_id=one.task_id,
        map_index=one.map_index,
        try_number=one.try_number,
        state=one.state or "no_status",
        state_text=formatting.state(one.state),
        workers=tuple(_cell(one, worker, marks, (lives or {}).get(worker.worker_id)) for worker in one.workers),
        no_worker_text="" if one.workers else _no_worker_text(one),
        started=formatting.moment(one.started_at),
        ended=formatting.moment(one.ended_at),
        duration=_duration(one, now),
        attribution=attribution_of(one),
        is_selected=one.try_number == selected,
        conditions=next((_conditions(worker) for worker in one.workers if worker.worker_id == worker_id), None),
        why=why,
        deleted=None if one.deleted is None else _DELETED[one.deleted],
    )


def _cell(one: Attempt, worker: AttemptWorker, marks: Mapping[str, str], life: WorkerRow | None) -> WorkerCell:
    note = ""
    if worker.process_count > 1:
        note = formatting.count(worker.process_count, "process", "processes")
    elif len(one.workers) > 1 and worker.process_count == 1:
        note = "1 process"
    return WorkerCell(
        worker_id=worker.worker_id,
        mark=marks.get(worker.worker_id, ""),
        name="One of this host’s workers" if worker.host_only else worker.name,
        kind=formatting.kind(worker.kind),
        hostname=worker.hostname,
        host_only=worker.host_only,
        has_page=one.is_recorded,
        state=worker_state(life) if life is not None and life.state in _NOT_ONLINE else None,
        note=note,
        conditions=_conditions(worker),
    )


def _conditions(worker: AttemptWorker) -> Conditions | None:
    known = []
    if worker.load is not None:
        known.append((f"load {worker.load:.1f}", f"load {worker.load:.2f} per CPU"))
    if worker.memory_free is not None:
        known.append((f"{worker.memory_free:.0%} free", f"{worker.memory_free:.0%} of memory free"))
    if worker.running_beside is not None:
        beside = formatting.count(worker.running_beside, "try beside it", "tries beside it")
        known.append((f"{worker.running_beside:,} beside", beside))
    if not known:
        return None
    return Conditions(
        text=" · ".join(short for short, _ in known),
        title="When the try started here: " + ", ".join(sentence for _, sentence in known),
    )


def _no_worker_text(one: Attempt) -> str:
    if one.attribution == "unknown" and one.state not in UNFINISHED:
        return "Not known"
    return "None so far" if one.state in UNFINISHED else "None"


def _duration(one: Attempt, now: datetime) -> str:
    if one.duration is not None:
        return formatting.duration(one.duration)
    if one.state == "running" and one.started_at is not None:
        return f"{formatting.duration((now - one.started_at).total_seconds())} so far"
    return ""
