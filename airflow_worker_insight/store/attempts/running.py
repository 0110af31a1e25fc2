"""What runs on workers at this moment, by Airflow's word."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.store import airflow_history
from airflow_worker_insight.store.dialects import in_rows
from airflow_worker_insight.store.tables import NO_WORKER, attempt
from airflow_worker_insight.store.workers.instances import _batches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from typing import Any

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.keys import RowKey


@dataclass(frozen=True, slots=True)
class RunningTries:
    """The tries that run now, by the row ID of the worker that each runs on."""

    counts: Mapping[int, int]
    heartbeats: Mapping[int, datetime]
    """The latest heartbeat of a worker's tries, by the clock of whoever took it; of a worker whose tries have none
    there is none."""


def running_tries(connection: Connection) -> RunningTries:
    """Ask Airflow which tries run now, and our own table where."""
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
    """Return the tries that run now with the row ID of the worker that each runs on."""
    running = _running(connection)
    return {running[row_key][0]: ref for row_key, ref in _latest_workers(connection, sorted(running)).items()}


def _running(connection: Connection) -> dict[RowKey, tuple[TryKey, datetime | None]]:
    """Return the tries that run, by what they are recorded by, with their latest heartbeats."""
    found: dict[RowKey, tuple[TryKey, datetime | None]] = {}
    for row in connection.execute(_select_running()):
        key = TryKey(row.dag_id, row.run_id, row.task_id, row.map_index, row.try_number)
        found[key.run_key, airflow_history.instance_keys(row)[0], key.try_number] = (key, utc(row.heartbeat))
    return found


def _select_running() -> Any:
    """Select the tries that run: on 2.11 their heartbeats are those of their own jobs."""
    table, job = metadata_database.task_instance_table(), metadata_database.job_table()
    source, identity = metadata_database.try_identity(table)
    names = [table.c[name] for name in ("dag_id", "run_id", "task_id", "map_index", "try_number")]
    # "restarting" is set on a running try that is to end: its process lives until it has.
    is_running = table.c.state.in_(("running", "restarting"))
    heartbeat = job.c.latest_heartbeat
    if "last_heartbeat_at" in table.c:
        heartbeat = table.c.last_heartbeat_at
    else:
        source = source.outerjoin(job, job.c.id == table.c.job_id)
    return select(*names, *identity, heartbeat.label("heartbeat")).select_from(source).where(is_running)


def _latest_workers(connection: Connection, keys: Sequence[RowKey]) -> dict[RowKey, int]:
    """Return for each of these tries the worker whose process of it began last: others it has deferred from."""
    key = (attempt.c.run_key, attempt.c.task_key, attempt.c.try_number)
    began = func.coalesce(attempt.c.last_started_at, attempt.c.started_at).label("began")
    latest: dict[RowKey, tuple[bool, Any, int, int]] = {}
    for batch in _batches(keys):
        rows = connection.execute(
            select(*key, attempt.c.worker_ref, attempt.c.ordinal, began).where(
                in_rows(connection, key, batch), attempt.c.worker_ref != NO_WORKER
            )
        )
        for row in rows:
            one = (row.run_key, row.task_key, row.try_number)
            found = (row.began is not None, row.began, row.ordinal, row.worker_ref)
            if one not in latest or found > latest[one]:
                latest[one] = found
    return {one: ref for one, (_, _, _, ref) in latest.items()}
