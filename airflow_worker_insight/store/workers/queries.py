"""Read workers: single workers, lists, history, and what the executors need.

A worker's row holds what was true at the last poll. This module decides whether that state still counts, so that pages,
the REST API and the command never show a state that has not been checked for long.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timezone
from typing import TYPE_CHECKING

from sqlalchemy import LargeBinary, Text, and_, case, cast, false, func, not_, or_, select

from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.domain.filters import WORKER_ORDERS
from airflow_worker_insight.domain.limits import MAX_TOTAL
from airflow_worker_insight.domain.names import is_named_local
from airflow_worker_insight.domain.states import (
    LOCAL,
    SOURCE_KINDS,
    WorkerAvailability,
    WorkerState,
    source_of,
    strictest,
)
from airflow_worker_insight.domain.workers import WorkerChange, WorkerRow
from airflow_worker_insight.store.batches import batches
from airflow_worker_insight.store.dialects import disable_jit, in_list
from airflow_worker_insight.store.findings import open_worker_names
from airflow_worker_insight.store.leases import POLL_TIMEOUT
from airflow_worker_insight.store.tables import change, worker
from airflow_worker_insight.store.workers.freshness import (
    LIVE_STATES,
    STATES_ARE_STALE,
    SourceFreshness,
    in_states,
    shown_state,
    state_and_reason,
)
from airflow_worker_insight.store.workers.names import (
    is_known_column,
    is_known_to_source,
    is_named_local_row,
    name_conditions,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from datetime import datetime, timedelta
    from typing import Any

    from sqlalchemy.engine import Connection, Row

    from airflow_worker_insight.domain.filters import WorkerFilter


BATCH = 500
"""Names that one statement looks up."""

MAX_CANDIDATES = 2000
"""Most matches of a filter that are then read by their row IDs."""


# --- one worker ------------------------------------------------------------------------------------------------------


def get_worker(connection: Connection, worker_id: str) -> WorkerRow | None:
    """Return a worker, ended or not, by its ID or the ID that its processes report."""
    is_reported = worker.c.reported_id == worker_id
    # After a merge two rows may bear the ID: reports belong to the row that stays.
    row = connection.execute(
        select(worker)
        .where(or_(worker.c.worker_id == worker_id, is_reported))
        .order_by(case((is_reported, 0), else_=1))
        .limit(1)
    ).first()
    return None if row is None else _with_strictest(connection, [_worker(row, SourceFreshness.of(connection))])[0]


def get_workers(connection: Connection, worker_ids: Collection[str]) -> dict[str, WorkerRow]:
    """Return the workers among these IDs that are known, by the ID requested."""
    if not worker_ids:
        return {}
    rows = connection.execute(select(worker).where(worker.c.worker_id.in_(worker_ids))).all()
    freshness = SourceFreshness.of(connection)
    worker_rows = _with_strictest(connection, [_worker(row, freshness) for row in rows])
    return {worker_row.worker_id: worker_row for worker_row in worker_rows}


def workers_by_ref(connection: Connection, refs: Collection[int]) -> dict[int, WorkerRow]:
    """Return the workers with these row IDs; those that were deleted are left out.

    Their availability is their own: what later instances inherit is not read.
    """
    if not refs:
        return {}
    freshness = SourceFreshness.of(connection)
    found: dict[int, WorkerRow] = {}
    for batch in batches(sorted(refs), _REFS_AT_ONCE):
        rows = connection.execute(select(worker).where(in_list(connection, worker.c.id, batch)))
        found |= {row.id: _worker(row, freshness) for row in rows}
    return found


_REFS_AT_ONCE = 10_000


def workers_seen_since(connection: Connection, since: datetime) -> list[WorkerRow]:
    """Return the workers that were alive at or after a time, hosts left out."""
    freshness = SourceFreshness.of(connection)
    rows = connection.execute(select(worker).where(worker.c.last_seen_at >= since, worker.c.host_only.is_(False)))
    return [_worker(row, freshness) for row in rows]


def changes(connection: Connection, worker_row: WorkerRow, *, limit: int) -> list[WorkerChange]:
    """Return a worker's history, the latest change first."""
    rows = connection.execute(
        select(change).where(change.c.worker_ref == worker_row.ref).order_by(change.c.id.desc()).limit(limit)
    )
    return [_change(row) for row in rows]


