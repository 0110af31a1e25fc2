"""Tries are kept by Airflow's own task instances and not by names, and each of their processes is counted once.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

from airflow_worker_insight.store import rekeying
from airflow_worker_insight.store.tables import metadata

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ATTEMPT = "worker_insight_attempt"


def upgrade() -> None:
    """Give recorded tries their new keys step by step, then make room for the process: nothing is rewritten for that.

    The column comes last: what was interrupted begins again and finds it missing.
    """
    if context.is_offline_mode():
        op.execute("-- recorded tries get their new keys from `airflow-worker-insight backfill`")
    else:
        with op.get_context().autocommit_block():
            for _ in rekeying.rekey_all(op.get_bind()):
                pass
    op.add_column(ATTEMPT, sa.Column("process_key", sa.Integer()), schema=metadata.schema)


def downgrade() -> None:
    """Key tries by their names again, step by step."""
    op.drop_column(ATTEMPT, "process_key", schema=metadata.schema)
    if not context.is_offline_mode():
        with op.get_context().autocommit_block():
            for _ in rekeying.key_by_names_again(op.get_bind()):
                pass
