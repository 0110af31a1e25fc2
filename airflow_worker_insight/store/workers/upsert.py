"""Write the row of a worker that a report or the worker's own process describes.

A task's code can send any report, so a report changes little of what the worker's source knows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import and_, insert, not_, or_, select, update

from airflow_worker_insight.domain.clock import START_TOLERANCE
from airflow_worker_insight.domain.names import is_named_local, is_same_host, short_host
from airflow_worker_insight.domain.states import LOCAL, SOURCE_KINDS, WorkerAvailability, WorkerState, strictest
from airflow_worker_insight.domain.workers import is_known_to_source as is_known_by_facts
from airflow_worker_insight.store.dialects import insert_new
from airflow_worker_insight.store.tables import change, worker
from airflow_worker_insight.store.workers.names import (
    hostname_may_differ_from_source,
    is_host_of,
    is_known_to_source,
    is_named_local_row,
    is_report_trusted,
    name_conditions,
    node_host,
    resolve_operator_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from typing import Any

    from sqlalchemy.engine import Connection, Row

    from airflow_worker_insight.domain.workers import WorkerRecord


INHERITED_PREFIX = "Inherited from instance "
"""First words of the history of an instance that began in quarantine."""

INHERITED_PREFIXES = (INHERITED_PREFIX, "Since a life before, ")
"""Prefixes of stored histories; versions up to 0.1 wrote the second."""

STARTING = timedelta(seconds=60)
"""How much later than its process a worker may report its start: it imports Airflow first."""

MAX_SAME = 10
"""Open rows of one name and process that are checked."""

MAX_ON_A_HOST = 100
"""Workers of one host that are checked."""


class ContradictingWorkerError(ValueError):
    """A report under an ID that belongs to another worker, which has never reported."""


@dataclass(frozen=True, slots=True)
class StoredWorker:
    """The row of the worker that a report describes."""

    ref: int
    reported_id: str
    """The ID by which a start finds the row.

    It differs from the report's ID if that is, or was, another worker's.
    """
    fingerprint: str
    contradiction: str | None = None
    """What in the report contradicts the worker with the ID that it gave, in words."""


def upsert_worker(connection: Connection, record: WorkerRecord, *, now: datetime, is_own: bool = False) -> int:
    """Store a worker as :func:`store_worker` does; return the row's ID."""
    return store_worker(connection, record, now=now, is_own=is_own).ref


def store_worker(
    connection: Connection,
    record: WorkerRecord,
    *,
    now: datetime,
    is_own: bool = False,
    kind_matches: bool | None = True,
    check_new: Callable[[], None] | None = None,
) -> StoredWorker:
    """Find, update or insert the row of a worker that a report describes, and lock it.

    A task's code can send any report, so a report changes little. The ID in the report counts only together with the
    kind, the process and the host that Airflow recorded for the try. If these contradict the row with that ID, the
    report belongs to the worker that its source knows by these facts, or gets a separate row. In a row that the source
    knows, a report fills in only what the source does not know, once.

    :param is_own: whether the process that runs the worker describes it, and not a report: then what it says counts
    :param kind_matches: whether the executor of the try has workers of this kind; if that is unknown (``None``), the
        host must be the one that the source states
    :param check_new: called before a row is inserted
    :raises ContradictingWorkerError: if the ID is that of another worker that has never reported
    """
    contradiction = None
    if kind_matches is False and record.kind in SOURCE_KINDS:
        contradiction = f"its executor has no {record.kind} workers"
        record = _without_source(record)
    known = _reported_as(connection, record.worker_id)
    is_certain = kind_matches is not True
    if known is not None and (is_own or _is_process_of(connection, known, record, is_certain=is_certain)):
        return replace(_update_worker(connection, known, record, is_own=is_own), contradiction=contradiction)
    source_row = None if is_own else _source_row(connection, record, is_certain=is_certain)
    if source_row is not None:
        found_by = _hand_over_id(connection, known, source_row, record)
        return _update_worker(connection, source_row, record, found_by=found_by)
    if kind_matches is None and record.kind in SOURCE_KINDS and hostname_may_differ_from_source(record.hostname):
        # The next poll knows no executors: it would merge this with the worker that has no such host name yet.
        record = _without_source(record)
        known = _reported_as(connection, record.worker_id)
    elif known is not None or _is_reported_elsewhere(connection, record.worker_id):
        contradiction = _difference(known, record)
        record = replace(record, worker_id=_separate_id(record.worker_id, record.kind, record.hostname, record.pid))
        known = _reported_as(connection, record.worker_id)
    if known is None:
        if check_new is not None:
            check_new()
        _insert_worker(connection, record, now=now)
        known = _reported_as(connection, record.worker_id)
    if known is None:
        raise ContradictingWorkerError(f"{record.worker_id} is the ID of another worker")
    # Also if another process of the worker was first: this takes the row's lock until the caller's transaction ends.
    return replace(_update_worker(connection, known, record, is_own=is_own), contradiction=contradiction)


