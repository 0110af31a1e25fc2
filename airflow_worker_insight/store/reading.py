"""Read what was recorded: attempts as the pages and the REST API show them, and workers.

An attempt is a try with all the workers that ran it; it is assembled from one row per worker. What Airflow knows better
at this moment (the state of a try that has not been closed yet) is read from Airflow's own tables, so that a page is
never behind Airflow's own.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import timezone
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, func, or_, select, tuple_

from airflow_worker_insight import compat, config
from airflow_worker_insight.store import airflow_tries
from airflow_worker_insight.store.attribution import UNKNOWN, attribute
from airflow_worker_insight.store.keys import TryKey, run_key, task_key
from airflow_worker_insight.store.recording import REPORTED
from airflow_worker_insight.store.tables import NO_WORKER, attempt, worker

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection, Row

    from airflow_worker_insight.store.airflow_tries import AirflowTry


MAX_REFS = 1000
"""Workers of one name or host that a list is filtered by row ID."""


@dataclass(frozen=True, slots=True)
class AttemptWorker:
    """A worker as one attempt shows it; ``process_count`` task processes of the try ran there."""

    worker_id: str
    name: str
    kind: str
    hostname: str
    host_only: bool
    process_count: int
    first_started_at: datetime | None
    last_started_at: datetime | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of one task instance and the workers that ran it. Times are aware UTC, ``duration`` is in seconds.

    ``is_recorded`` is ``False`` for a try that only Airflow's own tables tell of, so far: its host has no page.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    state: str | None
    started_at: datetime | None
    ended_at: datetime | None
    duration: float | None
    attribution: str
    workers: tuple[AttemptWorker, ...]
    is_recorded: bool = True


@dataclass(frozen=True, slots=True)
class AttemptFilter:
    """What to list; ``None`` does not filter. ``started_at_*`` are inclusive."""

    dag_id: str | None = None
    run_id: str | None = None
    task_id: str | None = None
    map_index: int | None = None
    try_number: int | None = None
    worker_id: str | None = None
    worker_name: str | None = None
    hostname: str | None = None
    state: str | None = None
    started_at_gte: datetime | None = None
    started_at_lte: datetime | None = None


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One life of a worker, or one host where ``host_only``."""

    worker_id: str
    name: str
    kind: str
    hostname: str
    pid: int | None
    host_only: bool
    started_at: datetime | None
    registered_at: datetime
    last_seen_at: datetime
    labels: Mapping[str, str]
    resources: Mapping[str, Any]
    versions: Mapping[str, str]


def list_attempts(
    connection: Connection, filters: AttemptFilter, *, dag_ids: Collection[str], limit: int, offset: int
) -> tuple[list[Attempt], int]:
    """Return a page of attempts, the latest start first, and how many there are in all.

    :param dag_ids: the Dags the reader may see; nothing of any other Dag is listed or counted
    """
    refs = _worker_refs(connection, filters)
    if not dag_ids:
        return [], 0
    conditions = _conditions(filters, dag_ids, refs)
    total: int = connection.execute(select(func.count()).select_from(_source(filters)).where(*conditions)).scalar_one()
    started = attempt.c.started_at.desc()
    page = connection.execute(
        select(attempt.c.run_key, attempt.c.task_key, attempt.c.try_number)
        .select_from(_source(filters))
        .where(*conditions)
        # Only PostgreSQL puts NULLs first in a descending order.
        .order_by(
            started.nullslast() if connection.dialect.name == "postgresql" else started,
            attempt.c.run_key,
            attempt.c.task_key,
            attempt.c.try_number,
        )
        .limit(limit)
        .offset(offset)
    ).all()
    return _with_live_state(connection, _load(connection, [tuple(row) for row in page])), total


def task_instance_attempts(
    connection: Connection, *, dag_id: str, run_id: str, task_id: str, map_index: int
) -> list[Attempt]:
    """Return every try of a task instance, the latest first; none when neither Airflow nor we know it.

    A try that Airflow has and we have not recorded is shown with what Airflow's own columns tell.
    """
    rows = connection.execute(
        _rows().where(
            attempt.c.run_key == run_key(dag_id, run_id),
            attempt.c.task_key == task_key(task_id, map_index),
            attempt.c.dag_id == dag_id,
            attempt.c.run_id == run_id,
            attempt.c.task_id == task_id,
            attempt.c.map_index == map_index,
        )
    ).all()
    recorded = {_key(one): one for one in _assemble(rows)}
    known = airflow_tries.tries_of_task_instance(
        connection, dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index
    )
    known += airflow_tries.lost_tries(known)
    live = {one.key: _live(recorded[one.key], one) if one.key in recorded else _unrecorded(one) for one in known}
    return sorted({**recorded, **live}.values(), key=lambda one: -one.try_number)


