"""Placements: where each try was sent and why, shared by all schedulers of a deployment.

An executor writes a placement before it sends the task, so that the other schedulers count it. The placement takes one
of its worker's slots until the try has ended. When the Dag run is reconciled, the reason is copied to the attempt, in
two bytes. The closed placement stays for its explanation, for :data:`RETENTION`, and at most :data:`MAX_CLOSED` stay.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import timedelta, timezone
from operator import itemgetter
from typing import TYPE_CHECKING

from sqlalchemy import and_, bindparam, delete, func, or_, select, update

from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.attempts import lost_tries
from airflow_worker_insight.domain.filters import AllDags, PlacementState
from airflow_worker_insight.domain.keys import TryKey, run_key, task_key
from airflow_worker_insight.domain.limits import MAX_TOTAL
from airflow_worker_insight.domain.reasons import WAITING_REASONS
from airflow_worker_insight.domain.states import QUEUED
from airflow_worker_insight.store import airflow_history
from airflow_worker_insight.store.attempts.search import can_be_ids
from airflow_worker_insight.store.batches import batches
from airflow_worker_insight.store.dialects import in_list, in_rows, upsert_many
from airflow_worker_insight.store.tables import NO_WORKER, attempt, key_columns, placement, worker

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime
    from typing import Any

    from sqlalchemy.engine import Connection, Row

    from airflow_worker_insight.domain.attempts import AirflowTry, DagRunRef
    from airflow_worker_insight.domain.filters import PlacementFilter
    from airflow_worker_insight.domain.keys import RowKey


BATCH = 500
"""Number of rows that one statement reads or changes by key."""

EARLIER_TRIES = 20
"""Number of earlier tries that are searched for workers that failed a task instance."""

RETENTION = timedelta(days=30)
"""How long a closed placement is kept for its explanation."""

MAX_CLOSED = 100_000
"""Maximum number of closed placements; the latest are kept. They take some 40 MB."""

MAX_PRUNED = 5_000
"""Maximum number of placements that one call of :func:`prune` deletes."""

BLAMELESS_STATES = frozenset({"success", "skipped", "removed", "deferred", "up_for_reschedule"})
"""States of an earlier try that do not count against the worker that ran it."""

SLOT_STATES = (QUEUED, "running", "restarting")
"""Airflow's states of a try that takes a slot of its worker."""


WAITING_PREFIX = "waits: "
"""Prefix of the explanation of a try that waits for a worker."""

_KEY = tuple(column.name for column in placement.primary_key)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a try was placed, or that it waits for a worker. Times are aware UTC."""

    key: TryKey
    reason: str
    """One of :class:`~.reasons.PlacementReason`."""
    detail: str
    """Explanation of the reason in one line, with the excluded workers."""
    worker_ref: int | None = None
    dedicated_queue: str | None = None
    """The worker's dedicated queue that the try was sent to."""
    placed_at: datetime | None = None
    """When the try was placed; by default the time that :func:`write` is given."""
    is_open: bool = True

    @property
    def waits(self) -> bool:
        """Whether the try waits for a worker; no message was sent for it yet."""
        return self.reason in WAITING_REASONS

    @property
    def sentence(self) -> str:
        """The explanation without :data:`WAITING_PREFIX`."""
        return self.detail.removeprefix(WAITING_PREFIX)


def write(connection: Connection, placements: Sequence[Placement], *, now: datetime) -> None:
    """Insert placements, or replace those of the same tries. The caller owns the transaction."""
    if not placements:
        return
    # In the order of the key: concurrent writers of the same rows cannot deadlock.
    rows = sorted((_row(entry, now) for entry in placements), key=itemgetter(*_KEY))
    upsert_many(connection, placement, rows)


def _row(entry: Placement, now: datetime) -> dict[str, Any]:
    return {
        "run_key": entry.key.run_key,
        "task_key": entry.key.task_key,
        "try_number": entry.key.try_number,
        "map_index": entry.key.map_index,
        "worker_ref": entry.worker_ref,
        "is_open": entry.is_open,
        "reason": entry.reason,
        "placed_at": entry.placed_at or now,
        "own_queue": entry.dedicated_queue,
        "detail": entry.detail,
        "dag_id": entry.key.dag_id,
        "run_id": entry.key.run_id,
        "task_id": entry.key.task_id,
    }


