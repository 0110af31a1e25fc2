"""LocalExecutor on SQLite: 200 tries, and every other way in which a task can end."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.conftest import REQUIRE_ALL
from tests.integration.accounting import (
    REPORT_KEY,
    assert_rest_agrees,
    attempts,
    attributions,
    left_in_xcom,
    mentions,
    wait_accounted,
)
from tests.integration.dags import STATES_OF_THE_200, TWO_HUNDRED_TRIES
from tests.support.deployment import Deployment
from tests.support.fleet import WITNESS, Try, witnessed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.environments import Environment

OTHER_USER = "nobody"

ALL_KINDS = (
    WITNESS
    + """
from datetime import datetime, timedelta, timezone

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import BaseOperator, TriggerRule, dag, task
from airflow.sdk.exceptions import AirflowSkipException

PAST = datetime(2025, 1, 1, tzinfo=timezone.utc)


class Defers(BaseOperator):
    def execute(self, context):
        witness(context)
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=4)), method_name="resume")

    def resume(self, context, event=None):
        witness(context)


@dag(schedule=None)
def all_kinds():
    # Airflow itself fails a task that it queues again before it has noticed that the executor is done with it: an
    # interval must be longer than a loop of the scheduler.
    @task.sensor(poke_interval=4, mode="reschedule", timeout=120)
    def rescheduled(**context):
        witness(context)
        path = os.path.join(os.environ["AIRFLOW_HOME"], "witness.jsonl")
        with open(path) as lines:
            mine = [line for line in map(json.loads, lines) if line["task_id"] == "rescheduled"]
        return len(mine) == 3

    @task
    def mapped(number, **context):
        witness(context)

    @task.branch
    def branch(**context):
        witness(context)
        return "chosen"

    @task
    def skips_itself(**context):
        witness(context)
        raise AirflowSkipException

    @task
    def fails(**context):
        witness(context)
        raise RuntimeError("on purpose")

    @task
    def after_failure():
        raise AssertionError("never reached")

    @task(trigger_rule=TriggerRule.ALL_DONE)
    def last(**context):
        witness(context)

    deferred = Defers(task_id="deferred")
    in_the_triggerer = DateTimeSensorAsync(
        task_id="in_the_triggerer",
        target_time=PAST,
        start_from_trigger=True,
        end_from_trigger=True,
        trigger_kwargs={"moment": PAST, "end_from_trigger": True},
    )
    branch() >> [EmptyOperator(task_id="chosen"), EmptyOperator(task_id="not_chosen")]
    [rescheduled(), fails() >> after_failure(), deferred, in_the_triggerer] >> last()
    mapped.expand(number=[1, 2])
    skips_itself()


all_kinds()
"""
)

HELD = (
    WITNESS
    + """
import time

from airflow.sdk import dag, task


@dag(schedule=None)
def held():
    @task
    def set_by_hand(**context):
        witness(context)
        while True:
            time.sleep(0.1)

    @task
    def holds_the_run(**context):
        witness(context)
        while not os.path.exists(os.path.join(os.environ["AIRFLOW_HOME"], "release")):
            time.sleep(0.1)

    @task
    def never_reached():
        raise AssertionError("never reached")

    set_by_hand()
    holds_the_run() >> never_reached()


held()
"""
)

AS_ANOTHER_USER = (
    WITNESS
    + f"""
from airflow.sdk import dag, task


@dag(schedule=None)
def as_another_user():
    @task(run_as_user={OTHER_USER!r})
    def other(**context):
        witness(context)

    @task
    def own(**context):
        witness(context)

    other()
    own()


as_another_user()
"""
)

IN_PROCESS = """
from airflow.sdk import dag, task


@dag(schedule=None)
def in_process():
    @task
    def only(ti):
        print("ran in process")

    # Airflow refuses Dags with such tasks while it knows of any listener.
    only().operator.end_from_trigger = True


made = in_process()

if __name__ == "__main__":
    made.test()
