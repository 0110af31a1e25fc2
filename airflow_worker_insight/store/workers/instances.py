"""Read and write worker instances as their worker sources describe them.

This module holds SQL only: ``registry`` decides what to write. A handful of statements writes thousands of workers: one
statement changes up to :data:`BATCH` rows, each to its own values.
"""

from __future__ import annotations

from datetime import timedelta, timezone
from hashlib import blake2b
from typing import TYPE_CHECKING

from sqlalchemy import and_, case, func, insert, literal, not_, or_, select, update

from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.domain.states import LOCAL, SourceName, WorkerAvailability, WorkerState, strictest
from airflow_worker_insight.domain.workers import WorkerInstance, WorkerRecord
from airflow_worker_insight.store import placements
from airflow_worker_insight.store.batches import batches
from airflow_worker_insight.store.dialects import in_rows
from airflow_worker_insight.store.tables import attempt, change, worker
from airflow_worker_insight.store.workers.names import (
    is_known_column,
    is_known_to_source,
    is_named_local_row,
    is_report_trusted,
    resolve_operator_name,
)
from airflow_worker_insight.store.workers.upsert import INHERITED_PREFIXES, record_inherited_quarantine, upsert_worker

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime
    from typing import Any

    from sqlalchemy.engine import Connection, Row

    from airflow_worker_insight.domain.workers import NewWorkerInstance


BATCH = 500
"""Rows that one statement reads or changes by their keys."""

_KIND_OF_SOURCE: dict[str, str] = {SourceName.CELERY: "celery", SourceName.EDGE: "edge", SourceName.JOBS: LOCAL}


# --- worker sources --------------------------------------------------------------------------------------------------


ABANDONED_AFTER = timedelta(days=1)
"""Least time without a try after which workers of an abandoned source end.

A source is abandoned when it is no longer polled and no executor uses it.
"""


# --- instances -------------------------------------------------------------------------------------------------------


def open_instances(connection: Connection, source: str) -> list[WorkerInstance]:
    """Return the instances of a worker source that have not ended.

    For workers that are known only from their tries, return those that are known to run one: the others' state is
    unknown anyway, and there may be as many as there were tries.
    """
    is_open: Any = worker.c.state.in_((WorkerState.ONLINE, WorkerState.UNRESPONSIVE))
    if source != SourceName.TRIES:
        is_open = or_(is_open, worker.c.state.is_(None))
    return _select_instances(connection, _is_of_source(source), is_open, worker.c.ended_at.is_(None))


def refs_seen_after_end(connection: Connection, source: str, reason: str) -> list[int]:
    """Return the row IDs of workers that ended for this reason and have run a try since."""
    return list(
        connection.execute(
            select(worker.c.id)
            .where(
                _is_of_source(source),
                worker.c.state == WorkerState.OFFLINE,
                worker.c.state_reason == reason,
                worker.c.last_seen_at > worker.c.ended_at,
            )
            .order_by(worker.c.id)
        ).scalars()
    )


def instances_by_ref(connection: Connection, source: str, refs: Collection[int]) -> list[WorkerInstance]:
    """Return the instances with these row IDs that belong to a worker source, ended or not."""
    return [
        instance
        for batch in batches(sorted(refs), BATCH)
        for instance in _select_instances(connection, _is_of_source(source), worker.c.id.in_(batch))
    ]


def latest_ended_instances(connection: Connection, kind: str, engine_names: Collection[str]) -> list[WorkerInstance]:
    """Return the latest ended instances of the workers with these names, one per process.

    A process is known by its process ID and job.
    """
    instances = []
    for batch in batches(sorted(engine_names), BATCH):
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
        for ref_batch in batches(refs, BATCH):
            instances += _select_instances(connection, worker.c.id.in_(ref_batch))
    return instances