def close(connection: Connection, ended: Mapping[TryKey, datetime]) -> None:
    """Close the placements of tries that have ended, which frees their slots.

    A try that was placed again since stays open: after a deferral another scheduler may continue it before this
    scheduler learns of the deferral.

    :param ended: the tries, each with the time of the placement to close
    """
    columns = (*key_columns(placement), placement.c.placed_at)
    keys = sorted((*key.key_by_names, placed_at) for key, placed_at in ended.items())
    for batch in batches(keys, BATCH):
        connection.execute(
            update(placement)
            .where(in_rows(connection, columns, batch), placement.c.is_open.is_(True))
            .values(is_open=False)
        )


def count_open(connection: Connection) -> dict[int, int]:
    """Return the number of open placements of each worker, by the worker's row ID."""
    rows = connection.execute(
        select(placement.c.worker_ref, func.count().label("tries"))
        .where(placement.c.is_open.is_(True), placement.c.worker_ref.is_not(None))
        .group_by(placement.c.worker_ref)
    )
    return {row.worker_ref: int(row.tries) for row in rows}


def open_placements(connection: Connection, *, dedicated_queues: Collection[str] | None = None) -> list[Placement]:
    """Return the open placements, waiting tries included, the earliest first.

    :param dedicated_queues: return only those that were sent to one of these queues
    """
    conditions = [placement.c.is_open.is_(True)]
    if dedicated_queues is not None:
        conditions.append(placement.c.own_queue.in_(sorted(dedicated_queues)))
    rows = connection.execute(select(placement).where(*conditions).order_by(placement.c.placed_at))
    return [_placement(row) for row in rows]


def open_placements_of(connection: Connection, keys: Collection[TryKey]) -> dict[TryKey, Placement]:
    """Return the open placements of these tries, waiting ones included."""
    by_key: dict[TryKey, Placement] = {}
    for batch in batches(sorted(key.key_by_names for key in keys), BATCH):
        rows = connection.execute(
            select(placement).where(in_rows(connection, key_columns(placement), batch), placement.c.is_open.is_(True))
        )
        by_key |= {entry.key: entry for entry in map(_placement, rows)}
    return by_key


def dedicated_queues(connection: Connection) -> dict[str, set[int]]:
    """Return the dedicated queues of open placements, each with its workers' row IDs."""
    refs: dict[str, set[int]] = defaultdict(set)
    rows = connection.execute(
        select(placement.c.own_queue, placement.c.worker_ref)
        .where(placement.c.is_open.is_(True), placement.c.own_queue.is_not(None))
        .distinct()
    )
    for row in rows:
        refs[row.own_queue].add(row.worker_ref or NO_WORKER)
    return dict(refs)


def of_task_instance(connection: Connection, key: TryKey) -> dict[int, Placement]:
    """Return the placement of each try of a task instance, by try number."""
    run = metadata_database.dag_run_table()
    same_run = (run.c.dag_id == placement.c.dag_id, run.c.run_id == placement.c.run_id)
    rows = connection.execute(
        select(placement, airflow_history.run_start(run).label("run_started_at"))
        .select_from(placement.outerjoin(run, and_(*same_run)))
        .where(placement.c.run_key == key.run_key, placement.c.task_key == key.task_key)
    )
    # Skip the placements of a deleted Dag run of the same name.
    return {
        row.try_number: _placement(row)
        for row in rows
        if row.dag_id == key.dag_id and airflow_history.is_of_run(row.placed_at, row.run_started_at)
    }


