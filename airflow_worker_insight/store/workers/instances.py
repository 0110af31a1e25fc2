"""Read and write the lives of workers as their engines tell of them: SQL only, what to write is decided in ``fleet``.

Thousands of workers are written with a handful of statements: one statement changes up to :data:`BATCH` rows, each to
values of its own.
"""

from __future__ import annotations

from datetime import timedelta, timezone
from hashlib import blake2b
from typing import TYPE_CHECKING

from sqlalchemy import case, func, insert, literal, not_, or_, select, update

from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.domain.states import (
    AVAILABILITIES,
    AVAILABLE,
    CELERY,
    EDGE,
    JOBS,
    LOCAL,
    OFFLINE,
    ONLINE,
    QUARANTINED,
    TRIES,
    UNRESPONSIVE,
)
from airflow_worker_insight.domain.workers import WorkerInstance, WorkerRecord
from airflow_worker_insight.store import placements
from airflow_worker_insight.store.dialects import in_rows
from airflow_worker_insight.store.tables import attempt, change, worker
from airflow_worker_insight.store.workers.names import (
    are_named_local,
    is_known_to_engine,
    is_operators_word,
    operators_name,
)
from airflow_worker_insight.store.workers.upsert import SINCE_BEFORE, note_inheritance, upsert_worker

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from typing import Any

    from sqlalchemy.engine import Connection, Row

    from airflow_worker_insight.domain.workers import NewWorkerInstance


BATCH = 500
"""Rows that one statement reads or changes by their keys."""

_KINDS = {CELERY: "celery", EDGE: "edge", JOBS: LOCAL}


# --- engines ---------------------------------------------------------------------------------------------------------


FORGOTTEN_AFTER = timedelta(days=1)
"""How long no worker of an engine has run a try, at least, before they end that nobody looks at and no executor has."""


# --- lives -----------------------------------------------------------------------------------------------------------


def open_lives(connection: Connection, engine_name: str) -> list[WorkerInstance]:
    """Return the lives of an engine's workers that have not ended.

    Of workers that only their tries tell of, those that are known to run one: of all others nothing is said anyway, and
    there may be as many as there were tries.
    """
    is_open: Any = worker.c.state.in_((ONLINE, UNRESPONSIVE))
    if engine_name != TRIES:
        is_open = or_(is_open, worker.c.state.is_(None))
    return _lives(connection, _is_of_engine(engine_name), is_open, worker.c.ended_at.is_(None))


def seen_after_their_end(connection: Connection, engine_name: str, reason: str) -> list[int]:
    """Return the row IDs of an engine's workers that were ended for this reason and have run a try since."""
    return list(
        connection.execute(
            select(worker.c.id)
            .where(
                _is_of_engine(engine_name),
                worker.c.state == OFFLINE,
                worker.c.state_reason == reason,
                worker.c.last_seen_at > worker.c.ended_at,
            )
            .order_by(worker.c.id)
        ).scalars()
    )


def lives_by_ref(connection: Connection, engine_name: str, refs: Collection[int]) -> list[WorkerInstance]:
    """Return those of the lives with these row IDs that are an engine's, ended or not."""
    return [
        life
        for batch in _batches(sorted(refs))
        for life in _lives(connection, _is_of_engine(engine_name), worker.c.id.in_(batch))
    ]


def latest_ended_lives(connection: Connection, kind: str, engine_names: Collection[str]) -> list[WorkerInstance]:
    """Return of each worker with one of these names the latest lives that have ended, one for each process ID."""
    found = []
    for batch in _batches(sorted(engine_names)):
        latest = (
            select(func.max(worker.c.id))
            .where(
                worker.c.engine_name.in_(batch),
                worker.c.kind == kind,
                worker.c.host_only.is_(False),
                worker.c.ended_at.is_not(None),
            )
            .group_by(worker.c.engine_name, worker.c.pid, worker.c.job_id)
        )
        refs = list(connection.execute(latest).scalars())
        for part in _batches(refs):
            found += _lives(connection, worker.c.id.in_(part))
    return found


def named_local_lives(connection: Connection, job_ids: Collection[int]) -> list[WorkerInstance]:
    """Return the named workers that these schedulers have on their machines, by their jobs, ended or not."""
    return [
        life
        for batch in _batches(sorted(job_ids))
        for life in _lives(connection, are_named_local(worker), is_known_to_engine(worker), worker.c.job_id.in_(batch))
    ]


def _is_of_engine(engine_name: str) -> Any:
    if engine_name == TRIES:
        return worker.c.kind.not_in(list(_KINDS.values()))
    return worker.c.kind == _KINDS[engine_name]


