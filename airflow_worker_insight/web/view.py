"""The view model of the Worker panel: what the templates print, decided here once for all web frameworks.

Pure functions from attempts and the time to dataclasses of finished text. The templates decide nothing but the place
of things.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.web import words
from airflow_worker_insight.web.strip import Strip, build_strip

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from airflow_worker_insight.store.reading import Attempt, AttemptWorker, WorkerRow
    from airflow_worker_insight.web.address import PanelAddress

REFRESH_SECONDS = 5
"""How often a panel asks again while its task has not ended."""

WAITING = frozenset(
    {
        None,
        "scheduled",
        "queued",
        "up_for_retry",
        "up_for_reschedule",
        "deferred",
        "awaiting_input",
        "restarting",
    }
)
"""States in which no worker works on the try now, and one may later."""

UNFINISHED = WAITING | {"running"}


# --- attribution in words -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attribution:
    """How it is known who ran a try: the contract's word, the words for people, and one sentence."""

    key: str
    text: str
    explanation: str


_ATTRIBUTIONS = {
    one.key: one
    for one in (
        Attribution(
            "reported",
            "Reported by the worker",
            "The worker itself said that it ran this try, while it did.",
        ),
        Attribution(
            "inferred",
            "Worked out",
            "The worker did not report, and what Airflow kept of the try leaves no other worker.",
        ),
        Attribution(
            "backfilled",
            "From Airflow’s history",
            "The try is older than the installation of Worker Insight; the worker comes from what Airflow kept of it.",
        ),
        Attribution(
            "not_on_a_worker",
            "Not on a worker",
            "No worker ran this try: it was skipped, or the scheduler or the triggerer ended it.",
        ),
        Attribution(
            "never_started",
            "Never started",
            "The try ended before a worker started its process: Airflow kept neither a host nor a process of it.",
        ),
        Attribution(
            "unknown",
            "Not known",
            "The worker did not report, and Airflow kept no host of this try.",
        ),
    )
}

_HOST_ONLY = {
    "inferred": Attribution(
        "inferred",
        "Worked out: the host only",
        "The worker did not report, and Airflow keeps only the host: it was one of the workers of this host, not "
        "known which.",
    ),
    "backfilled": Attribution(
        "backfilled",
        "From Airflow’s history: the host only",
        "The try is older than the installation of Worker Insight, and Airflow kept only the host: it was one of the "
        "workers of this host, not known which.",
    ),
}

_NOT_REPORTED_YET = Attribution(
    "inferred",
    "Not reported yet",
    "The try runs, and its worker has not reported yet: Airflow names the host, on which there may be several workers.",
)
_NOT_STARTED_YET = Attribution(
    "never_started",
    "Not started yet",
    "No worker has started this try so far.",
)


def attribution_of(one: Attempt) -> Attribution:
    """Return how it is known who ran a try, in words."""
    host_only = any(worker.host_only for worker in one.workers)
    if one.state == "running" and one.attribution == "inferred" and host_only:
        return _NOT_REPORTED_YET
    if one.state in UNFINISHED and not one.workers and one.attribution in ("never_started", "unknown"):
        return _NOT_STARTED_YET
    if host_only and one.attribution in _HOST_ONLY:
        return _HOST_ONLY[one.attribution]
    # A word that a later version of the contract adds is shown as it is: never blank.
    return _ATTRIBUTIONS.get(one.attribution, Attribution(one.attribution, one.attribution.replace("_", " "), ""))


