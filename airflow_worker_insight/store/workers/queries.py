"""Read the fleet: workers, how they fared, and Airflow's other services.

What a worker's row says was true when the fleet was last looked at. Whether that still counts is decided here, so that
pages, the REST API and the command never show a state that nobody has checked for long.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timezone
from typing import TYPE_CHECKING

from sqlalchemy import LargeBinary, Text, and_, case, cast, func, not_, or_, select

from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.domain.filters import WORKER_ORDERS
from airflow_worker_insight.domain.limits import MAX_TOTAL
from airflow_worker_insight.domain.names import is_named_local
from airflow_worker_insight.domain.states import (
    AVAILABILITIES,
    AVAILABLE,
    ENGINE_KINDS,
    LOCAL,
    ONLINE,
    QUARANTINED,
    UNRESPONSIVE,
    engine_of,
)
from airflow_worker_insight.domain.workers import Change, WorkerRow
from airflow_worker_insight.store.dialects import disable_jit, in_list
from airflow_worker_insight.store.leases import LOOK_TAKES
from airflow_worker_insight.store.tables import change, worker
from airflow_worker_insight.store.workers.freshness import (
    LIVE,
    NOBODY_LOOKS,
    Looks,
    in_states,
    shown_state,
    state_and_reason,
)
from airflow_worker_insight.store.workers.names import are_called, are_named_local, is_known_to_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from datetime import datetime, timedelta
    from typing import Any

    from sqlalchemy.engine import Connection, Row

    from airflow_worker_insight.domain.filters import WorkerFilter


MAX_CANDIDATES = 2000
"""Workers that are read by their row IDs once a filter was found to match no more."""


# --- one worker ------------------------------------------------------------------------------------------------------


def get_worker(connection: Connection, worker_id: str) -> WorkerRow | None:
    """Return a worker by its ID or by the one that its own processes report, however long it has been gone."""
    mine = worker.c.reported_id == worker_id
    # Of a worker that had two rows, both may bear the ID: its reports are found at the one that stays.
    row = connection.execute(
        select(worker).where(or_(worker.c.worker_id == worker_id, mine)).order_by(case((mine, 0), else_=1)).limit(1)
    ).first()
    return None if row is None else _with_strictest(connection, [_worker(row, Looks.of(connection))])[0]


def get_workers(connection: Connection, worker_ids: Collection[str]) -> dict[str, WorkerRow]:
    """Return those of some workers that are known, by the ID that they are asked for by."""
    if not worker_ids:
        return {}
    rows = connection.execute(select(worker).where(worker.c.worker_id.in_(worker_ids))).all()
    looks = Looks.of(connection)
    found = _with_strictest(connection, [_worker(row, looks) for row in rows])
    return {one.worker_id: one for one in found}


def changes(connection: Connection, one: WorkerRow, *, limit: int) -> list[Change]:
    """Return a worker's history, the latest change first."""
    rows = connection.execute(
        select(change).where(change.c.worker_ref == one.ref).order_by(change.c.id.desc()).limit(limit)
    )
    return [_change(row) for row in rows]


def decisions(connection: Connection, some: Collection[WorkerRow]) -> dict[int, Change]:
    """Return the decision behind the availability of each of these workers, by ``ref``; a worker without is left out.

    A life that began in quarantine has the decision on a life before it.
    """
    refs = [one.ref for one in some]
    latest = (
        select(func.max(change.c.id))
        .where(change.c.worker_ref.in_(refs), change.c.availability.is_not(None))
        .group_by(change.c.worker_ref)
    )
    found = {row.worker_ref: _change(row) for row in connection.execute(select(change).where(change.c.id.in_(latest)))}
    heirs = [one for one in some if one.availability == QUARANTINED and one.ref not in found]
    return {**found, **_inherited(connection, heirs)}


