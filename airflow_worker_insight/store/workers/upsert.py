"""Write the row of a worker that a report describes, or that has just been made known by its own process.

A task's code can send any report, so a report changes little of what the worker's engine knows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import and_, insert, not_, or_, select, update

from airflow_worker_insight.domain.clock import SAME_START
from airflow_worker_insight.domain.names import are_one_host, is_named_local, short_host
from airflow_worker_insight.domain.states import AVAILABILITIES, AVAILABLE, ENGINE_KINDS, LOCAL, ONLINE, QUARANTINED
from airflow_worker_insight.store.dialects import insert_new
from airflow_worker_insight.store.tables import change, worker
from airflow_worker_insight.store.workers.names import (
    are_called,
    are_named_local,
    is_host_of,
    is_known_to_engine,
    is_operators_word,
    may_be_unlike_the_engines,
    node_host,
    operators_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from typing import Any

    from sqlalchemy.engine import Connection, Row

    from airflow_worker_insight.domain.workers import WorkerRecord


SINCE_BEFORE = "Since a life before, "
"""How the history of a life begins that began in quarantine."""

STARTING = timedelta(seconds=60)
"""How much later than its process a worker may say that it started: it has all of Airflow to import first."""

MAX_SAME = 10
"""Open rows of one name and process that are looked through."""

MAX_ON_A_HOST = 100
"""Workers of one host that are looked through."""


class ContradictingWorkerError(ValueError):
    """A report under an ID that is another worker's and never a report's."""


@dataclass(frozen=True, slots=True)
class StoredWorker:
    """The row that stands for the worker of a report."""

    ref: int
    reported_id: str
    """By which a start finds the row: another ID than the report's where that is, or was, another worker's."""
    fingerprint: str
    contradiction: str | None = None
    """What of the report contradicts the worker whose ID it gave, in words."""


def upsert_worker(connection: Connection, record: WorkerRecord, *, now: datetime, is_own: bool = False) -> int:
    """Do as :func:`store_worker`; return the row's ID."""
    return store_worker(connection, record, now=now, is_own=is_own).ref


def store_worker(
    connection: Connection,
    record: WorkerRecord,
    *,
    now: datetime,
    is_own: bool = False,
    fits: bool | None = True,
    check_new: Callable[[], None] | None = None,
) -> StoredWorker:
    """Find, update or make the row of a worker that a report describes, and lock it.

    A task's code can send any report, so a report changes little. The ID that it gives counts with the kind, the
    process and the host that Airflow recorded for the try; where these contradict the row with that ID, the report is
    of the worker that its engine knows by these facts, or has a row of its own, apart. Of a row that its engine has
    told of, a report completes only what the engine does not know, once.

    :param is_own: whether no report but the process that runs the worker describes it: what it says counts
    :param fits: whether the executor of the try has workers of this kind; where that is not known (``None``), the host
        must be the one that the engine tells
    :param check_new: is called before a row is made
    :raises ContradictingWorkerError: when the ID is that of another worker that has never reported
    """
    contradiction = None
    if fits is False and record.kind in ENGINE_KINDS:
        contradiction = f"no {record.kind} worker runs tries of its executor"
        record = _of_no_engine(record)
    known = _reported_as(connection, record.worker_id)
    is_certain = fits is not True
    if known is not None and (is_own or _is_process_of(connection, known, record, is_certain=is_certain)):
        return replace(_update_worker(connection, known, record, is_own=is_own), contradiction=contradiction)
    of_engine = None if is_own else _engines_row(connection, record, is_certain=is_certain)
    if of_engine is not None:
        found_by = _hand_over_id(connection, known, of_engine, record)
        return _update_worker(connection, of_engine, record, found_by=found_by)
    if fits is None and record.kind in ENGINE_KINDS and may_be_unlike_the_engines(record.hostname):
        # The next look, which knows no executors, would take it for the worker that has no such name yet.
        record = _of_no_engine(record)
        known = _reported_as(connection, record.worker_id)
    elif known is not None or _is_reported_elsewhere(connection, record.worker_id):
        contradiction = _difference(known, record)
        record = replace(record, worker_id=_id_apart(record.worker_id, record.kind, record.hostname, record.pid))
        known = _reported_as(connection, record.worker_id)
    if known is None:
        if check_new is not None:
            check_new()
        _insert_worker(connection, record, now=now)
        known = _reported_as(connection, record.worker_id)
    if known is None:
        raise ContradictingWorkerError(f"{record.worker_id} is the ID of another worker")
    # Also where another process of the worker has just been first. It holds the row's lock until the caller is done.
    return replace(_update_worker(connection, known, record, is_own=is_own), contradiction=contradiction)