def _reported_as(connection: Connection, worker_id: str) -> Row[Any] | None:
    # The same lock as the UPDATEs take: the row cannot be removed meanwhile.
    query = select(worker).where(worker.c.reported_id == worker_id).with_for_update(key_share=True)
    return connection.execute(query).first()


def _is_reported_elsewhere(connection: Connection, worker_id: str) -> bool:
    """Return whether the ID is that of a worker that reports under another ID.

    Other processes report with its own ID.
    """
    taken = select(worker.c.id).where(worker.c.worker_id == worker_id, worker.c.reported_id != worker_id)
    return connection.execute(taken.where(not_(is_known_to_source(worker)))).first() is not None


def _without_source(record: WorkerRecord) -> WorkerRecord:
    """Return a report's worker as one that no worker source will ever match."""
    worker_id = _separate_id(record.worker_id, f"no {record.kind}", record.hostname, record.pid)
    # A scheduler's single local worker is found by its host; several are found by their names.
    engine_name = f"apart@{record.hostname}"[:250] if record.kind == LOCAL else None
    return replace(record, worker_id=worker_id, engine_name=engine_name, job_id=None)


def _is_process_of(connection: Connection, known: Row[Any], record: WorkerRecord, *, is_certain: bool) -> bool:
    if (known.kind, known.pid, known.host_only) != (record.kind, record.pid, record.host_only):
        return False
    if _is_named_differently(known, record):
        return False
    if _is_known_to_source(known):
        return _may_be_on_host(connection, known, record.hostname, is_certain=is_certain)
    return is_same_host(known.hostname, record.hostname)


def _is_named_differently(known: Row[Any], record: WorkerRecord) -> bool:
    """Return whether a report's source name for a worker differs from its row's.

    Some processes do not know the name (``run_as_user``). A scheduler's one local worker is named after its host, which
    its source and its own processes may know by different names.
    """
    names = (known.engine_name, record.engine_name)
    if record.kind not in SOURCE_KINDS or None in names or names[0] == names[1]:
        return False
    return record.kind != LOCAL or any(is_named_local(LOCAL, name) for name in names)


def _difference(known: Row[Any] | None, record: WorkerRecord) -> str:
    """Describe how a report differs from the worker with its ID."""
    if known is None:
        return "its ID belongs to another worker"
    facts = [
        f"{name} {getattr(known, name)} before, {getattr(record, name)} now"
        for name in ("kind", "hostname", "pid", "engine_name")
        if getattr(known, name) != getattr(record, name)
    ]
    return ", ".join(facts) or "it stands for a host"


def _separate_id(worker_id: str, kind: str, hostname: str, pid: int | None) -> str:
    """Return the ID for a report's worker that must not share the row of the ID that it gave."""
    facts = "\0".join((worker_id, kind, short_host(hostname), str(pid)))
    return f"apart-{hashlib.blake2b(facts.encode('utf-8', 'replace'), digest_size=12).hexdigest()}"


def _may_be_on_host(connection: Connection, known: Row[Any], hostname: str, *, is_certain: bool) -> bool:
    """Return whether a worker may be on the host that Airflow recorded for a try.

    Its source knows the worker. Where Airflow names hosts differently from the sources, the first report tells
    Airflow's name for the worker's host, unless other workers are on a host of that name.

    :param is_certain: whether only a matching name counts
    """
    if is_host_of(known, hostname):
        return True
    if is_certain or known.reported_id is not None or not hostname_may_differ_from_source(hostname):
        return False
    host = node_host(known.kind, known.engine_name)
    short = short_host(hostname)
    domains = (name.strip().lower().partition(".")[2] for name in (known.hostname, host, hostname))
    aliases = {hostname, short, *(f"{short}.{domain}" for domain in domains if domain and short != hostname)}
    others = select(worker.c.kind, worker.c.engine_name).where(
        worker.c.hostname.in_(sorted(aliases)),
        worker.c.id != known.id,
        worker.c.ended_at.is_(None),
        is_known_to_source(worker),
    )
    # Several Celery workers of one machine share its host name.
    neighbours = connection.execute(others.limit(MAX_ON_A_HOST)).all()
    return all(bool(host) and node_host(neighbour.kind, neighbour.engine_name) == host for neighbour in neighbours)


def _is_known_to_source(row: Row[Any]) -> bool:
    return not row.host_only and is_known_by_facts(
        row.kind, is_reported=row.reported_id is not None, has_heartbeat=row.engine_heartbeat_at is not None
    )


