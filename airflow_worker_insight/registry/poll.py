"""Look at the engines and write what they say of their workers: once per interval for the whole deployment.

Whoever finds an engine's look due and moves it on in the database is the one to look. Each engine has transactions of
its own, and none is open while it is asked: one that fails or hangs keeps nobody waiting.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_worker_insight import config
from airflow_worker_insight.capture.counters import count, warn_once
from airflow_worker_insight.domain.executors import absent_sources
from airflow_worker_insight.domain.limits import REASON_LENGTH
from airflow_worker_insight.domain.names import clean
from airflow_worker_insight.registry.gauges import report_fleet
from airflow_worker_insight.registry.liveness import Timeouts, reach
from airflow_worker_insight.registry.observations import PollContext, PollResult, SourceUnavailableError
from airflow_worker_insight.registry.sources import configured_sources
from airflow_worker_insight.registry.update import end_forgotten, write_look
from airflow_worker_insight.store import leases, session
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.retention import keep_within_limit
from airflow_worker_insight.store.workers import instances as store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.registry.observations import WorkerSource

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SourceOutcome:
    """What one engine's turn came to."""

    name: str
    looked: bool
    """Whether this call looked; ``False`` where it was not due."""
    states: Mapping[str | None, int] = field(default_factory=dict)
    """How many of the workers that this look was about are in which state now."""
    registered: int = 0
    """Workers that nobody knew before."""
    changes: int = 0
    """Workers that came into another state."""
    ignored: int = 0
    """Answers that made no sense."""
    error: str | None = None
    """Why the engine could not be asked, or what it said could not be written."""


@dataclass(frozen=True, slots=True)
class PollOutcome:
    """What a refresh came to."""

    engines: tuple[SourceOutcome, ...]
    due_in: float
    """Seconds until the next look at any of the engines is due."""


def refresh(*, only_if_due: bool) -> PollOutcome:
    """Look at all engines that are configured and write what they say; the tables must be ready.

    :param only_if_due: leave alone the engines that somebody has looked at within the interval
    """
    interval = timedelta(seconds=config.refresh_interval())
    outcomes = []
    due_in = interval.total_seconds()
    for engine in configured_sources(config.executor()):
        try:
            outcome, engine_due_in = _Turn(engine, interval).take(only_if_due=only_if_due)
        except Exception as error:
            # The database's, not the engine's.
            count(f"refresh.failed.{engine.name}")
            log.debug("Refreshing the workers of %s failed", engine.name, exc_info=True)
            why = clean(str(error).splitlines()[0] if str(error) else type(error).__name__, 400)
            outcome, engine_due_in = SourceOutcome(engine.name, looked=False, error=why), interval.total_seconds()
        outcomes.append(outcome)
        due_in = min(due_in, engine_due_in)
    if any(one.looked for one in outcomes):
        _end_forgotten()
    return PollOutcome(tuple(outcomes), max(due_in, 0.0))


def _end_forgotten() -> None:
    """End what is left of engines that are not configured any more; it never raises."""
    setting = config.executor()
    # Without a setting nothing is known of any executor.
    for name in absent_sources(setting) if setting else ():
        try:
            with session.writing(session.BACKGROUND) as connection:
                end_forgotten(connection, name, timeouts=_timeouts(), now=database_now(connection))
        except Exception:
            count(f"refresh.failed.{name}")
            log.debug("Ending the workers of %s, which is not configured any more, failed", name, exc_info=True)


def _timeouts() -> Timeouts:
    return Timeouts(
        heartbeat=timedelta(seconds=config.heartbeat_timeout()), lost=timedelta(seconds=config.lost_timeout())
    )


def run_once() -> PollOutcome:
    """Do what comes round with each interval: look if it is due, and if so tell the stats and keep within limits."""
    outcome = refresh(only_if_due=True)
    if any(one.looked for one in outcome.engines):
        report_fleet()
        keep_within_limit()
    return outcome


