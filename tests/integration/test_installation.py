"""Install into an Airflow with a history: before the migration, after it, and backfilled."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.integration.accounting import (
    REPORT_KEY,
    airflow_tries,
    assert_rest_agrees,
    attempts,
    attributions,
    left_in_xcom,
    mentions,
    wait_accounted,
)
from tests.support.deployment import Deployment
from tests.support.fleet import WITNESS, Try
from tests.support.processes import accepts_connections, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.environments import Environment
    from tests.support.services import Postgres

HOST = socket.gethostname()

DAG = (
    WITNESS
    + """
import time

from airflow.sdk import dag, task


@dag(schedule=None)
def history():
    @task(retries=1, retry_delay=0)
    def fails_first(**context):
        if context["ti"].try_number == 1:
            raise RuntimeError("on purpose")

    @task
    def mapped(number):
        pass

    fails_first()
    mapped.expand(number=[1, 2])


@dag(schedule=None)
def held():
    @task
    def only(**context):
        witness(context)
        while not os.path.exists(os.path.join(os.environ["AIRFLOW_HOME"], "release")):
            time.sleep(0.1)

    only()


history()
held()
"""
)

STATES = {
    Try("fails_first", -1, 1): "failed",
    Try("fails_first", -1, 2): "success",
    Try("mapped", 0, 1): "success",
    Try("mapped", 1, 1): "success",
}

COPIES = 150
"""One and a half of backfill's batches of 100 Dag runs."""


def run(airflow: Deployment) -> str:
    run_id = airflow.trigger("history")
    airflow.wait_run("history", run_id, expect="success")
    return run_id


def copy_runs(airflow: Deployment, dag_id: str, run_id: str, copies: int) -> None:
    """Copy the rows of a run under other names, all two days ago."""
    before = {
        "run_id": "'copy-' || n",
        "start_date": "start_date - interval '2 days'",
        "end_date": "end_date - interval '2 days'",
    }
    for table, special in {
        "dag_run": {"id": None, "logical_date": "NULL"},
        "task_instance": {"id": "gen_random_uuid()"},
        "task_instance_history": {"task_instance_id": "gen_random_uuid()"},
    }.items():
        changed: dict[str, str | None] = {**before, **special}
        names = [
            row["column_name"]
            for row in airflow.sql(
                "SELECT column_name FROM information_schema.columns WHERE table_name = :name", name=table
            )
        ]
        kept = [name for name in names if changed.get(name, name) is not None]
        airflow.sql(
            f"INSERT INTO {table} ({', '.join(kept)}) "
            f"SELECT {', '.join(changed.get(name) or name for name in kept)} "
            f"FROM {table}, generate_series(1, :copies) AS n WHERE dag_id = :dag_id AND run_id = :run_id",
            copies=copies,
            dag_id=dag_id,
            run_id=run_id,
        )


def tables(airflow: Deployment) -> list[str]:
    rows = airflow.sql("SELECT table_name FROM information_schema.tables WHERE table_name LIKE 'worker_insight%'")
    return [row["table_name"] for row in rows]


@pytest.fixture(scope="module")
def airflow(
    airflow_env: Callable[[str], Environment],
    bare_airflow_env: Callable[[str], Environment],
    postgres: Postgres,
) -> Iterator[Deployment]:
    """Return a deployment with a history and the package, not yet migrated."""
    with Deployment(bare_airflow_env("3.3.2"), executor="LocalExecutor", postgres=postgres) as airflow:
        airflow.write_dag("history", DAG)
        airflow.migrate()
        airflow.start_all()
        copy_runs(airflow, "history", run(airflow), COPIES)
        airflow.stop("scheduler", "api-server", "dag-processor")

        airflow.environment = airflow_env("3.3.2")
        airflow.env["PATH"] = f"{airflow.environment.bin}{os.pathsep}{airflow.env['PATH']}"
        airflow.start_all()
        yield airflow


@pytest.fixture(scope="module")
def migrated(airflow: Deployment) -> Deployment:
    airflow.airflow("db", "migrate")
    return airflow


