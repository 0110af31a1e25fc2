"""Place a batch of tasks: what is asked for, what is known of the workers, and what is written of the decisions."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from airflow_worker_insight.domain.limits import TEXT_LENGTH
from airflow_worker_insight.domain.reasons import INVALID_REQUEST, OTHERS_FULL, SHARED_QUEUE
from airflow_worker_insight.executors.placement.policy import Candidate, Decision, Placer, Task
from airflow_worker_insight.executors.placement.rules import SHARED_QUEUE as TO_SHARED_QUEUE
from airflow_worker_insight.executors.placement.rules import PlacementConfigError, asked_worker
from airflow_worker_insight.store import placements
from airflow_worker_insight.store.placements import Placement
from airflow_worker_insight.store.workers import queries as worker_queries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.keys import TryKey
    from airflow_worker_insight.executors.placement.rules import Rules

KEPT_FOR = 60.0
"""Seconds for which it is kept who failed a retry, once nobody asks for its place any more."""

STAYS = (OTHERS_FULL, INVALID_REQUEST)
"""Why a task waits also where the fallback is the shared queue, which would lead a retry back to the worker that failed
it; and what makes no sense is for a person to mend."""

_NOBODY: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """A task that is to be placed, as its executor has it."""

    key: TryKey
    queue: str
    executor_config: Any = None
    pool: str | None = None
    """``None`` where the executor does not know it."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was known of the workers at a moment."""

    candidates: tuple[Candidate, ...]
    """Their loads are not in it: these change with each task. What people decide of them is read once more, too."""
    taken_at: float
    """By this process's monotonic clock."""
    unavailable_reason: str | None = None
    """Why nothing can be placed by it."""
    answered_at: float | None = None
    """When the broker was last reached, by the same clock; ``None`` where there is no broker or it was not."""
    may_share: bool = True
    """Whether what nobody fits may go to the shared queue, where that is configured."""
    unplaced: Mapping[int, int] = field(default_factory=dict)
    """How many tries run on each worker that no executor of this package placed there."""
    loads: Mapping[int, int] | None = None
    """How many tries each worker has, where the executor knows that better than what all schedulers have written."""


@dataclass(frozen=True, slots=True)
class PlacementResult:
    """A task with its decision."""

    asked: PlacementRequest
    decision: Decision

    @property
    def waits(self) -> bool:
        """Whether it is to wait."""
        return self.decision.worker is None and self.decision.reason != SHARED_QUEUE

    def placement(self, own_queue: str | None, *, note: str = "") -> Placement:
        """Return what is written of it.

        :param own_queue: the worker's own queue that it is sent to
        :param note: put in front of the line
        """
        worker = self.decision.worker
        return Placement(
            self.asked.key,
            reason=self.decision.reason,
            detail=f"{note}{self.decision.text}"[:TEXT_LENGTH],
            worker_ref=None if worker is None else worker.ref,
            own_queue=own_queue,
        )


class PlacementService:
    """Decides for one executor; what it gave to whom last is kept from one batch to the next.

    The scheduler's loop uses it, and the watch beside it for what it takes back.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        # For the two below, and never held while the database is asked: the loop would wait for the watch's answer.
        self._lock = threading.Lock()
        self._history: dict[int, float] = {}
        # Of each retry when its place was asked for last, and who failed it.
        self._failed: dict[TryKey, tuple[float, frozenset[str]]] = {}

    def decide(
        self, connection: Connection, asked: Sequence[PlacementRequest], snapshot: Snapshot, *, most: int | None = None
    ) -> list[PlacementResult]:
        """Decide for tasks in their order, until so many are placed; those behind are left for the next time.

        What people have decided of the workers since the snapshot counts: nothing is placed on one that has been
        drained. It asks the database twice, and a few times more for each few hundred tries that came before the
        retries among them that are asked for the first time; it writes nothing.
        """
        loads = placements.loads(connection) if snapshot.loads is None else snapshot.loads
        failed = self._who_failed(connection, [one.key for one in asked if one.key.try_number > 1])
        pools = self._pools(connection, asked)
        unavailable_workers = worker_queries.unavailable_workers(connection)
        candidates = [
            replace(
                one,
                load=loads.get(one.ref, 0) + snapshot.unplaced.get(one.ref, 0),
                availability=unavailable_workers.get(one.ref, one.availability),
            )
            for one in snapshot.candidates
        ]
        found: list[PlacementResult] = []
        left = len(asked) if most is None else most
        with self._lock:
            refs = {one.ref for one in candidates}
            self._history = {ref: at for ref, at in self._history.items() if ref in refs}
            placer = Placer(self.rules.strategy, candidates, self._history, now=time.monotonic())
            for one in asked:
                if left <= 0:
                    break
                decision = placer.place(self._task(one, pools, failed))
                if snapshot.may_share:
                    decision = self._fallback(decision, one)
                found.append(PlacementResult(one, decision))
                left -= not found[-1].waits
        return found

    def _who_failed(self, connection: Connection, keys: Sequence[TryKey]) -> Mapping[TryKey, frozenset[str]]:
        """Return for these retries the names of the workers that failed an earlier try.

        That does not change while a retry waits, so the database is asked once for each and not at every heartbeat.
        """
        with self._lock:
            known = {key: self._failed[key][1] for key in keys if key in self._failed}
        new = [key for key in keys if key not in known]
        failed = {**known, **dict.fromkeys(new, _NOBODY), **placements.failed_on(connection, new)}
        now = time.monotonic()
        with self._lock:
            # By time, because one of the two threads knows nothing of what the other one asks for.
            kept = {key: one for key, one in self._failed.items() if now - one[0] < KEPT_FOR}
            self._failed = {**kept, **{key: (now, names) for key, names in failed.items()}}
        return failed

    def _task(
        self, one: PlacementRequest, pools: Mapping[TryKey, str], failed: Mapping[TryKey, frozenset[str]]
    ) -> Task:
        key = one.key
        labels: dict[str, str] = {}
        worker = invalid_reason = None
        try:
            worker = asked_worker(one.executor_config)
            labels = self.rules.labels_for(one.pool or pools.get(key), one.executor_config)
        except PlacementConfigError as error:
            invalid_reason = str(error)
        return Task(
            dag_id=key.dag_id,
            run_id=key.run_id,
            task_id=key.task_id,
            map_index=key.map_index,
            try_number=key.try_number,
            queue=one.queue,
            labels=labels,
            worker=worker,
            avoid=failed.get(key, frozenset()),
            invalid_reason=invalid_reason,
        )

    def _pools(self, connection: Connection, asked: Sequence[PlacementRequest]) -> dict[TryKey, str]:
        """Ask Airflow for the pools, where it matters and the executor does not know them."""
        unknown = [one.key for one in asked if one.pool is None] if self.rules.pool_labels else []
        return {key: one.pool for key, one in placements.wanted(connection, unknown).items()}

    def _fallback(self, decision: Decision, one: PlacementRequest) -> Decision:
        if decision.worker is not None or self.rules.fallback != TO_SHARED_QUEUE or decision.reason in STAYS:
            return decision
        text = f"to the queue {one.queue} that all share: {decision.text.removeprefix('waits: ')}"
        return Decision(None, SHARED_QUEUE, text[:TEXT_LENGTH])
