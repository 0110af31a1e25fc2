"""Statistics by hour and by day: add to them, merge hours to days, remove old ones, and read them.

A row has the sums of one unit, queue or task in one hour. When a day is complete, each gets one row of 24 hours too,
and :data:`~.domain.statistics.HOURS_KEPT` later the rows of its hours are removed. What is added late to such a day is
added to both. So a query reads whole days from the rows of days, and hours at its edges only.

One process at a time adds and merges: the one that holds the lease of the analysis.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

from sqlalchemy import and_, case, delete, false, func, insert, literal, literal_column, or_, select, update

from airflow_worker_insight.domain.keys import digest
from airflow_worker_insight.domain.statistics import (
    COUNTS,
    DAY_HOURS,
    HOURS_KEPT,
    Bucket,
    HeatMap,
    HeatMapCell,
    HeatMapRow,
    StatisticsPage,
    StatisticsRow,
    Sums,
    day_ceil,
    day_floor,
    hour_of,
    hour_start,
    is_of_tasks,
    other_filters,
    ratio,
    whole_hours,
)
from airflow_worker_insight.store.attempts import totals
from airflow_worker_insight.store.attempts.search import can_be_ids
from airflow_worker_insight.store.batches import batches
from airflow_worker_insight.store.dialects import disable_jit, execute_and_count, in_list, insert_new, upsert_many
from airflow_worker_insight.store.insight_tables import queue_hour, task_hour, unit, worker_hour

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime
    from typing import Any

    from sqlalchemy import Table
    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.statistics import Deltas, Selection, Unit

BATCH = 1000
"""Rows that one statement writes."""

TABLES = (worker_hour, queue_hour, task_hour)

MAX_HEAT_MAP_ROWS = 50
"""Workers that a heat map shows by default."""


class StatisticsError(ValueError):
    """Raised when statistics cannot be told as asked; the message says what to change."""


# --- writing ---------------------------------------------------------------------------------------------------------


def add(connection: Connection, deltas: Deltas) -> None:
    """Add sums to the stored ones. The caller owns the transaction, and holds the lease of the analysis."""
    digests = {each: each.digest for _, each in deltas.units}
    _store_units(connection, digests, deltas.units)
    _add(connection, worker_hour, {(hour, digests[each]): (sums, {}) for (hour, each), sums in deltas.units.items()})
    _add(
        connection,
        queue_hour,
        {(hour, digest(queue)): (sums, {"queue": queue}) for (hour, queue), sums in deltas.queues.items()},
    )
    _add(
        connection,
        task_hour,
        {
            (hour, digest(dag_id, task_id)): (sums, {"dag_id": dag_id, "task_id": task_id})
            for (hour, dag_id, task_id), sums in deltas.tasks.items()
        },
    )


def _store_units(connection: Connection, digests: dict[Unit, int], hours: Iterable[tuple[int, Unit]]) -> None:
    """Insert units that are new, and advance the latest hour of the others."""
    latest: dict[int, int] = {}
    for hour, each in hours:
        latest[digests[each]] = max(hour, latest.get(digests[each], hour))
    stored: dict[int, int] = {}
    for batch in batches(latest, BATCH):
        rows = connection.execute(
            select(unit.c.digest, unit.c.last_hour).where(in_list(connection, unit.c.digest, batch))
        )
        stored.update(tuple(row) for row in rows)
    advanced: dict[int, list[int]] = defaultdict(list)
    for key, hour in stored.items():
        if latest[key] > hour:
            advanced[latest[key]].append(key)
    for hour, keys in sorted(advanced.items()):
        for batch in batches(sorted(keys), BATCH):
            connection.execute(update(unit).where(in_list(connection, unit.c.digest, batch)).values(last_hour=hour))
    for each, key in sorted(digests.items(), key=lambda item: item[1]):
        if key not in stored:
            row = {
                "digest": key,
                "last_hour": latest[key],
                "kind": each.kind,
                "name": each.name,
                "hostname": each.hostname,
                "labels": dict(each.labels),
            }
            connection.execute(insert_new(connection.dialect.name, unit, row))


def _add(connection: Connection, table: Table, sums: dict[tuple[int, int], tuple[Sums, dict[str, str]]]) -> None:
    """Add sums by hour and key, each with the columns that the key stands for."""
    if not sums:
        return
    merged_until = _merged_until(connection, table)
    # By (hours, hour, key).
    merged: dict[tuple[int, int, int], Sums] = defaultdict(Sums)
    for (hour, key), (each, _) in sums.items():
        for hours in _row_lengths(hour, merged_until):
            merged[hours, hour if hours == 1 else day_floor(hour), key].add(each)
    others = {key: columns for (_, key), (_, columns) in sums.items()}
    names = _sum_names(table)
    rows = []
    # In the order of the key: two writers of the same rows cannot deadlock.
    for (hours, hour, key), each in sorted(merged.items(), key=itemgetter(0)):
        row: dict[str, Any] = {"hours": hours, "hour": hour, _key(table).name: key, **others[key]}
        row |= {name: getattr(each, name, None) for name in names}
        if hours == DAY_HOURS and "slotted_seconds" in names:
            # What comes late to a complete day ran long: the slots were known meanwhile, if they ever are.
            row["slotted_seconds"] = each.busy_seconds
        rows.append(row)
    for batch in batches(rows, BATCH):
        upsert_many(connection, table, batch, added=tuple(names))


def _row_lengths(hour: int, merged_until: int | None) -> Sequence[int]:
    """Return the lengths in hours of the rows that an hour's sums belong to."""
    if merged_until is None or hour >= merged_until:
        return (1,)
    return (1, DAY_HOURS) if hour >= merged_until - HOURS_KEPT else (DAY_HOURS,)