def _lives(connection: Connection, *conditions: Any) -> list[WorkerInstance]:
    columns = (
        worker.c.id,
        worker.c.reported_id,
        *(worker.c[name] for name in WorkerInstance.__dataclass_fields__ if name not in ("ref", "is_reported")),
    )
    rows = connection.execute(select(*columns).where(worker.c.host_only.is_(False), *conditions).order_by(worker.c.id))
    return [_life(row) for row in rows]


def _life(row: Row[Any]) -> WorkerInstance:
    return WorkerInstance(
        ref=row.id,
        kind=row.kind,
        hostname=row.hostname,
        is_reported=row.reported_id is not None,
        registered_at=row.registered_at.astimezone(timezone.utc),
        last_seen_at=row.last_seen_at.astimezone(timezone.utc),
        engine_name=row.engine_name,
        pid=row.pid,
        job_id=row.job_id,
        state=row.state,
        state_reason=row.state_reason,
        ended_at=utc(row.ended_at),
        queues=None if row.queues is None else tuple(row.queues),
        concurrency=row.concurrency,
        running=row.running,
        engine_started_at=utc(row.engine_started_at),
        engine_heartbeat_at=utc(row.engine_heartbeat_at),
    )


def register(connection: Connection, lives: Sequence[NewWorkerInstance], *, now: datetime) -> None:
    """Write workers that nobody knew; one whose last life was put into quarantine begins in quarantine."""
    if not lives:
        return
    quarantined = _quarantined(connection, lives)
    rows = [_new_row(life, life in quarantined, now) for life in lives]
    # Apart, because the rows of one statement have the same columns, and a JSON column that is given None is not NULL.
    for with_queues in (True, False):
        same = [row for row in rows if ("queues" in row) is with_queues]
        if same:
            connection.execute(insert(worker), same)
    for batch in _batches(row["worker_id"] for row in rows if row["availability"] == QUARANTINED):
        columns = (worker.c.id, worker.c.kind, worker.c.engine_name, worker.c.hostname)
        for row in connection.execute(select(*columns).where(worker.c.worker_id.in_(batch))).all():
            note_inheritance(connection, row.id, row.kind, None, row.engine_name, hostname=row.hostname, now=now)


def _new_row(life: NewWorkerInstance, is_quarantined: bool, now: datetime) -> dict[str, Any]:
    facts = (life.kind, life.engine_name, life.hostname, life.pid, life.job_id, life.started_at, now)
    digest = blake2b("\0".join(map(str, facts)).encode("utf-8", "replace"), digest_size=12).hexdigest()
    record = WorkerRecord(
        worker_id=f"{life.kind}-{digest}",
        name=life.engine_name,
        kind=life.kind,
        hostname=life.hostname,
        pid=life.pid,
        started_at=life.started_at,
        resources=life.resources,
        versions=life.versions,
        job_id=life.job_id,
        engine_name=life.engine_name,
    )
    return {
        **record.description(),
        "worker_id": record.worker_id,
        "engine_name": life.engine_name,
        "job_id": life.job_id,
        "fingerprint": record.fingerprint,
        "registered_at": now,
        "last_seen_at": now,
        "state": life.state,
        "state_reason": life.state_reason,
        "availability": QUARANTINED if is_quarantined else AVAILABLE,
        **({} if life.queues is None else {"queues": list(life.queues)}),
        "concurrency": life.concurrency,
        "running": 0,
        "engine_started_at": life.started_at,
        "engine_heartbeat_at": life.heartbeat_at,
    }


def register_own(connection: Connection, record: WorkerRecord, *, concurrency: int, now: datetime) -> None:
    """Write a worker that the caller itself is about to start; ``record`` is what its processes will report."""
    ref = upsert_worker(connection, record, now=now, is_own=True)
    known = {"concurrency": concurrency, "running": 0, "engine_started_at": record.started_at}
    # Whoever makes it known is its engine: from now on no report changes what it is.
    connection.execute(update(worker).where(worker.c.id == ref).values(**known, engine_heartbeat_at=now))


