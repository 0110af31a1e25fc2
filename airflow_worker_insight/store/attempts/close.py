"""Write reconciliation results: final states and times of tries, and tries never reported."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, func, select, update

from airflow_worker_insight.domain.attribution import RecordedInstance
from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.domain.keys import TryKey, run_key
from airflow_worker_insight.domain.states import Attribution
from airflow_worker_insight.domain.workers import WorkerRecord
from airflow_worker_insight.store import late_attempts
from airflow_worker_insight.store.attempts.start import LATE_AFTER
from airflow_worker_insight.store.dialects import in_rows, upsert
from airflow_worker_insight.store.locks import lock_for_share
from airflow_worker_insight.store.tables import NO_WORKER, Timestamp, attempt, key_columns, start_slot, worker

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.attempts import AirflowTry, DagRunRef
    from airflow_worker_insight.domain.keys import RowKey


@dataclass(frozen=True, slots=True)
class RecordedTry:
    """The attempt table's data of one try: enough to decide whether to close or rewrite it."""

    row_key: RowKey
    key: TryKey
    state: str | None
    started_at: datetime | None
    ended_at: datetime | None
    has_worker: bool = True
    rows_agree: bool = True
    """Whether the rows of all its workers agree."""
    has_slots: bool = True
    """Whether all rows have their time slot.

    Versions with schema 0001 write none, not even when they close a try.
    """

    def is_closed_as(self, airflow_try: AirflowTry) -> bool:
        """Return whether nothing is left to write."""
        recorded = (self.key.map_index, self.state, self.started_at, self.ended_at)
        return (
            self.rows_agree
            and self.has_slots
            and recorded == (airflow_try.key.map_index, airflow_try.state, airflow_try.started_at, airflow_try.ended_at)
        )


def recorded_tries(connection: Connection, runs: Collection[DagRunRef]) -> list[RecordedTry]:
    """Return the tries recorded under the names of these Dag runs.

    That includes tries of deleted runs of the same name.
    """
    keys = {run_key(run.dag_id, run.run_id) for run in runs}
    names = ("dag_id", "run_id", "task_id", "map_index", "try_number")
    rows = connection.execute(
        select(
            *(attempt.c[name] for name in ("run_key", "task_key", *names, "state", "started_at", "ended_at")),
            attempt.c.worker_ref,
            attempt.c.start_slot,
        ).where(attempt.c.run_key.in_(keys))
    )
    by_key: dict[RowKey, RecordedTry] = {}
    for row in rows:
        row_key = (row.run_key, row.task_key, row.try_number)
        recorded = RecordedTry(
            row_key=row_key,
            key=TryKey(row.dag_id, row.run_id, row.task_id, row.map_index, row.try_number),
            state=row.state,
            started_at=utc(row.started_at),
            ended_at=utc(row.ended_at),
            has_worker=row.worker_ref != NO_WORKER,
            has_slots=row.started_at is None or row.start_slot is not None,
        )
        first = by_key.setdefault(row_key, recorded)
        if (first.state, first.started_at, first.ended_at) != (recorded.state, recorded.started_at, recorded.ended_at):
            by_key[row_key] = replace(by_key[row_key], rows_agree=False)
        if not recorded.has_slots:
            by_key[row_key] = replace(by_key[row_key], has_slots=False)
    return list(by_key.values())


def instances_on_hosts(connection: Connection, hostnames: Collection[str]) -> list[RecordedInstance]:
    """Return the recorded worker instances on these hosts.

    Their rows cannot be removed until the transaction ends.
    """
    if not hostnames:
        return []
    query = select(worker).where(worker.c.hostname.in_(sorted(hostnames)), worker.c.host_only.is_(False))
    rows = connection.execute(lock_for_share(connection, query))
    return [
        RecordedInstance(
            ref=row.id,
            record=WorkerRecord(
                worker_id=row.worker_id,
                name=row.name,
                kind=row.kind,
                hostname=row.hostname,
                pid=row.pid,
                started_at=utc(row.started_at),
                job_id=row.job_id,
            ),
        )
        for row in rows
    ]


def first_report_at(connection: Connection) -> datetime | None:
    """Return when the first worker was registered."""
    moment: datetime | None = connection.execute(
        select(func.min(worker.c.registered_at)).where(worker.c.host_only.is_(False))
    ).scalar_one()
    return utc(moment)