def explanations(connection: Connection, keys: Collection[TryKey]) -> dict[TryKey, Explanation]:
    """Return why these tries were placed where they were, or wait.

    :return: the reasons of those tries whose placement is still stored
    """
    requested = {key.key_by_names: key for key in keys}
    by_key: dict[TryKey, Explanation] = {}
    run = metadata_database.dag_run_table()
    same_run = (run.c.dag_id == placement.c.dag_id, run.c.run_id == placement.c.run_id)
    for batch in batches(sorted(requested), BATCH):
        rows = connection.execute(
            select(
                *key_columns(placement),
                *(placement.c.reason, placement.c.detail, placement.c.placed_at),
                airflow_history.run_start(run).label("run_started_at"),
            )
            .select_from(placement.outerjoin(run, and_(*same_run)))
            .where(in_rows(connection, key_columns(placement), batch))
        )
        by_key |= {
            requested[row.run_key, row.task_key, row.try_number]: Explanation(row.reason, row.detail)
            for row in rows
            if airflow_history.is_of_run(row.placed_at, row.run_started_at)
        }
    return by_key


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a try was placed where it was, or waits."""

    reason: str
    detail: str | None = None
    """The explanation, while it is kept: see :attr:`Placement.detail`."""


def sentence(detail: str | None) -> str | None:
    """Return an explanation without :data:`WAITING_PREFIX`."""
    return None if detail is None else detail.removeprefix(WAITING_PREFIX)


def sentences(connection: Connection, keys: Collection[RowKey]) -> dict[RowKey, str]:
    """Return the explanations of attempts whose Dag run is reconciled, as sentences."""
    by_key: dict[RowKey, str] = {}
    for batch in batches(sorted(keys), BATCH):
        rows = connection.execute(
            select(*key_columns(placement), placement.c.detail).where(
                in_rows(connection, key_columns(placement), batch)
            )
        )
        by_key |= {(row.run_key, row.task_key, row.try_number): sentence(row.detail) or "" for row in rows}
    return by_key


def task_instance_explanations(
    connection: Connection, key: TryKey, kept: Mapping[int, Explanation]
) -> dict[int, Explanation]:
    """Return why each try of a task instance was placed where it was, by try number.

    :param kept: the reasons that are stored with its attempts; a stored placement takes precedence
    """
    return {
        **kept,
        **{
            number: Explanation(entry.reason, entry.detail)
            for number, entry in of_task_instance(connection, key).items()
        },
    }


def count_open_on(connection: Connection, ref: int) -> int:
    """Return the number of open placements on a worker, over all Dags."""
    return int(
        connection.execute(
            select(func.count())
            .select_from(placement)
            .where(placement.c.is_open.is_(True), placement.c.worker_ref == ref)
        ).scalar_one()
    )


def placed_on(connection: Connection, ref: int, *, dag_ids: Collection[str], limit: int) -> tuple[list[Placement], int]:
    """Return tries that are placed on a worker but not started, and how many there are.

    :param dag_ids: the Dags that the reader may see; tries of other Dags are neither listed nor counted
    :param limit: maximum number of tries that are returned, the earliest placed first
    """
    rows = connection.execute(
        select(placement)
        .where(placement.c.is_open.is_(True), placement.c.worker_ref == ref)
        .order_by(placement.c.placed_at)
    ).all()
    readable = frozenset(dag_ids)
    placed = [_placement(row) for row in rows if row.dag_id in readable]
    states = airflow_history.tries_of_task_instances(connection, [entry.key for entry in placed])
    queued = [entry for entry in placed if entry.key in states and states[entry.key].state == "queued"]
    return queued[:limit], len(queued)


@dataclass(frozen=True, slots=True)
class ListedPlacement:
    """An open placement, with the try's data from Airflow and the worker's from the registry."""

    placement: Placement
    try_state: str
    queue: str
    worker_id: str | None = None
    worker_name: str | None = None

    @property
    def state(self) -> str:
        """One of :class:`.filters.PlacementState`."""
        return PlacementState.WAITING if self.placement.waits else PlacementState.PLACED


def find(
    connection: Connection,
    filters: PlacementFilter,
    *,
    dag_ids: Collection[str] | AllDags,
    limit: int,
    offset: int,
) -> tuple[list[ListedPlacement], int]:
    """Return a page of open placements, the earliest first, and their total number.

    The total is at most :data:`MAX_TOTAL`. Only tries that Airflow still has as queued or running are listed: their
    scheduler may not have learned yet that they ended.

    :param dag_ids: the Dags that the reader may see; tries of other Dags are neither listed nor counted
    """
    readable = None if isinstance(dag_ids, AllDags) else frozenset(dag_ids)
    if readable is not None and filters.dag_id is not None:
        readable &= {filters.dag_id}
    if readable == frozenset() or not can_be_ids(connection, filters.dag_id, filters.run_id, filters.task_id):
        return [], 0
    ti = metadata_database.task_instance_table()
    names = ("dag_id", "run_id", "task_id", "map_index", "try_number")
    same_try = and_(*(ti.c[name] == placement.c[name] for name in names))
    source = placement.join(ti, same_try).outerjoin(worker, worker.c.id == placement.c.worker_ref)
    waits = placement.c.reason.in_(WAITING_REASONS)
    conditions = [
        placement.c.is_open.is_(True),
        ti.c.state.in_(SLOT_STATES),
        # A try that runs is no longer waiting, even if its placement still says so.
        or_(~waits, ti.c.state == QUEUED),
        *_in_dags(connection, readable),
        *(
            placement.c[name] == getattr(filters, name)
            for name in ("dag_id", "run_id", "task_id", "reason")
            if getattr(filters, name) is not None
        ),
    ]
    if filters.state is not None:
        conditions.append(waits if filters.state == PlacementState.WAITING else ~waits)
    if filters.try_state is not None:
        conditions.append(ti.c.state == filters.try_state)
    if filters.worker_id is not None:
        conditions.append(or_(worker.c.worker_id == filters.worker_id, worker.c.reported_id == filters.worker_id))
    if filters.worker_name is not None:
        conditions.append(or_(worker.c.name == filters.worker_name, worker.c.engine_name == filters.worker_name))
    rows = connection.execute(
        select(
            placement,
            ti.c.state.label("try_state"),
            ti.c.queue.label("queue"),
            worker.c.worker_id,
            worker.c.name.label("worker_name"),
        )
        .select_from(source)
        .where(*conditions)
        .order_by(placement.c.placed_at, *key_columns(placement))
        .limit(limit)
        .offset(offset)
    ).all()
    total = offset + len(rows)
    if len(rows) == limit or (offset and not rows):
        matching = select(placement.c.try_number).select_from(source).where(*conditions).limit(MAX_TOTAL).subquery()
        total = int(connection.execute(select(func.count()).select_from(matching)).scalar_one())
    return [
        ListedPlacement(_placement(row), row.try_state, row.queue, row.worker_id, row.worker_name) for row in rows
    ], total


def _in_dags(connection: Connection, dag_ids: frozenset[str] | None) -> list[Any]:
    if dag_ids is None:
        return []
    # Hide the column from indexes, as in lists of attempts: the database should begin with the few open placements.
    readable = sorted(dag_id for dag_id in dag_ids if can_be_ids(connection, dag_id))
    return [in_list(connection, func.coalesce(placement.c.dag_id, ""), readable)]


def failed_on(connection: Connection, keys: Collection[TryKey]) -> dict[TryKey, frozenset[str]]:
    """Return for each try the names of the workers that failed an earlier try of it.

    A try that was killed before it could report counts against the worker it was placed on. A try that moved to another
    worker after a deferral counts against the worker that ran it last.

    :param keys: tries that are about to start; first tries cost nothing, because they have no earlier ones
    """
    earlier = {
        TryKey(key.dag_id, key.run_id, key.task_id, key.map_index, number): key
        for key in keys
        for number in range(max(1, key.try_number - EARLIER_TRIES), key.try_number)
    }
    if not earlier:
        return {}
    # By Airflow's own tries, not by names: a Dag run that was deleted and created again has the same names.
    tries = {
        row_key: airflow_try
        for row_key, airflow_try in airflow_history.tries_by_row(connection, keys).items()
        if airflow_try.key in earlier
    }
    known = {airflow_try.key: airflow_try for airflow_try in tries.values()}
    ran_on: dict[TryKey, tuple[tuple[Any, ...], str]] = {}
    for batch in batches(sorted(tries), BATCH):
        for row in connection.execute(_workers_of(connection, batch, attempt, attempt.c.ordinal)):
            key_before = tries[row.run_key, row.task_key, row.try_number].key
            here = ((1, row.position), row.name)
            ran_on[key_before] = max(ran_on.get(key_before, here), here)
    by_name = {key.key_by_names: key for key in known}
    for batch in batches(sorted(by_name), BATCH):
        for row in connection.execute(_workers_of(connection, batch, placement, placement.c.try_number)):
            # The worker that the try reported takes precedence over the worker it was sent to.
            ran_on.setdefault(by_name[row.run_key, row.task_key, row.try_number], ((0, 0), row.name))
    failed: dict[TryKey, set[str]] = defaultdict(set)
    for key_before, (_, name) in ran_on.items():
        if known[key_before].state not in BLAMELESS_STATES:
            failed[earlier[key_before]].add(name)
    return {key: frozenset(names) for key, names in failed.items()}


def _workers_of(connection: Connection, keys: Sequence[RowKey], table: Any, position: Any) -> Any:
    """Select the workers of tries; the last worker of a try has the greatest ``position``."""
    name = func.coalesce(worker.c.engine_name, worker.c.name).label("name")
    return (
        select(*key_columns(table), position.label("position"), name)
        .select_from(table.join(worker, worker.c.id == table.c.worker_ref))
        .where(in_rows(connection, key_columns(table), keys))
    )


@dataclass(frozen=True, slots=True)
class TryDetails:
    """What Airflow stores of a try that is to be placed."""

    key: TryKey
    state: str | None
    queue: str
    pool: str
    executor_config: Any


def try_details(connection: Connection, keys: Collection[TryKey]) -> dict[TryKey, TryDetails]:
    """Return state, queue, pool and ``executor_config`` of tries that no later try supersedes."""
    table = metadata_database.task_instance_table()
    names = tuple(table.c[name] for name in ("dag_id", "run_id", "task_id", "map_index"))
    requested = set(keys)
    by_key: dict[TryKey, TryDetails] = {}
    for batch in batches(sorted({(key.dag_id, key.run_id, key.task_id, key.map_index) for key in requested}), BATCH):
        rows = connection.execute(
            select(
                *names, table.c.try_number, table.c.state, table.c.queue, table.c.pool, table.c.executor_config
            ).where(in_rows(connection, names, batch))
        )
        for row in rows:
            key = TryKey(row.dag_id, row.run_id, row.task_id, row.map_index, row.try_number)
            by_key[key] = TryDetails(key, row.state, row.queue, row.pool, row.executor_config)
    return {key: details for key, details in by_key.items() if key in requested}


@dataclass(frozen=True, slots=True)
class SweepResult:
    """Result of one sweep."""

    closed: int
    """Number of placements that were closed."""
    unplaced: Mapping[int, int]
    """Number of tries that run on a worker without being placed there, by the worker's row ID."""


