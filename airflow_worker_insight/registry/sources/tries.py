"""All other executors: their workers are known only by the tries that run on them.

A pod of KubernetesExecutor lives for one try.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_worker_insight.domain.states import SourceName
from airflow_worker_insight.registry.observations import PollResult, WorkerObservation
from airflow_worker_insight.store.attempts.running import running_tries
from airflow_worker_insight.store.workers.instances import instances_by_ref

if TYPE_CHECKING:
    from airflow_worker_insight.registry.observations import PollContext


class TriesSource:
    """Source of the workers of Airflow's running task instances."""

    name = SourceName.TRIES

    def poll(self, context: PollContext) -> PollResult:
        """Return the workers on which a try runs, each with the latest heartbeat of its tries."""
        with context.database() as connection:
            tries = running_tries(connection)
            instances = instances_by_ref(connection, SourceName.TRIES, tries.counts)
        return PollResult(
            tuple(
                WorkerObservation(
                    kind=instance.kind,
                    engine_name=instance.engine_name or "",
                    hostname=instance.hostname,
                    ref=instance.ref,
                    # Without heartbeats of tries, Airflow's running state is all that shows it alive.
                    heartbeat_at=tries.heartbeats.get(instance.ref) or context.clock(),
                )
                for instance in instances
            )
        )
