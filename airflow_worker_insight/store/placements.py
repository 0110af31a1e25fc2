"""Read and write what is placed: the view that all schedulers of a deployment share.

A placement is written before the task is sent, so that the other schedulers count it, and takes one of its worker's
places until the try has ended. When the Dag run is reconciled the reason is copied to the try itself, in two bytes. The
closed placement stays beside it for its line of explanation: for :data:`KEPT_FOR`, :data:`MOST_KEPT` of them at most.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import timedelta, timezone
from operator import itemgetter
from typing import TYPE_CHECKING

from sqlalchemy import and_, bindparam, delete, func, or_, select, update
from sqlalchemy.dialects import mysql, sqlite

from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.attempts import lost_tries
from airflow_worker_insight.domain.filters import PLACED, WAITS, EveryDag
from airflow_worker_insight.domain.keys import TryKey, run_key, task_key
from airflow_worker_insight.domain.limits import MAX_TOTAL
from airflow_worker_insight.domain.reasons import WAITING
from airflow_worker_insight.domain.states import QUEUED
from airflow_worker_insight.store import airflow_history
from airflow_worker_insight.store.attempts.search import can_be_ids
from airflow_worker_insight.store.dialects import in_list, in_rows, upsert_many
from airflow_worker_insight.store.tables import NO_WORKER, attempt, placement, worker

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from typing import Any

    from sqlalchemy.engine import Connection, Row

    from airflow_worker_insight.domain.attempts import AirflowTry, DagRunRef
    from airflow_worker_insight.domain.filters import PlacementFilter
    from airflow_worker_insight.domain.keys import RowKey


BATCH = 500
"""Rows that one statement reads or changes by their keys."""

EARLIER_TRIES = 20
"""How many tries are looked back for workers that failed a task instance."""

KEPT_FOR = timedelta(days=30)
"""How long the placement of a try that has ended is kept, for its line of explanation."""

MOST_KEPT = 100_000
"""How many of them are kept at most, the latest: some 40 MB."""

MOST_TRIMMED = 5_000
"""How many :func:`trim` removes at once."""

UNAFFECTED_STATES = frozenset({"success", "skipped", "removed", "deferred", "up_for_reschedule"})
"""States of an earlier try that say nothing against the worker that ran it."""

PLACES_TAKEN = (QUEUED, "running", "restarting")
"""Airflow's states of a try that takes a place at its worker."""


SAYS_IT_WAITS = "waits: "
"""What the line of a try that waits begins with."""

_KEY = tuple(column.name for column in placement.primary_key)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a try was placed, or that it waits. Times are aware UTC."""

    key: TryKey
    reason: str
    """One of :data:`~.reasons.REASONS`."""
    detail: str
    """The same in one line, with who was left out."""
    worker_ref: int | None = None
    own_queue: str | None = None
    """The worker's own queue that it was sent to."""
    placed_at: datetime | None = None
    """When it is written, unless it says otherwise."""
    is_open: bool = True

    @property
    def waits(self) -> bool:
        """Whether it waits for a worker, so that no message of it was ever sent."""
        return self.reason in WAITING

    @property
    def sentence(self) -> str:
        """The line without the word that says again that it waits."""
        return self.detail.removeprefix(SAYS_IT_WAITS)


def write(connection: Connection, placements: Sequence[Placement], *, now: datetime) -> None:
    """Write placements, in the place of what was written of these tries before. The caller owns the transaction."""
    if not placements:
        return
    # In one order, so that two who write the same rows never wait for each other.
    rows = sorted((_row(one, now) for one in placements), key=itemgetter(*_KEY))
    if connection.dialect.name == "postgresql":
        upsert_many(connection, placement, rows)
    else:
        connection.execute(_upsert(connection.dialect.name), rows)


def _row(one: Placement, now: datetime) -> dict[str, Any]:
    return {
        "run_key": one.key.run_key,
        "task_key": one.key.task_key,
        "try_number": one.key.try_number,
        "map_index": one.key.map_index,
        "worker_ref": one.worker_ref,
        "is_open": one.is_open,
        "reason": one.reason,
        "placed_at": one.placed_at or now,
        "own_queue": one.own_queue,
        "detail": one.detail,
        "dag_id": one.key.dag_id,
        "run_id": one.key.run_id,
        "task_id": one.key.task_id,
    }