class _Turn:
    """One engine's turn."""

    def __init__(self, engine: WorkerSource, interval: timedelta) -> None:
        self.engine = engine
        self.interval = interval
        self.timeouts = _timeouts()

    def take(self, *, only_if_due: bool) -> tuple[SourceOutcome, float]:
        """Look if it is this caller's turn; return what came of it, and in how many seconds the next look is due."""
        name = self.engine.name
        with session.writing(session.BACKGROUND) as connection:
            began, began_at = time.monotonic(), database_now(connection)
            row = leases.get_engine(connection, name, now=began_at)
            until = began_at + max(self.interval, leases.LOOK_TAKES)
            is_ours = leases.take_lease(
                connection, name, now=began_at, until=until, at_most=until + leases.LOOK_TAKES, only_if_due=only_if_due
            )
        if not is_ours:
            return SourceOutcome(name, looked=False), (row.due_at - began_at).total_seconds()

        def clock() -> datetime:
            return began_at + timedelta(seconds=time.monotonic() - began)

        due_at = began_at + self.interval
        try:
            outcome = self._look_and_write(row, clock, began_at=began_at, due_at=due_at)
        except Exception:
            # Otherwise nobody would look until the lease runs out.
            with suppress(Exception), session.writing(session.BACKGROUND) as connection:
                leases.give_back_lease(connection, name, until=until, due_at=due_at)
            raise
        return outcome, (due_at - clock()).total_seconds()

    def _look_and_write(
        self, row: leases.SourceRow, clock: Callable[[], datetime], *, began_at: datetime, due_at: datetime
    ) -> SourceOutcome:
        name = self.engine.name
        with session.reading(session.BACKGROUND) as connection:
            known = tuple(store.open_lives(connection, name))
        # Each look is due an interval after the one before began.
        before = None if row.looked_at is None else row.due_at - self.interval
        look = self._look(PollContext(clock, began_at, before, self.interval, known, _read))
        with session.writing(session.BACKGROUND) as connection:
            now = clock()
            # First, because from here on whoever else has looked at this engine waits.
            reached = reach(row, look.error, now=began_at, interval=self.interval)
            fresh = replace(row, due_at=due_at, looked_at=now, reached_since=reached.since, error=look.error)
            leases.write_engine(connection, fresh)
            written = write_look(
                connection,
                name,
                look,
                known={life.ref for life in known},
                reached=reached,
                timeouts=self.timeouts,
                now=now,
            )
        if look.on_written is not None:
            try:
                look.on_written()
            except Exception:
                # It will be told again.
                count(f"refresh.failed.{name}")
                log.debug("Telling %s that its workers are written failed", name, exc_info=True)
        return SourceOutcome(
            name,
            looked=True,
            states=written.states,
            registered=written.registered,
            changes=written.changes,
            ignored=look.ignored,
            error=look.error,
        )

    def _look(self, view: PollContext) -> PollResult:
        try:
            look = self.engine.look(view)
        except Exception as error:
            log.debug("Looking at the workers of %s failed", self.engine.name, exc_info=True)
            expected = isinstance(error, SourceUnavailableError)
            look = PollResult(error=str(error) if expected else f"{type(error).__name__}: {error}")
        if look.error:
            # Each of several brokers may have said why. It is written beside the engine and with each of its workers.
            look = replace(look, error=clean(look.error, REASON_LENGTH))
            warn_once(f"fleet.{self.engine.name}", "Airflow Worker Insight cannot see all workers: %s", look.error)
        if look.ignored:
            count(f"refresh.ignored.{self.engine.name}")
            warn_once(
                f"fleet.ignored.{self.engine.name}",
                "Airflow Worker Insight ignored %d answers of workers of %s that make no sense",
                look.ignored,
                self.engine.name,
            )
        return look


def _read() -> AbstractContextManager[Connection]:
    return session.reading(session.BACKGROUND)