def _inherited(connection: Connection, heirs: Collection[WorkerRow]) -> dict[int, Change]:
    """Return the latest quarantine of a life before, for those that began with it."""
    if not heirs:
        return {}
    names = {name for one in heirs for name in (one.name, one.engine_name) if name}
    rows = connection.execute(
        select(change, worker.c.kind, worker.c.name, worker.c.engine_name)
        .select_from(change.join(worker, worker.c.id == change.c.worker_ref))
        .where(
            or_(worker.c.name.in_(names), worker.c.engine_name.in_(names)),
            change.c.availability == QUARANTINED,
        )
        .order_by(change.c.id)
    ).all()
    return {
        one.ref: _change(row)
        for one in heirs
        for row in rows
        if row.kind == one.kind
        and (
            (row.engine_name and row.engine_name == one.engine_name)
            or (row.name == one.name and not is_named_local(one.kind, one.engine_name))
        )
    }


def other_lives(connection: Connection, one: WorkerRow, *, limit: int) -> list[WorkerRow]:
    """Return the other lives of a worker's name, the latest first."""
    rows = connection.execute(
        select(worker)
        .where(*_same_name(one), worker.c.id != one.ref, worker.c.host_only.is_(False))
        .order_by(worker.c.id.desc())
        .limit(limit)
    )
    looks = Looks.of(connection)
    return [_worker(row, looks) for row in rows]


def later_life(connection: Connection, one: WorkerRow) -> WorkerRow | None:
    """Return the latest life of a worker's name, unless it is this one.

    Of a worker that its engine has told of, none that only reports tell of: a task may have made it up.
    """
    same = _same_name(one)
    if not one.is_told_only and one.kind in ENGINE_KINDS and one.engine_name is not None:
        same = [*same, is_known_to_engine(worker)]
    row = connection.execute(
        select(worker)
        .where(*same, worker.c.id > one.ref, worker.c.host_only.is_(False))
        .order_by(worker.c.id.desc())
        .limit(1)
    ).first()
    return None if row is None else _worker(row, Looks.of(connection))


def _same_name(one: WorkerRow) -> list[Any]:
    return are_called(one.kind, one.name, one.engine_name, hostname=one.hostname)


# --- lists -----------------------------------------------------------------------------------------------------------


def narrowed(connection: Connection, filters: WorkerFilter) -> WorkerFilter:
    """Return the same filter with the rows that it finds, if they are few.

    No index helps with most filters, and a page asks some ten times: the table is read once, and whether another life
    followed is asked of what was found only. Where many are found that is known soon, and the page stops at so many.
    """
    if filters.refs is not None:
        return filters
    # PostgreSQL would compile these statements for 2 seconds each, because whether another life followed seems dear.
    disable_jit(connection)
    matching = (
        select(worker.c.id).where(*filter_conditions(connection, filters, also_followed=True)).limit(MAX_CANDIDATES + 1)
    )
    refs = connection.execute(matching).scalars().all()
    if len(refs) > MAX_CANDIDATES:
        return filters
    if refs and filters.availability is not None:
        counting = select(worker.c.id).where(in_list(connection, worker.c.id, refs), _is_decided())
        refs = connection.execute(counting).scalars().all()
    return replace(filters, refs=tuple(refs))


def list_workers(
    connection: Connection, filters: WorkerFilter, *, order_by: str = "-registered_at", limit: int, offset: int
) -> tuple[list[WorkerRow], int]:
    """Return a page of workers and how many there are in all, up to :data:`~.limits.MAX_TOTAL`.

    :param order_by: one of :data:`WORKER_ORDERS`, with a ``-`` in front descending; what is not known comes last
    """
    looks = Looks.of(connection)
    filters = narrowed(connection, filters)
    conditions = [*filter_conditions(connection, filters), *in_states(filters.states, looks)]
    within = select(worker.c.id).where(*conditions).limit(MAX_TOTAL).subquery()
    total: int = connection.execute(select(func.count()).select_from(within)).scalar_one()
    order = _order(order_by, looks)
    page = select(worker).where(*conditions).order_by(*order).limit(limit).offset(offset)
    if filters.availability is not None and filters.refs is None and connection.dialect.name == "postgresql":
        refs = _page_of_decided(connection, filters, looks, order, limit=limit, offset=offset)
        page = select(worker).where(in_list(connection, worker.c.id, refs)).order_by(*order)
    rows = connection.execute(page)
    return _with_strictest(connection, [_worker(row, looks) for row in rows]), total


