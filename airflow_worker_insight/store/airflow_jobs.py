"""Scheduler jobs from Airflow's own job table, which has one row for each scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import or_, select

from airflow_worker_insight.compat import metadata_database

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.engine import Connection, Row


def scheduler_jobs(connection: Connection, known: Collection[int]) -> dict[int, Row[Any]]:
    """Return the jobs of running schedulers, and those of known ones in any state, by job ID.

    :param known: job IDs of schedulers that are returned whatever their state
    :return: rows with ``id``, ``state``, ``hostname``, ``start_date`` and ``latest_heartbeat``
    """
    job = metadata_database.job_table()
    statement = select(job.c.id, job.c.state, job.c.hostname, job.c.start_date, job.c.latest_heartbeat).where(
        job.c.job_type == "SchedulerJob", or_(job.c.state == "running", job.c.id.in_(known))
    )
    return {row.id: row for row in connection.execute(statement)}
