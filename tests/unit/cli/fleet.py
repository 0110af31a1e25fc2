"""Workers and tries for the tests of what the command shows of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import insert

from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.tables import worker, worker_source
from tests.unit.database import NOON, Database, a_worker, at, record_start

if TYPE_CHECKING:
    from datetime import datetime


def looked_at(database: Database) -> None:
    """Have all engines looked at just now, so that the states that are stored count."""
    with database.engine.begin() as connection:
        now = database_now(connection)
        for name in ("celery", "edge", "jobs", "local", "tries"):
            connection.execute(insert(worker_source).values(name=name, due_at=now, looked_at=now, reached_since=now))


def add_worker(
    database: Database, worker_id: str, *, task_id: str | None = None, when: datetime = NOON, **columns: Any
) -> None:
    """Store a worker that ran one try, and what else is known of it."""
    record = {name: columns.pop(name) for name in ("name", "kind", "hostname", "labels", "pid") if name in columns}
    with database.engine.begin() as connection:
        key = TryKey("etl", "run-1", task_id or f"by {worker_id}", -1, 1)
        record_start(connection, key, a_worker(worker_id, **record), try_started_at=when, state="running", now=at(0))
        if columns:
            connection.execute(worker.update().where(worker.c.worker_id == worker_id).values(**columns))
