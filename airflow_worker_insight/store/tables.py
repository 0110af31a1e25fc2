"""The tables: worker instances and their changes, worker sources, attempts and placements.

A worker instance is one process lifetime of a named worker. There is one row per try and worker that ran it. The tables
are in Airflow's schema, on a ``MetaData`` of their own. There are millions of attempts, so an attempt holds only data
of the try itself; the worker's data is stored once, in the row that ``worker_ref`` refers to.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from airflow.models.base import StringID
from airflow.models.base import metadata as airflow_metadata
from airflow.utils.sqlalchemy import UtcDateTime
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    TypeDecorator,
)
from sqlalchemy.dialects import mysql

from airflow_worker_insight.domain.limits import REASON_LENGTH
from airflow_worker_insight.domain.reasons import PlacementReason
from airflow_worker_insight.domain.states import STATES, Attribution, WorkerAvailability, WorkerState

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any


NO_WORKER = 0
"""``worker_ref`` of an attempt whose worker is unknown.

It is not NULL, because the column is part of the primary key, and no row of the worker table has this ID. A foreign key
would forbid it; a surrogate key with a unique index would cost 30 bytes on each of millions of rows.
"""

VERSION_TABLE = "alembic_version_worker_insight"
"""Alembic's version table of our migrations."""

HOW_TO_MIGRATE = "run `airflow db migrate` (Airflow 3.2 and later) or `airflow-worker-insight db migrate` (any version)"
"""How to create the tables, for messages.

It is in this module because a task process of Airflow 2.11 uses it and must not import Alembic.
"""


class Timestamp(UtcDateTime):
    """UTC timestamp with microseconds on every database (MySQL's default drops the fraction)."""

    cache_ok = True

    def load_dialect_impl(self, dialect: Any) -> Any:
        """Return the column type for a dialect."""
        if dialect.name == "mysql":
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return super().load_dialect_impl(dialect)  # type: ignore[no-untyped-call]


class Coded(TypeDecorator[str]):
    """One word of a fixed set, stored as its position: 2 bytes on each of millions of rows."""

    impl = SmallInteger
    cache_ok = True

    def __init__(self, words: tuple[str, ...]) -> None:
        super().__init__()
        self.words = words

    def process_bind_param(self, value: str | None, dialect: Any) -> int | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Return the code of a word.

        :return: ``None`` for a word that is not in the set, such as a state of a later Airflow
        """
        return self.words.index(value) + 1 if value in self.words else None

    def process_result_value(self, value: int | None, dialect: Any) -> str | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Return the word of a code."""
        return self.words[value - 1] if value is not None and 0 < value <= len(self.words) else None


SLOT_SECONDS = 600
"""Length of a ``start_slot`` in seconds.

PostgreSQL stores equal values of an index once. An index on the slot instead of the start takes 8 bytes per row instead
of 50, and lists still read only the latest rows.
"""


def start_slot(started_at: datetime | None) -> int | None:
    """Return the number of the ten-minute slot since 1970 in which a try started."""
    return None if started_at is None else math.floor(started_at.timestamp() / SLOT_SECONDS)


def key_columns(rows: Any) -> tuple[Any, Any, Any]:
    """Return the columns that identify a try in the attempt or placement table: see :data:`.keys.RowKey`.

    :param rows: one of the tables, an alias of it, or a subquery with these columns
    """
    return rows.c.run_key, rows.c.task_key, rows.c.try_number


metadata = MetaData(schema=airflow_metadata.schema, naming_convention=airflow_metadata.naming_convention)

worker = Table(
    "worker_insight_worker",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("worker_id", StringID(length=64), nullable=False),
    # The ID that the worker's own processes report. It differs from worker_id if the worker source found the worker
    # before its first try; it is NULL until that try.
    Column("reported_id", StringID(length=64)),
    Column("name", String(250), nullable=False),
    # The worker source's name of it (Celery node name, Edge worker name); an operator may have chosen another name.
    Column("engine_name", String(250)),
    Column("kind", String(32), nullable=False),
    Column("hostname", String(255), nullable=False),
    Column("pid", Integer),
    # True if only the host is known: the row stands for any worker of this host, not for one worker instance.
    Column("host_only", Boolean, nullable=False),
    # The scheduler's row in Airflow's job table, for a worker of that scheduler's LocalExecutor.
    Column("job_id", Integer),
    Column("started_at", Timestamp),
    Column("registered_at", Timestamp, nullable=False),
    # By the database's clock: when a try started on it, or when its source last reported it alive.
    Column("last_seen_at", Timestamp, nullable=False),
    Column("ended_at", Timestamp),
    # NULL if the worker's liveness is unknown; state_reason says why.
    Column("state", Coded(WorkerState.values())),
    Column("state_reason", String(REASON_LENGTH)),
    Column("availability", Coded(WorkerAvailability.values()), nullable=False, server_default="1"),
    Column("queues", JSON),
    Column("concurrency", Integer),
    # Number of tries that ran on it at the latest poll.
    Column("running", Integer),
    # Its start according to the worker source, by the database's clock; distinguishes the instances of one name.
    Column("engine_started_at", Timestamp),
    # Its latest heartbeat according to the worker source, by any clock: only its progress matters.
    Column("engine_heartbeat_at", Timestamp),
    Column("labels", JSON, nullable=False),
    Column("resources", JSON, nullable=False),
    Column("versions", JSON, nullable=False),
    # Digest of the description above: the row is updated only when the digest changes.
    Column("fingerprint", String(32), nullable=False),
    Index("worker_insight_worker_worker_id", "worker_id", unique=True),
    Index("worker_insight_worker_name", "name"),
    Index("worker_insight_worker_hostname", "hostname"),
    Index("worker_insight_worker_reported_id", "reported_id", unique=True),
    Index("worker_insight_worker_engine_name", "engine_name"),
    Index("worker_insight_worker_state", "state"),
)

