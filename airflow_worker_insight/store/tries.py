"""Read tries for the analysis: which have started, who ran them first, and how Airflow says that they ended.

A try whose worker is unknown, or known by its host only, is not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from airflow_worker_insight.domain.attempts import AirflowTry
from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.domain.states import Attribution, WorkerState
from airflow_worker_insight.domain.tries import AnalyzedTry, TryWorker
from airflow_worker_insight.store import airflow_history
from airflow_worker_insight.store.attempts.by_worker import lost_after
from airflow_worker_insight.store.batches import batches
from airflow_worker_insight.store.dialects import disable_jit, in_rows
from airflow_worker_insight.store.tables import NO_WORKER, SLOT_SECONDS, attempt, key_columns, start_slot
from airflow_worker_insight.store.workers import queries as worker_queries

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from typing import Any

    from sqlalchemy.engine import Connection, Row

    from airflow_worker_insight.domain.keys import RowKey
    from airflow_worker_insight.domain.workers import WorkerRow

BATCH = 4_000
"""Tries that one statement reads by their keys: SQLite takes 32,766 values."""

READ_ATTRIBUTIONS = (Attribution.REPORTED, Attribution.INFERRED, Attribution.BACKFILLED)
"""Those with which a try may have a worker.

Backfilled tries are older than the cursor of a running analysis, so only one that starts anew reads them.
"""


@dataclass(frozen=True, slots=True)
class TryStart:
    """The start of a recorded try. Times are aware UTC, by the worker's clock."""

    row_key: RowKey
    started_at: datetime
    first_started_at: datetime
    """Start of its first process: of a rescheduled try Airflow keeps that of the last one."""


def starts(connection: Connection, since: datetime, until: datetime, *, limit: int) -> list[TryStart]:
    """Return the recorded tries that started from ``since`` until before ``until``, the earliest first."""
    disable_jit(connection)
    slot = attempt.c.start_slot.asc()
    rows = connection.execute(
        select(*key_columns(attempt), attempt.c.started_at, attempt.c.first_started_at)
        .where(
            attempt.c.start_slot >= start_slot(since),
            attempt.c.start_slot <= start_slot(until),
            attempt.c.started_at >= since,
            attempt.c.started_at < until,
            *_is_read(),
        )
        # The order of the index on PostgreSQL, so that it sorts no more than it returns.
        .order_by(slot.nullsfirst() if connection.dialect.name == "postgresql" else slot, attempt.c.started_at)
        .limit(limit)
    )
    found = []
    for row in rows:
        started_at = row.started_at.astimezone(timezone.utc)
        found.append(TryStart((row[0], row[1], row[2]), started_at, utc(row.first_started_at) or started_at))
    return found


def next_start(connection: Connection, since: datetime) -> datetime | None:
    """Return a time before which no recorded try has started since ``since``; ``None`` if none has at all."""
    slot = connection.execute(
        select(func.min(attempt.c.start_slot)).where(attempt.c.start_slot >= start_slot(since))
    ).scalar()
    return None if slot is None else datetime.fromtimestamp(slot * SLOT_SECONDS, tz=timezone.utc)


def count_started(connection: Connection, worker_ref: int, since: datetime, *, limit: int) -> int:
    """Return how many tries have started on a worker instance since a time, counted up to a limit."""
    started = (
        select(attempt.c.run_key)
        .where(
            attempt.c.worker_ref == worker_ref, attempt.c.start_slot >= start_slot(since), attempt.c.started_at >= since
        )
        .limit(limit)
    )
    return connection.execute(select(func.count()).select_from(started.subquery())).scalar_one()


def load(connection: Connection, row_keys: Iterable[RowKey], *, now: datetime) -> dict[RowKey, AnalyzedTry]:
    """Return these tries with their first workers: reported ones count before the inferred one, as in lists.

    Those that are not read are left out.

    :param now: by the database's clock; later starts are cut to it
    """
    rows: list[Row[Any]] = []
    for batch in batches(row_keys, BATCH):
        rows += connection.execute(
            select(
                *key_columns(attempt),
                *(attempt.c[name] for name in ("started_at", "first_started_at", "worker_ref", "map_index")),
                *(attempt.c[name] for name in ("dag_id", "run_id", "task_id", "ordinal", "attribution")),
            ).where(in_rows(connection, key_columns(attempt), batch), *_has_worker())
        ).all()
    # The first row of a try has its start.
    firsts = {_row_key(row): row for row in rows if row.ordinal == 0 and row.started_at is not None}
    refs = {row_key: counting[0].worker_ref for row_key, counting in _counting(rows).items() if row_key in firsts}
    worker_rows = worker_queries.workers_by_ref(connection, {*refs.values()})
    workers = {ref: analyzed_worker(each) for ref, each in worker_rows.items() if not each.host_only}
    found = {}
    for row_key, ref in refs.items():
        if ref in workers:
            row = firsts[row_key]
            started_at = (row.first_started_at or row.started_at).astimezone(timezone.utc)
            found[row_key] = AnalyzedTry(
                row_key,
                TryKey(row.dag_id, row.run_id, row.task_id, row.map_index, row.try_number),
                workers[ref],
                min(started_at, now),
            )
    return found


