"""Read recent durations of tries by worker, by which the executors compare workers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timezone
from typing import TYPE_CHECKING

from sqlalchemy import select

from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.store import airflow_history
from airflow_worker_insight.store.dialects import disable_jit
from airflow_worker_insight.store.tables import NO_WORKER, attempt, start_slot

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.engine import Connection


@dataclass(frozen=True, slots=True)
class Stay:
    """A try that runs, or ran from start to end, on one worker.

    Times are aware UTC, by the worker's clock.
    """

    key: TryKey
    ref: int
    started_at: datetime
    ended_at: datetime | None
    """``None`` while it runs."""


def recent_stays(connection: Connection, *, since: datetime, most: int) -> list[Stay]:
    """Return the latest tries that succeeded or run, up to ``most``.

    Tries with several processes (a deferral, a rescheduled sensor) are left out, because their time says nothing about
    a worker, and so are failed tries, which may take any time.
    """
    disable_jit(connection)
    rows = connection.execute(
        select(
            *(attempt.c[name] for name in ("dag_id", "run_id", "task_id", "map_index", "try_number")),
            *(attempt.c[name] for name in ("run_key", "task_key", "worker_ref", "started_at", "ended_at", "state")),
        )
        .where(
            attempt.c.start_slot >= start_slot(since),
            attempt.c.started_at >= since,
            attempt.c.worker_ref != NO_WORKER,
            attempt.c.process_count == 1,
            attempt.c.ordinal == 0,
        )
        # The index is ordered by the slot, so it comes first.
        .order_by(attempt.c.start_slot.desc(), attempt.c.started_at.desc())
        .limit(most)
    ).all()
    keys = [TryKey(row.dag_id, row.run_id, row.task_id, row.map_index, row.try_number) for row in rows]
    # Only Airflow knows whether an open try has ended.
    open_keys = [key for key, row in zip(keys, rows, strict=True) if row.ended_at is None]
    known = airflow_history.tries_by_row(connection, open_keys) if open_keys else {}
    stays = []
    for key, row in zip(keys, rows, strict=True):
        state, ended_at = row.state, row.ended_at
        if ended_at is None:
            airflow_try = known.get((row.run_key, row.task_key, row.try_number))
            state, ended_at = (airflow_try.state, airflow_try.ended_at) if airflow_try is not None else (None, None)
        if (state == "success" and ended_at is not None) or state == "running":
            ended_at = ended_at.astimezone(timezone.utc) if state == "success" else None
            stays.append(Stay(key, row.worker_ref, row.started_at.astimezone(timezone.utc), ended_at))
    return stays