# --- what the templates print ---------------------------------------------------------------------------------------


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
    note: str


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
    started: words.Moment | None
    ended: words.Moment | None
    duration: str
    attribution: Attribution
    is_selected: bool


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence in a box: why something is not there, and what to do. ``tone`` is ``info`` or ``warning``."""

    tone: str
    title: str
    text: str
    command: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """The Worker panel of one task instance."""

    address: PanelAddress
    task_name: str
    summary: str
    rows: tuple[Row, ...]
    strip: Strip | None
    notices: tuple[Notice, ...]
    explanations: tuple[Attribution, ...]
    refresh_seconds: int
    """How often to ask again; 0 for a task instance that has ended."""


def build_panel(address: PanelAddress, attempts: Sequence[Attempt], *, now: datetime) -> Panel:
    """Return the panel of a task instance.

    :param attempts: every try of it, in any order; a try numbered 0 has not been scheduled
    :param now: the time until which a running try lasts
    """
    tries = sorted((one for one in attempts if one.try_number > 0), key=lambda one: -one.try_number)
    marks = _marks(tries)
    rows = tuple(_row(one, marks, now=now, selected=address.try_number) for one in tries)
    summary = _summary(tries)
    explanations = {row.attribution.text: row.attribution for row in rows}
    latest = max(attempts, key=lambda one: one.try_number, default=None)
    unfinished = latest is not None and latest.state in UNFINISHED
    return Panel(
        address=address,
        task_name=_task_name(address.task_id, address.map_index),
        summary=summary,
        rows=rows,
        strip=build_strip(tries, marks, now=now, label=summary),
        notices=tuple(_notices(attempts, tries)),
        explanations=tuple(explanations.values()),
        refresh_seconds=REFRESH_SECONDS if unfinished else 0,
    )


def _task_name(task_id: str, map_index: int) -> str:
    return task_id if map_index < 0 else f"{task_id} [{map_index}]"


def _marks(tries: Sequence[Attempt]) -> dict[str, str]:
    """Give each worker a letter, in the order in which the workers came to the task: A to Z, then AA, AB and so on."""
    worker_ids: dict[str, None] = {}
    for one in sorted(tries, key=lambda one: one.try_number):
        for worker in one.workers:
            worker_ids.setdefault(worker.worker_id)
    return {worker_id: _letters(index) for index, worker_id in enumerate(worker_ids)}


def _letters(index: int) -> str:
    letters = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        letters = chr(ord("A") + letter) + letters
    return letters


def _row(one: Attempt, marks: Mapping[str, str], *, now: datetime, selected: int | None) -> Row:
    return Row(
        dag_id=one.dag_id,
        run_id=one.run_id,
        task_id=one.task_id,
        map_index=one.map_index,
        try_number=one.try_number,
        state=one.state or "no_status",
        state_text=words.state(one.state),
        workers=tuple(_cell(one, worker, marks) for worker in one.workers),
        no_worker_text="" if one.workers else _no_worker_text(one),
        started=words.moment(one.started_at),
        ended=words.moment(one.ended_at),
        duration=_duration(one, now),
        attribution=attribution_of(one),
        is_selected=one.try_number == selected,
    )


def _cell(one: Attempt, worker: AttemptWorker, marks: Mapping[str, str]) -> WorkerCell:
    note = ""
    if worker.process_count > 1:
        note = words.count(worker.process_count, "process", "processes")
    elif len(one.workers) > 1 and worker.process_count == 1:
        note = "1 process"
    return WorkerCell(
        worker_id=worker.worker_id,
        mark=marks.get(worker.worker_id, ""),
        name="One of this host’s workers" if worker.host_only else worker.name,
        kind=words.kind(worker.kind),
        hostname=worker.hostname,
        host_only=worker.host_only,
        has_page=one.is_recorded,
        note=note,
    )


def _no_worker_text(one: Attempt) -> str:
    if one.attribution == "unknown" and one.state not in UNFINISHED:
        return "Not known"
    return "None so far" if one.state in UNFINISHED else "None"


def _duration(one: Attempt, now: datetime) -> str:
    if one.duration is not None:
        return words.duration(one.duration)
    if one.state == "running" and one.started_at is not None:
        return f"{words.duration((now - one.started_at).total_seconds())} so far"
    return ""


# --- sentences ------------------------------------------------------------------------------------------------------


_DID = {
    "success": "succeeded{where}",
    "failed": "failed{where}",
    "running": "is running{where}",
    "up_for_retry": "failed{where} and waits for its retry",
    "up_for_reschedule": "began{where} and waits to be rescheduled",
    "deferred": "began{where} and is deferred to the triggerer",
    "awaiting_input": "began{where} and waits for a person’s input",
    "queued": "is queued",
    "scheduled": "is scheduled",
    "restarting": "is being restarted{where}",
    "skipped": "was skipped{where}",
    "upstream_failed": "was not run, because a task before it failed",
    "removed": "was removed from its Dag{where}",
}


def _summary(tries: Sequence[Attempt]) -> str:
    """Say in one sentence how many tries ran on how many workers and what became of the last one."""
    if not tries:
        return ""
    last = tries[0]
    did = _DID.get(last.state or "", "is in the state " + words.state(last.state).lower() + "{where}")
    did = did.format(where=_where(last))
    if len(tries) == 1:
        return f"The only try so far {did}."
    return f"{_how_many(tries)}; the last one {did}."


def _how_many(tries: Sequence[Attempt]) -> str:
    """Count tries and the workers that are known; a host that may be any of its workers is none of them."""
    all_of_them = words.count(len(tries), "try", "tries")
    workers = {worker.worker_id for one in tries for worker in one.workers if not worker.host_only}
    placed = sum(any(not worker.host_only for worker in one.workers) for one in tries)
    hosts = {worker.hostname for one in tries for worker in one.workers if worker.host_only}
    if placed == len(tries):
        if len(workers) == 1:
            return f"{all_of_them}, all on the same worker"
        return f"{all_of_them} on {words.count(len(workers), 'worker', 'workers')}"
    if not placed:
        if all(one.workers for one in tries):
            return f"{all_of_them}, all on {'the same host' if len(hosts) == 1 else f'{len(hosts)} hosts'}"
        return f"{all_of_them}, on no known worker" if not hosts else f"{all_of_them}, some on a known host"
    return f"{all_of_them}, {placed} of them on {words.count(len(workers), 'known worker', 'known workers')}"


def _where(one: Attempt) -> str:
    if not one.workers:
        return ""
    if len(one.workers) > 1:
        return f" after {words.count(len(one.workers), 'worker', 'workers')} worked on it"
    worker = one.workers[0]
    return f" on a worker of {worker.hostname}" if worker.host_only else f" on {worker.name}"


def _notices(attempts: Sequence[Attempt], tries: Sequence[Attempt]) -> list[Notice]:
    if not attempts:
        return [
            Notice(
                "info",
                "No such task instance",
                "Airflow has no task instance of this name in this Dag run, and none was recorded: it may have been "
                "deleted, or the task is mapped and has no instance with this map index. Open one of the task’s "
                "instances in Airflow’s grid.",
            )
        ]
    latest = max(attempts, key=lambda one: one.try_number)
    found = []
    if latest.state == "skipped" and not latest.workers:
        found.append(Notice("info", "Never ran on a worker", "The task was skipped, so no worker was asked to run it."))
    elif latest.state == "upstream_failed" and not latest.workers:
        found.append(
            Notice(
                "info",
                "Never ran on a worker",
                "A task before this one failed, so no worker was asked to run it. Look at that task’s worker instead.",
            )
        )
    elif latest.state == "removed" and not latest.workers:
        found.append(
            Notice(
                "info",
                "Never ran on a worker",
                "The task was removed from its Dag before a worker could run it.",
            )
        )
    elif not tries or all(one.state in WAITING and not one.workers for one in tries):
        found.append(_no_try_yet(latest))
    if _wants_backfill(tries):
        found.append(
            Notice(
                "info",
                "Not recorded",
                "Nothing was recorded of these tries. If they are older than the installation of Worker Insight, an "
                "administrator can fill them in from Airflow’s history:",
                "airflow-worker-insight backfill",
            )
        )
    return found


def _no_try_yet(latest: Attempt) -> Notice:
    if latest.state in ("queued", "scheduled"):
        text = (
            "The task waits for a worker to start it. If it waits for long, check that a worker of its queue is "
            "running and that its pool has free slots."
        )
    elif latest.state == "deferred":
        text = "The task waits in the triggerer, and no worker has run it so far."
    else:
        text = (
            "The task has not been scheduled: it may wait for tasks before it, or its Dag may be paused. "
            "This page fills in as soon as a worker starts it."
        )
    return Notice("info", "No try yet", text)


def _wants_backfill(tries: Sequence[Attempt]) -> bool:
    finished = [one for one in tries if one.state not in UNFINISHED]
    return bool(finished) and not any(one.is_recorded for one in finished)


# --- the page of a worker -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of what a worker is; ``moment`` is set where the value is a point in time."""

    name: str
    text: str
    moment: words.Moment | None = None
    is_code: bool = False


