"""Whether the state of a worker still counts.

What a worker's row says was true when the fleet was last looked at. What nobody has checked for long is shown nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import and_, case, false, literal, not_, or_, select

from airflow_worker_insight import config
from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.domain.executors import absent_sources
from airflow_worker_insight.domain.states import (
    ENGINE_OF_KIND,
    ONLINE,
    OTHER_KINDS,
    UNKNOWN_STATE,
    UNRESPONSIVE,
    WORKER_STATES,
    engine_of,
)
from airflow_worker_insight.domain.workers import SourceStatus
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.tables import engine, worker

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from typing import Any

    from sqlalchemy.engine import Connection, Row


STALE_AFTER = 3
"""Refresh intervals after which nobody can be said to look any more."""

NOBODY_LOOKS = "Nobody looks at the workers."
"""Why an executor knows nothing of the workers that the tables have."""


def list_engines(connection: Connection, *, patience: timedelta = timedelta()) -> list[SourceStatus]:
    """Return the engines that were ever looked at, in the order of their names.

    :param patience: how much longer than usual a look counts as current
    """
    oldest = database_now(connection) - STALE_AFTER * timedelta(seconds=config.refresh_interval()) - patience
    return [
        SourceStatus(
            name=row.name,
            looked_at=utc(row.looked_at),
            is_current=row.looked_at is not None and row.looked_at >= oldest,
            error=row.error,
        )
        # Beside them stand other leases.
        for row in connection.execute(
            select(engine).where(engine.c.name.in_({*ENGINE_OF_KIND.values(), OTHER_KINDS})).order_by(engine.c.name)
        )
    ]


@dataclass(frozen=True, slots=True)
class Looks:
    """When each engine was last looked at, and which of them nobody looks at any more."""

    looked_at: Mapping[str, datetime | None]
    stale: frozenset[str]
    absent: frozenset[str] = frozenset()
    """Those that no executor is of, by the configuration here."""

    @classmethod
    def of(cls, connection: Connection, *, patience: timedelta = timedelta()) -> Looks:
        """Read them; ``patience`` is how much longer than usual a look counts as current."""
        engines = list_engines(connection, patience=patience)
        current = {one.name for one in engines if one.is_current}
        names = {*ENGINE_OF_KIND.values(), OTHER_KINDS}
        setting = config.executor()
        # Without a setting nothing is known of any executor.
        absent = frozenset(absent_sources(setting) if setting else ())
        return cls({one.name: one.looked_at for one in engines}, frozenset(names - current), absent)


LIVE = (ONLINE, UNRESPONSIVE)
"""The states of a worker that has not ended: they are true only for as long as somebody looks."""


def _is_stale(looks: Looks) -> Any | None:
    """Say that nobody looks any more whether the worker lives, or ``None`` where that is so of no worker."""
    kinds = [kind for kind, name in ENGINE_OF_KIND.items() if name in looks.stale]
    conditions = [worker.c.kind.in_(kinds)] if kinds else []
    if OTHER_KINDS in looks.stale:
        conditions.append(worker.c.kind.not_in(list(ENGINE_OF_KIND)))
    return and_(worker.c.state.in_(LIVE), or_(*conditions)) if conditions else None


def shown_state(looks: Looks) -> Any:
    """Return the expression for the state that lists show: none where nobody looks any more."""
    stale = _is_stale(looks)
    if stale is None:
        return worker.c.state
    return case((stale, literal(None, worker.c.state.type)), else_=worker.c.state)


def in_states(states: frozenset[str] | None, looks: Looks) -> list[Any]:
    """Match the workers that are shown in one of these states; ``None`` matches all."""
    if states is None:
        return []
    stale = _is_stale(looks)
    known = [state for state in WORKER_STATES if state in states]
    conditions = []
    if known:
        in_states = worker.c.state.in_(known)
        conditions.append(in_states if stale is None else and_(in_states, not_(stale)))
    if UNKNOWN_STATE in states:
        conditions.append(worker.c.state.is_(None))
        if stale is not None:
            conditions.append(stale)
    return [or_(*conditions)] if conditions else [false()]


def state_and_reason(row: Row[Any], looks: Looks) -> tuple[str | None, str | None]:
    """Return the state that counts and why."""
    if row.host_only:
        return None, "This stands for one of the workers of its host: which one is not known."
    name = engine_of(row.kind)
    if row.state not in LIVE or name not in looks.stale:
        return row.state, row.state_reason
    when = looks.looked_at.get(name)
    if name in looks.absent:
        return None, (
            "Nothing tells whether it lives: [core] executor names no executor that has such workers. It will count as "
            + ("offline once none of them has run a try for a day." if when is None else "offline soon.")
        )
    since = (
        "Nobody has looked at this engine yet"
        if when is None
        else f"Nobody has looked since {when:%Y-%m-%d %H:%M:%S} UTC"
    )
    return None, (f"{since}: run `airflow-worker-insight refresh`. An API server of Airflow 3 does it by itself.")
