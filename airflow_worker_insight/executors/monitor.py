"""Worker monitor: a thread beside the scheduler's loop, which never waits for it.

The thread runs periodically and publishes what it knows as one snapshot. If the snapshot is missing, unusable or old,
the executor enters fallback mode.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.names import clean
from airflow_worker_insight.executors.placement.service import Snapshot
from airflow_worker_insight.periodic_thread import PeriodicThread
from airflow_worker_insight.store import session
from airflow_worker_insight.store.migrate import Schema
from airflow_worker_insight.store.schema_gate import SchemaGate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow_worker_insight.executors.placement.policy import Candidate

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    """Intervals in seconds, and limits."""

    run_interval: float = 2.0
    """Time between two runs."""
    unavailable_after_failures: int = 3
    """How many runs in a row must fail before no task is placed any more."""
    stop_timeout: float = 2.0
    """How long to wait for the current run at the end."""


MONITOR_DEFAULTS = MonitorSettings()


class WorkerMonitor(ABC):
    """Monitor of the workers of one executor."""

    thread_name = "worker-insight"

    def __init__(self, *, monitor_settings: MonitorSettings = MONITOR_DEFAULTS) -> None:
        self._monitor_settings = monitor_settings
        self._snapshot: Snapshot | None = None
        self._thread = PeriodicThread(
            self._run,
            name=self.thread_name,
            purpose="poll the workers",
            interval=monitor_settings.run_interval,
            stop_timeout=monitor_settings.stop_timeout,
        )
        self._failures = 0
        self._schema_gate = SchemaGate(recheck_seconds=0)

    def start(self) -> None:
        """Start the thread; calling it again changes nothing."""
        if not self._thread.is_started:
            self._try(self.prepare)
            self._thread.start()

    def stop(self) -> None:
        """Stop after the current run; abandon the thread if that takes too long."""
        self._thread.stop()

    def snapshot(self) -> Snapshot | None:
        """Return the latest snapshot of the workers; ``None`` before the first."""
        return self._snapshot

    def prepare(self) -> None:  # noqa: B027 (not every monitor needs it)
        """Prepare for the scheduler's loop, before it begins."""

    @abstractmethod
    def run_once(self) -> None:
        """Do everything that is due, once."""

    def publish(
        self,
        candidates: tuple[Candidate, ...],
        unavailable_reason: str | None,
        *,
        unplaced: Mapping[int, int] | None = None,
        answered_at: float | None = None,
    ) -> Snapshot:
        """Publish a snapshot of the workers, and return it.

        :param candidates: the workers
        :param unavailable_reason: why no task can be placed by the snapshot
        :param unplaced: how many tries run on each worker that no executor of this package placed there
        :param answered_at: when the broker was last reached, in seconds of the monotonic clock
        """
        self._snapshot = snapshot = Snapshot(
            candidates,
            taken_at=time.monotonic(),
            unavailable_reason=None if unavailable_reason is None else clean(unavailable_reason, 400),
            answered_at=answered_at,
            unplaced=unplaced or {},
        )
        return snapshot

    def tables_unavailable_reason(self) -> str | None:
        """Return why this package's tables cannot be used, or ``None`` if they can.

        Once they can, they are checked again only after a failure.
        """
        schema = self._schema_gate.check_within(session.BACKGROUND)
        return None if schema is Schema.READY else schema.explanation

    def _run(self) -> None:
        self._try(self.run_once)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
            self._failures = 0
        except Exception as error:
            log.debug("Monitoring the workers failed", exc_info=True)
            # The tables may have been dropped.
            self._schema_gate.forget()
            self._failures += 1
            # One failure does not invalidate a recent snapshot.
            if self._snapshot is None or self._failures >= self._monitor_settings.unavailable_after_failures:
                self.publish((), format_error(error))


def format_error(error: Exception) -> str:
    """Format an error as one line, for logs and for reasons on pages.

    A database error is given in the database driver's words.
    """
    return f"{type(error).__name__}: {str(getattr(error, 'orig', None) or error).strip()}".splitlines()[0]
