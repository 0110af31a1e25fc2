"""Reconcile Dag runs beside the scheduler's loop: a bounded queue and one thread that lives only while it has work."""

from __future__ import annotations

import heapq
import logging
import math
import time
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from functools import partial
from threading import Lock, Thread
from typing import TYPE_CHECKING

from airflow_worker_insight.capture.counters import count, warn_once

# Imported with this module and not in the thread: a process forked meanwhile would inherit the import's lock for ever.
from airflow_worker_insight.capture.reconcile import Outcome, in_parts, reconcile_runs
from airflow_worker_insight.compat import task_runtime
from airflow_worker_insight.store import migrate, session
from airflow_worker_insight.store.airflow_history import count_task_instances, find_run, latest_finished_runs
from airflow_worker_insight.store.attempts.close import first_report_at

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """How the queue behaves; times are in seconds."""

    max_waiting: int = 10_000
    """Dag runs that may wait. Beyond it they are counted and left to ``airflow-worker-insight reconcile``."""

    settle: float = 3.0
    """Airflow calls its listeners before it commits the run's end: wait for the commit before reading."""

    batch: int = 20
    """Dag runs taken at once."""

    batch_tasks: int = 2_000
    """Task instances reconciled in one transaction; a single Dag run may have more."""

    look_again: tuple[float, ...] = (30.0, 120.0, 600.0, 3600.0)
    """When to look again at a run whose end is not committed yet, or that ended while tasks of it were running."""

    retry: tuple[float, ...] = (2.0, 4.0, 8.0, 15.0)
    """Waits between tries of a batch that failed (a locked or restarting database), then it is left to the command."""

    postpone: float = 30.0
    """When a run comes again that could not be reconciled because others held locks, or the database was slow."""

    max_postponed: int = 120
    """How often; then it is left to the command."""

    linger: float = 10.0
    """How long the thread waits for more work before it ends."""

    tick: float = 0.5
    """How long the thread sleeps while nothing is due."""

    catch_up: timedelta = timedelta(hours=1)
    """With its first run a process reconciles what ended since then: the one before may have died with runs waiting.

    Not when the process starts, because a scheduler should have no second thread when LocalExecutor forks its workers.
    """


@dataclass(frozen=True, slots=True, order=True)
class _Waiting:
    due: float
    dag_id: str = field(compare=False)
    run_id: str = field(compare=False)
    looks: int = field(compare=False, default=0)
    postponed: int = field(compare=False, default=0)
    # Found by catching up, so it may have ended before there was this package.
    may_be_history: bool = field(compare=False, default=False)