def _update_worker(
    connection: Connection, known: Row[Any], record: WorkerRecord, *, is_own: bool = False, found_by: str | None = None
) -> StoredWorker:
    """Write what a report changes in a worker's row.

    What the source knows stays. The operator's settings (the name and labels), the resources and the versions come from
    the first report: later reports do not change them for as long as the worker lives. A worker that only reports
    mention keeps its names.

    :param found_by: the ID by which a start finds the row, if it is not the row's current one
    """
    values: dict[str, Any] = {"fingerprint": record.fingerprint}
    reported_id = found_by or known.reported_id
    if _is_known_to_source(known) and not is_own:
        values["hostname"] = record.hostname
        if known.reported_id is None:
            values |= {"reported_id": reported_id, **_completed_columns(connection, known, record)}
    else:
        name, engine_name = record.name, record.engine_name
        if record.kind in SOURCE_KINDS and not is_own:
            # Decisions are bound to these names, so a report must not rename a worker.
            name, engine_name = known.name, known.engine_name or record.engine_name
        values |= {"job_id": record.job_id, **record.description(), "name": name, "engine_name": engine_name}
        if (name, engine_name) != (known.name, known.engine_name):
            inherited = initial_availability(
                connection, record.kind, name, engine_name, hostname=record.hostname, besides=known.id
            )
            values["availability"] = strictest(known.availability, inherited)
    connection.execute(update(worker).where(worker.c.id == known.id).values(values))
    return StoredWorker(known.id, reported_id, record.fingerprint)


def _completed_columns(connection: Connection, known: Row[Any], record: WorkerRecord) -> dict[str, Any]:
    """Return the columns of a source's row that the worker's first report fills in."""
    values: dict[str, Any] = {
        "started_at": record.started_at,
        "resources": {**record.resources, **known.resources},
        "versions": {**record.versions, **known.versions},
    }
    if is_report_trusted(known, record.hostname):
        values |= {"name": resolve_operator_name(connection, known, record.name), "labels": dict(record.labels)}
    return values if known.pid is not None else {**values, "pid": record.pid}


def _hand_over_id(connection: Connection, known: Row[Any] | None, source_row: Row[Any], record: WorkerRecord) -> str:
    """Make starts find the source's row by a report's ID.

    A row that was made up with this ID before gets another one.

    :param known: the row with that ID
    :param source_row: the source's row
    :return: the ID by which starts find the source's row
    """
    if known is not None:
        separate_id = _separate_id(record.worker_id, known.kind, known.hostname, known.pid)
        if _is_known_to_source(known) or _reported_as(connection, separate_id) is not None:
            return source_row.reported_id or _separate_id(
                source_row.worker_id, source_row.kind, source_row.hostname, source_row.pid
            )
        connection.execute(update(worker).where(worker.c.id == known.id).values(reported_id=separate_id))
    if source_row.reported_id is not None:
        connection.execute(update(worker).where(worker.c.id == source_row.id).values(reported_id=record.worker_id))
    return record.worker_id


def _insert_worker(connection: Connection, record: WorkerRecord, *, now: datetime) -> None:
    inherited = initial_availability(connection, record.kind, record.name, record.engine_name, hostname=record.hostname)
    values = {
        "worker_id": record.worker_id,
        "reported_id": record.worker_id,
        "registered_at": now,
        "last_seen_at": now,
        "state": WorkerState.ONLINE,
        "availability": inherited,
        "job_id": record.job_id,
        "engine_name": record.engine_name,
        "fingerprint": record.fingerprint,
        **record.description(),
    }
    connection.execute(insert_new(connection.dialect.name, worker, values))
    if inherited == WorkerAvailability.QUARANTINED:
        query = select(worker.c.id).where(worker.c.reported_id == record.worker_id)
        row_id = connection.execute(query).scalar()
        if row_id is not None:
            record_inherited_quarantine(
                connection, row_id, record.kind, record.name, record.engine_name, hostname=record.hostname, now=now
            )


