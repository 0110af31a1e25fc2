"""What the tests of the executors ask: what is placed where, where tasks ran, and whether each ran once."""

from __future__ import annotations

import socket
from collections import Counter
from itertools import cycle
from typing import TYPE_CHECKING, Any

from tests.integration.accounting import WITNESS, start_worker, witnessed

if TYPE_CHECKING:
    from tests.support.deployment import Deployment

HOST = socket.gethostname()
EXECUTOR = "airflow_worker_insight.executors.celery.WorkerInsightCeleryExecutor"

QUICK = {
    "worker_insight.refresh_interval": "3",
    "worker_insight.heartbeat_timeout": "10",
    "worker_insight.lost_timeout": "15",
    # Nothing changes in the Dag files: the processor's time is better spent on tasks.
    "dag_processor.min_file_process_interval": "600",
    "core.parallelism": "256",
    # A supervisor that misses the end of its task notices it with its next heartbeat.
    "workers.min_heartbeat_interval": "1",
}

HELD = (
    WITNESS
    + """
import time
from pathlib import Path

from airflow.sdk import dag, task


def held():
    @task
    def numbers(params):
        return list(range(int(params["number"])))

    @task
    def effect(number, **context):
        while not Path(os.environ["AIRFLOW_HOME"], context["run_id"]).exists():
            time.sleep(0.1)
        witness(context)

    effect.expand(number=numbers())


for number in range(20):
    dag(
        dag_id=f"held_{number}",
        schedule=None,
        max_active_tasks=256,
        params={"number": 1},
        default_args={"retries": 2, "retry_delay": 0},
    )(held)()
"""
)
"""Tasks that begin and wait for the test's word before they do what may be done once only."""

DAGS = cycle(f"held_{number}" for number in range(20))


class Held:
    """A run of ``HELD``.

    Each is of another Dag: how long the workers take for the same task is compared, and what a test holds says nothing
    of how fast they are.
    """

    def __init__(self, airflow: Deployment, number: int) -> None:
        self.airflow = airflow
        self.number = number
        self.dag_id = next(DAGS)
        self.run_id = airflow.trigger(self.dag_id, conf={"number": number})

    def states(self) -> Counter[str]:
        """Count the states of its tasks."""
        rows = self.airflow.task_instances(self.dag_id, self.run_id)
        return Counter(row["state"] for row in rows if row["task_id"] == "effect")

    def wait_states(self, **states: int) -> None:
        """Wait until so many are in each of these states, and none in another."""
        self.airflow.wait_for(lambda: self.states() == states, 90, f"{states} of {self.number}")

    def go(self) -> None:
        """Let its tasks do what they have to do."""
        (self.airflow.home / self.run_id).touch()

    def ran(self) -> Counter[str | None]:
        """Count by workers the tasks that have done it."""
        return ran_on(self.airflow, self.dag_id, self.run_id, "effect")

    def finish(self) -> None:
        """Have it end well, and see that each task did what it had to do once."""
        self.go()
        self.airflow.wait_run(self.dag_id, self.run_id, timeout=300, expect="success")
        did = witnessed(self.airflow, self.dag_id, self.run_id)
        times = Counter(key.map_index for key, lives in did.items() for _ in lives)
        assert times == dict.fromkeys(range(self.number), 1)


def let_all_go(airflow: Deployment) -> None:
    """Let the tasks of all runs of ``HELD`` do what they have to do."""
    for row in airflow.sql("SELECT run_id FROM dag_run WHERE dag_id LIKE 'held_%'"):
        (airflow.home / row["run_id"]).touch()


def start_workers(airflow: Deployment, *names: str, wait: bool = True) -> None:
    """Start workers whose tasks testify by these names, and wait until all are ready."""
    for name in names:
        start_worker(airflow, name, life=name, wait=False)
    for name in names if wait else ():
        airflow.wait_ready(airflow.components[name])


def wait_consuming(airflow: Deployment, *names: str) -> None:
    """Wait until tasks can be placed on these workers: a scheduler has had each consume its own queue.

    Until then, the scheduler sends tasks as Airflow's own executor does.
    """
    for name in names:
        log = airflow.components[name].log
        airflow.wait_for(
            lambda log=log: "Started consuming from worker-insight.worker." in log.read_text(errors="replace"),
            60,
            f"{name} to consume its own queue",
        )


def placements(airflow: Deployment, run_id: str | None = None) -> list[dict[str, Any]]:
    """Return what is placed or was, with the worker's name as ``on``."""
    rows = airflow.sql(
        "SELECT p.*, split_part(w.engine_name, '@', 1) AS on FROM worker_insight_placement p "
        "LEFT JOIN worker_insight_worker w ON w.id = p.worker_ref ORDER BY p.placed_at"
    )
    return [row for row in rows if run_id in (None, row["run_id"])]


def open_on(airflow: Deployment, name: str) -> int:
    """Return how many tries are placed on a worker and have not ended."""
    return sum(row["is_open"] and row["on"] == name for row in placements(airflow))


def ran_on(airflow: Deployment, dag_id: str, run_id: str, task_id: str) -> Counter[str | None]:
    """Count by workers the tries of a task that began."""
    found = witnessed(airflow, dag_id, run_id)
    return Counter(life for key, lives in found.items() if key.task_id == task_id for life in lives)