def decisions(connection: Connection, worker_rows: Collection[WorkerRow]) -> dict[int, WorkerChange]:
    """Return the decision behind the availability of each worker, by ``ref``.

    Workers without a decision are left out. For a worker instance that began in quarantine this is the decision on an
    earlier instance.
    """
    refs = [worker_row.ref for worker_row in worker_rows]
    latest = (
        select(func.max(change.c.id))
        .where(change.c.worker_ref.in_(refs), change.c.availability.is_not(None))
        .group_by(change.c.worker_ref)
    )
    by_ref = {row.worker_ref: _change(row) for row in connection.execute(select(change).where(change.c.id.in_(latest)))}
    heirs = [
        worker_row
        for worker_row in worker_rows
        if worker_row.availability == WorkerAvailability.QUARANTINED and worker_row.ref not in by_ref
    ]
    return {**by_ref, **_inherited(connection, heirs)}


def _inherited(connection: Connection, heirs: Collection[WorkerRow]) -> dict[int, WorkerChange]:
    """Return the latest quarantine of an earlier instance, for the workers that inherited it."""
    if not heirs:
        return {}
    names = {name for heir in heirs for name in (heir.name, heir.engine_name) if name}
    rows = connection.execute(
        select(change, worker.c.kind, worker.c.name, worker.c.engine_name)
        .select_from(change.join(worker, worker.c.id == change.c.worker_ref))
        .where(
            or_(worker.c.name.in_(names), worker.c.engine_name.in_(names)),
            change.c.availability == WorkerAvailability.QUARANTINED,
        )
        .order_by(change.c.id)
    ).all()
    return {
        heir.ref: _change(row)
        for heir in heirs
        for row in rows
        if row.kind == heir.kind
        and (
            (row.engine_name and row.engine_name == heir.engine_name)
            or (row.name == heir.name and not is_named_local(heir.kind, heir.engine_name))
        )
    }


def other_instances(connection: Connection, worker_row: WorkerRow, *, limit: int) -> list[WorkerRow]:
    """Return the other instances of a worker's name, the latest first."""
    rows = connection.execute(
        select(worker)
        .where(*_same_name(worker_row), worker.c.id != worker_row.ref, worker.c.host_only.is_(False))
        .order_by(worker.c.id.desc())
        .limit(limit)
    )
    freshness = SourceFreshness.of(connection)
    return [_worker(row, freshness) for row in rows]


def later_instance(connection: Connection, worker_row: WorkerRow) -> WorkerRow | None:
    """Return the latest instance of a worker's name, unless it is this one.

    For a worker that its source knows, ignore instances that only reports mention: a task may have made them up.
    """
    conditions = _same_name(worker_row)
    if not worker_row.is_report_only and worker_row.kind in SOURCE_KINDS and worker_row.engine_name is not None:
        conditions = [*conditions, is_known_to_source(worker)]
    row = connection.execute(
        select(worker)
        .where(*conditions, worker.c.id > worker_row.ref, worker.c.host_only.is_(False))
        .order_by(worker.c.id.desc())
        .limit(1)
    ).first()
    return None if row is None else _worker(row, SourceFreshness.of(connection))


def _same_name(worker_row: WorkerRow) -> list[Any]:
    return name_conditions(worker_row.kind, worker_row.name, worker_row.engine_name, hostname=worker_row.hostname)


# --- lists -----------------------------------------------------------------------------------------------------------