def _upsert(dialect: str) -> Any:
    others = [column.name for column in placement.c if column.name not in _KEY]
    if dialect == "mysql":
        my = mysql.insert(placement)
        return my.on_duplicate_key_update({name: my.inserted[name] for name in others})
    lite = sqlite.insert(placement)
    return lite.on_conflict_do_update(index_elements=_KEY, set_={name: lite.excluded[name] for name in others})


def close(connection: Connection, ended: Mapping[TryKey, datetime]) -> None:
    """Write that tries have ended, and take no place any more, that were placed at these times.

    Those that were placed again since are passed by: after a deferral another scheduler may go on with a try before
    this one has heard that it was deferred.
    """
    columns = (*_key(placement), placement.c.placed_at)
    for batch in _batches(sorted((*_digests(key), placed_at) for key, placed_at in ended.items())):
        connection.execute(
            update(placement)
            .where(in_rows(connection, columns, batch), placement.c.is_open.is_(True))
            .values(is_open=False)
        )


def loads(connection: Connection) -> dict[int, int]:
    """Return how many tries are placed on each worker and have not ended, by the row ID of the worker."""
    rows = connection.execute(
        select(placement.c.worker_ref, func.count().label("tries"))
        .where(placement.c.is_open.is_(True), placement.c.worker_ref.is_not(None))
        .group_by(placement.c.worker_ref)
    )
    return {row.worker_ref: int(row.tries) for row in rows}


def open_placements(connection: Connection, *, own_queues: Collection[str] | None = None) -> list[Placement]:
    """Return what is placed or waits, the earliest first.

    :param own_queues: only what was sent to one of these queues
    """
    conditions = [placement.c.is_open.is_(True)]
    if own_queues is not None:
        conditions.append(placement.c.own_queue.in_(sorted(own_queues)))
    rows = connection.execute(select(placement).where(*conditions).order_by(placement.c.placed_at))
    return [_placement(row) for row in rows]


def open_of(connection: Connection, keys: Collection[TryKey]) -> dict[TryKey, Placement]:
    """Return what is placed of these tries, or waits."""
    found: dict[TryKey, Placement] = {}
    for batch in _batches(sorted(map(_digests, keys))):
        rows = connection.execute(
            select(placement).where(in_rows(connection, _key(placement), batch), placement.c.is_open.is_(True))
        )
        found |= {one.key: one for one in map(_placement, rows)}
    return found


def own_queues(connection: Connection) -> dict[str, set[int]]:
    """Return the workers' own queues to which something was sent that has not ended, with the workers' row IDs."""
    found: dict[str, set[int]] = defaultdict(set)
    rows = connection.execute(
        select(placement.c.own_queue, placement.c.worker_ref)
        .where(placement.c.is_open.is_(True), placement.c.own_queue.is_not(None))
        .distinct()
    )
    for row in rows:
        found[row.own_queue].add(row.worker_ref or NO_WORKER)
    return dict(found)


def of_task_instance(connection: Connection, key: TryKey) -> dict[int, Placement]:
    """Return what is known of the placing of each try of a task instance, by the try's number."""
    run = metadata_database.dag_run_table()
    same_run = (run.c.dag_id == placement.c.dag_id, run.c.run_id == placement.c.run_id)
    rows = connection.execute(
        select(placement, airflow_history.run_began(run).label("run_began_at"))
        .select_from(placement.outerjoin(run, and_(*same_run)))
        .where(placement.c.run_key == key.run_key, placement.c.task_key == key.task_key)
    )
    # What was placed for a deleted Dag run of that name says nothing of this one.
    return {
        row.try_number: _placement(row)
        for row in rows
        if row.dag_id == key.dag_id and airflow_history.is_of_run(row.placed_at, row.run_began_at)
    }


