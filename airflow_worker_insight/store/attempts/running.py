"""Read what runs on workers now, by Airflow's state."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.store import airflow_history
from airflow_worker_insight.store.batches import batches
from airflow_worker_insight.store.dialects import in_rows
from airflow_worker_insight.store.tables import NO_WORKER, attempt, key_columns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from typing import Any

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.keys import RowKey

BATCH = 500
"""Tries that one statement looks up."""


@dataclass(frozen=True, slots=True)
class RunningTries:
    """The tries that run now, by the row ID of the worker that each runs on."""

    counts: Mapping[int, int]
    heartbeats: Mapping[int, datetime]
    """The latest heartbeat of each worker's tries, by the clock of the process that took it.

    Workers whose tries have no heartbeat are left out.
    """


def running_tries(connection: Connection) -> RunningTries:
    """Read the running tries from Airflow's tables, and their workers from our own."""
    running = _running(connection)
    counts: Counter[int] = Counter()
    heartbeats: dict[int, datetime] = {}
    for row_key, ref in _latest_workers(connection, sorted(running)).items():
        counts[ref] += 1
        beat = running[row_key][1]
        if beat is not None:
            heartbeats[ref] = max(heartbeats.get(ref, beat), beat)
    return RunningTries(counts, heartbeats)


def running_on(connection: Connection) -> dict[TryKey, int]:
    """Return the running tries with the row ID of the worker that each runs on."""
    running = _running(connection)
    return {running[row_key][0]: ref for row_key, ref in _latest_workers(connection, sorted(running)).items()}


def _running(connection: Connection) -> dict[RowKey, tuple[TryKey, datetime | None]]:
    """Return the running tries by their row keys, with their latest heartbeats."""
    running: dict[RowKey, tuple[TryKey, datetime | None]] = {}
    for row in connection.execute(_select_running()):
        key = TryKey(row.dag_id, row.run_id, row.task_id, row.map_index, row.try_number)
        running[key.run_key, airflow_history.instance_keys(row)[0], key.try_number] = (key, utc(row.heartbeat))
    return running


def _select_running() -> Any:
    """Select the running tries; on Airflow 2.11 their heartbeats are those of their own jobs."""
    table, job = metadata_database.task_instance_table(), metadata_database.job_table()
    source, identity = metadata_database.try_identity(table)
    names = [table.c[name] for name in ("dag_id", "run_id", "task_id", "map_index", "try_number")]
    # "restarting" marks a running try that was told to end: its process still lives.
    is_running = table.c.state.in_(("running", "restarting"))
    heartbeat = job.c.latest_heartbeat
    if "last_heartbeat_at" in table.c:
        heartbeat = table.c.last_heartbeat_at
    else:
        source = source.outerjoin(job, job.c.id == table.c.job_id)
    return select(*names, *identity, heartbeat.label("heartbeat")).select_from(source).where(is_running)


def _latest_workers(connection: Connection, keys: Sequence[RowKey]) -> dict[RowKey, int]:
    """Return the worker on which the latest process of each try began.

    Before a deferral the try may have run on other workers.
    """
    columns = key_columns(attempt)
    began = func.coalesce(attempt.c.last_started_at, attempt.c.started_at).label("began")
    latest: dict[RowKey, tuple[bool, Any, int, int]] = {}
    for batch in batches(keys, BATCH):
        rows = connection.execute(
            select(*columns, attempt.c.worker_ref, attempt.c.ordinal, began).where(
                in_rows(connection, columns, batch), attempt.c.worker_ref != NO_WORKER
            )
        )
        for row in rows:
            row_key = (row.run_key, row.task_key, row.try_number)
            candidate = (row.began is not None, row.began, row.ordinal, row.worker_ref)
            if row_key not in latest or candidate > latest[row_key]:
                latest[row_key] = candidate
    return {row_key: ref for row_key, (_, _, _, ref) in latest.items()}