def with_matching_refs(connection: Connection, filters: WorkerFilter) -> WorkerFilter:
    """Return the filter with the row IDs that it matches, if they are few.

    No index serves most filters, and a page runs some ten queries: so the table is scanned once, and the check for a
    later instance runs on the matches only. The scan stops after :data:`MAX_CANDIDATES` matches.
    """
    if filters.refs is not None:
        return filters
    # PostgreSQL would JIT-compile these statements for 2 seconds each: it overrates the check for a later instance.
    disable_jit(connection)
    matching = (
        select(worker.c.id)
        .where(*filter_conditions(connection, filters, include_superseded=True))
        .limit(MAX_CANDIDATES + 1)
    )
    refs = connection.execute(matching).scalars().all()
    if len(refs) > MAX_CANDIDATES:
        return filters
    if refs and filters.availability is not None:
        decided = select(worker.c.id).where(in_list(connection, worker.c.id, refs), _is_decided())
        refs = connection.execute(decided).scalars().all()
    return replace(filters, refs=tuple(refs))


def list_workers(
    connection: Connection,
    filters: WorkerFilter,
    *,
    order_by: str = "-registered_at",
    limit: int,
    offset: int,
    max_total: int = MAX_TOTAL,
) -> tuple[list[WorkerRow], int]:
    """Return a page of workers and their total number, up to ``max_total``.

    :param order_by: one of :data:`WORKER_ORDERS`, with a leading ``-`` for descending order; unknown values come last
    """
    freshness = SourceFreshness.of(connection)
    filters = with_matching_refs(connection, filters)
    conditions = [*filter_conditions(connection, filters), *in_states(filters.states, freshness)]
    within = select(worker.c.id).where(*conditions).limit(max_total).subquery()
    total: int = connection.execute(select(func.count()).select_from(within)).scalar_one()
    order = _order(order_by, freshness)
    page = select(worker).where(*conditions).order_by(*order).limit(limit).offset(offset)
    if filters.availability is not None and filters.refs is None and connection.dialect.name == "postgresql":
        refs = _decided_page(connection, filters, freshness, order, limit=limit, offset=offset)
        page = select(worker).where(in_list(connection, worker.c.id, refs)).order_by(*order)
    rows = connection.execute(page)
    return _with_strictest(connection, [_worker(row, freshness) for row in rows]), total


def _decided_page(
    connection: Connection,
    filters: WorkerFilter,
    freshness: SourceFreshness,
    order: Sequence[Any],
    *,
    limit: int,
    offset: int,
) -> Sequence[int]:
    """Return the row IDs of a page when many workers have a decision; PostgreSQL only.

    PostgreSQL would check each worker for a later instance before it sorts. The OFFSET makes it sort first.
    """
    names = ["id", "kind", "name", "engine_name", "hostname", "ended_at"]
    names += ["host_only", "reported_id", "engine_heartbeat_at"]
    conditions = [
        *filter_conditions(connection, filters, include_superseded=True),
        *in_states(filters.states, freshness),
    ]
    columns = (worker.c[name] for name in names)
    ordered = select(*columns).where(*conditions).order_by(*order).offset(0).subquery()
    page = select(ordered.c.id).where(_is_decided(ordered)).limit(limit).offset(offset)
    return list(connection.execute(page).scalars())


def live_workers(connection: Connection, kind: str) -> tuple[list[WorkerRow], str | None]:
    """Return an executor's workers that have not ended, or why they are unknown.

    Workers that only reports mention are left out: a task may have made them up. A worker reports its labels with its
    first try; until then the labels of its previous instance apply.

    The poller may die during a poll. What it stored before counts until another process may poll: meanwhile the
    executor itself checks the workers.
    """
    freshness = SourceFreshness.of(connection, grace_period=POLL_TIMEOUT)
    if source_of(kind) in freshness.stale:
        return [], STATES_ARE_STALE
    rows = connection.execute(
        select(worker)
        .where(
            worker.c.kind == kind,
            is_known_to_source(worker),
            worker.c.ended_at.is_(None),
            worker.c.state.in_(LIVE_STATES),
        )
        .order_by(worker.c.id)
    ).all()
    unreported = [row.engine_name for row in rows if row.reported_id is None and row.engine_name]
    labels = _latest_labels(connection, kind, unreported)
    worker_rows = _with_strictest(connection, [_worker(row, freshness) for row in rows])
    return [
        worker_row if worker_row.labels else replace(worker_row, labels=labels.get(worker_row.engine_name or "", {}))
        for worker_row in worker_rows
    ], None