def reasons(connection: Connection, keys: Collection[TryKey]) -> dict[TryKey, Why]:
    """Return why these tries were placed where they were, or wait, of those of whose placing it is still written."""
    asked = {_digests(key): key for key in keys}
    found: dict[TryKey, Why] = {}
    run = metadata_database.dag_run_table()
    same_run = (run.c.dag_id == placement.c.dag_id, run.c.run_id == placement.c.run_id)
    for batch in _batches(sorted(asked)):
        rows = connection.execute(
            select(
                *_key(placement),
                *(placement.c.reason, placement.c.detail, placement.c.placed_at),
                airflow_history.run_began(run).label("run_began_at"),
            )
            .select_from(placement.outerjoin(run, and_(*same_run)))
            .where(in_rows(connection, _key(placement), batch))
        )
        found |= {
            asked[row.run_key, row.task_key, row.try_number]: Why(row.reason, row.detail)
            for row in rows
            if airflow_history.is_of_run(row.placed_at, row.run_began_at)
        }
    return found


@dataclass(frozen=True, slots=True)
class Why:
    """Why a try was placed where it was, or waits."""

    reason: str
    detail: str | None = None
    """The whole line, for as long as it is kept."""


def sentence(detail: str | None) -> str | None:
    """Return a line without the word that says again that a try waits."""
    return None if detail is None else detail.removeprefix(SAYS_IT_WAITS)


def sentences(connection: Connection, keys: Collection[RowKey]) -> dict[RowKey, str]:
    """Return why tries were placed where they were in a sentence, of recorded ones whose Dag run is reconciled."""
    found: dict[RowKey, str] = {}
    for batch in _batches(sorted(keys)):
        rows = connection.execute(
            select(*_key(placement), placement.c.detail).where(in_rows(connection, _key(placement), batch))
        )
        found |= {(row.run_key, row.task_key, row.try_number): sentence(row.detail) or "" for row in rows}
    return found


def why(connection: Connection, key: TryKey, kept: Mapping[int, Why]) -> dict[int, Why]:
    """Return what is known of the placing of each try of a task instance, by the try's number.

    :param kept: what is kept with its recorded tries
    """
    return {
        **kept,
        **{number: Why(one.reason, one.detail) for number, one in of_task_instance(connection, key).items()},
    }


def open_on(connection: Connection, ref: int) -> int:
    """Return how many tries of all Dags are placed on a worker and have not ended."""
    return int(
        connection.execute(
            select(func.count())
            .select_from(placement)
            .where(placement.c.is_open.is_(True), placement.c.worker_ref == ref)
        ).scalar_one()
    )


def placed_on(connection: Connection, ref: int, *, dag_ids: Collection[str], limit: int) -> tuple[list[Placement], int]:
    """Return what is placed on a worker and waits there for its start, the earliest first, and how much there is.

    :param dag_ids: the Dags the reader may see; nothing of any other Dag is listed or counted
    """
    rows = connection.execute(
        select(placement)
        .where(placement.c.is_open.is_(True), placement.c.worker_ref == ref)
        .order_by(placement.c.placed_at)
    ).all()
    readable = frozenset(dag_ids)
    placed = [_placement(row) for row in rows if row.dag_id in readable]
    states = airflow_history.tries_of_task_instances(connection, [one.key for one in placed])
    waiting = [one for one in placed if one.key in states and states[one.key].state == "queued"]
    return waiting[:limit], len(waiting)


@dataclass(frozen=True, slots=True)
class ListedPlacement:
    """A try that waits for a worker or was placed and has not ended, with what Airflow and the registry know of it."""

    placement: Placement
    try_state: str
    queue: str
    worker_id: str | None = None
    worker_name: str | None = None

    @property
    def state(self) -> str:
        """One of :data:`.filters.LISTED_STATES`."""
        return WAITS if self.placement.waits else PLACED


