"""Real Celery workers for tests and benchmarks, whose tasks write who ran them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.deployment import Component, Deployment

INSTANCE = "TEST_WORKER_INSTANCE"
"""Environment variable of a worker: its tasks write the value, so that tests know which instance ran them."""

WITNESS = f"""
import json
import os
import signal


def witness(context):
    '''Append the instance that runs this try, as the test named it, to a file.'''
    ti = context["ti"]
    line = {{
        "dag_id": ti.dag_id,
        "run_id": ti.run_id,
        "task_id": ti.task_id,
        "map_index": ti.map_index if ti.map_index is not None else -1,
        "try_number": ti.try_number,
        "instance": os.environ.get({INSTANCE!r}),
        "user": os.getuid(),
    }}
    path = os.path.join(os.environ["AIRFLOW_HOME"], "witness.jsonl")
    # One small write to a file opened for appending: lines of several processes do not mix.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(descriptor, (json.dumps(line) + "\\n").encode())
    os.close(descriptor)


def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""
"""Top of a Dag file. Each task calls ``witness(context)`` first, so that the test knows which worker ran it."""


class Try(NamedTuple):
    """One try within a Dag run."""

    task_id: str
    map_index: int
    try_number: int

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Try:
        """Return the try that a row of Airflow's or of ours is of."""
        return cls(row["task_id"], row["map_index"], row["try_number"])


def start_worker(airflow: Deployment, name: str, *args: str, instance: str, wait: bool = True) -> Component:
    """Start a Celery worker whose tasks write this name of its instance."""
    return airflow.start("celery worker", *args, name=name, env={INSTANCE: instance}, wait=wait)


def start_workers(airflow: Deployment, *names: str, wait: bool = True) -> None:
    """Start workers whose tasks write these names, and wait until all are ready."""
    for name in names:
        start_worker(airflow, name, instance=name, wait=False)
    for name in names if wait else ():
        airflow.wait_ready(airflow.components[name])


def witnessed(airflow: Deployment, dag_id: str, run_id: str) -> dict[Try, list[str | None]]:
    """Return for each try of a run the instances that started it, as its tasks wrote."""
    path = airflow.home / "witness.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found: dict[Try, list[str | None]] = defaultdict(list)
    for row in map(json.loads, lines):
        if (row["dag_id"], row["run_id"]) == (dag_id, run_id):
            found[Try.of(row)].append(row["instance"])
    return dict(found)


def ran_on(airflow: Deployment, dag_id: str, run_id: str, task_id: str) -> Counter[str | None]:
    """Count the started tries of a task by worker."""
    found = witnessed(airflow, dag_id, run_id)
    return Counter(instance for key, instances in found.items() if key.task_id == task_id for instance in instances)