def _source_row(connection: Connection, record: WorkerRecord, *, is_certain: bool) -> Row[Any] | None:
    """Return the open row of the worker's source, if there is a certain match.

    Name and process ID are not enough: in a container, and for all Edge workers, the next instance has the same, and
    the row may be of the previous instance, which the next poll will mark as lost. So both must state the same start,
    and the host must be the one that Airflow recorded. The worker's start is by its own clock and the source's mostly
    by the database's. Where the two clocks differ, no row matches and a new one is inserted: the next poll recognizes
    both as one worker and merges them. A restart is mistaken for the previous instance only if the worker's clock is
    wrong by exactly as long as that instance lasted. If the source knows no start, the next poll would not know better.
    """
    if record.host_only or record.kind not in SOURCE_KINDS or is_named_local(record.kind, record.engine_name):
        # Named local workers are registered by their own scheduler only, with the ID that their processes report.
        return None
    needed = {LOCAL: (record.job_id,), "edge": (record.engine_name,), "celery": (record.engine_name, record.pid)}
    if None in needed[record.kind]:
        return None
    if record.kind == LOCAL:
        # The source names a scheduler by Airflow's name for its host, unknown to the worker. A job is one instance.
        is_same = [worker.c.job_id == record.job_id, not_(is_named_local_row(worker))]
    elif record.kind == "edge":
        # The source knows only the name, and refuses a second worker with it.
        is_same = [worker.c.engine_name == record.engine_name, _started_as(record)]
    else:
        is_same = [worker.c.engine_name == record.engine_name, worker.c.pid == record.pid, _started_as(record)]
    open_rows = (
        select(worker)
        .where(is_known_to_source(worker), worker.c.kind == record.kind, worker.c.ended_at.is_(None), *is_same)
        .order_by(worker.c.id.desc())
        .limit(MAX_SAME)
        .with_for_update(key_share=True)
    )
    rows = connection.execute(open_rows).all()
    return next((row for row in rows if _may_be_on_host(connection, row, record.hostname, is_certain=is_certain)), None)


def _started_as(record: WorkerRecord) -> Any:
    """Match worker rows with the start that the worker itself reports.

    In a row without a report so far, the source states the same start or none; in another row, its worker did.
    """
    source_start, own_start, is_new = worker.c.engine_started_at, worker.c.started_at, worker.c.reported_id.is_(None)
    if record.started_at is None:
        return and_(is_new, source_start.is_(None))
    matches_source = source_start.between(record.started_at - START_TOLERANCE, record.started_at + STARTING)
    matches_own = own_start.between(record.started_at - START_TOLERANCE, record.started_at + START_TOLERANCE)
    return or_(matches_source, and_(is_new, source_start.is_(None)), and_(not_(is_new), matches_own))


def initial_availability(
    connection: Connection,
    kind: str,
    name: str | None,
    engine_name: str | None,
    *,
    hostname: str,
    besides: int = 0,
) -> str:
    """Return the initial availability of a worker instance.

    A quarantine outlives a restart, a drain does not. Otherwise a sick worker would get work again as soon as something
    restarts it. Where the source knows the name, rows that only reports mention do not count.

    :param name: the operator's name for the worker
    :param engine_name: the source's name for the worker
    :param hostname: Airflow's name for its host
    :param besides: the ID of the instance's own row
    """
    latest = select(worker.c.availability).where(worker.c.id != besides).order_by(worker.c.id.desc()).limit(1)
    decided = None
    if engine_name is not None and kind in SOURCE_KINDS:
        by_source = latest.where(worker.c.engine_name == engine_name, worker.c.kind == kind, is_known_to_source(worker))
        decided = connection.execute(by_source).scalar()
    if decided is None:
        same_name = name_conditions(kind, name, engine_name, hostname=hostname)
        decided = connection.execute(latest.where(*same_name, worker.c.host_only.is_(False))).scalar()
    return WorkerAvailability.QUARANTINED if decided == WorkerAvailability.QUARANTINED else WorkerAvailability.AVAILABLE


def record_inherited_quarantine(
    connection: Connection,
    ref: int,
    kind: str,
    name: str | None,
    engine_name: str | None,
    *,
    hostname: str,
    now: datetime,
) -> None:
    """Start an instance's history with the decision behind the quarantine that it inherited.

    The caller holds a lock on the instance's row, whose ID is ``ref``. If several instances inherit in turn, each names
    the one that the decision was made on.
    """
    is_decision = change.c.availability.is_not(None)
    if connection.execute(select(change.c.id).where(change.c.worker_ref == ref, is_decision).limit(1)).first():
        return
    earlier = connection.execute(
        select(worker.c.worker_id, change.c.reason, change.c.changed_by)
        .select_from(change.join(worker, worker.c.id == change.c.worker_ref))
        .where(
            *name_conditions(kind, name, engine_name, hostname=hostname),
            worker.c.id < ref,
            change.c.availability == WorkerAvailability.QUARANTINED,
        )
        .order_by(worker.c.id.desc(), change.c.id.desc())
        .limit(1)
    ).first()
    if earlier is None:
        return
    reason = earlier.reason or ""
    if not reason.startswith(INHERITED_PREFIXES):
        reason = f"{INHERITED_PREFIX}{earlier.worker_id}{f': {reason}' if reason else ''}"
    values = {
        "changed_at": now,
        "availability": WorkerAvailability.QUARANTINED,
        "reason": reason[:500],
        "changed_by": earlier.changed_by,
    }
    connection.execute(insert(change).values(worker_ref=ref, **values))
