"""LocalExecutor: its worker is the scheduler, and Airflow keeps a job for each scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import or_, select

from airflow_worker_insight import compat, config
from airflow_worker_insight.fleet.sighting import Look, Sighting
from airflow_worker_insight.identity.engines import NAME_LENGTH
from airflow_worker_insight.identity.text import clean
from airflow_worker_insight.identity.worker import HOSTNAME_LENGTH
from airflow_worker_insight.store.clock import utc
from airflow_worker_insight.store.lives import JOBS

if TYPE_CHECKING:
    from typing import Any

    from sqlalchemy.engine import Row

    from airflow_worker_insight.fleet.sighting import View


class JobsEngine:
    """Looks at Airflow's ``job`` table.

    Its ``executor_class`` is never filled in (2.11 to 3.3), so each scheduler of a deployment that has LocalExecutor
    among its executors is a local worker.
    """

    name = JOBS

    def look(self, view: View) -> Look:
        """Return the schedulers that run, and those that have ended since they were last seen."""
        job = compat.job_table()
        known = [life.job_id for life in view.lives if life.job_id is not None]
        statement = select(job.c.id, job.c.state, job.c.hostname, job.c.start_date, job.c.latest_heartbeat).where(
            job.c.job_type == "SchedulerJob", or_(job.c.state == "running", job.c.id.in_(known))
        )
        with view.database() as connection:
            rows = connection.execute(statement).all()
        concurrency = config.parallelism()
        return Look(tuple(_sighting(row, concurrency) for row in rows))


def _sighting(row: Row[Any], concurrency: int | None) -> Sighting:
    hostname = clean(row.hostname, HOSTNAME_LENGTH)
    # Airflow writes "success" when a scheduler was told to end, "failed" when it broke or another one missed it.
    return Sighting(
        kind="local",
        engine_name=clean(f"local@{hostname}", NAME_LENGTH),
        hostname=hostname,
        job_id=row.id,
        started_at=utc(row.start_date),
        heartbeat_at=utc(row.latest_heartbeat) if row.state == "running" else None,
        has_left=row.state == "success",
        concurrency=concurrency,
        trouble="Airflow says that its job has failed." if row.state == "failed" else None,
    )
