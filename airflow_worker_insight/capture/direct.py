"""Airflow 2.11: the task process has the database, so it writes its own row, in one short transaction."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from sqlalchemy.exc import OperationalError, ProgrammingError

from airflow_worker_insight import compat
from airflow_worker_insight.capture.report import describe_worker
from airflow_worker_insight.capture.validation import worker_record
from airflow_worker_insight.store.keys import TryKey
from airflow_worker_insight.store.migrate import HOW_TO_MIGRATE
from airflow_worker_insight.store.recording import record_start


def record(task_instance: Any) -> None:
    """Write that this process runs a try of ``task_instance`` (Airflow's ORM object)."""
    described = worker_record(describe_worker(task_instance).as_dict(), job_id=task_instance.queued_by_job_id)
    key = TryKey(
        dag_id=task_instance.dag_id,
        run_id=task_instance.run_id,
        task_id=task_instance.task_id,
        map_index=task_instance.map_index,
        try_number=task_instance.try_number,
    )
    try:
        with compat.short_transaction() as connection:
            record_start(
                connection,
                key,
                described,
                try_started_at=task_instance.start_date,
                state="running",
                now=datetime.now(timezone.utc),
            )
    except (OperationalError, ProgrammingError) as error:
        # The whole error is SQL with its parameters: too much for every task's log.
        reason = str(error.orig).strip().partition("\n")[0]
        raise RuntimeError(f"{reason} (if its tables are missing or old, {HOW_TO_MIGRATE})") from None