def named_local_instances(connection: Connection, job_ids: Collection[int]) -> list[WorkerInstance]:
    """Return the named local workers of these schedulers' jobs, ended or not."""
    return [
        instance
        for batch in batches(sorted(job_ids), BATCH)
        for instance in _select_instances(
            connection, is_named_local_row(worker), is_known_to_source(worker), worker.c.job_id.in_(batch)
        )
    ]


def _is_of_source(source: str) -> Any:
    if source == SourceName.TRIES:
        return worker.c.kind.not_in(list(_KIND_OF_SOURCE.values()))
    return worker.c.kind == _KIND_OF_SOURCE[source]


def _select_instances(connection: Connection, *conditions: Any) -> list[WorkerInstance]:
    columns = (
        worker.c.id,
        worker.c.reported_id,
        *(worker.c[name] for name in WorkerInstance.__dataclass_fields__ if name not in ("ref", "is_reported")),
    )
    rows = connection.execute(select(*columns).where(worker.c.host_only.is_(False), *conditions).order_by(worker.c.id))
    return [_instance(row) for row in rows]


def _instance(row: Row[Any]) -> WorkerInstance:
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


def register(connection: Connection, instances: Sequence[NewWorkerInstance], *, now: datetime) -> None:
    """Insert workers that were unknown so far.

    A worker whose last instance was quarantined begins in quarantine.
    """
    if not instances:
        return
    quarantined = _quarantined_heirs(connection, instances)
    rows = [_new_row(instance, instance in quarantined, now) for instance in instances]
    # Two statements: all rows of one need the same columns, and None in a JSON column is JSON null, not SQL NULL.
    for with_queues in (True, False):
        alike = [row for row in rows if ("queues" in row) is with_queues]
        if alike:
            connection.execute(insert(worker), alike)
    heirs = [row["worker_id"] for row in rows if row["availability"] == WorkerAvailability.QUARANTINED]
    for batch in batches(heirs, BATCH):
        columns = (worker.c.id, worker.c.kind, worker.c.engine_name, worker.c.hostname)
        for row in connection.execute(select(*columns).where(worker.c.worker_id.in_(batch))).all():
            record_inherited_quarantine(
                connection, row.id, row.kind, None, row.engine_name, hostname=row.hostname, now=now
            )


def _new_row(instance: NewWorkerInstance, is_quarantined: bool, now: datetime) -> dict[str, Any]:
    facts = (
        instance.kind,
        instance.engine_name,
        instance.hostname,
        instance.pid,
        instance.job_id,
        instance.started_at,
        now,
    )
    digest = blake2b("\0".join(map(str, facts)).encode("utf-8", "replace"), digest_size=12).hexdigest()
    record = WorkerRecord(
        worker_id=f"{instance.kind}-{digest}",
        name=instance.engine_name,
        kind=instance.kind,
        hostname=instance.hostname,
        pid=instance.pid,
        started_at=instance.started_at,
        resources=instance.resources,
        versions=instance.versions,
        job_id=instance.job_id,
        engine_name=instance.engine_name,
    )
    return {
        **record.description(),
        "worker_id": record.worker_id,
        "engine_name": instance.engine_name,
        "job_id": instance.job_id,
        "fingerprint": record.fingerprint,
        "registered_at": now,
        "last_seen_at": now,
        "state": instance.state,
        "state_reason": instance.state_reason,
        "availability": WorkerAvailability.QUARANTINED if is_quarantined else WorkerAvailability.AVAILABLE,
        **({} if instance.queues is None else {"queues": list(instance.queues)}),
        "concurrency": instance.concurrency,
        "running": 0,
        "engine_started_at": instance.started_at,
        "engine_heartbeat_at": instance.heartbeat_at,
    }


def register_own(connection: Connection, record: WorkerRecord, *, concurrency: int, now: datetime) -> None:
    """Insert the worker that the caller is about to start.

    :param record: the description that the worker's processes will report
    :param concurrency: the worker's number of slots
    :param now: by the database's clock
    """
    ref = upsert_worker(connection, record, now=now, is_own=True)
    facts = {"concurrency": concurrency, "running": 0, "engine_started_at": record.started_at}
    # The caller is the worker's source: from now on reports do not change the description.
    connection.execute(update(worker).where(worker.c.id == ref).values(**facts, engine_heartbeat_at=now))


