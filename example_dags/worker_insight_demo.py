"""
What a try can go through, in one Dag: open any of its tasks and look who ran it.

Nothing in here knows of Worker Insight. The Dag runs on Airflow 2.11 and on every Airflow 3.
"""

from __future__ import annotations

import os
import signal
from datetime import datetime, timedelta, timezone
from typing import Any

try:  # Airflow 3
    from airflow.providers.standard.operators.bash import BashOperator
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync
    from airflow.sdk import dag, task
except ImportError:  # Airflow 2.11
    from airflow.decorators import dag, task
    from airflow.operators.bash import BashOperator
    from airflow.operators.empty import EmptyOperator
    from airflow.sensors.date_time import DateTimeSensorAsync


@dag(
    schedule=None,
    start_date=datetime(2024, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(0)},
    tags=["worker-insight"],
    doc_md=__doc__,
)
def worker_insight_demo() -> None:
    """Build the Dag."""
    # The scheduler finishes this one by itself: no worker ever sees it.
    start = EmptyOperator(task_id="start")

    @task
    def fails_first(**context: Any) -> str:
        """Fail once, so that there are two tries to tell apart."""
        if context["ti"].try_number == 1:
            raise RuntimeError("the first try fails on purpose")
        return "the second try worked"

    @task
    def mapped(number: int) -> int:
        """Run once for each number, on whichever worker is free."""
        return number * number

    # Starts on a worker, waits in the triggerer, and ends on a worker: maybe another one.
    deferred = DateTimeSensorAsync(
        task_id="deferred",
        target_time="{{ dag_run.start_date + macros.timedelta(seconds=15) }}",
    )

    @task.sensor(mode="reschedule", poke_interval=3, timeout=300)
    def rescheduled(**context: Any) -> bool:
        """Give the worker back between two looks: one try, many processes."""
        waited = datetime.now(timezone.utc) - context["dag_run"].start_date
        return waited > timedelta(seconds=15)

    @task
    def killed_by_sigkill(**context: Any) -> str:
        """End like a process that the kernel's out-of-memory killer chose: without a last word."""
        if context["ti"].try_number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return "the second try lived"

    plain_bash = BashOperator(task_id="plain_bash", bash_command='echo "ran on $(hostname)"')

    start >> [
        fails_first(),
        mapped.expand(number=[1, 2, 3]),
        deferred,
        rescheduled(),
        killed_by_sigkill(),
        plain_bash,
    ]


worker_insight_demo()
