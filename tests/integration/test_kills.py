"""Whatever is killed, and whenever: every try is accounted for, and none names a worker that did not run it."""

from __future__ import annotations

import contextlib
import random
import socket
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.integration.accounting import (
    LIFE,
    WITNESS,
    Try,
    attributions,
    start_worker,
    wait_accounted,
    witnessed,
)
from tests.integration.dags import TRAP
from tests.support.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.integration.accounting import Attempt
    from tests.support.environments import Environment
    from tests.support.services import Postgres, Redis

HOST = socket.gethostname()

KILLED_TASKS = (
    WITNESS
    + TRAP
    + """
from airflow.sdk import dag, task


@dag(schedule=None, max_active_tasks=64)
def killed_tasks():
    @task(retries=1, retry_delay=0)
    def in_its_code(number, **context):
        witness(context)
        if context["ti"].try_number == 1:
            die()

    @task(retries=1, retry_delay=0)
    def before_its_code(bait):
        raise AssertionError("never reached")

    in_its_code.expand(number=[1, 2, 3])
    before_its_code(Trap())


killed_tasks()
"""
)

BREAKS_IN_THE_WORKER = f"""
import os

from airflow.sdk import dag, task

if {LIFE!r} in os.environ:
    raise ImportError("this file cannot be imported here")


@dag(schedule=None)
def breaks_in_the_worker():
    @task(retries=1, retry_delay=0)
    def never_parsed():
        raise AssertionError("never reached")

    never_parsed()


breaks_in_the_worker()
"""

HELD_ON_W2 = (
    WITNESS
    + """
import time

from airflow.sdk import dag, task


@dag(schedule=None)
def held_on_w2():
    @task(queue="w2", retries=1, retry_delay=0)
    def held(number, **context):
        witness(context)
        while context["ti"].try_number == 1:
            time.sleep(0.1)

    held.expand(number=[1, 2])


held_on_w2()
"""
)

UNDER_FIRE = (
    WITNESS
    + """
import time

from airflow.sdk import dag, task


@dag(schedule=None, max_active_tasks=64)
def under_fire():
    @task(retries=2, retry_delay=0)
    def work(number, **context):
        witness(context)
        time.sleep(0.5)

    work.expand(number=list(range(30)))


under_fire()
"""
)


class Lives:
    """The workers of this module: each life under a name of its own, with its process."""

    def __init__(self, airflow: Deployment) -> None:
        self.airflow = airflow
        self.pids: dict[str, int] = {}

    def start(self, name: str, *, wait: bool = True) -> None:
        life = f"{name}, life {len(self.pids)}"
        component = start_worker(self.airflow, name, "--queues", f"default,{name}", life=life, wait=wait)
        self.pids[life] = component.pid

    def assert_never_wrong(self, recorded: Mapping[Try, Attempt], dag_id: str, run_id: str) -> None:
        """Compare what is said of each try with what the tasks of the run wrote when they began."""
        lives = witnessed(self.airflow, dag_id, run_id)
        for key, one in recorded.items():
            ran_on = {self.pids[life] for life in lives.get(key, ()) if life is not None}
            for worker in one.workers:
                assert worker.hostname == HOST, (key, one)
                assert worker.kind == "celery", (key, one)
                if not worker.host_only:
                    assert worker.pid in (ran_on or set(self.pids.values())), (key, one, lives.get(key))
            assert not (ran_on and one.attribution in {"never_started", "not_on_a_worker"}), (key, one)


@pytest.fixture(scope="module")
def lives(airflow_env: Callable[[str], Environment], postgres: Postgres, redis: Redis) -> Iterator[Lives]:
    with Deployment(
        airflow_env("3.3.2"),
        executor="CeleryExecutor",
        postgres=postgres,
        redis=redis,
        config={
            "core.parallelism": "32",
            # What died is noticed after seconds instead of minutes.
            "scheduler.task_instance_heartbeat_timeout": "15",
            "scheduler.task_instance_heartbeat_timeout_detection_interval": "3",
            "scheduler.task_instance_heartbeat_sec": "3",
            "scheduler.task_queued_timeout": "40",
            "scheduler.task_queued_timeout_check_interval": "5",
            "workers.min_heartbeat_interval": "3",
            "workers.execution_api_retry_wait_max": "3",
            "workers.execution_api_retries": "12",
            "dag_processor.min_file_process_interval": "600",
        },
    ) as airflow:
        for name, source in {
            "killed_tasks": KILLED_TASKS,
            "breaks_in_the_worker": BREAKS_IN_THE_WORKER,
            "held_on_w2": HELD_ON_W2,
            "under_fire": UNDER_FIRE,
        }.items():
            airflow.write_dag(name, source)
        airflow.migrate()
        lives = Lives(airflow)
        for name in ("w1", "w2"):
            lives.start(name, wait=False)
        airflow.start_all()
        for name in ("w1", "w2"):
            airflow.wait_ready(airflow.components[name])
        yield lives