def _quarantined_heirs(connection: Connection, instances: Sequence[NewWorkerInstance]) -> Collection[NewWorkerInstance]:
    """Return the instances that begin in quarantine: bulk ``upsert.initial_availability``."""
    names = {instance.engine_name for instance in instances}
    hosts = {instance.hostname for instance in instances if instance.kind == LOCAL}
    latest: dict[tuple[str, str, str], tuple[int, str, bool]] = {}
    for column, values in ((worker.c.name, names), (worker.c.engine_name, names), (worker.c.hostname, hosts)):
        for batch in batches(sorted(values), BATCH):
            latest_refs = (
                select(worker.c.kind, column.label("called"), func.max(worker.c.id).label("ref"))
                .where(column.in_(batch), worker.c.host_only.is_(False), not_(is_named_local_row(worker)))
                .group_by(worker.c.kind, column)
                .subquery()
            )
            is_known = is_known_column()
            statement = select(latest_refs, worker.c.availability, is_known).join(
                worker, worker.c.id == latest_refs.c.ref
            )
            matched_by = "host" if column is worker.c.hostname else "name"
            for row in connection.execute(statement):
                key, decision = (matched_by, row.kind, row.called), (row.ref, row.availability, bool(row.is_known))
                latest[key] = max(latest.get(key, decision), decision)

    by_source: dict[tuple[str, str], str] = {}
    for batch in batches(sorted(names), BATCH):
        refs = (
            select(func.max(worker.c.id))
            .where(worker.c.engine_name.in_(batch), is_known_to_source(worker))
            .group_by(worker.c.kind, worker.c.engine_name)
        )
        columns = (worker.c.kind, worker.c.engine_name, worker.c.availability)
        for row in connection.execute(select(*columns).where(worker.c.id.in_(refs))):
            by_source[row.kind, row.engine_name] = row.availability

    def latest_decision(instance: NewWorkerInstance) -> tuple[int, str, bool]:
        # Rows that only reports mention do not count where the source knows the name.
        source_decision = by_source.get((instance.kind, instance.engine_name))
        if source_decision is not None:
            return (0, source_decision, True)
        keys = [("name", instance.kind, instance.engine_name)]
        keys += [("host", instance.kind, instance.hostname)] if instance.kind == LOCAL else []
        return max(latest.get(key, (0, "", True)) for key in keys)

    decisions = [(instance, *latest_decision(instance)[1:]) for instance in instances]
    heirs = [
        (instance, is_known)
        for instance, availability, is_known in decisions
        if availability == WorkerAvailability.QUARANTINED
    ]
    reported_heirs = [instance for instance, is_known in heirs if not is_known]
    # For reported heirs only operators' decisions count: a report may give this name to another worker's heir.
    quarantined_by_operators = _quarantined_by_operators(
        connection,
        {instance.engine_name for instance in reported_heirs},
        {instance.hostname for instance in reported_heirs if instance.kind == LOCAL},
    )
    return [instance for instance, is_known in heirs if is_known or _is_quarantined(quarantined_by_operators, instance)]


def _is_quarantined(quarantined: Collection[tuple[str, str]], instance: Any) -> bool:
    by_host = instance.kind == LOCAL and (instance.kind, instance.hostname) in quarantined
    return by_host or (instance.kind, instance.engine_name) in quarantined


