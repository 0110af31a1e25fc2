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

from airflow_worker_insight.capture.counters import Counters, process_counters

# Imported here, not in the thread: a process forked during the thread's import would inherit its lock for ever.
from airflow_worker_insight.capture.reconcile import Outcome, reconcile_runs, split_into_batches
from airflow_worker_insight.compat import task_runtime
from airflow_worker_insight.store import session
from airflow_worker_insight.store.airflow_history import count_task_instances, find_run, latest_finished_runs
from airflow_worker_insight.store.attempts.close import first_report_at
from airflow_worker_insight.store.migrate import Schema
from airflow_worker_insight.store.schema_gate import read_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """Settings of the queue; times are in seconds."""

    max_queued: int = 10_000
    """Maximum number of queued Dag runs.

    Those beyond it are counted and left to ``airflow-worker-insight reconcile``.
    """

    commit_delay: float = 3.0
    """Delay before reading a run: Airflow calls its listeners before it commits the run's end."""

    batch_size: int = 20
    """Number of Dag runs reconciled at once."""

    max_batch_tasks: int = 2_000
    """Maximum number of task instances per transaction; a single Dag run may have more."""

    recheck_delays: tuple[float, ...] = (30.0, 120.0, 600.0, 3600.0)
    """Delays before each recheck of a run with an uncommitted end or with running tasks."""

    retry_delays: tuple[float, ...] = (2.0, 4.0, 8.0, 15.0)
    """Delays between attempts at a batch that failed, as with a locked or restarting database.

    After the last one the batch is left to the command.
    """

    postpone_delay: float = 30.0
    """Delay before the next attempt at a run that failed because of locks or a slow database."""

    max_postponements: int = 120
    """How often a run is postponed before it is left to the command."""

    idle_timeout: float = 10.0
    """How long the thread waits for more work before it ends."""

    poll_interval: float = 0.5
    """How long the thread sleeps while no run is due."""

    catch_up_window: timedelta = timedelta(hours=1)
    """With its first run a process also reconciles the runs that ended within this time.

    The process before may have died with queued runs. This does not happen when the process starts, because a scheduler
    should have no second thread when LocalExecutor forks its workers.
    """


@dataclass(frozen=True, slots=True, order=True)
class _QueuedRun:
    due: float
    dag_id: str = field(compare=False)
    run_id: str = field(compare=False)
    rechecks: int = field(compare=False, default=0)
    postponed: int = field(compare=False, default=0)
    # Queued by catching up, so it may have ended before this package was installed.
    may_be_history: bool = field(compare=False, default=False)