@dataclass(frozen=True, slots=True)
class WorkerPage:
    """One life of a worker and a page of the tries that it ran."""

    worker_id: str
    name: str
    kind: str
    introduction: str
    facts: tuple[Fact, ...]
    labels: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    range_text: str
    previous_offset: int | None
    next_offset: int | None
    empty_text: str


PAGE_SIZE = 25


def build_worker_page(
    worker: WorkerRow, attempts: Sequence[Attempt], *, total: int, offset: int, now: datetime
) -> WorkerPage:
    """Return the page of a worker.

    :param attempts: the tries that the reader may see, from ``offset`` on, the latest first
    :param total: how many there are that the reader may see
    """
    kind = words.kind(worker.kind)
    return WorkerPage(
        worker_id=worker.worker_id,
        name=f"A {kind} worker on {worker.hostname}" if worker.host_only else worker.name,
        kind=kind,
        introduction=(
            "Airflow kept only the host of these tries: each ran on one of the workers of this host, not known which."
            if worker.host_only
            else "One life of a worker: after a restart it has a new ID and a page of its own."
        ),
        facts=tuple(_facts(worker)),
        labels=tuple(sorted((str(key), str(value)) for key, value in worker.labels.items())),
        rows=tuple(_row(one, {}, now=now, selected=None) for one in attempts),
        range_text=_range_text(len(attempts), total, offset),
        previous_offset=max(0, min(offset - PAGE_SIZE, total - 1)) if offset > 0 else None,
        next_offset=offset + len(attempts) if offset + len(attempts) < total and attempts else None,
        empty_text=(
            "There are no more tries here."
            if total
            else "No try of this worker was recorded in a Dag that you may read."
        ),
    )


