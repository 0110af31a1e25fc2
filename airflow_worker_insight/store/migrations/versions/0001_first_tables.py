"""Workers and attempts: the first two tables.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from airflow.models.base import StringID
from alembic import op
from sqlalchemy.dialects import mysql

from airflow_worker_insight.store.tables import metadata

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

Timestamp = sa.TIMESTAMP(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql")


def upgrade() -> None:
    """Create the two tables."""
    op.create_table(
        "worker_insight_worker",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("worker_id", StringID(length=64), nullable=False),
        sa.Column("name", sa.String(250), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("hostname", sa.String(255), nullable=False),
        sa.Column("pid", sa.Integer()),
        sa.Column("host_only", sa.Boolean(), nullable=False),
        sa.Column("job_id", sa.Integer()),
        sa.Column("started_at", Timestamp),
        sa.Column("registered_at", Timestamp, nullable=False),
        sa.Column("last_seen_at", Timestamp, nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("resources", sa.JSON(), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("fingerprint", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="worker_insight_worker_pkey"),
        schema=metadata.schema,
    )
    for name, columns, unique in (
        ("worker_insight_worker_worker_id", ["worker_id"], True),
        ("worker_insight_worker_name", ["name"], False),
        ("worker_insight_worker_hostname", ["hostname"], False),
    ):
        op.create_index(name, "worker_insight_worker", columns, unique=unique, schema=metadata.schema)
    op.create_table(
        "worker_insight_attempt",
        sa.Column("run_key", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("task_key", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("started_at", Timestamp),
        sa.Column("ended_at", Timestamp),
        sa.Column("first_started_at", Timestamp),
        sa.Column("last_started_at", Timestamp),
        sa.Column("try_number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("worker_ref", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("map_index", sa.Integer(), nullable=False),
        sa.Column("process_count", sa.Integer(), nullable=False),
        sa.Column("ordinal", sa.SmallInteger(), nullable=False),
        sa.Column("state", sa.SmallInteger()),
        sa.Column("attribution", sa.SmallInteger(), nullable=False),
        sa.Column("dag_id", StringID(), nullable=False),
        sa.Column("run_id", StringID(), nullable=False),
        sa.Column("task_id", StringID(), nullable=False),
        sa.PrimaryKeyConstraint("run_key", "task_key", "try_number", "worker_ref", name="worker_insight_attempt_pkey"),
        schema=metadata.schema,
    )
    op.create_index(
        "worker_insight_attempt_worker_ref", "worker_insight_attempt", ["worker_ref"], schema=metadata.schema
    )
    # Lists begin with the latest start and end with tries without a start: PostgreSQL reads NULLS FIRST backwards.
    # A descending index would be half empty, because new rows are inserted at its front.
    is_postgresql = op.get_context().dialect.name == "postgresql"
    op.create_index(
        "worker_insight_attempt_started_at",
        "worker_insight_attempt",
        [sa.text("started_at NULLS FIRST" if is_postgresql else "started_at")],
        schema=metadata.schema,
    )


def downgrade() -> None:
    """Drop the two tables."""
    op.drop_table("worker_insight_attempt", schema=metadata.schema)
    op.drop_table("worker_insight_worker", schema=metadata.schema)
