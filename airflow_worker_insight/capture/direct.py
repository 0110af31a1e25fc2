"""Record attempts on Airflow 2.11, where task processes have access to the database.

The task process writes its own row in one short transaction. It describes its worker itself, so nothing needs
validation, and neither pydantic nor Alembic is loaded.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow_worker_insight import identity, metrics
from airflow_worker_insight.capture.counters import count
from airflow_worker_insight.capture.report import describe_worker
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.attempts import Conditions, StartedTry
from airflow_worker_insight.domain.keys import TryKey, instance_key_by_run, process_key
from airflow_worker_insight.domain.workers import WorkerRecord
from airflow_worker_insight.store import session
from airflow_worker_insight.store.attempts.start import record_start
from airflow_worker_insight.store.tables import HOW_TO_MIGRATE

if TYPE_CHECKING:
    from airflow_worker_insight.identity import Worker


def record(task_instance: Any) -> None:
    """Record that this process runs a try of a task instance.

    :param task_instance: Airflow's ORM object
    :raises RuntimeError: when the database refuses the row, with the reason on one line
    """
    worker = describe_worker(task_instance)
    if worker.kind not in _KINDS_OF_SEPARATE_WORKERS and not _was_queued(task_instance):
        return
    conditions = Conditions(**identity.conditions(worker.pid))
    key = TryKey(
        dag_id=task_instance.dag_id,
        run_id=task_instance.run_id,
        task_id=task_instance.task_id,
        map_index=task_instance.map_index,
        try_number=task_instance.try_number,
    )
    instance = instance_key_by_run(*metadata_database.dag_run_identity(task_instance), key.task_id, key.map_index)
    started = time.perf_counter()
    try:
        with session.writing(session.TASK) as connection:
            record_start(
                connection,
                StartedTry(key, instance, task_instance.start_date),
                worker_record(worker, job_id=task_instance.queued_by_job_id),
                now=datetime.now(timezone.utc),
                process=process_key(identity.process_id()),
                conditions=conditions,
            )
        metrics.timing("claim.duration", seconds=time.perf_counter() - started)
        count("reports.claimed")
    except session.DATABASE_ERRORS as error:
        # The whole error is SQL with its parameters: too much for each task's log.
        reason = str(error.orig).strip().partition("\n")[0]
        raise RuntimeError(f"{reason} (if its tables are missing or old, {HOW_TO_MIGRATE})") from None


_KINDS_OF_SEPARATE_WORKERS = frozenset({"celery", "edge", "kubernetes"})
"""Kinds whose workers are separate processes, whoever sent them the try."""


def _was_queued(task_instance: Any) -> bool:
    """Return whether a scheduler or a backfill queued the try.

    ``airflow tasks run --local`` and the LocalExecutor of ``dag.test(use_executor=True)`` run tries that neither
    queued, in processes of their caller. See also ``AirflowTry.ran_in_a_test``.
    """
    queue_marks = (task_instance.queued_dttm, task_instance.queued_by_job_id, task_instance.external_executor_id)
    return any(mark is not None for mark in queue_marks)


def worker_record(worker: Worker, *, job_id: int | None) -> WorkerRecord:
    """Return the worker as a row of the worker table.

    :param job_id: the ID of the job of the scheduler that queued the try; a local worker belongs to it
    """
    return WorkerRecord(
        worker_id=worker.worker_id,
        name=worker.name,
        kind=worker.kind,
        hostname=worker.hostname,
        pid=worker.pid,
        started_at=datetime.fromisoformat(worker.started_at) if worker.started_at else None,
        labels=worker.labels,
        resources=worker.resources,
        versions=worker.versions,
        job_id=job_id if worker.kind == "local" else None,
        engine_name=worker.engine_name,
    )