def unavailable_workers(connection: Connection) -> dict[int, str]:
    """Return the availability of all drained and quarantined live workers, by row ID."""
    is_live = worker.c.state.in_(LIVE_STATES)
    decided = connection.execute(
        select(worker.c.id, *_strictest_columns()).where(
            or_(is_live, and_(worker.c.state.is_(None), worker.c.ended_at.is_(None))),
            worker.c.host_only.is_(False),
            worker.c.availability != WorkerAvailability.AVAILABLE,
        )
    ).all()
    by_ref = {row.id: row.availability for row in decided}
    by_name = _strictest_of(decided)
    for batch in batches(sorted({name for _, name in by_name}), BATCH):
        same_name = select(worker.c.id, worker.c.kind, worker.c.engine_name).where(
            worker.c.engine_name.in_(batch), is_live
        )
        for row in connection.execute(same_name):
            availability = by_name.get((row.kind, row.engine_name), WorkerAvailability.AVAILABLE)
            if availability != WorkerAvailability.AVAILABLE:
                by_ref[row.id] = strictest(by_ref.get(row.id, WorkerAvailability.AVAILABLE), availability)
    return by_ref


def _strictest_of(rows: Iterable[Row[Any]]) -> dict[tuple[str, str], str]:
    """Return the strictest availability of each worker, by its kind and its source's name.

    Several rows of one name may be one worker. A row that only reports mention decides for no other row: a task may
    have made it up.
    """
    by_name: dict[tuple[str, str], str] = {}
    for row in rows:
        if row.engine_name is not None and row.is_known:
            key = (row.kind, row.engine_name)
            by_name[key] = strictest(by_name.get(key, WorkerAvailability.AVAILABLE), row.availability)
    return by_name


def _strictest_columns() -> list[Any]:
    """Return the columns that :func:`_strictest_of` reads."""
    is_known = is_known_column()
    return [worker.c.kind, worker.c.engine_name, worker.c.availability, is_known]


def _with_strictest(connection: Connection, worker_rows: list[WorkerRow]) -> list[WorkerRow]:
    """Apply to each open worker the strictest availability of its open rows.

    These are the rows with the name that its source gives it. Rows that only reports mention take this availability but
    do not contribute to it.
    """
    names = sorted(
        {worker_row.engine_name for worker_row in worker_rows if worker_row.engine_name and worker_row.ended_at is None}
    )
    decided: list[Row[Any]] = []
    for batch in batches(names, BATCH):
        decided += connection.execute(
            select(*_strictest_columns()).where(
                worker.c.engine_name.in_(batch),
                worker.c.ended_at.is_(None),
                worker.c.host_only.is_(False),
                worker.c.availability != WorkerAvailability.AVAILABLE,
            )
        ).all()
    by_name = _strictest_of(decided)
    return [
        replace(
            worker_row,
            availability=strictest(
                worker_row.availability,
                by_name.get((worker_row.kind, worker_row.engine_name or ""), WorkerAvailability.AVAILABLE),
            ),
        )
        if worker_row.ended_at is None
        else worker_row
        for worker_row in worker_rows
    ]


def has_any_heartbeat(connection: Connection, kind: str) -> bool:
    """Return whether a worker of a kind has ever sent its source a heartbeat."""
    known = select(worker.c.id).where(worker.c.kind == kind, worker.c.engine_heartbeat_at.is_not(None))
    return connection.execute(known.limit(1)).first() is not None


def ended_workers(connection: Connection, kind: str, *, since: datetime, until: datetime) -> list[str]:
    """Return the IDs of the workers of a kind that ended between two times."""
    rows = connection.execute(
        select(worker.c.worker_id).where(
            worker.c.kind == kind, worker.c.host_only.is_(False), worker.c.ended_at.between(since, until)
        )
    )
    return [row.worker_id for row in rows]


