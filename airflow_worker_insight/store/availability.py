"""Write what a person decided of a worker: whether it is to be given work, why, and who said so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import insert, select, update

from airflow_worker_insight.store.recording import AVAILABLE, DRAINING, ONLINE, UNRESPONSIVE
from airflow_worker_insight.store.tables import change, worker
from airflow_worker_insight.store.workers import get_worker, later_life

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.store.workers import WorkerRow

MAX_NOTE_LENGTH = 500
"""As many characters as the database keeps of a note."""


class NotOneWorker(ValueError):  # noqa: N818
    """A row that stands for all workers of a host: nothing can be decided of it."""


class EndedLife(ValueError):  # noqa: N818
    """A life that is over: what was decided of it would mean nothing. The message says of which one to decide."""


def set_availability(
    connection: Connection, worker_id: str, availability: str, *, note: str | None, changed_by: str, now: datetime
) -> WorkerRow | None:
    """Write a decision into a worker's row and its history, and return the worker; ``None`` for one that is not known.

    What was decided already is not written again, unless with another note. The caller owns the transaction.

    :param availability: ``available``, ``draining`` or ``quarantined``
    :param note: why, in the person's words, at most :data:`MAX_NOTE_LENGTH` characters
    :param changed_by: the person's name, as Airflow has it
    :param now: by the database's clock
    :raises NotOneWorker: when the ID stands for a host
    :raises EndedLife: when the life is over and the decision would mean nothing
    """
    one = get_worker(connection, worker_id)
    if one is None:
        return None
    if one.host_only:
        raise NotOneWorker(worker_id)
    require_meaning(connection, one, availability)
    # Whoever decides at the same time waits here, so that the row and the end of its history say the same.
    decided = connection.execute(
        select(worker.c.availability).where(worker.c.id == one.ref).with_for_update()
    ).scalar_one()
    latest = connection.execute(
        select(change.c.reason)
        .where(change.c.worker_ref == one.ref, change.c.availability.is_not(None))
        .order_by(change.c.id.desc())
        .limit(1)
    ).scalar()
    if availability == decided and note in (None, latest):
        return one
    connection.execute(update(worker).where(worker.c.id == one.ref).values(availability=availability))
    connection.execute(
        insert(change).values(
            worker_ref=one.ref,
            changed_at=now,
            availability=availability,
            reason=note,
            changed_by=changed_by[:250],
        )
    )
    return get_worker(connection, worker_id)


def require_meaning(connection: Connection, one: WorkerRow, availability: str) -> None:
    """Refuse what would be decided of nobody.

    A life that is over can be released; its quarantine means something for as long as the next life of its name will
    begin with it.

    :raises EndedLife: for any other decision on it
    """
    if availability == AVAILABLE or one.state in (ONLINE, UNRESPONSIVE):
        return
    later = later_life(connection, one)
    if later is None:
        if availability == DRAINING and one.ended_at is not None:
            raise EndedLife(
                f"{one.worker_id} has ended, and a drain ends with it: quarantine it to keep work off the next one of "
                "its name."
            )
        return
    over = "has ended" if one.ended_at is not None else "was followed by another life"
    if later.ended_at is None:
        raise EndedLife(f"{one.worker_id} {over}; its name is now borne by {later.worker_id}: decide of that one.")
    raise EndedLife(
        f"{one.worker_id} {over}, and the latest of its name, {later.worker_id}, has ended too: quarantine that one to "
        "keep work off the next."
    )
