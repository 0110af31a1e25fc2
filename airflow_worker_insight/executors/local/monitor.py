"""Monitor of a scheduler's own local workers, in a thread beside the scheduler's loop.

It registers the workers before the scheduler's loop begins, so that each can be found and drained before its first
task. From then on it reads what operators have decided about them, and frees slots of placements that were not closed.
Their liveness needs no check: they are this process's own.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Lock
from typing import TYPE_CHECKING

from airflow_worker_insight import config
from airflow_worker_insight.executors.monitor import WorkerMonitor
from airflow_worker_insight.executors.placement.policy import Candidate
from airflow_worker_insight.registry.poll import refresh
from airflow_worker_insight.store import airflow_history, placements, session
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.workers import instances
from airflow_worker_insight.store.workers import queries as worker_queries

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from airflow_worker_insight.domain.keys import TryKey
    from airflow_worker_insight.domain.workers import WorkerRecord, WorkerRow

SWEEP_EVERY = timedelta(seconds=30)
"""Time between two sweeps, and minimum age of a placement to be swept."""

REST_SECONDS = 1.0
"""Maximum seconds that starting a process waits for the thread's current run."""


@dataclass(frozen=True, slots=True)
class OwnWorker:
    """Local worker of this scheduler."""

    record: WorkerRecord
    """What its processes will report of themselves."""
    concurrency: int


class LocalWorkerMonitor(WorkerMonitor):
    """Monitor that registers a scheduler's own workers and reads decisions about them."""

    thread_name = "worker-insight-own-workers"

    def __init__(self, workers: Sequence[OwnWorker]) -> None:
        super().__init__()
        self.own = {worker.record.worker_id: worker for worker in workers}
        self._busy = Lock()
        self._sweep_due = 0.0
        # Both queues pass tries between the two threads.
        self._doubted: deque[TryKey] = deque()
        self._over: deque[TryKey] = deque()

    def prepare(self) -> None:
        """Register the workers."""
        with self._busy:
            self._read()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Keep the thread idle within the context: a forked process inherits the locks it holds."""
        is_at_rest = self._busy.acquire(timeout=REST_SECONDS)
        try:
            yield
        finally:
            if is_at_rest:
                self._busy.release()

    def doubt(self, key: TryKey) -> None:
        """Check whether a try is over that may never report its end.

        A process of its worker died. :meth:`take_over` returns the try once it is over.
        """
        self._doubted.append(key)

    def take_over(self) -> list[TryKey]:
        """Return the doubted tries that were found to be over since the last call."""
        return [self._over.popleft() for _ in range(len(self._over))]

    def run_once(self) -> None:
        """Do everything that is due, once."""
        with self._busy:
            if not self._read():
                return
            if config.enabled():
                # API servers of Airflow 3 poll too; the first process that finds a poll due does it.
                refresh(only_if_due=True)
            now = time.monotonic()
            if now >= self._sweep_due:
                self._sweep_due = now + SWEEP_EVERY.total_seconds()
                with session.writing(session.BACKGROUND) as connection:
                    placed_before = database_now(connection) - SWEEP_EVERY
                    placements.sweep(connection, {}, placed_before=placed_before)
                    placements.prune(connection, now=placed_before)
            self._check_doubted()

    def _read(self) -> bool:
        """Read the workers' rows, and write missing ones; return whether the tables are usable."""
        unavailable_reason = self.tables_unavailable_reason()
        if unavailable_reason is not None:
            self.publish((), unavailable_reason)
            return False
        rows = self._rows()
        missing = [worker for worker_id, worker in self.own.items() if worker_id not in rows]
        if missing:
            with session.writing(session.BACKGROUND) as connection:
                now = database_now(connection)
                for worker in missing:
                    instances.register_own(connection, worker.record, concurrency=worker.concurrency, now=now)
            rows = self._rows()
        self.publish(tuple(map(self._candidate, rows.values())), None)
        return True

    def _rows(self) -> dict[str, WorkerRow]:
        with session.reading(session.BACKGROUND) as connection:
            return worker_queries.get_workers(connection, self.own.keys())

    def _candidate(self, row: WorkerRow) -> Candidate:
        worker = self.own[row.worker_id]
        concurrency = worker.concurrency
        return Candidate(
            ref=row.ref,
            worker_id=row.worker_id,
            name=row.display_name,
            # LocalExecutor runs tasks of every queue: the executor sets the queues of each batch.
            queues=frozenset(),
            concurrency=concurrency,
            # No backlog: a task that waits at a local worker would be bound to it for nothing.
            capacity=concurrency,
            # The labels that this process has, not those that tasks report.
            labels=worker.record.labels,
            availability=row.availability,
            alias=worker.record.name,
        )

    def _check_doubted(self) -> None:
        keys = [self._doubted.popleft() for _ in range(len(self._doubted))]
        if not keys:
            return
        try:
            with session.reading(session.BACKGROUND) as connection:
                rows = airflow_history.tries_of_task_instances(connection, keys)
        except Exception:
            self._doubted.extend(keys)
            raise
        for key in keys:
            is_over = key not in rows or rows[key].state not in placements.SLOT_STATES
            (self._over if is_over else self._doubted).append(key)
