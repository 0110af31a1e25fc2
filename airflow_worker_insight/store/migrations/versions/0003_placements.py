"""Placements by the executors of this package, and the reason on each attempt.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from airflow.models.base import StringID
from sqlalchemy.dialects import mysql

from airflow_worker_insight.store import online_migration as online

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

Timestamp = sa.TIMESTAMP(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql")

ATTEMPT, PLACEMENT = "worker_insight_attempt", "worker_insight_placement"


def upgrade() -> None:
    """Create the table, and add the reason to attempts.

    No attempt is rewritten, because the new column is NULL.
    """
    online.create_table(
        PLACEMENT,
        sa.Column("run_key", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("task_key", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("try_number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("map_index", sa.Integer(), nullable=False),
        sa.Column("worker_ref", sa.Integer()),
        sa.Column("is_open", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.SmallInteger(), nullable=False),
        sa.Column("placed_at", Timestamp, nullable=False),
        sa.Column("own_queue", sa.String(100)),
        sa.Column("detail", sa.String(300), nullable=False),
        sa.Column("dag_id", StringID(), nullable=False),
        sa.Column("run_id", StringID(), nullable=False),
        sa.Column("task_id", StringID(), nullable=False),
        sa.PrimaryKeyConstraint("run_key", "task_key", "try_number", name="worker_insight_placement_pkey"),
    )
    online.create_index("worker_insight_placement_open", PLACEMENT, ["is_open", "worker_ref"])
    online.add_columns(ATTEMPT, sa.Column("placement", sa.SmallInteger()))


def downgrade() -> None:
    """Remove placements and reasons."""
    online.drop_columns(ATTEMPT, "placement")
    online.drop_table(PLACEMENT)
