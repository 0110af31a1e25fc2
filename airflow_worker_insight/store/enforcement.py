"""What was done to keep work off workers: one row for each worker instance concerned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, or_, select

from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.domain.enforcement import EnforcedWorker, Enforcement
from airflow_worker_insight.domain.states import WorkerAvailability, WorkerState
from airflow_worker_insight.store.insight_tables import enforcement
from airflow_worker_insight.store.tables import worker

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy.engine import Connection, Row


def enforced_workers(connection: Connection, kind: str) -> list[EnforcedWorker]:
    """Return the live instances of a kind that are to take no new work, or to take work again."""
    rows = connection.execute(
        select(worker.c.id, worker.c.engine_name, worker.c.availability, *_columns())
        .select_from(worker.outerjoin(enforcement, enforcement.c.worker_ref == worker.c.id))
        .where(
            worker.c.kind == kind,
            worker.c.engine_name.is_not(None),
            worker.c.state.in_((WorkerState.ONLINE, WorkerState.UNRESPONSIVE)),
            worker.c.ended_at.is_(None),
            or_(
                worker.c.availability != WorkerAvailability.AVAILABLE,
                enforcement.c.worker_ref.is_not(None),
            ),
        )
        .order_by(worker.c.id)
    )
    return [EnforcedWorker(row.id, row.engine_name, row.availability, _enforcement(row)) for row in rows]


def find(connection: Connection, refs: Collection[int]) -> dict[int, Enforcement]:
    """Return what was done about worker instances, by row ID."""
    rows = connection.execute(select(*_columns()).where(enforcement.c.worker_ref.in_(sorted(refs))))
    found = ((row.worker_ref, _enforcement(row)) for row in rows)
    return {ref: each for ref, each in found if each is not None}


def write(connection: Connection, changes: Mapping[int, Enforcement | None]) -> None:
    """Write what is known now; ``None`` removes the row. Rows of ended instances are removed too."""
    has_ended = select(worker.c.id).where(worker.c.ended_at.is_not(None), worker.c.id == enforcement.c.worker_ref)
    connection.execute(delete(enforcement).where(has_ended.exists()))
    if changes:
        connection.execute(delete(enforcement).where(enforcement.c.worker_ref.in_(sorted(changes))))
    rows = [
        {
            "worker_ref": ref,
            "queues": list(each.queues),
            "requested_at": each.requested_at,
            "in_effect_at": each.in_effect_at,
            "fetched": each.fetched,
            "error": each.error,
        }
        for ref, each in sorted(changes.items())
        if each is not None
    ]
    if rows:
        connection.execute(insert(enforcement), rows)


def _columns() -> list[Any]:
    return list(enforcement.c)


def _enforcement(row: Row[Any]) -> Enforcement | None:
    if row.worker_ref is None:
        return None
    requested_at = utc(row.requested_at)
    assert requested_at is not None
    return Enforcement(tuple(row.queues), requested_at, utc(row.in_effect_at), row.fetched, row.error)
