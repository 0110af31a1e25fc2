"""Poll the worker sources once per interval and deployment, and write the results.

The process that finds a source's poll due takes a lease on it in the database and polls. Each source has its own
transactions, and none is open during the poll: a source that fails or hangs does not delay the others.
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
from airflow_worker_insight.registry.enforcement import enforce
from airflow_worker_insight.registry.gauges import emit_gauges
from airflow_worker_insight.registry.liveness import Timeouts, update_reachability
from airflow_worker_insight.registry.observations import PollContext, PollResult, SourceUnavailableError
from airflow_worker_insight.registry.sources import configured_sources
from airflow_worker_insight.registry.update import end_forgotten, write_result
from airflow_worker_insight.store import leases, session
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.retention import apply_retention
from airflow_worker_insight.store.workers import instances as store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.registry.observations import WorkerSource

log = logging.getLogger(__name__)

INCOMPLETE_POLL = "Airflow Worker Insight could not poll all workers: %s"
"""Warning about a source that could not be polled, or only in part."""


@dataclass(frozen=True, slots=True)
class SourceOutcome:
    """The result of one source: of its poll, or of skipping it."""

    name: str
    polled: bool
    """Whether this call polled; ``False`` where it was not due."""
    states: Mapping[str | None, int] = field(default_factory=dict)
    """How many of the polled workers are in which state now."""
    registered: int = 0
    """Number of workers that were unknown before."""
    changes: int = 0
    """Number of workers whose state changed."""
    ignored: int = 0
    """Number of invalid answers."""
    error: str | None = None
    """Why the source could not be polled, or its result not be written."""


@dataclass(frozen=True, slots=True)
class PollOutcome:
    """The results of all sources."""

    sources: tuple[SourceOutcome, ...]
    due_in: float
    """Seconds until the next poll of any source is due."""


def refresh(*, only_if_due: bool) -> PollOutcome:
    """Poll all configured sources and write the results; the tables must be ready.

    :param only_if_due: skip the sources that were polled within the interval
    """
    interval = timedelta(seconds=config.refresh_interval())
    outcomes = []
    due_in = interval.total_seconds()
    for source in configured_sources(config.executor()):
        try:
            outcome, source_due_in = _SourcePoll(source, interval).run(only_if_due=only_if_due)
        except Exception as error:
            # An error of the database, not of the source.
            count(f"refresh.failed.{source.name}")
            log.debug("Polling the workers of %s failed", source.name, exc_info=True)
            reason = clean(str(error).splitlines()[0] if str(error) else type(error).__name__, 400)
            outcome, source_due_in = SourceOutcome(source.name, polled=False, error=reason), interval.total_seconds()
        outcomes.append(outcome)
        due_in = min(due_in, source_due_in)
    if any(source_outcome.polled for source_outcome in outcomes):
        _end_forgotten()
    return PollOutcome(tuple(outcomes), max(due_in, 0.0))


def _end_forgotten() -> None:
    """End the remaining workers of sources that are not configured any more; never raise."""
    setting = config.executor()
    # Without a setting no executor is known.
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
    """Poll if due; after a poll emit the gauges and apply the retention limit."""
    outcome = refresh(only_if_due=True)
    if any(source_outcome.polled for source_outcome in outcome.sources):
        emit_gauges()
        apply_retention()
    return outcome


class _SourcePoll:
    """One poll of one source."""

    def __init__(self, source: WorkerSource, interval: timedelta) -> None:
        self.source = source
        self.interval = interval
        self.timeouts = _timeouts()

    def run(self, *, only_if_due: bool) -> tuple[SourceOutcome, float]:
        """Poll if this process gets the lease; return the outcome and the seconds to the next."""
        name = self.source.name
        with session.writing(session.BACKGROUND) as connection:
            monotonic_start, started_at = time.monotonic(), database_now(connection)
            row = leases.get_or_create_source(connection, name, now=started_at)
            until = started_at + max(self.interval, leases.POLL_TIMEOUT)
            is_acquired = leases.acquire_lease(
                connection,
                name,
                now=started_at,
                until=until,
                at_most=until + leases.POLL_TIMEOUT,
                only_if_due=only_if_due,
            )
        if not is_acquired:
            return SourceOutcome(name, polled=False), (row.due_at - started_at).total_seconds()

        def clock() -> datetime:
            return started_at + timedelta(seconds=time.monotonic() - monotonic_start)

        due_at = started_at + self.interval
        try:
            outcome = self._poll_and_write(row, clock, started_at=started_at, due_at=due_at)
        except Exception:
            # Otherwise no process would poll until the lease runs out.
            with suppress(Exception), session.writing(session.BACKGROUND) as connection:
                leases.release_lease(connection, name, until=until, due_at=due_at)
            raise
        return outcome, (due_at - clock()).total_seconds()

    def _poll_and_write(
        self, row: leases.SourceRow, clock: Callable[[], datetime], *, started_at: datetime, due_at: datetime
    ) -> SourceOutcome:
        name = self.source.name
        with session.reading(session.BACKGROUND) as connection:
            instances = tuple(store.open_instances(connection, name))
        context = PollContext(
            clock,
            started_at,
            # A poll is due one interval after the previous one started.
            previous_started_at=None if row.polled_at is None else row.due_at - self.interval,
            interval=self.interval,
            instances=instances,
            database=_open_reading,
        )
        result = self._poll(context)
        with session.writing(session.BACKGROUND) as connection:
            now = clock()
            # First, because from here on other processes that have polled this source wait.
            reachability = update_reachability(row, result.error, now=started_at, interval=self.interval)
            updated = replace(row, due_at=due_at, polled_at=now, reached_since=reachability.since, error=result.error)
            leases.write_source(connection, updated)
            written = write_result(
                connection,
                name,
                result,
                known={instance.ref for instance in instances},
                reachability=reachability,
                timeouts=self.timeouts,
                now=now,
            )
        if result.on_written is not None:
            try:
                result.on_written()
            except Exception:
                # The source still keeps what it says only once, so the next poll reads it again.
                count(f"refresh.failed.{name}")
                log.debug("Removing from %s what was written failed", name, exc_info=True)
        enforce(self.source, poll_error=result.error, clock=clock)
        return SourceOutcome(
            name,
            polled=True,
            states=written.states,
            registered=written.registered,
            changes=written.changes,
            ignored=result.ignored,
            error=result.error,
        )

    def _poll(self, context: PollContext) -> PollResult:
        try:
            result = self.source.poll(context)
        except Exception as error:
            log.debug("Polling the workers of %s failed", self.source.name, exc_info=True)
            is_expected = isinstance(error, SourceUnavailableError)
            result = PollResult(error=str(error) if is_expected else f"{type(error).__name__}: {error}")
        if result.error:
            # Several brokers may each give a reason. It is written with the source and with each of its workers.
            result = replace(result, error=clean(result.error, REASON_LENGTH))
            warn_once(f"fleet.{self.source.name}", INCOMPLETE_POLL, result.error)
        if result.ignored:
            count(f"refresh.ignored.{self.source.name}")
            warn_once(
                f"fleet.ignored.{self.source.name}",
                "Airflow Worker Insight ignored %d invalid answers from workers of %s",
                result.ignored,
                self.source.name,
            )
        return result


def _open_reading() -> AbstractContextManager[Connection]:
    return session.reading(session.BACKGROUND)
