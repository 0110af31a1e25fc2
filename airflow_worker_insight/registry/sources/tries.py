"""All other executors: of their workers nothing is known but the tries that run on them.

A pod of KubernetesExecutor is there for one try and goes with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_worker_insight.domain.states import TRIES
from airflow_worker_insight.registry.observations import PollResult, WorkerObservation
from airflow_worker_insight.store.attempts.running import running_tries
from airflow_worker_insight.store.workers.instances import lives_by_ref

if TYPE_CHECKING:
    from airflow_worker_insight.registry.observations import PollContext


class TriesSource:
    """Looks at Airflow's task instances that run."""

    name = TRIES

    def look(self, view: PollContext) -> PollResult:
        """Return the workers on which a try runs, each with the latest heartbeat of its tries."""
        with view.database() as connection:
            tries = running_tries(connection)
            lives = lives_by_ref(connection, TRIES, tries.counts)
        return PollResult(
            tuple(
                WorkerObservation(
                    kind=life.kind,
                    engine_name=life.engine_name or "",
                    hostname=life.hostname,
                    ref=life.ref,
                    # Where tries have no heartbeat, that Airflow has them running is all there is.
                    heartbeat_at=tries.heartbeats.get(life.ref) or view.clock(),
                )
                for life in lives
            )
        )