def _latest_labels(connection: Connection, kind: str, engine_names: Collection[str]) -> dict[str, Mapping[str, str]]:
    """Return the labels of the latest instance of each name that has reported them."""
    if not engine_names:
        return {}
    latest = (
        select(func.max(worker.c.id))
        .where(
            worker.c.engine_name.in_(engine_names),
            worker.c.kind == kind,
            worker.c.reported_id.is_not(None),
            is_known_to_source(worker),
        )
        .group_by(worker.c.engine_name)
    )
    rows = connection.execute(select(worker.c.engine_name, worker.c.labels).where(worker.c.id.in_(latest)))
    return {row.engine_name: row.labels for row in rows}


def worker_names(connection: Connection, refs: Collection[int]) -> dict[int, str]:
    """Return the names of the workers with these row IDs."""
    rows = connection.execute(select(worker.c.id, worker.c.name).where(worker.c.id.in_(list(refs))))
    return {row.id: row.name for row in rows}


def filter_conditions(connection: Connection, filters: WorkerFilter, *, include_superseded: bool = False) -> list[Any]:
    """Return the conditions of a filter, except for the states.

    :param include_superseded: whether to include ended instances that another one followed; their decisions no longer
        count
    """
    columns = worker.c
    if filters.refs is not None:
        return [in_list(connection, columns.id, filters.refs)]
    conditions: list[Any] = [columns.host_only.is_(False)]
    conditions += [
        columns[name] == getattr(filters, name)
        for name in ("kind", "hostname", "availability")
        if getattr(filters, name) is not None
    ]
    conditions += _is_concerned(connection, filters)
    if filters.availability is not None and not include_superseded:
        conditions.append(_is_decided())
    if filters.name is not None:
        conditions.append(or_(columns.name == filters.name, columns.engine_name == filters.name))
    if filters.label is not None:
        key, value = filters.label
        conditions.append(_holds(connection, columns.labels, "{", lambda dumps: f"{dumps(key)}: {dumps(value)}"))
    if filters.queue is not None:
        queue = filters.queue
        conditions.append(_holds(connection, columns.queues, "[", lambda dumps: dumps(queue)))
    if filters.seen_since is not None:
        conditions.append(
            or_(
                columns.last_seen_at >= filters.seen_since,
                columns.state.in_([WorkerState.ONLINE, WorkerState.UNRESPONSIVE]),
            )
        )
    if filters.last_seen_at_gte is not None:
        conditions.append(columns.last_seen_at >= filters.last_seen_at_gte)
    if filters.last_seen_at_lte is not None:
        conditions.append(columns.last_seen_at <= filters.last_seen_at_lte)
    if filters.search is not None:
        needle = filters.search.lower()
        # IDs are ASCII, and MySQL refuses to search such a column for other letters.
        searched = [columns.name, columns.hostname, *([columns.worker_id] if needle.isascii() else [])]
        conditions.append(or_(*(func.lower(text).contains(needle, autoescape=True) for text in searched)))
    return conditions


def _is_concerned(connection: Connection, filters: WorkerFilter) -> list[Any]:
    """Match workers that an open finding concerns, if the filter asks for them."""
    if filters.findings is None:
        return []
    names = sorted(open_worker_names(connection))
    return [in_list(connection, worker.c.name, names) if names else false()]


def _is_decided(table: Any = worker) -> Any:
    """Match workers whose decision still counts."""
    return or_(table.c.ended_at.is_(None), _is_latest(table))


