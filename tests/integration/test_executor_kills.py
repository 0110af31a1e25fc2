"""Each task runs once although a worker, a scheduler, the broker or the database goes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.integration.placing import EXECUTOR, HELD, QUICK, HeldRun, open_on, placements, release_all, wait_consuming
from tests.support.deployment import Deployment
from tests.support.fleet import start_workers
from tests.support.services import Redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.environments import Environment
    from tests.support.services import Postgres

ALL = 54
"""How many tasks one worker gets: four run and fifty wait."""

QUICK_TO_QUEUE_AGAIN = {
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "60",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__NUM_STUCK_IN_QUEUED_RETRIES": "20",
}
"""Makes Airflow requeue the tasks that a worker dropped. Tasks that wait in order are requeued too, without effect."""


@pytest.fixture(scope="module")
def broker() -> Iterator[Redis]:
    """Run a Redis that tests may restart."""
    with Redis(persistent=True) as server:
        yield server


@pytest.fixture(scope="module")
def airflow(airflow_env: Callable[[str], Environment], postgres: Postgres, broker: Redis) -> Iterator[Deployment]:
    config = {
        **QUICK,
        "celery.worker_concurrency": "4",
        "worker_insight.placement_backlog": "50",
        # Airflow notices dead processes after seconds, not minutes.
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
def release_held_tasks(airflow: Deployment) -> Iterator[None]:
    """Release the tasks of a failed test, which would occupy the workers of the next."""
    yield
    release_all(airflow)


@pytest.fixture
def worker(airflow: Deployment) -> str:
    """Return the name of the only worker; start one if there is none."""
    living = [
        component.name
        for component in airflow.components.values()
        if component.kind == "celery worker" and component.alive
    ]
    airflow.stop(*living[1:])
    if living:
        return living[0]
    name = f"w{len(airflow.components)}"
    start_workers(airflow, name)
    wait_consuming(airflow, name)
    return name


def test_tasks_waiting_at_a_killed_worker_run_on_another(airflow: Deployment, worker: str) -> None:
    run = HeldRun(airflow, ALL)
    run.wait_states(running=4, queued=50)
    airflow.wait_for(lambda: open_on(airflow, worker) == ALL, 60, "all to be placed")
    airflow.kill(worker, descendants=True)
    killed_at = time.monotonic()
    start_workers(airflow, "another")
    airflow.wait_for(lambda: open_on(airflow, "another") >= 50, 90, "all waiting tasks to be placed elsewhere")
    print(f"what waited was placed elsewhere {time.monotonic() - killed_at:.0f} s after the kill")
    moved = [row for row in placements(airflow, run.run_id) if row["on"] == "another" and row["try_number"] == 1]
    assert len(moved) == 50
    assert all(row["detail"].startswith(f"reclaimed from {worker}@") for row in moved)
    run.finish()
    print(f"all had ended {time.monotonic() - killed_at:.0f} s after the kill")
    assert run.ran() == {"another": ALL}


def test_each_task_runs_once_although_the_scheduler_is_killed(airflow: Deployment, worker: str) -> None:
    # Six wait in the scheduler for a slot, and are lost with it.
    run = HeldRun(airflow, ALL + 6)
    run.wait_states(running=4, queued=56)
    airflow.wait_for(lambda: len(placements(airflow, run.run_id)) == ALL + 7, 60, "all to be placed or to wait")
    airflow.kill("scheduler", descendants=True)
    airflow.start("scheduler")
    run.finish()
    airflow.wait_for(lambda: not open_on(airflow, worker), 60, "all slots to be free")


def test_each_task_runs_once_although_redis_restarts(airflow: Deployment, worker: str, broker: Redis) -> None:
    run = HeldRun(airflow, ALL + 6)
    run.wait_states(running=4, queued=56)
    airflow.wait_for(lambda: open_on(airflow, worker) == ALL, 60, "all to be placed")
    broker.restart()
    run.finish()


def test_two_schedulers_share_the_workers_and_one_may_stop(airflow: Deployment, worker: str) -> None:
    airflow.start("scheduler", name="another scheduler", wait=False)
    start_workers(airflow, "second")
    airflow.wait_ready(airflow.components["another scheduler"])

    def loads() -> tuple[int, int]:
        return open_on(airflow, worker), open_on(airflow, "second")

    def by_both() -> HeldRun | None:
        """Fill both workers with a run; return it if both schedulers queued some of its tasks."""
        run = HeldRun(airflow, 2 * ALL + 12)
        airflow.wait_for(lambda: min(loads()) >= ALL, 60, "both to be full")
        # Two schedulers that decide at the same moment may use the same slot.
        assert max(loads()) - min(loads()) <= 2
        query = "SELECT count(DISTINCT queued_by_job_id) AS n FROM task_instance WHERE run_id = :run AND map_index >= 0"
        if airflow.sql(query, run=run.run_id) == [{"n": 2}]:
            return run
        run.finish()
        return None

    run = airflow.wait_for(by_both, 200, "both schedulers to queue tasks of a run")
    airflow.stop("scheduler")
    run.finish()
    airflow.wait_for(lambda: loads() == (0, 0), 60, "all slots to be free")


def test_tasks_run_in_fallback_mode_while_the_placement_table_is_locked_or_missing(
    airflow: Deployment, worker: str
) -> None:
    table = "worker_insight_placement"
    with airflow.connected() as connection, connection.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        run = HeldRun(airflow, 8)
        run.finish()
    airflow.sql(f"ALTER TABLE {table} RENAME TO {table}_gone")
    try:
        run = HeldRun(airflow, 8)
        run.finish()
    finally:
        airflow.sql(f"ALTER TABLE {table}_gone RENAME TO {table}")

    def is_placed() -> bool:
        """Start another run, and return whether its tasks were placed."""
        run = HeldRun(airflow, 6)
        run.wait_states(running=4, queued=2)
        placed = sum(row["on"] == worker and row["task_id"] == "effect" for row in placements(airflow, run.run_id))
        run.finish()
        return placed == 6

    airflow.wait_for(is_placed, 120, "the executor to place tasks again")


@pytest.mark.parametrize("has_a_sink", [False, True])
def test_all_tasks_succeed_after_half_a_minute_without_the_database(
    airflow: Deployment, worker: str, has_a_sink: bool
) -> None:
    """A slot that becomes free meanwhile is a sink: the worker drops tasks it cannot start."""
    airflow.stop(*(component.name for component in airflow.components.values() if component.kind == "scheduler"))
    airflow.start("scheduler", env=QUICK_TO_QUEUE_AGAIN)
    held = HeldRun(airflow, 1)
    held.wait_states(running=1)
    run = HeldRun(airflow, ALL + 6)
    run.wait_states(running=3, queued=57)
    airflow.wait_for(lambda: len(placements(airflow, run.run_id)) == ALL + 7, 60, "all to be placed or to wait")

    def received() -> int:
        return airflow.components[worker].output().count(" received ")

    before = received()
    living = [component for component in airflow.components.values() if component.alive]
    for component in living:
        component.expected_to_end = True
    with airflow.without_database():
        ends_at = time.monotonic() + 30
        if has_a_sink:
            held.release()
            # It has four slots: a worker that receives a fifth task has dropped one.
            airflow.wait_for(lambda: received() >= before + 5, 180, "the worker to drop a task")
        time.sleep(max(0.0, ends_at - time.monotonic()))
    print("ended:", *(component.name for component in living if not component.alive))

    def all_have_ended() -> bool:
        """Restart ended components, as a process manager does. Workers survive without."""
        for component in living:
            if component.kind != "celery worker" and not airflow.components[component.name].alive:
                again = airflow.start(component.kind, name=component.name, env=QUICK_TO_QUEUE_AGAIN, wait=False)
                again.expected_to_end = True
        return run.states() == {"success": run.number}

    run.release()
    airflow.wait_for(all_have_ended, 300, "all to end well")
    run.finish()
    held.release()
    # A try whose end could not be written may be retried.
    airflow.wait_run(held.dag_id, held.run_id, expect="success")
    query = "SELECT count(*) AS n FROM log WHERE event = 'stuck in queued reschedule' AND run_id = :run"
    print("queued again by Airflow:", airflow.sql(query, run=run.run_id)[0]["n"])