def find(
    connection: Connection,
    filters: PlacementFilter,
    *,
    dag_ids: Collection[str] | EveryDag,
    limit: int,
    offset: int,
) -> tuple[list[ListedPlacement], int]:
    """Return a page of what waits or is placed, the earliest first, and how much there is, up to :data:`MAX_TOTAL`.

    Only what Airflow still counts as queued or running is listed: a scheduler may not have heard of an end yet.

    :param dag_ids: the Dags the reader may see; nothing of any other Dag is listed or counted
    """
    readable = None if isinstance(dag_ids, EveryDag) else frozenset(dag_ids)
    if readable is not None and filters.dag_id is not None:
        readable &= {filters.dag_id}
    if readable == frozenset() or not can_be_ids(connection, filters.dag_id, filters.run_id, filters.task_id):
        return [], 0
    ti = metadata_database.task_instance_table()
    names = ("dag_id", "run_id", "task_id", "map_index", "try_number")
    same = and_(*(ti.c[name] == placement.c[name] for name in names))
    rows = placement.join(ti, same).outerjoin(worker, worker.c.id == placement.c.worker_ref)
    waits = placement.c.reason.in_(WAITING)
    conditions = [
        placement.c.is_open.is_(True),
        ti.c.state.in_(PLACES_TAKEN),
        # What runs does not wait, whatever was written of it.
        or_(~waits, ti.c.state == QUEUED),
        *_in_dags(connection, readable),
        *(
            placement.c[name] == getattr(filters, name)
            for name in ("dag_id", "run_id", "task_id", "reason")
            if getattr(filters, name) is not None
        ),
    ]
    if filters.state is not None:
        conditions.append(waits if filters.state == WAITS else ~waits)
    if filters.try_state is not None:
        conditions.append(ti.c.state == filters.try_state)
    if filters.worker_id is not None:
        conditions.append(or_(worker.c.worker_id == filters.worker_id, worker.c.reported_id == filters.worker_id))
    if filters.worker_name is not None:
        conditions.append(or_(worker.c.name == filters.worker_name, worker.c.engine_name == filters.worker_name))
    found = connection.execute(
        select(
            placement,
            ti.c.state.label("try_state"),
            ti.c.queue.label("queue"),
            worker.c.worker_id,
            worker.c.name.label("worker_name"),
        )
        .select_from(rows)
        .where(*conditions)
        .order_by(placement.c.placed_at, *_key(placement))
        .limit(limit)
        .offset(offset)
    ).all()
    total = offset + len(found)
    if len(found) == limit or (offset and not found):
        some = select(placement.c.try_number).select_from(rows).where(*conditions).limit(MAX_TOTAL).subquery()
        total = int(connection.execute(select(func.count()).select_from(some)).scalar_one())
    return [
        ListedPlacement(_placement(row), row.try_state, row.queue, row.worker_id, row.worker_name) for row in found
    ], total


def _in_dags(connection: Connection, dag_ids: frozenset[str] | None) -> list[Any]:
    if dag_ids is None:
        return []
    # Not the bare column, as in lists of attempts: what is open is little, and comes first.
    readable = sorted(dag_id for dag_id in dag_ids if can_be_ids(connection, dag_id))
    return [in_list(connection, func.coalesce(placement.c.dag_id, ""), readable)]


def failed_on(connection: Connection, keys: Collection[TryKey]) -> dict[TryKey, frozenset[str]]:
    """Return for each of these tries the names of the workers that failed the task instance in an earlier one.

    A try that was killed before it could report is known by where it was placed. One that has moved on after a deferral
    counts against the worker that ran it last.

    :param keys: tries that are about to start; first tries have none before them and cost nothing
    """
    earlier = {
        TryKey(key.dag_id, key.run_id, key.task_id, key.map_index, number): key
        for key in keys
        for number in range(max(1, key.try_number - EARLIER_TRIES), key.try_number)
    }
    if not earlier:
        return {}
    # By Airflow's own tries: a Dag run that was deleted and made again has the names of what failed before.
    tries = {
        row_key: one for row_key, one in airflow_history.tries_by_row(connection, keys).items() if one.key in earlier
    }
    known = {one.key: one for one in tries.values()}
    ran: dict[TryKey, tuple[tuple[Any, ...], str]] = {}
    for batch in _batches(sorted(tries)):
        for row in connection.execute(_workers_of(connection, batch, attempt, attempt.c.ordinal)):
            before = tries[row.run_key, row.task_key, row.try_number].key
            ran[before] = max(ran.get(before, ((0, row.place), row.name)), ((1, row.place), row.name))
    by_name = {_digests(key): key for key in known}
    for batch in _batches(sorted(by_name)):
        for row in connection.execute(_workers_of(connection, batch, placement, placement.c.try_number)):
            # What it was sent to is a guess beside what it said itself.
            ran.setdefault(by_name[row.run_key, row.task_key, row.try_number], ((0, 0), row.name))
    found: dict[TryKey, set[str]] = defaultdict(set)
    for before, (_, name) in ran.items():
        if known[before].state not in UNAFFECTED_STATES:
            found[earlier[before]].add(name)
    return {key: frozenset(names) for key, names in found.items()}


