"""The executor that places tasks, and all that can go: a worker, a scheduler, the broker, the database.

Whatever goes: all tasks end well, and each does once what it has to do.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.integration.placing import (
    EXECUTOR,
    HELD,
    QUICK,
    Held,
    let_all_go,
    open_on,
    placements,
    start_workers,
    wait_consuming,
)
from tests.support.deployment import Deployment
from tests.support.services import Redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.environments import Environment
    from tests.support.services import Postgres

ALL = 54
"""What one worker is given here: four run and fifty wait."""

QUICK_TO_QUEUE_AGAIN = {
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "60",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__NUM_STUCK_IN_QUEUED_RETRIES": "20",
}
"""For what a worker has dropped. What waits in order for as long is queued again too, which changes nothing."""


@pytest.fixture(scope="module")
def broker() -> Iterator[Redis]:
    """Run a Redis of our own, which may be restarted."""
    with Redis(keeps=True) as server:
        yield server


@pytest.fixture(scope="module")
def airflow(airflow_env: Callable[[str], Environment], postgres: Postgres, broker: Redis) -> Iterator[Deployment]:
    config = {
        **QUICK,
        "celery.worker_concurrency": "4",
        "worker_insight.placement_backlog": "50",
        # What has died is noticed after seconds instead of minutes.
        "scheduler.task_instance_heartbeat_timeout": "20",
        "scheduler.task_instance_heartbeat_timeout_detection_interval": "3",
        "scheduler.task_instance_heartbeat_sec": "3",
        "scheduler.orphaned_tasks_check_interval": "5",
        "scheduler.scheduler_health_check_threshold": "10",
    }
    with Deployment(airflow_env("3.3.2"), executor=EXECUTOR, postgres=postgres, redis=broker, config=config) as airflow:
        airflow.write_dag("held", HELD)
        airflow.migrate()
        airflow.start_all()
        yield airflow


@pytest.fixture(autouse=True)
def nothing_is_left(airflow: Deployment) -> Iterator[None]:
    """Have the tasks of a test that failed leave the workers to the next one."""
    yield
    let_all_go(airflow)


@pytest.fixture
def worker(airflow: Deployment) -> str:
    """Return the name of the only worker, which is new if there was none."""
    living = [one.name for one in airflow.components.values() if one.kind == "celery worker" and one.alive]
    for name in living[1:]:
        airflow.stop(name)
    if living:
        return living[0]
    name = f"w{len(airflow.components)}"
    start_workers(airflow, name)
    wait_consuming(airflow, name)
    return name


def test_a_worker_that_is_killed(airflow: Deployment, worker: str) -> None:
    run = Held(airflow, ALL)
    run.wait_states(running=4, queued=50)
    airflow.wait_for(lambda: open_on(airflow, worker) == ALL, 60, "all to be placed")
    airflow.kill(worker, descendants=True)
    killed_at = time.monotonic()
    start_workers(airflow, "another")
    airflow.wait_for(lambda: open_on(airflow, "another") >= 50, 90, "all that waited to be placed elsewhere")
    print(f"what waited was placed elsewhere {time.monotonic() - killed_at:.0f} s after the kill")
    moved = [row for row in placements(airflow, run.run_id) if row["on"] == "another" and row["try_number"] == 1]
    assert len(moved) == 50
    assert all(row["detail"].startswith(f"reclaimed from {worker}@") for row in moved)
    run.finish()
    print(f"all had ended {time.monotonic() - killed_at:.0f} s after the kill")
    assert run.ran() == {"another": ALL}


def test_a_scheduler_that_is_killed(airflow: Deployment, worker: str) -> None:
    # Six wait with the scheduler for a place at the worker, and go with it.
    run = Held(airflow, ALL + 6)
    run.wait_states(running=4, queued=56)
    airflow.wait_for(lambda: len(placements(airflow, run.run_id)) == ALL + 7, 60, "all to be placed or to wait")
    airflow.kill("scheduler", descendants=True)
    airflow.start("scheduler")
    run.finish()
    airflow.wait_for(lambda: not open_on(airflow, worker), 60, "all places to be free")


def test_redis_that_is_restarted(airflow: Deployment, worker: str, broker: Redis) -> None:
    run = Held(airflow, ALL + 6)
    run.wait_states(running=4, queued=56)
    airflow.wait_for(lambda: open_on(airflow, worker) == ALL, 60, "all to be placed")
    broker.restart()
    run.finish()


def test_two_schedulers_of_which_one_is_stopped(airflow: Deployment, worker: str) -> None:
    airflow.start("scheduler", name="another scheduler", wait=False)
    start_workers(airflow, "second")
    airflow.wait_ready(airflow.components["another scheduler"])

    def loads() -> tuple[int, int]:
        return open_on(airflow, worker), open_on(airflow, "second")

    def by_both() -> Held | None:
        """Have a run that fills both workers; return it if both schedulers had a part in it."""
        run = Held(airflow, 2 * ALL + 12)
        airflow.wait_for(lambda: min(loads()) >= ALL, 60, "both to be full")
        # Two that decide in one moment may give the same place away.
        assert max(loads()) - min(loads()) <= 2
        query = "SELECT count(DISTINCT queued_by_job_id) AS n FROM task_instance WHERE run_id = :run AND map_index >= 0"
        if airflow.sql(query, run=run.run_id) == [{"n": 2}]:
            return run
        run.finish()
        return None

    run = airflow.wait_for(by_both, 200, "both schedulers to have a part in a run")
    airflow.stop("scheduler")
    run.finish()
    airflow.wait_for(lambda: loads() == (0, 0), 60, "all places to be free")


def test_our_table_locked_and_then_gone(airflow: Deployment, worker: str) -> None:
    """It does as Airflow's own executor meanwhile."""
    table = "worker_insight_placement"
    with airflow.connected() as connection, connection.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        run = Held(airflow, 8)
        run.finish()
    airflow.sql(f"ALTER TABLE {table} RENAME TO {table}_gone")
    try:
        run = Held(airflow, 8)
        run.finish()
    finally:
        airflow.sql(f"ALTER TABLE {table}_gone RENAME TO {table}")

    def is_placed() -> bool:
        """Have another run, and say whether its tasks were placed: it takes some seconds to notice."""
        run = Held(airflow, 6)
        run.wait_states(running=4, queued=2)
        placed = sum(row["on"] == worker and row["task_id"] == "effect" for row in placements(airflow, run.run_id))
        run.finish()
        return placed == 6

    airflow.wait_for(is_placed, 120, "it to place again")


