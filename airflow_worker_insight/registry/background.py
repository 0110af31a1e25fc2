"""Look at the workers from within the API server: one thread in each of its processes, of which one at a time looks."""

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
from airflow_worker_insight.capture.reconcile import take_left_behind
from airflow_worker_insight.registry.poll import run_once
from airflow_worker_insight.store import migrate, session
from airflow_worker_insight.store.migrate import Schema

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

log = logging.getLogger(__name__)

JITTER = 0.02
"""Part of an interval by which waits differ, so that the processes of a deployment do not come all at once."""

LEFT_BEHIND_SECONDS = 5.0
"""How often it looks whether reports were left behind that it can take now: that costs nothing where none were."""

STOP_SECONDS = 2.0
"""How long a stopping server waits for what the thread is at; then it is left behind."""


class Refresher:
    """Looks at the workers whenever that is due, until it is stopped."""

    def __init__(self) -> None:
        self._stopping = Event()
        self._thread: Thread | None = None
        self._is_ready = False

    def start(self) -> None:
        """Begin; calling it again changes nothing."""
        if self._thread is None and config.enabled():
            self._thread = Thread(target=self._work, name="worker-insight-refresh", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End after what is being done, or leave it behind after :data:`STOP_SECONDS`."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def _work(self) -> None:
        wait = 0.0
        while not self._wait(wait + self._jitter()):
            try:
                wait = self._once()
            except Exception as error:
                log.debug("Looking at the workers failed", exc_info=True)
                warn_once(
                    f"refresh.{type(error).__name__}",
                    "Airflow Worker Insight cannot look at the workers now: %s: %s",
                    type(error).__name__,
                    error,
                )
                wait = config.refresh_interval()

    def _wait(self, seconds: float) -> bool:
        """Wait, and take meanwhile what claims left behind; return whether to stop."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._stopping.wait(min(left, LEFT_BEHIND_SECONDS)):
                return True
            self._take_left_behind()
        return self._stopping.is_set()

    def _take_left_behind(self) -> None:
        try:
            take_left_behind()
        except Exception:
            # A claim has said why, or will; it is tried again.
            log.debug("Reports that wait could not be taken yet", exc_info=True)

    def _once(self) -> float:
        """Look if it is due; return in how many seconds to come again."""
        if not self._is_ready:
            with session.reading(session.BACKGROUND) as connection:
                schema = migrate.check(connection)
            if schema is not Schema.READY:
                # The claim may have said so already: one warning of a process is enough.
                warn_once("schema", "%s Until then nobody looks at the workers.", schema.explanation)
                return config.refresh_interval()
            self._is_ready = True
        outcome = run_once()
        for one in outcome.engines:
            if one.error and not one.looked:
                # The tables may have been taken away.
                self._is_ready = False
                warn_once(f"refresh.{one.name}", "Airflow Worker Insight could not look at %s: %s", one.name, one.error)
        return outcome.due_in

    def _jitter(self) -> float:
        return random.uniform(0.05, max(0.1, JITTER * config.refresh_interval()))  # noqa: S311


@asynccontextmanager
async def refreshing(_app: Any) -> AsyncIterator[None]:
    """Look at the workers while the API server's process runs: the lifespan of our app there.

    Airflow enters the lifespans of all apps that are mounted into its own (3.0 to 3.3), in each process that serves.
    """
    refresher = Refresher()
    try:
        refresher.start()
    except Exception:
        # It must not keep the API server from starting.
        log.exception("Airflow Worker Insight does not look at workers")
    try:
        yield
    finally:
        await asyncio.to_thread(refresher.stop)
