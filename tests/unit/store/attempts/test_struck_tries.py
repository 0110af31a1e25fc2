"""What a lost worker took with it, where its clock is wrong."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import update

from airflow_worker_insight.store.attempts.by_worker import lost_attempts
from airflow_worker_insight.store.tables import worker
from airflow_worker_insight.store.workers import queries as worker_queries
from tests.unit.database import NOON, a_worker, add_run, add_try, at, close, record_start

if TYPE_CHECKING:
    from tests.unit.database import Database


@pytest.mark.parametrize(
    ("ahead", "found"),
    [
        (-600, ["by Airflow"]),
        (0, ["by Airflow"]),
        (240, ["by Airflow"]),
        # What failed two minutes before the end seems to have done so after Airflow may have failed the other one.
        (600, ["by Airflow", "by itself, late"]),
    ],
)
def test_what_failed_by_itself_was_not_taken_along_by_a_worker_whose_clock_is_ahead(
    database: Database, ahead: float, found: list[str]
) -> None:
    """The worker was seen last at noon."""
    by_itself = {"by itself, early": -360, "by itself, late": -120}
    ends = {name: at(seconds + ahead) for name, seconds in by_itself.items()}
    one = a_worker("w", started_at=at(-7200 + ahead))
    with database.engine.begin() as connection:
        run = add_run(connection)
        for name, ended_at in {**ends, "by Airflow": at(305)}.items():
            started_at = at(-1800 + ahead)
            key = add_try(connection, run, name, state="failed", started_at=started_at, ended_at=ended_at)
            record_start(connection, key, one, try_started_at=started_at, state="running", now=at(-1800))
            close(connection, run)
        values = {"state": "lost", "last_seen_at": NOON, "ended_at": NOON, "engine_started_at": at(-7200)}
        connection.execute(update(worker).values(values))
    with database.engine.connect() as connection:
        lost = worker_queries.get_worker(connection, "w")
        assert lost is not None
        assert lost.clock_ahead == timedelta(seconds=ahead)
        struck, total = lost_attempts(connection, lost, dag_ids={"etl"}, limit=10)
    assert (sorted(one_try.task_id for one_try in struck), total) == (found, len(found))


@pytest.mark.parametrize("values", [{"engine_started_at": None}, {"kind": "edge"}, {"reported_id": None}])
def test_of_other_workers_nothing_tells_how_their_clock_goes(database: Database, values: dict[str, str | None]) -> None:
    with database.engine.begin() as connection:
        one = a_worker("w")
        key = add_try(connection, add_run(connection))
        record_start(connection, key, one, try_started_at=NOON, state="running", now=NOON)
        connection.execute(update(worker).values({"engine_started_at": at(-7200), **values}))
    with database.engine.connect() as connection:
        found = worker_queries.get_worker(connection, "w")
        assert found is not None
        assert found.clock_ahead is None