def _quarantined(connection: Connection, lives: Sequence[NewWorkerInstance]) -> Collection[NewWorkerInstance]:
    """Return which of these begin in quarantine: ``upsert.inherited_availability`` for many at once."""
    names = {life.engine_name for life in lives}
    hosts = {life.hostname for life in lives if life.kind == LOCAL}
    latest: dict[tuple[str, str, str], tuple[int, str, bool]] = {}
    for column, wanted in ((worker.c.name, names), (worker.c.engine_name, names), (worker.c.hostname, hosts)):
        for batch in _batches(sorted(wanted)):
            last = (
                select(worker.c.kind, column.label("called"), func.max(worker.c.id).label("ref"))
                .where(column.in_(batch), worker.c.host_only.is_(False), not_(are_named_local(worker)))
                .group_by(worker.c.kind, column)
                .subquery()
            )
            is_known = case((is_known_to_engine(worker), 1), else_=0).label("is_known")
            statement = select(last, worker.c.availability, is_known).join(worker, worker.c.id == last.c.ref)
            by = "host" if column is worker.c.hostname else "name"
            for row in connection.execute(statement):
                key, found = (by, row.kind, row.called), (row.ref, row.availability, bool(row.is_known))
                latest[key] = max(latest.get(key, found), found)

    known: dict[tuple[str, str], str] = {}
    for batch in _batches(sorted(names)):
        refs = (
            select(func.max(worker.c.id))
            .where(worker.c.engine_name.in_(batch), is_known_to_engine(worker))
            .group_by(worker.c.kind, worker.c.engine_name)
        )
        columns = (worker.c.kind, worker.c.engine_name, worker.c.availability)
        for row in connection.execute(select(*columns).where(worker.c.id.in_(refs))):
            known[row.kind, row.engine_name] = row.availability

    def last_life(life: NewWorkerInstance) -> tuple[int, str, bool]:
        # What only reports tell of decides nothing where the engine has told of the name.
        by_engine = known.get((life.kind, life.engine_name))
        if by_engine is not None:
            return (0, by_engine, True)
        keys = [("name", life.kind, life.engine_name)]
        keys += [("host", life.kind, life.hostname)] if life.kind == LOCAL else []
        return max(latest.get(key, (0, "", True)) for key in keys)

    decided = [(life, *last_life(life)[1:]) for life in lives]
    heirs = [(life, is_known) for life, availability, is_known in decided if availability == QUARANTINED]
    told = [life for life, is_known in heirs if not is_known]
    # Elsewhere nothing but what people decided of this name counts: a report may have given the name to another's heir.
    by_people = _quarantined_by_people(
        connection, {life.engine_name for life in told}, {life.hostname for life in told if life.kind == LOCAL}
    )
    return [life for life, is_known in heirs if is_known or _is_among(by_people, life)]


def _is_among(by_people: Collection[tuple[str, str]], one: Any) -> bool:
    by_host = one.kind == LOCAL and (one.kind, one.hostname) in by_people
    return by_host or (one.kind, one.engine_name) in by_people


def _quarantined_by_people(
    connection: Connection, names: Collection[str], hosts: Collection[str]
) -> set[tuple[str, str]]:
    """Return the kinds and names, or hosts, of workers that people themselves have put into quarantine.

    A life that began with the quarantine of a life before is none of these.
    """
    found: set[tuple[str, str]] = set()
    by_people = (
        change.c.availability == QUARANTINED,
        or_(change.c.reason.is_(None), not_(change.c.reason.startswith(SINCE_BEFORE, autoescape=True))),
        worker.c.host_only.is_(False),
    )
    for column, wanted in ((worker.c.name, names), (worker.c.engine_name, names), (worker.c.hostname, hosts)):
        for batch in _batches(sorted(wanted)):
            rows = connection.execute(
                select(worker.c.kind, column.label("called"))
                .select_from(worker.join(change, change.c.worker_ref == worker.c.id))
                .where(column.in_(batch), *by_people)
                .distinct()
            )
            found |= {(row.kind, row.called) for row in rows}
    return found


def write_lives(connection: Connection, changed: Mapping[int, Mapping[str, Any]]) -> None:
    """Write new values of columns, for each row ID its own."""
    for refs in _batches(sorted(ref for ref, values in changed.items() if values)):
        batch = {ref: changed[ref] for ref in refs}
        # In the table's order, so that equal batches are equal statements.
        columns = [column for column in worker.c if any(column.name in values for values in batch.values())]
        connection.execute(
            update(worker)
            .where(worker.c.id.in_(refs))
            .values({column: _new_values(column, batch) for column in columns})
        )


def _new_values(column: Any, batch: Mapping[int, Mapping[str, Any]]) -> Any:
    """Return what a column becomes: one value where all rows get it, else for each row its own."""
    values = {ref: values[column.name] for ref, values in batch.items() if column.name in values}
    first = next(iter(values.values()))
    if len(values) == len(batch) and all(value == first for value in values.values()):
        return literal(first, column.type)
    return case({ref: literal(value, column.type) for ref, value in values.items()}, value=worker.c.id, else_=column)


def add_changes(connection: Connection, states: Sequence[tuple[int, str | None, str | None]], *, now: datetime) -> None:
    """Write into the history which worker (by its row's ID) came into which state, and why."""
    if states:
        connection.execute(
            insert(change),
            [{"worker_ref": ref, "changed_at": now, "state": state, "reason": why} for ref, state, why in states],
        )


