"""Write that a worker started a try: the statement that runs for every task process of the deployment.

In the usual case this is one statement. It copies the worker's ID from the worker table and inserts nothing if the
worker is unknown, has changed its description or was not seen for a while; only then the worker's row is written too.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, case, func, literal, select
from sqlalchemy.dialects import mysql, postgresql, sqlite

from airflow_worker_insight.store.tables import Timestamp, attempt, worker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Table
    from sqlalchemy.engine import Connection

    from airflow_worker_insight.store.keys import TryKey

SEEN_EVERY = timedelta(seconds=60)
"""How precise ``last_seen_at`` is: a busy worker's row is written once per this time, not once per task."""


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """What a worker says of itself, validated; see the columns of :data:`~.tables.worker`."""

    worker_id: str
    name: str
    kind: str
    hostname: str
    pid: int | None = None
    started_at: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    host_only: bool = False
    job_id: int | None = None

    @property
    def fingerprint(self) -> str:
        """Digest of the description: equal fingerprints mean there is nothing to write.

        Without the start: task processes of one life may work it out a second apart, when the clock was set.
        """
        text = json.dumps({**self.description(), "started_at": None, "job_id": self.job_id}, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def description(self) -> dict[str, Any]:
        """Return the descriptive columns of the worker's row."""
        return {
            "name": self.name,
            "kind": self.kind,
            "hostname": self.hostname,
            "pid": self.pid,
            "started_at": self.started_at,
            "labels": dict(self.labels),
            "resources": dict(self.resources),
            "versions": dict(self.versions),
            "host_only": self.host_only,
        }


def record_start(
    connection: Connection,
    key: TryKey,
    record: WorkerRecord,
    *,
    try_started_at: datetime | None,
    state: str,
    now: datetime,
) -> None:
    """Write that a task process of the try ``key`` started on the worker ``record``.

    A second process of the same try on the same worker (deferral, reschedule) is counted in the same row. The caller
    owns the transaction.

    :param connection: a connection to Airflow's database with a transaction begun
    :param try_started_at: when Airflow says that the try started
    :param state: the try's state as Airflow has it, usually ``running``
    :param now: when the process started, by the clock of the machine that writes
    """
    start = {
        "p_run_key": key.run_key,
        "p_task_key": key.task_key,
        "p_try_number": key.try_number,
        "p_map_index": key.map_index,
        "p_dag_id": key.dag_id,
        "p_run_id": key.run_id,
        "p_task_id": key.task_id,
        "p_state": state,
        "p_started_at": try_started_at or now,
        "p_now": now,
        "p_worker_id": record.worker_id,
        "p_fingerprint": record.fingerprint,
        "p_seen_after": now - SEEN_EVERY,
    }
    statement = _start_statement(connection.dialect.name)
    if connection.execute(statement, start).rowcount:
        return
    upsert_worker(connection, record, now=now)
    if not connection.execute(statement, start).rowcount:
        raise LookupError(f"worker {record.worker_id} could not be stored")


def upsert_worker(connection: Connection, record: WorkerRecord, *, now: datetime) -> int:
    """Write a worker's description and that it was seen at ``now``; return its row's ID."""
    values = {
        "worker_id": record.worker_id,
        "registered_at": now,
        "last_seen_at": now,
        "job_id": record.job_id,
        "fingerprint": record.fingerprint,
        **record.description(),
    }
    kept = {name: value for name, value in values.items() if name not in ("worker_id", "registered_at")}
    connection.execute(upsert(connection.dialect.name, worker, values, key=["worker_id"], update=kept))
    row_id: int = connection.execute(select(worker.c.id).where(worker.c.worker_id == record.worker_id)).scalar_one()
    return row_id


def upsert(dialect: str, table: Table, values: Any, *, key: Sequence[str], update: Mapping[str, Any]) -> Any:
    """Return an INSERT of ``values`` that updates ``update`` where a row with the same ``key`` exists.

    :param dialect: ``postgresql``, ``sqlite`` or ``mysql``
    :param values: a row as a mapping, or ``None`` to pass rows at execution
    """
    if dialect == "postgresql":
        insert = postgresql.insert(table)
        insert = insert.values(values) if values is not None else insert
        return insert.on_conflict_do_update(index_elements=list(key), set_=dict(update))
    if dialect == "sqlite":
        lite = sqlite.insert(table)
        lite = lite.values(values) if values is not None else lite
        return lite.on_conflict_do_update(index_elements=list(key), set_=dict(update))
    my = mysql.insert(table)
    my = my.values(values) if values is not None else my
    return my.on_duplicate_key_update(**dict(update))


def _other_workers_of_the_try() -> Any:
    """Return the subquery for ``ordinal``: it reads a handful of rows by the front of the primary key."""
    other = attempt.alias("other")
    return (
        select(func.count())
        .select_from(other)
        .where(
            other.c.run_key == bindparam("p_run_key", type_=attempt.c.run_key.type),
            other.c.task_key == bindparam("p_task_key", type_=attempt.c.task_key.type),
            other.c.try_number == bindparam("p_try_number", type_=attempt.c.try_number.type),
        )
        .scalar_subquery()
    )


@cache
def _start_statement(dialect: str) -> Any:
    """Build the INSERT … SELECT of :func:`record_start` once per dialect."""
    now = bindparam("p_now", type_=Timestamp())
    others = _other_workers_of_the_try()
    later_worker_only = case((others == 0, None), else_=now)
    columns: dict[str, Any] = {
        "run_key": bindparam("p_run_key", type_=attempt.c.run_key.type),
        "task_key": bindparam("p_task_key", type_=attempt.c.task_key.type),
        "try_number": bindparam("p_try_number", type_=attempt.c.try_number.type),
        "worker_ref": worker.c.id,
        "map_index": bindparam("p_map_index", type_=attempt.c.map_index.type),
        "ordinal": others,
        "process_count": literal(1),
        "started_at": bindparam("p_started_at", type_=Timestamp()),
        "first_started_at": later_worker_only,
        "last_started_at": later_worker_only,
        "state": bindparam("p_state", type_=attempt.c.state.type),
        "attribution": literal("reported", attempt.c.attribution.type),
        "dag_id": bindparam("p_dag_id", type_=attempt.c.dag_id.type),
        "run_id": bindparam("p_run_id", type_=attempt.c.run_id.type),
        "task_id": bindparam("p_task_id", type_=attempt.c.task_id.type),
    }
    source = select(*columns.values()).where(
        worker.c.worker_id == bindparam("p_worker_id"),
        worker.c.fingerprint == bindparam("p_fingerprint"),
        worker.c.last_seen_at > bindparam("p_seen_after", type_=Timestamp()),
    )
    again = {
        "process_count": attempt.c.process_count + 1,
        "first_started_at": func.coalesce(attempt.c.first_started_at, attempt.c.started_at),
        "last_started_at": now,
        "ended_at": None,
        "state": bindparam("p_state", type_=attempt.c.state.type),
        "attribution": "reported",
    }
    if dialect == "mysql":
        return mysql.insert(attempt).from_select(list(columns), source).on_duplicate_key_update(**again)
    dialect_insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return (
        dialect_insert(attempt)
        .from_select(list(columns), source)
        .on_conflict_do_update(index_elements=list(attempt.primary_key), set_=again)
    )
