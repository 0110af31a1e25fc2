"""The analysis: its job and state, findings, and statistics; and what was done to keep work off workers.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from airflow.models.base import StringID
from sqlalchemy.dialects import mysql

from airflow_worker_insight.store import online_migration as online

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

Timestamp = sa.TIMESTAMP(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql")
LongText = sa.Text().with_variant(mysql.LONGTEXT(), "mysql")
Serial = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

JOB = "worker_insight_job"
DETECTOR_PART = "worker_insight_detector_part"
LATE_ATTEMPT = "worker_insight_late_attempt"
FINDING = "worker_insight_finding"
FINDING_EVENT = "worker_insight_finding_event"
UNIT = "worker_insight_unit"
WORKER_HOUR = "worker_insight_worker_hour"
QUEUE_HOUR = "worker_insight_queue_hour"
TASK_HOUR = "worker_insight_task_hour"
ENFORCEMENT = "worker_insight_enforcement"


def upgrade() -> None:
    """Create the tables; they start empty."""
    online.create_table(
        JOB,
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("leased_until", Timestamp, nullable=False),
        sa.Column("holder", sa.String(64)),
        sa.Column("read_until", Timestamp),
        sa.Column("stored_at", Timestamp),
        sa.Column("stepped_at", Timestamp),
        sa.Column("error", sa.String(500)),
        sa.PrimaryKeyConstraint("name", name="worker_insight_job_pkey"),
    )
    online.create_table(
        DETECTOR_PART,
        sa.Column("part_key", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("value", LongText, nullable=False),
        sa.PrimaryKeyConstraint("part_key", name="worker_insight_detector_part_pkey"),
    )
    online.create_table(
        LATE_ATTEMPT,
        sa.Column("run_key", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("task_key", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("try_number", sa.Integer(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("run_key", "task_key", "try_number", name="worker_insight_late_attempt_pkey"),
    )
    online.create_table(
        FINDING,
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("subject_key", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("subject_kind", sa.SmallInteger(), nullable=False),
        sa.Column("outcome", sa.SmallInteger(), nullable=False),
        sa.Column("found_at", Timestamp, nullable=False),
        sa.Column("ended_at", Timestamp),
        sa.Column("end_reason", sa.SmallInteger()),
        sa.Column("updated_at", Timestamp, nullable=False),
        sa.Column("subject_dag_id", StringID()),
        sa.Column("dag_ids", LongText, nullable=False),
        sa.Column("worker_ids", LongText, nullable=False),
        sa.Column("data", LongText, nullable=False),
        sa.PrimaryKeyConstraint("id", name="worker_insight_finding_pkey"),
    )
    online.create_index("worker_insight_finding_state", FINDING, ["state", "found_at"])
    online.create_table(
        FINDING_EVENT,
        sa.Column("id", Serial, nullable=False),
        sa.Column("finding_ref", sa.Integer(), nullable=False),
        sa.Column("happened_at", Timestamp, nullable=False),
        sa.Column("action", sa.SmallInteger(), nullable=False),
        sa.Column("actor", sa.String(250)),
        sa.Column("reason", sa.String(500)),
        sa.PrimaryKeyConstraint("id", name="worker_insight_finding_event_pkey"),
    )
    online.create_index("worker_insight_finding_event_finding_ref", FINDING_EVENT, ["finding_ref"])
    online.create_table(
        UNIT,
        sa.Column("digest", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("last_hour", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("name", sa.String(250)),
        sa.Column("hostname", sa.String(255), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="worker_insight_unit_pkey"),
    )
    _create_sums(
        WORKER_HOUR,
        "unit_digest",
        sa.Column("slot_seconds", sa.Float(53)),
        sa.Column("slotted_seconds", sa.Float(53)),
    )
    online.create_index("worker_insight_worker_hour_unit_digest", WORKER_HOUR, ["unit_digest", "hours", "hour"])
    _create_sums(QUEUE_HOUR, "queue_digest", sa.Column("queue", sa.String(256), nullable=False))
    _create_sums(
        TASK_HOUR,
        "task_digest",
        sa.Column("dag_id", StringID(), nullable=False),
        sa.Column("task_id", StringID(), nullable=False),
    )
    online.create_table(
        ENFORCEMENT,
        sa.Column("worker_ref", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("queues", sa.JSON(), nullable=False),
        sa.Column("requested_at", Timestamp, nullable=False),
        sa.Column("in_effect_at", Timestamp),
        sa.Column("released_at", Timestamp),
        sa.Column("fetched", sa.Integer()),
        sa.Column("error", sa.String(500)),
        sa.PrimaryKeyConstraint("worker_ref", name="worker_insight_enforcement_pkey"),
    )


def _create_sums(table: str, key: str, *others: sa.Column[Any]) -> None:
    online.create_table(
        table,
        sa.Column("hours", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("hour", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column(key, sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("lost", sa.Integer(), nullable=False),
        sa.Column("expected_failed", sa.Float(53), nullable=False),
        sa.Column("busy_seconds", sa.Float(53), nullable=False),
        sa.Column("duration_seconds", sa.Float(53), nullable=False),
        sa.Column("queue_seconds", sa.Float(53), nullable=False),
        sa.Column("queued_tries", sa.Integer(), nullable=False),
        *others,
        sa.PrimaryKeyConstraint("hours", "hour", key, name=f"{table}_pkey"),
    )


def downgrade() -> None:
    """Remove the tables, and with them findings and statistics."""
    analysis = (TASK_HOUR, QUEUE_HOUR, WORKER_HOUR, UNIT, FINDING_EVENT, FINDING, LATE_ATTEMPT, DETECTOR_PART, JOB)
    for table in (ENFORCEMENT, *analysis):
        online.drop_table(table)