def ensure_hosts(connection: Connection, records: Iterable[WorkerRecord], *, now: datetime) -> dict[str, int]:
    """Insert missing rows that stand for whole hosts; return the row IDs by worker ID.

    The rows cannot be removed until the transaction ends.
    """
    by_id = {record.worker_id: record for record in records}
    if not by_id:
        return {}
    query = lock_for_share(
        connection, select(worker.c.worker_id, worker.c.id).where(worker.c.worker_id.in_(sorted(by_id)))
    )
    known = {row.worker_id: row.id for row in connection.execute(query)}
    for worker_id in sorted(by_id.keys() - known.keys()):
        record = by_id[worker_id]
        values = {
            "worker_id": worker_id,
            "registered_at": now,
            "last_seen_at": now,
            "job_id": None,
            "fingerprint": record.fingerprint,
            **record.description(),
        }
        unchanged = {"worker_id": worker_id}
        connection.execute(upsert(connection.dialect.name, worker, values, key=["worker_id"], update=unchanged))
    if by_id.keys() == known.keys():
        return known
    return {row.worker_id: row.id for row in connection.execute(query)}


def close_tries(connection: Connection, tries: Sequence[tuple[RowKey, AirflowTry]]) -> None:
    """Write the final state and times of recorded tries, on the rows of all their workers.

    The map index is written too: Airflow turns a task instance that was not mapped yet into the first mapped one.
    """
    if not tries:
        return
    statement = (
        update(attempt)
        .where(
            attempt.c.run_key == bindparam("p_run_key"),
            attempt.c.task_key == bindparam("p_task_key"),
            attempt.c.try_number == bindparam("p_try_number"),
        )
        .values(
            map_index=bindparam("p_map_index"),
            state=bindparam("p_state"),
            started_at=bindparam("p_started_at", type_=Timestamp()),
            start_slot=bindparam("p_start_slot"),
            ended_at=bindparam("p_ended_at", type_=Timestamp()),
        )
    )
    connection.execute(
        statement,
        [
            {
                "p_run_key": key_of_run,
                "p_task_key": key_of_task,
                "p_try_number": try_number,
                "p_map_index": airflow_try.key.map_index,
                "p_state": airflow_try.state,
                "p_started_at": airflow_try.started_at,
                "p_start_slot": start_slot(airflow_try.started_at),
                "p_ended_at": airflow_try.ended_at,
            }
            for (key_of_run, key_of_task, try_number), airflow_try in tries
        ],
    )


def remove_tries(connection: Connection, row_keys: Sequence[RowKey]) -> None:
    """Remove tries of which no process ran."""
    if row_keys:
        is_one = in_rows(connection, key_columns(attempt), row_keys)
        connection.execute(delete(attempt).where(is_one, attempt.c.worker_ref == NO_WORKER))


def add_tries(connection: Connection, rows: Sequence[tuple[AirflowTry, str, int]]) -> None:
    """Insert tries that no worker reported, each with its attribution and its worker's row ID.

    A row that was inserted in between (by a second scheduler that reconciles the same run) stays as it is.
    """
    if not rows:
        return
    unchanged = {"try_number": attempt.c.try_number}
    statement = upsert(
        connection.dialect.name,
        attempt,
        None,
        key=[column.name for column in attempt.primary_key],
        update=unchanged,
    )
    connection.execute(statement, [_row(airflow_try, attribution, ref) for airflow_try, attribution, ref in rows])
    # Of those without a worker, and of those from before the installation, the analysis reads none.
    late_since = datetime.now(timezone.utc) - LATE_AFTER
    late_attempts.note(
        connection,
        {
            airflow_try.row_keys[0]
            for airflow_try, attribution, ref in rows
            if ref != NO_WORKER
            and attribution != Attribution.BACKFILLED
            and airflow_try.started_at is not None
            and airflow_try.started_at < late_since
        },
    )


def _row(airflow_try: AirflowTry, attribution: str, worker_ref: int) -> dict[str, Any]:
    key_of_run, key_of_task, try_number = airflow_try.row_keys[0]
    return {
        "run_key": key_of_run,
        "task_key": key_of_task,
        "try_number": try_number,
        "worker_ref": worker_ref,
        "map_index": airflow_try.key.map_index,
        "ordinal": 0,
        # A process without a worker belongs to a user's test.
        "process_count": 1 if worker_ref or airflow_try.ran_in_a_test else 0,
        "started_at": airflow_try.started_at,
        "start_slot": start_slot(airflow_try.started_at),
        "ended_at": airflow_try.ended_at,
        "first_started_at": None,
        "last_started_at": None,
        "state": airflow_try.state,
        "attribution": attribution,
        "dag_id": airflow_try.key.dag_id,
        "run_id": airflow_try.key.run_id,
        "task_id": airflow_try.key.task_id,
        "process_key": None,
    }
