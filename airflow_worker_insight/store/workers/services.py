"""Read the deployment's processes: Airflow's own jobs first, then the workers."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import select

from airflow_worker_insight import config
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.domain.filters import WorkerFilter
from airflow_worker_insight.domain.limits import MAX_TOTAL
from airflow_worker_insight.domain.states import UNKNOWN_STATE, WorkerState
from airflow_worker_insight.domain.workers import Service
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.workers.queries import list_workers

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any

    from sqlalchemy.engine import Connection, Row

    from airflow_worker_insight.domain.workers import WorkerRow


_JOBS = {"SchedulerJob": "scheduler", "TriggererJob": "triggerer", "DagProcessorJob": "dag_processor"}

MAX_JOBS = 1000
"""Airflow's jobs that are read: those with the latest heartbeat."""


def list_services(
    connection: Connection, *, kind: str | None, state: str | None, limit: int, offset: int
) -> tuple[list[Service], int]:
    """Return a page of the deployment's processes, and their number.

    Airflow's own jobs come first, then the workers. The jobs are healthy by Airflow's own thresholds, from a heartbeat
    by their host's clock: if that clock is behind the database's they seem silent for that long, and if it is ahead
    they seem alive for that long after their end.

    :param kind: one of :data:`.filters.SERVICE_KINDS`, or ``None`` for all
    :param state: a worker's state, or ``None`` for all
    """
    jobs = [] if kind == "worker" else _job_services(connection, kind)
    jobs = [service for service in jobs if state is None or (service.state or UNKNOWN_STATE) == state]
    page, total = jobs[offset : offset + limit], len(jobs)
    if kind in (None, "worker"):
        workers, worker_total = list_workers(
            connection,
            WorkerFilter(states=None if state is None else frozenset({state})),
            limit=limit - len(page),
            offset=max(0, offset - len(jobs)),
        )
        page += [_worker_service(service) for service in workers]
        total += worker_total
    return page, min(total, MAX_TOTAL)


def _job_services(connection: Connection, kind: str | None) -> list[Service]:
    job = metadata_database.job_table()
    job_types = [job_type for job_type, job_kind in _JOBS.items() if kind in (None, job_kind)]
    rows = connection.execute(
        select(job).where(job.c.job_type.in_(job_types)).order_by(job.c.latest_heartbeat.desc()).limit(MAX_JOBS)
    )
    now = database_now(connection)
    return [_job_service(row, now) for row in rows]


def _job_service(row: Row[Any], now: datetime) -> Service:
    seen, ended = utc(row.latest_heartbeat), utc(row.end_date)
    return Service(
        kind=_JOBS[row.job_type],
        service_id=str(row.id),
        name=row.hostname or "",
        hostname=row.hostname or "",
        state=_job_state(
            row.state, None if seen is None else now - seen, metadata_database.job_health_threshold(row.job_type)
        ),
        started_at=utc(row.start_date),
        last_seen_at=seen,
        ended_at=ended,
    )


def _job_state(state: str | None, silent: timedelta | None, threshold: timedelta) -> str | None:
    """Return a job's state in terms of worker states.

    :param silent: time since its last heartbeat
    """
    if state == "success":
        return WorkerState.OFFLINE
    if state == "failed":
        return WorkerState.LOST
    if state != "running" or silent is None:
        return None
    if silent < threshold:
        return WorkerState.ONLINE
    return (
        WorkerState.UNRESPONSIVE
        if silent < max(threshold, timedelta(seconds=config.lost_timeout()))
        else WorkerState.LOST
    )


def _worker_service(worker_row: WorkerRow) -> Service:
    return Service(
        kind="worker",
        service_id=worker_row.worker_id,
        name=worker_row.name,
        hostname=worker_row.hostname,
        state=worker_row.state,
        started_at=worker_row.started_at,
        last_seen_at=worker_row.last_seen_at,
        ended_at=worker_row.ended_at,
    )
