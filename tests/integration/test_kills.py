"""Every try is accounted for, and none names a wrong worker, whatever is killed."""

from __future__ import annotations

import contextlib
import random
import socket
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.integration.accounting import attributions, wait_accounted
from tests.integration.dags import TRAP
from tests.support.deployment import Deployment
from tests.support.fleet import INSTANCE, WITNESS, Try, start_worker, witnessed

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

if {INSTANCE!r} in os.environ:
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


class WorkerInstances:
    """The started worker instances, each with a name of its own and its process ID."""

    def __init__(self, airflow: Deployment) -> None:
        self.airflow = airflow
        self.pids: dict[str, int] = {}

    def start(self, name: str, *, wait: bool = True) -> None:
        instance = f"{name}, instance {len(self.pids)}"
        component = start_worker(self.airflow, name, "--queues", f"default,{name}", instance=instance, wait=wait)
        self.pids[instance] = component.pid

    def assert_matches_witnesses(self, recorded: Mapping[Try, Attempt], dag_id: str, run_id: str) -> None:
        """Compare the worker of each attempt with what its task wrote when it started."""
        instances = witnessed(self.airflow, dag_id, run_id)
        for key, attempt in recorded.items():
            ran_on = {self.pids[instance] for instance in instances.get(key, ()) if instance is not None}
            for worker in attempt.workers:
                assert worker.hostname == HOST, (key, attempt)
                assert worker.kind == "celery", (key, attempt)
                if not worker.host_only:
                    assert worker.pid in (ran_on or set(self.pids.values())), (key, attempt, instances.get(key))
            assert not (ran_on and attempt.attribution in {"never_started", "not_on_a_worker"}), (key, attempt)


@pytest.fixture(scope="module")
def instances(airflow_env: Callable[[str], Environment], postgres: Postgres, redis: Redis) -> Iterator[WorkerInstances]:
    with Deployment(
        airflow_env("3.3.2"),
        executor="CeleryExecutor",
        postgres=postgres,
        redis=redis,
        config={
            "core.parallelism": "32",
            # Airflow notices dead processes after seconds, not minutes.
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
        instances = WorkerInstances(airflow)
        for name in ("w1", "w2"):
            instances.start(name, wait=False)
        airflow.start_all()
        yield instances


def test_killed_and_unimportable_tasks_are_accounted_for(instances: WorkerInstances) -> None:
    airflow = instances.airflow
    killed_run = airflow.trigger("killed_tasks")
    broken_run = airflow.trigger("breaks_in_the_worker")
    airflow.wait_run("killed_tasks", killed_run, expect="failed")
    airflow.wait_run("breaks_in_the_worker", broken_run, expect="failed")
    killed = wait_accounted(airflow, "killed_tasks", killed_run)
    broken = wait_accounted(airflow, "breaks_in_the_worker", broken_run)

    recorded_ends = {key: (attempt.state, attempt.attribution) for key, attempt in {**killed, **broken}.items()}
    expected: dict[Try, tuple[str, str]] = {
        **{Try("in_its_code", index, 1): ("failed", "reported") for index in range(3)},
        **{Try("in_its_code", index, 2): ("success", "reported") for index in range(3)},
        **{Try("before_its_code", -1, number): ("failed", "inferred") for number in (1, 2)},
        **{Try("never_parsed", -1, number): ("failed", "inferred") for number in (1, 2)},
    }
    assert recorded_ends == expected
    instances.assert_matches_witnesses(killed, "killed_tasks", killed_run)
    instances.assert_matches_witnesses(broken, "breaks_in_the_worker", broken_run)


def test_tries_of_a_killed_worker_are_accounted_for(instances: WorkerInstances) -> None:
    airflow = instances.airflow
    run_id = airflow.trigger("held_on_w2")
    airflow.wait_for(lambda: len(witnessed(airflow, "held_on_w2", run_id)) == 2, 60, "both tasks to run")
    airflow.kill("w2", descendants=True)
    instances.start("w2")
    airflow.wait_run("held_on_w2", run_id, expect="success")
    recorded = wait_accounted(airflow, "held_on_w2", run_id)

    assert {key: (attempt.state, attempt.attribution) for key, attempt in recorded.items()} == {
        **{Try("held", index, 1): ("failed", "reported") for index in range(2)},
        **{Try("held", index, 2): ("success", "reported") for index in range(2)},
    }
    instances.assert_matches_witnesses(recorded, "held_on_w2", run_id)
    # Two instances of one name.
    workers = {(key.try_number, attempt.worker.worker_id) for key, attempt in recorded.items()}
    assert len(workers) == 2
    assert {attempt.worker.name for attempt in recorded.values()} == {f"w2@{HOST}"}


def test_every_try_is_accounted_for_whatever_process_is_killed(instances: WorkerInstances) -> None:
    airflow = instances.airflow
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    dice = random.Random(seed)
    run_id = airflow.trigger("under_fire")
    airflow.wait_for(lambda: witnessed(airflow, "under_fire", run_id), 60, "the first task to run")

    def kill_a_process() -> bool:
        """Kill a random process of a worker that runs a task."""
        targets = [process for name in ("w1", "w2") for process in processes_of_tasks(airflow, name)]
        if not targets:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            dice.choice(targets).kill()
        return True

    for _ in range(5):
        airflow.wait_for(kill_a_process, 60, "a process to kill", interval=dice.random())
    airflow.kill("api-server", descendants=True)
    airflow.start("api-server")
    for _ in range(5):
        airflow.wait_for(kill_a_process, 60, "a process to kill", interval=dice.random())
    airflow.wait_run("under_fire", run_id)
    recorded = wait_accounted(airflow, "under_fire", run_id)
    print(f"{len(recorded)} tries: {attributions(recorded)}")

    assert {key.map_index for key in recorded} == set(range(30))
    # Only the few tasks that report while the API server is down may lose their reports.
    began = witnessed(airflow, "under_fire", run_id)
    assert len([key for key in began if recorded[key].attribution != "reported"]) <= 4
    instances.assert_matches_witnesses(recorded, "under_fire", run_id)


def processes_of_tasks(airflow: Deployment, worker: str) -> list[psutil.Process]:
    """Return the processes of a worker that run a task: pool processes and their children."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for pool_process in psutil.Process(airflow.components[worker].pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                children = pool_process.children()
                found += [pool_process, *children] if children else []
    return found
