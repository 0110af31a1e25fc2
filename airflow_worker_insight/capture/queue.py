"""Reconcile Dag runs beside the scheduler's loop: a bounded queue and one thread that lives only while it has work."""

from __future__ import annotations

import logging
import time
from collections import deque
from threading import Lock, Thread

from airflow_worker_insight import compat
from airflow_worker_insight.capture.counters import count, warn_once

log = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Dag runs that may wait. Beyond it they are counted and left to ``airflow-worker-insight reconcile``."""

SETTLE_SECONDS = 3.0
"""Airflow calls its listeners before it commits the run's end: wait for the commit before reading."""

BATCH = 20
"""Dag runs reconciled in one transaction."""

LINGER_SECONDS = 10.0
"""How long the thread waits for more work before it ends."""

ATTEMPTS = 5
"""How often a batch is tried (a locked or restarting database) before its runs are left to the command."""


class ReconcileQueue:
    """Collects ended Dag runs, each once, and reconciles them in the background."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[float, str, str]] = deque()
        self._known: set[tuple[str, str]] = set()
        self._lock = Lock()
        self._thread: Thread | None = None

    def put(self, dag_id: str, run_id: str) -> None:
        """Have a Dag run reconciled soon. Never blocks and never raises."""
        with self._lock:
            if (dag_id, run_id) in self._known:
                return
            if len(self._waiting) >= MAX_WAITING:
                count("runs_not_reconciled")
                warn_once("queue", "Airflow Worker Insight leaves Dag runs to its reconcile command: too many wait")
                return
            self._known.add((dag_id, run_id))
            self._waiting.append((time.monotonic() + SETTLE_SECONDS, dag_id, run_id))
            if self._thread is None:
                self._thread = Thread(target=self._work, name="worker-insight-reconcile", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        idle_since = time.monotonic()
        while True:
            batch = self._due()
            if batch:
                self._reconcile(batch)
                idle_since = time.monotonic()
            elif self._end_if_idle(idle_since):
                return
            else:
                time.sleep(0.5)

    def _due(self) -> list[tuple[str, str]]:
        """Take the runs whose time has come, at most a batch."""
        now = time.monotonic()
        batch: list[tuple[str, str]] = []
        with self._lock:
            while self._waiting and self._waiting[0][0] <= now and len(batch) < BATCH:
                _, dag_id, run_id = self._waiting.popleft()
                self._known.discard((dag_id, run_id))
                batch.append((dag_id, run_id))
        return batch

    def _end_if_idle(self, idle_since: float) -> bool:
        with self._lock:
            if self._waiting or time.monotonic() - idle_since < LINGER_SECONDS:
                return False
            self._thread = None
            return True

    def _reconcile(self, batch: list[tuple[str, str]]) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _reconcile_named(batch)
            except Exception as error:  # noqa: BLE001
                if attempt == ATTEMPTS:
                    count("runs_not_reconciled")
                    warn_once(
                        "queue.failed",
                        "Airflow Worker Insight could not reconcile %d Dag runs (%s); run "
                        "`airflow-worker-insight reconcile` when the cause is mended",
                        len(batch),
                        error,
                    )
                time.sleep(min(2.0**attempt, 15.0))
            else:
                return


def _reconcile_named(batch: list[tuple[str, str]]) -> None:
    from airflow_worker_insight.capture.reconcile import reconcile_runs
    from airflow_worker_insight.store.airflow_tries import find_run

    with compat.short_transaction() as connection:
        runs = [find_run(connection, dag_id, run_id) for dag_id, run_id in batch]
        reconcile_runs(connection, [run for run in runs if run is not None])


queue = ReconcileQueue()
"""The one queue of this process."""