def _reported_as(connection: Connection, worker_id: str) -> Row[Any] | None:
    # Locked as the UPDATEs are: what is read here is not removed meanwhile.
    mine = select(worker).where(worker.c.reported_id == worker_id).with_for_update(key_share=True)
    return connection.execute(mine).first()


def _is_reported_elsewhere(connection: Connection, worker_id: str) -> bool:
    """Tell whether the ID is that of a worker whose reports are found by another one: its own was given by others."""
    taken = select(worker.c.id).where(worker.c.worker_id == worker_id, worker.c.reported_id != worker_id)
    return connection.execute(taken.where(not_(is_known_to_engine(worker)))).first() is not None


def _of_no_engine(record: WorkerRecord) -> WorkerRecord:
    """Return a report's worker as one that no engine will ever tell of."""
    worker_id = _id_apart(record.worker_id, f"no {record.kind}", record.hostname, record.pid)
    # A scheduler's one local worker is found by its host, and each of several by its name.
    engine_name = f"apart@{record.hostname}"[:250] if record.kind == LOCAL else None
    return replace(record, worker_id=worker_id, engine_name=engine_name, job_id=None)


def _is_process_of(connection: Connection, known: Row[Any], record: WorkerRecord, *, is_certain: bool) -> bool:
    if (known.kind, known.pid, known.host_only) != (record.kind, record.pid, record.host_only):
        return False
    if _calls_it_otherwise(known, record):
        return False
    if _is_known_to_engine(known):
        return _may_be_on(connection, known, record.hostname, is_certain=is_certain)
    return are_one_host(known.hostname, record.hostname)


def _calls_it_otherwise(known: Row[Any], record: WorkerRecord) -> bool:
    """Tell whether a report gives a worker another engine's name than it has.

    Some processes do not know it (``run_as_user``). A scheduler's one local worker is called after its host, which its
    engine and its own processes may know by different names.
    """
    names = (known.engine_name, record.engine_name)
    if record.kind not in ENGINE_KINDS or None in names or names[0] == names[1]:
        return False
    return record.kind != LOCAL or any(is_named_local(LOCAL, name) for name in names)


def _difference(known: Row[Any] | None, record: WorkerRecord) -> str:
    """Say in words what a report has other than the worker with its ID."""
    if known is None:
        return "its ID is another worker's"
    facts = [
        f"{name} {getattr(known, name)} before, {getattr(record, name)} now"
        for name in ("kind", "hostname", "pid", "engine_name")
        if getattr(known, name) != getattr(record, name)
    ]
    return ", ".join(facts) or "it stands for a host"


def _id_apart(worker_id: str, kind: str, hostname: str, pid: int | None) -> str:
    """Return the ID under which a report's worker is kept apart from the one that bears the ID that it gave."""
    facts = "\0".join((worker_id, kind, short_host(hostname), str(pid)))
    return f"apart-{hashlib.blake2b(facts.encode('utf-8', 'replace'), digest_size=12).hexdigest()}"


def _may_be_on(connection: Connection, known: Row[Any], hostname: str, *, is_certain: bool) -> bool:
    """Tell whether a worker that its engine knows may be on the host that Airflow recorded for a try.

    Where Airflow's names of hosts are unlike the engines', the first report says which one is the worker's; but not the
    name of a host on which other workers are.

    :param is_certain: whether only a name that agrees counts
    """
    if is_host_of(known, hostname):
        return True
    if is_certain or known.reported_id is not None or not may_be_unlike_the_engines(hostname):
        return False
    host = node_host(known.kind, known.engine_name)
    short = short_host(hostname)
    domains = (one.strip().lower().partition(".")[2] for one in (known.hostname, host, hostname))
    named_so = {hostname, short, *(f"{short}.{domain}" for domain in domains if domain and short != hostname)}
    others = select(worker.c.kind, worker.c.engine_name).where(
        worker.c.hostname.in_(sorted(named_so)),
        worker.c.id != known.id,
        worker.c.ended_at.is_(None),
        is_known_to_engine(worker),
    )
    # Several workers of one machine have the same name of it with Celery.
    rows = connection.execute(others.limit(MAX_ON_A_HOST)).all()
    return all(bool(host) and node_host(row.kind, row.engine_name) == host for row in rows)


def _is_known_to_engine(row: Row[Any]) -> bool:
    has_told = row.kind in ENGINE_KINDS and row.engine_heartbeat_at is not None
    return not row.host_only and (row.reported_id is None or has_told)


