"""Read what a worker ran: now, in an interval, per hour, and what was lost with it.

A reader sees only tries of the Dags that Airflow lets them read.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from sqlalchemy import func, or_, select

from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.clock import START_TOLERANCE, utc
from airflow_worker_insight.domain.filters import AttemptFilter
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.domain.states import FINISHED, UNAFFECTED_STATES, WorkerState
from airflow_worker_insight.store import airflow_history
from airflow_worker_insight.store.attempts import queries as attempt_queries
from airflow_worker_insight.store.attempts import search
from airflow_worker_insight.store.dialects import disable_jit
from airflow_worker_insight.store.tables import SLOT_SECONDS, attempt, start_slot

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from typing import Any

    from sqlalchemy.engine import Connection, Row

    from airflow_worker_insight.domain.attempts import AirflowTry, Attempt
    from airflow_worker_insight.domain.workers import WorkerRow
    from airflow_worker_insight.store.attempts.search import SearchLimits


MAX_SCANNED_TRIES = 10_000
"""Latest tries of a worker before a moment that are scanned for those running then."""

MAX_OPEN = 1000
"""Open tries whose state is read from Airflow for one answer."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Final states of the tries that a worker started within one hour."""

    hour: datetime
    states: Mapping[str | None, int]


@dataclass(frozen=True, slots=True)
class Stay:
    """A try's stay on one worker. Times are aware UTC."""

    key: TryKey
    state: str | None
    """Airflow's current state of the try."""
    first_process_at: datetime | None
    """When the first process of the try started there."""
    last_process_at: datetime | None
    """When its last process started there."""
    ended_at: datetime | None
    """When the try ended, on whichever worker."""
    continued_elsewhere: bool
    """Whether a later process of the try started on another worker."""


def running_now(
    connection: Connection,
    worker_row: WorkerRow,
    *,
    dag_ids: Collection[str],
    limit: int,
    limits: SearchLimits = search.LIMITS,
) -> tuple[list[Attempt], int]:
    """Return the tries that run on a worker now, by Airflow's state, and their number.

    :param dag_ids: the Dags that the reader may see; tries of other Dags are neither listed nor counted
    """
    filters = AttemptFilter(worker_id=worker_row.worker_id, state="running")
    running, _ = attempt_queries.list_attempts(
        connection, filters, dag_ids=dag_ids, limit=MAX_OPEN, offset=0, limits=limits
    )
    attempts = [attempt for attempt in running if _is_last_on(worker_row, attempt)]
    return attempts[:limit], len(attempts)


def lost_attempts(
    connection: Connection, worker_row: WorkerRow, *, dag_ids: Collection[str], limit: int
) -> tuple[list[Attempt], int]:
    """Return the tries that were lost with a lost worker, and their number.

    These are the tries that had not ended when it was last seen, except those that ended well all the same. If a try
    ended by itself, its end is by the worker's clock; if that clock is known to be ahead, such ends seem later.

    :param dag_ids: the Dags that the reader may see; tries of other Dags are neither listed nor counted
    """
    if worker_row.state != WorkerState.LOST:
        return [], 0
    attempts = [
        attempt
        for attempt in _open_at(connection, worker_row, lost_after(worker_row), dag_ids=dag_ids)
        if attempt.state not in UNAFFECTED_STATES and _is_last_on(worker_row, attempt)
    ]
    return attempts[:limit], len(attempts)


def lost_after(worker_row: WorkerRow) -> datetime:
    """Return the time after which a try of a lost worker has ended if it was lost with it, not by itself."""
    return worker_row.last_seen_at + _end_tolerance(worker_row)


def _end_tolerance(worker_row: WorkerRow) -> timedelta:
    """Return how much later a try's own end may seem than it was.

    This concerns tries that ended by themselves, not those that Airflow ended. Airflow fails a lost try after this time
    without a heartbeat, by its own clock. Later ends cannot be told apart: they count as lost with the worker.
    """
    if worker_row.clock_ahead is None or worker_row.clock_ahead <= START_TOLERANCE:
        return timedelta(0)
    return min(worker_row.clock_ahead + START_TOLERANCE, metadata_database.task_heartbeat_timeout())


def stays_between(
    connection: Connection,
    worker_row: WorkerRow,
    *,
    dag_ids: Collection[str],
    since: datetime,
    until: datetime,
    limit: int,
    max_scanned: int = MAX_SCANNED_TRIES,
) -> list[Stay]:
    """Return the stays on a worker in an interval, the latest start first.

    Stays that started earlier and had not ended are included.

    :param dag_ids: the Dags that the reader may see
    """
    conditions = _conditions(connection, worker_row, dag_ids)
    order = search.latest_first(connection)
    started_within = (
        _stays(attempt).where(*conditions, *search.started_between(since, until)).order_by(*order).limit(limit)
    )
    rows = list(connection.execute(started_within))
    if len(rows) < limit:
        started_before = (attempt.c.start_slot <= start_slot(since), attempt.c.started_at < since)
        earlier = _latest([*conditions, *started_before], order, max_scanned)
        reaching_into = _stays(earlier).where(_was_open_at(earlier, since))
        order = search.latest_first(connection, earlier)
        rows += connection.execute(reaching_into.order_by(*order).limit(min(limit - len(rows), MAX_OPEN)))
    return [stay for stay in _with_airflow_state(connection, rows) if stay.ended_at is None or stay.ended_at >= since]


