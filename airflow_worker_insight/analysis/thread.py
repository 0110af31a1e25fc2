"""Run the analysis in a thread: in each API server, of which one at a time has the lease."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from airflow_worker_insight import config
from airflow_worker_insight.analysis import hook
from airflow_worker_insight.analysis.job import Job, Sinks
from airflow_worker_insight.analysis.quarantine_step import quarantine
from airflow_worker_insight.analysis.rollup import Rollup
from airflow_worker_insight.capture.counters import warn_once
from airflow_worker_insight.periodic_thread import STOP_SECONDS, PeriodicThread
from airflow_worker_insight.store import findings, session, statistics
from airflow_worker_insight.store.migrate import Schema
from airflow_worker_insight.store.schema_gate import SchemaGate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

log = logging.getLogger(__name__)

BUSY_SECONDS = 0.25
"""Seconds between two steps while the analysis is behind."""

JITTER = 0.1
"""Fraction of the interval by which waits vary, so that processes do not ask for the lease all at once."""


def make_job(*, interval: float) -> Job:
    """Return a job that stores what it finds.

    :param interval: seconds between two steps
    """
    return Job(
        interval=interval,
        sinks=Sinks(
            sync_findings=findings.sync,
            on_findings=hook.notify,
            new_rollup=Rollup,
            add_statistics=statistics.add,
            merge_statistics=statistics.merge_days,
            quarantine=quarantine if config.auto_quarantine() else None,
        ),
    )


def _jitter() -> float:
    return random.uniform(0, JITTER)  # noqa: S311 - no secret


class AnalysisThread:
    """Background thread that runs the steps of the analysis until it is stopped."""

    def __init__(
        self,
        *,
        job: Job | None = None,
        schema_gate: SchemaGate | None = None,
        jitter: Callable[[], float] = _jitter,
        busy_seconds: float = BUSY_SECONDS,
        stop_timeout: float = STOP_SECONDS,
    ) -> None:
        """Prepare the thread; the arguments are what it does, and seconds."""
        self._job = job or make_job(interval=config.insight_interval())
        self._schema_gate = schema_gate or SchemaGate(recheck_seconds=0)
        self._jitter = jitter
        self._busy_seconds = busy_seconds
        self._thread = PeriodicThread(
            self.run_once,
            name="worker-insight-analysis",
            purpose="analyse the tries",
            interval=config.insight_interval(),
            stop_timeout=stop_timeout,
            at_end=self._finish,
        )

    def start(self) -> None:
        """Start the thread; a second call changes nothing, nor does one while the analysis is switched off."""
        if config.insight_enabled():
            self._thread.start()

    def stop(self) -> None:
        """Stop the thread after the current step and hand the job over; abandon it if that takes too long."""
        self._thread.stop()

    def _finish(self) -> None:
        try:
            self._job.finish()
        except Exception:
            # Another process reads again what was not stored, once the lease has ended.
            log.debug("Airflow Worker Insight could not hand the analysis over", exc_info=True)

    def run_once(self) -> float:
        """Run a step if the tables are ready; return the seconds to the next one."""
        interval = config.insight_interval() * (1 + self._jitter())
        schema = self._schema_gate.check_within(session.BACKGROUND)
        if schema is not Schema.READY:
            warn_once("schema", "%s Until then tries are not analysed.", schema.explanation)
            return interval
        try:
            result = self._job.step()
        except Exception:
            # The tables may have been removed.
            self._schema_gate.forget()
            raise
        return self._busy_seconds if result.is_behind else interval


@asynccontextmanager
async def analysis_lifespan(_app: Any, thread: AnalysisThread | None = None) -> AsyncIterator[None]:
    """Analyse tries while the API server's process runs: a part of the lifespan of the package's app."""
    thread = thread or AnalysisThread()
    try:
        thread.start()
    except Exception:
        # A failure must not keep the API server from starting.
        log.exception("Airflow Worker Insight cannot start the analysis")
    try:
        yield
    finally:
        await asyncio.to_thread(thread.stop)