def _quarantined_by_operators(
    connection: Connection, names: Collection[str], hosts: Collection[str]
) -> set[tuple[str, str]]:
    """Return the kinds and names, or hosts, of workers that operators quarantined themselves.

    Instances that only inherited the quarantine of an earlier instance do not count.
    """
    quarantined: set[tuple[str, str]] = set()
    is_quarantined = (
        change.c.availability == WorkerAvailability.QUARANTINED,
        or_(
            change.c.reason.is_(None),
            and_(*(not_(change.c.reason.startswith(prefix, autoescape=True)) for prefix in INHERITED_PREFIXES)),
        ),
        worker.c.host_only.is_(False),
    )
    for column, values in ((worker.c.name, names), (worker.c.engine_name, names), (worker.c.hostname, hosts)):
        for batch in batches(sorted(values), BATCH):
            rows = connection.execute(
                select(worker.c.kind, column.label("called"))
                .select_from(worker.join(change, change.c.worker_ref == worker.c.id))
                .where(column.in_(batch), *is_quarantined)
                .distinct()
            )
            quarantined |= {(row.kind, row.called) for row in rows}
    return quarantined


def update_instances(connection: Connection, changed: Mapping[int, Mapping[str, Any]]) -> None:
    """Write new column values, for each row ID its own."""
    for refs in batches(sorted(ref for ref, values in changed.items() if values), BATCH):
        batch = {ref: changed[ref] for ref in refs}
        # In the table's order, so that equal batches compile to the same statement.
        columns = [column for column in worker.c if any(column.name in values for values in batch.values())]
        connection.execute(
            update(worker)
            .where(worker.c.id.in_(refs))
            .values({column: _new_values(column, batch) for column in columns})
        )


def _new_values(column: Any, batch: Mapping[int, Mapping[str, Any]]) -> Any:
    """Return a column's new value: one literal if all rows get the same, else one per row."""
    values = {ref: values[column.name] for ref, values in batch.items() if column.name in values}
    first = next(iter(values.values()))
    if len(values) == len(batch) and all(value == first for value in values.values()):
        return literal(first, column.type)
    return case({ref: literal(value, column.type) for ref, value in values.items()}, value=worker.c.id, else_=column)


def add_changes(connection: Connection, states: Sequence[tuple[int, str | None, str | None]], *, now: datetime) -> None:
    """Add the new state of workers, by row ID, and its reason to the history."""
    if states:
        connection.execute(
            insert(change),
            [{"worker_ref": ref, "changed_at": now, "state": state, "reason": reason} for ref, state, reason in states],
        )


def merge(connection: Connection, kept_ref: int, reported_ref: int, *, now: datetime) -> None:
    """Merge a row that only reports mention into its source's row of the same instance.

    The source's row stays and takes over what only reports know of the worker; tries, placements and later reports
    refer to it from now on. The other row ends with a reason, and is removed once no row refers to it: a start that has
    read it before may still do so.

    :param kept_ref: the ID of the source's row
    :param reported_ref: the ID of the row that only reports mention
    :param now: by the database's clock
    """
    # Locked first: a process that infers tries holds locks on the workers that it has read.
    locking = select(worker).where(worker.c.id.in_((kept_ref, reported_ref))).order_by(worker.c.id).with_for_update()
    rows = {row.id: row for row in connection.execute(locking)}
    source_row, reported_row = rows.get(kept_ref), rows.get(reported_ref)
    if source_row is None or reported_row is None:
        return
    if reported_row.reported_id is None or reported_row.ended_at is not None:
        return
    placements.rename_worker(connection, reported_ref, kept_ref)
    _move_attempts(connection, reported_ref, kept_ref)
    connection.execute(update(change).where(change.c.worker_ref == reported_ref).values(worker_ref=kept_ref))
    merged = blake2b(reported_row.worker_id.encode(), digest_size=12).hexdigest()
    ended = {
        "reported_id": f"merged-{merged}",
        "state": None,
        "state_reason": f"Merged: it is the same worker as {source_row.worker_id}.",
        "ended_at": now,
        "running": 0,
    }
    connection.execute(update(worker).where(worker.c.id == reported_ref).values(ended))
    values: dict[str, Any] = {
        "reported_id": reported_row.reported_id,
        "fingerprint": reported_row.fingerprint,
        "hostname": reported_row.hostname,
        "availability": strictest(source_row.availability, _operators_decision(connection, reported_row, source_row)),
        "registered_at": min(source_row.registered_at, reported_row.registered_at),
        "last_seen_at": max(source_row.last_seen_at, reported_row.last_seen_at),
    }
    if source_row.reported_id is None:
        values["started_at"] = reported_row.started_at
        if is_report_trusted(source_row, reported_row.hostname):
            values |= {
                "name": resolve_operator_name(connection, source_row, reported_row.name),
                "labels": reported_row.labels,
            }
        values |= {
            name: {**getattr(reported_row, name), **getattr(source_row, name)} for name in ("resources", "versions")
        }
        if source_row.pid is None:
            values["pid"] = reported_row.pid
    connection.execute(update(worker).where(worker.c.id == kept_ref).values(values))