change = Table(
    "worker_insight_change",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("worker_ref", Integer, nullable=False),
    Column("changed_at", Timestamp, nullable=False),
    # Exactly one of these is set: the observed state, or the availability that an operator decided.
    Column("state", Coded(WorkerState.values())),
    Column("availability", Coded(WorkerAvailability.values())),
    # The reason that the worker source or the operator gave.
    Column("reason", String(REASON_LENGTH)),
    # The operator; NULL for an observed state.
    Column("changed_by", String(250)),
    Index("worker_insight_change_worker_ref", "worker_ref"),
)

worker_source = Table(
    "worker_insight_engine",
    metadata,
    Column("name", String(32), primary_key=True),
    # The lease: the process that finds this time in the past and advances it polls the worker source.
    Column("due_at", Timestamp, nullable=False),
    Column("looked_at", Timestamp),
    # Start of the unbroken series of successful polls; a worker's silence before that time means nothing.
    Column("reached_since", Timestamp),
    # Why the latest poll failed; NULL if it succeeded.
    Column("error", String(REASON_LENGTH)),
)

attempt = Table(
    "worker_insight_attempt",
    metadata,
    # Wide columns first: PostgreSQL aligns each column to its width, and any other order needs padding.
    # Digests of (dag_id, run_id) and of Airflow's own task instance, see domain.keys: 16 bytes instead of some 80.
    Column("run_key", BigInteger, primary_key=True, autoincrement=False),
    Column("task_key", BigInteger, primary_key=True, autoincrement=False),
    Column("started_at", Timestamp),
    Column("ended_at", Timestamp),
    # Start of the first and of the last process of this try on this worker. NULL means started_at, as in nearly every
    # row: on PostgreSQL two NULLs take no more than their bits in the null bitmap, two equal times 16 bytes.
    Column("first_started_at", Timestamp),
    Column("last_started_at", Timestamp),
    Column("try_number", Integer, primary_key=True, autoincrement=False),
    Column("worker_ref", Integer, primary_key=True, autoincrement=False),
    Column("map_index", Integer, nullable=False),
    # Number of this try's task processes on this worker; a rescheduled sensor has many.
    Column("process_count", Integer, nullable=False),
    # The ten minutes of its start: see start_slot().
    Column("start_slot", Integer),
    # Number of other workers that had run this try before; lists and totals count the row with 0.
    Column("ordinal", SmallInteger, nullable=False),
    Column("state", Coded(STATES)),
    Column("attribution", Coded(Attribution.values()), nullable=False),
    # The worker when the try started: load average per CPU of its machine in hundredths, free memory of its machine in
    # thousandths of the total, and the number of other tries that ran on the worker.
    Column("load", SmallInteger),
    Column("memory_free", SmallInteger),
    Column("running_beside", SmallInteger),
    Column("dag_id", StringID(), nullable=False),
    Column("run_id", StringID(), nullable=False),
    Column("task_id", StringID(), nullable=False),
    # Why an executor of this package placed it there; set when the attempt is closed.
    Column("placement", Coded(PlacementReason.values())),
    # The task process that was counted last, so that a repeated report is not counted again: see keys.process_key.
    Column("process_key", Integer),
    # On PostgreSQL the migration makes the slot NULLS FIRST: read backwards, the index has the order of lists.
    Index("worker_insight_attempt_start_slot", "start_slot"),
    Index("worker_insight_attempt_worker_ref", "worker_ref", "start_slot"),
    Index("worker_insight_attempt_dag_id", "dag_id", "start_slot"),
)

placement = Table(
    "worker_insight_placement",
    metadata,
    # Open placements of all schedulers, and closed ones for their explanation. Keyed by the digests of names, which is
    # all that an executor knows of a try: (dag_id, run_id) and (task_id, map_index).
    Column("run_key", BigInteger, primary_key=True, autoincrement=False),
    Column("task_key", BigInteger, primary_key=True, autoincrement=False),
    Column("try_number", Integer, primary_key=True, autoincrement=False),
    Column("map_index", Integer, nullable=False),
    # NULL while the try waits for a worker, and if it was sent to the shared queue.
    Column("worker_ref", Integer),
    # Whether it takes one of its worker's slots: true until the try has ended.
    Column("is_open", Boolean, nullable=False),
    Column("reason", Coded(PlacementReason.values()), nullable=False),
    Column("placed_at", Timestamp, nullable=False),
    # The worker's dedicated queue that the try was sent to.
    Column("own_queue", String(100)),
    Column("detail", String(300), nullable=False),
    Column("dag_id", StringID(), nullable=False),
    Column("run_id", StringID(), nullable=False),
    Column("task_id", StringID(), nullable=False),
    Index("worker_insight_placement_open", "is_open", "worker_ref"),
)
