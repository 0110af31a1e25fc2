"""Read what a worker ran: now, between two moments and hour by hour, and what it took along when it was lost.

A reader finds tries of those Dags only that Airflow lets them see.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from sqlalchemy import func, or_, select

from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.clock import SAME_START, utc
from airflow_worker_insight.domain.filters import AttemptFilter
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.domain.states import FINISHED, LOST, UNAFFECTED_STATES
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


LOOK_BACK = 10_000
"""How many tries of a worker, from a moment backwards, are looked through for those that ran at that moment."""

MAX_OPEN = 1000
"""Tries that are not closed yet whose state is asked of Airflow for one answer."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of the tries that a worker started within one hour."""

    hour: datetime
    states: Mapping[str | None, int]


@dataclass(frozen=True, slots=True)
class Stay:
    """A try's stay on one worker. Times are aware UTC."""

    key: TryKey
    state: str | None
    """Of the try, as Airflow has it now."""
    began_at: datetime | None
    """When the first process of the try started there."""
    last_process_at: datetime | None
    """When the last one did."""
    ended_at: datetime | None
    """When the try ended, wherever that was."""
    went_on: bool
    """Whether a later process of it started on another worker."""


def running_now(
    connection: Connection, one: WorkerRow, *, dag_ids: Collection[str], limit: int
) -> tuple[list[Attempt], int]:
    """Return the tries that run on a worker at this moment, by Airflow's word, and how many there are.

    :param dag_ids: the Dags the reader may see; nothing of any other Dag is listed or counted
    """
    filters = AttemptFilter(worker_id=one.worker_id, state="running")
    running, _ = attempt_queries.list_attempts(connection, filters, dag_ids=dag_ids, limit=MAX_OPEN, offset=0)
    attempts = [one_try for one_try in running if _is_last_on(one, one_try)]
    return attempts[:limit], len(attempts)


def lost_attempts(
    connection: Connection, one: WorkerRow, *, dag_ids: Collection[str], limit: int
) -> tuple[list[Attempt], int]:
    """Return the tries that a lost worker took with it, and how many there are.

    These are the ones that had not ended when it was last seen, but for those that ended well all the same. The end of
    a try that ended by itself is by the worker's clock; where that is known to be ahead, such ends seem to be later.

    :param dag_ids: the Dags the reader may see; nothing of any other Dag is listed or counted
    """
    if one.state != LOST:
        return [], 0
    attempts = [
        one_try
        for one_try in _not_ended(connection, one, one.last_seen_at + _may_seem_later(one), dag_ids=dag_ids)
        if one_try.state not in UNAFFECTED_STATES and _is_last_on(one, one_try)
    ]
    return attempts[:limit], len(attempts)


def _may_seem_later(one: WorkerRow) -> timedelta:
    """Return how much later than it was an end may seem: of what ended by itself, and not of what Airflow ended.

    Airflow fails a try that was taken along after this time without a heartbeat, by a clock of its own. Later ends than
    that cannot be told apart: they count as taken along.
    """
    if one.clock_ahead is None or one.clock_ahead <= SAME_START:
        return timedelta(0)
    return min(one.clock_ahead + SAME_START, metadata_database.task_heartbeat_timeout())


def stays_between(
    connection: Connection,
    one: WorkerRow,
    *,
    dag_ids: Collection[str],
    since: datetime,
    until: datetime,
    limit: int,
) -> list[Stay]:
    """Return what was on a worker between two moments, the latest start first, also what had started before.

    :param dag_ids: the Dags the reader may see
    """
    conditions = _of(connection, one, dag_ids)
    order = search.latest_first(connection)
    within = _stays(attempt).where(*conditions, *search.started_between(since, until)).order_by(*order).limit(limit)
    rows = list(connection.execute(within))
    if len(rows) < limit:
        earlier = _latest([*conditions, attempt.c.start_slot <= start_slot(since), attempt.c.started_at < since], order)
        reached = _stays(earlier).where(_had_not_ended(earlier, since))
        order = search.latest_first(connection, earlier)
        rows += connection.execute(reached.order_by(*order).limit(min(limit - len(rows), MAX_OPEN)))
    return [stay for stay in _with_airflows_word(connection, rows) if stay.ended_at is None or stay.ended_at >= since]


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
        func.coalesce(rows.c.first_started_at, rows.c.started_at).label("began_at"),
        _last_process(rows).label("last_process_at"),
        rows.c.ended_at,
        later.exists().label("went_on"),
    )


