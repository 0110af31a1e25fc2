"""Tries and Dag runs from Airflow's own tables.

The latest try of a task instance is in ``task_instance``, earlier ones are in ``task_instance_history``.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from sqlalchemy import and_, bindparam, case, func, literal, null, select, tuple_, union_all

from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.attempts import AirflowTry, DagRunRef, lost_tries
from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.domain.keys import TryKey, instance_key, instance_key_by_run
from airflow_worker_insight.domain.states import FINISHED, FINISHED_RUN
from airflow_worker_insight.store.batches import batches
from airflow_worker_insight.store.dialects import in_bound_rows, in_list, in_rows, row_parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from datetime import datetime
    from typing import Any
    from uuid import UUID

    from sqlalchemy import Table
    from sqlalchemy.engine import Connection, Row

    from airflow_worker_insight.domain.keys import RowKey, TaskInstanceKey


WAITING = frozenset({None, "scheduled", "queued"})
"""States in which no process of the try runs."""

BATCH = 4_000
"""Task instances that a statement selects from both tables: SQLite takes 32,766 values."""

_COLUMNS = (
    "dag_id",
    "run_id",
    "task_id",
    "map_index",
    "try_number",
    "state",
    "start_date",
    "end_date",
    "hostname",
    "pid",
    "queued_dttm",
    "executor",
    "queued_by_job_id",
    "external_executor_id",
)

_RUN = ("dag_id", "run_id")
_INSTANCE = (*_RUN, "task_id", "map_index")


def tries_of_runs(connection: Connection, runs: Sequence[DagRunRef]) -> list[AirflowTry]:
    """Return all tries of all task instances of these Dag runs."""
    return _read_given(connection, _RUN, [(run.dag_id, run.run_id) for run in runs])


def tries_of_task_instance(
    connection: Connection, *, dag_id: str, run_id: str, task_id: str, map_index: int
) -> list[AirflowTry]:
    """Return all tries of one task instance; an empty list if Airflow does not have it."""
    return _read(
        connection,
        _statement_for_task_instance(),
        {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index},
    )


def tries_of_task_instances(connection: Connection, keys: Iterable[TryKey]) -> dict[TryKey, AirflowTry]:
    """Return those of the tries ``keys`` that Airflow has."""
    requested = set(keys)
    instances = sorted({(key.dag_id, key.run_id, key.task_id, key.map_index) for key in requested})
    by_key: dict[TryKey, AirflowTry] = {}
    for batch in batches(instances, BATCH):
        for airflow_try in _read_given(connection, _INSTANCE, batch):
            if airflow_try.key in requested:
                by_key[airflow_try.key] = airflow_try
    return by_key


def tries_by_row(connection: Connection, keys: Iterable[TryKey]) -> dict[RowKey, AirflowTry]:
    """Return all tries of the given tries' task instances, by their possible row keys.

    These include lost tries: see :func:`.domain.attempts.lost_tries`.
    """
    instances = sorted({(key.dag_id, key.run_id, key.task_id, key.map_index) for key in keys})
    known: list[AirflowTry] = []
    for batch in batches(instances, BATCH):
        known += _read_given(connection, _INSTANCE, batch)
    return {row_key: airflow_try for airflow_try in (*lost_tries(known), *known) for row_key in airflow_try.row_keys}


@dataclass(frozen=True, slots=True)
class RunningTry:
    """The try of an ID that a task process reported, as Airflow has it. Times are aware UTC."""

    key: TryKey
    instance: int
    """The key of its task instance."""
    state: str
    started_at: datetime | None
    ended_at: datetime | None
    executor: str | None
    queued_by_job_id: int | None
    is_over: bool
    """Whether it has ended: it has a final state, or Airflow has moved it to the history."""
    hostname: str | None
    """Host that its supervisor reported when it started the try."""


def try_by_id(connection: Connection, try_id: UUID) -> RunningTry | None:
    """Return the try that has this ID in Airflow 3, where each try has its own.

    :return: the try, current or from the history; ``None`` if Airflow has neither
    """
    stored_id = metadata_database.stored_try_id(try_id)
    for is_history, statement in enumerate(_by_id()):
        row = connection.execute(statement, {"p_try_id": stored_id}).first()
        if row is not None:
            return RunningTry(
                key=_try_key(row),
                instance=instance_key(str(try_id)),
                state=row.state or "running",
                started_at=utc(row.start_date),
                ended_at=utc(row.end_date),
                executor=row.executor or None,
                queued_by_job_id=row.queued_by_job_id,
                is_over=bool(is_history) or row.state in FINISHED,
                hostname=row.hostname or None,
            )
    return None


@cache
def _by_id() -> tuple[Any, ...]:
    """Build the statements of :func:`try_by_id` once: for current tries and for the history."""
    current, history = metadata_database.task_instance_table(), metadata_database.task_instance_history_table()
    return tuple(
        select(*(table.c[name] for name in _COLUMNS)).where(column == bindparam("p_try_id", type_=column.type))
        for table, column in ((current, current.c.id), (history, history.c.task_instance_id))
    )


def run_start(run: Any) -> Any:
    """Return an SQL expression for a time at which a Dag run began, before all its tries.

    The expression is NULL if Airflow does not have the time: clearing a run overwrites its start, and only Airflow 3.3
    stores when the run was created.

    :param run: Airflow's ``dag_run`` table, or an alias of it
    """
    start_if_uncleared = case((func.coalesce(run.c.clear_number, 0) == 0, run.c.start_date), else_=null())
    created_at = metadata_database.dag_run_created_at(run)
    return start_if_uncleared if created_at is None else func.coalesce(created_at, start_if_uncleared)


def is_of_run(started_at: datetime | None, run_started_at: datetime | None) -> bool:
    """Return whether an attempt can belong to Airflow's Dag run of that name, by their times.

    If not, it belongs to a deleted run of the same name: a run begins after the former one was deleted.

    :param started_at: start of the attempt
    :param run_started_at: see :func:`run_start`; the result is true if it is ``None``
    """
    return run_started_at is None or (started_at is not None and started_at >= run_started_at)


def finished_runs(
    connection: Connection,
    *,
    dag_id: str | None = None,
    ended_since: datetime | None = None,
    after_row_id: int = 0,
    limit: int,
) -> list[DagRunRef]:
    """Return finished Dag runs in the order of their row IDs.

    :param ended_since: return only runs that ended at this time or later
    :param after_row_id: return only runs with a greater row ID
    :param limit: maximum number of runs
    """
    statement = _finished_runs(dag_id, ended_since, after_row_id)
    ordered = statement.order_by(metadata_database.dag_run_table().c.id).limit(limit)
    return [_run(row) for row in connection.execute(ordered)]


def _run(row: Row[Any]) -> DagRunRef:
    return DagRunRef(row.id, row.dag_id, row.run_id, row.state, utc(row.started_at))


def _run_columns() -> list[Any]:
    run = metadata_database.dag_run_table()
    names = ("id", "dag_id", "run_id", "state")
    return [*(run.c[name] for name in names), run_start(run).label("started_at")]


def runs_after(connection: Connection, row_id: int, *, limit: int) -> list[DagRunRef]:
    """Return the next Dag runs in the order of their row IDs.

    :param row_id: row ID of the last Dag run before them
    """
    run = metadata_database.dag_run_table()
    rows = connection.execute(select(*_run_columns()).where(run.c.id > row_id).order_by(run.c.id).limit(limit))
    return [_run(row) for row in rows]


def latest_finished_runs(connection: Connection, *, ended_since: datetime, limit: int) -> list[DagRunRef]:
    """Return those of the ``limit`` latest Dag runs that ended at a time or later.

    It reads only the ``limit`` latest Dag runs.
    """
    run = metadata_database.dag_run_table()
    latest = connection.execute(select(*_run_columns(), run.c.end_date).order_by(run.c.id.desc()).limit(limit))
    return [
        _run(row)
        for row in latest
        if row.state in FINISHED_RUN and row.end_date is not None and row.end_date >= ended_since
    ]


def count_task_instances(connection: Connection, runs: Collection[DagRunRef]) -> dict[DagRunRef, int]:
    """Return the number of task instances of each Dag run."""
    table = metadata_database.task_instance_table()
    rows = connection.execute(
        select(table.c.dag_id, table.c.run_id, func.count().label("number"))
        .where(tuple_(table.c.dag_id, table.c.run_id).in_([(run.dag_id, run.run_id) for run in runs]))
        .group_by(table.c.dag_id, table.c.run_id)
    )
    counts = {(row.dag_id, row.run_id): int(row.number) for row in rows}
    return {run: counts.get((run.dag_id, run.run_id), 0) for run in runs}


def _finished_runs(dag_id: str | None, ended_since: datetime | None, after_row_id: int) -> Any:
    run = metadata_database.dag_run_table()
    statement = select(*_run_columns()).where(run.c.id > after_row_id, run.c.state.in_(FINISHED_RUN))
    if dag_id is not None:
        statement = statement.where(run.c.dag_id == dag_id)
    if ended_since is not None:
        statement = statement.where(run.c.end_date >= ended_since)
    return statement


def count_finished_runs(
    connection: Connection,
    *,
    dag_id: str | None = None,
    ended_since: datetime | None = None,
    after_row_id: int = 0,
) -> int:
    """Return the number of Dag runs that :func:`finished_runs` returns without a limit."""
    finished = _finished_runs(dag_id, ended_since, after_row_id).subquery()
    total: int = connection.execute(select(func.count()).select_from(finished)).scalar_one()
    return total


def find_run(connection: Connection, dag_id: str, run_id: str) -> DagRunRef | None:
    """Return the Dag run with these IDs, or ``None``."""
    return next(iter(find_runs(connection, [(dag_id, run_id)])), None)


def find_runs(connection: Connection, names: Collection[tuple[str, str]]) -> list[DagRunRef]:
    """Return those of the given Dag runs that Airflow has.

    :param names: pairs of ``dag_id`` and ``run_id``
    """
    run = metadata_database.dag_run_table()
    runs: list[DagRunRef] = []
    for batch in batches(sorted(set(names)), BATCH):
        is_in_batch = in_rows(connection, (run.c.dag_id, run.c.run_id), batch)
        runs += map(_run, connection.execute(select(*_run_columns()).where(is_in_batch)))
    return runs


def existing_dag_ids(connection: Connection, dag_ids: Collection[str]) -> set[str]:
    """Return those of these Dags that Airflow has not deleted."""
    column = metadata_database.dag_table().c.dag_id
    found: set[str] = set()
    for batch in batches(sorted(dag_ids), BATCH):
        found.update(connection.execute(select(column).where(in_list(connection, column, batch))).scalars())
    return found


def _read_given(connection: Connection, names: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> list[AirflowTry]:
    """Read all tries of these Dag runs or task instances.

    :param names: columns that identify them
    :param rows: the values of these columns
    """
    if not rows:
        return []
    # Each table needs its own parameter: SQLAlchemy cannot expand a list of tuples twice.
    values = {**row_parameters(connection, rows, "current"), **row_parameters(connection, rows, "history")}
    return _read(connection, _statement_for_rows(connection.dialect.name, names), values)


def _read(connection: Connection, statement: Any, parameters: dict[str, Any]) -> list[AirflowTry]:
    """Read both tables with one statement; if both have a try, the history's row is final."""
    rows = sorted(connection.execute(statement, parameters), key=lambda row: row.rank_)
    by_key = {airflow_try.key: airflow_try for airflow_try in map(_airflow_try, rows)}
    ordered = sorted(
        by_key.values(),
        key=lambda airflow_try: (airflow_try.key.task_instance.as_tuple(), airflow_try.key.try_number),
    )
    return list(_without_leftovers(ordered))


