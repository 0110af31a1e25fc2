"""Placement of task batches: requests, snapshots of workers, and records of decisions."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from airflow_worker_insight.domain.limits import TEXT_LENGTH
from airflow_worker_insight.domain.reasons import PlacementReason
from airflow_worker_insight.executors.placement.policy import Candidate, Decision, Placer, Task
from airflow_worker_insight.executors.placement.rules import SHARED_QUEUE as TO_SHARED_QUEUE
from airflow_worker_insight.executors.placement.rules import PlacementConfigError, requested_worker
from airflow_worker_insight.store import placements
from airflow_worker_insight.store.placements import Placement
from airflow_worker_insight.store.workers import queries as worker_queries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.keys import TryKey
    from airflow_worker_insight.executors.placement.rules import Rules

FAILED_WORKERS_TTL = 60.0
"""Seconds to cache which workers failed a retry, after its last placement request."""

NEVER_SHARED = (PlacementReason.OTHERS_FULL, PlacementReason.INVALID_REQUEST)
"""Reasons for which a task waits even if the fallback is the shared queue.

The shared queue would lead a retry back to the worker that failed it, and someone must fix an invalid request.
"""

_NO_WORKERS: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """A task to place, as its executor has it."""

    key: TryKey
    queue: str
    executor_config: Any = None
    pool: str | None = None
    """``None`` if the executor does not know it."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was known of the workers at one time."""

    candidates: tuple[Candidate, ...]
    """The workers, without their loads, which change with each task.

    Availability, which operators set, is read again at placement, too.
    """
    taken_at: float
    """Seconds of this process's monotonic clock."""
    unavailable_reason: str | None = None
    """Why no task can be placed by the snapshot."""
    answered_at: float | None = None
    """When the broker was last reached, by the same clock; ``None`` if never or without one."""
    may_share: bool = True
    """Whether tasks that fit no worker may go to the shared queue, if configured."""
    unplaced: Mapping[int, int] = field(default_factory=dict)
    """Tries running on each worker that no executor of this package placed, by its ``ref``."""
    loads: Mapping[int, int] | None = None
    """How many tries each worker has, by its ``ref``.

    ``None`` if the executor knows no better than what all schedulers have written.
    """


@dataclass(frozen=True, slots=True)
class PlacementResult:
    """A placement request with its decision."""

    request: PlacementRequest
    decision: Decision

    @property
    def waits(self) -> bool:
        """Whether the task waits."""
        return self.decision.worker is None and self.decision.reason != PlacementReason.SHARED_QUEUE

    def placement(self, dedicated_queue: str | None, *, note: str = "") -> Placement:
        """Return the record to write.

        :param dedicated_queue: the worker's dedicated queue that the task is sent to
        :param note: text to put before the decision's
        """
        worker = self.decision.worker
        return Placement(
            self.request.key,
            reason=self.decision.reason,
            detail=f"{note}{self.decision.text}"[:TEXT_LENGTH],
            worker_ref=None if worker is None else worker.ref,
            dedicated_queue=dedicated_queue,
        )


