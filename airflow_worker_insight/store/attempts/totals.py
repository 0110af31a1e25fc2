"""Count tries by group and time from the attempts themselves, for filters that the sums by hour cannot answer."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import select

from airflow_worker_insight.domain.clock import START_TOLERANCE, utc
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.domain.states import Attribution, WorkerState
from airflow_worker_insight.domain.statistics import Sums, hour_of, hour_start, split_hours, whole_hours
from airflow_worker_insight.store import airflow_history
from airflow_worker_insight.store.attempts import search
from airflow_worker_insight.store.batches import batches
from airflow_worker_insight.store.tables import attempt, worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime
    from typing import Any

    from sqlalchemy.engine import Connection, Row

    from airflow_worker_insight.domain.filters import AttemptFilter
    from airflow_worker_insight.domain.keys import RowKey
    from airflow_worker_insight.domain.statistics import Selection

MAX_TRIES = 10_000
"""Tries that are read for one answer."""

LOOKBACK = timedelta(days=1)
"""How long before the window a try may have started; tries are found by their start, and counted when they ended."""

BATCH = 1000

STATES = ("success", "failed")
"""States of tries that statistics count."""


class UncountableError(Exception):
    """Raised when tries cannot be counted as asked; the message says what to change."""


def count_tries(
    connection: Connection, selection: Selection, dag_ids: frozenset[str] | None
) -> dict[tuple[int, str | None], Sums]:
    """Return sums by bucket (:meth:`.Bucket.begin`) and group, of tries whose worker is known.

    A try counts for the first of its workers that the filters match. Nothing is known of queues and slots.

    :param dag_ids: the Dags that the reader may see, or ``None`` for all
    :raises UncountableError: if the window has too many tries, or the filter is for a state that is not counted
    """
    filters = selection.filters
    if filters.state not in {None, *STATES}:
        raise UncountableError("Statistics count tries that succeeded or failed: state must be success or failed.")
    first, last = whole_hours(selection.since, selection.until)
    since, until = hour_start(first), hour_start(last)
    within = replace(
        filters,
        started_at_gte=max(filter(None, (since - LOOKBACK, filters.started_at_gte))),
        started_at_lte=min(filter(None, (until, filters.started_at_lte))),
    )
    page = search.find(connection, within, dag_ids=dag_ids, limit=MAX_TRIES + 1, offset=0)
    if page.is_cut or len(page.keys) > MAX_TRIES:
        raise UncountableError(
            f"More than {MAX_TRIES:,} tries would have to be read for these filters: make the window shorter, or name "
            "a dag_id, a run_id or a worker."
        )
    found: dict[tuple[int, str | None], Sums] = defaultdict(Sums)
    for row, state, ended_at in _ended(connection, _first_rows(_load(connection, page.keys), filters)):
        group = _group(row, selection)
        started_at = utc(row.started_at) or ended_at
        for hour, seconds in split_hours(max(started_at, since), min(ended_at, until)):
            found[selection.bucket.begin(hour), group].busy_seconds += seconds
        if state not in STATES or not since <= ended_at < until:
            continue
        sums = found[selection.bucket.begin(hour_of(ended_at)), group]
        is_lost = state == "failed" and _is_lost(row, ended_at)
        sums.tries += 1
        sums.lost += is_lost
        sums.failed += state == "failed" and not is_lost
        sums.duration_seconds += max(0.0, (ended_at - started_at).total_seconds())
    return found


def _load(connection: Connection, keys: Sequence[RowKey]) -> dict[RowKey, list[Row[Any]]]:
    """Return the rows of tries with their workers, those of workers that are known by name only."""
    tries: dict[RowKey, list[Row[Any]]] = defaultdict(list)
    names = (
        "worker_id",
        "reported_id",
        "name",
        "engine_name",
        "kind",
        "hostname",
        "labels",
        "resources",
        "last_seen_at",
    )
    statement = (
        select(
            attempt,
            *(worker.c[name] for name in names),
            worker.c.last_seen_at,
            worker.c.state.label("worker_state"),
        )
        .join(worker, worker.c.id == attempt.c.worker_ref)
        .where(worker.c.host_only.is_(False))
        .order_by(attempt.c.ordinal)
    )
    for batch in batches(keys, BATCH):
        for row in connection.execute(statement.where(search.is_one_of(connection, batch))):
            tries[row.run_key, row.task_key, row.try_number].append(row)
    return tries


def _first_rows(tries: dict[RowKey, list[Row[Any]]], filters: AttemptFilter) -> Iterable[Row[Any]]:
    """Yield of each try the row of the first worker that the filters match."""
    for rows in tries.values():
        # As in lists: if the worker itself reported the try, what was inferred does not count.
        reported = [row for row in rows if row.attribution == Attribution.REPORTED] or rows
        first = next((row for row in reported if _matches(row, filters)), None)
        if first is not None:
            yield first


def _matches(row: Row[Any], filters: AttemptFilter) -> bool:
    wanted = (
        (filters.worker_id, (row.worker_id, row.reported_id)),
        (filters.worker_name, (row.name, row.engine_name)),
        (filters.hostname, (row.hostname,)),
    )
    return all(value is None or value in found for value, found in wanted)


def _ended(connection: Connection, rows: Iterable[Row[Any]]) -> Iterable[tuple[Row[Any], str | None, datetime]]:
    """Yield the tries that have ended, each with its state and end; those of open Dag runs are as Airflow has them."""
    open_rows = []
    for row in rows:
        if row.ended_at is None:
            open_rows.append(row)
        else:
            yield row, row.state, row.ended_at
    keys = [TryKey(row.dag_id, row.run_id, row.task_id, row.map_index, row.try_number) for row in open_rows]
    known = airflow_history.tries_by_row(connection, keys) if keys else {}
    for row in open_rows:
        current = known.get((row.run_key, row.task_key, row.try_number))
        if current is not None and current.is_finished and current.ended_at is not None:
            yield row, current.state, current.ended_at


def _is_lost(row: Row[Any], ended_at: datetime) -> bool:
    """Return whether a failed try ended with its worker: it had not ended when the worker was last seen."""
    return bool(row.worker_state == WorkerState.LOST and ended_at > row.last_seen_at + START_TOLERANCE)


def _group(row: Row[Any], selection: Selection) -> str | None:
    if selection.label is not None:
        labels: dict[str, str] = {"image": row.resources.get("image"), **row.labels}
        return labels.get(selection.label)
    groups: dict[str, str] = {"worker": row.name, "host": row.hostname, "kind": row.kind, "dag": row.dag_id}
    return groups.get(selection.group_by, f"{row.dag_id}.{row.task_id}")
