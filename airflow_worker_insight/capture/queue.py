"""Reconcile Dag runs outside the scheduler's loop: a bounded queue and its thread.

The thread lives only while the queue has work.
"""

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

# Imported here, not in the thread: a process forked during the thread's import would inherit its lock for ever.
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
    """Settings of the queue; times are in seconds."""

    max_waiting: int = 10_000
    """Maximum number of queued Dag runs.

    Those beyond it are counted and left to ``airflow-worker-insight reconcile``.
    """

    settle: float = 3.0
    """Wait before reading a run: Airflow calls its listeners before it commits the run's end."""

    batch: int = 20
    """Number of Dag runs taken at once."""

    batch_tasks: int = 2_000
    """Maximum number of task instances per transaction; a single Dag run may have more."""

    look_again: tuple[float, ...] = (30.0, 120.0, 600.0, 3600.0)
    """Waits before checking again a run with an uncommitted end or with running tasks."""

    retry: tuple[float, ...] = (2.0, 4.0, 8.0, 15.0)
    """Waits between attempts at a batch that failed, as with a locked or restarting database.

    After the last one the batch is left to the command.
    """

    postpone: float = 30.0
    """Wait before the next attempt at a run that failed because of locks or a slow database."""

    max_postponed: int = 120
    """How often a run is postponed before it is left to the command."""

    linger: float = 10.0
    """How long the thread waits for more work before it ends."""

    tick: float = 0.5
    """How long the thread sleeps while no run is due."""

    catch_up: timedelta = timedelta(hours=1)
    """With its first run a process also reconciles the runs that ended within this time.

    The process before may have died with queued runs. This does not happen when the process starts, because a scheduler
    should have no second thread when LocalExecutor forks its workers.
    """


@dataclass(frozen=True, slots=True, order=True)
class _Waiting:
    due: float
    dag_id: str = field(compare=False)
    run_id: str = field(compare=False)
    looks: int = field(compare=False, default=0)
    postponed: int = field(compare=False, default=0)
    # Queued by catching up, so it may have ended before this package was installed.
    may_be_history: bool = field(compare=False, default=False)


class ReconcileQueue:
    """Queue of ended Dag runs, each queued once, that a background thread reconciles."""

    def __init__(self, settings: QueueSettings | None = None, *, catch_up: bool = True) -> None:
        self.pace = settings or QueueSettings()
        self._heap: list[_Waiting] = []
        self._known: dict[tuple[str, str], float] = {}
        self._catch_up_due = catch_up
        self._lock = Lock()
        self._thread: Thread | None = None

    def put(self, dag_id: str, run_id: str) -> None:
        """Queue a Dag run to be reconciled soon; never block."""
        self._put(_Waiting(time.monotonic() + self.pace.settle, dag_id, run_id))

    def _put(self, entry: _Waiting) -> None:
        run_key = (entry.dag_id, entry.run_id)
        with self._lock:
            # A run queued for a later check may have ended again: then it is reconciled twice, which is harmless.
            if self._known.get(run_key, math.inf) <= entry.due:
                return
            is_full = len(self._heap) >= self.pace.max_waiting
            if not is_full:
                self._known[run_key] = entry.due
                heapq.heappush(self._heap, entry)
                self._start()
        if is_full:
            count("runs.not_reconciled")
            warn_once("queue", "Airflow Worker Insight leaves Dag runs to its reconcile command: too many are waiting")

    def _start(self) -> None:
        """Start the thread unless it runs; the caller holds the lock."""
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
                # A run that cannot be reconciled must not fail the others of its batch.
                if not self._with_retries(partial(self._reconcile_or_postpone, batch), give_up=len(batch) == 1):
                    for entry in batch:
                        self._with_retries(partial(self._reconcile_or_postpone, [entry]), waits=())
                idle_since = time.monotonic()
            elif self._end_if_idle(idle_since):
                return
            else:
                time.sleep(self.pace.tick)

    def _take_catch_up(self) -> bool:
        with self._lock:
            is_due, self._catch_up_due = self._catch_up_due, False
        return is_due

    def _take_due(self) -> list[_Waiting]:
        """Take the runs that are due, at most a batch."""
        now = time.monotonic()
        batch: list[_Waiting] = []
        with self._lock:
            while self._heap and self._heap[0].due <= now and len(batch) < self.pace.batch:
                # A run that took too long once goes alone, so that it does not delay others.
                if batch and (self._heap[0].postponed or batch[-1].postponed):
                    break
                entry = heapq.heappop(self._heap)
                self._known.pop((entry.dag_id, entry.run_id), None)
                batch.append(entry)
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
        """Do the work, retrying after failures; return whether it succeeded.

        Giving up is counted, and logged once.
        """
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
            if not session.is_timeout(error) or max(entry.postponed for entry in batch) >= self.pace.max_postponed:
                raise
            log.debug("Dag runs are reconciled later, because that took too long", exc_info=True)
            due = time.monotonic() + self.pace.postpone
            for entry in batch:
                self._put(replace(entry, due=due, postponed=entry.postponed + 1))

    def _reconcile(self, batch: Sequence[_Waiting]) -> None:
        with session.reading(session.BACKGROUND) as connection:
            entries = [(entry, find_run(connection, entry.dag_id, entry.run_id)) for entry in batch]
            runs = [run for _, run in entries if run is not None]
            installed_at = first_report_at(connection)
            parts = list(in_parts(count_task_instances(connection, runs), self.pace.batch_tasks))
        history_runs = {run for entry, run in entries if entry.may_be_history}
        outcome = Outcome()
        for part in parts:
            for is_history in (True, False):
                with session.writing(session.BACKGROUND) as connection:
                    outcome += reconcile_runs(
                        connection,
                        [run for run in part if (run in history_runs) == is_history],
                        installed_at=installed_at if is_history else None,
                    )
        for entry, run in entries:
            if run is None or (run.is_finished and run not in outcome.still_running):
                continue
            if entry.looks < len(self.pace.look_again):
                due = time.monotonic() + self.pace.look_again[entry.looks]
                self._put(_Waiting(due, entry.dag_id, entry.run_id, entry.looks + 1))

    def _queue_recent(self) -> None:
        since = datetime.now(timezone.utc) - self.pace.catch_up
        with session.reading(session.BACKGROUND) as connection:
            recent_runs = latest_finished_runs(connection, ended_since=since, limit=self.pace.max_waiting // 2)
        for run in recent_runs:
            due = time.monotonic() + self.pace.settle
            self._put(_Waiting(due, run.dag_id, run.run_id, may_be_history=True))


def _explanation(error: Exception) -> str:
    """Return one line for operators: the tables' state, or else the error without its SQL."""
    try:
        with session.reading(session.BACKGROUND) as connection:
            schema = migrate.check(connection)
    except Exception:  # noqa: BLE001
        schema = migrate.Schema.READY  # The tables' state is unknown: report the first error.
    if schema is not migrate.Schema.READY:
        return schema.explanation
    return f"{str(getattr(error, 'orig', None) or error).strip().partition(chr(10))[0]}."


queue = ReconcileQueue(catch_up=task_runtime.in_scheduler())
"""The only queue of this process."""
