"""With ``when_workers_unseen = hold`` tasks wait while Redis is down, and each runs once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.placing import EXECUTOR, HELD, QUICK, HeldRun, placements, release_all, wait_consuming
from tests.support.deployment import Deployment
from tests.support.fleet import start_workers
from tests.support.services import Redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.environments import Environment
    from tests.support.services import Postgres


@pytest.fixture
def broker() -> Iterator[Redis]:
    """Run a Redis that the test may stop."""
    with Redis(persistent=True) as server:
        yield server


@pytest.fixture
def airflow(airflow_env: Callable[[str], Environment], postgres: Postgres, broker: Redis) -> Iterator[Deployment]:
    config = {**QUICK, "worker_insight.when_workers_unseen": "hold", "celery.worker_concurrency": "4"}
    with Deployment(airflow_env("3.3.2"), executor=EXECUTOR, postgres=postgres, redis=broker, config=config) as airflow:
        airflow.write_dag("held", HELD)
        airflow.migrate()
        start_workers(airflow, "w1", wait=False)
        airflow.start_all()
        wait_consuming(airflow, "w1")
        yield airflow
        release_all(airflow)


def test_tasks_are_held_while_redis_is_down_and_run_once(airflow: Deployment, broker: Redis) -> None:
    HeldRun(airflow, 2).finish()
    broker.stop()
    run = HeldRun(airflow, 3)

    def held() -> list[dict[str, Any]] | None:
        rows = [row for row in placements(airflow, run.run_id) if row["is_open"] and row["worker_ref"] is None]
        # Only the task that lists the numbers can be queued before it has succeeded.
        return rows if rows and all("workers cannot be reached since" in row["detail"] for row in rows) else None

    (row,) = airflow.wait_for(held, 120, "the first task to be held")
    assert row["task_id"] == "numbers"
    (queued,) = (ti for ti in airflow.task_instances(run.dag_id, run.run_id) if ti["task_id"] == "numbers")
    assert (queued["state"], queued["try_number"]) == ("queued", 1)

    broker.start()
    run.finish()
    assert {ti["try_number"] for ti in airflow.task_instances(run.dag_id, run.run_id)} == {1}
    airflow.wait_for(lambda: not any(row["is_open"] for row in placements(airflow)), 60, "all slots to be free")
