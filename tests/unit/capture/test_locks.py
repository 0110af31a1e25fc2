"""Others' locks on our tables, on a real PostgreSQL: what runs inside Airflow's request does not wait for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from airflow_worker_insight import compat
from airflow_worker_insight.capture import reconcile
from airflow_worker_insight.capture.queue import QueueSettings, ReconcileQueue
from airflow_worker_insight.capture.report import REPORT_KEY
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.store.insight_tables import late_attempt
from airflow_worker_insight.store.tables import VERSION_TABLE, attempt, placement, worker
from tests.support.processes import wait_for
from tests.unit.capture.reports import a_report, a_running_try, push, stored_xcoms
from tests.unit.database import OUR_TABLES, change_try, locked

if TYPE_CHECKING:
    from pytest_mock import MockerFixture

    from airflow_worker_insight.capture.claim import Claimer
    from airflow_worker_insight.capture.counters import Counters
    from tests.unit.database import Database

pytestmark = [
    pytest.mark.skipif(not compat.is_airflow_3(), reason="on Airflow 2.11 the task process writes its own row"),
    pytest.mark.parametrize("database", ["postgresql"], indirect=True),
    pytest.mark.usefixtures("claimer"),
]

EXCLUSIVE = "ACCESS EXCLUSIVE"
CLAIMED = {attempt.name, worker.name, late_attempt.name}
"""What a claim writes to; the last one only for tries that have started long before, as those of these tests."""


@pytest.mark.parametrize(("table", "mode"), [*((table, EXCLUSIVE) for table in OUR_TABLES), (attempt.name, "SHARE")])
def test_locked_table_delays_no_request_and_loses_no_report(database: Database, table: str, mode: str) -> None:
    running_try, other = a_running_try(database), a_running_try(database, "load")
    with locked(database, table, mode):
        push(running_try, a_report(running_try.try_id))
        push(other, "2", key="return_value")
        stored = {key for _, key, _ in stored_xcoms(database)}
    is_in_the_way = table in CLAIMED
    assert stored == {"return_value", *([REPORT_KEY] if is_in_the_way else [])}
    assert reconcile.claim_left_behind() == int(is_in_the_way)
    assert [row["task_id"] for row in database.attempts()] == ["extract"]


def test_claiming_pauses_after_a_timeout_until_the_tables_are_usable(
    database: Database, claimer: Claimer, counters: Counters, caplog: pytest.LogCaptureFixture
) -> None:
    tries = [a_running_try(database, f"task-{number}") for number in range(3)]
    with locked(database, attempt.name):
        push(tries[0], a_report(tries[0].try_id))
        assert counters.snapshot() == {"reports.unclaimed": 1, "claims.paused": 1}
        with pytest.raises(Exception, match="lock timeout"):
            reconcile.claim_left_behind()
        push(tries[1], a_report(tries[1].try_id))
        assert counters.snapshot() == {"reports.unclaimed": 1, "claims.paused": 1}, "the second does not even try"
    push(tries[2], a_report(tries[2].try_id))
    assert len(stored_xcoms(database)) == 3
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1

    assert reconcile.claim_left_behind() == 3
    assert stored_xcoms(database) == []
    assert not claimer.breaker.is_open
    next_one = a_running_try(database, "next")
    push(next_one, a_report(next_one.try_id))
    assert stored_xcoms(database) == []
    assert len(database.attempts()) == 4


def test_only_one_claim_waits_for_a_locked_table(database: Database, claimer: Claimer, counters: Counters) -> None:
    """Each holds one of Airflow's few connections. Another one waits already, so this one does not."""
    running_try = a_running_try(database)
    with locked(database, worker.name), claimer.lock_wait:
        push(running_try, a_report(running_try.try_id))
        assert counters.snapshot() == {"reports.unclaimed": 1}
        assert not claimer.breaker.is_open
    assert reconcile.claim_left_behind() == 1
    assert stored_xcoms(database) == []


def test_without_reports_left_behind_no_query_is_sent(database: Database, mocker: MockerFixture) -> None:
    del database
    engine = mocker.patch.object(metadata_database, "engine")
    assert reconcile.claim_left_behind() == 0
    engine.assert_not_called()


def test_check_after_a_failure_does_not_wait_for_the_version_table(database: Database) -> None:
    """What is wrong is looked up there."""
    running_try = a_running_try(database)
    with database.engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {attempt.name} DROP COLUMN load"))
    with locked(database, VERSION_TABLE):
        push(running_try, a_report(running_try.try_id))
    assert [key for _, key, _ in stored_xcoms(database)] == [REPORT_KEY]


@pytest.mark.parametrize("table", [attempt.name, worker.name, placement.name])
def test_a_dag_run_that_ends_meanwhile_is_reconciled_later(database: Database, counters: Counters, table: str) -> None:
    running_try = a_running_try(database)
    quick = QueueSettings(
        commit_delay=0,
        retry_delays=(),
        postpone_delay=0.01,
        poll_interval=0.01,
        recheck_delays=(),
        max_postponements=10_000,
    )
    queue = ReconcileQueue(quick, catch_up=False, counters=counters)
    with database.engine.begin() as connection:
        change_try(connection, running_try.key, state="success")
        run = metadata_database.dag_run_table()
        connection.execute(run.update().values(state="success"))
    with locked(database, table):
        queue.put("etl", "run-1")
        wait_for(lambda: any(waiting.postponed for waiting in queue._heap), 30, "the run to be postponed")

    def states() -> list[Any]:
        return [row["state"] for row in database.attempts()]

    wait_for(lambda: states() == ["success"], 30, "the run to be reconciled")
    assert "runs.not_reconciled" not in counters.snapshot()