def merge_days(connection: Connection, now: datetime) -> int:
    """Write the rows of the next complete day, and remove the hours of one that is too old, of each table.

    The caller owns the transaction, and holds the lease of the analysis.

    :return: the number of rows that were written and removed; 0 if nothing is left to do
    """
    today = day_floor(hour_of(now))
    return sum(_merge_day(connection, table, today) + _remove_merged(connection, table) for table in TABLES)


def _merge_day(connection: Connection, table: Table, today: int) -> int:
    merged_until = _merged_until(connection, table)
    after = [] if merged_until is None else [table.c.hour >= merged_until]
    first = connection.execute(select(func.min(table.c.hour)).where(table.c.hours == 1, *after)).scalar()
    if first is None or first >= today:
        return 0
    day = day_floor(first)
    key = _key(table)
    names = _sum_names(table)
    others = [column.name for column in table.c if not column.primary_key and column.name not in names]
    merged = (
        select(
            literal(DAY_HOURS),
            literal(day),
            key,
            *(func.sum(_slotted(table) if name == "slotted_seconds" else table.c[name]) for name in names),
            *(func.max(table.c[name]) for name in others),
        )
        .where(table.c.hours == 1, table.c.hour >= day, table.c.hour < day + DAY_HOURS)
        .group_by(key)
    )
    columns = ["hours", "hour", key.name, *names, *others]
    return execute_and_count(connection, insert(table).from_select(columns, merged))


def _sum_names(table: Table) -> list[str]:
    """Return the names of the columns that are sums."""
    return [name for name in (*COUNTS, "slot_seconds", "slotted_seconds") if name in table.c]


def _slotted(rows: Any) -> Any:
    """Return a row's busy seconds in hours whose slots are known."""
    return case((rows.c.slot_seconds.is_not(None), func.coalesce(rows.c.slotted_seconds, rows.c.busy_seconds)))


def _remove_merged(connection: Connection, table: Table) -> int:
    merged_until = _merged_until(connection, table)
    return 0 if merged_until is None else _remove_before(connection, table, 1, merged_until - HOURS_KEPT)


def _merged_until(connection: Connection, table: Table) -> int | None:
    """Return the end of the latest day that has rows of its own; each day before has them too."""
    last = connection.execute(select(func.max(table.c.hour)).where(table.c.hours == DAY_HOURS)).scalar()
    return None if last is None else last + DAY_HOURS


def _key(table: Table) -> Any:
    """Return the column that a row's sums are of, beside its time."""
    return list(table.primary_key)[2]


# --- retention -------------------------------------------------------------------------------------------------------


def remove_step(connection: Connection, older_than: datetime) -> int:
    """Remove statistics of before a time: at most one day of each kind, and units without any.

    :return: the number of removed rows, also of units; 0 if nothing is left
    """
    limit = hour_of(older_than)
    removed = sum(
        _remove_before(connection, table, hours, limit - hours + 1) for table in TABLES for hours in (1, DAY_HOURS)
    )
    if removed:
        return removed
    return execute_and_count(connection, delete(unit).where(_is_unit_expired(limit)))