def _stays(rows: Any) -> Any:
    """Select stays from the attempt table, or from a subquery with its columns."""
    other = attempt.alias("other")
    later = select(other.c.ordinal).where(
        *(other.c[column.name] == rows.c[column.name] for column in search.KEY),
        other.c.worker_ref != rows.c.worker_ref,
        _last_process(other) > _last_process(rows),
    )
    return select(
        *(rows.c[name] for name in ("run_key", "task_key")),
        *(rows.c[name] for name in ("dag_id", "run_id", "task_id", "map_index", "try_number", "state")),
        func.coalesce(rows.c.first_started_at, rows.c.started_at).label("first_process_at"),
        _last_process(rows).label("last_process_at"),
        rows.c.ended_at,
        later.exists().label("continued_elsewhere"),
    )


def _last_process(rows: Any) -> Any:
    return func.coalesce(rows.c.last_started_at, rows.c.first_started_at, rows.c.started_at)


def _with_airflow_state(connection: Connection, rows: Sequence[Row[Any]]) -> list[Stay]:
    """Convert rows to stays; open tries get Airflow's current state and end."""
    keys = [TryKey(row.dag_id, row.run_id, row.task_id, row.map_index, row.try_number) for row in rows]
    unclosed = [key for key, row in zip(keys, rows, strict=True) if row.ended_at is None]
    known = airflow_history.tries_by_row(connection, unclosed)
    return [
        _stay(key, row, known.get((row.run_key, row.task_key, row.try_number)))
        for key, row in zip(keys, rows, strict=True)
    ]


def _stay(key: TryKey, row: Row[Any], airflow_try: AirflowTry | None) -> Stay:
    state, ended_at = row.state, row.ended_at
    if airflow_try is not None:
        state, ended_at = airflow_try.state, airflow_try.ended_at if airflow_try.is_finished else None
    elif ended_at is None and state not in FINISHED:
        # Airflow deleted it before it ended: it must not seem to run for ever.
        state = None
    return Stay(
        key=key,
        state=state,
        first_process_at=utc(row.first_process_at),
        last_process_at=utc(row.last_process_at),
        ended_at=utc(ended_at),
        continued_elsewhere=bool(row.continued_elsewhere),
    )


def outcomes_per_hour(
    connection: Connection, worker_row: WorkerRow, *, dag_ids: Collection[str], since: datetime, until: datetime
) -> list[Outcomes]:
    """Return the states of the tries that a worker started, by hour, the first hour first.

    Hours without a try are left out. ``since`` and ``until`` are widened to the whole ten minutes that contain them
    (see :data:`~.tables.SLOT_SECONDS`).

    :param dag_ids: the Dags that the reader may see; tries of other Dags are not counted
    """
    hours: dict[int, dict[str | None, int]] = defaultdict(lambda: defaultdict(int))
    window = [
        *_conditions(connection, worker_row, dag_ids),
        attempt.c.start_slot >= start_slot(since),
        attempt.c.start_slot <= start_slot(until),
    ]
    closed = connection.execute(
        select(attempt.c.start_slot, attempt.c.state, func.count().label("tries"))
        .where(*window, attempt.c.ended_at.is_not(None))
        .group_by(attempt.c.start_slot, attempt.c.state)
    )
    for row in closed:
        hours[row.start_slot // _SLOTS_PER_HOUR][row.state] += row.tries
    unclosed = connection.execute(
        _stays(attempt)
        .add_columns(attempt.c.start_slot)
        .where(*window, attempt.c.ended_at.is_(None))
        .order_by(attempt.c.start_slot.desc())
        .limit(MAX_OPEN)
    ).all()
    for row, stay in zip(unclosed, _with_airflow_state(connection, unclosed), strict=True):
        hours[row.start_slot // _SLOTS_PER_HOUR][stay.state] += 1
    return [Outcomes(datetime.fromtimestamp(hour * 3600, tz=timezone.utc), dict(hours[hour])) for hour in sorted(hours)]


_SLOTS_PER_HOUR = 3600 // SLOT_SECONDS


def _conditions(connection: Connection, worker_row: WorkerRow, dag_ids: Collection[str]) -> list[Any]:
    disable_jit(connection)
    return [attempt.c.worker_ref == worker_row.ref, *search.of_dags(connection, frozenset(dag_ids)), search.counts()]


def _open_at(
    connection: Connection, worker_row: WorkerRow, moment: datetime, *, dag_ids: Collection[str]
) -> list[Attempt]:
    """Return the tries of a worker that had not ended at a moment, the latest start first."""
    latest = _latest(_conditions(connection, worker_row, dag_ids), search.latest_first(connection))
    rows = connection.execute(
        select(latest.c.run_key, latest.c.task_key, latest.c.try_number)
        .where(_was_open_at(latest, moment))
        .order_by(*search.latest_first(connection, latest))
        .limit(MAX_OPEN)
    )
    attempts = attempt_queries.load_attempts(connection, [tuple(row) for row in rows])
    return [attempt for attempt in attempts if attempt.ended_at is None or attempt.ended_at > moment]


def _latest(conditions: Sequence[Any], order: Sequence[Any], max_scanned: int = MAX_SCANNED_TRIES) -> Any:
    """Select a worker's latest starts only: it may have run a million tries."""
    return select(attempt).where(*conditions).order_by(*order).limit(max_scanned).subquery()


def _was_open_at(rows: Any, moment: datetime) -> Any:
    return or_(rows.c.ended_at.is_(None), rows.c.ended_at > moment)


def _is_last_on(worker_row: WorkerRow, attempt: Attempt) -> bool:
    """Return whether the try was last on this worker: it may have moved on after a deferral."""
    if not attempt.workers:
        return False
    last_worker = max(attempt.workers, key=lambda attempt_worker: attempt_worker.last_started_at or _LONG_AGO)
    return last_worker.worker_id == worker_row.worker_id


_LONG_AGO = datetime(1, 1, 1, tzinfo=timezone.utc)
