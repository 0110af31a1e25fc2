"""Who ran the tries that the analysis reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_worker_insight.domain.attempts import AirflowTry, StartedTry
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.store import tries
from airflow_worker_insight.store.attempts import close, start
from airflow_worker_insight.store.workers.upsert import upsert_worker
from tests.unit.database import NOON, a_worker, at, on_both

if TYPE_CHECKING:
    from tests.unit.database import Database

KEY = TryKey("etl", "run-1", "load", -1, 1)
TRY = AirflowTry(KEY, (7,), state="success", started_at=NOON, ended_at=at(60))
(ROW_KEY,) = TRY.row_keys


def read(database: Database) -> tuple[str, bool]:
    """Return the first worker of the try, and whether another one went on with it."""
    with database.engine.connect() as connection:
        (found,) = tries.starts(connection, NOON, at(60), limit=10)
        assert found.row_key == ROW_KEY
        loaded = tries.load(connection, [ROW_KEY], now=at(600))[ROW_KEY]
        assert loaded.started_at == NOON
        return loaded.worker.name, bool(tries.moved(connection, [ROW_KEY]))


def report(database: Database, name: str, seconds: float) -> None:
    started = StartedTry(KEY, 7, NOON, "running")
    with database.engine.begin() as connection:
        start.record_start(connection, started, a_worker(name, name=name), now=at(seconds))


@on_both
def test_a_report_counts_before_what_was_inferred(database: Database) -> None:
    with database.engine.begin() as connection:
        ref = upsert_worker(connection, a_worker("inferred", name="inferred"), now=NOON)
        close.add_tries(connection, [(TRY, "inferred", ref)])
    assert read(database) == ("inferred", False)
    report(database, "first", 90)
    assert read(database) == ("first", False)
    report(database, "second", 120)
    assert read(database) == ("first", True)
