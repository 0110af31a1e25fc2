"""
Tasks that fail on one worker and nowhere else.

Is it the worker? Its disk is full, say. The worker is called `etl-2`: the demo has one of that name. Trigger the Dag a
few times, and the page *Insight* names it. Retries succeed elsewhere. Where no worker has that name, all tasks succeed.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone

try:  # Airflow 3
    from airflow.sdk import dag, task
except ImportError:  # Airflow 2.11
    from airflow.decorators import dag, task

SICK_WORKER = "etl-2"


@dag(
    schedule=None,
    start_date=datetime(2024, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    default_args={"retries": 3, "retry_delay": timedelta(0)},
    tags=["worker-insight"],
    doc_md=__doc__,
)
def worker_insight_sick_worker() -> None:
    """Build the Dag."""

    @task
    def load(table: str) -> None:
        """Write to the worker's disk."""
        # The executor of this package gives the processes of a named worker its name.
        if os.environ.get("AIRFLOW__WORKER_INSIGHT__WORKER_NAME") == SICK_WORKER:
            raise OSError(f"No space left on device: cannot write {table}")

    for table in ("customers", "invoices", "items", "orders", "payments", "prices", "refunds", "stock"):
        load.override(task_id=f"load_{table}")(table)


worker_insight_sick_worker()
