"""Poll workers in the API server: one thread per process, of which one polls at a time."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from airflow_worker_insight import config
from airflow_worker_insight.capture.counters import warn_once
from airflow_worker_insight.capture.reconcile import claim_left_behind
from airflow_worker_insight.periodic_thread import STOP_SECONDS, PeriodicThread
from airflow_worker_insight.registry.enforcement import enforce_if_due
from airflow_worker_insight.registry.poll import run_once
from airflow_worker_insight.store import session
from airflow_worker_insight.store.migrate import Schema
from airflow_worker_insight.store.schema_gate import SchemaGate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from airflow_worker_insight.registry.poll import PollOutcome, SourceOutcome

log = logging.getLogger(__name__)

JITTER = 0.02
"""Fraction of the interval by which waits vary.

It keeps the processes of a deployment from polling all at once.
"""

CLAIM_SECONDS = 5.0
"""Seconds between checks for reports that claims left behind; finding none costs nothing."""


FAILURES_BEFORE_WARNING = 2
"""Failed polls in a row before a warning: a lock on a busy SQLite may last longer than one poll waits."""


def _jitter() -> float:
    return random.uniform(0.05, max(0.1, JITTER * config.refresh_interval()))  # noqa: S311 - no secret


class PollThread:
    """Background thread that polls the workers whenever due, until it is stopped.

    In between it claims the reports that were left behind.
    """

    def __init__(
        self,
        *,
        poll: Callable[[], PollOutcome] = run_once,
        claim_reports: Callable[[], object] = claim_left_behind,
        schema_gate: SchemaGate | None = None,
        jitter: Callable[[], float] = _jitter,
        clock: Callable[[], float] = time.monotonic,
        claim_interval: float = CLAIM_SECONDS,
        stop_timeout: float = STOP_SECONDS,
    ) -> None:
        """Prepare the thread; the arguments are what it does, and seconds.

        :param clock: returns seconds that never go back
        """
        self._poll = poll
        self._claim_reports = claim_reports
        self._schema_gate = schema_gate or SchemaGate(recheck_seconds=0)
        self._jitter = jitter
        self._clock = clock
        self._claim_interval = claim_interval
        self._due_at = clock()
        self._failed_polls = 0
        self._failures: dict[str, int] = {}
        """Polls in a row that failed, by source; a call that finds it not due is no poll."""
        self._thread = PeriodicThread(
            self.run_once,
            name="worker-insight-poll",
            purpose="poll the workers",
            interval=claim_interval,
            stop_timeout=stop_timeout,
        )

    def start(self) -> None:
        """Start the thread; a second call changes nothing."""
        if config.enabled() and not self._thread.is_started:
            self._poll_at(0.0)
            self._thread.start()

    def stop(self) -> None:
        """Stop the thread after the current poll; abandon it if that takes too long."""
        self._thread.stop()

    def run_once(self) -> float:
        """Claim the reports left behind and poll if due; return the seconds to the next call."""
        try:
            self._claim_reports()
        except Exception:
            # The claim logs the reason; the next call tries again.
            log.debug("Cannot claim the reports left behind yet", exc_info=True)
        enforce_if_due()
        if self._clock() >= self._due_at:
            # If the poll fails, the next one is due an interval later.
            self._poll_at(config.refresh_interval())
            self._poll_at(self._try_poll())
        return max(0.0, min(self._claim_interval, self._due_at - self._clock()))

    def _poll_at(self, seconds: float) -> None:
        self._due_at = self._clock() + seconds + self._jitter()

    def _try_poll(self) -> float:
        """Poll if the tables are ready; return the seconds until a poll is due.

        An error is raised, so that the thread logs it, only if the previous poll failed too.
        """
        try:
            seconds = self._poll_if_ready()
        except Exception:
            self._failed_polls += 1
            if self._failed_polls >= FAILURES_BEFORE_WARNING:
                raise
            log.debug("Cannot poll the workers", exc_info=True)
            return config.refresh_interval()
        self._failed_polls = 0
        return seconds

    def _poll_if_ready(self) -> float:
        """Poll if the tables are ready; return the seconds until a poll is due."""
        schema = self._schema_gate.check_within(session.BACKGROUND)
        if schema is not Schema.READY:
            # A claim may have logged it already: one warning per process is enough.
            warn_once("schema", "%s Until then the workers are not polled.", schema.explanation)
            return config.refresh_interval()
        outcome = self._poll()
        for source_outcome in outcome.sources:
            self._note_outcome(source_outcome)
        return outcome.due_in

    def _note_outcome(self, outcome: SourceOutcome) -> None:
        """Warn once about a source that could not be polled several times in a row."""
        if outcome.polled:
            self._failures.pop(outcome.name, None)
        if outcome.polled or not outcome.error:
            return
        # The tables may have been removed.
        self._schema_gate.forget()
        self._failures[outcome.name] = failures = self._failures.get(outcome.name, 0) + 1
        if failures >= FAILURES_BEFORE_WARNING:
            warn_once(
                f"refresh.{outcome.name}",
                "Airflow Worker Insight cannot poll the workers of %s: %s",
                outcome.name,
                outcome.error,
            )


@asynccontextmanager
async def poll_lifespan(_app: Any, thread: PollThread | None = None) -> AsyncIterator[None]:
    """Poll the workers while the API server's process runs.

    This is the lifespan of the package's app there. Airflow enters the lifespans of all apps mounted into its own
    (3.0 to 3.3), in each process that serves.
    """
    thread = thread or PollThread()
    try:
        thread.start()
    except Exception:
        # A failure must not keep the API server from starting.
        log.exception("Airflow Worker Insight cannot start polling the workers")
    try:
        yield
    finally:
        await asyncio.to_thread(thread.stop)