def count_older(connection: Connection, older_than: datetime) -> int:
    """Return how many rows :func:`remove_step` would remove until nothing is left."""
    limit = hour_of(older_than)
    conditions = [
        (table, and_(table.c.hours == hours, table.c.hour < limit - hours + 1))
        for table in TABLES
        for hours in (1, DAY_HOURS)
    ]
    return sum(
        connection.execute(select(func.count()).select_from(table).where(condition)).scalar_one()
        for table, condition in (*conditions, (unit, _is_unit_expired(limit)))
    )


def _is_unit_expired(limit: int) -> Any:
    # Its day, which may have a row of its own, has ended before.
    return unit.c.last_hour <= limit - DAY_HOURS


def _remove_before(connection: Connection, table: Table, hours: int, before: int) -> int:
    """Remove the rows of these hours that begin before an hour: those of at most a day."""
    of_hours = table.c.hours == hours
    first = connection.execute(select(func.min(table.c.hour)).where(of_hours)).scalar()
    if first is None or first >= before:
        return 0
    return execute_and_count(connection, delete(table).where(of_hours, table.c.hour < min(first + DAY_HOURS, before)))


# --- reading ---------------------------------------------------------------------------------------------------------


def query(
    connection: Connection, selection: Selection, *, dag_ids: frozenset[str] | None, limit: int, offset: int
) -> StatisticsPage:
    """Return statistics: the earliest bucket first, in each the groups with the most tries.

    They come from the sums by hour where these can answer: of workers filtered by name and host, of tasks filtered by
    their IDs, and of all queues. All else is counted from the attempts (:mod:`.attempts.totals`).

    :param dag_ids: the Dags that the reader may see, or ``None`` for all. Sums of workers and queues are over all Dags
    :raises StatisticsError: if the hours are not kept any more, or too many attempts would have to be read
    """
    disable_jit(connection)
    others = other_filters(selection.group_by, selection.filters)
    if selection.group_by == "queue":
        if others:
            raise StatisticsError(
                f"Queues are counted over all tries: leave out {' and '.join(sorted(others))}, or group otherwise."
            )
        return _page_of_sums(connection, _Source(queue_hour, (queue_hour.c.queue,)), selection, limit, offset)
    if not others:
        source = _tasks(connection, selection, dag_ids) if is_of_tasks(selection.group_by) else _units(selection)
        return _page_of_sums(connection, source, selection, limit, offset)
    try:
        found = totals.count_tries(connection, selection, dag_ids)
    except totals.UncountableError as error:
        raise StatisticsError(str(error)) from None
    return _page_of_tries(found, selection, limit, offset)


@dataclass(frozen=True)
class _Source:
    """Rows of one of the tables, and what groups them."""

    table: Table
    names: tuple[Any, ...]
    """Columns whose values together name a group."""
    conditions: tuple[Any, ...] = ()
    units: Any = None
    """Subquery of units to join with, by ``digest``."""


def _units(selection: Selection) -> _Source:
    columns = {"worker": unit.c.name, "host": unit.c.hostname, "kind": unit.c.kind}
    name = columns.get(selection.group_by)
    if name is None:
        name = unit.c.labels[selection.label].as_string()
    wanted = ((unit.c.name, selection.filters.worker_name), (unit.c.hostname, selection.filters.hostname))
    conditions = [column == value for column, value in wanted if value is not None]
    units = select(unit.c.digest, name.label("group_name")).where(*conditions).subquery()
    return _Source(worker_hour, (units.c.group_name,), units=units)


def _tasks(connection: Connection, selection: Selection, dag_ids: frozenset[str] | None) -> _Source:
    tasks, filters = task_hour.c, selection.filters
    if not can_be_ids(connection, filters.dag_id, filters.task_id):
        dag_ids = frozenset()
    wanted = ((tasks.dag_id, filters.dag_id), (tasks.task_id, filters.task_id))
    conditions = [column == value for column, value in wanted if value is not None]
    if dag_ids is not None:
        readable = sorted(dag_id for dag_id in dag_ids if can_be_ids(connection, dag_id))
        conditions.append(in_list(connection, tasks.dag_id, readable) if readable else false())
    names = (tasks.dag_id,) if selection.group_by == "dag" else (tasks.dag_id, tasks.task_id)
    return _Source(task_hour, names, tuple(conditions))


