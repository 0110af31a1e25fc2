"""Watch the workers that a scheduler has itself, from a thread beside its loop.

They are written into the registry before the scheduler's loop begins, so that each can be seen and drained before its
first task. From then on their rows are read for what a person has decided, and places are given back that nobody gave
back. That they live is known anyway: they are this process's own.
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
"""Time between two sweeps, and how old a placement is at least that is swept."""

REST_SECONDS = 1.0
"""How long starting a process waits at most for the thread to be done with what it is at."""


@dataclass(frozen=True, slots=True)
class OwnWorker:
    """One of this scheduler's own workers."""

    record: WorkerRecord
    """What its processes will report."""
    concurrency: int


class LocalWorkerMonitor(WorkerMonitor):
    """Makes a scheduler's own workers known, and watches what is decided of them."""

    thread_name = "worker-insight-own-workers"

    def __init__(self, own: Sequence[OwnWorker]) -> None:
        super().__init__()
        self.own = {one.record.worker_id: one for one in own}
        self._busy = Lock()
        self._sweep_due = 0.0
        # Both are handed from one thread to the other.
        self._doubted: deque[TryKey] = deque()
        self._over: deque[TryKey] = deque()

    def prepare(self) -> None:
        """Make the workers known."""
        with self._busy:
            self._read()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Keep the thread from beginning anything meanwhile: a process that is forked inherits the locks it holds."""
        is_at_rest = self._busy.acquire(timeout=REST_SECONDS)
        try:
            yield
        finally:
            if is_at_rest:
                self._busy.release()

    def doubt(self, key: TryKey) -> None:
        """Have it found out whether a try is over that may never say so: a process of its worker died."""
        self._doubted.append(key)

    def take_over(self) -> list[TryKey]:
        """Return those of the doubted tries that have turned out to be over since the last time."""
        return [self._over.popleft() for _ in range(len(self._over))]

    def run_once(self) -> None:
        """Do everything that is due once."""
        with self._busy:
            if not self._read():
                return
            if config.enabled():
                # The API servers of Airflow 3 do it too; whoever finds it due is the one.
                refresh(only_if_due=True)
            now = time.monotonic()
            if now >= self._sweep_due:
                self._sweep_due = now + SWEEP_EVERY.total_seconds()
                with session.writing(session.BACKGROUND) as connection:
                    settled = database_now(connection) - SWEEP_EVERY
                    placements.sweep(connection, {}, settled=settled)
                    placements.trim(connection, now=settled)
            self._look_after_doubted()

    def _read(self) -> bool:
        """Read the rows of the workers, and write those that are missing; return whether there are tables for them."""
        unavailable_reason = self.tables_unavailable_reason()
        if unavailable_reason is not None:
            self.publish((), unavailable_reason)
            return False
        rows = self._rows()
        missing = [one for worker_id, one in self.own.items() if worker_id not in rows]
        if missing:
            with session.writing(session.BACKGROUND) as connection:
                now = database_now(connection)
                for one in missing:
                    instances.register_own(connection, one.record, concurrency=one.concurrency, now=now)
            rows = self._rows()
        self.publish(tuple(map(self._candidate, rows.values())), None)
        return True

    def _rows(self) -> dict[str, WorkerRow]:
        with session.reading(session.BACKGROUND) as connection:
            return worker_queries.get_workers(connection, self.own.keys())

    def _candidate(self, row: WorkerRow) -> Candidate:
        own = self.own[row.worker_id]
        concurrency = own.concurrency
        return Candidate(
            ref=row.ref,
            worker_id=row.worker_id,
            name=row.known_as,
            # LocalExecutor runs tasks of every queue: its executor names those of a batch.
            queues=frozenset(),
            concurrency=concurrency,
            # Nothing waits at a local worker: it would be bound to it for nothing.
            capacity=concurrency,
            # As this process has them, and not as some task has told.
            labels=own.record.labels,
            availability=row.availability,
            alias=own.record.name,
        )

    def _look_after_doubted(self) -> None:
        keys = [self._doubted.popleft() for _ in range(len(self._doubted))]
        if not keys:
            return
        try:
            with session.reading(session.BACKGROUND) as connection:
                found = airflow_history.tries_of_task_instances(connection, keys)
        except Exception:
            self._doubted.extend(keys)
            raise
        for key in keys:
            is_over = key not in found or found[key].state not in placements.PLACES_TAKEN
            (self._over if is_over else self._doubted).append(key)
