"""The Celery executor on each supported Airflow before the newest."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.integration.placing import EXECUTOR, wait_consuming
from tests.integration.test_versions import DB_MANAGER
from tests.support.deployment import Deployment
from tests.support.fleet import WITNESS, start_workers, witnessed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.environments import Environment
    from tests.support.services import Postgres, Redis

DAG = (
    WITNESS
    + """
from datetime import datetime

try:
    from airflow.sdk import dag, task
except ImportError:
    from airflow.decorators import dag, task


@dag(schedule=None, start_date=datetime(2025, 1, 1), catchup=False)
def placed():
    @task(retries=1, retry_delay=0)
    def picky(number, **context):
        witness(context)
        if os.environ["TEST_WORKER_INSTANCE"] == "w1":
            raise RuntimeError("this machine is broken")

    picky.expand(number=list(range(8)))


placed()
"""
)


PLACED = """
SELECT run_id FROM worker_insight_placement WHERE run_id = :run
UNION ALL SELECT run_id FROM worker_insight_attempt WHERE run_id = :run AND placement IS NOT NULL
"""


def run_on_both_workers(airflow: Deployment) -> tuple[str, Counter[str], Counter[str]] | None:
    """Run the Dag; return its run and the workers of both tries, or None if one got no task."""
    run_id = airflow.trigger("placed")
    airflow.wait_run("placed", run_id, timeout=300)
    found = witnessed(airflow, "placed", run_id)
    if len(airflow.sql(PLACED, run=run_id)) < len(found):
        # The executor could not reach the workers yet.
        return None
    first = Counter(instances[0] for key, instances in found.items() if key.try_number == 1)
    second = Counter(instances[0] for key, instances in found.items() if key.try_number == 2)
    return (run_id, first, second) if len(first) > 1 else None


@pytest.mark.parametrize("version", ["2.11.2", "3.0.6", "3.1.8", "3.2.2"])
def test_tasks_are_spread_and_retries_avoid_the_worker_that_failed_them(
    airflow_env: Callable[[str], Environment], postgres: Postgres, redis: Redis, version: str
) -> None:
    config = {
        "worker_insight.refresh_interval": "3",
        "core.parallelism": "32",
        "scheduler.standalone_dag_processor": "False",
    }
    if version.startswith("3."):
        config["database.external_db_managers"] = DB_MANAGER
    with Deployment(airflow_env(version), executor=EXECUTOR, postgres=postgres, redis=redis, config=config) as airflow:
        airflow.write_dag("placed", DAG)
        airflow.migrate()
        start_workers(airflow, "w1", "w2", wait=False)
        airflow.start_all()
        wait_consuming(airflow, "w1", "w2")
        # A run may come before the executor knows both workers.
        run_id, first, second = airflow.wait_for(
            lambda: run_on_both_workers(airflow), 300, "a run on both workers", interval=1
        )
        assert sum(first.values()) == 8
        airflow.wait_run("placed", run_id, expect="success")
        assert second == {"w2": first["w1"]}

        def has_reasons() -> bool:
            query = "SELECT placement, count(*) AS n FROM worker_insight_attempt WHERE run_id = :run GROUP BY placement"
            return {row["placement"]: row["n"] for row in airflow.sql(query, run=run_id)} == {1: 8, 5: first["w1"]}

        airflow.wait_for(has_reasons, 60, "the placement reasons to be stored with the tries")
        assert airflow.sql("SELECT count(*) AS n FROM worker_insight_placement WHERE is_open") == [{"n": 0}]
