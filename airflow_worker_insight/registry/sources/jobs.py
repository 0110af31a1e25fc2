"""LocalExecutor: find its workers, which are the scheduler's own, by the schedulers' jobs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from airflow_worker_insight import config
from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.domain.names import HOSTNAME_LENGTH, NAME_LENGTH, SINGLE_LOCAL_NAME, clean, is_named_local
from airflow_worker_insight.domain.states import SourceName
from airflow_worker_insight.registry.observations import PollResult, WorkerObservation
from airflow_worker_insight.store.airflow_jobs import scheduler_jobs
from airflow_worker_insight.store.workers.instances import named_local_instances

if TYPE_CHECKING:
    from typing import Any

    from sqlalchemy.engine import Row

    from airflow_worker_insight.domain.workers import WorkerInstance
    from airflow_worker_insight.registry.observations import PollContext


class JobsSource:
    """Source of the local workers in Airflow's ``job`` table.

    Airflow never fills in its ``executor_class`` (2.11 to 3.3), so each scheduler of a deployment that has
    LocalExecutor among its executors is a local worker. A scheduler with named workers on its machine has registered
    these itself: they end with its job.
    """

    name = SourceName.JOBS

    def __init__(self, *, has_single: bool = True) -> None:
        self._has_single = has_single
        """Whether an executor with one local worker for each scheduler is configured."""

    def poll(self, context: PollContext) -> PollResult:
        """Return the workers of schedulers that run, or that ended since they were last seen."""
        job_ids = [instance.job_id for instance in context.instances if instance.job_id is not None]
        with context.database() as connection:
            rows = scheduler_jobs(connection, job_ids)
            named_instances = named_local_instances(connection, rows)
        single_job_ids = {
            instance.job_id for instance in context.instances if not is_named_local(instance.kind, instance.engine_name)
        }
        concurrency = config.parallelism()
        observations = [
            _scheduler(row, concurrency) for row in rows.values() if self._has_single or row.id in single_job_ids
        ]
        return PollResult(
            (
                *observations,
                *(
                    _named_worker(instance, rows[instance.job_id])
                    for instance in named_instances
                    if instance.job_id is not None
                ),
            )
        )


def _scheduler(row: Row[Any], concurrency: int | None) -> WorkerObservation:
    hostname = clean(row.hostname, HOSTNAME_LENGTH)
    return replace(
        _observation(row),
        engine_name=clean(f"{SINGLE_LOCAL_NAME}@{hostname}", NAME_LENGTH),
        hostname=hostname,
        concurrency=concurrency,
    )


def _named_worker(instance: WorkerInstance, row: Row[Any]) -> WorkerObservation:
    return replace(
        _observation(row), engine_name=instance.engine_name or "", hostname=instance.hostname, ref=instance.ref
    )


def _observation(row: Row[Any]) -> WorkerObservation:
    """Return what a scheduler's job says about its workers."""
    # Airflow writes "success" when a scheduler was told to end, "failed" when it broke or another scheduler missed it.
    return WorkerObservation(
        kind="local",
        engine_name="",
        hostname="",
        job_id=row.id,
        started_at=utc(row.start_date),
        heartbeat_at=utc(row.latest_heartbeat) if row.state == "running" else None,
        has_left=row.state == "success",
        unavailable_reason="Airflow marked its job as failed." if row.state == "failed" else None,
    )