class PlacementService:
    """Placement service of one executor; remembers when each worker last got a task.

    The scheduler's loop uses it, and the monitor's thread for the messages that it reclaims.
    """

    def __init__(self, rules: Rules, *, failed_workers_ttl: float = FAILED_WORKERS_TTL) -> None:
        self.rules = rules
        self._failed_workers_ttl = failed_workers_ttl
        # Guards the two below; never held during a query, or the loop would wait for the monitor's.
        self._lock = threading.Lock()
        self._history: dict[int, float] = {}
        # For each retry: when its placement was last requested, and which workers failed it.
        self._failed: dict[TryKey, tuple[float, frozenset[str]]] = {}

    def decide(
        self,
        connection: Connection,
        requests: Sequence[PlacementRequest],
        snapshot: Snapshot,
        *,
        limit: int | None = None,
    ) -> list[PlacementResult]:
        """Decide for tasks in order until ``limit`` are placed; leave the rest for next time.

        What operators have decided about workers since the snapshot counts: a drained worker gets no task. Runs two
        queries, and a few more for each few hundred earlier tries of the retries that are requested for the first time;
        writes nothing.

        :param limit: how many tasks to place at most; ``None`` for all
        """
        loads = placements.count_open(connection) if snapshot.loads is None else snapshot.loads
        failed = self._failed_workers(connection, [request.key for request in requests if request.key.try_number > 1])
        pools = self._pools(connection, requests)
        unavailable_workers = worker_queries.unavailable_workers(connection)
        candidates = [
            replace(
                candidate,
                load=loads.get(candidate.ref, 0) + snapshot.unplaced.get(candidate.ref, 0),
                availability=unavailable_workers.get(candidate.ref, candidate.availability),
            )
            for candidate in snapshot.candidates
        ]
        results: list[PlacementResult] = []
        remaining = len(requests) if limit is None else limit
        with self._lock:
            refs = {candidate.ref for candidate in candidates}
            self._history = {ref: at for ref, at in self._history.items() if ref in refs}
            placer = Placer(self.rules.strategy, candidates, self._history, now=time.monotonic())
            for request in requests:
                if remaining <= 0:
                    break
                decision = placer.place(self._task(request, pools, failed))
                if snapshot.may_share:
                    decision = self._fallback(decision, request)
                results.append(PlacementResult(request, decision))
                remaining -= not results[-1].waits
        return results

    def _failed_workers(self, connection: Connection, keys: Sequence[TryKey]) -> Mapping[TryKey, frozenset[str]]:
        """Return for each retry the names of the workers that failed an earlier try.

        They do not change while a retry waits, so each retry is queried once and not at every heartbeat.
        """
        with self._lock:
            known = {key: self._failed[key][1] for key in keys if key in self._failed}
        new = [key for key in keys if key not in known]
        failed = {**known, **dict.fromkeys(new, _NO_WORKERS), **placements.failed_on(connection, new)}
        now = time.monotonic()
        with self._lock:
            # Entries expire by time, because neither thread knows which retries the other one requests.
            kept = {key: entry for key, entry in self._failed.items() if now - entry[0] < self._failed_workers_ttl}
            self._failed = {**kept, **{key: (now, names) for key, names in failed.items()}}
        return failed

    def _task(
        self, request: PlacementRequest, pools: Mapping[TryKey, str], failed: Mapping[TryKey, frozenset[str]]
    ) -> Task:
        key = request.key
        labels: dict[str, str] = {}
        worker = invalid_reason = None
        try:
            worker = requested_worker(request.executor_config)
            labels = self.rules.labels_for_task(request.pool or pools.get(key), request.executor_config)
        except PlacementConfigError as error:
            invalid_reason = str(error)
        return Task(
            dag_id=key.dag_id,
            run_id=key.run_id,
            task_id=key.task_id,
            map_index=key.map_index,
            try_number=key.try_number,
            queue=request.queue,
            labels=labels,
            worker=worker,
            avoid=failed.get(key, frozenset()),
            invalid_reason=invalid_reason,
        )

    def _pools(self, connection: Connection, requests: Sequence[PlacementRequest]) -> dict[TryKey, str]:
        """Read pools from Airflow's tables, if they matter and the executor does not know them."""
        unknown = [request.key for request in requests if request.pool is None] if self.rules.pool_labels else []
        return {key: row.pool for key, row in placements.try_details(connection, unknown).items()}

    def _fallback(self, decision: Decision, request: PlacementRequest) -> Decision:
        if decision.worker is not None or self.rules.fallback != TO_SHARED_QUEUE or decision.reason in NEVER_SHARED:
            return decision
        text = f"sent to the shared queue {request.queue}: {decision.text.removeprefix('waits: ')}"
        return Decision(None, PlacementReason.SHARED_QUEUE, text[:TEXT_LENGTH])
