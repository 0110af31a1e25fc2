"""Rekeying: replace keys made of names by the keys of Airflow's own task instances.

Up to schema 0003 this package recorded attempts by the names of their tries. Processes of such a version may run beside
a newer one for a while. An attempt belongs to Airflow's try of the same names if both have the same times, or if the
attempt began during the current Dag run of that name. Otherwise it belongs to a deleted run of that name and keeps its
key, which matches no task instance.
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
from airflow_worker_insight.store.batches import batches
from airflow_worker_insight.store.tables import attempt

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.attempts import AirflowTry, DagRunRef
    from airflow_worker_insight.domain.keys import RowKey
    from airflow_worker_insight.store.attempts.close import RecordedTry

RUNS_PER_STEP = 200
"""Number of Dag runs that one step reads."""

ATTEMPTS_PER_STEP = 1_000
"""Number of attempts that one step rekeys; more only if all are of one Dag run.

It limits how long other transactions wait for a step.
"""

FIRST_KEY = -(2**63)
"""Lowest possible key of a Dag run, at which :func:`key_by_names_step` begins."""


def rekey(
    connection: Connection,
    runs: Collection[DagRunRef],
    tries: Collection[AirflowTry],
    recorded: Collection[RecordedTry],
) -> list[RecordedTry]:
    """Give attempts that are recorded by names the keys of their task instances.

    :param runs: the Dag runs as Airflow has them
    :param tries: all tries that Airflow has of them
    :param recorded: the attempts under the names of these Dag runs
    :return: ``recorded`` with the new keys
    """
    by_name = {row.key: row for row in recorded if row.row_key == row.key.key_by_names}
    if not by_name:
        return list(recorded)
    existing_keys = {row.row_key for row in recorded}
    run_by_ids = {(run.dag_id, run.run_id): run for run in runs}
    new_keys: dict[RowKey, RowKey] = {}
    merged: dict[RowKey, RowKey] = {}
    for airflow_try in (*tries, *lost_tries(tries)):
        candidate = by_name.get(airflow_try.key)
        run = run_by_ids.get((airflow_try.key.dag_id, airflow_try.key.run_id))
        if candidate is None or run is None or not _is_attempt_of(candidate, airflow_try, run):
            continue
        existing = next((key for key in airflow_try.row_keys if key in existing_keys), None)
        if existing is None:
            new_keys[candidate.row_key] = airflow_try.row_keys[0]
        elif existing != candidate.row_key:
            # One of its processes started before the upgrade, another one after it.
            merged[candidate.row_key] = existing
    for old_key, existing in merged.items():
        _merge(connection, old_key, existing)
    for batch in batches(sorted(new_keys), ATTEMPTS_PER_STEP):
        write_keys(connection, [(old_key, new_keys[old_key][1]) for old_key in batch])
    return [
        replace(row, row_key=new_keys.get(row.row_key, row.row_key)) for row in recorded if row.row_key not in merged
    ]


def _merge(connection: Connection, old_key: RowKey, kept_key: RowKey) -> None:
    """Merge the rows of two keys into one attempt; those of ``old_key`` are the earlier ones."""
    columns = [attempt.c[name] for name in ("task_key", "worker_ref", "ordinal", "process_count")]
    rows = connection.execute(
        select(*columns)
        .where(_has_key(old_key) | _has_key(kept_key))
        .order_by(attempt.c.task_key != old_key[1], attempt.c.ordinal)
    ).all()
    process_counts: dict[int, int] = {}
    summed_counts: dict[int, int] = {}
    for row in rows:
        if row.worker_ref in process_counts:
            summed_counts[row.worker_ref] = process_counts[row.worker_ref] + row.process_count
        process_counts.setdefault(row.worker_ref, row.process_count)
    for ref in summed_counts:
        connection.execute(delete(attempt).where(_has_key(old_key), attempt.c.worker_ref == ref))
    connection.execute(update(attempt).where(_has_key(old_key)).values(task_key=kept_key[1]))
    for ordinal, ref in enumerate(process_counts):
        values = {"ordinal": ordinal, **({"process_count": summed_counts[ref]} if ref in summed_counts else {})}
        connection.execute(update(attempt).where(_has_key(kept_key), attempt.c.worker_ref == ref).values(values))


def _has_key(key: RowKey) -> Any:
    return and_(attempt.c.run_key == key[0], attempt.c.task_key == key[1], attempt.c.try_number == key[2])


def _is_attempt_of(candidate: RecordedTry, airflow_try: AirflowTry, run: DagRunRef) -> bool:
    """Return whether an attempt belongs to the try that Airflow has under the same names."""
    if airflow_try.is_lost:
        return not candidate.has_worker or is_of_run(candidate.started_at, run.started_at)
    if candidate.started_at == airflow_try.started_at and candidate.ended_at in (None, airflow_try.ended_at):
        return True
    return is_of_run(candidate.started_at, run.started_at)


def rekey_step(connection: Connection, after: int) -> int | None:
    """Rekey the attempts of Airflow's next Dag runs.

    :param after: the row ID of the last Dag run of the step before; 0 in the first step
    :return: the row ID of the last Dag run of this step; ``None`` when there are no more
    """
    runs = airflow_history.runs_after(connection, after, limit=RUNS_PER_STEP)
    if not runs:
        return None
    by_key = {run_key(run.dag_id, run.run_id): run for run in runs}
    rows = connection.execute(
        select(attempt.c.run_key, func.count().label("tries"))
        .where(attempt.c.run_key.in_(sorted(by_key)))
        .group_by(attempt.c.run_key)
    )
    counts = {by_key[row.run_key].row_id: row.tries for row in rows}
    batch: list[DagRunRef] = []
    size = 0
    for run in runs:
        size += counts.get(run.row_id, 0)
        if batch and size > ATTEMPTS_PER_STEP:
            break
        batch.append(run)
    recorded_runs = [run for run in batch if run.row_id in counts]
    if recorded_runs:
        tries = airflow_history.tries_of_runs(connection, recorded_runs)
        rekey(connection, recorded_runs, tries, close.recorded_tries(connection, recorded_runs))
    return batch[-1].row_id


def key_by_names_step(connection: Connection, after: int) -> int | None:
    """Give the next attempts the keys of their names again, for versions up to schema 0003.

    Of several attempts with the same names, the one that started last gets the key; the others keep theirs.

    :param after: the key of the last Dag run of the step before; :data:`FIRST_KEY` in the first step
    :return: the key of the last Dag run of this step; ``None`` when there are no more
    """
    # One step handles all rows of a Dag run, so that it sees all attempts with the same names.
    key_rows = connection.execute(
        select(attempt.c.run_key).where(attempt.c.run_key > after).order_by(attempt.c.run_key).limit(ATTEMPTS_PER_STEP)
    ).scalars()
    run_keys = sorted(set(key_rows))
    if not run_keys:
        return None
    _key_runs_by_names(connection, run_keys)
    last_key: int = run_keys[-1]
    return last_key


def _key_runs_by_names(connection: Connection, run_keys: Sequence[int]) -> None:
    names = ("run_key", "task_key", "try_number", "task_id", "map_index", "started_at")
    rows = connection.execute(
        select(*(attempt.c[name] for name in names))
        .where(attempt.c.run_key.in_(run_keys))
        .order_by(attempt.c.started_at)
    ).all()
    by_name: dict[RowKey, dict[RowKey, None]] = defaultdict(dict)
    for row in rows:
        name_key = (row.run_key, task_key(row.task_id, row.map_index), row.try_number)
        by_name[name_key][row.run_key, row.task_key, row.try_number] = None
    new_keys = [
        (latest, name_key[1])
        for name_key, keys in by_name.items()
        if name_key not in keys and (latest := list(keys)[-1])
    ]
    for batch in batches(new_keys, ATTEMPTS_PER_STEP):
        write_keys(connection, batch)


def write_keys(connection: Connection, new: Sequence[tuple[RowKey, int]]) -> None:
    """Change the task instance keys of attempts, on PostgreSQL with one statement.

    :param new: pairs of the key of an attempt and the new key of its task instance
    """
    if not new:
        return
    if connection.dialect.name != "postgresql":
        connection.execute(_update_single(), [_parameters(row_key, key) for row_key, key in new])
        return
    columns: dict[str, Any] = {"runs": [], "tasks": [], "numbers": [], "new": []}
    for (old_run_key, old_task_key, try_number), new_task_key in new:
        for name, value in zip(columns, (old_run_key, old_task_key, try_number, new_task_key), strict=True):
            columns[name].append(value)
    table = connection.dialect.identifier_preparer.format_table(attempt)
    connection.execute(
        text(
            f"UPDATE {table} AS a SET task_key = given.new FROM unnest(CAST(:runs AS bigint[]), "  # noqa: S608 - our own table
            "CAST(:tasks AS bigint[]), CAST(:numbers AS integer[]), CAST(:new AS bigint[])) "
            "AS given (run_key, task_key, try_number, new) "
            "WHERE a.run_key = given.run_key AND a.task_key = given.task_key AND a.try_number = given.try_number"
        ),
        columns,
    )


def _update_single() -> Any:
    return (
        update(attempt)
        .where(
            attempt.c.run_key == bindparam("p_run"),
            attempt.c.task_key == bindparam("p_task"),
            attempt.c.try_number == bindparam("p_number"),
        )
        .values(task_key=bindparam("p_new"))
    )


def _parameters(row_key: RowKey, new_task_key: int) -> dict[str, int]:
    return {"p_run": row_key[0], "p_task": row_key[1], "p_number": row_key[2], "p_new": new_task_key}