def _row_key(row: Row[Any]) -> RowKey:
    return row.run_key, row.task_key, row.try_number


def _counting(rows: Iterable[Row[Any]]) -> dict[RowKey, list[Row[Any]]]:
    """Return the rows of each try that count, the first one first: see :func:`.search.counts`."""
    of_tries: dict[RowKey, list[Row[Any]]] = {}
    for row in sorted(rows, key=lambda row: row.ordinal):
        of_tries.setdefault(_row_key(row), []).append(row)
    return {
        row_key: [row for row in of_try if row.attribution == Attribution.REPORTED] or of_try
        for row_key, of_try in of_tries.items()
    }


def _is_read() -> tuple[Any, ...]:
    return (attempt.c.ordinal == 0, *_has_worker())


def _has_worker() -> tuple[Any, ...]:
    return (attempt.c.worker_ref != NO_WORKER, attempt.c.attribution.in_(READ_ATTRIBUTIONS))


def analyzed_worker(worker_row: WorkerRow) -> TryWorker:
    """Return a worker as the analysis needs it."""
    image = worker_row.resources.get("image")
    return TryWorker(
        ref=worker_row.ref,
        worker_id=worker_row.worker_id,
        name=worker_row.display_name,
        kind=worker_row.kind,
        hostname=worker_row.hostname,
        labels=worker_row.labels,
        image=image if isinstance(image, str) else None,
        node=worker_row.labels.get("node"),
        is_single_try=worker_row.kind == "kubernetes",
    )


def in_airflow(connection: Connection, tries: Collection[AnalyzedTry]) -> dict[RowKey, AirflowTry]:
    """Return what Airflow has of these tries: state, end, queue and when they were queued.

    Of a try that Airflow no longer has, it is what was recorded when it was closed, else the state ``removed``.
    """
    known = airflow_history.tries_by_row(connection, [each.key for each in tries])
    found = {each.row_key: known[each.row_key] for each in tries if each.row_key in known}
    missing = {each.row_key: each for each in tries if each.row_key not in found}
    for batch in batches(missing, BATCH):
        rows = connection.execute(
            select(*key_columns(attempt), attempt.c.state, attempt.c.ended_at).where(
                in_rows(connection, key_columns(attempt), batch),
                attempt.c.ordinal == 0,
                attempt.c.ended_at.is_not(None),
            )
        )
        for row in rows:
            row_key = (row.run_key, row.task_key, row.try_number)
            found[row_key] = AirflowTry(missing[row_key].key, state=row.state, ended_at=utc(row.ended_at))
    gone = {row_key: AirflowTry(each.key, state="removed") for row_key, each in missing.items() if row_key not in found}
    return found | gone


@dataclass(frozen=True, slots=True)
class WorkerSight:
    """When a worker was last seen, as far as it tells whether a failed try was lost with it."""

    last_seen_at: datetime
    is_gone: bool
    """Whether it is known as offline or lost: it will not be seen again."""
    lost_after: datetime | None
    """If it was lost: its tries that ended later were lost with it."""


def sights(connection: Connection, refs: Collection[int]) -> dict[int, WorkerSight]:
    """Return when these workers were last seen, by their row IDs."""
    return {
        ref: WorkerSight(
            last_seen_at=each.last_seen_at,
            is_gone=each.state in {WorkerState.LOST, WorkerState.OFFLINE},
            lost_after=lost_after(each) if each.state == WorkerState.LOST else None,
        )
        for ref, each in worker_queries.workers_by_ref(connection, refs).items()
    }


def moved(connection: Connection, row_keys: Iterable[RowKey]) -> set[RowKey]:
    """Return those of these tries that another worker went on with after the first."""
    found: set[RowKey] = set()
    for batch in batches(row_keys, BATCH):
        rows = connection.execute(
            select(*key_columns(attempt), attempt.c.ordinal, attempt.c.attribution).where(
                in_rows(connection, key_columns(attempt), batch)
            )
        )
        found |= {row_key for row_key, counting in _counting(rows).items() if len(counting) > 1}
    return found


@dataclass(frozen=True, slots=True)
class SlotSpan:
    """A time during which a worker could run tries. Times are aware UTC, by the database's clock."""

    worker: TryWorker
    concurrency: int
    since: datetime
    until: datetime


def slot_spans(connection: Connection, since: datetime, now: datetime) -> list[SlotSpan]:
    """Return when workers of known concurrency were online between two times."""
    spans = []
    for each in worker_queries.workers_seen_since(connection, since):
        is_alive = each.ended_at is None and each.state == WorkerState.ONLINE
        begin, end = max(since, each.registered_at), now if is_alive else min(now, each.ended_at or each.last_seen_at)
        if each.concurrency is not None and begin < end:
            spans.append(SlotSpan(analyzed_worker(each), each.concurrency, begin, end))
    return spans
