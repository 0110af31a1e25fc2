"""Build attempts for the tests of the view models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_worker_insight.domain.attempts import Attempt, AttemptWorker
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.store.attempts.by_worker import Stay
from airflow_worker_insight.ui.query_params import PanelParams
from tests.unit.database import at

if TYPE_CHECKING:
    from datetime import datetime

HERE = PanelParams("etl", "run-1", "load")


def on(worker_id: str, first: float | None = None, last: float | None = None, **others: Any) -> AttemptWorker:
    """Return a worker of an attempt, with its first and last process as seconds after noon."""
    known: dict[str, Any] = {
        "name": f"{worker_id}@host-1",
        "kind": "celery",
        "hostname": "host-1",
        "host_only": False,
        "process_count": 1,
        "first_started_at": _at(first),
        "last_started_at": _at(first if last is None else last),
    }
    return AttemptWorker(worker_id=worker_id, **{**known, **others})


def one_of_the_host(hostname: str = "host-1") -> AttemptWorker:
    """Return the worker that stands for all workers of a host."""
    return on("host-abc", name=hostname, hostname=hostname, host_only=True)


def a_try(
    number: int,
    start: float | None = None,
    end: float | None = None,
    *workers: AttemptWorker,
    state: str | None = "success",
    attribution: str = "reported",
    is_recorded: bool = True,
) -> Attempt:
    """Return a try that ran from ``start`` to ``end``, in seconds after noon."""
    return Attempt(
        dag_id="etl",
        run_id="run-1",
        task_id="load",
        map_index=-1,
        try_number=number,
        state=state,
        started_at=_at(start),
        ended_at=_at(end),
        duration=None if start is None or end is None else end - start,
        attribution=attribution,
        workers=workers,
        is_recorded=is_recorded,
    )


def a_stay(
    number: int,
    start: float,
    end: float | None = None,
    *,
    last: float | None = None,
    state: str | None = "success",
    continued_elsewhere: bool = False,
    **names: Any,
) -> Stay:
    """Return a stay that began at ``start``, of a try that ended at ``end``, in seconds after noon."""
    known = {"dag_id": "etl", "run_id": "run-1", "task_id": "load", "map_index": -1, "try_number": number, **names}
    return Stay(
        key=TryKey(**known),
        state=state,
        first_process_at=_at(start),
        last_process_at=_at(start if last is None else last),
        ended_at=_at(end),
        continued_elsewhere=continued_elsewhere,
    )


def _at(seconds: float | None) -> datetime | None:
    return None if seconds is None else at(seconds)