def _page_of_decided(
    connection: Connection, filters: WorkerFilter, looks: Looks, order: Sequence[Any], *, limit: int, offset: int
) -> Sequence[int]:
    """Return the row IDs of a page, where many workers were decided of: PostgreSQL only.

    It would ask of each whether another life followed, and then sort them. An OFFSET has them sorted first.
    """
    names = ["id", "kind", "name", "engine_name", "hostname", "ended_at"]
    names += ["host_only", "reported_id", "engine_heartbeat_at"]
    conditions = [*filter_conditions(connection, filters, also_followed=True), *in_states(filters.states, looks)]
    some = (worker.c[name] for name in names)
    ordered = select(*some).where(*conditions).order_by(*order).offset(0).subquery()
    found = select(ordered.c.id).where(_is_decided(ordered)).limit(limit).offset(offset)
    return list(connection.execute(found).scalars())


def living(connection: Connection, kind: str) -> tuple[list[WorkerRow], str | None]:
    """Return the workers of a kind that have not ended, for an executor, and why nobody knows of them if so.

    What only reports tell of is none: a task may have made it up. What a worker's labels are is known from its first
    try on: until then they are those of the life before it.

    Whoever looks may die while it does. What was seen before counts until another one may look: the executor itself
    asks the workers meanwhile.
    """
    looks = Looks.of(connection, patience=LOOK_TAKES)
    if engine_of(kind) in looks.stale:
        return [], NOBODY_LOOKS
    rows = connection.execute(
        select(worker)
        .where(
            worker.c.kind == kind,
            is_known_to_engine(worker),
            worker.c.ended_at.is_(None),
            worker.c.state.in_(LIVE),
        )
        .order_by(worker.c.id)
    ).all()
    silent = [row.engine_name for row in rows if row.reported_id is None and row.engine_name]
    labels = _latest_labels(connection, kind, silent)
    found = _with_strictest(connection, [_worker(row, looks) for row in rows])
    return [one if one.labels else replace(one, labels=labels.get(one.engine_name or "", {})) for one in found], None


def unavailable_workers(connection: Connection) -> dict[int, str]:
    """Return which of all workers that live people keep from new work, and how, by their row IDs."""
    is_live = worker.c.state.in_(LIVE)
    decided = connection.execute(
        select(worker.c.id, *_of_strictest()).where(
            or_(is_live, and_(worker.c.state.is_(None), worker.c.ended_at.is_(None))),
            worker.c.host_only.is_(False),
            worker.c.availability != AVAILABLE,
        )
    ).all()
    found = {row.id: row.availability for row in decided}
    strictest = _strictest_of(decided)
    for batch in _batches(sorted({name for _, name in strictest})):
        same = select(worker.c.id, worker.c.kind, worker.c.engine_name).where(worker.c.engine_name.in_(batch), is_live)
        for row in connection.execute(same):
            strict = strictest.get((row.kind, row.engine_name), AVAILABLE)
            if strict != AVAILABLE:
                found[row.id] = max(found.get(row.id, AVAILABLE), strict, key=AVAILABILITIES.index)
    return found


def _strictest_of(rows: Iterable[Row[Any]]) -> dict[tuple[str, str], str]:
    """Return the strictest availability of each engine's name: several rows of it may be one worker.

    What only reports tell of decides of no other row: a task may have made it up.
    """
    found: dict[tuple[str, str], str] = {}
    for row in rows:
        if row.engine_name is not None and row.is_known:
            key = (row.kind, row.engine_name)
            found[key] = max(found.get(key, AVAILABLE), row.availability, key=AVAILABILITIES.index)
    return found


def _of_strictest() -> list[Any]:
    """Return the columns that :func:`_strictest_of` goes by."""
    is_known = case((is_known_to_engine(worker), 1), else_=0).label("is_known")
    return [worker.c.kind, worker.c.engine_name, worker.c.availability, is_known]


