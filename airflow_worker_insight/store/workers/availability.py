"""Write decisions on workers (drain, quarantine, release): the availability, the reason and the author.

Placement reads them with :func:`.queries.unavailable_workers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import insert, select, update

from airflow_worker_insight.domain.findings import FindingAction
from airflow_worker_insight.domain.states import ANALYSIS, WorkerAvailability, WorkerState
from airflow_worker_insight.store import findings
from airflow_worker_insight.store.tables import change, worker
from airflow_worker_insight.store.workers.names import is_host_of, is_known_column
from airflow_worker_insight.store.workers.queries import decisions, get_worker, later_instance

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.workers import WorkerRow


MERGES = 3
"""Most merges of a worker's row while a decision waits for its lock."""


class HostOnlyWorkerError(ValueError):
    """A row that stands for all workers of a host: its availability cannot be set."""


class WorkerEndedError(ValueError):
    """A worker instance that has ended, so that a decision on it would have no effect.

    The message names the instance to decide on instead.
    """


def set_availability(
    connection: Connection,
    worker_id: str,
    availability: str,
    *,
    note: str | None,
    changed_by: str,
    now: datetime,
    of_analysis: FindingAction | None = None,
) -> WorkerRow | None:
    """Write a decision into a worker's row and its history, and return the worker.

    A decision that is already in force is not written again, unless with another note, or by an operator where it was
    the analysis's: from then on it is the operator's. The caller owns the transaction.

    :param availability: ``available``, ``draining`` or ``quarantined``
    :param note: the reason in the operator's words, at most :data:`.limits.MAX_NOTE_LENGTH` characters
    :param changed_by: the operator's user name in Airflow, or :data:`.states.ANALYSIS`
    :param now: by the database's clock
    :param of_analysis: what the history of findings calls it, if the analysis decided and no operator
    :return: the worker, or ``None`` if it is not known
    :raises HostOnlyWorkerError: if the ID stands for a host
    :raises WorkerEndedError: if the instance has ended and the decision would have no effect
    """
    worker_row = get_worker(connection, worker_id)
    for _ in range(MERGES):
        if worker_row is None:
            return None
        if worker_row.host_only:
            raise HostOnlyWorkerError(worker_id)
        # Concurrent decisions wait here, so that the row agrees with the end of its history.
        stored = connection.execute(
            select(worker.c.availability).where(worker.c.id == worker_row.ref).with_for_update()
        ).scalar()
        # A poll may just have merged the row into another one: the ID then belongs to that one, or to none.
        current = get_worker(connection, worker_id)
        if stored is not None and current is not None and current.ref == worker_row.ref:
            break
        worker_row = current
    if worker_row is None or stored is None:
        return None
    require_effect(connection, worker_row, availability)
    open_rows = _open_rows(connection, worker_row)
    latest = decisions(connection, [worker_row]).get(worker_row.ref)
    is_said = note in (None, latest and latest.reason) and (
        of_analysis is not None or latest is None or latest.changed_by != ANALYSIS
    )
    if all(previous == availability for previous in (stored, *open_rows.values())) and is_said:
        return worker_row
    refs = [worker_row.ref, *(ref for ref, previous in open_rows.items() if previous != availability)]
    connection.execute(update(worker).where(worker.c.id.in_(refs)).values(availability=availability))
    entry = {"changed_at": now, "availability": availability, "reason": note, "changed_by": changed_by[:250]}
    connection.execute(insert(change), [{"worker_ref": ref, **entry} for ref in refs])
    action, actor = of_analysis or _ACTIONS[availability], None if of_analysis else changed_by
    findings.record_decision(connection, worker_row, action, actor=actor, reason=note, now=now)
    return get_worker(connection, worker_id)


_ACTIONS: dict[str, FindingAction] = {
    WorkerAvailability.AVAILABLE: FindingAction.RELEASED,
    WorkerAvailability.DRAINING: FindingAction.DRAINING,
    WorkerAvailability.QUARANTINED: FindingAction.QUARANTINED,
}


def _open_rows(connection: Connection, worker_row: WorkerRow) -> dict[int, str]:
    """Return the availability of the other open rows that a decision applies to, by ID.

    These rows have the same name in the same source. A decision on a row that only reports mention applies to the
    worker that the source knows only if both have the same process and host: otherwise a task could make up a row to
    have that worker withheld from work.
    """
    if worker_row.engine_name is None or worker_row.ended_at is not None:
        return {}
    is_known = is_known_column()
    query = (
        select(worker, is_known)
        .where(
            worker.c.engine_name == worker_row.engine_name,
            worker.c.kind == worker_row.kind,
            worker.c.ended_at.is_(None),
            worker.c.host_only.is_(False),
            worker.c.id != worker_row.ref,
        )
        .order_by(worker.c.id)
        .with_for_update()
    )
    return {
        row.id: row.availability
        for row in connection.execute(query)
        if not (worker_row.is_report_only and row.is_known)
        or (row.pid == worker_row.pid and is_host_of(row, worker_row.hostname))
    }


def require_effect(connection: Connection, row: WorkerRow, availability: str) -> None:
    """Refuse a decision that would have no effect.

    An ended instance can be released. Its quarantine has an effect for as long as the next instance of its name would
    inherit it.

    :raises WorkerEndedError: for any other decision on an ended instance
    """
    if availability == WorkerAvailability.AVAILABLE or row.state in (WorkerState.ONLINE, WorkerState.UNRESPONSIVE):
        return
    later = later_instance(connection, row)
    if later is None:
        if availability == WorkerAvailability.DRAINING and row.ended_at is not None:
            raise WorkerEndedError(
                f"{row.worker_id} has ended, and draining ends with it. Quarantine it instead: the next instance of "
                "its name inherits that."
            )
        return
    end = "has ended" if row.ended_at is not None else "was followed by another instance"
    if later.ended_at is None:
        raise WorkerEndedError(
            f"{row.worker_id} {end}: change {later.worker_id} instead, the current instance of its name."
        )
    raise WorkerEndedError(
        f"{row.worker_id} {end}, and the latest instance of its name, {later.worker_id}, has ended too. Quarantine "
        "that one: the next instance inherits it."
    )
