"""The two tables: one row per life of a worker, one row per try and worker that ran it.

They live on a metadata of their own, in Airflow's schema. A try's row is written millions of times, so it holds only
what the try itself is; what a worker *is* stands once in the worker's row (``worker_ref`` points there).
"""

from __future__ import annotations

from typing import Any

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

NO_WORKER = 0
"""``worker_ref`` of a try that no known worker ran.

Not NULL, because the column is part of the primary key, and no row of the worker table has this ID. A foreign key
would forbid it; a surrogate key beside a unique index would cost 30 bytes on each of millions of rows.
"""

VERSION_TABLE = "alembic_version_worker_insight"


class Timestamp(UtcDateTime):
    """A UTC point in time with microseconds, on every database (MySQL's own default drops the fraction)."""

    cache_ok = True

    def load_dialect_impl(self, dialect: Any) -> Any:
        """Return the type that ``dialect`` stores."""
        if dialect.name == "mysql":
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return super().load_dialect_impl(dialect)  # type: ignore[no-untyped-call]


class Coded(TypeDecorator[str]):
    """One of a fixed set of words, stored as its place in the set: 2 bytes on each of millions of rows."""

    impl = SmallInteger
    cache_ok = True

    def __init__(self, words: tuple[str, ...]) -> None:
        super().__init__()
        self.words = words

    def process_bind_param(self, value: str | None, dialect: Any) -> int | None:  # noqa: ARG002
        """Return the code of a word; ``None`` for one that is not in the set, such as a state of a later Airflow."""
        return self.words.index(value) + 1 if value in self.words else None

    def process_result_value(self, value: int | None, dialect: Any) -> str | None:  # noqa: ARG002
        """Return the word of a code."""
        return self.words[value - 1] if value is not None and 0 < value <= len(self.words) else None


# The order is what the database holds: words may be added at the end and never moved.
STATES = (
    "running",
    "success",
    "failed",
    "skipped",
    "upstream_failed",
    "removed",
    "restarting",
    "up_for_retry",
    "up_for_reschedule",
    "deferred",
    "queued",
    "scheduled",
    "awaiting_input",
    "shutdown",
)
ATTRIBUTIONS = ("reported", "inferred", "backfilled", "not_on_a_worker", "never_started", "unknown")

metadata = MetaData(schema=airflow_metadata.schema, naming_convention=airflow_metadata.naming_convention)

worker = Table(
    "worker_insight_worker",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("worker_id", StringID(length=64), nullable=False),
    Column("name", String(250), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("hostname", String(255), nullable=False),
    Column("pid", Integer),
    # True where only the host is known: the row stands for "one of the workers of this host", not for one life.
    Column("host_only", Boolean, nullable=False),
    # The scheduler's row in Airflow's job table, where the worker is that scheduler's own (LocalExecutor).
    Column("job_id", Integer),
    Column("started_at", Timestamp),
    Column("registered_at", Timestamp, nullable=False),
    Column("last_seen_at", Timestamp, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("resources", JSON, nullable=False),
    Column("versions", JSON, nullable=False),
    # Digest of the description above: the row is rewritten only when it changes.
    Column("fingerprint", String(32), nullable=False),
    Index("worker_insight_worker_worker_id", "worker_id", unique=True),
    Index("worker_insight_worker_name", "name"),
    Index("worker_insight_worker_hostname", "hostname"),
)

attempt = Table(
    "worker_insight_attempt",
    metadata,
    # Wide columns first: PostgreSQL aligns each to its own width, and any other order would pad.
    # Digests of (dag_id, run_id) and (task_id, map_index), see store.keys: 16 bytes in the key instead of some 80.
    Column("run_key", BigInteger, primary_key=True, autoincrement=False),
    Column("task_key", BigInteger, primary_key=True, autoincrement=False),
    Column("started_at", Timestamp),
    Column("ended_at", Timestamp),
    # When the first and the last process of this try started on this worker. NULL says "when the try did", which is so
    # for nearly every row; two NULLs cost nothing on PostgreSQL beyond the bitmap, two equal times 16 bytes.
    Column("first_started_at", Timestamp),
    Column("last_started_at", Timestamp),
    Column("try_number", Integer, primary_key=True, autoincrement=False),
    Column("worker_ref", Integer, primary_key=True, autoincrement=False),
    Column("map_index", Integer, nullable=False),
    # How many task processes of this try ran on this worker: a rescheduled sensor has many.
    Column("process_count", Integer, nullable=False),
    # How many other workers had run this try before: the row with 0 is the one that lists and totals count.
    Column("ordinal", SmallInteger, nullable=False),
    Column("state", Coded(STATES)),
    Column("attribution", Coded(ATTRIBUTIONS), nullable=False),
    Column("dag_id", StringID(), nullable=False),
    Column("run_id", StringID(), nullable=False),
    Column("task_id", StringID(), nullable=False),
    # Alone, because PostgreSQL stores equal values of an index once: 8 bytes for a row. With the start it takes 60.
    Index("worker_insight_attempt_worker_ref", "worker_ref"),
    # On PostgreSQL the migration makes this NULLS FIRST: read backwards it is in the order of lists.
    Index("worker_insight_attempt_started_at", "started_at"),
)