def merge(connection: Connection, kept: int, told: int, *, now: datetime) -> None:
    """Make the row ``told``, which only reports told of, one with the engine's row ``kept`` of the same life.

    The engine's row stays, with what only reports know of the worker; tries and placements name it from now on, and so
    do the reports to come. The other row ends and says why, and is removed when nothing names it any more: a start that
    has read it before may still do so.
    """
    # Locked first: whoever infers tries holds the rows of the workers that it has read.
    both = select(worker).where(worker.c.id.in_((kept, told))).order_by(worker.c.id).with_for_update()
    rows = {row.id: row for row in connection.execute(both)}
    if len(rows) < 2 or rows[told].reported_id is None or rows[told].ended_at is not None:  # noqa: PLR2004
        return
    known, other = rows[kept], rows[told]
    placements.rename_worker(connection, told, kept)
    _rename_attempts(connection, told, kept)
    connection.execute(update(change).where(change.c.worker_ref == told).values(worker_ref=kept))
    merged = blake2b(other.worker_id.encode(), digest_size=12).hexdigest()
    ended = {
        "reported_id": f"merged-{merged}",
        "state": None,
        "state_reason": f"It is the same worker as {known.worker_id}.",
        "ended_at": now,
        "running": 0,
    }
    connection.execute(update(worker).where(worker.c.id == told).values(ended))
    values: dict[str, Any] = {
        "reported_id": other.reported_id,
        "fingerprint": other.fingerprint,
        "hostname": other.hostname,
        "availability": max(known.availability, _decided_of(connection, other, known), key=AVAILABILITIES.index),
        "registered_at": min(known.registered_at, other.registered_at),
        "last_seen_at": max(known.last_seen_at, other.last_seen_at),
    }
    if known.reported_id is None:
        values["started_at"] = other.started_at
        if is_operators_word(known, other.hostname):
            values |= {"name": operators_name(connection, known, other.name), "labels": other.labels}
        values |= {name: {**getattr(other, name), **getattr(known, name)} for name in ("resources", "versions")}
        if known.pid is None:
            values["pid"] = other.pid
    connection.execute(update(worker).where(worker.c.id == kept).values(values))


def _decided_of(connection: Connection, told: Row[Any], known: Row[Any]) -> str:
    """Return what is decided of a row that only reports told of, as far as people decided it of a worker of its name.

    It may have begun with the quarantine of a worker of another name: a report says both names.
    """
    if told.availability != QUARANTINED:
        decided: str = told.availability
        return decided
    by_people = _quarantined_by_people(connection, {known.engine_name}, {known.hostname})
    return QUARANTINED if _is_among(by_people, known) else AVAILABLE


def adopted(connection: Connection, known: Mapping[int, NewWorkerInstance]) -> dict[int, dict[str, Any]]:
    """Return what changes of rows that only reports told of, by their IDs, when their engine first tells of them.

    :param known: what the engine tells of each
    """
    changed: dict[int, dict[str, Any]] = {}
    columns = ("id", "kind", "name", "engine_name", "hostname", "availability")
    for batch in _batches(sorted(known)):
        rows = connection.execute(select(*(worker.c[name] for name in columns)).where(worker.c.id.in_(batch))).all()
        inherited = [known[row.id] for row in rows if row.availability == QUARANTINED]
        kept = _quarantined(connection, inherited) if inherited else []
        for row in rows:
            told, values = known[row.id], changed.setdefault(row.id, {})
            if not is_operators_word(told, row.hostname):
                values |= {"name": told.engine_name, "labels": {}}
            elif operators_name(connection, told, row.name) != row.name:
                values["name"] = told.engine_name
            if row.availability == QUARANTINED and told not in kept:
                values["availability"] = AVAILABLE
    return changed


def _rename_attempts(connection: Connection, told: int, kept: int) -> None:
    """Let the tries of a worker's second row name its first, but for those that name both."""
    other = attempt.alias("other")
    key = ("run_key", "task_key", "try_number")
    of_both = select(*(attempt.c[name] for name in key)).where(
        attempt.c.worker_ref == told,
        select(other.c.worker_ref)
        .where(*(other.c[name] == attempt.c[name] for name in key), other.c.worker_ref == kept)
        .exists(),
    )
    excepted = {tuple(row) for row in connection.execute(of_both).all()}
    renaming = update(attempt).where(attempt.c.worker_ref == told).values(worker_ref=kept)
    if not excepted:
        connection.execute(renaming)
        return
    columns = tuple(attempt.c[name] for name in key)
    of_told = {tuple(row) for row in connection.execute(select(*columns).where(attempt.c.worker_ref == told)).all()}
    for batch in _batches(sorted(of_told - excepted)):
        connection.execute(renaming.where(in_rows(connection, columns, batch)))


# --- tries -----------------------------------------------------------------------------------------------------------


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    known = list(items)
    for start in range(0, len(known), BATCH):
        yield known[start : start + BATCH]