def _facts(worker: WorkerRow) -> list[Fact]:
    found = [Fact("Kind", words.kind(worker.kind)), Fact("Host", worker.hostname)]
    if worker.pid is not None:
        found.append(Fact("Process", str(worker.pid)))
    if worker.started_at is not None:
        found.append(Fact("Started", "", words.moment(worker.started_at)))
    found.append(Fact("First seen", "", words.moment(worker.registered_at)))
    found.append(Fact("Last seen", "", words.moment(worker.last_seen_at)))
    found += [_resource(name, value) for name, value in sorted(worker.resources.items())]
    found += [
        Fact(_VERSION_NAMES.get(name, name.replace("_", " ")), str(value))
        for name, value in sorted(worker.versions.items())
    ]
    found.append(Fact("Worker ID", worker.worker_id, is_code=True))
    return found


_RESOURCE_NAMES = {"cpus": "CPUs", "memory_bytes": "Memory", "os": "System", "architecture": "Architecture"}
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
        return Fact(_RESOURCE_NAMES.get(name, name.removesuffix("_bytes").replace("_", " ")), words.size(value))
    return Fact(_RESOURCE_NAMES.get(name, name.replace("_", " ")), str(value))


def _range_text(shown: int, total: int, offset: int) -> str:
    if not shown:
        return ""
    if shown == total:
        return words.count(total, "try", "tries")
    return f"{offset + 1:,} to {offset + shown:,} of {total:,} tries"
