"""Read tries from Airflow's own tables: the last try from ``task_instance``, earlier ones from its history."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from sqlalchemy import and_, bindparam, case, func, literal, null, select, tuple_, union_all

from airflow_worker_insight import compat
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.attempts import AirflowTry, DagRunRef, lost_tries
from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.domain.keys import TryKey, instance_key, instance_key_by_run
from airflow_worker_insight.domain.states import FINISHED, FINISHED_RUN
from airflow_worker_insight.store.dialects import given, in_given_rows, in_rows

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
"""Task instances that one statement asks both tables for: SQLite takes 32,766 parameters."""

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
    """Return all tries of one task instance; none when Airflow does not know it."""
    return _read(
        connection, _of_one(), {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index}
    )


def tries_of_task_instances(connection: Connection, keys: Iterable[TryKey]) -> dict[TryKey, AirflowTry]:
    """Return those of the tries ``keys`` that Airflow knows."""
    wanted = set(keys)
    instances = sorted({(key.dag_id, key.run_id, key.task_id, key.map_index) for key in wanted})
    found: dict[TryKey, AirflowTry] = {}
    for start in range(0, len(instances), BATCH):
        some = instances[start : start + BATCH]
        for one in _read_given(connection, _INSTANCE, some):
            if one.key in wanted:
                found[one.key] = one
    return found


def tries_by_row(connection: Connection, keys: Iterable[TryKey]) -> dict[RowKey, AirflowTry]:
    """Return all tries of the task instances of these tries, also lost ones, by what each may be recorded by."""
    instances = sorted({(key.dag_id, key.run_id, key.task_id, key.map_index) for key in keys})
    known: list[AirflowTry] = []
    for start in range(0, len(instances), BATCH):
        some = instances[start : start + BATCH]
        known += _read_given(connection, _INSTANCE, some)
    return {row_key: one for one in (*lost_tries(known), *known) for row_key in one.row_keys}


@dataclass(frozen=True, slots=True)
class RunningTry:
    """The try behind an ID that a task process gave: whose it is and what Airflow says of it."""

    key: TryKey
    instance: int
    """The key of its task instance."""
    state: str
    started_at: datetime | None
    ended_at: datetime | None
    executor: str | None
    queued_by_job_id: int | None
    is_over: bool
    """Whether it has ended: Airflow has given it a final state, or put it into the history."""
    hostname: str | None
    """Where it runs, as its supervisor said when it started it."""


def try_by_id(connection: Connection, try_id: UUID) -> RunningTry | None:
    """Return the try with Airflow 3's ID of it (unique per try), also when it has moved to the history."""
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
    """Build the statements of :func:`try_by_id` once, for the latest tries and for the history."""
    current, history = metadata_database.task_instance_table(), metadata_database.task_instance_history_table()
    return tuple(
        select(*(table.c[name] for name in _COLUMNS)).where(column == bindparam("p_try_id", type_=column.type))
        for table, column in ((current, current.c.id), (history, history.c.task_instance_id))
    )


def run_began(run: Any) -> Any:
    """Return, as SQL, when a Dag run began, before any try of it did; NULL where Airflow does not tell.

    Clearing a run sets its start anew. Only Airflow 3.3 keeps when the run was made.

    :param run: Airflow's ``dag_run`` table, or an alias of it
    """
    uncleared = case((func.coalesce(run.c.clear_number, 0) == 0, run.c.start_date), else_=null())
    made_at = metadata_database.run_made_at(run)
    return uncleared if made_at is None else func.coalesce(made_at, uncleared)


def is_of_run(started_at: datetime | None, run_began_at: datetime | None) -> bool:
    """Return whether a recorded try may be one of a Dag run that Airflow has, by the time.

    Else it was one of a deleted run of that name: a run begins after the one before it was deleted.

    :param run_began_at: ``None`` where Airflow does not tell; then it may be
    """
    return run_began_at is None or (started_at is not None and started_at >= run_began_at)


def finished_runs(
    connection: Connection,
    *,
    dag_id: str | None = None,
    ended_since: datetime | None = None,
    after_row_id: int = 0,
    limit: int,
) -> list[DagRunRef]:
    """Return up to ``limit`` finished Dag runs with a row ID above ``after_row_id``, in the order of their IDs."""
    statement = _finished_runs(dag_id, ended_since, after_row_id)
    ordered = statement.order_by(metadata_database.dag_run_table().c.id).limit(limit)
    return [_run(row) for row in connection.execute(ordered)]


def _run(row: Row[Any]) -> DagRunRef:
    return DagRunRef(row.id, row.dag_id, row.run_id, row.state, utc(row.began_at))


def _run_columns() -> list[Any]:
    run = metadata_database.dag_run_table()
    names = ("id", "dag_id", "run_id", "state")
    return [*(run.c[name] for name in names), run_began(run).label("began_at")]


def runs_after(connection: Connection, row_id: int, *, limit: int) -> list[DagRunRef]:
    """Return the next Dag runs in the order of their rows' IDs."""
    run = metadata_database.dag_run_table()
    rows = connection.execute(select(*_run_columns()).where(run.c.id > row_id).order_by(run.c.id).limit(limit))
    return [_run(row) for row in rows]


def latest_finished_runs(connection: Connection, *, ended_since: datetime, limit: int) -> list[DagRunRef]:
    """Return the Dag runs among the ``limit`` latest ones that ended since then; it reads no more than these."""
    run = metadata_database.dag_run_table()
    latest = connection.execute(select(*_run_columns(), run.c.end_date).order_by(run.c.id.desc()).limit(limit))
    return [
        _run(row)
        for row in latest
        if row.state in FINISHED_RUN and row.end_date is not None and row.end_date >= ended_since
    ]


