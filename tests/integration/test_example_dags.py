"""Airflow's own example Dags: every try names the worker that ran it, and nothing is found where nothing is sick.

As a script it runs each of them so often: ``python -m tests.integration.test_example_dags [version [runs]]``.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest

from tests.integration.accounting import airflow_tries, wait_accounted
from tests.support import environments
from tests.support.deployment import Deployment
from tests.support.services import Postgres, Redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.environments import Environment

WORKERS = ("w1", "w2")

NOT_OFFLINE = {
    # They install packages.
    "tutorial_taskflow_api_virtualenv",
    "example_python_operator",
    "example_python_decorator",
    "example_passing_params_via_test_command",
    # They read from the internet.
    "example_dag_decorator",
    "example_retry_policy",
    "tutorial_objectstorage",
    # They need a cluster.
    "example_kubernetes_executor",
    "example_local_kubernetes_executor",
    # A user has to fill in a form for it.
    "example_params_ui_tutorial",
    # They wait: for a person, a file, another Dag's run, a time of the day, or an hour.
    "example_hitl_operator",
    "example_sensors",
    "example_sensor_decorator",
    "example_external_task_marker_parent",
    "example_external_task_marker_child",
    "example_external_task_parent_deferrable",
    "example_external_task_child_deferrable",
    "example_time_delta_sensor_async",
    "example_bash_decorator",
    "example_asset_with_watchers",
}
"""Example Dags that do not end by themselves within a minute on a machine of its own."""

RECEIVED = re.compile(r"Task \S+\[([0-9a-f-]{36})\] received")


def deployed(environment: Environment, postgres: Postgres, redis: Redis) -> Deployment:
    """Return a deployment with the example Dags and two Celery workers."""
    return Deployment(
        environment,
        executor="CeleryExecutor",
        postgres=postgres,
        redis=redis,
        config={
            "core.load_examples": "True",
            "core.dags_are_paused_at_creation": "True",
            "core.parallelism": "16",
            "celery.worker_concurrency": "4",
            "celery.worker_prefetch_multiplier": "1",
            "dag_processor.min_file_process_interval": "600",
            "worker_insight.insight_interval": "5",
        },
    )


def start(airflow: Deployment) -> list[str]:
    """Start all and return the IDs of the example Dags to run."""
    airflow.migrate()
    airflow.start_all(triggerer=True, workers=len(WORKERS))
    airflow.wait_for(lambda: _dags(airflow) >= {"tutorial", "example_xcom", "example_bash_operator"}, 300, "the Dags")
    dags = airflow.wait_for(lambda: _settled(airflow), 300, "all example Dags to be parsed", interval=5)
    return sorted(dags - NOT_OFFLINE)


def _dags(airflow: Deployment) -> set[str]:
    """Return the examples of Airflow itself and of its standard provider, but for those of other providers."""
    query = "SELECT d.dag_id, d.fileloc FROM dag d JOIN serialized_dag s ON s.dag_id = d.dag_id"
    own = ("/airflow/example_dags/", "/providers/standard/")
    return {row["dag_id"] for row in airflow.sql(query) if any(folder in row["fileloc"] for folder in own)}


def _settled(airflow: Deployment, seen: list[set[str]] = []) -> set[str]:  # noqa: B006 - what was seen before
    """Return all Dags, once no more have come since the last call."""
    seen.append(_dags(airflow))
    return seen[-1] if seen[-2:-1] == seen[-1:] else set()


def run_all(airflow: Deployment, dags: list[str], number: int) -> None:
    """Run each Dag, and what their schedules and their assets add until these runs have ended."""
    for dag_id in dags:
        _pause(airflow, dag_id, is_paused=False)
        logical_date = datetime(2026, 3, 2, tzinfo=timezone.utc) + timedelta(days=number)
        body = {"dag_run_id": f"test-{number}", "logical_date": logical_date.isoformat(), "conf": {}}
        answer = airflow.api("POST", f"/dags/{dag_id}/dagRuns", json=body)
        assert answer.ok, (dag_id, answer.text)
    airflow.wait_for(lambda: not _running(airflow), 900, "all runs to end", interval=2)
    for dag_id in dags:
        _pause(airflow, dag_id, is_paused=True)
    airflow.wait_for(lambda: not _running(airflow), 300, "the latest runs to end", interval=2)


def _pause(airflow: Deployment, dag_id: str, *, is_paused: bool) -> None:
    answer = airflow.api("PATCH", f"/dags/{dag_id}", json={"is_paused": is_paused})
    assert answer.ok, answer.text


def _running(airflow: Deployment) -> list[dict[str, object]]:
    return airflow.sql("SELECT dag_id, run_id FROM dag_run WHERE state IN ('queued', 'running')")


def runs(airflow: Deployment) -> Iterator[tuple[str, str]]:
    """Return all runs that have ended."""
    for row in airflow.sql("SELECT dag_id, run_id FROM dag_run WHERE state IN ('success', 'failed') ORDER BY id"):
        yield row["dag_id"], row["run_id"]


def received(airflow: Deployment) -> dict[str, str]:
    """Return which worker received each of Celery's messages, by the workers' own words."""
    return {
        message: name
        for name in WORKERS
        for message in RECEIVED.findall((airflow.output_folder / f"{name}.log").read_text())
    }


def assert_each_try_names_its_worker(airflow: Deployment) -> Counter[tuple[str, str | None]]:
    """Check all tries; return how many have each attribution and state."""
    by_message, named, found = received(airflow), Counter[str](), Counter[tuple[str, str | None]]()
    for dag_id, run_id in runs(airflow):
        recorded = wait_accounted(airflow, dag_id, run_id)
        for key, row in airflow_tries(airflow, dag_id, run_id).items():
            attempt = recorded[key]
            found[attempt.attribution, attempt.state] += 1
            # The message is that of the last process: a deferred try had others before.
            name = by_message.get(row["external_executor_id"] or "")
            if attempt.attribution == "reported" and name is not None:
                assert name in {worker.name.partition("@")[0] for worker in attempt.workers}, (dag_id, run_id, attempt)
                named[name] += 1
            elif attempt.workers:
                # A process that ends before Airflow calls its task running reports nothing: its host is known.
                assert {worker.host_only for worker in attempt.workers} == {True}, (dag_id, run_id, attempt)
    assert set(named) == set(WORKERS)
    return found


def assert_nothing_is_found(airflow: Deployment, known: Counter[tuple[str, str | None]]) -> None:
    """Wait until the analysis has counted all tries, and check that it has found nothing."""

    def counted() -> int:
        answer = airflow.api("GET", "/worker-insight/api/v1/statistics", params={"group_by": "worker"})
        assert answer.ok, answer.text
        return int(sum(row["tries"] for row in answer.json()["statistics"]))

    tries = known["reported", "success"] + known["reported", "failed"]
    airflow.wait_for(lambda: counted() >= tries, 300, f"{tries} tries to be counted", interval=2)
    assert counted() == tries
    assert airflow.api("GET", "/worker-insight/api/v1/findings").json()["findings"] == []


@pytest.mark.parametrize("version", ["3.3.2"])
def test_airflows_example_dags(
    airflow_env: Callable[[str], Environment], postgres: Postgres, redis: Redis, version: str
) -> None:
    with deployed(airflow_env(version), postgres, redis) as airflow:
        run_all(airflow, start(airflow), 0)
        assert_nothing_is_found(airflow, assert_each_try_names_its_worker(airflow))


if __name__ == "__main__":
    version, number = (*sys.argv[1:], "3.3.2", "7")[:2] if len(sys.argv) < 3 else sys.argv[1:3]
    environment = environments.installed(version, package=environments.wheel())
    with Postgres() as postgres, Redis() as redis, deployed(environment, postgres, redis) as airflow:
        dags = start(airflow)
        for each in range(int(number)):
            run_all(airflow, dags, each)
        known = assert_each_try_names_its_worker(airflow)
        assert_nothing_is_found(airflow, known)
        print(f"{len(dags)} Dags, {len(list(runs(airflow)))} runs, tries by attribution and state: {dict(known)}")