@pytest.mark.parametrize("has_a_sink", [False, True])
def test_a_database_that_is_gone_for_half_a_minute(airflow: Deployment, worker: str, has_a_sink: bool) -> None:
    """A place that gets free meanwhile is a sink: the worker drops each message that it cannot write to have begun."""
    for name in [one.name for one in airflow.components.values() if one.kind == "scheduler"]:
        airflow.stop(name)
    airflow.start("scheduler", env=QUICK_TO_QUEUE_AGAIN)
    one = Held(airflow, 1)
    one.wait_states(running=1)
    run = Held(airflow, ALL + 6)
    run.wait_states(running=3, queued=57)
    airflow.wait_for(lambda: len(placements(airflow, run.run_id)) == ALL + 7, 60, "all to be placed or to wait")

    def received() -> int:
        return airflow.components[worker].output().count(" received ")

    before = received()
    living = [component for component in airflow.components.values() if component.alive]
    for component in living:
        component.expected_to_end = True
    with airflow.without_database():
        time.sleep(30)
        if has_a_sink:
            one.go()
            # There are four places: whoever takes a fifth has dropped something.
            airflow.wait_for(lambda: received() >= before + 5, 180, "the worker to drop a message")
    print("ended:", *(component.name for component in living if not component.alive))

    def all_have_ended() -> bool:
        """Start again what has ended, as whatever runs an Airflow's processes does. The workers do without it."""
        for component in living:
            if component.kind != "celery worker" and not airflow.components[component.name].alive:
                again = airflow.start(component.kind, name=component.name, env=QUICK_TO_QUEUE_AGAIN, wait=False)
                again.expected_to_end = True
        return run.states() == {"success": run.number}

    run.go()
    airflow.wait_for(all_have_ended, 300, "all to end well")
    run.finish()
    one.go()
    # What ended while nobody could write it may be tried again.
    airflow.wait_run(one.dag_id, one.run_id, expect="success")
    query = "SELECT count(*) AS n FROM log WHERE event = 'stuck in queued reschedule' AND run_id = :run"
    print("queued again by Airflow:", airflow.sql(query, run=run.run_id)[0]["n"])