def _page_of_sums(
    connection: Connection, source: _Source, selection: Selection, limit: int, offset: int
) -> StatisticsPage:
    table, bucket = source.table, selection.bucket
    window = whole_hours(selection.since, selection.until)
    (since, until), in_window = _in_window(connection, table, bucket, window)
    # A subquery, so that each expression of a group occurs once: to PostgreSQL two with parameters are different ones.
    rows: Any = select(
        *(name.label(f"group_{index}") for index, name in enumerate(source.names)),
        _begin(table, bucket).label("bucket"),
        *(table.c[name] for name in _sum_names(table)),
    )
    if source.units is not None:
        rows = rows.select_from(table.join(source.units, source.units.c.digest == table.c.unit_digest))
    rows = rows.where(in_window, *source.conditions).subquery()
    groups = [rows.c[f"group_{index}"] for index in range(len(source.names))]
    statement = (
        select(*groups, rows.c.bucket, *_sums(rows), func.count().over().label("total"))
        .group_by(*groups, rows.c.bucket)
        .order_by(rows.c.bucket, func.sum(rows.c.tries).desc(), *groups)
    )
    found = connection.execute(statement.limit(limit).offset(offset)).all()
    if found or not offset:
        total = found[0].total if found else 0
    else:
        total = connection.execute(select(func.count()).select_from(statement.subquery())).scalar_one()
    return StatisticsPage(
        [_row(".".join(name or "" for name in row[: len(groups)]), row.bucket, bucket, row) for row in found],
        total,
        hour_start(since),
        hour_start(until),
    )


def _sums(rows: Any) -> list[Any]:
    """Return the sums over rows, with the slots, and the busy seconds where these are known."""
    sums = [func.sum(rows.c[name]).label(name) for name in COUNTS]
    if "slot_seconds" not in rows.c:
        return [*sums, literal_column("NULL").label("slot_seconds")]
    slots = func.sum(rows.c.slot_seconds).label("slot_seconds")
    return [*sums, slots, func.sum(_slotted(rows)).label("slotted_seconds")]


def _begin(table: Table, bucket: Bucket) -> Any:
    """Return :meth:`.Bucket.begin` of a row's hour."""
    if bucket == Bucket.NONE:
        return literal_column("0")
    return table.c.hour if bucket == Bucket.HOUR else table.c.hour - table.c.hour % literal_column(str(DAY_HOURS))


def _row(group: str | None, hour: int, bucket: Bucket, sums: Any) -> StatisticsRow:
    """Return a row from a database row of :func:`_sums`."""
    return StatisticsRow(
        group=group or None,
        bucket=None if bucket == Bucket.NONE else hour_start(hour),
        tries=int(sums.tries),
        failed=int(sums.failed),
        lost=int(sums.lost),
        busy_seconds=round(sums.busy_seconds, 3),
        utilization=_utilization(sums),
        mean_duration=_seconds(sums.duration_seconds, sums.tries),
        mean_queue_seconds=_seconds(sums.queue_seconds, sums.queued_tries),
    )


def _utilization(sums: Any) -> float | None:
    part = None if sums.slot_seconds is None else ratio(sums.slotted_seconds, sums.slot_seconds)
    return None if part is None else round(part, 4)


def _seconds(total: float, number: int) -> float | None:
    mean = ratio(total, int(number))
    return None if mean is None else round(mean, 3)


def _page_of_tries(
    found: dict[tuple[int, str | None], Sums], selection: Selection, limit: int, offset: int
) -> StatisticsPage:
    ordered = sorted(found.items(), key=lambda item: (item[0][0], -item[1].tries, item[0][1] or ""))
    rows = [_row(group, hour, selection.bucket, sums) for (hour, group), sums in ordered[offset : offset + limit]]
    first, last = whole_hours(selection.since, selection.until)
    return StatisticsPage(rows, len(ordered), hour_start(first), hour_start(last))