def _update_worker(
    connection: Connection, known: Row[Any], record: WorkerRecord, *, is_own: bool = False, found_by: str | None = None
) -> StoredWorker:
    """Write what a report changes of a worker's row.

    What its engine knows stays. What an operator may have said on the worker (its name and labels), its resources and
    versions are those of the first report: no later one changes them for as long as the worker lives. Of a worker that
    only reports tell of, its names stay.

    :param found_by: the ID by which a start finds the row, where that is not the one by which it was found
    """
    values: dict[str, Any] = {"fingerprint": record.fingerprint}
    reported_id = found_by or known.reported_id
    if _is_known_to_engine(known) and not is_own:
        values["hostname"] = record.hostname
        if known.reported_id is None:
            values |= {"reported_id": reported_id, **_completed(connection, known, record)}
    else:
        name, engine_name = record.name, record.engine_name
        if record.kind in ENGINE_KINDS and not is_own:
            # Decisions go by these names: no report moves a worker from one to another.
            name, engine_name = known.name, known.engine_name or record.engine_name
        values |= {"job_id": record.job_id, **record.description(), "name": name, "engine_name": engine_name}
        if (name, engine_name) != (known.name, known.engine_name):
            inherited = inherited_availability(
                connection, record.kind, name, engine_name, hostname=record.hostname, besides=known.id
            )
            values["availability"] = max(known.availability, inherited, key=AVAILABILITIES.index)
    connection.execute(update(worker).where(worker.c.id == known.id).values(values))
    return StoredWorker(known.id, reported_id, record.fingerprint)


def _completed(connection: Connection, known: Row[Any], record: WorkerRecord) -> dict[str, Any]:
    """Return the columns of an engine's row that its worker's first report completes."""
    values: dict[str, Any] = {
        "started_at": record.started_at,
        "resources": {**record.resources, **known.resources},
        "versions": {**record.versions, **known.versions},
    }
    if is_operators_word(known, record.hostname):
        values |= {"name": operators_name(connection, known, record.name), "labels": dict(record.labels)}
    return values if known.pid is not None else {**values, "pid": record.pid}


def _hand_over_id(connection: Connection, known: Row[Any] | None, row: Row[Any], record: WorkerRecord) -> str:
    """Let starts find the engine's row by the ID that a report gives, and no row that somebody made with it before.

    :param known: the row with that ID
    :param row: the engine's
    :return: the ID by which starts find the engine's row
    """
    if known is not None:
        apart = _id_apart(record.worker_id, known.kind, known.hostname, known.pid)
        if _is_known_to_engine(known) or _reported_as(connection, apart) is not None:
            return row.reported_id or _id_apart(row.worker_id, row.kind, row.hostname, row.pid)
        connection.execute(update(worker).where(worker.c.id == known.id).values(reported_id=apart))
    if row.reported_id is not None:
        connection.execute(update(worker).where(worker.c.id == row.id).values(reported_id=record.worker_id))
    return record.worker_id


def _insert_worker(connection: Connection, record: WorkerRecord, *, now: datetime) -> None:
    inherited = inherited_availability(
        connection, record.kind, record.name, record.engine_name, hostname=record.hostname
    )
    values = {
        "worker_id": record.worker_id,
        "reported_id": record.worker_id,
        "registered_at": now,
        "last_seen_at": now,
        "state": ONLINE,
        "availability": inherited,
        "job_id": record.job_id,
        "engine_name": record.engine_name,
        "fingerprint": record.fingerprint,
        **record.description(),
    }
    connection.execute(insert_new(connection.dialect.name, worker, values))
    if inherited == QUARANTINED:
        mine = select(worker.c.id).where(worker.c.reported_id == record.worker_id)
        row_id = connection.execute(mine).scalar()
        if row_id is not None:
            note_inheritance(
                connection, row_id, record.kind, record.name, record.engine_name, hostname=record.hostname, now=now
            )


