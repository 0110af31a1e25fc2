"""The executor that places tasks, on real Celery workers: where tasks go, and what becomes of them when workers do."""

from __future__ import annotations

import socket
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.accounting import WITNESS, start_worker, witnessed
from tests.support.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.environments import Environment
    from tests.support.services import Postgres, Redis

HOST = socket.gethostname()
EXECUTOR = "airflow_worker_insight.executors.celery.WorkerInsightCeleryExecutor"

QUICK = {
    "worker_insight.refresh_interval": "3",
    "worker_insight.heartbeat_timeout": "10",
    "worker_insight.lost_timeout": "15",
    # Nothing changes in the Dag files: the processor's time is better spent on tasks.
    "dag_processor.min_file_process_interval": "600",
    "core.parallelism": "64",
    "core.max_active_tasks_per_dag": "64",
}

MANY = (
    WITNESS
    + """
import time

from airflow.sdk import dag, task


@dag(schedule=None, params={"number": 40, "seconds": 0.0})
def many():
    @task
    def numbers(params):
        return list(range(int(params["number"])))

    @task(retries=2, retry_delay=0)
    def short(number, **context):
        witness(context)
        time.sleep(float(context["params"]["seconds"]))

    short.expand(number=numbers())


many()
"""
)

POISONED = (
    WITNESS
    + """
from airflow.sdk import dag, task


@dag(schedule=None)
def poisoned():
    @task
    def numbers():
        return list(range(20))

    @task(retries=1, retry_delay=0)
    def picky(number, **context):
        witness(context)
        if os.environ["TEST_WORKER_LIFE"].startswith("w1"):
            raise RuntimeError("this machine is broken")

    picky.expand(number=numbers())


poisoned()
"""
)


def start(airflow: Deployment, *names: str) -> None:
    for name in names:
        start_worker(airflow, name, life=name, wait=False)
    for name in names:
        airflow.wait_ready(airflow.components[name])


def placements(airflow: Deployment) -> list[dict[str, Any]]:
    return airflow.sql(
        "SELECT p.*, w.engine_name FROM worker_insight_placement p "
        "LEFT JOIN worker_insight_worker w ON w.id = p.worker_ref ORDER BY p.placed_at"
    )


def ran_on(airflow: Deployment, dag_id: str, run_id: str, task_id: str) -> Counter[str | None]:
    found = witnessed(airflow, dag_id, run_id)
    return Counter(lives[-1] for key, lives in found.items() if key.task_id == task_id)


@pytest.fixture(scope="module")
def airflow(airflow_env: Callable[[str], Environment], postgres: Postgres, redis: Redis) -> Iterator[Deployment]:
    with Deployment(airflow_env("3.3.2"), executor=EXECUTOR, postgres=postgres, redis=redis, config=QUICK) as airflow:
        airflow.write_dag("many", MANY)
        airflow.write_dag("poisoned", POISONED)
        airflow.migrate()
        start(airflow, "w1", "w2")
        airflow.start_all()
        yield airflow


def test_tasks_are_spread_over_the_workers(airflow: Deployment) -> None:
    run_id = airflow.trigger("many", conf={"number": 40})
    airflow.wait_run("many", run_id, timeout=300, expect="success")
    spread = ran_on(airflow, "many", run_id, "short")
    assert sum(spread.values()) == 40
    assert set(spread) == {"w1", "w2"}
    assert max(spread.values()) <= 1.1 * 20


def test_each_first_retry_succeeds_elsewhere(airflow: Deployment) -> None:
    run_id = airflow.trigger("poisoned")
    airflow.wait_run("poisoned", run_id, timeout=300, expect="success")
    found = witnessed(airflow, "poisoned", run_id)
    first = Counter(lives[0] for key, lives in found.items() if key.try_number == 1)
    second = Counter(lives[0] for key, lives in found.items() if key.try_number == 2)
    assert first["w1"] > 0
    assert second == {"w2": first["w1"]}, [
        (row["map_index"], row["try_number"], row["engine_name"], row["detail"]) for row in placements(airflow)
    ]