def _without_leftovers(tries: Iterable[AirflowTry]) -> Iterator[AirflowTry]:
    """Clear host, process and start of a try if they are left over from the try before it.

    Airflow keeps them in a task instance until its next try starts, so a try that waits, or ended while it waited,
    still has those of the earlier try (``TaskInstance.prepare_db_for_next_try`` and ``DagRun.schedule_tis`` do not
    clear them; 2.11.2 to 3.3.2).

    :param tries: in the order of their numbers
    """
    seen: dict[TaskInstanceKey, set[tuple[str, int | None, datetime | None]]] = defaultdict(set)
    for airflow_try in tries:
        if airflow_try.hostname is None:
            yield airflow_try
            continue
        process = (airflow_try.hostname, airflow_try.pid, airflow_try.started_at)
        earlier = seen[airflow_try.key.task_instance]
        if process in earlier or airflow_try.state in WAITING:
            yield replace(airflow_try, hostname=None, pid=None, started_at=None)
        else:
            yield airflow_try
        earlier.add(process)


@cache
def _statement_for_rows(dialect: str, names: tuple[str, ...]) -> Any:
    return _from_both_tables(lambda table, name: in_bound_rows(dialect, [table.c[column] for column in names], name))


@cache
def _statement_for_task_instance() -> Any:
    return _from_both_tables(lambda table, _: and_(*(table.c[column] == bindparam(column) for column in _INSTANCE)))