def test_tasks_that_are_killed_or_cannot_be_imported(lives: Lives) -> None:
    airflow = lives.airflow
    killed_run = airflow.trigger("killed_tasks")
    broken_run = airflow.trigger("breaks_in_the_worker")
    airflow.wait_run("killed_tasks", killed_run, expect="failed")
    airflow.wait_run("breaks_in_the_worker", broken_run, expect="failed")
    killed = wait_accounted(airflow, "killed_tasks", killed_run)
    broken = wait_accounted(airflow, "breaks_in_the_worker", broken_run)

    said = {key: (one.state, one.attribution) for key, one in {**killed, **broken}.items()}
    expected: dict[Try, tuple[str, str]] = {
        **{Try("in_its_code", index, 1): ("failed", "reported") for index in range(3)},
        **{Try("in_its_code", index, 2): ("success", "reported") for index in range(3)},
        **{Try("before_its_code", -1, number): ("failed", "inferred") for number in (1, 2)},
        **{Try("never_parsed", -1, number): ("failed", "inferred") for number in (1, 2)},
    }
    assert said == expected
    lives.assert_never_wrong(killed, "killed_tasks", killed_run)
    lives.assert_never_wrong(broken, "breaks_in_the_worker", broken_run)


def test_a_worker_that_is_killed_in_mid_run(lives: Lives) -> None:
    airflow = lives.airflow
    run_id = airflow.trigger("held_on_w2")
    airflow.wait_for(lambda: len(witnessed(airflow, "held_on_w2", run_id)) == 2, 60, "both tasks to run")
    airflow.kill("w2", descendants=True)
    lives.start("w2")
    airflow.wait_run("held_on_w2", run_id, expect="success")
    recorded = wait_accounted(airflow, "held_on_w2", run_id)

    assert {key: (one.state, one.attribution) for key, one in recorded.items()} == {
        **{Try("held", index, 1): ("failed", "reported") for index in range(2)},
        **{Try("held", index, 2): ("success", "reported") for index in range(2)},
    }
    lives.assert_never_wrong(recorded, "held_on_w2", run_id)
    # The same name, and two lives of it.
    workers = {(key.try_number, one.worker.worker_id) for key, one in recorded.items()}
    assert len(workers) == 2
    assert {one.worker.name for one in recorded.values()} == {f"w2@{HOST}"}


def test_processes_killed_at_any_moment_while_the_api_server_restarts(lives: Lives) -> None:
    airflow = lives.airflow
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    dice = random.Random(seed)
    run_id = airflow.trigger("under_fire")
    airflow.wait_for(lambda: witnessed(airflow, "under_fire", run_id), 60, "the first task to run")

    def shoot() -> bool:
        """Kill one process of a worker that is busy with a task, in whatever it is doing."""
        targets = [process for name in ("w1", "w2") for process in processes_of_tasks(airflow, name)]
        if not targets:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            dice.choice(targets).kill()
        return True

    for _ in range(5):
        airflow.wait_for(shoot, 60, "a process to kill", interval=dice.random())
    airflow.kill("api-server", descendants=True)
    airflow.start("api-server")
    for _ in range(5):
        airflow.wait_for(shoot, 60, "a process to kill", interval=dice.random())
    airflow.wait_run("under_fire", run_id)
    recorded = wait_accounted(airflow, "under_fire", run_id)
    print(f"{len(recorded)} tries: {attributions(recorded)}")

    assert {key.map_index for key in recorded} == set(range(30))
    # A report can be lost only while the API server is gone, of those few tasks that were about to send it.
    began = witnessed(airflow, "under_fire", run_id)
    assert len([key for key in began if recorded[key].attribution != "reported"]) <= 4
    lives.assert_never_wrong(recorded, "under_fire", run_id)


def processes_of_tasks(airflow: Deployment, worker: str) -> list[psutil.Process]:
    """Return the processes of a worker that are busy with a task: pool processes with a child, and these children."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for pool_process in psutil.Process(airflow.components[worker].pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                children = pool_process.children()
                found += [pool_process, *children] if children else []
    return found
