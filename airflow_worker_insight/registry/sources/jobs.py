"""LocalExecutor: its workers are the scheduler's own, and Airflow keeps a job for each scheduler."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from airflow_worker_insight import config
from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.domain.names import HOSTNAME_LENGTH, NAME_LENGTH, PLAIN_LOCAL, clean, is_named_local
from airflow_worker_insight.domain.states import JOBS
from airflow_worker_insight.registry.observations import PollResult, WorkerObservation
from airflow_worker_insight.store.airflow_jobs import scheduler_jobs
from airflow_worker_insight.store.workers.instances import named_local_lives

if TYPE_CHECKING:
    from typing import Any

    from sqlalchemy.engine import Row

    from airflow_worker_insight.domain.workers import WorkerInstance
    from airflow_worker_insight.registry.observations import PollContext


class JobsSource:
    """Looks at Airflow's ``job`` table.

    Its ``executor_class`` is never filled in (2.11 to 3.3), so each scheduler of a deployment that has LocalExecutor
    among its executors is a local worker. One that has named workers on its machine has made these known itself: they
    live as long as its job does.
    """

    name = JOBS

    def __init__(self, *, has_plain: bool = True) -> None:
        self._has_plain = has_plain
        """Whether LocalExecutor is configured, beside or without named workers."""

    def look(self, view: PollContext) -> PollResult:
        """Return the workers of the schedulers that run, and of those that have ended since they were last seen."""
        known = [life.job_id for life in view.lives if life.job_id is not None]
        with view.database() as connection:
            rows = scheduler_jobs(connection, known)
            named = named_local_lives(connection, rows)
        plain = {life.job_id for life in view.lives if not is_named_local(life.kind, life.engine_name)}
        concurrency = config.parallelism()
        found = [_scheduler(row, concurrency) for row in rows.values() if self._has_plain or row.id in plain]
        return PollResult((*found, *(_named(life, rows[life.job_id]) for life in named if life.job_id is not None)))


def _scheduler(row: Row[Any], concurrency: int | None) -> WorkerObservation:
    hostname = clean(row.hostname, HOSTNAME_LENGTH)
    return replace(
        _sighting(row),
        engine_name=clean(f"{PLAIN_LOCAL}@{hostname}", NAME_LENGTH),
        hostname=hostname,
        concurrency=concurrency,
    )


def _named(life: WorkerInstance, row: Row[Any]) -> WorkerObservation:
    return replace(_sighting(row), engine_name=life.engine_name or "", hostname=life.hostname, ref=life.ref)


def _sighting(row: Row[Any]) -> WorkerObservation:
    """Return what a scheduler's job says of its workers."""
    # Airflow writes "success" when a scheduler was told to end, "failed" when it broke or another one missed it.
    return WorkerObservation(
        kind="local",
        engine_name="",
        hostname="",
        job_id=row.id,
        started_at=utc(row.start_date),
        heartbeat_at=utc(row.latest_heartbeat) if row.state == "running" else None,
        has_left=row.state == "success",
        unavailable_reason="Airflow says that its job has failed." if row.state == "failed" else None,
    )
