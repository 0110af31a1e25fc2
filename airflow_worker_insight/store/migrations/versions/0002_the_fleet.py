"""Worker sources, worker states and history, and indexes for lists of attempts.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from airflow.models.base import StringID
from alembic import op
from sqlalchemy.dialects import mysql

from airflow_worker_insight.store import online_migration as online
from airflow_worker_insight.store.tables import metadata

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

Timestamp = sa.TIMESTAMP(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql")

WORKER, ATTEMPT = "worker_insight_worker", "worker_insight_attempt"
CHANGE, ENGINE = "worker_insight_change", "worker_insight_engine"

# The same as store.tables.start_slot. (SQLite would round to milliseconds, so the fraction is cut off first.)
SLOT = {
    "postgresql": "floor(extract(epoch from started_at) / 600)",
    "mysql": "floor(timestampdiff(second, '1970-01-01', started_at) / 600)",
    "sqlite": "cast(strftime('%s', substr(started_at, 1, 19)) as integer) / 600",
}

# The columns that the statements below use.
worker = sa.table(
    WORKER,
    sa.column("id", sa.Integer()),
    sa.column("worker_id", StringID(length=64)),
    sa.column("reported_id", StringID(length=64)),
    sa.column("host_only", sa.Boolean()),
    schema=metadata.schema,
)
attempt = sa.table(
    ATTEMPT,
    sa.column("run_key", sa.BigInteger()),
    sa.column("task_key", sa.BigInteger()),
    sa.column("worker_ref", sa.Integer()),
    sa.column("started_at", Timestamp),
    sa.column("start_slot", sa.Integer()),
    schema=metadata.schema,
)


def _worker_columns() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("reported_id", StringID(length=64)),
        sa.Column("engine_name", sa.String(250)),
        sa.Column("ended_at", Timestamp),
        sa.Column("state", sa.SmallInteger()),
        sa.Column("state_reason", sa.String(500)),
        sa.Column("availability", sa.SmallInteger(), nullable=False, server_default="1"),
        sa.Column("queues", sa.JSON()),
        sa.Column("concurrency", sa.Integer()),
        sa.Column("running", sa.Integer()),
        sa.Column("engine_started_at", Timestamp),
        sa.Column("engine_heartbeat_at", Timestamp),
    )


def _attempt_columns() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("start_slot", sa.Integer()),
        sa.Column("load", sa.SmallInteger()),
        sa.Column("memory_free", sa.SmallInteger()),
        sa.Column("running_beside", sa.SmallInteger()),
    )


WORKER_INDEXES = (
    ("worker_insight_worker_reported_id", "reported_id", True),
    ("worker_insight_worker_engine_name", "engine_name", False),
    ("worker_insight_worker_state", "state", False),
)


def upgrade() -> None:
    """Add worker sources, states and history, and start slots; known workers keep their IDs."""
    dialect = op.get_context().dialect.name
    online.add_columns(WORKER, *_worker_columns())
    reports_itself = sa.not_(worker.c.host_only) & worker.c.reported_id.is_(None)
    online.update_in_batches(
        worker,
        ["id"],
        lambda these: op.execute(sa.update(worker).where(these, reports_itself).values(reported_id=worker.c.worker_id)),
    )
    for name, indexed, unique in WORKER_INDEXES:
        online.create_index(name, WORKER, [indexed], unique=unique)
    online.create_table(
        CHANGE,
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("worker_ref", sa.Integer(), nullable=False),
        sa.Column("changed_at", Timestamp, nullable=False),
        sa.Column("state", sa.SmallInteger()),
        sa.Column("availability", sa.SmallInteger()),
        sa.Column("reason", sa.String(500)),
        sa.Column("changed_by", sa.String(250)),
        sa.PrimaryKeyConstraint("id", name="worker_insight_change_pkey"),
    )
    online.create_index("worker_insight_change_worker_ref", CHANGE, ["worker_ref"])
    online.create_table(
        ENGINE,
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("due_at", Timestamp, nullable=False),
        sa.Column("looked_at", Timestamp),
        sa.Column("reached_since", Timestamp),
        sa.Column("error", sa.String(500)),
        sa.PrimaryKeyConstraint("name", name="worker_insight_engine_pkey"),
    )

    online.add_columns(ATTEMPT, *_attempt_columns())
    has_no_slot = attempt.c.started_at.is_not(None) & attempt.c.start_slot.is_(None)
    fill_slot = sa.update(attempt).values(start_slot=sa.literal_column(SLOT[dialect]))
    online.update_in_batches(
        attempt, ["run_key", "task_key"], lambda these: op.execute(fill_slot.where(these, has_no_slot))
    )
    # Lists begin with the latest start and end with tries without a start: PostgreSQL reads NULLS FIRST backwards.
    # A descending index would be half empty, because new rows are inserted at its front.
    slot = sa.text("start_slot NULLS FIRST" if dialect == "postgresql" else "start_slot")
    online.create_index("worker_insight_attempt_start_slot", ATTEMPT, [slot])
    online.create_index("worker_insight_attempt_dag_id", ATTEMPT, ["dag_id", slot])
    by_worker = "worker_insight_attempt_worker_ref"
    if online.index_columns(ATTEMPT, by_worker) != ["worker_ref", "start_slot"]:
        online.drop_index(by_worker, ATTEMPT)
    online.create_index(by_worker, ATTEMPT, ["worker_ref", slot])
    online.drop_index("worker_insight_attempt_started_at", ATTEMPT)
    if not op.get_context().as_sql:
        # Rows that processes of the former version have written meanwhile; the index finds them at once.
        online.run_step(lambda: op.execute(fill_slot.where(has_no_slot)))


def downgrade() -> None:
    """Remove worker sources, states and history, and start slots.

    All attempts stay, and the workers that reported themselves or that an attempt refers to.
    """
    dialect = op.get_context().dialect.name
    by_worker = "worker_insight_attempt_worker_ref"
    online.drop_index("worker_insight_attempt_start_slot", ATTEMPT)
    online.drop_index("worker_insight_attempt_dag_id", ATTEMPT)
    if online.index_columns(ATTEMPT, by_worker) != ["worker_ref"]:
        online.drop_index(by_worker, ATTEMPT)
    online.create_index(by_worker, ATTEMPT, ["worker_ref"])
    online.drop_columns(ATTEMPT, *(column.name for column in _attempt_columns()))
    start = sa.text("started_at NULLS FIRST" if dialect == "postgresql" else "started_at")
    online.create_index("worker_insight_attempt_started_at", ATTEMPT, [start])
    online.drop_table(ENGINE)
    online.drop_table(CHANGE)
    if online.has_column(WORKER, "reported_id"):
        never_reported = sa.not_(worker.c.host_only) & worker.c.reported_id.is_(None)
        named = sa.exists().where(attempt.c.worker_ref == worker.c.id)
        unknown = sa.delete(worker).where(never_reported, ~named)
        online.update_in_batches(worker, ["id"], lambda these: op.execute(unknown.where(these)))
        # The ID that a worker's processes report becomes its only ID again.
        renamed = sa.update(worker).where(worker.c.reported_id.is_not(None)).values(worker_id=worker.c.reported_id)
        online.update_in_batches(worker, ["id"], lambda these: op.execute(renamed.where(these)))
    for name, _, _ in WORKER_INDEXES:
        online.drop_index(name, WORKER)
    online.drop_columns(WORKER, *(column.name for column in _worker_columns()))