def _from_both_tables(condition: Callable[[Table, str], Any]) -> Any:
    tables = {
        "current": metadata_database.task_instance_table(),
        "history": metadata_database.task_instance_history_table(),
    }
    return union_all(
        *(_select(table, condition(table, name), rank=rank) for rank, (name, table) in enumerate(tables.items()))
    )


def _select(table: Table, condition: Any, *, rank: int) -> Any:
    source, identity = metadata_database.try_identity(table)
    columns = (table.c[name] for name in (*_COLUMNS, "queue"))
    return select(*columns, *identity, literal(rank).label("rank_")).select_from(source).where(condition)


def _try_key(row: Row[Any]) -> TryKey:
    return TryKey(row.dag_id, row.run_id, row.task_id, row.map_index, row.try_number or 0)


def instance_keys(row: Row[Any]) -> tuple[int, ...]:
    """Return the possible keys of a try's task instance, the one for new attempts first.

    On Airflow 3 there may be a second one, from before an upgrade: Airflow 2.11 gave task instances no IDs. The upgrade
    added the IDs and kept the rows of the Dag runs, from which the second key is made.

    :param row: has the columns of :func:`.compat.try_identity` and the names of the task instance
    """
    logical_date = utc(row.identity_moment)
    key_by_run = (
        ()
        if logical_date is None
        else (instance_key_by_run(row.identity_run, logical_date, row.task_id, row.map_index),)
    )
    if metadata_database.task_instances_have_ids():
        return instance_key(str(row.identity_own)), *key_by_run
    return key_by_run


def _airflow_try(row: Row[Any]) -> AirflowTry:
    return AirflowTry(
        key=_try_key(row),
        instance_keys=instance_keys(row),
        state=row.state,
        started_at=utc(row.start_date),
        ended_at=utc(row.end_date),
        hostname=row.hostname or None,
        pid=row.pid or None,
        queued_at=utc(row.queued_dttm),
        executor=row.executor or None,
        queued_by_job_id=row.queued_by_job_id,
        external_executor_id=row.external_executor_id or None,
        queue=row.queue or None,
    )
