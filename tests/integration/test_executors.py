"""The executor that places tasks, on real Celery workers: where tasks go, and what becomes of them when workers do."""

from __future__ import annotations

import os
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

pytestmark = pytest.mark.skipif(
    not os.environ.get("WORKER_INSIGHT_UNFINISHED"),
    reason="the executor is not finished: WORKER_INSIGHT_UNFINISHED=1 tries it",
)

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


def worker_id(airflow: Deployment, name: str) -> str:
    (row,) = airflow.sql(
        "SELECT worker_id FROM worker_insight_worker WHERE engine_name = :name AND ended_at IS NULL",
        name=f"{name}@{HOST}",
    )
    return str(row["worker_id"])


def decide(airflow: Deployment, name: str, availability: str) -> None:
    answer = airflow.api(
        "PATCH",
        f"/worker-insight/api/v1/workers/{worker_id(airflow, name)}",
        json={"availability": availability, "note": "a test"},
    )
    assert answer.ok, answer.text


def open_on(airflow: Deployment, name: str) -> int:
    return sum(row["is_open"] and row["engine_name"] == f"{name}@{HOST}" for row in placements(airflow))


def test_a_drained_worker_finishes_what_it_runs_and_gets_nothing_new(airflow: Deployment) -> None:
    run_id = airflow.trigger("many", conf={"number": 40, "seconds": 0.5})

    def ran() -> Counter[str | None]:
        return ran_on(airflow, "many", run_id, "short")

    airflow.wait_for(lambda: ran()["w1"] >= 3, 120, "it to be at work")
    decide(airflow, "w1", "draining")
    try:
        airflow.wait_for(lambda: open_on(airflow, "w1") == 0, 120, "it to be empty")
        on_w1 = ran()["w1"]
        assert sum(ran().values()) < 40, "there was more to do"
        airflow.wait_run("many", run_id, timeout=300, expect="success")
        assert ran() == {"w1": on_w1, "w2": 40 - on_w1}
    finally:
        decide(airflow, "w1", "available")
    # It is given work again.
    run_id = airflow.trigger("many", conf={"number": 10})
    airflow.wait_run("many", run_id, timeout=300, expect="success")
    assert ran()["w1"] > 0


def test_with_everybody_in_quarantine_tasks_wait_and_say_why(airflow: Deployment) -> None:
    for name in ("w1", "w2"):
        decide(airflow, name, "quarantined")
    try:
        run_id = airflow.trigger("many", conf={"number": 1})
        (row,) = airflow.wait_for(
            lambda: [row for row in placements(airflow) if row["run_id"] == run_id], 60, "the reason to be written"
        )
        assert (row["engine_name"], row["task_id"]) == (None, "numbers")
        assert "no worker of the queue default is available" in row["detail"]
        assert f"w1@{HOST}, w2@{HOST} (quarantined)" in row["detail"]
    finally:
        decide(airflow, "w2", "available")
    airflow.wait_run("many", run_id, timeout=120, expect="success")
    assert set(ran_on(airflow, "many", run_id, "short")) == {"w2"}


# --- workers that die ------------------------------------------------------------------------------------------------

HELD = (
    WITNESS
    + """
import time

from airflow.sdk import dag, task


@dag(schedule=None, params={"number": 54})
def held():
    @task(queue="prepare")
    def numbers(params):
        return list(range(int(params["number"])))

    @task(retries=2, retry_delay=0)
    def effect(number, **context):
        while not os.path.exists(os.path.join(os.environ["AIRFLOW_HOME"], "go")):
            time.sleep(0.2)
        witness(context)

    effect.expand(number=numbers())


held()
"""
)


def test_what_waits_at_a_worker_that_is_killed_runs_elsewhere_exactly_once(
    airflow_env: Callable[[str], Environment], postgres: Postgres, redis: Redis
) -> None:
    config = {
        **QUICK,
        "worker_insight.placement_backlog": "50",
        "celery.worker_concurrency": "4",
        "scheduler.task_instance_heartbeat_timeout": "30",
        "scheduler.task_instance_heartbeat_timeout_detection_interval": "5",
    }
    with Deployment(airflow_env("3.3.2"), executor=EXECUTOR, postgres=postgres, redis=redis, config=config) as airflow:
        airflow.write_dag("held", HELD)
        airflow.migrate()
        start_worker(airflow, "w0", "--queues", "prepare", life="w0", wait=False)
        start(airflow, "w1")
        airflow.start_all()
        run_id = airflow.trigger("held")

        def states() -> Counter[str]:
            return Counter(row["state"] for row in airflow.task_instances("held", run_id) if row["task_id"] == "effect")

        airflow.wait_for(lambda: states() == {"running": 4, "queued": 50}, 180, "4 to run and 50 to wait")
        airflow.wait_for(lambda: open_on(airflow, "w1") == 54, 60, "all to be placed")
        start(airflow, "w2")
        airflow.kill("w1", descendants=True)
        airflow.wait_for(lambda: open_on(airflow, "w2") >= 50, 70, "what waited to be taken back")
        (airflow.home / "go").touch()
        airflow.wait_run("held", run_id, timeout=300, expect="success")
        done = Counter(key.map_index for key in witnessed(airflow, "held", run_id))
        assert done == dict.fromkeys(range(54), 1)
        assert {life for lives in witnessed(airflow, "held", run_id).values() for life in lives} == {"w2"}
        taken = [row for row in placements(airflow) if row["detail"].startswith("taken back from w1")]
        kept = airflow.sql("SELECT count(*) AS n FROM worker_insight_attempt WHERE placement IS NOT NULL")
        assert len(taken) == 50 or kept[0]["n"] > 0


def test_a_scheduler_that_is_killed_leaves_nothing_behind(
    airflow_env: Callable[[str], Environment], postgres: Postgres, redis: Redis
) -> None:
    config = {
        **QUICK,
        "scheduler.orphaned_tasks_check_interval": "5",
        "scheduler.scheduler_health_check_threshold": "10",
    }
    with Deployment(airflow_env("3.3.2"), executor=EXECUTOR, postgres=postgres, redis=redis, config=config) as airflow:
        airflow.write_dag("held", HELD.replace("54", "24"))
        airflow.migrate()
        start_worker(airflow, "w0", "--queues", "prepare", life="w0", wait=False)
        start(airflow, "w1", "w2")
        airflow.start_all()
        run_id = airflow.trigger("held")
        # Two run and four wait at each of both; the rest waits with the scheduler, and goes with it.
        airflow.wait_for(lambda: open_on(airflow, "w1") == open_on(airflow, "w2") == 6, 180, "both to be full")
        airflow.kill("scheduler", descendants=True)
        airflow.start("scheduler", name="scheduler-2")
        (airflow.home / "go").touch()
        airflow.wait_run("held", run_id, timeout=300, expect="success")
        done = Counter(key.map_index for key in witnessed(airflow, "held", run_id))
        assert done == dict.fromkeys(range(24), 1)
        airflow.wait_for(lambda: not open_on(airflow, "w1") and not open_on(airflow, "w2"), 60, "all places to be free")