def _workers_of(connection: Connection, keys: Sequence[RowKey], table: Any, place: Any) -> Any:
    """Select the workers of tries; of several of one try the one with the greatest ``place`` was the last."""
    name = func.coalesce(worker.c.engine_name, worker.c.name).label("name")
    return (
        select(*_key(table), place.label("place"), name)
        .select_from(table.join(worker, worker.c.id == table.c.worker_ref))
        .where(in_rows(connection, _key(table), keys))
    )


@dataclass(frozen=True, slots=True)
class Wanted:
    """What Airflow keeps of a try that is to be placed."""

    key: TryKey
    state: str | None
    queue: str
    pool: str
    executor_config: Any


def wanted(connection: Connection, keys: Collection[TryKey]) -> dict[TryKey, Wanted]:
    """Ask Airflow for the queue, pool and executor's configuration of tries that have not been superseded."""
    table = metadata_database.task_instance_table()
    names = tuple(table.c[name] for name in ("dag_id", "run_id", "task_id", "map_index"))
    asked = set(keys)
    found: dict[TryKey, Wanted] = {}
    for batch in _batches(sorted({(key.dag_id, key.run_id, key.task_id, key.map_index) for key in asked})):
        rows = connection.execute(
            select(
                *names, table.c.try_number, table.c.state, table.c.queue, table.c.pool, table.c.executor_config
            ).where(in_rows(connection, names, batch))
        )
        for row in rows:
            key = TryKey(row.dag_id, row.run_id, row.task_id, row.map_index, row.try_number)
            found[key] = Wanted(key, row.state, row.queue, row.pool, row.executor_config)
    return {key: one for key, one in found.items() if key in asked}


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep found: places that were given back, and tries that run on workers where nobody placed them."""

    closed: int
    unplaced: Mapping[int, int]


def sweep(connection: Connection, running: Mapping[TryKey, int], *, settled: datetime) -> Swept:
    """Give back the places of tries that neither wait nor run any more, as far as Airflow knows.

    A scheduler gives back the places of its own; this is for those whose scheduler died.

    :param running: see :func:`.running.running_on`
    :param settled: what was placed later is left alone
    """
    placed = open_placements(connection)
    over = _have_ended(connection, [one for one in placed if one.placed_at is not None and one.placed_at < settled])
    close(connection, over)
    known = {one.key for one in placed if one.worker_ref is not None}
    return Swept(len(over), Counter(ref for key, ref in running.items() if key not in known))


def _have_ended(connection: Connection, placed: Sequence[Placement]) -> dict[TryKey, datetime]:
    """Return when those of these tries were placed that neither wait nor run any more, as far as Airflow knows."""
    states = airflow_history.tries_of_task_instances(connection, [one.key for one in placed])
    return {
        one.key: one.placed_at
        for one in placed
        if one.placed_at is not None and (one.key not in states or states[one.key].state not in PLACES_TAKEN)
    }


def keep(connection: Connection, runs: Collection[DagRunRef], tries: Collection[AirflowTry]) -> None:
    """Keep with each recorded try of these Dag runs why it was placed, and close what has ended.

    What is closed stays for its line of explanation, from now on by the key of the recorded try: the names may come
    again.

    :param tries: all tries that Airflow has of them
    """
    keys = sorted({run_key(run.dag_id, run.run_id) for run in runs})
    if connection.execute(select(placement.c.run_key).where(placement.c.run_key.in_(keys)).limit(1)).first() is None:
        return
    # A Dag run may end before its scheduler has heard of the end of its last try.
    close(connection, _have_ended(connection, _open_of_runs(connection, keys)))
    placed, of_deleted_runs = _placed_by_name(connection, runs)
    rows: dict[str, list[RowKey]] = defaultdict(list)
    moved: dict[RowKey, RowKey] = {}
    for one in (*tries, *lost_tries(tries)):
        row = placed.get(_digests(one.key))
        if row is not None:
            rows[row.reason] += one.row_keys
            if not row.is_open:
                moved[_digests(one.key)] = one.row_keys[0]
    for reason, row_keys in rows.items():
        for batch in _batches(sorted(row_keys)):
            connection.execute(
                update(attempt).where(in_rows(connection, _key(attempt), batch)).values(placement=reason)
            )
    # What Airflow does not have any more goes, and what is to be replaced.
    left = [key for key, row in placed.items() if not row.is_open and key not in moved] + of_deleted_runs
    for batch in _batches(sorted({*left, *moved.values()})):
        connection.execute(
            delete(placement).where(in_rows(connection, _key(placement), batch), placement.c.is_open.is_(False))
        )
    if moved:
        is_it = [column == bindparam(f"old_{column.name}") for column in _key(placement)]
        connection.execute(
            update(placement).where(*is_it, placement.c.is_open.is_(False)).values(task_key=bindparam("instance")),
            [
                {"old_run_key": old[0], "old_task_key": old[1], "old_try_number": old[2], "instance": new[1]}
                for old, new in sorted(moved.items())
            ],
        )


def _placed_by_name(connection: Connection, runs: Collection[DagRunRef]) -> tuple[dict[RowKey, Row[Any]], list[RowKey]]:
    """Return what was placed for these Dag runs by names, and the keys of what was for deleted runs of these names."""
    began = {run_key(run.dag_id, run.run_id): run.began_at for run in runs}
    placed: dict[RowKey, Row[Any]] = {}
    of_deleted: list[RowKey] = []
    for row in connection.execute(select(placement).where(placement.c.run_key.in_(sorted(began)))):
        key = (row.run_key, row.task_key, row.try_number)
        if row.task_key != task_key(row.task_id, row.map_index):
            continue
        if airflow_history.is_of_run(row.placed_at, began[row.run_key]):
            placed[key] = row
        else:
            of_deleted.append(key)
    return placed, of_deleted


def _open_of_runs(connection: Connection, keys: Sequence[int]) -> list[Placement]:
    rows = connection.execute(select(placement).where(placement.c.is_open.is_(True), placement.c.run_key.in_(keys)))
    return [_placement(row) for row in rows]


def trim(connection: Connection, *, now: datetime) -> int:
    """Remove a batch of what was kept for its line only, and is too old or too much; return how many.

    Of a Dag run that has not ended nothing is removed: its tries do not have their reasons yet.
    """
    closed = select(func.count()).select_from(placement).where(placement.c.is_open.is_(False))
    too_many = connection.execute(closed).scalar_one() - MOST_KEPT
    run = metadata_database.dag_run_table()
    goes_on = select(run.c.id).where(
        run.c.dag_id == placement.c.dag_id, run.c.run_id == placement.c.run_id, run.c.end_date.is_(None)
    )
    found = select(*_key(placement)).where(placement.c.is_open.is_(False), ~goes_on.correlate(placement).exists())
    if too_many > 0:
        found = found.order_by(placement.c.placed_at).limit(min(too_many, MOST_TRIMMED))
    else:
        found = found.where(placement.c.placed_at < now - KEPT_FOR).limit(MOST_TRIMMED)
    keys = sorted(tuple(row) for row in connection.execute(found))
    for batch in _batches(keys):
        connection.execute(
            delete(placement).where(in_rows(connection, _key(placement), batch), placement.c.is_open.is_(False))
        )
    return len(keys)


def forget(connection: Connection, older_than: datetime) -> None:
    """Remove what was placed before a time and has ended."""
    connection.execute(delete(placement).where(placement.c.placed_at < older_than, placement.c.is_open.is_(False)))


def rename_worker(connection: Connection, old: int, new: int) -> None:
    """Write that what was placed on a worker's row is placed on another row of the same worker."""
    connection.execute(update(placement).where(placement.c.worker_ref == old).values(worker_ref=new))


def _placement(row: Row[Any]) -> Placement:
    return Placement(
        key=TryKey(row.dag_id, row.run_id, row.task_id, row.map_index, row.try_number),
        reason=row.reason,
        detail=row.detail,
        worker_ref=row.worker_ref,
        own_queue=row.own_queue,
        placed_at=row.placed_at.astimezone(timezone.utc),
        is_open=row.is_open,
    )


def _key(table: Any) -> tuple[Any, ...]:
    return table.c.run_key, table.c.task_key, table.c.try_number


def _digests(key: TryKey) -> RowKey:
    """Return what a try is placed by: its names."""
    return key.run_key, key.task_key, key.try_number


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    known = list(items)
    for start in range(0, len(known), BATCH):
        yield known[start : start + BATCH]