def get_worker(connection: Connection, worker_id: str) -> WorkerRow | None:
    """Return a worker by its ID, however long it has been gone."""
    row = connection.execute(select(worker).where(worker.c.worker_id == worker_id)).first()
    if row is None:
        return None
    return WorkerRow(
        worker_id=row.worker_id,
        name=row.name,
        kind=row.kind,
        hostname=row.hostname,
        pid=row.pid,
        host_only=row.host_only,
        started_at=_utc(row.started_at),
        registered_at=row.registered_at.astimezone(timezone.utc),
        last_seen_at=row.last_seen_at.astimezone(timezone.utc),
        labels=row.labels,
        resources=row.resources,
        versions=row.versions,
    )


# --- listing ---------------------------------------------------------------------------------------------------------


def _worker_refs(connection: Connection, filters: AttemptFilter) -> Any:
    """Return the row IDs of the workers that the filter names as IN takes them, or ``None`` when it names none."""
    conditions = [
        column == value
        for column, value in (
            (worker.c.worker_id, filters.worker_id),
            (worker.c.name, filters.worker_name),
            (worker.c.hostname, filters.hostname),
        )
        if value is not None
    ]
    if not conditions:
        return None
    named = select(worker.c.id).where(*conditions)
    found = connection.execute(named.limit(MAX_REFS + 1)).scalars().all()
    # Row IDs let the database use the index of one worker; a name that thousands of pods share is left to a join.
    return named if len(found) > MAX_REFS else list(found)


def _conditions(filters: AttemptFilter, dag_ids: Collection[str], refs: Any) -> list[Any]:
    column = attempt.c
    conditions: list[Any] = []
    if filters.dag_id is None:
        conditions.append(column.dag_id.in_(sorted(dag_ids)))
    else:
        conditions.append(column.dag_id == (filters.dag_id if filters.dag_id in dag_ids else None))
    if filters.dag_id is not None and filters.run_id is not None:
        conditions.append(column.run_key == run_key(filters.dag_id, filters.run_id))
    conditions += [
        column[name] == getattr(filters, name)
        for name in ("run_id", "task_id", "map_index", "try_number")
        if getattr(filters, name) is not None
    ]
    if filters.started_at_gte is not None:
        conditions.append(column.started_at >= filters.started_at_gte)
    if filters.started_at_lte is not None:
        conditions.append(column.started_at <= filters.started_at_lte)
    if filters.state is not None:
        conditions.append(_is_now(filters.state))
    if refs is None:
        conditions.append(column.ordinal == 0)
    else:
        conditions += [column.worker_ref.in_(refs), _is_first_of(refs), _counts()]
    return conditions


def _counts() -> Any:
    """Leave out what was inferred of a try before its worker reported after all; see :func:`_attempt`."""
    other = attempt.alias("reported")
    report = select(other.c.ordinal).where(
        other.c.run_key == attempt.c.run_key,
        other.c.task_key == attempt.c.task_key,
        other.c.try_number == attempt.c.try_number,
        other.c.attribution == REPORTED,
    )
    return or_(attempt.c.attribution == REPORTED, ~report.exists())


def _is_first_of(refs: Any) -> Any:
    """Keep one row per try where several of the wanted workers ran the same try."""
    other = attempt.alias("other")
    earlier = select(other.c.ordinal).where(
        other.c.run_key == attempt.c.run_key,
        other.c.task_key == attempt.c.task_key,
        other.c.try_number == attempt.c.try_number,
        other.c.worker_ref.in_(refs),
        other.c.ordinal < attempt.c.ordinal,
    )
    return or_(attempt.c.ordinal == 0, ~earlier.exists())


def _source(filters: AttemptFilter) -> Any:
    """Join Airflow's tables only where their state decides what is listed."""
    if filters.state is None:
        return attempt
    current, history = compat.task_instance_table(), compat.task_instance_history_table()
    source: Any = attempt
    for table in (current, history):
        source = source.outerjoin(
            table,
            and_(
                attempt.c.ended_at.is_(None),
                table.c.dag_id == attempt.c.dag_id,
                table.c.task_id == attempt.c.task_id,
                table.c.run_id == attempt.c.run_id,
                table.c.map_index == attempt.c.map_index,
                table.c.try_number == attempt.c.try_number,
            ),
        )
    return source


def _is_now(state: str) -> Any:
    """Say the same as :func:`_live` does of what is listed: Airflow's word counts, also that there is no state."""
    current, history = compat.task_instance_table(), compat.task_instance_history_table()
    in_history, in_current = history.c.try_number.is_not(None), current.c.try_number.is_not(None)
    return or_(
        and_(in_history, history.c.state == state),
        and_(~in_history, in_current, current.c.state == state),
        and_(~in_history, ~in_current, attempt.c.state == state),
    )


# --- assembling ------------------------------------------------------------------------------------------------------


