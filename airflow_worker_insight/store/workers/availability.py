"""Write what a person decided of a worker: whether it is to be given work, why, and who said so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import case, insert, select, update

from airflow_worker_insight.domain.states import AVAILABLE, DRAINING, ONLINE, UNRESPONSIVE
from airflow_worker_insight.store.tables import change, worker
from airflow_worker_insight.store.workers.names import is_host_of, is_known_to_engine
from airflow_worker_insight.store.workers.queries import get_worker, later_life

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.workers import WorkerRow


MERGES = 3
"""How often a worker's row may be made one with another one while a decision waits for it."""


class HostOnlyWorkerError(ValueError):
    """A row that stands for all workers of a host: nothing can be decided of it."""


class WorkerEndedError(ValueError):
    """A life that is over: what was decided of it would mean nothing. The message says of which one to decide."""


def set_availability(
    connection: Connection, worker_id: str, availability: str, *, note: str | None, changed_by: str, now: datetime
) -> WorkerRow | None:
    """Write a decision into a worker's row and its history, and return the worker; ``None`` for one that is not known.

    What was decided already is not written again, unless with another note. The caller owns the transaction.

    :param availability: ``available``, ``draining`` or ``quarantined``
    :param note: why, in the person's words, at most :data:`.limits.MAX_NOTE_LENGTH` characters
    :param changed_by: the person's name, as Airflow has it
    :param now: by the database's clock
    :raises HostOnlyWorkerError: when the ID stands for a host
    :raises WorkerEndedError: when the life is over and the decision would mean nothing
    """
    one = get_worker(connection, worker_id)
    for _ in range(MERGES):
        if one is None:
            return None
        if one.host_only:
            raise HostOnlyWorkerError(worker_id)
        # Whoever decides at the same time waits here, so that the row and the end of its history say the same.
        decided = connection.execute(
            select(worker.c.availability).where(worker.c.id == one.ref).with_for_update()
        ).scalar()
        # A look may just have made it one with another row: the ID is that one's from now on, or nobody's.
        now_meant = get_worker(connection, worker_id)
        if decided is not None and now_meant is not None and now_meant.ref == one.ref:
            break
        one = now_meant
    if one is None or decided is None:
        return None
    require_meaning(connection, one, availability)
    same = _open_rows(connection, one)
    latest = connection.execute(
        select(change.c.reason)
        .where(change.c.worker_ref == one.ref, change.c.availability.is_not(None))
        .order_by(change.c.id.desc())
        .limit(1)
    ).scalar()
    if all(before == availability for before in (decided, *same.values())) and note in (None, latest):
        return one
    refs = [one.ref, *(ref for ref, before in same.items() if before != availability)]
    connection.execute(update(worker).where(worker.c.id.in_(refs)).values(availability=availability))
    entry = {"changed_at": now, "availability": availability, "reason": note, "changed_by": changed_by[:250]}
    connection.execute(insert(change), [{"worker_ref": ref, **entry} for ref in refs])
    return get_worker(connection, worker_id)


def _open_rows(connection: Connection, one: WorkerRow) -> dict[int, str]:
    """Return the other open rows of a worker's engine name of which a decision is too, with what is decided of them.

    A decision on a row that only reports tell of is one on the worker that its engine knows only where both have the
    same process and host: else a task may have made it up to have that one kept from work.
    """
    if one.engine_name is None or one.ended_at is not None:
        return {}
    is_known = case((is_known_to_engine(worker), 1), else_=0).label("is_known")
    others = (
        select(worker, is_known)
        .where(
            worker.c.engine_name == one.engine_name,
            worker.c.kind == one.kind,
            worker.c.ended_at.is_(None),
            worker.c.host_only.is_(False),
            worker.c.id != one.ref,
        )
        .order_by(worker.c.id)
        .with_for_update()
    )
    return {
        row.id: row.availability
        for row in connection.execute(others)
        if not (one.is_told_only and row.is_known) or (row.pid == one.pid and is_host_of(row, one.hostname))
    }


def require_meaning(connection: Connection, one: WorkerRow, availability: str) -> None:
    """Refuse what would be decided of nobody.

    A life that is over can be released; its quarantine means something for as long as the next life of its name will
    begin with it.

    :raises WorkerEndedError: for any other decision on it
    """
    if availability == AVAILABLE or one.state in (ONLINE, UNRESPONSIVE):
        return
    later = later_life(connection, one)
    if later is None:
        if availability == DRAINING and one.ended_at is not None:
            raise WorkerEndedError(
                f"{one.worker_id} has ended, and a drain ends with it: quarantine it to keep work off the next one of "
                "its name."
            )
        return
    over = "has ended" if one.ended_at is not None else "was followed by another life"
    if later.ended_at is None:
        raise WorkerEndedError(
            f"{one.worker_id} {over}; its name is now borne by {later.worker_id}: decide of that one."
        )
    raise WorkerEndedError(
        f"{one.worker_id} {over}, and the latest of its name, {later.worker_id}, has ended too: quarantine that one to "
        "keep work off the next."
    )