def sweep(connection: Connection, running: Mapping[TryKey, int], *, placed_before: datetime) -> SweepResult:
    """Close the placements of tries that Airflow has neither as queued nor as running.

    A scheduler closes its own placements; a sweep closes those whose scheduler died.

    :param running: see :func:`.running.running_on`
    :param placed_before: only placements from before this time are closed
    """
    placed = open_placements(connection)
    ended = _have_ended(
        connection, [entry for entry in placed if entry.placed_at is not None and entry.placed_at < placed_before]
    )
    close(connection, ended)
    known = {entry.key for entry in placed if entry.worker_ref is not None}
    return SweepResult(len(ended), Counter(ref for key, ref in running.items() if key not in known))


def _have_ended(connection: Connection, placed: Sequence[Placement]) -> dict[TryKey, datetime]:
    """Return the tries that Airflow has neither queued nor running, and when each was placed."""
    states = airflow_history.tries_of_task_instances(connection, [entry.key for entry in placed])
    return {
        entry.key: entry.placed_at
        for entry in placed
        if entry.placed_at is not None and (entry.key not in states or states[entry.key].state not in SLOT_STATES)
    }


def copy_reasons(connection: Connection, runs: Collection[DagRunRef], tries: Collection[AirflowTry]) -> None:
    """Copy the placement reasons of Dag runs to their attempts, and close ended placements.

    A closed placement stays for its explanation. It gets the key of the attempt, because a later Dag run may have the
    same names.

    :param tries: all tries that Airflow has of these Dag runs
    """
    keys = sorted({run_key(run.dag_id, run.run_id) for run in runs})
    if connection.execute(select(placement.c.run_key).where(placement.c.run_key.in_(keys)).limit(1)).first() is None:
        return
    # A Dag run may end before its scheduler learns that its last try has ended.
    close(connection, _have_ended(connection, _open_of_runs(connection, keys)))
    placed, of_deleted_runs = _placed_by_name(connection, runs)
    keys_of_reason: dict[str, list[RowKey]] = defaultdict(list)
    moved: dict[RowKey, RowKey] = {}
    for airflow_try in (*tries, *lost_tries(tries)):
        row = placed.get(airflow_try.key.key_by_names)
        if row is not None:
            keys_of_reason[row.reason] += airflow_try.row_keys
            if not row.is_open:
                moved[airflow_try.key.key_by_names] = airflow_try.row_keys[0]
    for reason, row_keys in keys_of_reason.items():
        for batch in batches(sorted(row_keys), BATCH):
            connection.execute(
                update(attempt).where(in_rows(connection, key_columns(attempt), batch)).values(placement=reason)
            )
    # Delete placements whose try Airflow no longer has, and those under the keys that the moved ones get.
    orphaned = [key for key, row in placed.items() if not row.is_open and key not in moved] + of_deleted_runs
    for batch in batches(sorted({*orphaned, *moved.values()}), BATCH):
        connection.execute(
            delete(placement).where(in_rows(connection, key_columns(placement), batch), placement.c.is_open.is_(False))
        )
    if moved:
        has_old_key = [column == bindparam(f"old_{column.name}") for column in key_columns(placement)]
        connection.execute(
            update(placement)
            .where(*has_old_key, placement.c.is_open.is_(False))
            .values(task_key=bindparam("instance")),
            [
                {"old_run_key": old[0], "old_task_key": old[1], "old_try_number": old[2], "instance": new[1]}
                for old, new in sorted(moved.items())
            ],
        )


