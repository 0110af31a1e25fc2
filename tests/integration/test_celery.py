"""Two Celery workers on one host: each attempt names the worker that Celery recorded."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pytest

from tests.integration.accounting import (
    airflow_tries,
    assert_rest_agrees,
    attempts,
    attributions,
    left_in_xcom,
    mentions,
    wait_accounted,
)
from tests.integration.dags import STATES_OF_THE_200, TWO_HUNDRED_TRIES
from tests.support.deployment import Deployment
from tests.support.fleet import WITNESS, Try, start_worker, witnessed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.accounting import Attempt
    from tests.support.environments import Environment
    from tests.support.services import Postgres, Redis

HOST = socket.gethostname()

ON_W1 = (
    WITNESS
    + """
from airflow.sdk import dag, task


@dag(schedule=None)
def on_w1():
    @task(queue="w1")
    def only(**context):
        witness(context)

    only()


on_w1()
"""
)


def start(airflow: Deployment, name: str, *, wait: bool = True) -> None:
    start_worker(airflow, name, "--queues", f"default,{name}", instance=f"{name}@{HOST}", wait=wait)


@pytest.fixture(scope="module")
def airflow(airflow_env: Callable[[str], Environment], postgres: Postgres, redis: Redis) -> Iterator[Deployment]:
    with Deployment(
        airflow_env("3.3.2"),
        executor="CeleryExecutor",
        postgres=postgres,
        redis=redis,
        config={
            # Celery then stores with each result which worker it came from and what it was asked for.
            "celery.extra_celery_config": json.dumps({"result_extended": True}),
            "core.parallelism": "32",
            # Nothing changes in these files: the processor's time is better spent on tasks.
            "dag_processor.min_file_process_interval": "600",
        },
    ) as airflow:
        airflow.write_dag("two_hundred", TWO_HUNDRED_TRIES)
        airflow.write_dag("on_w1", ON_W1)
        airflow.migrate()
        for name in ("w1", "w2"):
            start(airflow, name, wait=False)
        airflow.start_all()
        yield airflow


def by_celery(airflow: Deployment, run_id: str) -> tuple[dict[Try, str], dict[str, str]]:
    """Return the nodes from Celery's result backend, by try and by ID of the Celery task."""
    by_try: dict[Try, str] = {}
    by_task: dict[str, str] = {}
    for row in airflow.sql("SELECT task_id, args, worker FROM celery_taskmeta WHERE worker IS NOT NULL"):
        # The only argument is Airflow's workload, as JSON in itself.
        (workload,) = json.loads(bytes(row["args"]))
        ti = json.loads(workload)["ti"]
        if ti["run_id"] == run_id:
            by_try[Try(ti["task_id"], ti["map_index"], ti["try_number"])] = row["worker"]
            by_task[row["task_id"]] = row["worker"]
    return by_try, by_task


def run(airflow: Deployment, dag_id: str, timeout: float = 120) -> tuple[str, dict[Try, Attempt]]:
    """Run a Dag to its end and return the run's ID and its attempts."""
    run_id = airflow.trigger(dag_id)
    airflow.wait_run(dag_id, run_id, timeout=timeout, expect="success")
    return run_id, wait_accounted(airflow, dag_id, run_id)


def test_each_of_200_tries_on_two_workers_names_the_one_that_ran_it(airflow: Deployment) -> None:
    run_id, recorded = run(airflow, "two_hundred", timeout=400)

    assert {key: attempt.state for key, attempt in recorded.items()} == STATES_OF_THE_200
    assert attributions(recorded) == {"reported": 200}

    names = {key: attempt.worker.name for key, attempt in recorded.items()}
    by_try, by_task = by_celery(airflow, run_id)
    assert names == by_try
    assert names == {key: instance for key, (instance,) in witnessed(airflow, "two_hundred", run_id).items()}
    for key, row in airflow_tries(airflow, "two_hundred", run_id).items():
        # Airflow misses the ID of a task that ends before the scheduler stores it; any ID it has must agree.
        assert row["external_executor_id"] is None or by_task[row["external_executor_id"]] == names[key]

    # Both workers ran tasks. All processes of a worker report one ID, that of the started process.
    workers = {attempt.worker.name: (attempt.worker.worker_id, attempt.worker.pid) for attempt in recorded.values()}
    assert {(attempt.worker.name, attempt.worker.worker_id, attempt.worker.pid) for attempt in recorded.values()} == {
        (name, worker_id, pid) for name, (worker_id, pid) in workers.items()
    }
    assert {name: pid for name, (_, pid) in workers.items()} == {
        f"{name}@{HOST}": airflow.components[name].pid for name in ("w1", "w2")
    }
    assert len({worker_id for worker_id, _ in workers.values()}) == 2
    assert {attempt.worker.kind for attempt in recorded.values()} == {"celery"}

    assert left_in_xcom(airflow, "two_hundred", run_id) == []
    assert mentions(airflow) == []
    assert_rest_agrees(airflow, "two_hundred", run_id)


def test_restarted_worker_is_a_new_instance_of_the_same_name(airflow: Deployment) -> None:
    earlier_run, before = run(airflow, "on_w1")
    earlier_pid = airflow.components["w1"].pid
    airflow.stop("w1")
    start(airflow, "w1")
    _, after = run(airflow, "on_w1")

    key = Try("only", -1, 1)
    assert before[key].attribution == after[key].attribution == "reported"
    assert before[key].worker.name == after[key].worker.name == f"w1@{HOST}"
    assert before[key].worker.worker_id != after[key].worker.worker_id
    assert (before[key].worker.pid, after[key].worker.pid) == (earlier_pid, airflow.components["w1"].pid)
    # The earlier instance keeps its attempts.
    assert attempts(airflow, "on_w1", earlier_run) == before
