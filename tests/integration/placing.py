"""Start runs whose tasks wait for the test, and query where tasks are placed and ran."""

from __future__ import annotations

import socket
from collections import Counter
from itertools import cycle
from typing import TYPE_CHECKING, Any

from tests.support.fleet import WITNESS, ran_on, witnessed

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
"""Tasks that start, wait until the test releases their run, and then write once that they ran."""

DAGS = cycle(f"held_{number}" for number in range(20))


class HeldRun:
    """A run of ``HELD``.

    Each run takes another Dag, because the executor compares how long workers take for the same task, and a held task
    says nothing about that.
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
        """Wait until its tasks are in these states, so many in each."""
        self.airflow.wait_for(lambda: self.states() == states, 90, f"{states} of {self.number}")

    def release(self) -> None:
        """Let its tasks go on."""
        (self.airflow.home / self.run_id).touch()

    def ran(self) -> Counter[str | None]:
        """Count its finished tasks by worker."""
        return ran_on(self.airflow, self.dag_id, self.run_id, "effect")

    def finish(self) -> None:
        """Release the run, wait until it succeeds, and check that each task ran once."""
        self.release()
        self.airflow.wait_run(self.dag_id, self.run_id, timeout=300, expect="success")
        did = witnessed(self.airflow, self.dag_id, self.run_id)
        times = Counter(key.map_index for key, instances in did.items() for _ in instances)
        assert times == dict.fromkeys(range(self.number), 1)


def release_all(airflow: Deployment) -> None:
    """Release all runs of ``HELD``."""
    for row in airflow.sql("SELECT run_id FROM dag_run WHERE dag_id LIKE 'held_%'"):
        (airflow.home / row["run_id"]).touch()


def wait_consuming(airflow: Deployment, *names: str) -> None:
    """Wait until these workers consume their dedicated queues, as placing needs.

    Until then the scheduler sends tasks in fallback mode.
    """
    for name in names:
        log = airflow.components[name].log
        airflow.wait_for(
            lambda log=log: "Started consuming from worker-insight.worker." in log.read_text(errors="replace"),
            60,
            f"{name} to consume its dedicated queue",
        )


def placements(airflow: Deployment, run_id: str | None = None) -> list[dict[str, Any]]:
    """Return all placements, with the worker's name as ``on``."""
    rows = airflow.sql(
        "SELECT p.*, split_part(w.engine_name, '@', 1) AS on FROM worker_insight_placement p "
        "LEFT JOIN worker_insight_worker w ON w.id = p.worker_ref ORDER BY p.placed_at"
    )
    return [row for row in rows if run_id in (None, row["run_id"])]


def open_on(airflow: Deployment, name: str) -> int:
    """Count the tries that are placed on a worker and have not ended."""
    return sum(row["is_open"] and row["on"] == name for row in placements(airflow))
