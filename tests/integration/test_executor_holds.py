"""With ``when_workers_unseen = hold`` tasks outlive an outage of Redis: they wait, and each runs once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.placing import EXECUTOR, HELD, QUICK, Held, let_all_go, placements, start_workers, wait_consuming
from tests.support.deployment import Deployment
from tests.support.services import Redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.environments import Environment
    from tests.support.services import Postgres


@pytest.fixture
def broker() -> Iterator[Redis]:
    """Run a Redis of our own, which may be stopped."""
    with Redis(keeps=True) as server:
        yield server


@pytest.fixture
def airflow(airflow_env: Callable[[str], Environment], postgres: Postgres, broker: Redis) -> Iterator[Deployment]:
    config = {**QUICK, "worker_insight.when_workers_unseen": "hold", "celery.worker_concurrency": "4"}
    with Deployment(airflow_env("3.3.2"), executor=EXECUTOR, postgres=postgres, redis=broker, config=config) as airflow:
        airflow.write_dag("held", HELD)
        airflow.migrate()
        start_workers(airflow, "w1")
        airflow.start_all()
        wait_consuming(airflow, "w1")
        yield airflow
        let_all_go(airflow)


def test_tasks_wait_while_redis_is_away_and_run_once_it_is_back(airflow: Deployment, broker: Redis) -> None:
    Held(airflow, 2).finish()
    broker.stop()
    run = Held(airflow, 3)

    def held() -> list[dict[str, Any]] | None:
        rows = [row for row in placements(airflow, run.run_id) if row["is_open"] and row["worker_ref"] is None]
        # The task that lists the numbers comes first, and nothing behind it before.
        return rows if rows and all("workers cannot be reached since" in row["detail"] for row in rows) else None

    (row,) = airflow.wait_for(held, 120, "the first task to be held")
    assert row["task_id"] == "numbers"
    (queued,) = (one for one in airflow.task_instances(run.dag_id, run.run_id) if one["task_id"] == "numbers")
    assert (queued["state"], queued["try_number"]) == ("queued", 1)

    broker.start()
    run.finish()
    assert {one["try_number"] for one in airflow.task_instances(run.dag_id, run.run_id)} == {1}
    airflow.wait_for(lambda: not any(row["is_open"] for row in placements(airflow)), 60, "all places to be free")
