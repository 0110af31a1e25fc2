"""Give recorded tries the keys of Airflow's own task instances, where they were recorded by names.

So did the package up to schema 0003, and so do processes of it that go on for a while beside a newer one. A row is of
Airflow's try if it says the same of it, or began in the Dag run as it is now. Else it is of a deleted run of that name,
and keeps its key, which is no task instance's.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, delete, func, select, text, update

from airflow_worker_insight.domain.attempts import lost_tries
from airflow_worker_insight.domain.keys import run_key, task_key
from airflow_worker_insight.store import airflow_history
from airflow_worker_insight.store.airflow_history import is_of_run
from airflow_worker_insight.store.attempts import close
from airflow_worker_insight.store.tables import attempt

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.attempts import AirflowTry, DagRunRef
    from airflow_worker_insight.domain.keys import RowKey, TryKey
    from airflow_worker_insight.store.attempts.close import Recorded

RUNS = 200
"""Dag runs that are read at once, and looked up by their names."""

ROWS = 1_000
"""Tries that one step gives other keys, if they are not all of one Dag run: nobody waits for longer than that takes."""

LEAST = -(2**63)
"""Below the key of every Dag run."""


def rekey(
    connection: Connection,
    runs: Collection[DagRunRef],
    tries: Collection[AirflowTry],
    recorded: Collection[Recorded],
) -> list[Recorded]:
    """Give tries that are recorded by names the keys of their task instances; return all as they are then.

    :param runs: the Dag runs as Airflow has them
    :param tries: all tries that Airflow has of them
    :param recorded: what is recorded under their names
    """
    by_name = {one.key: one for one in recorded if one.row_key == _by_names(one.key)}
    if not by_name:
        return list(recorded)
    taken = {one.row_key for one in recorded}
    began = {(run.dag_id, run.run_id): run for run in runs}
    new: dict[RowKey, RowKey] = {}
    joined: dict[RowKey, RowKey] = {}
    for one in (*tries, *lost_tries(tries)):
        ours = by_name.get(one.key)
        run = began.get((one.key.dag_id, one.key.run_id))
        if ours is None or run is None or not _is_of(ours, one, run):
            continue
        own = next((key for key in one.row_keys if key in taken), None)
        if own is None:
            new[ours.row_key] = one.row_keys[0]
        elif own != ours.row_key:
            # A process of it started before the upgrade, and another one after that.
            joined[ours.row_key] = own
    for old, own in joined.items():
        _join(connection, old, own)
    ordered = sorted(new)
    for start in range(0, len(ordered), ROWS):
        write_keys(connection, [(old, new[old][1]) for old in ordered[start : start + ROWS]])
    return [replace(one, row_key=new.get(one.row_key, one.row_key)) for one in recorded if one.row_key not in joined]


def _join(connection: Connection, old: RowKey, own: RowKey) -> None:
    """Make one try of the rows of two keys: those of the old one began first."""
    columns = [attempt.c[name] for name in ("task_key", "worker_ref", "ordinal", "process_count")]
    rows = connection.execute(
        select(*columns).where(_is_try(old) | _is_try(own)).order_by(attempt.c.task_key != old[1], attempt.c.ordinal)
    ).all()
    workers: dict[int, int] = {}
    twins: dict[int, int] = {}
    for row in rows:
        if row.worker_ref in workers:
            twins[row.worker_ref] = workers[row.worker_ref] + row.process_count
        workers.setdefault(row.worker_ref, row.process_count)
    for ref in twins:
        connection.execute(delete(attempt).where(_is_try(old), attempt.c.worker_ref == ref))
    connection.execute(update(attempt).where(_is_try(old)).values(task_key=own[1]))
    for ordinal, ref in enumerate(workers):
        values = {"ordinal": ordinal, **({"process_count": twins[ref]} if ref in twins else {})}
        connection.execute(update(attempt).where(_is_try(own), attempt.c.worker_ref == ref).values(values))


def _is_try(key: RowKey) -> Any:
    return and_(attempt.c.run_key == key[0], attempt.c.task_key == key[1], attempt.c.try_number == key[2])


def _by_names(key: TryKey) -> RowKey:
    return key.run_key, key.task_key, key.try_number


def _is_of(ours: Recorded, one: AirflowTry, run: DagRunRef) -> bool:
    """Return whether a recorded try is the one that Airflow has by these names."""
    if one.is_lost:
        return not ours.has_worker or is_of_run(ours.started_at, run.began_at)
    if ours.started_at == one.started_at and ours.ended_at in (None, one.ended_at):
        return True
    return is_of_run(ours.started_at, run.began_at)


def rekey_step(connection: Connection, after: int) -> int | None:
    """Rekey what is recorded of the next Dag runs of Airflow's; return where to go on, ``None`` at the end.

    :param after: the row ID of the last Dag run of the step before, at first 0
    """
    runs = airflow_history.runs_after(connection, after, limit=RUNS)
    if not runs:
        return None
    by_key = {run_key(run.dag_id, run.run_id): run for run in runs}
    counted = connection.execute(
        select(attempt.c.run_key, func.count().label("tries"))
        .where(attempt.c.run_key.in_(sorted(by_key)))
        .group_by(attempt.c.run_key)
    )
    tries_of = {by_key[row.run_key].row_id: row.tries for row in counted}
    part: list[DagRunRef] = []
    size = 0
    for run in runs:
        size += tries_of.get(run.row_id, 0)
        if part and size > ROWS:
            break
        part.append(run)
    recorded = [run for run in part if run.row_id in tries_of]
    if recorded:
        tries = airflow_history.tries_of_runs(connection, recorded)
        rekey(connection, recorded, tries, close.recorded_tries(connection, recorded))
    return part[-1].row_id


def key_by_names_step(connection: Connection, after: int) -> int | None:
    """Give the next recorded tries the keys of their names, for a version that knows no others; return as above.

    Of several that bear the same names the latest start gets it: the others stay as they are.

    :param after: the key of the last Dag run of the step before, at first :data:`LEAST`
    """
    # All rows of a Dag run in one step, so that those of one name are seen together.
    found = connection.execute(
        select(attempt.c.run_key).where(attempt.c.run_key > after).order_by(attempt.c.run_key).limit(ROWS)
    ).scalars()
    run_keys = sorted(set(found))
    if not run_keys:
        return None
    _key_runs_by_names(connection, run_keys)
    last: int = run_keys[-1]
    return last


def _key_runs_by_names(connection: Connection, run_keys: Sequence[int]) -> None:
    names = ("run_key", "task_key", "try_number", "task_id", "map_index", "started_at")
    rows = connection.execute(
        select(*(attempt.c[name] for name in names))
        .where(attempt.c.run_key.in_(run_keys))
        .order_by(attempt.c.started_at)
    ).all()
    by_name: dict[RowKey, dict[RowKey, None]] = defaultdict(dict)
    for row in rows:
        named = (row.run_key, task_key(row.task_id, row.map_index), row.try_number)
        by_name[named][row.run_key, row.task_key, row.try_number] = None
    changed = [
        (latest, named[1]) for named, keys in by_name.items() if named not in keys and (latest := list(keys)[-1])
    ]
    for start in range(0, len(changed), ROWS):
        write_keys(connection, changed[start : start + ROWS])


def write_keys(connection: Connection, new: Sequence[tuple[RowKey, int]]) -> None:
    """Give tries other keys of their task instances, with one statement where the database can.

    :param new: each try by its key, and the new key of its task instance
    """
    if not new:
        return
    if connection.dialect.name != "postgresql":
        connection.execute(_write_one_by_one(), [_parameters(old, task) for old, task in new])
        return
    columns: dict[str, Any] = {"runs": [], "tasks": [], "numbers": [], "new": []}
    for (of_run, task, number), new_task in new:
        for name, value in zip(columns, (of_run, task, number, new_task), strict=True):
            columns[name].append(value)
    table = connection.dialect.identifier_preparer.format_table(attempt)
    connection.execute(
        text(
            f"UPDATE {table} AS a SET task_key = given.new FROM unnest(CAST(:runs AS bigint[]), "  # noqa: S608
            "CAST(:tasks AS bigint[]), CAST(:numbers AS integer[]), CAST(:new AS bigint[])) "
            "AS given (run_key, task_key, try_number, new) "
            "WHERE a.run_key = given.run_key AND a.task_key = given.task_key AND a.try_number = given.try_number"
        ),
        columns,
    )


def _write_one_by_one() -> Any:
    return (
        update(attempt)
        .where(
            attempt.c.run_key == bindparam("p_run"),
            attempt.c.task_key == bindparam("p_task"),
            attempt.c.try_number == bindparam("p_number"),
        )
        .values(task_key=bindparam("p_new"))
    )


def _parameters(old: RowKey, new: int) -> dict[str, int]:
    return {"p_run": old[0], "p_task": old[1], "p_number": old[2], "p_new": new}