"""


@pytest.fixture(scope="module")
def airflow(airflow_env: Callable[[str], Environment]) -> Iterator[Deployment]:
    with Deployment(
        airflow_env("3.3.2"),
        executor="LocalExecutor",
        config={
            # These files do not change, but a locked database can fail the first try to store a Dag.
            "dag_processor.min_file_process_interval": "30",
            "workers.min_heartbeat_interval": "1",
            "scheduler.task_instance_heartbeat_sec": "1",
        },
    ) as airflow:
        # Comes before the commands of the machine.
        (airflow.home / "bin").mkdir()
        airflow.env["PATH"] = f"{airflow.home / 'bin'}{os.pathsep}{airflow.env['PATH']}"
        for name, source in {
            "two_hundred": TWO_HUNDRED_TRIES,
            "all_kinds": ALL_KINDS,
            "held": HELD,
            "as_another_user": AS_ANOTHER_USER,
        }.items():
            airflow.write_dag(name, source)
        airflow.migrate()
        airflow.start_all(triggerer=True)
        yield airflow


def test_each_of_200_tries_names_the_scheduler(airflow: Deployment) -> None:
    run_id = airflow.trigger("two_hundred")
    airflow.wait_run("two_hundred", run_id, timeout=400, expect="success")
    recorded = wait_accounted(airflow, "two_hundred", run_id)

    assert {key: attempt.state for key, attempt in recorded.items()} == STATES_OF_THE_200
    assert attributions(recorded) == {"reported": 200}
    # The worker of LocalExecutor is its scheduler.
    assert {(attempt.worker.kind, attempt.worker.pid) for attempt in recorded.values()} == {
        ("local", airflow.components["scheduler"].pid)
    }
    assert len({attempt.worker.worker_id for attempt in recorded.values()}) == 1
    assert {attempt.worker.process_count for attempt in recorded.values()} == {1}
    assert left_in_xcom(airflow, "two_hundred", run_id) == []
    assert mentions(airflow) == []
    assert_rest_agrees(airflow, "two_hundred", run_id)


def test_every_end_state_is_accounted_for(airflow: Deployment) -> None:
    run_id = airflow.trigger("all_kinds")
    airflow.wait_run("all_kinds", run_id)
    recorded = wait_accounted(airflow, "all_kinds", run_id)

    processes = {
        (key.task_id, key.map_index): (
            attempt.state,
            attempt.attribution,
            attempt.worker.process_count if attempt.workers else 0,
        )
        for key, attempt in recorded.items()
    }
    assert processes == {
        ("deferred", -1): ("success", "reported", 2),
        ("rescheduled", -1): ("success", "reported", 3),
        ("mapped", 0): ("success", "reported", 1),
        ("mapped", 1): ("success", "reported", 1),
        ("branch", -1): ("success", "reported", 1),
        ("skips_itself", -1): ("skipped", "reported", 1),
        ("fails", -1): ("failed", "reported", 1),
        ("last", -1): ("success", "reported", 1),
        ("in_the_triggerer", -1): ("success", "not_on_a_worker", 0),
        ("chosen", -1): ("success", "not_on_a_worker", 0),
        ("not_chosen", -1): ("skipped", "not_on_a_worker", 0),
        ("after_failure", -1): ("upstream_failed", "not_on_a_worker", 0),
    }
    # As many processes as the tasks wrote.
    assert {key: len(instances) for key, instances in witnessed(airflow, "all_kinds", run_id).items()} == {
        key: attempt.worker.process_count for key, attempt in recorded.items() if attempt.workers
    }
    assert {row["key"] for row in left_in_xcom(airflow, "all_kinds", run_id)} & {REPORT_KEY} == set()
    assert_rest_agrees(airflow, "all_kinds", run_id)


def test_state_set_by_a_user_closes_the_attempt(airflow: Deployment) -> None:
    run_id = airflow.trigger("held")
    airflow.wait_for(lambda: len(witnessed(airflow, "held", run_id)) == 2, 60, "both tasks to run")
    running = attempts(airflow, "held", run_id)
    assert {(attempt.state, attempt.attribution) for attempt in running.values()} == {("running", "reported")}

    for task_id in ("set_by_hand", "never_reached"):
        answer = airflow.api(
            "PATCH", f"/dags/held/dagRuns/{run_id}/taskInstances/{task_id}", json={"new_state": "success"}
        )
        assert answer.status_code == 200, answer.text
    by_hand = Try("set_by_hand", -1, 1)
    # It is closed while its run goes on, and keeps its worker.
    airflow.wait_for(
        lambda: attempts(airflow, "held", run_id)[by_hand].closed, 30, "the attempt set by hand to be closed"
    )
    assert attempts(airflow, "held", run_id)[by_hand].state == "success"
    assert attempts(airflow, "held", run_id)[by_hand].worker == running[by_hand].worker

    (airflow.home / "release").touch()
    airflow.wait_run("held", run_id, expect="success")
    recorded = wait_accounted(airflow, "held", run_id)
    assert {key.task_id: (attempt.state, attempt.attribution) for key, attempt in recorded.items()} == {
        "set_by_hand": ("success", "reported"),
        "holds_the_run": ("success", "reported"),
        "never_reached": ("success", "not_on_a_worker"),
    }


def test_run_failed_by_a_user_is_accounted_for(airflow: Deployment) -> None:
    (airflow.home / "release").unlink(missing_ok=True)
    run_id = airflow.trigger("held")
    airflow.wait_for(lambda: len(witnessed(airflow, "held", run_id)) == 2, 60, "both tasks to run")
    answer = airflow.api("PATCH", f"/dags/held/dagRuns/{run_id}", json={"state": "failed"})
    assert answer.status_code == 200, answer.text
    recorded = wait_accounted(airflow, "held", run_id)
    assert {key.task_id: (attempt.state, attempt.attribution) for key, attempt in recorded.items()} == {
        "set_by_hand": ("failed", "reported"),
        "holds_the_run": ("failed", "reported"),
        "never_reached": ("skipped", "not_on_a_worker"),
    }


def test_run_as_user_keeps_the_worker(airflow: Deployment) -> None:
    let_sudo_work(airflow)
    run_id = airflow.trigger("as_another_user")
    airflow.wait_run("as_another_user", run_id, expect="success")
    recorded = wait_accounted(airflow, "as_another_user", run_id)
    other, own = recorded[Try("other", -1, 1)], recorded[Try("own", -1, 1)]
    assert (other.attribution, own.attribution) == ("reported", "reported")
    assert other.worker == own.worker
    log = airflow.task_logs("as_another_user", lines=1000)
    assert f'"sudo","-E","-H","-u","{OTHER_USER}"' in log


def let_sudo_work(airflow: Deployment) -> None:
    """Make ``run_as_user`` work on this machine, or skip the test."""
    sudo = shutil.which("sudo")
    if sudo is None or subprocess.run([sudo, "-n", "-u", OTHER_USER, "true"], check=False).returncode != 0:
        reason = f"run_as_user needs root, sudo and the user {OTHER_USER}: apt-get install sudo"
        if os.environ.get(REQUIRE_ALL):
            pytest.fail(reason)
        pytest.skip(reason)
    python = [airflow.environment.python, "-c", "pass"]
    if subprocess.run([sudo, "-n", "-u", OTHER_USER, *python], check=False, capture_output=True).returncode != 0:
        # The interpreter is private to this user (in a home folder, say): use sudo, but stay this user.
        shim = airflow.home / "bin" / "sudo"
        shim.write_text(f'#!/bin/sh\nshift 4\nexec {sudo} -n -E -H -u "$(id -un)" "$@"\n')
        shim.chmod(0o755)
    # The other user must read the Dags and write the log and the witness file.
    airflow.home.chmod(0o755)
    airflow.logs_folder.chmod(0o777)
    (airflow.home / "witness.jsonl").touch()
    (airflow.home / "witness.jsonl").chmod(0o666)


def test_in_process_runs_record_nothing(airflow_env: Callable[[str], Environment]) -> None:
    # No scheduler: it would run the same tasks.
    with Deployment(airflow_env("3.3.2")) as airflow:
        file = airflow.write_dag("in_process", IN_PROCESS)
        airflow.migrate()
        airflow.reserialize()
        commands: list[tuple[str | Path, ...]] = [("python", file), ("airflow", "tasks", "test", "in_process", "only")]
        for command in commands:
            printed = airflow.run(*command)
            assert "ran in process" in printed
            assert "Worker Insight" not in printed
        assert len(airflow.sql("SELECT 1 FROM task_instance")) == 1
        for table in ("worker_insight_attempt", "worker_insight_worker", "xcom"):
            assert airflow.sql(f"SELECT * FROM {table}") == []