def _last_process(rows: Any) -> Any:
    return func.coalesce(rows.c.last_started_at, rows.c.first_started_at, rows.c.started_at)


def _with_airflows_word(connection: Connection, rows: Sequence[Row[Any]]) -> list[Stay]:
    """Read rows as stays, of tries that are not closed with the state and the end that Airflow has for them now."""
    keys = [TryKey(row.dag_id, row.run_id, row.task_id, row.map_index, row.try_number) for row in rows]
    unclosed = [key for key, row in zip(keys, rows, strict=True) if row.ended_at is None]
    known = airflow_history.tries_by_row(connection, unclosed)
    return [
        _stay(key, row, known.get((row.run_key, row.task_key, row.try_number)))
        for key, row in zip(keys, rows, strict=True)
    ]


def _stay(key: TryKey, row: Row[Any], now: AirflowTry | None) -> Stay:
    state, ended_at = row.state, row.ended_at
    if now is not None:
        state, ended_at = now.state, now.ended_at if now.is_finished else None
    elif ended_at is None and state not in FINISHED:
        # Airflow has forgotten it before it ended: it does not run for ever.
        state = None
    return Stay(
        key=key,
        state=state,
        began_at=utc(row.began_at),
        last_process_at=utc(row.last_process_at),
        ended_at=utc(ended_at),
        went_on=bool(row.went_on),
    )


def outcomes_per_hour(
    connection: Connection, one: WorkerRow, *, dag_ids: Collection[str], since: datetime, until: datetime
) -> list[Outcomes]:
    """Return what became of the tries that a worker started, the first hour first; hours without any are left out.

    ``since`` and ``until`` are taken as the whole ten minutes that they are in (see :data:`~.tables.SLOT_SECONDS`).

    :param dag_ids: the Dags the reader may see; nothing of any other Dag is counted
    """
    hours: dict[int, dict[str | None, int]] = defaultdict(lambda: defaultdict(int))
    window = [
        *_of(connection, one, dag_ids),
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
    for row, stay in zip(unclosed, _with_airflows_word(connection, unclosed), strict=True):
        hours[row.start_slot // _SLOTS_PER_HOUR][stay.state] += 1
    return [Outcomes(datetime.fromtimestamp(hour * 3600, tz=timezone.utc), dict(hours[hour])) for hour in sorted(hours)]


_SLOTS_PER_HOUR = 3600 // SLOT_SECONDS


def _of(connection: Connection, one: WorkerRow, dag_ids: Collection[str]) -> list[Any]:
    disable_jit(connection)
    return [attempt.c.worker_ref == one.ref, *search.of_dags(connection, frozenset(dag_ids)), search.counts()]


def _not_ended(connection: Connection, one: WorkerRow, moment: datetime, *, dag_ids: Collection[str]) -> list[Attempt]:
    """Return the tries of a worker that had not ended at a moment, the latest start first."""
    latest = _latest(_of(connection, one, dag_ids), search.latest_first(connection))
    rows = connection.execute(
        select(latest.c.run_key, latest.c.task_key, latest.c.try_number)
        .where(_had_not_ended(latest, moment))
        .order_by(*search.latest_first(connection, latest))
        .limit(MAX_OPEN)
    )
    found = attempt_queries.load_attempts(connection, [tuple(row) for row in rows])
    return [one_try for one_try in found if one_try.ended_at is None or one_try.ended_at > moment]


def _latest(conditions: Sequence[Any], order: Sequence[Any]) -> Any:
    """Return the latest starts: a worker that ran a million tries must not be read whole."""
    return select(attempt).where(*conditions).order_by(*order).limit(LOOK_BACK).subquery()


def _had_not_ended(rows: Any, moment: datetime) -> Any:
    return or_(rows.c.ended_at.is_(None), rows.c.ended_at > moment)


def _is_last_on(one: WorkerRow, one_try: Attempt) -> bool:
    """Return whether the worker is the one that the try was on last; it may have moved on after a deferral."""
    if not one_try.workers:
        return False
    last = max(one_try.workers, key=lambda by: by.last_started_at or _LONG_AGO)
    return last.worker_id == one.worker_id


_LONG_AGO = datetime(1, 1, 1, tzinfo=timezone.utc)
