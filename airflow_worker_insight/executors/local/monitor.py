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
from typing import TYPE_CHECKING, Any

from airflow_worker_insight import config
from airflow_worker_insight.executors.monitor import WorkerMonitor
from airflow_worker_insight.executors.placement.policy import Candidate
from airflow_worker_insight.registry.poll import refresh
from airflow_worker_insight.store import airflow_history, placements, session
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.workers import instances
from airflow_worker_insight.store.workers import queries as worker_queries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from airflow_worker_insight.domain.keys import TryKey
    from airflow_worker_insight.domain.workers import WorkerRecord, WorkerRow


@dataclass(frozen=True, slots=True)
class LocalMonitorSettings:
    """Intervals and limits."""

    sweep_interval: timedelta = timedelta(seconds=30)
    """Time between two sweeps, and minimum age of a placement to be swept."""
    pause_timeout: float = 1.0
    """Seconds that starting a process waits at most for the thread's current run."""


DEFAULTS = LocalMonitorSettings()


@dataclass(frozen=True, slots=True)
class OwnWorker:
    """Local worker of this scheduler."""

    record: WorkerRecord
    """What its processes will report of themselves."""
    concurrency: int


class LocalWorkerMonitor(WorkerMonitor):
    """Monitor that registers a scheduler's own workers and reads decisions about them."""

    thread_name = "worker-insight-own-workers"

    def __init__(
        self,
        workers: Sequence[OwnWorker],
        *,
        settings: LocalMonitorSettings = DEFAULTS,
        refresh: Callable[..., Any] = refresh,
        **options: Any,
    ) -> None:
        """Take the scheduler's workers.

        :param refresh: polls the workers, as :func:`airflow_worker_insight.registry.poll.refresh` does
        :param options: arguments of :class:`.WorkerMonitor`
        """
        super().__init__(**options)
        self._settings = settings
        self._refresh = refresh
        self._workers = {worker.record.worker_id: worker for worker in workers}
        self._run_lock = Lock()
        self._sweep_at = 0.0
        # Both queues pass tries between the two threads.
        self._unchecked: deque[TryKey] = deque()
        self._ended: deque[TryKey] = deque()

    def prepare(self) -> None:
        """Register the workers."""
        with self._run_lock:
            self._read()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the thread idle within the context: a forked process inherits the locks it holds."""
        is_paused = self._run_lock.acquire(timeout=self._settings.pause_timeout)
        try:
            yield
        finally:
            if is_paused:
                self._run_lock.release()

    def request_end_check(self, key: TryKey) -> None:
        """Have the thread check whether a try has ended: a process of its worker died, which may never report it.

        :meth:`pop_ended` returns the try once it has ended.
        """
        self._unchecked.append(key)

    def pop_ended(self) -> list[TryKey]:
        """Return the tries that were found to have ended since the last call."""
        return [self._ended.popleft() for _ in range(len(self._ended))]

    def run_once(self) -> None:
        """Do everything that is due, once."""
        with self._run_lock:
            if not self._read():
                return
            if config.enabled():
                # API servers of Airflow 3 poll too; the first process that finds a poll due does it.
                self._refresh(only_if_due=True)
            now = time.monotonic()
            if now >= self._sweep_at:
                self._sweep_at = now + self._settings.sweep_interval.total_seconds()
                self._sweep()
            self._check_ends()

    def _sweep(self) -> None:
        """Free leaked slots, and delete old records."""
        with session.writing(session.BACKGROUND) as connection:
            placed_before = database_now(connection) - self._settings.sweep_interval
            placements.sweep(connection, {}, placed_before=placed_before)
            placements.prune(connection, now=placed_before)

    def _read(self) -> bool:
        """Read the workers' rows, and write missing ones; return whether the tables are usable."""
        unavailable_reason = self.tables_unavailable_reason()
        if unavailable_reason is not None:
            self.publish((), unavailable_reason)
            return False
        rows = self._rows()
        missing = [worker for worker_id, worker in self._workers.items() if worker_id not in rows]
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
            return worker_queries.get_workers(connection, self._workers.keys())

    def _candidate(self, row: WorkerRow) -> Candidate:
        worker = self._workers[row.worker_id]
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

    def _check_ends(self) -> None:
        keys = [self._unchecked.popleft() for _ in range(len(self._unchecked))]
        if not keys:
            return
        try:
            with session.reading(session.BACKGROUND) as connection:
                rows = airflow_history.tries_of_task_instances(connection, keys)
        except Exception:
            self._unchecked.extend(keys)
            raise
        for key in keys:
            has_ended = key not in rows or rows[key].state not in placements.SLOT_STATES
            (self._ended if has_ended else self._unchecked).append(key)
