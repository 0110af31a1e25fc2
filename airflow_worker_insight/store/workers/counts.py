"""Count workers and their load: by state, by group, and for metrics."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import Text, cast, func, literal, or_, select, union_all

from airflow_worker_insight.domain.limits import MAX_TOTAL
from airflow_worker_insight.domain.states import UNKNOWN_STATE, WorkerState
from airflow_worker_insight.domain.workers import WorkerGroup
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.tables import worker
from airflow_worker_insight.store.workers.freshness import LIVE_STATES, SourceFreshness, in_states, shown_state
from airflow_worker_insight.store.workers.queries import filter_conditions, with_matching_refs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from sqlalchemy.engine import Connection, Row

    from airflow_worker_insight.domain.filters import WorkerFilter


COUNTED_STATES = (WorkerState.ONLINE, WorkerState.UNRESPONSIVE, WorkerState.LOST)
"""States that are counted.

Counting all gracefully stopped workers would read many rows for a number that only grows.
"""

COUNT_LOST_FOR = timedelta(days=1)
"""How long a worker counts as lost, unless it is seen again."""

MAX_WORKERS = 10_000


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """Used and total slots of a live worker; ``None`` is unknown."""

    name: str
    running: int | None
    concurrency: int | None


def count_workers(connection: Connection) -> Mapping[tuple[str, str], int]:
    """Return the number of workers by kind and state; each existing kind has every state."""
    since = database_now(connection) - COUNT_LOST_FOR
    rows = connection.execute(
        select(worker.c.kind, worker.c.state, func.count().label("workers"))
        .where(
            worker.c.state.in_(COUNTED_STATES),
            worker.c.host_only.is_(False),
            or_(worker.c.state != WorkerState.LOST, worker.c.ended_at >= since),
        )
        .group_by(worker.c.kind, worker.c.state)
    ).all()
    zeros = {(row.kind, state): 0 for row in rows for state in COUNTED_STATES}
    return zeros | {(row.kind, row.state): row.workers for row in rows}


def worker_loads(connection: Connection) -> Sequence[WorkerLoad]:
    """Return the load of each live worker, at most :data:`MAX_WORKERS` of them."""
    rows = connection.execute(
        select(worker.c.name, worker.c.running, worker.c.concurrency)
        .where(worker.c.state.in_(LIVE_STATES), worker.c.host_only.is_(False))
        .order_by(worker.c.id)
        .limit(MAX_WORKERS)
    )
    return [WorkerLoad(row.name, row.running, row.concurrency) for row in rows]


MAX_LABEL_KEYS = 100


def count_states(connection: Connection, filters: WorkerFilter, *, max_total: int = MAX_TOTAL) -> dict[str | None, int]:
    """Return the number of workers in each state, ignoring ``filters.states``.

    At most ``max_total`` are counted per state; states without a worker are left out.
    """
    freshness = SourceFreshness.of(connection)
    conditions = filter_conditions(connection, with_matching_refs(connection, filters))
    queries = []
    for number, state in enumerate((*WorkerState.values(), UNKNOWN_STATE)):
        limited = (
            select(worker.c.id)
            .where(*conditions, *in_states(frozenset({state}), freshness))
            .limit(max_total)
            .subquery()
        )
        queries.append(select(literal(number).label("number"), func.count().label("workers")).select_from(limited))
    counted = {row.number: row.workers for row in connection.execute(union_all(*queries))}
    return {state: counted[number] for number, state in enumerate((*WorkerState.values(), None)) if counted.get(number)}


def group_workers(
    connection: Connection, filters: WorkerFilter, *, by: str, limit: int, offset: int = 0
) -> tuple[list[WorkerGroup], int]:
    """Return a page of worker groups, ordered by name, and the number of groups.

    If more than :data:`~.limits.MAX_TOTAL` workers match, the latest are grouped. A worker of two queues is in two
    groups; workers of which nothing is known are in the last group, whose name is empty.

    :param by: ``queue``, ``hostname``, ``kind`` or ``label:KEY``
    :raises ValueError: for any other ``by``
    """
    group_column, parse_names = _grouping(by)
    freshness = SourceFreshness.of(connection)
    filters = with_matching_refs(connection, filters)
    state = shown_state(freshness)
    latest = (
        select(group_column.label("common"), state.label("state"), worker.c.running, worker.c.concurrency)
        .where(*filter_conditions(connection, filters), *in_states(filters.states, freshness))
        .order_by(worker.c.id.desc())
        .limit(MAX_TOTAL)
        .subquery()
    )
    rows = connection.execute(
        select(
            latest.c.common,
            latest.c.state,
            func.count().label("workers"),
            func.coalesce(func.sum(latest.c.running), 0).label("running"),
            func.coalesce(func.sum(latest.c.concurrency), 0).label("concurrency"),
        ).group_by(latest.c.common, latest.c.state)
    )
    groups: dict[str, _GroupTotals] = defaultdict(_GroupTotals)
    for row in rows:
        for name in parse_names(row.common):
            groups[name].add(row)
    ordered = sorted(groups, key=lambda name: (not name, name))
    return [groups[name].group(name) for name in ordered[offset : offset + limit]], len(ordered)


def label_keys(connection: Connection) -> list[str]:
    """Return the label keys of the latest workers, at most :data:`MAX_LABEL_KEYS`."""
    latest = (
        select(cast(worker.c.labels, Text).label("labels"))
        .where(worker.c.host_only.is_(False))
        .order_by(worker.c.id.desc())
        .limit(MAX_TOTAL)
        .subquery()
    )
    texts = connection.execute(select(latest.c.labels).distinct()).scalars()
    return sorted({key for text in texts for key in _parsed(text, {})})[:MAX_LABEL_KEYS]


class _GroupTotals:
    """The running totals of one group."""

    def __init__(self) -> None:
        self._states: dict[str | None, int] = defaultdict(int)
        self._running = 0
        self._concurrency = 0

    def add(self, row: Row[Any]) -> None:
        self._states[row.state] += row.workers
        if row.state not in (WorkerState.OFFLINE, WorkerState.LOST):
            self._running += int(row.running)
            self._concurrency += int(row.concurrency)

    def group(self, name: str) -> WorkerGroup:
        return WorkerGroup(name, dict(self._states), self._running, self._concurrency)


def _grouping(by: str) -> tuple[Any, Callable[[Any], Iterable[str]]]:
    """Return the column to group by, and the function that reads the groups' names from it."""
    if by in ("hostname", "kind"):
        return worker.c[by], lambda value: [value]
    if by == "queue":
        return cast(worker.c.queues, Text), lambda text: [str(name) for name in _parsed(text, None) or [""]]
    prefix, _, key = by.partition(":")
    if prefix == "label" and key:
        return cast(worker.c.labels, Text), lambda text: [str(_parsed(text, {}).get(key, ""))]
    raise ValueError(f"workers cannot be grouped by {by}")


def _parsed(text: str | None, default: Any) -> Any:
    value = json.loads(text) if text is not None else None
    return default if value is None else value