def test_tasks_succeed_while_the_tables_are_missing(airflow: Deployment) -> None:
    assert tables(airflow) == []
    run_id = run(airflow)
    assert {key: row["state"] for key, row in airflow_tries(airflow, "history", run_id).items()} == STATES
    # The scheduler warns once its reconcile has failed.
    airflow.wait_for(lambda: "reconcile" in str(mentions(airflow)), 90, "the scheduler to warn")
    answer = airflow.api("GET", "/worker-insight/api/v1/attempts")
    assert answer.status_code == 503
    assert "airflow db migrate" in answer.json()["detail"]
    # One warning for each process that needed the tables, with the remedy; none in a task log.
    warnings = mentions(airflow)
    assert sorted(warning.partition(":")[0] for warning in warnings) == ["api-server.log", "scheduler.log"]
    assert all("airflow db migrate" in warning for warning in warnings)

    # The reports waited as XComs: with the tables, the API server or the command claims them.
    airflow.airflow("db", "migrate")
    airflow.run("airflow-worker-insight", "reconcile", "--dag-id", "history", "--run-id", run_id)
    recorded = wait_accounted(airflow, "history", run_id)
    # When the next try starts, Airflow clears the XComs of a task, and with them the report of its first try.
    assert {key for key, attempt in recorded.items() if attempt.attribution == "inferred"} == {
        Try("fails_first", -1, 1)
    }
    assert attributions(recorded)["reported"] == 3
    scheduler = airflow.components["scheduler"].pid
    assert {(attempt.worker.pid, attempt.worker.hostname) for attempt in recorded.values()} == {(scheduler, HOST)}
    assert left_in_xcom(airflow, "history", run_id) == []
    # An API server that found no tables checks again some seconds later.
    airflow.wait_for(
        lambda: airflow.api("GET", "/worker-insight/api/v1/attempts").status_code == 200, 30, "the tables to be seen"
    )
    assert_rest_agrees(airflow, "history", run_id)


def test_interrupted_backfill_resumes_and_completes(migrated: Deployment) -> None:
    airflow = migrated
    runs = [f"copy-{number}" for number in range(1, COPIES + 1)]
    assert not any(attempts(airflow, "history", run_id) for run_id in runs)

    # Ctrl-C while backfill writes its second batch of Dag runs.
    airflow.sql(
        "CREATE FUNCTION takes_long() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF NEW.run_id = 'copy-120' THEN PERFORM pg_sleep(3); END IF; RETURN NEW; END $$"
    )
    airflow.sql(
        "CREATE TRIGGER takes_long BEFORE INSERT ON worker_insight_attempt FOR EACH ROW EXECUTE FUNCTION takes_long()"
    )
    backfill = subprocess.Popen(
        [airflow.environment.command("airflow-worker-insight"), "backfill", "--dag-id", "history"],
        env=airflow.env,
        cwd=airflow.home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    airflow.wait_for(
        lambda: airflow.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"), 60, "the second batch"
    )
    backfill.send_signal(signal.SIGINT)
    printed, _ = backfill.communicate(timeout=60)
    assert backfill.returncode == 130
    assert "100 Dag runs" in printed
    go_on = re.search(r"continue with: (.+)", printed)
    assert go_on is not None, printed
    # The first batch also holds the original run.
    assert sum(bool(attempts(airflow, "history", run_id)) for run_id in runs) == 99

    airflow.sql("DROP TRIGGER takes_long ON worker_insight_attempt")
    resumed = airflow.run(*shlex.split(go_on[1]))
    assert re.search(rf"\b5\d Dag runs: {51 * len(STATES)} tries added", resumed), resumed
    for run_id in runs:
        recorded = attempts(airflow, "history", run_id)
        assert {key: attempt.state for key, attempt in recorded.items()} == STATES
        assert {attempt.attribution for attempt in recorded.values()} == {"backfilled"}
        assert {(attempt.worker.hostname, attempt.worker.kind) for attempt in recorded.values()} == {(HOST, "local")}
    assert_rest_agrees(airflow, "history", runs[-1])

    before = airflow.sql("SELECT * FROM worker_insight_attempt ORDER BY run_key, task_key, try_number, worker_ref")
    again = airflow.run("airflow-worker-insight", "backfill")
    assert "0 tries added, 0 closed" in again
    assert before == airflow.sql(
        "SELECT * FROM worker_insight_attempt ORDER BY run_key, task_key, try_number, worker_ref"
    )


def test_reports_wait_for_reconcile_where_the_api_server_loads_no_plugin(migrated: Deployment) -> None:
    """An API server with only the execution app loads no plugin, so nothing claims there."""
    airflow = migrated
    port = free_port()
    airflow.stop("scheduler", "api-server")
    airflow.start("api-server", "--apps", "core")
    airflow.start("api-server", "--apps", "execution", "--port", str(port), name="server for tasks")
    airflow.wait_for(lambda: accepts_connections(port), 60, "the server for tasks")
    url = f"http://localhost:{port}/execution/"
    airflow.start("scheduler", env={"AIRFLOW__CORE__EXECUTION_API_SERVER_URL": url})

    run_id = airflow.trigger("held")
    airflow.wait_for(
        lambda: [row["key"] for row in left_in_xcom(airflow, "held", run_id)] == [REPORT_KEY],
        60,
        "the report to wait as an XCom",
    )
    (airflow.home / "release").touch()
    airflow.wait_run("held", run_id, expect="success")
    recorded = wait_accounted(airflow, "held", run_id)
    assert attributions(recorded) == {"reported": 1}
    assert recorded[Try("only", -1, 1)].worker.pid == airflow.components["scheduler"].pid
    assert left_in_xcom(airflow, "held", run_id) == []
