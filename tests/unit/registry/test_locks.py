"""Others' locks on our tables, for the thread that polls the workers: it logs them and tries again."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.domain.states import SourceName
from airflow_worker_insight.registry import poll
from airflow_worker_insight.registry.gauges import FleetGauges
from airflow_worker_insight.registry.observations import PollContext, PollResult, WorkerObservation
from airflow_worker_insight.store import retention, session
from airflow_worker_insight.store.insight_tables import (
    enforcement,
    finding,
    late_attempt,
    queue_hour,
    task_hour,
    unit,
    worker_hour,
)
from airflow_worker_insight.store.tables import attempt, change, placement, worker, worker_source
from tests.unit.database import OUR_TABLES, Database, a_worker, locked, record_start

if TYPE_CHECKING:
    from pytest_mock import MockerFixture

pytestmark = [
    pytest.mark.parametrize("database", ["postgresql"], indirect=True),
    pytest.mark.parametrize("table", OUR_TABLES),
]


@pytest.fixture(autouse=True)
def brief_waits(mocker: MockerFixture) -> None:
    mocker.patch.object(session, "BACKGROUND", replace(session.BACKGROUND, lock=0.2))


class OneWorker:
    """A source with one worker."""

    name = SourceName.CELERY

    def poll(self, view: PollContext) -> PollResult:
        now = view.clock()
        return PollResult(
            (WorkerObservation(kind="celery", engine_name="w1", hostname="host-1", pid=100, heartbeat_at=now),)
        )


def test_a_poll_that_cannot_be_written_says_why_and_leaves_no_lease_behind(
    database: Database, table: str, mocker: MockerFixture
) -> None:
    mocker.patch.object(poll, "configured_sources", return_value=[OneWorker()])
    with locked(database, table):
        (outcome,) = poll.refresh(only_if_due=True).sources
    if table not in {worker.name, worker_source.name}:
        assert (outcome.polled, outcome.error) == (True, None)
        return
    assert not outcome.polled
    assert "lock timeout" in (outcome.error or "")
    (outcome,) = poll.refresh(only_if_due=table == worker_source.name).sources
    assert outcome.polled
    assert [row["state"] for row in database.workers()] == ["online"]


def test_gauges_keep_their_values(
    database: Database, table: str, monkeypatch: pytest.MonkeyPatch, mocker: MockerFixture
) -> None:
    fleet = FleetGauges()
    emit = mocker.patch.object(fleet, "emit")
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__METRICS_PER_WORKER", "True")
    with locked(database, table):
        fleet.update()
    is_in_the_way = table in {worker.name, finding.name}
    assert emit.call_count == (0 if is_in_the_way else 1)
    fleet.update()
    assert emit.call_count == (1 if is_in_the_way else 2)


def test_retention_rests_and_goes_on_later(
    database: Database,
    table: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    task = retention.RetentionTask(pause_seconds=0)
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__RETENTION_DAYS", "30")
    old = datetime.now(timezone.utc) - timedelta(days=60)
    with database.engine.begin() as connection:
        key = TryKey("etl", "run-1", "extract", -1, 1)
        record_start(connection, key, a_worker(), try_started_at=old, state="running", now=old)
        connection.execute(attempt.update().values(state="success", ended_at=old))
        connection.execute(worker.update().values(state="lost", ended_at=old))
    with locked(database, table):
        removed = task.run_if_due()
    analysis = {
        finding.name,
        late_attempt.name,
        unit.name,
        worker_hour.name,
        queue_hour.name,
        task_hour.name,
        enforcement.name,
    }
    is_in_the_way = table in {attempt.name, worker.name, placement.name, change.name, enforcement.name, *analysis}
    assert (removed is None) == is_in_the_way
    assert len([one for one in caplog.records if "older than its limit" in one.getMessage()]) == int(is_in_the_way)
    task.run_if_due()
    assert (database.attempts(), database.workers()) == ([], [])
