"""A fleet that somebody looks at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import insert

from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.tables import worker_source

if TYPE_CHECKING:
    from tests.unit.database import Database


@pytest.fixture
def polled_sources(database: Database) -> None:
    """Have every engine looked at just now."""
    with database.engine.begin() as connection:
        now = database_now(connection)
        names = ("celery", "edge", "jobs", "tries")
        connection.execute(insert(worker_source), [{"name": name, "due_at": now, "looked_at": now} for name in names])
