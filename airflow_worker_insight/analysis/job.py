"""The job: feed the detector from the database step by step, and store what it knows and finds.

A step reads the tries that have started since the last one, asks Airflow how the open ones ended, and tells the
detector in the order of time. Every two minutes, and whenever something was found or has ended, one transaction stores
the state with the cursor up to which the tries were read. After a crash the next process reads from that cursor and
comes to the same result, because nothing else was stored since.

Starts of the last :data:`OVERLAP` are read again, since attempts are written some time after their tries have started.
What is written later still is noted in a table of its own (:mod:`~airflow_worker_insight.store.late_attempts`).
"""

from __future__ import annotations

import copy
import logging
import time
import uuid
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from airflow_worker_insight import metrics
from airflow_worker_insight.analysis import feed, memory, outcomes
from airflow_worker_insight.capture.counters import count, warn_once
from airflow_worker_insight.domain.clock import CLOCK_SKEW
from airflow_worker_insight.insight.events import End, Ended
from airflow_worker_insight.insight.findings import as_json
from airflow_worker_insight.store import job as job_store
from airflow_worker_insight.store import late_attempts, session, tries
from airflow_worker_insight.store.batches import batches
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.job import LeaseLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.analysis.memory import Memory, OpenTry
    from airflow_worker_insight.analysis.rollup import Rollup
    from airflow_worker_insight.domain.findings import FindingChanges
    from airflow_worker_insight.domain.keys import RowKey
    from airflow_worker_insight.domain.tries import AnalyzedTry, TryOutcome
    from airflow_worker_insight.insight.detector import Detector
    from airflow_worker_insight.insight.settings import Settings

log = logging.getLogger(__name__)

HISTORY = timedelta(days=30)
"""Recorded history that a state which begins anew is computed from."""

OVERLAP = CLOCK_SKEW + timedelta(minutes=2)
"""How long after a time its starts are read again; see :data:`.store.attempts.start.LATE_AFTER`.

The cursor is of the database's clock, a start of that of another host.
"""

WINDOW = timedelta(hours=1)
"""Longest time whose starts one statement reads."""

STORE_INTERVAL = timedelta(minutes=2)

MERGE_INTERVAL = timedelta(hours=1)
"""Time between two looks for statistics that are old enough to be merged."""

ASK_SHARE = 20
"""A try is asked for again after this fraction of its run time, so that long ones cost little."""

ASKED_AT_ONCE = 1_000
"""Tries that one statement asks for."""

EVENTS_AT_ONCE = 50
"""Events between two looks at the processor time, which cost a system call each."""

MAX_GAPS = 100
"""Times without a start that one step passes over."""


class SyncFindings(Protocol):
    """Stores findings: ``store.findings.sync``."""

    def __call__(self, connection: Connection, found: Sequence[Mapping[str, Any]], *, now: datetime) -> FindingChanges:
        """Store all findings that the detector holds, within the caller's transaction."""


@dataclass(frozen=True, slots=True)
class Sinks:
    """Where the results go, apart from the detector's state."""

    sync_findings: SyncFindings | None = None
    on_findings: Callable[[FindingChanges], object] | None = None
    """Called after the transaction that stored them."""
    new_rollup: Callable[[], Rollup] | None = None
    add_statistics: Callable[[Connection, Any], None] | None = None
    """Stores what :meth:`Rollup.take` returned, within the caller's transaction."""
    merge_statistics: Callable[[Connection, datetime], int] | None = None
    """Merges old statistics in a transaction of its own; returns 0 once nothing is left to merge."""
    quarantine: Callable[[Connection, datetime], object] | None = None
    """Decides about workers by the stored findings, in a transaction of its own after each step that has read all."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a step."""

    new_tries: int = 2_000
    asked_tries: int = 5_000
    late_tries: int = 2_000
    cpu_seconds: float = 0.25
    """Processor time after which the thread sleeps as long: the API server's requests share its interpreter lock."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step did."""

    has_lease: bool
    """Whether this process runs the job; if not, it did nothing."""
    is_behind: bool = False
    """Whether more is left to do at once."""
    started: int = 0
    ended: int = 0
    findings: int = 0
    """Open findings."""
    lag: float = 0.0
    """Seconds by which the analysis is behind."""


