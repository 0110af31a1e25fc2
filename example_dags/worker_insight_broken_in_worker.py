"""
A file that the Dag processor can import and a worker cannot: a library is missing there, say.

Such a try never comes as far as the task itself. That it was a worker's is known all the same.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

try:  # Airflow 3
    from airflow.sdk import dag, get_parsing_context, task
except ImportError:  # Airflow 2.11
    from airflow.decorators import dag, task
    from airflow.utils.dag_parsing_context import get_parsing_context

DAG_ID = "worker_insight_broken_in_worker"

# A worker imports the file for the sake of one Dag and says which; the Dag processor wants all there are.
if get_parsing_context().dag_id == DAG_ID:
    raise ImportError("this file breaks at import in a worker, on purpose")


@dag(
    dag_id=DAG_ID,
    schedule=None,
    start_date=datetime(2024, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    default_args={"retries": 1, "retry_delay": timedelta(0)},
    tags=["worker-insight"],
    doc_md=__doc__,
)
def broken_in_worker() -> None:
    """Build the Dag."""

    @task
    def never_starts() -> None:
        """Do nothing: no worker comes this far."""

    never_starts()


broken_in_worker()