def _operators_decision(connection: Connection, reported_row: Row[Any], source_row: Row[Any]) -> str:
    """Return what operators decided for a row that only reports mention.

    A quarantine counts only if operators decided it for the name of ``source_row``. The row may have inherited the
    quarantine of a worker of another name: a report states both names.
    """
    if reported_row.availability != WorkerAvailability.QUARANTINED:
        decided: str = reported_row.availability
        return decided
    quarantined = _quarantined_by_operators(connection, {source_row.engine_name}, {source_row.hostname})
    return WorkerAvailability.QUARANTINED if _is_quarantined(quarantined, source_row) else WorkerAvailability.AVAILABLE


def updates_for_confirmed(
    connection: Connection, described: Mapping[int, NewWorkerInstance]
) -> dict[int, dict[str, Any]]:
    """Return the column changes, by row ID, of reported rows that their source now lists.

    Until now only reports mentioned these rows.

    :param described: what the source says of each row
    """
    changed: dict[int, dict[str, Any]] = {}
    columns = ("id", "kind", "name", "engine_name", "hostname", "availability")
    for batch in batches(sorted(described), BATCH):
        rows = connection.execute(select(*(worker.c[name] for name in columns)).where(worker.c.id.in_(batch))).all()
        to_check = [described[row.id] for row in rows if row.availability == WorkerAvailability.QUARANTINED]
        still_quarantined = _quarantined_heirs(connection, to_check) if to_check else []
        for row in rows:
            instance, values = described[row.id], changed.setdefault(row.id, {})
            if not is_report_trusted(instance, row.hostname):
                values |= {"name": instance.engine_name, "labels": {}}
            elif resolve_operator_name(connection, instance, row.name) != row.name:
                values["name"] = instance.engine_name
            if row.availability == WorkerAvailability.QUARANTINED and instance not in still_quarantined:
                values["availability"] = WorkerAvailability.AVAILABLE
    return changed


def _move_attempts(connection: Connection, reported_ref: int, kept_ref: int) -> None:
    """Move the tries of a worker's second row to its first, except tries on both rows."""
    other = attempt.alias("other")
    key = ("run_key", "task_key", "try_number")
    on_both = select(*(attempt.c[name] for name in key)).where(
        attempt.c.worker_ref == reported_ref,
        select(other.c.worker_ref)
        .where(*(other.c[name] == attempt.c[name] for name in key), other.c.worker_ref == kept_ref)
        .exists(),
    )
    shared = {tuple(row) for row in connection.execute(on_both).all()}
    move = update(attempt).where(attempt.c.worker_ref == reported_ref).values(worker_ref=kept_ref)
    if not shared:
        connection.execute(move)
        return
    columns = tuple(attempt.c[name] for name in key)
    of_reported = {
        tuple(row) for row in connection.execute(select(*columns).where(attempt.c.worker_ref == reported_ref)).all()
    }
    for batch in batches(sorted(of_reported - shared), BATCH):
        connection.execute(move.where(in_rows(connection, columns, batch)))