def _in_window(
    connection: Connection, table: Table, bucket: Bucket, window: tuple[int, int]
) -> tuple[tuple[int, int], Any]:
    """Return the window that can be answered, and the condition on its rows.

    :raises StatisticsError: if hours are asked for that are not kept any more
    """
    since, until = window
    merged_until = _merged_until(connection, table)
    if bucket == Bucket.HOUR or merged_until is None:
        if merged_until is not None and since < merged_until - HOURS_KEPT:
            raise StatisticsError(
                f"Statistics by hour are kept for {HOURS_KEPT // DAY_HOURS} days: ask for a from of "
                f"{hour_start(merged_until - HOURS_KEPT):%Y-%m-%dT%H:%M:%SZ} or later, or for bucket=day."
            )
        return window, _is_between(table, 1, since, until)
    # Whole days are read from their own rows; so are days that the window cuts, where their hours are not kept.
    kept_from = merged_until - HOURS_KEPT
    first_day = day_floor(since) if since < kept_from else day_ceil(since)
    days_end = min(day_ceil(until) if until < kept_from else day_floor(until), merged_until)
    if first_day >= days_end:
        return window, _is_between(table, 1, since, until)
    condition = or_(
        _is_between(table, DAY_HOURS, first_day, days_end),
        _is_between(table, 1, since, first_day),
        _is_between(table, 1, days_end, until),
    )
    return (min(since, first_day), max(until, days_end)), condition


def _is_between(table: Table, hours: int, since: int, until: int) -> Any:
    return and_(table.c.hours == hours, table.c.hour >= since, table.c.hour < until)


# --- the heat map ----------------------------------------------------------------------------------------------------


def heat_map(
    connection: Connection,
    *,
    since: datetime,
    until: datetime,
    limit: int = MAX_HEAT_MAP_ROWS,
    by_name: bool = False,
) -> HeatMap:
    """Return workers by hour: those with the most failed and lost tries beyond what is expected of their tasks.

    :param since: is widened to the begin of its hour; hours that are not kept any more have no cells
    :param until: is widened to the end of its hour
    :param by_name: return the first by name instead, and order by it
    """
    disable_jit(connection)
    names = (unit.c.kind, unit.c.name, case((unit.c.name.is_(None), unit.c.hostname), else_="").label("node"))
    units = select(unit.c.digest, unit.c.hostname, *names).subquery()
    hours = worker_hour.c
    joined = worker_hour.join(units, units.c.digest == hours.unit_digest)
    window = whole_hours(since, until)
    _, in_days = _in_window(connection, worker_hour, Bucket.NONE, window)
    keys = [units.c.kind, units.c.name, units.c.node]
    excess = func.sum(hours.failed + hours.lost - hours.expected_failed)
    order = [units.c.name, units.c.node, units.c.kind]
    shown = connection.execute(
        select(*keys, func.max(units.c.hostname).label("hostname"), func.count().over().label("total"))
        .select_from(joined)
        .where(in_days)
        .group_by(*keys)
        .order_by(*([] if by_name else [excess.desc()]), *order)
        .limit(limit)
    ).all()
    if not shown:
        return HeatMap([], 0)
    # Their units are those of their names and nodes, and a few more of other kinds.
    of_shown = or_(
        in_list(connection, units.c.name, sorted({row.name for row in shown if row.name is not None}) or [""]),
        and_(units.c.name.is_(None), in_list(connection, units.c.node, sorted({row.node for row in shown}))),
    )
    rows = select(*keys, hours.hour, *(hours[name] for name in _sum_names(worker_hour)))
    in_hours = _is_between(worker_hour, 1, *window)
    cells = _cells(connection, rows.select_from(joined).where(in_hours, of_shown).subquery())
    return HeatMap(
        [HeatMapRow(row.kind, row.name, row.hostname, cells[tuple(row[:3])]) for row in shown],
        shown[0].total - len(shown),
    )


def _cells(connection: Connection, rows: Any) -> dict[tuple[Any, ...], dict[datetime, HeatMapCell]]:
    """Return the cells of workers by kind, name and node, of each by hour."""
    groups = (rows.c.kind, rows.c.name, rows.c.node, rows.c.hour)
    cells: dict[tuple[Any, ...], dict[datetime, HeatMapCell]] = defaultdict(dict)
    for row in connection.execute(select(*groups, *_sums(rows)).group_by(*groups).order_by(rows.c.hour)):
        cells[tuple(row[:3])][hour_start(row.hour)] = HeatMapCell(
            tries=int(row.tries),
            failed=int(row.failed),
            lost=int(row.lost),
            expected_failed=round(row.expected_failed, 3),
            utilization=_utilization(row),
            mean_queue_seconds=_seconds(row.queue_seconds, row.queued_tries),
        )
    return cells