def _rows() -> Any:
    """Select attempt rows with their workers; the row of a try without a worker has NULLs there."""
    return select(
        attempt,
        worker.c.worker_id,
        worker.c.name,
        worker.c.kind,
        worker.c.hostname,
        worker.c.host_only,
    ).select_from(attempt.outerjoin(worker, worker.c.id == attempt.c.worker_ref))


def _load(connection: Connection, keys: Sequence[tuple[Any, ...]]) -> list[Attempt]:
    """Load these tries in full, in the order given."""
    if not keys:
        return []
    columns = (attempt.c.run_key, attempt.c.task_key, attempt.c.try_number)
    rows = connection.execute(_rows().where(tuple_(*columns).in_(keys))).all()
    position = {key: index for index, key in enumerate(keys)}
    return _assemble(sorted(rows, key=lambda row: position[row.run_key, row.task_key, row.try_number]))


def _assemble(rows: Iterable[Row[Any]]) -> list[Attempt]:
    """Gather the rows of each try, keeping the order in which the tries come."""
    tries: dict[TryKey, list[Row[Any]]] = defaultdict(list)
    for row in rows:
        tries[TryKey(row.dag_id, row.run_id, row.task_id, row.map_index, row.try_number)].append(row)
    return [_attempt(key, sorted(group, key=lambda row: row.ordinal)) for key, group in tries.items()]


def _attempt(key: TryKey, rows: Sequence[Row[Any]]) -> Attempt:
    # A report is the worker's own word: where one exists, nothing inferred beside it counts.
    rows = [row for row in rows if row.attribution == REPORTED] or rows
    first = rows[0]
    started_at, ended_at = _utc(first.started_at), _utc(first.ended_at)
    return Attempt(
        dag_id=key.dag_id,
        run_id=key.run_id,
        task_id=key.task_id,
        map_index=key.map_index,
        try_number=key.try_number,
        state=first.state,
        started_at=started_at,
        ended_at=ended_at,
        duration=_duration(started_at, ended_at),
        attribution=first.attribution or UNKNOWN,
        workers=tuple(
            AttemptWorker(
                worker_id=row.worker_id,
                name=row.name,
                kind=row.kind,
                hostname=row.hostname,
                host_only=row.host_only,
                process_count=row.process_count,
                first_started_at=_utc(row.first_started_at or row.started_at),
                last_started_at=_utc(row.last_started_at or row.first_started_at or row.started_at),
            )
            for row in rows
            if row.worker_ref != NO_WORKER and row.worker_id is not None
        ),
    )


# --- what Airflow knows better ---------------------------------------------------------------------------------------


def _with_live_state(connection: Connection, attempts: Sequence[Attempt]) -> list[Attempt]:
    """Give the tries that have not been closed yet the state that Airflow has for them now."""
    known = airflow_tries.tries_of_task_instances(connection, (_key(one) for one in attempts if one.ended_at is None))
    return [_live(one, known[_key(one)]) if _key(one) in known else one for one in attempts]


def _live(one: Attempt, now: AirflowTry) -> Attempt:
    started_at = now.started_at or one.started_at
    ended_at = now.ended_at if now.is_finished else None
    return Attempt(
        dag_id=one.dag_id,
        run_id=one.run_id,
        task_id=one.task_id,
        map_index=one.map_index,
        try_number=one.try_number,
        state=now.state,
        started_at=started_at,
        ended_at=ended_at,
        duration=_duration(started_at, ended_at),
        attribution=one.attribution,
        workers=one.workers,
    )


def _unrecorded(one: AirflowTry) -> Attempt:
    verdict = attribute(one, lives=(), default_executor=config.executor())
    return Attempt(
        dag_id=one.key.dag_id,
        run_id=one.key.run_id,
        task_id=one.key.task_id,
        map_index=one.key.map_index,
        try_number=one.key.try_number,
        state=one.state,
        started_at=one.started_at,
        ended_at=one.ended_at,
        duration=_duration(one.started_at, one.ended_at),
        attribution=verdict.attribution,
        workers=(
            AttemptWorker(
                worker_id=verdict.worker.worker_id,
                name=verdict.worker.name,
                kind=verdict.worker.kind,
                hostname=verdict.worker.hostname,
                host_only=True,
                process_count=1,
                first_started_at=one.started_at,
                last_started_at=one.started_at,
            ),
        )
        if verdict.worker is not None
        else (),
        is_recorded=False,
    )


def _key(one: Attempt) -> TryKey:
    return TryKey(one.dag_id, one.run_id, one.task_id, one.map_index, one.try_number)


def _duration(started_at: datetime | None, ended_at: datetime | None) -> float | None:
    if started_at is None or ended_at is None:
        return None
    return max(0.0, (ended_at - started_at).total_seconds())


def _utc(value: datetime | None) -> datetime | None:
    return value.astimezone(timezone.utc) if value is not None else None
