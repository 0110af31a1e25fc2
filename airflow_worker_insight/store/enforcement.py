"""What was done to keep work off workers: one row for each worker instance concerned, for as long as its own row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, or_, select, update

from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.domain.enforcement import EnforcedWorker, Enforcement
from airflow_worker_insight.domain.states import WorkerAvailability, WorkerState
from airflow_worker_insight.store.insight_tables import enforcement
from airflow_worker_insight.store.tables import worker

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from sqlalchemy.engine import Connection, Row


def enforced_workers(connection: Connection, kind: str) -> list[EnforcedWorker]:
    """Return the live instances of a kind that are to take no new work, or that were to at some time."""
    rows = connection.execute(
        select(worker.c.id, worker.c.engine_name, worker.c.availability, *enforcement.c)
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
    rows = connection.execute(select(enforcement).where(enforcement.c.worker_ref.in_(sorted(refs))))
    found = ((row.worker_ref, _enforcement(row)) for row in rows)
    return {ref: each for ref, each in found if each is not None}


def change(connection: Connection, changes: Mapping[int, Callable[[Enforcement | None], Enforcement | None]]) -> None:
    """Change what is known of worker instances, by row ID.

    The rows of the workers stay locked until the end of the transaction, so that of two processes that do this at the
    same time the second one sees what the first one has written.

    :param changes: functions that take what is known now and return what is known from now on
    """
    refs = sorted(changes)
    locked = select(worker.c.id).where(worker.c.id.in_(refs)).order_by(worker.c.id).with_for_update()
    present = connection.execute(locked).scalars().all()
    known = find(connection, present)
    for ref in present:
        before = known.get(ref)
        now = changes[ref](before)
        if now is None or now == before:
            continue
        values = {
            "queues": list(now.queues),
            "requested_at": now.requested_at,
            "in_effect_at": now.in_effect_at,
            "released_at": now.released_at,
            "fetched": now.fetched,
            "error": now.error,
        }
        if before is None:
            connection.execute(insert(enforcement).values(worker_ref=ref, **values))
        else:
            connection.execute(update(enforcement).where(enforcement.c.worker_ref == ref).values(**values))


def set_queues(connection: Connection, queues: Mapping[int, tuple[str, ...]]) -> None:
    """Write the queues that released workers consume again, by row ID: while held they consumed none."""
    for ref, names in sorted(queues.items()):
        connection.execute(update(worker).where(worker.c.id == ref).values(queues=list(names)))


def delete_of(connection: Connection, refs: Collection[int]) -> None:
    """Delete what was done about worker instances whose rows are deleted."""
    connection.execute(delete(enforcement).where(enforcement.c.worker_ref.in_(sorted(refs))))


def _enforcement(row: Row[Any]) -> Enforcement | None:
    if row.worker_ref is None:
        return None
    requested_at = utc(row.requested_at)
    assert requested_at is not None
    return Enforcement(
        queues=tuple(row.queues),
        requested_at=requested_at,
        in_effect_at=utc(row.in_effect_at),
        released_at=utc(row.released_at),
        fetched=row.fetched,
        error=row.error,
    )