def _placed_by_name(connection: Connection, runs: Collection[DagRunRef]) -> tuple[dict[RowKey, Row[Any]], list[RowKey]]:
    """Return these Dag runs' placements by key, and the keys of deleted runs' placements.

    Both are stored under the same names; the time of the placement tells them apart.
    """
    began = {run_key(run.dag_id, run.run_id): run.started_at for run in runs}
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


def prune(connection: Connection, *, now: datetime, max_closed: int = MAX_CLOSED) -> int:
    """Delete a batch of closed placements that are too old or too many; return how many.

    The placements of a Dag run that has not ended stay: their reasons are not copied to the attempts yet.
    """
    closed = select(func.count()).select_from(placement).where(placement.c.is_open.is_(False))
    excess = connection.execute(closed).scalar_one() - max_closed
    run = metadata_database.dag_run_table()
    unfinished_run = select(run.c.id).where(
        run.c.dag_id == placement.c.dag_id, run.c.run_id == placement.c.run_id, run.c.end_date.is_(None)
    )
    candidates = select(*key_columns(placement)).where(
        placement.c.is_open.is_(False), ~unfinished_run.correlate(placement).exists()
    )
    if excess > 0:
        candidates = candidates.order_by(placement.c.placed_at).limit(min(excess, MAX_PRUNED))
    else:
        candidates = candidates.where(placement.c.placed_at < now - RETENTION).limit(MAX_PRUNED)
    keys = sorted(tuple(row) for row in connection.execute(candidates))
    for batch in batches(keys, BATCH):
        connection.execute(
            delete(placement).where(in_rows(connection, key_columns(placement), batch), placement.c.is_open.is_(False))
        )
    return len(keys)


def delete_closed_before(connection: Connection, older_than: datetime) -> None:
    """Delete the closed placements of tries that were placed before a time."""
    connection.execute(delete(placement).where(placement.c.placed_at < older_than, placement.c.is_open.is_(False)))


def rename_worker(connection: Connection, old: int, new: int) -> None:
    """Move the placements of one worker row to another row of the same worker.

    :param old: ID of the row that the placements have now
    :param new: ID of the row that they get
    """
    connection.execute(update(placement).where(placement.c.worker_ref == old).values(worker_ref=new))


def _placement(row: Row[Any]) -> Placement:
    return Placement(
        key=TryKey(row.dag_id, row.run_id, row.task_id, row.map_index, row.try_number),
        reason=row.reason,
        detail=row.detail,
        worker_ref=row.worker_ref,
        dedicated_queue=row.own_queue,
        placed_at=row.placed_at.astimezone(timezone.utc),
        is_open=row.is_open,
    )