def _is_latest(table: Any) -> Any:
    """Match the latest instance of each name: see ``name_conditions``.

    Each name is looked up on its own, through its index. For a worker that its source knows, instances that only
    reports mention do not count: a task may have made them up.
    """
    later = worker.alias("later")
    counts = or_(not_(is_known_to_source(table)), is_known_to_source(later))

    def followed(name: str, *conditions: Any) -> Any:
        same_name = (later.c[name] == table.c[name], later.c.kind == table.c.kind, later.c.id > table.c.id, *conditions)
        return select(later.c.id).where(*same_name, later.c.host_only.is_(False), counts).exists()

    is_named = is_named_local_row(table)
    by_name = and_(not_(is_named), followed("name"))
    by_host = and_(table.c.kind == LOCAL, not_(is_named), followed("hostname", not_(is_named_local_row(later))))
    return not_(or_(by_name, followed("engine_name"), by_host))


def _holds(
    connection: Connection, column: Any, bracket: str, write_entry: Callable[[Callable[[str], str]], str]
) -> Any:
    """Match JSON objects or arrays that hold an entry.

    The text is searched, which works on every database. An entry follows the opening bracket or a comma; inside a
    string neither can precede an unescaped quotation mark.

    :param write_entry: returns the entry's text, given the function that writes one string
    """
    dialect = connection.dialect.name
    # MySQL normalizes JSON and does not escape letters; the other databases keep Python's text.
    texts = [write_entry(json.dumps)]
    if dialect == "mysql":
        texts.append(write_entry(lambda value: json.dumps(value, ensure_ascii=False)))
    text_type: Any = LargeBinary if dialect == "mysql" else Text
    stored = cast(column, text_type)
    find_position = func.strpos if dialect == "postgresql" else func.instr
    return or_(
        *(find_position(stored, separator + text) > 0 for text in dict.fromkeys(texts) for separator in (bracket, ", "))
    )


def _order(order_by: str, freshness: SourceFreshness) -> list[Any]:
    name = order_by.removeprefix("-")
    if name not in WORKER_ORDERS:
        raise ValueError(f"workers cannot be ordered by {order_by}")
    # Row IDs are assigned in the order of registration.
    columns = {"registered_at": worker.c.id, "state": shown_state(freshness)}
    column = columns.get(name, worker.c[name])
    ordered = column.desc() if order_by.startswith("-") else column.asc()
    if name == "registered_at":
        return [ordered]
    missing = [column.is_(None)] if name in ("state", "running") else []
    return [*missing, ordered, worker.c.id.desc()]


# --- rows ------------------------------------------------------------------------------------------------------------


def _worker(row: Row[Any], freshness: SourceFreshness) -> WorkerRow:
    state, reason = state_and_reason(row, freshness)
    return WorkerRow(
        ref=row.id,
        worker_id=row.worker_id,
        name=row.name,
        engine_name=row.engine_name,
        kind=row.kind,
        hostname=row.hostname,
        pid=row.pid,
        host_only=row.host_only,
        state=state,
        state_reason=reason,
        availability=row.availability,
        queues=None if row.queues is None else tuple(row.queues),
        concurrency=row.concurrency,
        running=row.running,
        started_at=utc(row.started_at),
        registered_at=row.registered_at.astimezone(timezone.utc),
        last_seen_at=row.last_seen_at.astimezone(timezone.utc),
        ended_at=utc(row.ended_at),
        labels=row.labels,
        resources=row.resources,
        versions=row.versions,
        is_report_only=row.kind in SOURCE_KINDS
        and not row.host_only
        and row.reported_id is not None
        and row.engine_heartbeat_at is None,
        clock_ahead=_clock_ahead(row),
    )


def _clock_ahead(row: Row[Any]) -> timedelta | None:
    """Return how far the start by the worker's clock is ahead of the start by the database's.

    The worker reports its start after it has imported all it needs, some seconds after its process started. Worker
    sources other than Celery take the start from a worker's or scheduler's clock too.
    """
    if row.kind != "celery" or row.reported_id is None or row.started_at is None or row.engine_started_at is None:
        return None
    ahead: timedelta = row.started_at - row.engine_started_at
    return ahead


def _change(row: Row[Any]) -> WorkerChange:
    return WorkerChange(
        changed_at=row.changed_at.astimezone(timezone.utc),
        state=row.state,
        availability=row.availability,
        reason=row.reason,
        changed_by=row.changed_by,
    )
