"""The Worker panel: all tries of one task instance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.domain import reasons
from airflow_worker_insight.domain.states import LOST
from airflow_worker_insight.ui import formatting
from airflow_worker_insight.ui.lanes import Strip, build_strip
from airflow_worker_insight.ui.views.attribution import UNFINISHED, WAITING, Attribution
from airflow_worker_insight.ui.views.parts import Notice
from airflow_worker_insight.ui.views.placement import why_text
from airflow_worker_insight.ui.views.tries import Row, build_row

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from airflow_worker_insight.domain.attempts import Attempt
    from airflow_worker_insight.domain.workers import WorkerRow
    from airflow_worker_insight.store.placements import Why
    from airflow_worker_insight.ui.query_params import PanelAddress

REFRESH_SECONDS = 5
"""How often a panel asks again while its task has not ended."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """What Airflow still says of the last try although its worker has been gone ``since`` then."""

    text: str
    since: formatting.Moment


@dataclass(frozen=True, slots=True)
class Panel:
    """The Worker panel of one task instance."""

    address: PanelAddress
    task_name: str
    summary: str
    doubt: Doubt | None
    rows: tuple[Row, ...]
    strip: Strip | None
    notices: tuple[Notice, ...]
    explanations: tuple[Attribution, ...]
    refresh_seconds: int
    """How often to ask again; 0 for a task instance that has ended."""


def build_panel(
    address: PanelAddress,
    attempts: Sequence[Attempt],
    lives: Mapping[str, WorkerRow] | None = None,
    *,
    now: datetime,
    placed: Mapping[int, Why] | None = None,
) -> Panel:
    """Return the panel of a task instance.

    :param attempts: every try of it, in any order; a try numbered 0 has not been scheduled
    :param lives: the workers whose state the reader may see, by their IDs
    :param placed: why tries were placed where they were, by their numbers
    :param now: the time until which a running try lasts
    """
    tries = sorted((one for one in attempts if one.try_number > 0), key=lambda one: -one.try_number)
    marks = _marks(tries)
    known = placed or {}
    rows = tuple(
        build_row(
            one,
            marks,
            lives,
            now=now,
            selected=address.try_number,
            why=why_text(known.get(one.try_number), has_started=bool(one.workers), is_over=one.state not in UNFINISHED),
        )
        for one in tries
    )
    summary = _summary(tries, known)
    explanations = {row.attribution.text: row.attribution for row in rows}
    latest = max(attempts, key=lambda one: one.try_number, default=None)
    unfinished = latest is not None and latest.state in UNFINISHED
    return Panel(
        address=address,
        task_name=_task_name(address.task_id, address.map_index),
        summary=summary,
        doubt=_doubt(tries, lives or {}),
        rows=rows,
        strip=build_strip(tries, marks, _lost(lives or {}), now=now, label=summary),
        notices=tuple(_notices(attempts, tries, known)),
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


def _summary(tries: Sequence[Attempt], placed: Mapping[int, Why]) -> str:
    """Say in one sentence how many tries ran on how many workers and what became of the last one."""
    if not tries:
        return ""
    last = tries[0]
    did = _DID.get(last.state or "", "is in the state " + formatting.state(last.state).lower() + "{where}")
    did = did.format(where=_where(last))
    if last.state == "queued" and last.try_number in placed:
        did = "waits for a worker" if placed[last.try_number].reason in reasons.WAITING else "waits for its start"
    if len(tries) == 1:
        return f"The only try so far {did}."
    return f"{_how_many(tries)}; the last one {did}."


def _doubt(tries: Sequence[Attempt], lives: Mapping[str, WorkerRow]) -> Doubt | None:
    """Say that nobody works on the last try any more, although Airflow says so until its own heartbeat times out."""
    if not tries or tries[0].state not in ("running", "restarting") or not tries[0].workers:
        return None
    last = max(tries[0].workers, key=lambda worker: (worker.last_started_at is not None, worker.last_started_at))
    life = lives.get(last.worker_id)
    since = formatting.moment(life.ended_at or life.last_seen_at) if life is not None and life.state == LOST else None
    return None if since is None else Doubt(f"Airflow still counts it as running, but {last.name} has been lost", since)


def _lost(lives: Mapping[str, WorkerRow]) -> dict[str, datetime]:
    return {worker_id: life.ended_at or life.last_seen_at for worker_id, life in lives.items() if life.state == LOST}


def _how_many(tries: Sequence[Attempt]) -> str:
    """Count tries and the workers that are known; a host that may be any of its workers is none of them."""
    all_of_them = formatting.count(len(tries), "try", "tries")
    workers = {worker.worker_id for one in tries for worker in one.workers if not worker.host_only}
    placed = sum(any(not worker.host_only for worker in one.workers) for one in tries)
    hosts = {worker.hostname for one in tries for worker in one.workers if worker.host_only}
    if placed == len(tries):
        if len(workers) == 1:
            return f"{all_of_them}, all on the same worker"
        return f"{all_of_them} on {formatting.count(len(workers), 'worker', 'workers')}"
    if not placed:
        if all(one.workers for one in tries):
            return f"{all_of_them}, all on {'the same host' if len(hosts) == 1 else f'{len(hosts)} hosts'}"
        return f"{all_of_them}, on no known worker" if not hosts else f"{all_of_them}, some on a known host"
    return f"{all_of_them}, {placed} of them on {formatting.count(len(workers), 'known worker', 'known workers')}"


def _where(one: Attempt) -> str:
    if not one.workers:
        return ""
    if len(one.workers) > 1:
        return f" after {formatting.count(len(one.workers), 'worker', 'workers')} worked on it"
    worker = one.workers[0]
    return f" on a worker of {worker.hostname}" if worker.host_only else f" on {worker.name}"


def _notices(attempts: Sequence[Attempt], tries: Sequence[Attempt], placed: Mapping[int, Why]) -> list[Notice]:
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
    elif latest.state == "queued" and latest.try_number in placed:
        # Its row says which worker it waits for, or why there is none.
        pass
    elif not tries or all(one.state in WAITING and not one.workers for one in tries):
        found.append(_no_try_yet(latest))
    if _wants_backfill([one for one in tries if one.try_number not in placed]):
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
