"""The tables: one row per life of a worker, one row per try and worker that ran it, the fleet, and what is placed.

They live on a metadata of their own, in Airflow's schema. A try's row is written millions of times, so it holds only
what the try itself is; what a worker *is* stands once in the worker's row (``worker_ref`` points there).
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
from airflow_worker_insight.domain.reasons import REASONS
from airflow_worker_insight.domain.states import ATTRIBUTIONS, AVAILABILITIES, STATES, WORKER_STATES

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any


NO_WORKER = 0
"""``worker_ref`` of a try that no known worker ran.

Not NULL, because the column is part of the primary key, and no row of the worker table has this ID. A foreign key
would forbid it; a surrogate key beside a unique index would cost 30 bytes on each of millions of rows.
"""

VERSION_TABLE = "alembic_version_worker_insight"

HOW_TO_MIGRATE = "run `airflow db migrate` (Airflow 3.2 and later) or `airflow-worker-insight db migrate` (any version)"
"""How the tables are made. It stands here because a task process of Airflow 2.11 says so and must not load Alembic."""


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


SLOT_SECONDS = 600
"""Length of a ``start_slot``. Equal values of an index stand in it once on PostgreSQL, so that with the slot instead of
the start an index takes 8 bytes for a row and not 50, and lists still read only the latest rows."""


def start_slot(started_at: datetime | None) -> int | None:
    """Return which ten minutes since 1970 a try started in."""
    return None if started_at is None else math.floor(started_at.timestamp() / SLOT_SECONDS)


metadata = MetaData(schema=airflow_metadata.schema, naming_convention=airflow_metadata.naming_convention)

worker = Table(
    "worker_insight_worker",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("worker_id", StringID(length=64), nullable=False),
    # The ID that the worker's own processes report: another one where the engine made the worker known before its first
    # try, NULL until that.
    Column("reported_id", StringID(length=64)),
    Column("name", String(250), nullable=False),
    # What the engine calls it (Celery's node name, the Edge worker's name); an operator may have given another name.
    Column("engine_name", String(250)),
    Column("kind", String(32), nullable=False),
    Column("hostname", String(255), nullable=False),
    Column("pid", Integer),
    # True where only the host is known: the row stands for "one of the workers of this host", not for one life.
    Column("host_only", Boolean, nullable=False),
    # The scheduler's row in Airflow's job table, where the worker is that scheduler's own (LocalExecutor).
    Column("job_id", Integer),
    Column("started_at", Timestamp),
    Column("registered_at", Timestamp, nullable=False),
    # By the database's clock: when a try of it started, or when its engine last told that it lives.
    Column("last_seen_at", Timestamp, nullable=False),
    Column("ended_at", Timestamp),
    # NULL where nothing tells whether it lives: the reason says why.
    Column("state", Coded(WORKER_STATES)),
    Column("state_reason", String(REASON_LENGTH)),
    Column("availability", Coded(AVAILABILITIES), nullable=False, server_default="1"),
    Column("queues", JSON),
    Column("concurrency", Integer),
    # How many tries ran on it when the fleet was last looked at.
    Column("running", Integer),
    # When the engine says that it started, by the database's clock; tells the lives of one name apart.
    Column("engine_started_at", Timestamp),
    # The engine's own latest heartbeat, by whichever clock it has: that it moves is what counts.
    Column("engine_heartbeat_at", Timestamp),
    Column("labels", JSON, nullable=False),
    Column("resources", JSON, nullable=False),
    Column("versions", JSON, nullable=False),
    # Digest of the description above: the row is rewritten only when it changes.
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
    # One of both: what was seen, or what a person decided.
    Column("state", Coded(WORKER_STATES)),
    Column("availability", Coded(AVAILABILITIES)),
    # Why, in the words of the engine or of the person.
    Column("reason", String(REASON_LENGTH)),
    # Who decided; NULL for what was seen.
    Column("changed_by", String(250)),
    Index("worker_insight_change_worker_ref", "worker_ref"),
)

engine = Table(
    "worker_insight_engine",
    metadata,
    Column("name", String(32), primary_key=True),
    # The lease: who finds this time past and moves it on is the one to look at the engine.
    Column("due_at", Timestamp, nullable=False),
    Column("looked_at", Timestamp),
    # Since when it was looked at without a break and answered: silence before that says nothing.
    Column("reached_since", Timestamp),
    # Why the latest look failed; NULL where it did not.
    Column("error", String(REASON_LENGTH)),
)

attempt = Table(
    "worker_insight_attempt",
    metadata,
    # Wide columns first: PostgreSQL aligns each to its own width, and any other order would pad.
    # Digests of (dag_id, run_id) and of Airflow's own task instance, see domain.keys: 16 bytes and not some 80.
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
    # Which ten minutes it started in: see start_slot.
    Column("start_slot", Integer),
    # How many other workers had run this try before: the row with 0 is the one that lists and totals count.
    Column("ordinal", SmallInteger, nullable=False),
    Column("state", Coded(STATES)),
    Column("attribution", Coded(ATTRIBUTIONS), nullable=False),
    # The worker's machine when the try started there: load average per CPU in hundredths, free memory in thousandths of
    # all, and how many other tries ran on the worker.
    Column("load", SmallInteger),
    Column("memory_free", SmallInteger),
    Column("running_beside", SmallInteger),
    Column("dag_id", StringID(), nullable=False),
    Column("run_id", StringID(), nullable=False),
    Column("task_id", StringID(), nullable=False),
    # Why it was placed where it was, by an executor of this package; filled in when the try is closed.
    Column("placement", Coded(REASONS)),
    # Which task process was counted last, so that a report that arrives again counts none: see keys.process_key.
    Column("process_key", Integer),
    # On PostgreSQL the migration makes the slot NULLS FIRST: read backwards it is in the order of lists.
    Index("worker_insight_attempt_start_slot", "start_slot"),
    Index("worker_insight_attempt_worker_ref", "worker_ref", "start_slot"),
    Index("worker_insight_attempt_dag_id", "dag_id", "start_slot"),
)

placement = Table(
    "worker_insight_placement",
    metadata,
    # What is placed now, by whichever scheduler, and until the Dag run has ended and is reconciled why. By names, which
    # is all that an executor has of a try: digests of (dag_id, run_id) and of (task_id, map_index).
    Column("run_key", BigInteger, primary_key=True, autoincrement=False),
    Column("task_key", BigInteger, primary_key=True, autoincrement=False),
    Column("try_number", Integer, primary_key=True, autoincrement=False),
    Column("map_index", Integer, nullable=False),
    # NULL while it waits for a worker, and where it was handed to the queue that all share.
    Column("worker_ref", Integer),
    # Whether it takes one of its worker's places: until the try has ended.
    Column("is_open", Boolean, nullable=False),
    Column("reason", Coded(REASONS), nullable=False),
    Column("placed_at", Timestamp, nullable=False),
    # The worker's own queue that it was sent to.
    Column("own_queue", String(100)),
    Column("detail", String(300), nullable=False),
    Column("dag_id", StringID(), nullable=False),
    Column("run_id", StringID(), nullable=False),
    Column("task_id", StringID(), nullable=False),
    Index("worker_insight_placement_open", "is_open", "worker_ref"),
)