def _with_strictest(connection: Connection, some: list[WorkerRow]) -> list[WorkerRow]:
    """Give each worker that has not ended the strictest availability of all open rows of its engine's name.

    Those that only reports tell of take it and give none.
    """
    names = sorted({one.engine_name for one in some if one.engine_name and one.ended_at is None})
    decided: list[Row[Any]] = []
    for batch in _batches(names):
        decided += connection.execute(
            select(*_of_strictest()).where(
                worker.c.engine_name.in_(batch),
                worker.c.ended_at.is_(None),
                worker.c.host_only.is_(False),
                worker.c.availability != AVAILABLE,
            )
        ).all()
    strictest = _strictest_of(decided)
    return [
        replace(
            one,
            availability=max(
                one.availability,
                strictest.get((one.kind, one.engine_name or ""), AVAILABLE),
                key=AVAILABILITIES.index,
            ),
        )
        if one.ended_at is None
        else one
        for one in some
    ]


def _batches(names: list[str]) -> Iterable[list[str]]:
    return (names[start : start + 500] for start in range(0, len(names), 500))


def have_answered(connection: Connection, kind: str) -> bool:
    """Return whether a worker of a kind has ever told its engine that it lives."""
    known = select(worker.c.id).where(worker.c.kind == kind, worker.c.engine_heartbeat_at.is_not(None))
    return connection.execute(known.limit(1)).first() is not None


def ended(connection: Connection, kind: str, *, since: datetime, until: datetime) -> list[str]:
    """Return the IDs of the workers of a kind that ended between two times."""
    rows = connection.execute(
        select(worker.c.worker_id).where(
            worker.c.kind == kind, worker.c.host_only.is_(False), worker.c.ended_at.between(since, until)
        )
    )
    return [row.worker_id for row in rows]


def _latest_labels(connection: Connection, kind: str, engine_names: Collection[str]) -> dict[str, Mapping[str, str]]:
    """Return the labels of the latest life of each of these names that has told them."""
    if not engine_names:
        return {}
    latest = (
        select(func.max(worker.c.id))
        .where(
            worker.c.engine_name.in_(engine_names),
            worker.c.kind == kind,
            worker.c.reported_id.is_not(None),
            is_known_to_engine(worker),
        )
        .group_by(worker.c.engine_name)
    )
    rows = connection.execute(select(worker.c.engine_name, worker.c.labels).where(worker.c.id.in_(latest)))
    return {row.engine_name: row.labels for row in rows}


def names(connection: Connection, refs: Collection[int]) -> dict[int, str]:
    """Return what the workers with these row IDs are called."""
    rows = connection.execute(select(worker.c.id, worker.c.name).where(worker.c.id.in_(list(refs))))
    return {row.id: row.name for row in rows}


def filter_conditions(connection: Connection, filters: WorkerFilter, *, also_followed: bool = False) -> list[Any]:
    """Say what is listed, but for the states.

    :param also_followed: with lives that ended and that another one followed, of which no decision counts
    """
    column = worker.c
    if filters.refs is not None:
        return [in_list(connection, column.id, filters.refs)]
    conditions: list[Any] = [column.host_only.is_(False)]
    conditions += [
        column[name] == getattr(filters, name)
        for name in ("kind", "hostname", "availability")
        if getattr(filters, name) is not None
    ]
    if filters.availability is not None and not also_followed:
        conditions.append(_is_decided())
    if filters.name is not None:
        conditions.append(or_(column.name == filters.name, column.engine_name == filters.name))
    if filters.label is not None:
        key, value = filters.label
        conditions.append(_holds(connection, column.labels, "{", lambda dumps: f"{dumps(key)}: {dumps(value)}"))
    if filters.queue is not None:
        queue = filters.queue
        conditions.append(_holds(connection, column.queues, "[", lambda dumps: dumps(queue)))
    if filters.seen_since is not None:
        conditions.append(or_(column.last_seen_at >= filters.seen_since, column.state.in_([ONLINE, UNRESPONSIVE])))
    if filters.last_seen_at_gte is not None:
        conditions.append(column.last_seen_at >= filters.last_seen_at_gte)
    if filters.last_seen_at_lte is not None:
        conditions.append(column.last_seen_at <= filters.last_seen_at_lte)
    if filters.search is not None:
        part = filters.search.lower()
        # IDs are plain, and MySQL refuses to look for other letters in such a column.
        texts = [column.name, column.hostname, *([column.worker_id] if part.isascii() else [])]
        conditions.append(or_(*(func.lower(text).contains(part, autoescape=True) for text in texts)))
    return conditions


