"""The tables of the analysis (its job and state, findings, statistics), and what was done to keep work off workers.

They are apart from :mod:`.tables`, which a task process of Airflow 2.11 loads.
"""

from __future__ import annotations

from typing import Any

from airflow.models.base import StringID
from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    SmallInteger,
    String,
    Table,
    Text,
)
from sqlalchemy.dialects import mysql

from airflow_worker_insight.domain.findings import EndReason, FindingAction, FindingOutcome, FindingState, SubjectKind
from airflow_worker_insight.domain.limits import REASON_LENGTH
from airflow_worker_insight.store.tables import Coded, Timestamp, metadata

LONG_TEXT = Text().with_variant(mysql.LONGTEXT(), "mysql")
"""Text of any length: MySQL's own type ends at 64 KiB."""

SERIAL = BigInteger().with_variant(Integer, "sqlite")
"""Row ID that the database counts up; SQLite does so for INTEGER only."""

# --- the job ---------------------------------------------------------------------------------------------------------

job = Table(
    "worker_insight_job",
    metadata,
    Column("name", String(32), primary_key=True),
    # The lease, by the database's clock: until then only its holder runs the job.
    Column("leased_until", Timestamp, nullable=False),
    Column("holder", String(64)),
    # Tries that had started by then are part of the stored state.
    Column("read_until", Timestamp),
    Column("stored_at", Timestamp),
    # The latest step, whether or not it stored anything.
    Column("stepped_at", Timestamp),
    # Why the latest step failed; NULL if it succeeded.
    Column("error", String(REASON_LENGTH)),
)

detector_part = Table(
    "worker_insight_detector_part",
    metadata,
    # Digest of the part's name, which may be long; the value has the name too.
    Column("part_key", BigInteger, primary_key=True, autoincrement=False),
    Column("value", LONG_TEXT, nullable=False),
)

late_attempt = Table(
    "worker_insight_late_attempt",
    metadata,
    # Attempts that were recorded after the job had read the time of their start; the job reads them here.
    Column("run_key", BigInteger, primary_key=True, autoincrement=False),
    Column("task_key", BigInteger, primary_key=True, autoincrement=False),
    Column("try_number", Integer, primary_key=True, autoincrement=False),
)

# --- findings --------------------------------------------------------------------------------------------------------

finding = Table(
    "worker_insight_finding",
    metadata,
    Column("id", Integer, primary_key=True),
    # The detector's own number of it; counts up anew when the state is computed anew.
    Column("number", Integer, nullable=False),
    # Digest of what it is about.
    Column("subject_key", BigInteger, nullable=False),
    Column("state", Coded(FindingState.values()), nullable=False),
    Column("subject_kind", Coded(SubjectKind.values()), nullable=False),
    Column("outcome", Coded(FindingOutcome.values()), nullable=False),
    Column("found_at", Timestamp, nullable=False),
    Column("ended_at", Timestamp),
    Column("end_reason", Coded(EndReason.values())),
    Column("updated_at", Timestamp, nullable=False),
    # The Dag of a task that it is about, else NULL.
    Column("subject_dag_id", StringID()),
    # JSON lists, to filter by: the Dags that it names and the workers that it concerns.
    Column("dag_ids", LONG_TEXT, nullable=False),
    Column("worker_ids", LONG_TEXT, nullable=False),
    # All of it, as insight.findings.as_json returns it. After a dismissal it stays open until the job reads that.
    Column("data", LONG_TEXT, nullable=False),
    Index("worker_insight_finding_state", "state", "found_at"),
)

finding_event = Table(
    "worker_insight_finding_event",
    metadata,
    Column("id", SERIAL, primary_key=True),
    Column("finding_ref", Integer, nullable=False),
    Column("happened_at", Timestamp, nullable=False),
    Column("action", Coded(FindingAction.values()), nullable=False),
    # The user; NULL for what the analysis did.
    Column("actor", String(250)),
    Column("reason", String(REASON_LENGTH)),
    Index("worker_insight_finding_event_finding_ref", "finding_ref"),
)

# --- statistics ------------------------------------------------------------------------------------------------------

unit = Table(
    "worker_insight_unit",
    metadata,
    # What statistics are kept of: see domain.statistics.Unit. The key is its digest.
    Column("digest", BigInteger, primary_key=True, autoincrement=False),
    # The latest hour with a row.
    Column("last_hour", Integer, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("name", String(250)),
    Column("hostname", String(255), nullable=False),
    Column("labels", JSON, nullable=False),
)


def _counts() -> list[Column[Any]]:
    """Return the columns that domain.statistics.Sums explains."""
    return [
        Column("tries", Integer, nullable=False),
        Column("failed", Integer, nullable=False),
        Column("lost", Integer, nullable=False),
        Column("expected_failed", Float(53), nullable=False),
        Column("busy_seconds", Float(53), nullable=False),
        Column("duration_seconds", Float(53), nullable=False),
        Column("queue_seconds", Float(53), nullable=False),
        Column("queued_tries", Integer, nullable=False),
    ]


def _time_columns() -> list[Column[Any]]:
    """Return the columns that say what time a row covers.

    A complete day has rows of its own beside those of its hours, which are removed later: see store.statistics.
    """
    return [
        # 1 or 24.
        Column("hours", SmallInteger, primary_key=True, autoincrement=False),
        # The first of them, counted from 1970 in UTC.
        Column("hour", Integer, primary_key=True, autoincrement=False),
    ]


worker_hour = Table(
    "worker_insight_worker_hour",
    metadata,
    *_time_columns(),
    Column("unit_digest", BigInteger, primary_key=True, autoincrement=False),
    *_counts(),
    # NULL where the concurrency is unknown.
    Column("slot_seconds", Float(53)),
    # Of a day: the busy seconds in hours whose slot_seconds are known.
    Column("slotted_seconds", Float(53)),
    # For pages and filters that show few workers.
    Index("worker_insight_worker_hour_unit_digest", "unit_digest", "hours", "hour"),
)

queue_hour = Table(
    "worker_insight_queue_hour",
    metadata,
    *_time_columns(),
    Column("queue_digest", BigInteger, primary_key=True, autoincrement=False),
    *_counts(),
    # Empty where Airflow kept none.
    Column("queue", String(256), nullable=False),
)

task_hour = Table(
    "worker_insight_task_hour",
    metadata,
    *_time_columns(),
    # Digest of Dag ID and task ID.
    Column("task_digest", BigInteger, primary_key=True, autoincrement=False),
    *_counts(),
    Column("dag_id", StringID(), nullable=False),
    Column("task_id", StringID(), nullable=False),
)

# --- decisions on workers --------------------------------------------------------------------------------------------

enforcement = Table(
    "worker_insight_enforcement",
    metadata,
    # A worker instance that was kept off work with an executor that knows no decisions. The row stays as long as the
    # worker's own: it may forget its queues after a release too.
    Column("worker_ref", Integer, primary_key=True, autoincrement=False),
    # All queues that it was seen to consume before it was told to stop, to be given back.
    Column("queues", JSON, nullable=False),
    Column("requested_at", Timestamp, nullable=False),
    # When the worker was first seen to take no new work; NULL until then.
    Column("in_effect_at", Timestamp),
    # When it was seen to take work again; NULL while it is held, and until then.
    Column("released_at", Timestamp),
    # Tries that it had fetched before: it still runs them.
    Column("fetched", Integer),
    # Why the latest request failed; NULL if it did not.
    Column("error", String(REASON_LENGTH)),
)
