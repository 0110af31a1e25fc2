"""Decide whether the stored state of a worker still counts.

A worker's row holds what was true at the last poll. A state that has not been checked for long is shown nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import and_, case, false, literal, not_, or_, select

from airflow_worker_insight import config
from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.domain.executors import absent_sources
from airflow_worker_insight.domain.states import SOURCE_OF_KIND, UNKNOWN_STATE, SourceName, WorkerState, source_of
from airflow_worker_insight.domain.workers import SourceStatus
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.tables import worker, worker_source

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from typing import Any

    from sqlalchemy.engine import Connection, Row


STALE_AFTER = 3
"""Refresh intervals without a poll after which a source's states are stale."""

STATES_ARE_STALE = "Worker states are stale."
"""Reason why an executor ignores the workers in the tables."""


def list_sources(connection: Connection, *, grace_period: timedelta = timedelta()) -> list[SourceStatus]:
    """Return the worker sources that were ever polled, in the order of their names.

    :param grace_period: how much longer than usual a poll counts as current
    """
    oldest = database_now(connection) - STALE_AFTER * timedelta(seconds=config.refresh_interval()) - grace_period
    return [
        SourceStatus(
            name=row.name,
            polled_at=utc(row.looked_at),
            is_current=row.looked_at is not None and row.looked_at >= oldest,
            error=row.error,
        )
        # The table also holds other leases.
        for row in connection.execute(
            select(worker_source)
            .where(worker_source.c.name.in_({*SOURCE_OF_KIND.values(), SourceName.TRIES}))
            .order_by(worker_source.c.name)
        )
    ]


@dataclass(frozen=True, slots=True)
class SourceFreshness:
    """When each worker source was last polled, and which are stale."""

    polled_at: Mapping[str, datetime | None]
    stale: frozenset[str]
    absent: frozenset[str] = frozenset()
    """Sources that no executor in the local configuration uses."""

    @classmethod
    def of(cls, connection: Connection, *, grace_period: timedelta = timedelta()) -> SourceFreshness:
        """Read the last polls.

        :param grace_period: how much longer than usual a poll counts as current
        """
        statuses = list_sources(connection, grace_period=grace_period)
        current = {status.name for status in statuses if status.is_current}
        names = {*SOURCE_OF_KIND.values(), SourceName.TRIES}
        setting = config.executor()
        # Without a setting the executors are unknown.
        absent = frozenset(absent_sources(setting) if setting else ())
        return cls({status.name: status.polled_at for status in statuses}, frozenset(names - current), absent)


LIVE_STATES = (WorkerState.ONLINE, WorkerState.UNRESPONSIVE)
"""States of a worker that has not ended: they are valid only while its source is polled."""


def _is_stale(freshness: SourceFreshness) -> Any | None:
    """Match workers with a stale state; return ``None`` if there can be none."""
    kinds = [kind for kind, name in SOURCE_OF_KIND.items() if name in freshness.stale]
    conditions = [worker.c.kind.in_(kinds)] if kinds else []
    if SourceName.TRIES in freshness.stale:
        conditions.append(worker.c.kind.not_in(list(SOURCE_OF_KIND)))
    return and_(worker.c.state.in_(LIVE_STATES), or_(*conditions)) if conditions else None


def shown_state(freshness: SourceFreshness) -> Any:
    """Return the expression for the state that lists show: NULL if it is stale."""
    is_stale = _is_stale(freshness)
    if is_stale is None:
        return worker.c.state
    return case((is_stale, literal(None, worker.c.state.type)), else_=worker.c.state)


def in_states(states: frozenset[str] | None, freshness: SourceFreshness) -> list[Any]:
    """Match the workers that are shown in one of these states; ``None`` matches all."""
    if states is None:
        return []
    is_stale = _is_stale(freshness)
    known_states = [state for state in WorkerState.values() if state in states]
    conditions = []
    if known_states:
        is_in_states = worker.c.state.in_(known_states)
        conditions.append(is_in_states if is_stale is None else and_(is_in_states, not_(is_stale)))
    if UNKNOWN_STATE in states:
        conditions.append(worker.c.state.is_(None))
        if is_stale is not None:
            conditions.append(is_stale)
    return [or_(*conditions)] if conditions else [false()]


def state_and_reason(row: Row[Any], freshness: SourceFreshness) -> tuple[str | None, str | None]:
    """Return the state that counts, and its reason."""
    if row.host_only:
        return None, "This row stands for one of the workers of its host: which one is unknown."
    source = source_of(row.kind)
    if row.state not in LIVE_STATES or source not in freshness.stale:
        return row.state, row.state_reason
    polled_at = freshness.polled_at.get(source)
    if source in freshness.absent:
        return None, (
            "Its state is unknown: no executor in [core] executor has such workers. It will count as "
            + ("offline once none of them has run a try for a day." if polled_at is None else "offline soon.")
        )
    last_poll = "never checked" if polled_at is None else f"last checked at {polled_at:%Y-%m-%d %H:%M:%S} UTC"
    return None, (
        f"Worker states are stale: {last_poll}. Run `airflow-worker-insight refresh`; an API server of Airflow 3 does "
        "it by itself."
    )
