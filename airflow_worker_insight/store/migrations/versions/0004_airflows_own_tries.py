"""Attempts keyed by Airflow's own task instances, and task processes counted once.

Before, attempts were keyed by the names of their tries.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import sqlalchemy as sa
from alembic import op

from airflow_worker_insight.store import online_migration as online
from airflow_worker_insight.store import rekeying

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ATTEMPT = "worker_insight_attempt"


def upgrade() -> None:
    """Add the key of the task process, and rekey attempts step by step."""
    online.add_columns(ATTEMPT, sa.Column("process_key", sa.Integer()))
    if op.get_context().as_sql:
        op.execute("-- recorded tries get their new keys from `airflow-worker-insight backfill`")
        return
    _in_steps(rekeying.rekey_step, 0)


def downgrade() -> None:
    """Key attempts by the names of their tries again, step by step."""
    if not op.get_context().as_sql:
        _in_steps(rekeying.key_by_names_step, rekeying.FIRST_KEY)
    online.drop_columns(ATTEMPT, "process_key")


def _in_steps(act: Callable[[Connection, int], int | None], first: int) -> None:
    """Run steps in transactions of their own; each returns where the next one continues."""
    last: int | None = first
    while last is not None:
        last = online.run_step(partial(_act, act, last))


def _act(act: Callable[[Connection, int], int | None], last: int) -> int | None:
    return act(op.get_bind(), last)