def count_task_instances(connection: Connection, runs: Collection[DagRunRef]) -> dict[DagRunRef, int]:
    """Return how many task instances each of these Dag runs has."""
    table = metadata_database.task_instance_table()
    rows = connection.execute(
        select(table.c.dag_id, table.c.run_id, func.count().label("number"))
        .where(tuple_(table.c.dag_id, table.c.run_id).in_([(run.dag_id, run.run_id) for run in runs]))
        .group_by(table.c.dag_id, table.c.run_id)
    )
    counted = {(row.dag_id, row.run_id): int(row.number) for row in rows}
    return {run: counted.get((run.dag_id, run.run_id), 0) for run in runs}


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
    """Return how many Dag runs :func:`finished_runs` would go through."""
    counted = _finished_runs(dag_id, ended_since, after_row_id).subquery()
    number: int = connection.execute(select(func.count()).select_from(counted)).scalar_one()
    return number


def find_run(connection: Connection, dag_id: str, run_id: str) -> DagRunRef | None:
    """Return a Dag run by its names."""
    return next(iter(find_runs(connection, [(dag_id, run_id)])), None)


def find_runs(connection: Connection, names: Collection[tuple[str, str]]) -> list[DagRunRef]:
    """Return those of the Dag runs with these names that Airflow has."""
    run = metadata_database.dag_run_table()
    found: list[DagRunRef] = []
    ordered = sorted(set(names))
    for start in range(0, len(ordered), BATCH):
        within = in_rows(connection, (run.c.dag_id, run.c.run_id), ordered[start : start + BATCH])
        found += map(_run, connection.execute(select(*_run_columns()).where(within)))
    return found


def _read_given(connection: Connection, names: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> list[AirflowTry]:
    """Read all tries of what bears one of these names, Dag runs or task instances."""
    if not rows:
        return []
    # One name for each table: SQLAlchemy does not expand a list of tuples twice.
    values = {**given(connection, rows, "current"), **given(connection, rows, "history")}
    return _read(connection, _of_given(connection.dialect.name, names), values)


def _read(connection: Connection, statement: Any, parameters: dict[str, Any]) -> list[AirflowTry]:
    """Read both tables with one statement; where both hold a try, the history's row is the final one."""
    rows = sorted(connection.execute(statement, parameters), key=lambda row: row.rank_)
    found = {one.key: one for one in map(_airflow_try, rows)}
    ordered = sorted(found.values(), key=lambda one: (one.key.task_instance.as_tuple(), one.key.try_number))
    return list(_without_leftovers(ordered))


def _without_leftovers(tries: Iterable[AirflowTry]) -> Iterator[AirflowTry]:
    """Blank what a try has only because the one before it left it there.

    Airflow keeps host, process and start of a task instance until its next try starts, so a try that waits, or ended
    while it waited, still carries them (``TaskInstance.prepare_db_for_next_try`` and ``DagRun.schedule_tis`` do not
    clear them; 2.11.2 to 3.3.2).

    :param tries: in the order of their numbers
    """
    seen: dict[TaskInstanceKey, set[tuple[str, int | None, datetime | None]]] = defaultdict(set)
    for one in tries:
        if one.hostname is None:
            yield one
            continue
        process = (one.hostname, one.pid, one.started_at)
        before = seen[one.key.task_instance]
        if process in before or one.state in WAITING:
            yield replace(one, hostname=None, pid=None, started_at=None)
        else:
            yield one
        before.add(process)


@cache
def _of_given(dialect: str, names: tuple[str, ...]) -> Any:
    return _of_both(lambda table, name: in_given_rows(dialect, [table.c[column] for column in names], name))


@cache
def _of_one() -> Any:
    return _of_both(lambda table, _: and_(*(table.c[column] == bindparam(column) for column in _INSTANCE)))


def _of_both(condition: Callable[[Table, str], Any]) -> Any:
    tables = {
        "current": metadata_database.task_instance_table(),
        "history": metadata_database.task_instance_history_table(),
    }
    return union_all(
        *(_select(table, condition(table, name), rank=rank) for rank, (name, table) in enumerate(tables.items()))
    )


def _select(table: Table, condition: Any, *, rank: int) -> Any:
    source, identity = metadata_database.try_identity(table)
    columns = (table.c[name] for name in _COLUMNS)
    return select(*columns, *identity, literal(rank).label("rank_")).select_from(source).where(condition)


def _try_key(row: Row[Any]) -> TryKey:
    return TryKey(row.dag_id, row.run_id, row.task_id, row.map_index, row.try_number or 0)


def instance_keys(row: Row[Any]) -> tuple[int, ...]:
    """Return the keys of a try's task instance: the one that it is recorded by, and one from before an upgrade.

    An Airflow that was upgraded from 2.11 gave its task instances IDs then; their Dag runs kept their rows.

    :param row: it has the columns of :func:`.compat.try_identity` and the names of the task instance
    """
    moment = utc(row.identity_moment)
    by_run = () if moment is None else (instance_key_by_run(row.identity_run, moment, row.task_id, row.map_index),)
    return (instance_key(str(row.identity_own)), *by_run) if compat.is_airflow_3() else by_run


def _airflow_try(row: Row[Any]) -> AirflowTry:
    return AirflowTry(
        key=_try_key(row),
        instances=instance_keys(row),
        state=row.state,
        started_at=utc(row.start_date),
        ended_at=utc(row.end_date),
        hostname=row.hostname or None,
        pid=row.pid or None,
        queued_at=utc(row.queued_dttm),
        executor=row.executor or None,
        queued_by_job_id=row.queued_by_job_id,
        external_executor_id=row.external_executor_id or None,
    )