class Job:
    """The job in one process. Call :meth:`step` again and again from one thread."""

    def __init__(  # noqa: PLR0913 - most of it only tests replace
        self,
        *,
        sinks: Sinks | None = None,
        settings: Settings | None = None,
        interval: float = 30.0,
        bounds: session.Bounds = session.BACKGROUND,
        limits: Limits | None = None,
        clock: Callable[[Connection], datetime] = database_now,
        cpu_clock: Callable[[], float] = time.thread_time,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Prepare the job; nothing is read yet.

        :param sinks: where findings and statistics go
        :param settings: of the detector
        :param interval: seconds between two steps: a try is asked for that seldom, and the lease lasts longer
        :param bounds: time limits of each transaction
        :param limits: bounds of a step
        :param clock: returns the database's time
        :param cpu_clock: returns the seconds of processor time that the thread has used
        :param sleep: lets other threads run for so many seconds
        """
        self.holder = uuid.uuid4().hex
        self.memory: Memory | None = None
        """``None`` until this process has the lease, and after it has lost it or could not store."""
        self._sinks = sinks or Sinks()
        self._settings = settings
        self._interval = timedelta(seconds=interval)
        self._lease = job_store.lease(self._interval)
        self._bounds = bounds
        self._limits = limits or Limits()
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._sleep = sleep
        self._slept_at = 0.0
        self._rollup: Rollup | None = None
        self._rates: feed.PeerRates | None = None
        self._stored_at: datetime | None = None
        self._merged_at: datetime | None = None
        self._found: tuple[int, ...] | None = None
        """What was found when the state was stored."""

    # ------------------------------------------------------------------------ steps

    def step(self) -> StepResult:
        """Take or renew the lease, and analyse what has happened since the last step, within its bounds.

        :raises Exception: of the database; the next step goes on
        """
        began = time.perf_counter()
        self._slept_at = self._cpu_clock()
        try:
            result = self._step()
        except LeaseLostError:
            self._forget()
            return StepResult(has_lease=False)
        except Exception as error:
            # What was read of this step is incomplete: the stored state is what counts.
            self._forget()
            count("insight.failed")
            self._note_error(error)
            raise
        if result.has_lease:
            metrics.timing("insight.step", seconds=time.perf_counter() - began)
            metrics.gauge("insight.lag", result.lag)
        return result

    def recompute(self) -> None:
        """Take the lease from its holder. The next step computes the state anew from the recorded history."""
        with session.writing(self._bounds) as connection:
            now = self._clock(connection)
            job_store.acquire(connection, self.holder, now=now, lasts=self._lease, by_force=True)
            job_store.reset(connection)
        self._forget()

    def finish(self) -> None:
        """Store the state and give the lease back."""
        if self.memory is not None:
            self._store()
            with session.writing(self._bounds) as connection:
                job_store.release(connection, self.holder, now=self._clock(connection))
            self._forget()

    def _step(self) -> StepResult:
        with session.writing(self._bounds) as connection:
            now = self._clock(connection)
            is_kept = job_store.renew(connection, self.holder, now=now, lasts=self._lease)
            has_lease = is_kept or job_store.acquire(connection, self.holder, now=now, lasts=self._lease)
        if not is_kept or (self.memory is not None and self.memory.read_until > now):
            # Another process may have had it in between, or the database's clock was set back.
            self._forget()
        if not has_lease:
            return StepResult(has_lease=False)
        if self.memory is None:
            self._restore()
        assert self.memory is not None
        result = self._analyse(self.memory)
        if self._must_store(self.memory, now):
            self._store()
        if self.memory.is_current:
            self._quarantine()
        with session.writing(self._bounds) as connection:
            job_store.end_step(connection, self.holder, now=self._clock(connection), lasts=self._lease)
        return result

    def _forget(self) -> None:
        self.memory = None
        self._rollup = None

    def _note_error(self, error: Exception) -> None:
        """Write why a step failed, if the database takes it."""
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0] or type(error).__name__
        try:
            with session.writing(self._bounds) as connection:
                now = self._clock(connection)
                job_store.end_step(connection, self.holder, now=now, lasts=self._lease, error=reason)
        except Exception:
            log.debug("Airflow Worker Insight could not note why the analysis failed", exc_info=True)

    # ------------------------------------------------------------------------ the state

    def _restore(self) -> None:
        with session.reading(self._bounds) as connection:
            now = self._clock(connection)
            row = job_store.read(connection)
            parts = job_store.read_parts(connection)
            stored = self._parse(parts, row.read_until if row else None, now)
            if stored is None:
                self._begin_anew(now, parts, stored_at=row.stored_at if row else None)
                return
            restored, slots = stored
            found = tries.load(connection, sorted(slots), now=now)
        for row_key, slot in sorted(slots.items()):
            if row_key in found:
                restored.add_stored(found[row_key], slot)
            else:
                # A user has deleted the try, so its end is unknown. The detector must not move its clock for it.
                excluded = Ended(feed.event_key(row_key), End.EXCLUDED, restored.detector.now / 1000)
                restored.detector.add(excluded)
                restored.dirty.add(slot)
                restored.uncounted.discard(row_key)
        self._begin(restored, now)

    def _parse(
        self, parts: Mapping[str, str], read_until: datetime | None, now: datetime
    ) -> tuple[Memory, dict[RowKey, int]] | None:
        """Return what is stored, ``None`` if it is of no use.

        That is: older than the history, later than now as the database's clock was set back, damaged, or of another
        version.
        """
        if read_until is None or not now - HISTORY <= read_until <= now:
            return None
        try:
            return memory.restore(parts, read_until, self._settings)
        except Exception as error:  # noqa: BLE001 - what is damaged may raise anything
            if parts:
                warn_once(
                    "stored analysis",
                    "Airflow Worker Insight computes its analysis anew from the recorded history: %s: %s",
                    type(error).__name__,
                    error,
                )
            return None

    def _begin_anew(self, now: datetime, parts: Mapping[str, str], *, stored_at: datetime | None) -> None:
        """Begin with the history, most of which the statistics have.

        :param parts: the stored state
        :param stored_at: when it was stored
        """
        begun = memory.new(now - HISTORY, now=now, settings=self._settings)
        try:
            begun.counted_until, begun.uncounted = memory.counted(parts)
        except Exception:  # noqa: BLE001 - what is damaged may raise anything
            begun.counted_until = stored_at
        if begun.counted_until is not None:
            begun.counted_until = min(begun.counted_until, now)
        self._begin(begun, now)

    def _begin(self, begun: Memory, now: datetime) -> None:
        self.memory = begun
        self._rollup = self._sinks.new_rollup() if self._sinks.new_rollup else None
        self._stored_at = now
        self._found = _found(begun.detector)

    def _must_store(self, known: Memory, now: datetime) -> bool:
        assert self._stored_at is not None
        return (
            now - self._stored_at >= STORE_INTERVAL
            or _found(known.detector) != self._found
            or len(known.late) >= self._limits.late_tries
        )

    def _store(self) -> None:
        """Store all that has changed, in one transaction; if that fails, the stored state is what counts."""
        known = self.memory
        assert known is not None
        changes = None
        try:
            with session.writing(self._bounds) as connection:
                now = self._clock(connection)
                job_store.advance(connection, self.holder, read_until=known.read_until, now=now, lasts=self._lease)
                if known.is_current:
                    changes = self._sync_findings(connection, known.detector, now)
                    self._add_slots(connection, known, now)
                if known.is_new:
                    job_store.delete_parts(connection)
                job_store.write_parts(connection, known.changes())
                late_attempts.forget(connection, known.late)
                if self._rollup is not None and self._sinks.add_statistics and not self._rollup.is_empty:
                    self._sinks.add_statistics(connection, self._rollup.take())
        except BaseException:
            # The database may have committed it or not, and the rollup cannot take its sums back.
            self._forget()
            raise
        known.is_new = False
        known.late.clear()
        self._stored_at = now
        self._found = _found(known.detector)
        if changes is not None and self._sinks.on_findings is not None:
            self._sinks.on_findings(changes)
        self._merge_statistics(now)

    def _merge_statistics(self, now: datetime) -> None:
        """Merge some of the old statistics, once per hour or until nothing is left."""
        if self._sinks.merge_statistics is None or (self._merged_at and now - self._merged_at < MERGE_INTERVAL):
            return
        with session.writing(self._bounds) as connection:
            if not job_store.renew(connection, self.holder, now=now, lasts=self._lease):
                raise LeaseLostError
            if not self._sinks.merge_statistics(connection, now):
                self._merged_at = now

    def _quarantine(self) -> None:
        """Decide about workers; a failure is none of the analysis, and the next step tries again."""
        if self._sinks.quarantine is None:
            return
        try:
            with session.writing(self._bounds) as connection:
                now = self._clock(connection)
                # Without the lease another process decides.
                if job_store.renew(connection, self.holder, now=now):
                    self._sinks.quarantine(connection, now)
        except Exception as error:
            count("insight.quarantine.failed")
            warn_once("quarantine", "Airflow Worker Insight could not decide about quarantines: %s", error)
            log.debug("The automatic quarantine failed", exc_info=True)

    def _sync_findings(self, connection: Connection, detector: Detector, now: datetime) -> FindingChanges | None:
        if self._sinks.sync_findings is None:
            return None
        changes = self._sinks.sync_findings(
            connection, [_described(detector, each) for each in detector.findings()], now=now
        )
        for finding in detector.open_findings():
            if finding.number in changes.dismissed:
                detector.close(finding, "dismissed")
            elif finding.number in changes.quarantined:
                detector.note_quarantine(finding)
        return changes

    def _add_slots(self, connection: Connection, known: Memory, now: datetime) -> None:
        if self._rollup is not None:
            for span in tries.slot_spans(connection, known.slots_until or now, now):
                self._rollup.add_slots(span.worker, span.concurrency, span.since, span.until)
        known.slots_until = now

    # ------------------------------------------------------------------------ reading

    def _analyse(self, known: Memory) -> StepResult:
        with session.reading(self._bounds) as connection:
            now = self._clock(connection)
            new, horizon = self._read_new(connection, known, now)
            read_until = min(horizon, now - OVERLAP)
            late, is_late_done = self._read_late(connection, known, now, read_until)
            starting = [*new, *late]
            for each in starting:
                known.add_open(each)
        is_asking_done = self._ask(known, now)
        with session.reading(self._bounds) as connection:
            ending = self._read_outcomes(connection, known, now, horizon)
        self._feed(known, starting, ending, horizon)
        if is_late_done:
            # Else a note that is left may be of a try that would be forgotten as seen.
            known.advance(read_until)
        known.fed_until = max(horizon, known.fed_until or horizon)
        lag = max(0.0, (now - horizon).total_seconds())
        known.is_current = lag == 0
        return StepResult(
            has_lease=True,
            is_behind=lag > 0 or not (is_asking_done and is_late_done),
            started=len(starting),
            ended=len(ending),
            findings=len(known.detector.open_findings()),
            lag=lag,
        )

    def _read_new(self, connection: Connection, known: Memory, now: datetime) -> tuple[list[AnalyzedTry], datetime]:
        """Return tries that have started, and the time up to which all have been read."""
        since = known.read_until
        for _ in range(MAX_GAPS):
            is_last = since + WINDOW >= now
            # Clocks of workers may be ahead.
            until = now + CLOCK_SKEW if is_last else since + WINDOW
            limit = self._limits.new_tries + len(known.seen) + 1
            found = tries.starts(connection, since, until, limit=limit)
            if found or is_last:
                break
            following = tries.next_start(connection, until)
            since = min(max(until, following or now), now)
        unseen = [each for each in found if feed.event_key(each.row_key) not in known.seen]
        if len(unseen) <= self._limits.new_tries:
            horizon = now if is_last else until
        else:
            unseen = unseen[: self._limits.new_tries]
            horizon = min(unseen[-1].started_at, now)
        for each in unseen:
            known.seen[feed.event_key(each.row_key)] = each.started_at
        wanted = [each.row_key for each in unseen if each.row_key not in known.open and not _is_read(each, known)]
        return [*tries.load(connection, wanted, now=now).values()], horizon

    def _read_late(
        self, connection: Connection, known: Memory, now: datetime, read_until: datetime
    ) -> tuple[list[AnalyzedTry], bool]:
        """Return the tries that were recorded late, but for those that are read by their start.

        It comes after these: a note is committed together with its try.

        :param read_until: where the next step reads on
        :return: the tries, and whether these are all
        """
        noted = late_attempts.read(connection, limit=self._limits.late_tries)
        keys = [key for key in noted if key not in known.late]
        known.late.update(keys)
        noted_tries = tries.load(connection, keys, now=now)
        if known.counted_until is not None:
            # No state before knew them.
            known.uncounted.update(noted_tries)
        found = [
            each
            for row_key, each in noted_tries.items()
            if row_key not in known.open and feed.event_key(row_key) not in known.seen and each.started_at < read_until
        ]
        known.seen |= {feed.event_key(each.row_key): each.started_at for each in found}
        return found, len(noted) < self._limits.late_tries

    def _ask(self, known: Memory, now: datetime) -> bool:
        """Ask Airflow which open tries have ended, those first that were not asked for longest.

        :return: whether all that were due were asked for
        """
        due = sorted(
            (due_at, row_key)
            for row_key, each in known.open.items()
            if each.end is None and (due_at := self._due_at(each)) <= now
        )
        asked = [known.open[row_key] for _, row_key in due[: self._limits.asked_tries]]
        for batch in batches(asked, ASKED_AT_ONCE):
            with session.reading(self._bounds) as connection:
                in_airflow = tries.in_airflow(connection, [each.analyzed for each in batch])
            for each in batch:
                each.asked_at = now
                answer = in_airflow[each.analyzed.row_key]
                if outcomes.has_ended(answer):
                    each.end = answer
            self._breathe()
        return len(due) <= len(asked)

    def _due_at(self, each: OpenTry) -> datetime:
        if each.asked_at is None:
            return each.analyzed.started_at
        # Not before the next step: else a step that asks for some of many leaves no pause.
        return each.asked_at + max(self._interval, (each.asked_at - each.analyzed.started_at) / ASK_SHARE)

    def _read_outcomes(
        self, connection: Connection, known: Memory, now: datetime, horizon: datetime
    ) -> list[AnalyzedTry]:
        """Return the tries that have ended by the horizon and whose outcome is known, with it."""
        ended = [each for each in known.open.values() if each.end is not None and _ended_at(each, now) <= horizon]
        failed = [each for each in ended if each.end is not None and outcomes.may_be_lost(each.end)]
        sights = tries.sights(connection, {each.analyzed.worker.ref for each in failed})
        of_lost = [
            each.analyzed.row_key
            for each in failed
            if (sight := sights.get(each.analyzed.worker.ref)) is not None and sight.lost_after is not None
        ]
        moved = tries.moved(connection, of_lost)
        known_ends = []
        for each in ended:
            end, analyzed = each.end, each.analyzed
            assert end is not None
            outcome: TryOutcome | None = outcomes.outcome_of(end)
            if outcomes.may_be_lost(end):
                outcome = outcomes.outcome_of_failure(
                    end.ended_at or now,
                    sights.get(analyzed.worker.ref),
                    now=now,
                    has_moved=analyzed.row_key in moved,
                )
            if outcome is not None:
                known_ends.append(
                    replace(
                        analyzed,
                        outcome=outcome,
                        ended_at=_ended_at(each, now),
                        queue=end.queue,
                        queued_at=end.queued_at,
                    )
                )
        return known_ends

    # ------------------------------------------------------------------------ feeding

    def _feed(
        self, known: Memory, starting: Sequence[AnalyzedTry], ending: Sequence[AnalyzedTry], horizon: datetime
    ) -> None:
        """Tell the detector what has happened, in the order of time, and let it pass up to the horizon."""
        happened: list[tuple[datetime, bool, int, AnalyzedTry]] = []
        happened += [(each.started_at, False, feed.event_key(each.row_key), each) for each in starting]
        happened += [
            (each.ended_at, True, feed.event_key(each.row_key), each) for each in ending if each.ended_at is not None
        ]
        happened.sort(key=lambda each: each[:3])
        self._rates = feed.PeerRates(known.detector)
        for batch in batches(happened, EVENTS_AT_ONCE):
            for at, is_end, _, each in batch:
                known.detector.advance_to(at.timestamp())
                if is_end:
                    self._end(known, each)
                elif each.key.try_number == 1:
                    known.detector.add(feed.started(each))
                known.detector.advance_to(at.timestamp())
            self._breathe()
        known.detector.advance_to(horizon.timestamp())

    def _end(self, known: Memory, each: AnalyzedTry) -> None:
        assert each.ended_at is not None
        assert self._rates is not None
        known.remove_open(each.row_key)
        if not known.is_counted(each) and self._rollup is not None:
            expected = self._rates.rate(each.worker.name, (each.key.dag_id, each.key.task_id))
            self._rollup.add(each, expected_failure=expected)
        if each.key.try_number == 1:
            known.detector.add(feed.ended(each))

    def _breathe(self) -> None:
        """Let other threads run after some processor time. Call it outside a transaction."""
        used = self._cpu_clock() - self._slept_at
        if used >= self._limits.cpu_seconds:
            self._sleep(used)
            self._slept_at = self._cpu_clock()


def _is_read(each: tries.TryStart, known: Memory) -> bool:
    """Return whether a try was read before under the start of its first process.

    When its Dag run ends it gets the start that Airflow has: of a rescheduled try that of its last process.
    """
    return each.first_started_at < known.read_until and each.started_at >= known.live_since


def _ended_at(each: OpenTry, now: datetime) -> datetime:
    """Return the end of a try, not before its start and not after now, whatever the clocks of its hosts say."""
    assert each.end is not None
    return max(each.analyzed.started_at, min(each.end.ended_at or now, now))


def _found(detector: Detector) -> tuple[int, ...]:
    """Return what differs once something was found or has ended."""
    return detector.findings_made, *(each.number for each in detector.open_findings())


def _described(detector: Detector, finding: Any) -> Mapping[str, Any]:
    """Return a finding with its numbers of now.

    The detector's own finding stays as it is: what belongs to it must not depend on when the state is stored.
    """
    if not finding.is_open:
        return as_json(finding)
    shown = copy.deepcopy(finding)
    detector.refresh(shown)
    return as_json(shown)
