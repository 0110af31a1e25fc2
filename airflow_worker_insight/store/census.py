"""Count the workers that live, and those that were lost lately: for gauges, at every look at the fleet."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import func, or_, select

from airflow_worker_insight.domain.states import LOST, ONLINE, UNRESPONSIVE
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.tables import worker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.engine import Connection

STATES = (ONLINE, UNRESPONSIVE, LOST)
"""What is counted. All that ever left in order would be read for a number that only grows."""

LATELY = timedelta(days=1)
"""A worker counts as lost for so long, unless it is seen again."""

MAX_WORKERS = 10_000


@dataclass(frozen=True, slots=True)
class Load:
    """How much a living worker runs, and how much it can; ``None`` is not known."""

    name: str
    running: int | None
    concurrency: int | None


def count_workers(connection: Connection) -> Mapping[tuple[str, str], int]:
    """Return how many workers there are by kind and state; of each kind that is there every state is given."""
    since = database_now(connection) - LATELY
    rows = connection.execute(
        select(worker.c.kind, worker.c.state, func.count().label("workers"))
        .where(
            worker.c.state.in_(STATES),
            worker.c.host_only.is_(False),
            or_(worker.c.state != LOST, worker.c.ended_at >= since),
        )
        .group_by(worker.c.kind, worker.c.state)
    ).all()
    zeros = {(row.kind, state): 0 for row in rows for state in STATES}
    return zeros | {(row.kind, row.state): row.workers for row in rows}


def loads(connection: Connection) -> Sequence[Load]:
    """Return the load of each worker that lives, of at most :data:`MAX_WORKERS`."""
    rows = connection.execute(
        select(worker.c.name, worker.c.running, worker.c.concurrency)
        .where(worker.c.state.in_((ONLINE, UNRESPONSIVE)), worker.c.host_only.is_(False))
        .order_by(worker.c.id)
        .limit(MAX_WORKERS)
    )
    return [Load(row.name, row.running, row.concurrency) for row in rows]
