"""Notes of attempts that were recorded late: who writes them, and who deletes those that nobody reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from airflow_worker_insight.domain.attempts import AirflowTry
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.store import late_attempts, retention
from airflow_worker_insight.store.attempts import close
from airflow_worker_insight.store.insight_tables import late_attempt
from airflow_worker_insight.store.workers.upsert import upsert_worker
from tests.unit.database import NOON, a_worker, on_both

if TYPE_CHECKING:
    import pytest

    from tests.unit.database import Database


def noted(database: Database) -> list[tuple[Any, ...]]:
    with database.engine.connect() as connection:
        return sorted(tuple(row) for row in connection.execute(select(late_attempt)))


def a_try(task_id: str, instance: int) -> AirflowTry:
    key = TryKey("etl", "run-1", task_id, -1, 1)
    return AirflowTry(key, (instance,), state="success", started_at=NOON, ended_at=NOON)


@on_both
def test_what_reconciling_adds_is_noted_if_a_worker_ran_it_since_the_installation(database: Database) -> None:
    with database.engine.begin() as connection:
        ref = upsert_worker(connection, a_worker(), now=NOON)
        rows = [
            (a_try("inferred", 1), "inferred", ref),
            (a_try("unknown", 2), "unknown", 0),
            (a_try("backfilled", 3), "backfilled", ref),
        ]
        close.add_tries(connection, rows)
        close.add_tries(connection, rows)
    assert noted(database) == [rows[0][0].row_keys[0]]
    with database.engine.begin() as connection:
        assert late_attempts.read(connection, limit=10) == noted(database)
        late_attempts.forget(connection, noted(database))
    assert noted(database) == []


def test_nothing_is_noted_while_the_analysis_is_switched_off(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__INSIGHT_ENABLED", "False")
    with database.engine.begin() as connection:
        ref = upsert_worker(connection, a_worker(), now=NOON)
        close.add_tries(connection, [(a_try("inferred", 1), "inferred", ref)])
    assert noted(database) == []


@on_both
def test_retention_deletes_notes_without_an_attempt(database: Database) -> None:
    with database.engine.begin() as connection:
        ref = upsert_worker(connection, a_worker(), now=NOON)
        close.add_tries(connection, [(a_try("kept", 1), "inferred", ref)])
        late_attempts.note(connection, [(1, number, 1) for number in range(5)])
    kept = a_try("kept", 1).row_keys[0]
    assert len(noted(database)) == 6
    list(retention.prune(NOON, batch_size=2))
    assert noted(database) == [kept]
