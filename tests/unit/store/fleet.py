"""Workers as readers get them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_worker_insight.store.workers import queries as worker_queries

if TYPE_CHECKING:
    from airflow_worker_insight.domain.workers import WorkerRow
    from tests.unit.database import Database


def get(database: Database, worker_id: str) -> WorkerRow:
    """Return a worker that there is."""
    with database.engine.connect() as connection:
        found = worker_queries.get_worker(connection, worker_id)
    assert found is not None
    return found
