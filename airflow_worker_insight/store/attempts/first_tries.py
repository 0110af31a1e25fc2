"""Read first tries with their outcomes, by which a worker is compared with the other workers of the same tasks.

Retries do not count: they would count one bad task many times.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select

from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.domain.states import WorkerState
from airflow_worker_insight.store import airflow_history
from airflow_worker_insight.store.attempts import search
from airflow_worker_insight.store.dialects import disable_jit, in_list
from airflow_worker_insight.store.tables import NO_WORKER, attempt, worker

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime
    from typing import Any

    from sqlalchemy.engine import Connection, Row

MAX_SCANNED = 5_000
"""Latest tries of a Dag, or of a worker, that are scanned for first tries."""

MAX_MAPPED = 640
"""First tries of mapped task instances that are read: of those in one run on one worker only the first counts."""

_FAILED = frozenset({"failed", "up_for_retry"})
# All others say nothing of the worker: skipped or removed, a person cleared or restarted it, or Airflow deleted it.
_NOT_FAILED = frozenset(
    {"success", "running", "deferred", "up_for_reschedule", "awaiting_input", "queued", "scheduled"}
)


@dataclass(frozen=True, slots=True)
class FirstTry:
    """A first try, on the worker that ran it first."""

    key: TryKey
    worker_name: str
    started_at: datetime
    """Aware UTC."""
    has_failed: bool
    """Whether it failed by Airflow's state or was lost with its worker; a running try has not failed so far."""

    @property
    def task(self) -> tuple[str, str]:
        """Dag ID and task ID."""
        return self.key.dag_id, self.key.task_id


def of_tasks(
    connection: Connection,
    tasks: Collection[tuple[str, str]],
    *,
    since: datetime | None = None,
    until: datetime,
    limit: int,
    is_mapped: bool = False,
) -> list[FirstTry]:
    """Return the latest first tries of some tasks on all workers, the latest start first.

    :param tasks: Dag IDs and task IDs
    :param since: only tries that started then or later
    :param until: only tries that started by then
    :param limit: how many to return for each task, on an average of the tasks of a Dag
    :param is_mapped: whether there are mapped tasks, so that more tries must be read to return as many
    """
    by_dag: dict[str, list[str]] = defaultdict(list)
    for dag_id, task_id in sorted(tasks):
        by_dag[dag_id].append(task_id)
    rows: list[Row[Any]] = []
    for dag_id, task_ids in by_dag.items():
        of_dag = [attempt.c.dag_id == dag_id, *search.started_between(since, until)]
        most = limit * len(task_ids)
        rows += _rows(connection, of_dag, {"task_id": task_ids}, limit=max(most, MAX_MAPPED) if is_mapped else most)
    tries = _once_per_run_and_worker(_with_outcomes(connection, rows))
    return tries[: limit * len(tasks)]


def of_worker(connection: Connection, worker_ref: int, *, dag_ids: Collection[str], limit: int) -> list[FirstTry]:
    """Return the latest first tries of a worker instance, the latest start first.

    :param worker_ref: its row ID
    :param dag_ids: the Dags that the reader may see
    """
    if not dag_ids:
        return []
    # Readable Dags are matched after the scan: PostgreSQL would else gather all tries of the worker and sort them.
    rows = _rows(connection, [attempt.c.worker_ref == worker_ref], {"dag_id": sorted(dag_ids)}, limit=limit)
    return _once_per_run_and_worker(_with_outcomes(connection, rows))


def _rows(
    connection: Connection, along: Sequence[Any], among: Mapping[str, Sequence[str]], *, limit: int
) -> Sequence[Row[Any]]:
    """Return the latest first tries.

    :param along: conditions that an index on the start serves
    :param among: values that a column of them must have, by its name
    """
    disable_jit(connection)
    # Tries without a start are at the end of this order.
    latest = search.latest_first(connection)[0]
    scanned = select(attempt).where(*along).order_by(latest).limit(MAX_SCANNED).subquery()
    return connection.execute(
        select(
            *(scanned.c[name] for name in ("run_key", "task_key", "try_number", "started_at", "ended_at", "state")),
            *(scanned.c[name] for name in ("dag_id", "run_id", "task_id", "map_index")),
            worker.c.name,
            worker.c.state.label("worker_state"),
        )
        .select_from(scanned.join(worker, worker.c.id == scanned.c.worker_ref))
        .where(
            *(in_list(connection, scanned.c[name], values) for name, values in among.items()),
            scanned.c.try_number == 1,
            scanned.c.ordinal == 0,
            scanned.c.worker_ref != NO_WORKER,
            scanned.c.started_at.is_not(None),
            worker.c.host_only.is_(False),
            search.counts(scanned),
        )
        .order_by(*search.latest_first(connection, scanned)[:2])
        .limit(limit)
    ).all()


def _with_outcomes(connection: Connection, rows: Sequence[Row[Any]]) -> Iterable[FirstTry]:
    """Convert rows, and read the state of open tries from Airflow; leave out those that say nothing of a worker."""
    keys = [TryKey(row.dag_id, row.run_id, row.task_id, row.map_index, row.try_number) for row in rows]
    unclosed = [key for key, row in zip(keys, rows, strict=True) if row.ended_at is None]
    known = airflow_history.tries_by_row(connection, unclosed) if unclosed else {}
    for key, row in zip(keys, rows, strict=True):
        state = row.state
        if row.ended_at is None:
            airflow_try = known.get((row.run_key, row.task_key, row.try_number))
            state = None if airflow_try is None else airflow_try.state
        started_at = utc(row.started_at)
        assert started_at is not None
        is_lost = state == "running" and row.worker_state == WorkerState.LOST
        if state in _FAILED or state in _NOT_FAILED:
            yield FirstTry(key, row.name, started_at, has_failed=state in _FAILED or is_lost)


def _once_per_run_and_worker(tries: Iterable[FirstTry]) -> list[FirstTry]:
    """Of the mapped instances of a task in one run on one worker keep the first: they are one event."""
    first: dict[tuple[Any, ...], FirstTry] = {}
    # The latest start comes first, so the last one stays.
    for each in tries:
        index = () if each.key.map_index >= 0 else (each.key,)
        first[(*each.task, each.key.run_id, each.worker_name, *index)] = each
    return sorted(first.values(), key=lambda each: each.started_at, reverse=True)
