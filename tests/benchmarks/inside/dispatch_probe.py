"""Time sending tasks to Celery, with Airflow's executor and with ours, by turns."""

from __future__ import annotations

import argparse
import json
import time
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from airflow.executors import workloads
from airflow.providers.celery.executors.celery_executor import CeleryExecutor

from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.executors.celery import WorkerInsightCeleryExecutor
from airflow_worker_insight.executors.placement.policy import Candidate
from airflow_worker_insight.executors.placement.rules import Rules
from airflow_worker_insight.executors.placement.service import PlacementService, Snapshot
from airflow_worker_insight.store.tables import placement


def main() -> None:
    """Take where to write, and the numbers of rounds, tasks and workers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--tasks", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    args = parser.parse_args()
    candidates = tuple(
        Candidate(
            ref=number,
            worker_id=f"celery-{number}",
            name=f"worker-{number}@etl-{number // 4}",
            queues=frozenset({"default"}),
            concurrency=16,
            capacity=20,
        )
        for number in range(1, args.workers + 1)
    )
    found: dict[str, list[float]] = {"parent": [], "ours": []}
    for turn in range(-1, args.rounds):
        for name in sorted(found, reverse=bool(turn % 2)):
            executor: Any = CeleryExecutor(parallelism=args.tasks * 2)
            if name == "ours":
                executor = WorkerInsightCeleryExecutor(parallelism=args.tasks * 2)
                snapshot = Snapshot(candidates, time.monotonic())
                executor._service = PlacementService(Rules("least_loaded", 4))
                executor._monitor = SimpleNamespace(snapshot=lambda snapshot=snapshot: snapshot)
            queue(executor, args.tasks, f"run-{turn}")
            began = time.perf_counter()
            executor.trigger_tasks(args.tasks)
            seconds = time.perf_counter() - began
            assert len(executor.running) == args.tasks, len(executor.running)
            # Then they end, which ours must write.
            for key in list(executor.running):
                executor.success(key)
            began = time.perf_counter()
            if name == "ours":
                executor._recorder.write_ends()
            seconds += time.perf_counter() - began
            with metadata_database.engine().begin() as connection:
                connection.execute(placement.delete())
            if turn >= 0:
                found[name].append(seconds / args.tasks * 1e3)
    args.output.write_text(json.dumps(found))


def queue(executor: Any, number: int, run_id: str) -> None:
    """Queue tasks of one Dag run."""
    model: Any = workloads.ExecuteTask.model_fields["ti"].annotation
    for task in range(number):
        ti = model(
            id=uuid.uuid4(),
            dag_version_id=uuid.uuid4(),
            dag_id="a_dag_of_usual_length",
            run_id=run_id,
            task_id=f"a_task_of_usual_length_{task}",
            try_number=1,
            map_index=-1,
            pool_slots=1,
            queue="default",
            priority_weight=1,
        )
        bundle = workloads.BundleInfo(name="dags-folder", version=None)
        workload = workloads.ExecuteTask(
            ti=ti, dag_rel_path=Path("dag.py"), token="t" * 400, log_path="log", bundle_info=bundle
        )
        executor.queue_workload(workload, session=None)


if __name__ == "__main__":
    main()
