"""Worker panel: all tries of one task instance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.domain import reasons
from airflow_worker_insight.domain.states import WorkerState
from airflow_worker_insight.ui import formatting
from airflow_worker_insight.ui.views.attribution import UNFINISHED, WAITING, Attribution
from airflow_worker_insight.ui.views.parts import Notice
from airflow_worker_insight.ui.views.placement import why_text
from airflow_worker_insight.ui.views.strip import Strip, build_strip
from airflow_worker_insight.ui.views.tries import Row, build_row

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from airflow_worker_insight.domain.attempts import Attempt
    from airflow_worker_insight.domain.workers import WorkerRow
    from airflow_worker_insight.store.placements import Explanation
    from airflow_worker_insight.ui.query_params import PanelParams
    from airflow_worker_insight.ui.views.comparison import Verdict

REFRESH_SECONDS = 5
"""Refresh interval in seconds while the task instance has not ended."""


@dataclass(frozen=True, slots=True)
class LostWorkerWarning:
    """Warning that Airflow counts the last try as running on a worker lost ``since`` then."""

    text: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Panel:
    """Worker panel of one task instance."""

    params: PanelParams
    task_name: str
    summary: str
    warning: LostWorkerWarning | None
    rows: tuple[Row, ...]
    strip: Strip | None
    verdict: Verdict | None
    """What can be said of the latest failed try; ``None`` if none failed on a known worker."""
    notices: tuple[Notice, ...]
    explanations: tuple[Attribution, ...]
    refresh_seconds: int
    """Refresh interval in seconds; 0 once the task instance has ended."""


def build_panel(
    params: PanelParams,
    attempts: Sequence[Attempt],
    instances: Mapping[str, WorkerRow] | None = None,
    *,
    now: datetime,
    placed: Mapping[int, Explanation] | None = None,
    verdict: Verdict | None = None,
) -> Panel:
    """Return the panel of a task instance.

    :param attempts: all tries of the task instance, in any order; try number 0 means not scheduled yet
    :param instances: the worker instances whose state the user may see, by worker ID
    :param placed: why each try was placed on its worker, or waits, by try number
    :param now: the current time, up to which running tries last
    :param verdict: what can be said of the latest failed try
    """
    tries = sorted((attempt for attempt in attempts if attempt.try_number > 0), key=lambda attempt: -attempt.try_number)
    marks = _marks(tries)
    why_by_try = placed or {}
    rows = tuple(
        build_row(
            attempt,
            marks,
            instances,
            now=now,
            selected_try=params.try_number,
            why=why_text(
                why_by_try.get(attempt.try_number),
                has_started=bool(attempt.workers),
                is_over=attempt.state not in UNFINISHED,
            ),
        )
        for attempt in tries
    )
    summary = _summary(tries, why_by_try)
    explanations = {row.attribution.text: row.attribution for row in rows}
    latest = max(attempts, key=lambda attempt: attempt.try_number, default=None)
    unfinished = latest is not None and latest.state in UNFINISHED
    return Panel(
        params=params,
        task_name=_task_name(params.task_id, params.map_index),
        summary=summary,
        warning=_warning(tries, instances or {}),
        rows=rows,
        strip=build_strip(tries, marks, _lost(instances or {}), now=now, label=summary),
        verdict=verdict,
        notices=tuple(_notices(attempts, tries, why_by_try)),
        explanations=tuple(explanations.values()),
        refresh_seconds=REFRESH_SECONDS if unfinished else 0,
    )


def _task_name(task_id: str, map_index: int) -> str:
    return task_id if map_index < 0 else f"{task_id} [{map_index}]"


def _marks(tries: Sequence[Attempt]) -> dict[str, str]:
    """Assign letters to workers in the order in which they first ran the task.

    The letters are A to Z, then AA, AB and so on.
    """
    worker_ids: dict[str, None] = {}
    for attempt in sorted(tries, key=lambda attempt: attempt.try_number):
        for worker in attempt.workers:
            worker_ids.setdefault(worker.worker_id)
    return {worker_id: _letters(index) for index, worker_id in enumerate(worker_ids)}


def _letters(index: int) -> str:
    letters = ""
    index += 1
    while index:
        index, remainder = divmod(index - 1, 26)
        letters = chr(ord("A") + remainder) + letters
    return letters


# --- sentences ------------------------------------------------------------------------------------------------------


_OUTCOMES = {
    "success": "succeeded{where}",
    "failed": "failed{where}",
    "running": "is running{where}",
    "up_for_retry": "failed{where} and waits for its retry",
    "up_for_reschedule": "started{where} and waits to be rescheduled",
    "deferred": "started{where} and is deferred to the triggerer",
    "awaiting_input": "started{where} and waits for human input",
    "queued": "is queued",
    "scheduled": "is scheduled",
    "restarting": "is being restarted{where}",
    "skipped": "was skipped{where}",
    "upstream_failed": "did not run, because an upstream task failed",
    "removed": "was removed from its Dag{where}",
}


def _summary(tries: Sequence[Attempt], placed: Mapping[int, Explanation]) -> str:
    """Summarize in one sentence: tries, workers, and the outcome of the last try."""
    if not tries:
        return ""
    last = tries[0]
    outcome = _OUTCOMES.get(last.state or "", "is in the state " + formatting.state(last.state).lower() + "{where}")
    outcome = outcome.format(where=_where_text(last))
    if last.state == "queued" and last.try_number in placed:
        outcome = (
            "waits for a worker" if placed[last.try_number].reason in reasons.WAITING_REASONS else "waits to start"
        )
    if len(tries) == 1:
        return f"The only try so far {outcome}."
    return f"{_count_text(tries)}; the last one {outcome}."


def _warning(tries: Sequence[Attempt], instances: Mapping[str, WorkerRow]) -> LostWorkerWarning | None:
    """Return a warning if Airflow still counts the last try as running on a lost worker.

    Airflow does so until the heartbeat of the task instance times out.
    """
    if not tries or tries[0].state not in ("running", "restarting") or not tries[0].workers:
        return None
    last = max(tries[0].workers, key=lambda worker: (worker.last_started_at is not None, worker.last_started_at))
    instance = instances.get(last.worker_id)
    if instance is None or instance.state != WorkerState.LOST:
        return None
    text = f"Airflow still counts it as running, but {last.name} has been lost"
    return LostWorkerWarning(text, instance.ended_at or instance.last_seen_at)


def _lost(instances: Mapping[str, WorkerRow]) -> dict[str, datetime]:
    return {
        worker_id: instance.ended_at or instance.last_seen_at
        for worker_id, instance in instances.items()
        if instance.state == WorkerState.LOST
    }


def _count_text(tries: Sequence[Attempt]) -> str:
    """Count tries and known workers; a host that stands for any of its workers is not one."""
    tries_text = formatting.count(len(tries), "try", "tries")
    workers = {worker.worker_id for attempt in tries for worker in attempt.workers if not worker.host_only}
    on_worker = sum(any(not worker.host_only for worker in attempt.workers) for attempt in tries)
    hosts = {worker.hostname for attempt in tries for worker in attempt.workers if worker.host_only}
    if on_worker == len(tries):
        if len(workers) == 1:
            return f"{tries_text}, all on the same worker"
        return f"{tries_text} on {formatting.count(len(workers), 'worker', 'workers')}"
    if not on_worker:
        if all(attempt.workers for attempt in tries):
            return f"{tries_text}, all on {'the same host' if len(hosts) == 1 else f'{len(hosts)} hosts'}"
        return f"{tries_text}, on no known worker" if not hosts else f"{tries_text}, some on a known host"
    return f"{tries_text}, {on_worker} of them on {formatting.count(len(workers), 'known worker', 'known workers')}"


def _where_text(attempt: Attempt) -> str:
    if not attempt.workers:
        return ""
    if len(attempt.workers) > 1:
        return f" after {formatting.count(len(attempt.workers), 'worker', 'workers')} worked on it"
    worker = attempt.workers[0]
    return f" on a worker of {worker.hostname}" if worker.host_only else f" on {worker.name}"


def _notices(attempts: Sequence[Attempt], tries: Sequence[Attempt], placed: Mapping[int, Explanation]) -> list[Notice]:
    if not attempts:
        return [
            Notice(
                "info",
                "Task instance not found",
                "Airflow has no such task instance in this Dag run, and no try was recorded. It may have been deleted, "
                "or the task is mapped and has no such map index. Open a task instance in Airflow’s grid.",
            )
        ]
    latest = max(attempts, key=lambda attempt: attempt.try_number)
    notices = []
    if latest.state == "skipped" and not latest.workers:
        notices.append(Notice("info", "Never ran on a worker", "The task was skipped, so no worker ran it."))
    elif latest.state == "upstream_failed" and not latest.workers:
        notices.append(
            Notice(
                "info",
                "Never ran on a worker",
                "An upstream task failed, so no worker ran this one. Check the worker of the upstream task.",
            )
        )
    elif latest.state == "removed" and not latest.workers:
        notices.append(
            Notice(
                "info",
                "Never ran on a worker",
                "The task was removed from its Dag before a worker ran it.",
            )
        )
    elif latest.state == "queued" and latest.try_number in placed:
        # The row of the try says which worker it waits for, or why no worker fits.
        pass
    elif not tries or all(attempt.state in WAITING and not attempt.workers for attempt in tries):
        notices.append(_no_try_yet(latest))
    if _can_backfill([attempt for attempt in tries if attempt.try_number not in placed]):
        notices.append(
            Notice(
                "info",
                "Not recorded",
                "These tries were not recorded. If they are older than the installation of Worker Insight, an "
                "administrator can backfill them from Airflow’s history:",
                "airflow-worker-insight backfill",
            )
        )
    return notices


def _no_try_yet(latest: Attempt) -> Notice:
    if latest.state in ("queued", "scheduled"):
        text = (
            "The task waits for a worker. If it keeps waiting, check that a worker consumes its queue and that its "
            "pool has free slots."
        )
    elif latest.state == "deferred":
        text = "The task is deferred to the triggerer, and no worker has run it yet."
    else:
        text = (
            "The task has not been scheduled: it may wait for upstream tasks, or its Dag may be paused. This page "
            "updates when a worker starts it."
        )
    return Notice("info", "No tries yet", text)


def _can_backfill(tries: Sequence[Attempt]) -> bool:
    finished = [attempt for attempt in tries if attempt.state not in UNFINISHED]
    return bool(finished) and not any(attempt.is_recorded for attempt in finished)