class ReconcileQueue:
    """Collects ended Dag runs, each once, and reconciles them in the background."""

    def __init__(self, pace: QueueSettings | None = None, *, catch_up: bool = True) -> None:
        self.pace = pace or QueueSettings()
        self._heap: list[_Waiting] = []
        self._known: dict[tuple[str, str], float] = {}
        self._catch_up_due = catch_up
        self._lock = Lock()
        self._thread: Thread | None = None

    def put(self, dag_id: str, run_id: str) -> None:
        """Have a Dag run reconciled soon; it does not wait for anything."""
        self._put(_Waiting(time.monotonic() + self.pace.settle, dag_id, run_id))

    def _put(self, waiting: _Waiting) -> None:
        name = (waiting.dag_id, waiting.run_id)
        with self._lock:
            # One that waits for a later look may have ended again: then it comes to its turn twice, which is harmless.
            if self._known.get(name, math.inf) <= waiting.due:
                return
            full = len(self._heap) >= self.pace.max_waiting
            if not full:
                self._known[name] = waiting.due
                heapq.heappush(self._heap, waiting)
                self._start()
        if full:
            count("runs.not_reconciled")
            warn_once("queue", "Airflow Worker Insight leaves Dag runs to its reconcile command: too many are waiting")

    def _start(self) -> None:
        """Start the thread unless it runs; the lock is held."""
        if self._thread is None:
            thread = Thread(target=self._work, name="worker-insight-reconcile", daemon=True)
            thread.start()
            self._thread = thread

    def _work(self) -> None:
        try:
            self._work_until_idle()
        except BaseException:
            with self._lock:
                self._thread = None
            raise

    def _work_until_idle(self) -> None:
        idle_since = time.monotonic()
        while True:
            if self._take_catch_up():
                self._with_retries(self._queue_recent)
            batch = self._take_due()
            if batch:
                # A run that cannot be reconciled must not take the others of its batch with it.
                if not self._with_retries(partial(self._reconcile_or_postpone, batch), give_up=len(batch) == 1):
                    for waiting in batch:
                        self._with_retries(partial(self._reconcile_or_postpone, [waiting]), waits=())
                idle_since = time.monotonic()
            elif self._end_if_idle(idle_since):
                return
            else:
                time.sleep(self.pace.tick)

    def _take_catch_up(self) -> bool:
        with self._lock:
            due, self._catch_up_due = self._catch_up_due, False
        return due

    def _take_due(self) -> list[_Waiting]:
        """Take the runs whose time has come, at most a batch."""
        now = time.monotonic()
        batch: list[_Waiting] = []
        with self._lock:
            while self._heap and self._heap[0].due <= now and len(batch) < self.pace.batch:
                # What took too long once goes alone, so that it keeps no other from being reconciled.
                if batch and (self._heap[0].postponed or batch[-1].postponed):
                    break
                waiting = heapq.heappop(self._heap)
                self._known.pop((waiting.dag_id, waiting.run_id), None)
                batch.append(waiting)
        return batch

    def _end_if_idle(self, idle_since: float) -> bool:
        with self._lock:
            if self._heap or self._catch_up_due or time.monotonic() - idle_since < self.pace.linger:
                return False
            self._thread = None
            return True

    def _with_retries(
        self, work: Callable[[], None], *, waits: Sequence[float] | None = None, give_up: bool = True
    ) -> bool:
        """Do it, after each failure again; return whether it was done. Giving up is counted and warned of once."""
        for wait in (*(self.pace.retry if waits is None else waits), None):
            try:
                work()
            except Exception as error:  # noqa: BLE001
                if wait is not None:
                    time.sleep(wait)
                elif give_up:
                    count("runs.not_reconciled")
                    warn_once(
                        "queue.failed",
                        "Airflow Worker Insight could not reconcile Dag runs: %s When the cause is mended, run "
                        "`airflow-worker-insight reconcile`.",
                        _explanation(error),
                    )
            else:
                return True
        return False

    def _reconcile_or_postpone(self, batch: Sequence[_Waiting]) -> None:
        try:
            self._reconcile(batch)
        except Exception as error:
            if not session.is_timeout(error) or max(waiting.postponed for waiting in batch) >= self.pace.max_postponed:
                raise
            log.debug("Dag runs are reconciled later, because that took too long", exc_info=True)
            due = time.monotonic() + self.pace.postpone
            for waiting in batch:
                self._put(replace(waiting, due=due, postponed=waiting.postponed + 1))

    def _reconcile(self, batch: Sequence[_Waiting]) -> None:
        with session.reading(session.BACKGROUND) as connection:
            found = [(waiting, find_run(connection, waiting.dag_id, waiting.run_id)) for waiting in batch]
            runs = [run for _, run in found if run is not None]
            installed_at = first_report_at(connection)
            parts = list(in_parts(count_task_instances(connection, runs), self.pace.batch_tasks))
        history = {run for waiting, run in found if waiting.may_be_history}
        outcome = Outcome()
        for part in parts:
            for is_history in (True, False):
                with session.writing(session.BACKGROUND) as connection:
                    outcome += reconcile_runs(
                        connection,
                        [run for run in part if (run in history) == is_history],
                        installed_at=installed_at if is_history else None,
                    )
        for waiting, run in found:
            if run is None or (run.is_finished and run not in outcome.still_running):
                continue
            if waiting.looks < len(self.pace.look_again):
                due = time.monotonic() + self.pace.look_again[waiting.looks]
                self._put(_Waiting(due, waiting.dag_id, waiting.run_id, waiting.looks + 1))

    def _queue_recent(self) -> None:
        since = datetime.now(timezone.utc) - self.pace.catch_up
        with session.reading(session.BACKGROUND) as connection:
            recent = latest_finished_runs(connection, ended_since=since, limit=self.pace.max_waiting // 2)
        for run in recent:
            due = time.monotonic() + self.pace.settle
            self._put(_Waiting(due, run.dag_id, run.run_id, may_be_history=True))


def _explanation(error: Exception) -> str:
    """Return one line for an operator: what is wrong with the tables, or else the error without its SQL."""
    try:
        with session.reading(session.BACKGROUND) as connection:
            schema = migrate.check(connection)
    except Exception:  # noqa: BLE001
        schema = migrate.Schema.READY  # Nothing is known of the tables: what went wrong first is the news.
    if schema is not migrate.Schema.READY:
        return schema.explanation
    return f"{str(getattr(error, 'orig', None) or error).strip().partition(chr(10))[0]}."


queue = ReconcileQueue(catch_up=task_runtime.in_scheduler())
"""The one queue of this process."""
