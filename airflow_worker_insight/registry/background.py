"""Poll workers in the API server: one thread per process, of which one polls at a time."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import asynccontextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from airflow_worker_insight import config
from airflow_worker_insight.capture.counters import warn_once
from airflow_worker_insight.capture.reconcile import claim_left_behind
from airflow_worker_insight.registry.poll import run_once
from airflow_worker_insight.store import migrate, session
from airflow_worker_insight.store.migrate import Schema

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

log = logging.getLogger(__name__)

JITTER = 0.02
"""Fraction of the interval by which waits vary.

It keeps the processes of a deployment from polling all at once.
"""

LEFT_BEHIND_SECONDS = 5.0
"""Seconds between checks for reports left behind by claims; finding none costs nothing."""

STOP_SECONDS = 2.0
"""Seconds that a stopping server waits for the thread before it abandons it."""


class Refresher:
    """Background thread that polls the workers whenever due, until it is stopped."""

    def __init__(self) -> None:
        self._stopping = Event()
        self._thread: Thread | None = None
        self._is_ready = False

    def start(self) -> None:
        """Start the thread; a second call changes nothing."""
        if self._thread is None and config.enabled():
            self._thread = Thread(target=self._work, name="worker-insight-refresh", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop the thread, or abandon it when it does not finish within :data:`STOP_SECONDS`."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def _work(self) -> None:
        seconds = 0.0
        while not self._wait(seconds + self._jitter()):
            try:
                seconds = self._poll_if_due()
            except Exception as error:
                log.debug("Looking at the workers failed", exc_info=True)
                warn_once(
                    f"refresh.{type(error).__name__}",
                    "Airflow Worker Insight cannot look at the workers now: %s: %s",
                    type(error).__name__,
                    error,
                )
                seconds = config.refresh_interval()

    def _wait(self, seconds: float) -> bool:
        """Wait, and meanwhile claim the reports left behind; return whether to stop."""
        ends_at = time.monotonic() + seconds
        while (remaining := ends_at - time.monotonic()) > 0:
            if self._stopping.wait(min(remaining, LEFT_BEHIND_SECONDS)):
                return True
            self._take_left_behind()
        return self._stopping.is_set()

    def _take_left_behind(self) -> None:
        try:
            claim_left_behind()
        except Exception:
            # The claim logs the reason; the next round tries again.
            log.debug("Reports that wait could not be taken yet", exc_info=True)

    def _poll_if_due(self) -> float:
        """Poll if due; return the seconds to the next call."""
        if not self._is_ready:
            with session.reading(session.BACKGROUND) as connection:
                schema = migrate.check(connection)
            if schema is not Schema.READY:
                # A claim may have logged it already: one warning per process is enough.
                warn_once("schema", "%s Until then nobody looks at the workers.", schema.explanation)
                return config.refresh_interval()
            self._is_ready = True
        outcome = run_once()
        for source_outcome in outcome.engines:
            if source_outcome.error and not source_outcome.looked:
                # The tables may have been removed.
                self._is_ready = False
                warn_once(
                    f"refresh.{source_outcome.name}",
                    "Airflow Worker Insight could not look at %s: %s",
                    source_outcome.name,
                    source_outcome.error,
                )
        return outcome.due_in

    def _jitter(self) -> float:
        return random.uniform(0.05, max(0.1, JITTER * config.refresh_interval()))  # noqa: S311


@asynccontextmanager
async def refreshing(_app: Any) -> AsyncIterator[None]:
    """Poll the workers while the API server's process runs.

    This is the lifespan of the package's app there. Airflow enters the lifespans of all apps mounted into its own
    (3.0 to 3.3), in each process that serves.
    """
    refresher = Refresher()
    try:
        refresher.start()
    except Exception:
        # A failure must not keep the API server from starting.
        log.exception("Airflow Worker Insight does not look at workers")
    try:
        yield
    finally:
        await asyncio.to_thread(refresher.stop)