def _is_decided(table: Any = worker) -> Any:
    """Say that what was decided of a worker still counts."""
    return or_(table.c.ended_at.is_(None), _is_latest(table))


def _is_latest(table: Any) -> Any:
    """Say that no later life bears a worker's name, as ``are_called``: each is looked up by itself, by its index.

    Of a worker that its engine knows, none that only reports tell of: a task may have made it up.
    """
    later = worker.alias("later")
    counts = or_(not_(is_known_to_engine(table)), is_known_to_engine(later))

    def followed(name: str, *conditions: Any) -> Any:
        same = (later.c[name] == table.c[name], later.c.kind == table.c.kind, later.c.id > table.c.id, *conditions)
        return select(later.c.id).where(*same, later.c.host_only.is_(False), counts).exists()

    is_named = are_named_local(table)
    by_name = and_(not_(is_named), followed("name"))
    by_host = and_(table.c.kind == LOCAL, not_(is_named), followed("hostname", not_(are_named_local(later))))
    return not_(or_(by_name, followed("engine_name"), by_host))


def _holds(connection: Connection, column: Any, bracket: str, written: Callable[[Callable[[str], str]], str]) -> Any:
    """Say that a JSON object or array holds an entry, by its text: the same works on every database.

    An entry follows the opening bracket or a comma; inside a string neither can stand before a bare quotation mark.

    :param written: returns the entry's text, given how one string is written
    """
    dialect = connection.dialect.name
    # MySQL keeps JSON in a form of its own and writes letters as they are; the others keep what Python wrote.
    texts = [written(json.dumps)]
    if dialect == "mysql":
        texts.append(written(lambda value: json.dumps(value, ensure_ascii=False)))
    kind: Any = LargeBinary if dialect == "mysql" else Text
    stored = cast(column, kind)
    place = func.strpos if dialect == "postgresql" else func.instr
    return or_(*(place(stored, before + text) > 0 for text in dict.fromkeys(texts) for before in (bracket, ", ")))


def _order(order_by: str, looks: Looks) -> list[Any]:
    name = order_by.removeprefix("-")
    if name not in WORKER_ORDERS:
        raise ValueError(f"workers cannot be ordered by {order_by}")
    # IDs are given in the order of registration.
    columns = {"registered_at": worker.c.id, "state": shown_state(looks)}
    column = columns.get(name, worker.c[name])
    ordered = column.desc() if order_by.startswith("-") else column.asc()
    if name == "registered_at":
        return [ordered]
    missing = [column.is_(None)] if name in ("state", "running") else []
    return [*missing, ordered, worker.c.id.desc()]


# --- rows ------------------------------------------------------------------------------------------------------------


def _worker(row: Row[Any], looks: Looks) -> WorkerRow:
    state, reason = state_and_reason(row, looks)
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
        is_told_only=row.kind in ENGINE_KINDS
        and not row.host_only
        and row.reported_id is not None
        and row.engine_heartbeat_at is None,
        clock_ahead=_clock_ahead(row),
    )


def _clock_ahead(row: Row[Any]) -> timedelta | None:
    """Compare the start of the worker's process by its own clock with its start by the database's.

    The worker says that it started when it had imported all it needs, some seconds after its process. Of other engines
    than Celery the start is by a clock of the worker's too, or of a scheduler's.
    """
    if row.kind != "celery" or row.reported_id is None or row.started_at is None or row.engine_started_at is None:
        return None
    ahead: timedelta = row.started_at - row.engine_started_at
    return ahead


def _change(row: Row[Any]) -> Change:
    return Change(
        changed_at=row.changed_at.astimezone(timezone.utc),
        state=row.state,
        availability=row.availability,
        reason=row.reason,
        changed_by=row.changed_by,
    )