def _engines_row(connection: Connection, record: WorkerRecord, *, is_certain: bool) -> Row[Any] | None:
    """Return the open row that the worker's engine has told of, if there is one and it is certain.

    Name and process ID are not enough: in a container, and of all Edge workers, the next life has the same, and the
    row may be of the life before, which the next look will call lost. So both must tell the same start, and the host
    must be the one that Airflow recorded. The worker's start is by its own clock and the engine's mostly by the
    database's. Where the two clocks differ, no row is taken and one is made: the next look finds both to be one worker
    and merges them. A restart is taken for the life before only where the worker's clock is wrong by just as long as
    that life lasted. Where the engine knows no start, the next look would not know better.
    """
    if record.host_only or record.kind not in ENGINE_KINDS or is_named_local(record.kind, record.engine_name):
        # Of named local workers nobody but their own scheduler makes them known, by the ID that their processes report.
        return None
    needed = {LOCAL: (record.job_id,), "edge": (record.engine_name,), "celery": (record.engine_name, record.pid)}
    if None in needed[record.kind]:
        return None
    if record.kind == LOCAL:
        # The engine's name of a scheduler is Airflow's for its host, which a worker does not know. A job is one life.
        is_same = [worker.c.job_id == record.job_id, not_(are_named_local(worker))]
    elif record.kind == "edge":
        # Its engine knows the name only, and lets no second worker have it.
        is_same = [worker.c.engine_name == record.engine_name, _started_as(record)]
    else:
        is_same = [worker.c.engine_name == record.engine_name, worker.c.pid == record.pid, _started_as(record)]
    open_lives = (
        select(worker)
        .where(is_known_to_engine(worker), worker.c.kind == record.kind, worker.c.ended_at.is_(None), *is_same)
        .order_by(worker.c.id.desc())
        .limit(MAX_SAME)
        .with_for_update(key_share=True)
    )
    rows = connection.execute(open_lives).all()
    return next((row for row in rows if _may_be_on(connection, row, record.hostname, is_certain=is_certain)), None)


def _started_as(record: WorkerRecord) -> Any:
    """Say that a worker's row has the start that the worker itself tells.

    Of a row that no report was taken for yet, its engine tells the same, or none; of another one its worker did.
    """
    told, mine, is_new = worker.c.engine_started_at, worker.c.started_at, worker.c.reported_id.is_(None)
    if record.started_at is None:
        return and_(is_new, told.is_(None))
    by_engine = told.between(record.started_at - SAME_START, record.started_at + STARTING)
    by_itself = mine.between(record.started_at - SAME_START, record.started_at + SAME_START)
    return or_(by_engine, and_(is_new, told.is_(None)), and_(not_(is_new), by_itself))


def inherited_availability(
    connection: Connection,
    kind: str,
    name: str | None,
    engine_name: str | None,
    *,
    hostname: str,
    besides: int = 0,
) -> str:
    """Return what a new life begins with: a quarantine outlives a restart, a drain does not.

    Else a sick worker would be given work again as soon as something restarts it. Where the engine has told of the
    name, no row that only reports tell of decides.

    :param name: what an operator calls the worker
    :param engine_name: what its engine calls it
    :param hostname: what Airflow calls its host
    :param besides: the row of the life itself
    """
    latest = select(worker.c.availability).where(worker.c.id != besides).order_by(worker.c.id.desc()).limit(1)
    decided = None
    if engine_name is not None and kind in ENGINE_KINDS:
        by_engine = latest.where(worker.c.engine_name == engine_name, worker.c.kind == kind, is_known_to_engine(worker))
        decided = connection.execute(by_engine).scalar()
    if decided is None:
        named_so = are_called(kind, name, engine_name, hostname=hostname)
        decided = connection.execute(latest.where(*named_so, worker.c.host_only.is_(False))).scalar()
    return QUARANTINED if decided == QUARANTINED else AVAILABLE


def note_inheritance(
    connection: Connection,
    ref: int,
    kind: str,
    name: str | None,
    engine_name: str | None,
    *,
    hostname: str,
    now: datetime,
) -> None:
    """Write, as the first entry of a life's history, whose decision the quarantine is that it began with.

    The caller holds the row of the life, by its ID ``ref``. Of lives that inherit one after another each names the one
    that the decision was made of.
    """
    decision = change.c.availability.is_not(None)
    if connection.execute(select(change.c.id).where(change.c.worker_ref == ref, decision).limit(1)).first():
        return
    before = connection.execute(
        select(worker.c.worker_id, change.c.reason, change.c.changed_by)
        .select_from(change.join(worker, worker.c.id == change.c.worker_ref))
        .where(
            *are_called(kind, name, engine_name, hostname=hostname),
            worker.c.id < ref,
            change.c.availability == QUARANTINED,
        )
        .order_by(worker.c.id.desc(), change.c.id.desc())
        .limit(1)
    ).first()
    if before is None:
        return
    why = before.reason or ""
    if not why.startswith(SINCE_BEFORE):
        why = f"{SINCE_BEFORE}{before.worker_id}{f': {why}' if why else ''}"
    values = {"changed_at": now, "availability": QUARANTINED, "reason": why[:500], "changed_by": before.changed_by}
    connection.execute(insert(change).values(worker_ref=ref, **values))