class ReconcileQueue:
    """Queue of ended Dag runs, each queued once, that a background thread reconciles."""

    def __init__(
        self,
        settings: QueueSettings | None = None,
        *,
        catch_up: bool = True,
        counters: Counters = process_counters,
    ) -> None:
        self.settings = settings or QueueSettings()
        self.counters = counters
        self._heap: list[_QueuedRun] = []
        self._known: dict[tuple[str, str], float] = {}
        self._catch_up_due = catch_up
        self._lock = Lock()
        self._thread: Thread | None = None

    def put(self, dag_id: str, run_id: str) -> None:
        """Queue a Dag run to be reconciled soon; never block."""
        self._put(_QueuedRun(time.monotonic() + self.settings.commit_delay, dag_id, run_id))

    def _put(self, entry: _QueuedRun) -> None:
        run_key = (entry.dag_id, entry.run_id)
        with self._lock:
            # A run queued for a later check may have ended again: then it is reconciled twice, which is harmless.
            if self._known.get(run_key, math.inf) <= entry.due:
                return
            is_full = len(self._heap) >= self.settings.max_queued
            if not is_full:
                self._known[run_key] = entry.due
                heapq.heappush(self._heap, entry)
                self._start_thread()
        if is_full:
            self.counters.count("runs.not_reconciled")
            self.counters.warn_once(
                "queue", "Airflow Worker Insight leaves Dag runs to its reconcile command: too many are queued"
            )

    def _start_thread(self) -> None:
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
            if self._pop_catch_up():
                self._with_retries(self._queue_recent)
            batch = self._pop_due()
            if batch:
                # A run that cannot be reconciled must not fail the others of its batch.
                if not self._with_retries(partial(self._reconcile_or_postpone, batch), give_up=len(batch) == 1):
                    for entry in batch:
                        self._with_retries(partial(self._reconcile_or_postpone, [entry]), delays=())
                idle_since = time.monotonic()
            elif self._end_if_idle(idle_since):
                return
            else:
                time.sleep(self.settings.poll_interval)

    def _pop_catch_up(self) -> bool:
        with self._lock:
            is_due, self._catch_up_due = self._catch_up_due, False
        return is_due

    def _pop_due(self) -> list[_QueuedRun]:
        """Take the runs that are due, at most a batch."""
        now = time.monotonic()
        batch: list[_QueuedRun] = []
        with self._lock:
            while self._heap and self._heap[0].due <= now and len(batch) < self.settings.batch_size:
                # A run that took too long once goes alone, so that it does not delay others.
                if batch and (self._heap[0].postponed or batch[-1].postponed):
                    break
                entry = heapq.heappop(self._heap)
                self._known.pop((entry.dag_id, entry.run_id), None)
                batch.append(entry)
        return batch

    def _end_if_idle(self, idle_since: float) -> bool:
        with self._lock:
            if self._heap or self._catch_up_due or time.monotonic() - idle_since < self.settings.idle_timeout:
                return False
            self._thread = None
            return True

    def _with_retries(
        self, work: Callable[[], None], *, delays: Sequence[float] | None = None, give_up: bool = True
    ) -> bool:
        """Do the work, retrying after failures; return whether it succeeded.

        Giving up is counted, and logged once.
        """
        for delay in (*(self.settings.retry_delays if delays is None else delays), None):
            try:
                work()
            except Exception as error:  # noqa: BLE001 - the thread goes on with the next runs
                if delay is not None:
                    time.sleep(delay)
                elif give_up:
                    self.counters.count("runs.not_reconciled")
                    self.counters.warn_once(
                        "queue.failed",
                        "Airflow Worker Insight could not reconcile Dag runs: %s When the cause is fixed, run "
                        "`airflow-worker-insight reconcile`.",
                        _explanation(error),
                    )
            else:
                return True
        return False

    def _reconcile_or_postpone(self, batch: Sequence[_QueuedRun]) -> None:
        try:
            self._reconcile(batch)
        except Exception as error:
            if (
                not session.is_timeout(error)
                or max(entry.postponed for entry in batch) >= self.settings.max_postponements
            ):
                raise
            log.debug("Reconciling Dag runs timed out; trying again later", exc_info=True)
            due = time.monotonic() + self.settings.postpone_delay
            for entry in batch:
                self._put(replace(entry, due=due, postponed=entry.postponed + 1))

    def _reconcile(self, batch: Sequence[_QueuedRun]) -> None:
        with session.reading(session.BACKGROUND) as connection:
            entries = [(entry, find_run(connection, entry.dag_id, entry.run_id)) for entry in batch]
            runs = [run for _, run in entries if run is not None]
            installed_at = first_report_at(connection)
            batches = list(split_into_batches(count_task_instances(connection, runs), self.settings.max_batch_tasks))
        history_runs = {run for entry, run in entries if entry.may_be_history}
        outcome = Outcome()
        for transaction_runs in batches:
            for is_history in (True, False):
                with session.writing(session.BACKGROUND) as connection:
                    outcome += reconcile_runs(
                        connection,
                        [run for run in transaction_runs if (run in history_runs) == is_history],
                        installed_at=installed_at if is_history else None,
                        counters=self.counters,
                    )
        for entry, run in entries:
            if run is None or (run.is_finished and run not in outcome.unfinished_runs):
                continue
            if entry.rechecks < len(self.settings.recheck_delays):
                due = time.monotonic() + self.settings.recheck_delays[entry.rechecks]
                self._put(_QueuedRun(due, entry.dag_id, entry.run_id, entry.rechecks + 1))

    def _queue_recent(self) -> None:
        since = datetime.now(timezone.utc) - self.settings.catch_up_window
        with session.reading(session.BACKGROUND) as connection:
            recent_runs = latest_finished_runs(connection, ended_since=since, limit=self.settings.max_queued // 2)
        for run in recent_runs:
            due = time.monotonic() + self.settings.commit_delay
            self._put(_QueuedRun(due, run.dag_id, run.run_id, may_be_history=True))


def _explanation(error: Exception) -> str:
    """Return one line for operators: the tables' state, or else the error without its SQL."""
    try:
        schema = read_schema(session.BACKGROUND)
    except Exception:  # noqa: BLE001 - the tables' state is unknown: report the first error
        schema = Schema.READY
    if schema is not Schema.READY:
        return schema.explanation
    return f"{str(getattr(error, 'orig', None) or error).strip().partition(chr(10))[0]}."


queue = ReconcileQueue(catch_up=task_runtime.in_scheduler())
"""The only queue of this process."""
