"""Forged reports of a task, on real Celery workers, cannot change another worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.domain.states import WorkerAvailability
from tests.integration.placing import EXECUTOR, HOST, QUICK, wait_consuming
from tests.support.deployment import Deployment
from tests.support.fleet import WITNESS, start_workers, witnessed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.environments import Environment
    from tests.support.services import Postgres, Redis

FORGING = (
    WITNESS
    + """
import json
from airflow.sdk import dag, task

KEY = "__worker_insight_report__"


@dag(schedule=None, params={"forged": []})
def forging():
    @task
    def forge(params, ti):
        for worker in params["forged"]:
            ti.xcom_push(key=KEY, value={"version": 1, "try_id": str(ti.id), "worker": worker})

    @task
    def after(number, **context):
        witness(context)

    forge() >> after.expand(number=list(range(8)))


forging()
"""
)


@pytest.fixture(scope="module")
def airflow(airflow_env: Callable[[str], Environment], postgres: Postgres, redis: Redis) -> Iterator[Deployment]:
    with Deployment(airflow_env("3.3.2"), executor=EXECUTOR, postgres=postgres, redis=redis, config=QUICK) as airflow:
        airflow.write_dag("forging", FORGING)
        airflow.migrate()
        start_workers(airflow, "w1", "w2", wait=False)
        airflow.start_all()
        wait_consuming(airflow, "w1", "w2")
        yield airflow


def celery_workers(airflow: Deployment) -> dict[str, dict[str, Any]]:
    """Return the rows of the workers that Celery listed, by name."""
    rows = airflow.sql("SELECT * FROM worker_insight_worker WHERE engine_heartbeat_at IS NOT NULL ORDER BY id")
    return {row["engine_name"].partition("@")[0]: row for row in rows}


DRAINING = WorkerAvailability.values().index("draining") + 1
"""Its number in the database."""


def test_forged_reports_leave_a_drained_worker_unchanged(airflow: Deployment) -> None:
    before = airflow.wait_for(lambda: (rows := celery_workers(airflow)) and len(rows) == 2 and rows, 90, "both workers")
    answer = airflow.api(
        "PATCH",
        f"/worker-insight/api/v1/workers/{before['w2']['worker_id']}",
        json={"availability": "draining", "note": "a test"},
    )
    assert answer.ok, answer.text
    start = before["w2"]["engine_started_at"].isoformat()
    node = f"w2@{HOST}"
    secure = {"zone": "secure"}
    forged = [
        {"worker_id": "x1", "name": "evil", "kind": "celery", "hostname": HOST, "engine_name": node, "labels": secure},
        {"worker_id": "x2", "name": node, "kind": "celery", "hostname": HOST, "engine_name": node, "pid": 7},
        {"worker_id": before["w2"]["worker_id"], "name": "evil", "kind": "celery", "hostname": HOST},
        {
            "worker_id": "x3",
            "name": "evil",
            "kind": "celery",
            "hostname": "elsewhere",
            "engine_name": node,
            "pid": before["w2"]["pid"] + 1,
            "started_at": start,
            "labels": secure,
        },
    ]
    run_id = airflow.trigger("forging", conf={"forged": forged})
    airflow.wait_run("forging", run_id, timeout=240, expect="success")
    # Two more polls.
    seen = celery_workers(airflow)["w2"]["engine_heartbeat_at"]
    airflow.wait_for(
        lambda: (celery_workers(airflow)["w2"]["engine_heartbeat_at"] - seen).total_seconds() > 6, 90, "two more polls"
    )
    after = celery_workers(airflow)
    assert after.keys() == {"w1", "w2"}
    for name in ("id", "worker_id", "reported_id", "name", "engine_name", "pid", "state", "availability", "labels"):
        assert after["w2"][name] == ({**before["w2"], "availability": DRAINING})[name], name
    assert after["w2"]["state"] == 1
    # All tasks ran on the other worker.
    instances = {instance for instances in witnessed(airflow, "forging", run_id).values() for instance in instances}
    assert instances == {"w1"}
    real = {
        row["engine_name"]
        for row in airflow.sql(
            "SELECT w.engine_name FROM worker_insight_attempt a JOIN worker_insight_worker w ON w.id = a.worker_ref "
            "WHERE a.task_id = 'after'"
        )
    }
    assert real == {f"w1@{HOST}"}
    made_up = airflow.sql(
        "SELECT DISTINCT w.worker_id, w.state FROM worker_insight_attempt a "
        "JOIN worker_insight_worker w ON w.id = a.worker_ref "
        "WHERE a.task_id = 'forge' AND w.engine_heartbeat_at IS NULL"
    )
    assert {row["worker_id"] for row in made_up} >= {"x1", "x2", "x3"}
    assert {row["state"] for row in made_up} == {None}

    # Available again, it runs tasks as itself.
    answer = airflow.api(
        "PATCH", f"/worker-insight/api/v1/workers/{before['w2']['worker_id']}", json={"availability": "available"}
    )
    assert answer.ok, answer.text

    def both_ran() -> bool:
        run_id = airflow.trigger("forging", conf={"forged": []})
        airflow.wait_run("forging", run_id, timeout=240, expect="success")
        return {instance for instances in witnessed(airflow, "forging", run_id).values() for instance in instances} == {
            "w1",
            "w2",
        }

    airflow.wait_for(both_ran, 300, "w2 to get tasks")
    assert celery_workers(airflow)["w2"]["name"] == node
    assert celery_workers(airflow)["w2"]["state"] == 1
