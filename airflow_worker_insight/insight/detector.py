"""The detector: takes starts and ends of tries and returns findings.

It is a state machine without a clock of its own: :meth:`Detector.add` takes what is known, :meth:`Detector.advance_to`
lets time pass and decides by what is known then. :mod:`.state` stores and restores it between any two calls.
"""

from __future__ import annotations

import heapq
from itertools import groupby
from typing import TYPE_CHECKING, TypeAlias

from airflow_worker_insight.insight import groups
from airflow_worker_insight.insight.blocks import (
    BLOCK,
    DAY,
    EXCLUDED,
    FAILED,
    LOST,
    SUCCEEDED,
    Stratum,
    Try,
    judge,
)
from airflow_worker_insight.insight.events import End, Ended, Started
from airflow_worker_insight.insight.findings import (
    CLOSED,
    MOST_TASKS,
    OPEN,
    RECOVERING,
    Finding,
    rates_in_scope,
    scope_of,
    shares_of,
)
from airflow_worker_insight.insight.lanes import TASK, WORKER, Lane, contribution, lanes_of, make_lanes, task_unit
from airflow_worker_insight.insight.population import LEAST_TRIES, Population
from airflow_worker_insight.insight.recovery import Recovery
from airflow_worker_insight.insight.separation import Timeline, depending_on, is_separate, is_settled
from airflow_worker_insight.insight.settings import Settings
from airflow_worker_insight.insight.slow import judge_slow, usual_duration
from airflow_worker_insight.insight.units import (
    FLOORS,
    LOST_OUTCOME,
    NAMES,
    PARTS,
    SLOW,
    WINDOW,
    Note,
    Sums,
    best_window,
    failing_status,
    fold,
    parts_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from airflow_worker_insight.insight.blocks import Judged, WorkerRef

_STATUS = {End.SUCCESS: SUCCEEDED, End.FAILED: FAILED, End.LOST: LOST, End.EXCLUDED: EXCLUDED}

SHORTLY, LATER = 60_000, 3_600_000
"""Milliseconds until a unit with enough evidence is judged again: usually, and where its parts are named already."""

UNSETTLED = 300_000
"""Milliseconds until a block is looked at again in which a try that runs may still change what its failures say."""

Touched: TypeAlias = set[tuple[str, ...]]


class Detector:
    """Finds workers, groups of workers and tasks that fail more than their peers.

    Only :meth:`advance_to` moves the clock and decides: it closes blocks, ends days, makes and ends findings. What is
    added between two of its calls is a set: the order in which ends come there changes nothing. A start has to come
    before its end; of mapped instances that are one event the one that comes first counts.

    Nor does evidence depend on whether an end comes before or after such a call, because no block closes while a try
    that runs can change what it says. By design it does so only

    - if a midnight passes or a finding ends in between: evidence starts anew with what is known then;
    - if the block of the try was closed after :attr:`.Settings.longest_try`: its end does not count;
    - if :attr:`.Settings.timeline` later tries have started: a failure counts as separate, and separates no others;
    - for slow tries, which say something when their block closes.

    A late start takes its place in the order of starts for as long as its block is open, which is at least
    :attr:`.Settings.grace` after that start; later it is the first one of the oldest open block.

    :param settings: what is judged, and how strictly
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.lanes = make_lanes(self.settings.groups)
        self.touched: Touched = set()
        """What has changed since :func:`.state.changes` was asked last."""
        self.population = Population(self.settings.groups, self.touched)
        self.strata: dict[tuple[str, ...], Stratum] = {}
        """By kind and name."""
        self.tries: dict[int, Try] = {}
        """Those of open blocks of tasks, by key."""
        self.running: dict[int, Try] = {}
        """Those of them that have not ended."""
        self.timeline = Timeline(self.settings.timeline)
        self.all_findings: list[Finding] = []
        self.now = 0
        """The clock, in milliseconds."""
        self.today: int | None = None
        self.last_lost_day: int | None = None
        """Day of the latest lost try: until one is lost nothing is tested for that."""
        self.tested_tasks = 0
        """Tasks that can be found to kill workers."""
        self.findings_made = 0
        self.strata_made = 0
        self._due: list[tuple[int, tuple[str, ...]]] = []
        self.is_decided = True
        """Whether what has been added was there at the last decision."""
        self._strong: set[tuple[int, str]] = set()
        """Lane and value of the units with enough evidence, and of some that had it this day."""
        self._lanes_by_kind = {
            kind: [lane for lane in self.lanes if lane.stratum_kind == kind] for kind in (TASK, WORKER)
        }
        self._separated = [lane for lane in self.lanes if lane.outcome != SLOW]
        self._grace = round(self.settings.grace * 1000)
        self.judge_groups()
        self.set_needed()

    # ----------------------------------------------------------------------- events

    def add(self, event: Started | Ended) -> bool:
        """Add a start or an end. The clock stays where it is, whatever the time of the event.

        What does not count is ignored: retries, mapped instances after the first on the same worker in one run, a
        second start under a key whose try is held still (until its block closes), a second end, and ends of tries that
        do not count, are not known, or whose block has closed. A try that ends before it starts has an outcome but no
        duration. One that starts in the future is the last of its task until then, and keeps its worker and task from
        being forgotten: cut such times to the present.

        :return: whether it counts
        """
        counts = self._add_start(event) if isinstance(event, Started) else self._add_end(event)
        self.is_decided = self.is_decided and not counts
        return counts

    def step(self, events: Iterable[Started | Ended], until: float) -> None:
        """Add events in the order of time, in whatever order they are given, and let time pass with them.

        If no event is late, the result does not depend on how a history is split into steps.

        :param events: starts and ends; those after ``until`` are added then, as if they were of that time
        :param until: Unix time in seconds to which the clock goes at last
        """
        events = list(events)
        starts = {event.key: event.started_at for event in events if isinstance(event, Started)}

        def place(event: Started | Ended) -> tuple[float, bool, int]:
            if isinstance(event, Started):
                return min(event.started_at, until), False, event.key
            # By the clocks of two hosts a try may end before it starts.
            ended_at = max(event.ended_at, starts.get(event.key, event.ended_at))
            return min(ended_at, until), True, event.key

        for time, at_once in groupby(sorted(events, key=place), lambda event: place(event)[0]):
            self.advance_to(time)
            for event in at_once:
                self.add(event)
            self.advance_to(time)
        self.advance_to(until)

    def is_running(self, key: int) -> bool:
        """Return whether a try is held as running: its end would count."""
        return key in self.running

    def running_keys(self) -> list[int]:
        """Return the keys of the tries that are held as running, in no order: only their ends count."""
        return list(self.running)

    def advance_to(self, time: float) -> None:
        """Let time pass, and decide by what has been added.

        Blocks close, a share of the evidence starts anew at the end of each day (UTC), findings are made, recover and
        end. A call after which nothing is added before the next one makes no difference. The clock never goes back: an
        earlier time is the present.

        :param time: Unix time in seconds
        """
        now = max(self.now, round(time * 1000))
        if self.today is None:
            self.today = now // DAY
        self.timeline.forget_surplus()
        while True:
            midnight = (self.today + 1) * DAY
            if self._due and self._due[0][0] <= min(now, midnight):
                due, key = heapq.heappop(self._due)
                self.now = max(self.now, due)
                self._close_if_due(key, due)
            elif midnight <= now:
                self.now = max(self.now, midnight)
                self._decide()
                self._end_day()
                self._decide()
            else:
                break
        self.now = now
        if not self.is_decided:
            self._decide()

    def findings(self) -> list[Finding]:
        """Return the open findings and those that ended in the last 30 days, in the order in which they were found."""
        return list(self.all_findings)

    def open_findings(self) -> list[Finding]:
        """Return the findings that have not ended."""
        return [finding for finding in self.all_findings if finding.is_open]

    def _add_start(self, event: Started) -> bool:
        if event.try_number != 1 or event.key in self.tries:
            return False
        started = round(event.started_at * 1000)
        day = started // DAY
        worker, is_new = self.population.worker(event.worker, day)
        stratum = self._stratum((TASK, *event.task), day)
        if is_new:
            self._note_restart(worker)
        if event.is_mapped and stratum.ran_before(event.run, worker):
            return False
        of_worker = self._stratum((WORKER, _worker_stratum(worker)), day)
        values = (*worker.values, task_unit(event.task))
        counted = Try(event.key, started, worker, event.task, values, strata=(stratum, of_worker))
        self.tries[event.key] = self.running[event.key] = counted
        self.timeline.insert(counted)
        dirty = {
            (each, number): None
            for each in counted.strata
            for number in range(self._insert(each, counted), len(each.given))
        }
        self.tested_tasks += stratum.total == LEAST_TRIES
        if self.population.add_try(worker, day) or stratum.total == LEAST_TRIES:
            self.set_needed()
        if counted.after is not None:
            self._recheck(counted, dirty)
        self._settle(dirty)
        return True

    def _insert(self, stratum: Stratum, counted: Try) -> int:
        stratum.total += 1
        number = stratum.insert(counted)
        if number == 0 and len(stratum.tries) >= BLOCK:
            self._schedule(stratum)
        return number

    def _add_end(self, event: Ended) -> bool:
        ended = self.running.pop(event.key, None)
        if ended is None:
            return False
        ended.status = _STATUS[event.end]
        duration = round(event.ended_at * 1000) - ended.started
        # The clocks of two hosts may differ: such a try has an outcome but no duration.
        ended.duration = duration if duration >= 0 else None
        dirty: dict[tuple[Stratum, int], None] = {}
        if ended.status != SUCCEEDED:
            if ended.status == LOST:
                self._note_lost(ended)
            self._recheck(ended, dirty)
        for stratum in ended.strata:
            self.touched.add(("stratum", stratum.kind, *stratum.name))
            number = stratum.number_of(ended)
            if number is not None:
                if ended.status != SUCCEEDED:
                    dirty[stratum, number] = None
                if number == 0 and len(stratum.tries) >= BLOCK:
                    self._schedule(stratum)
        self._settle(dirty)
        self._follow(ended)
        return True

    def _note_lost(self, lost: Try) -> None:
        is_first = self.last_lost_day is None
        self.last_lost_day = max(self.last_lost_day or 0, lost.day)
        if is_first:
            self.set_needed()

    def _stratum(self, key: tuple[str, ...], day: int) -> Stratum:
        stratum = self.strata.get(key)
        if stratum is None:
            self.strata_made += 1
            stratum = self.strata[key] = Stratum(self.strata_made, key[0], key[1:])
        stratum.last_day = max(stratum.last_day, day)
        self.touched.add(("stratum", *key))
        return stratum

    # ----------------------------------------------------------------------- evidence

    def _recheck(self, changed: Try, dirty: dict[tuple[Stratum, int], None]) -> None:
        """Separate failures anew after a try has been added among others or has ended badly."""
        for lane in self._separated:
            failing = failing_status(lane.outcome)
            if failing == LOST and (changed.status == FAILED or self.last_lost_day is None):
                continue
            failures = depending_on(changed, lane.dimension, failing)
            if changed.status == failing and changed.is_on_timeline:
                failures.append(changed)
            for failure in failures:
                bit = 1 << lane.number
                is_dropped = failure.values[lane.dimension] is not None and not is_separate(
                    failure, lane.dimension, failing
                )
                if is_dropped != bool(failure.dropped & bit):
                    failure.dropped ^= bit
                    for stratum in failure.strata:
                        self.touched.add(("stratum", stratum.kind, *stratum.name))
                        number = stratum.number_of(failure)
                        if number is not None:
                            dirty[stratum, number] = None

    def _settle(self, dirty: Iterable[tuple[Stratum, int]]) -> None:
        """Evaluate the blocks that have changed."""
        for stratum, number in dirty:
            block, given = stratum.block(number), stratum.given[number]
            statuses = {each.status for each in block}
            for lane in self._lanes_by_kind[stratum.kind]:
                if lane.outcome == SLOW or not lane.is_active:
                    continue
                old = given.pop(lane.number, None)
                failing = failing_status(lane.outcome)
                new = contribution(lane, judge(block, lane.number, failing)) if failing in statuses else None
                if new:
                    given[lane.number] = new
                if old or new:
                    self._replace(lane, old, new)

    def _replace(self, lane: Lane, old: groups.Given, new: groups.Given) -> None:
        self.touched.update(("unit", str(lane.number), key[0]) for key in {**(old or {}), **(new or {})})
        self._strong.update((lane.number, value) for value in lane.replace(old, new))

    def evaluate_open_blocks(self) -> None:
        """Note what open blocks contribute without adding it: a restored state has it already."""
        for stratum in self.strata.values():
            stratum.given = [{} for _ in range(-(-len(stratum.tries) // BLOCK))]
            for number, given in enumerate(stratum.given):
                block = stratum.block(number)
                for lane in lanes_of(self._separated, stratum):
                    if not lane.is_active:
                        continue
                    new = contribution(lane, judge(block, lane.number, failing_status(lane.outcome)))
                    if new:
                        given[lane.number] = new

    def set_needed(self) -> None:
        """Set how much evidence a finding needs: 2K/α with K units tested."""
        outcomes = 2 + (self.last_lost_day is not None)
        for lane in self.lanes:
            # Tasks that kill workers are another question, with a chance of its own.
            units = self.tested_tasks if lane.name == TASK else self.population.tested * outcomes
            lane.need(units, self.settings.alpha)

    def note_strong(self) -> None:
        """Note which units have enough evidence where it may need less than before, or in a restored state."""
        self._strong = {(lane.number, value) for lane in self.lanes for value in lane.strong()}

    def judge_groups(self) -> None:
        """Note which groups are judged."""
        for lane in self.lanes:
            if lane.is_group:
                judged = self.population.judged(lane.dimension)
                if lane.judged is not None and not lane.judged <= judged:
                    self._take_back(lane, lane.judged - judged)
                lane.judged = judged

    def _take_back(self, lane: Lane, values: set[str]) -> None:
        """Forget what open blocks contribute to groups that are forgotten."""
        for stratum in self.strata.values():
            for given in stratum.given:
                for key in [key for key in given.get(lane.number, ()) if key[0] in values]:
                    del given[lane.number][key]

    def _sorted_strata(self) -> list[Stratum]:
        return [stratum for _, stratum in sorted(self.strata.items())]

    def count_tested(self) -> None:
        """Count the units that can be found in a restored state."""
        self.population.count()
        self.tested_tasks = sum(
            stratum.kind == TASK and stratum.total >= LEAST_TRIES for stratum in self.strata.values()
        )
        self.set_needed()

    # ----------------------------------------------------------------------- time

    def _schedule(self, stratum: Stratum) -> None:
        due = stratum.schedule(self.now, self._grace)
        if due is not None:
            heapq.heappush(self._due, (due, (stratum.kind, *stratum.name)))

    def schedule_all(self) -> None:
        """Note when the blocks of a restored state close."""
        self._due = [(each.due, key) for key, each in self.strata.items() if each.due is not None]
        heapq.heapify(self._due)

    def _close_if_due(self, key: tuple[str, ...], due: int) -> None:
        stratum = self.strata.get(key)
        if stratum is None or stratum.due != due:
            return
        if self._is_settled(stratum):
            self._close(stratum)
            self._schedule(stratum)
            self._decide()
        else:
            stratum.due = due + UNSETTLED
            self.touched.add(("stratum", *key))
            heapq.heappush(self._due, (stratum.due, key))

    def _is_settled(self, stratum: Stratum) -> bool:
        """Return whether no try that runs can change, when it ends, which failures of the first block are separate."""
        block = stratum.block(0)
        return all(
            is_settled(each, lane.dimension, each.status)
            for lane in lanes_of(self._separated, stratum)
            if lane.is_active
            for each in block
            if each.status == failing_status(lane.outcome) and each.values[lane.dimension] is not None
        )

    def _close(self, stratum: Stratum) -> None:
        """Close the first block: add it to the sums, look at its durations, and forget its tries."""
        assert self.today is not None
        block = stratum.block(0)
        for lane in self._lanes_by_kind[stratum.kind]:
            if not lane.is_active or (lane.outcome == LOST_OUTCOME and self.last_lost_day is None):
                continue
            judged = self._judged(lane, stratum, block)
            if lane.outcome == SLOW:
                self._replace(lane, None, contribution(lane, judged))
            self._fold(lane, stratum, judged)
        stratum.usual = usual_duration(block, stratum.usual)
        del stratum.tries[:BLOCK]
        del stratum.given[0]
        stratum.due = None
        self.touched.add(("stratum", stratum.kind, *stratum.name))
        if stratum.kind == TASK:
            for each in block:
                self.tries.pop(each.key, None)
                self.running.pop(each.key, None)
                # Where else it is stored, its key no longer suffices.
                self.touched.update(("stratum", other.kind, *other.name) for other in each.strata)
            self._follow_slow(stratum, block)

    def _judged(self, lane: Lane, stratum: Stratum, block: list[Try]) -> Judged:
        if lane.outcome == SLOW:
            return judge_slow(block, stratum.usual)
        return judge(block, lane.number, failing_status(lane.outcome))

    def _fold(self, lane: Lane, stratum: Stratum, judged: Judged) -> None:
        assert self.today is not None
        failures = sum(failed for _, failed in judged)
        last_day = max((each.day for each, _ in judged), default=0)
        for value, part in parts_of(judged, lane.dimension).items():
            if not lane.judges(value):
                continue
            note = Note(stratum.index, last_day, part.own_tries, part.own_failures, len(judged), failures)
            fold(lane.unit(value), part, note, self.today)
            self.touched.add(("unit", str(lane.number), value))

    def _end_day(self) -> None:
        assert self.today is not None
        self.today += 1
        self._close_old()
        are_more = self.population.end_day(self.today, self._workers_needed())
        for lane in self.lanes:
            for value, unit in list(lane.units.items()):
                unit.end_day(self.today)
                self.touched.add(("unit", str(lane.number), value))
                if unit.is_neutral or not self._is_seen(lane, value):
                    del lane.units[value]
        if self.last_lost_day is not None and self.last_lost_day <= self.today - WINDOW:
            self.last_lost_day = None
        self.set_needed()
        for finding in self.open_findings():
            self._end_day_of(finding)
        self.judge_groups()
        if are_more:
            self._settle((each, number) for each in self._sorted_strata() for number in range(len(each.given)))
        self.note_strong()
        oldest_end = (self.today - WINDOW) * DAY / 1000
        self.all_findings = [each for each in self.all_findings if (each.ended_at or oldest_end) >= oldest_end]

    def _is_seen(self, lane: Lane, value: str) -> bool:
        """Return whether a unit has run a try in the last 30 days, as far as is known at midnight."""
        return lane.name == TASK or value in self.population.seen[lane.dimension]

    def _close_old(self) -> None:
        """Close blocks whose tries do not end, and forget strata without a try in the last 30 days."""
        assert self.today is not None
        oldest = self.today * DAY - round(self.settings.longest_try * 1000)
        self.timeline.forget_before(oldest)
        for key, stratum in sorted(self.strata.items()):
            if len(stratum.tries) >= BLOCK:
                while len(stratum.tries) >= BLOCK and stratum.tries[BLOCK - 1].started < oldest:
                    self._close(stratum)
                self._schedule(stratum)
            if stratum.last_day <= self.today - WINDOW:
                while stratum.tries:
                    self._close(stratum)
                del self.strata[key]
                self.touched.add(("stratum", *key))
                self.tested_tasks -= stratum.kind == TASK and stratum.total >= LEAST_TRIES

    def _workers_needed(self) -> set[int]:
        needed = {each.worker.index for stratum in self.strata.values() for each in stratum.tries}
        return needed | {each.worker.index for each in self.timeline}

    def _end_day_of(self, finding: Finding) -> None:
        if finding.recovery is not None:
            finding.recovery.end_day()
        lane = self.lane_of(finding)
        if not (self._is_seen(lane, finding.unit) or self.population.instances(finding.subject)):
            self.close(finding, "gone")

    # ----------------------------------------------------------------------- findings

    def lane_of(self, finding: Finding) -> Lane:
        """Return the lane in which something was found."""
        return next(
            lane for lane in self.lanes if lane.name == finding.dimension and NAMES[lane.outcome] == finding.outcome
        )

    def sums(self, lane: Lane, *values: str) -> dict[int, Sums]:
        """Return the counts by day of units together, open blocks included."""
        days: dict[int, Sums] = {}
        for value in values:
            unit = lane.units.get(value)
            for day, sums in unit.days.items() if unit else ():
                days.setdefault(day, Sums()).add(sums)
        for _, judged in self._open(lane, set(values)):
            parts = parts_of(judged, lane.dimension)
            for value in parts.keys() & values:
                for day, sums in parts[value].days.items():
                    days.setdefault(day, Sums()).add(sums)
        return days

    def _open(self, lane: Lane, values: set[str]) -> Iterator[tuple[Stratum, Judged]]:
        if lane.outcome == SLOW:
            return
        # Sorted: a restored state must give the same sums of floats.
        for stratum in self._sorted_strata():
            if stratum.kind == lane.stratum_kind:
                for block in stratum.blocks():
                    if any(each.values[lane.dimension] in values for each in block):
                        yield stratum, judge(block, lane.number, failing_status(lane.outcome))

    def _notes(self, lane: Lane, value: str, first_day: int) -> list[Note]:
        notes = [note for note in lane.unit(value).notes if note.day >= first_day]
        for stratum, judged in self._open(lane, {value}):
            part = parts_of(judged, lane.dimension).get(value)
            if part:
                failures = sum(failed for _, failed in judged)
                last_day = max(each.day for each, _ in judged)
                notes.append(Note(stratum.index, last_day, part.own_tries, part.own_failures, len(judged), failures))
        return notes

    def _decide(self) -> None:
        """Find the units whose evidence and effect suffice, and follow the recovery of those that were found."""
        self.is_decided = True
        # Groups come first: one finding is said once.
        for number, value in sorted(self._strong, key=lambda each: (-each[0], each[1])):
            lane = self.lanes[number]
            unit = lane.units.get(value)
            if unit is None or not lane.is_strong(unit):
                self._strong.discard((number, value))
                continue
            if self.now < unit.judge_after or unit.evidence < lane.needed:
                continue
            # Who is not named now is seldom named a moment later, and to see that costs more than an event.
            unit.judge_after = self.now + SHORTLY
            self.touched.add(("unit", str(number), value))
            if groups.is_said(self, lane, value) or (lane.is_group and unit.evidence_without_worst() < lane.needed):
                continue
            window = best_window(self.sums(lane, value), FLOORS[lane.outcome], self.now // DAY)
            if window is not None:
                self._find(lane, value, *window)
        for finding in self.open_findings():
            recovery = finding.recovery
            assert recovery is not None
            if recovery.is_well:
                self.close(finding, "well")
            else:
                finding.state = RECOVERING if recovery.is_recovering else OPEN

    def _find(self, lane: Lane, value: str, first_day: int, sums: Sums) -> None:
        inner = groups.replaced(self, lane, value, first_day)
        if inner is None:
            lane.units[value].judge_after = self.now + LATER
            return
        self.findings_made += 1
        finding = Finding(
            number=self.findings_made,
            dimension=lane.name,
            unit=value,
            subject=self._subject(lane, value),
            outcome=NAMES[lane.outcome],
            state=OPEN,
            since=0.0,
            found_at=self.now / 1000,
            evidence=0.0,
            needed=lane.needed,
            tries=0,
            failures=0,
            expected=0.0,
            peer_tries=0,
            peer_failures=0,
            shares=[],
            worker_ids=[],
        )
        self._describe(finding, lane, first_day, sums)
        finding.recovery = Recovery(*rates_in_scope(finding))
        for part in inner:
            self._end(part, "part_of")
        self.all_findings.append(finding)

    def _subject(self, lane: Lane, value: str) -> str:
        if lane.name == TASK:
            return value.replace("/", ".")
        return self.population.workers[value].name if lane.name == WORKER else value

    def _describe(self, finding: Finding, lane: Lane, first_day: int, sums: Sums) -> None:
        unit = lane.unit(finding.unit)
        finding.evidence = unit.evidence
        finding.since = (sums.since or self.now) / 1000
        finding.tries, finding.failures = sums.tries, sums.failures
        finding.expected = sums.expected / PARTS
        finding.peer_tries, finding.peer_failures = sums.peer_tries, sums.peer_failures
        shares = shares_of(
            self._notes(lane, finding.unit, first_day), {each.index: each.name for each in self.strata.values()}
        )
        finding.scope = () if lane.name == TASK else scope_of(shares)
        finding.shares = shares[:MOST_TASKS]
        finding.worker_ids = sorted(groups.workers_of(self.population, finding))
        finding.left_out = unit.worst_member() if lane.is_group else None

    def refresh(self, finding: Finding) -> None:
        """Bring the numbers of an open finding up to date.

        Those by which it was found stay where those of now would not be enough to find it: a finding never names less
        evidence than it needs.
        """
        lane = self.lane_of(finding)
        if not finding.is_open or lane.unit(finding.unit).evidence < finding.needed:
            return
        window = best_window(self.sums(lane, finding.unit), FLOORS[lane.outcome], self.now // DAY)
        if window is not None:
            self._describe(finding, lane, *window)

    def close(self, finding: Finding, reason: str) -> None:
        """End a finding and forget the evidence of its subject.

        :param reason: why, such as ``dismissed``
        """
        self._end(finding, reason)
        for lane, value in groups.units_within(self, finding):
            lane.units[value].start_anew()
            self.touched.add(("unit", str(lane.number), value))

    def _end(self, finding: Finding, reason: str) -> None:
        finding.state, finding.ended_at, finding.end_reason = CLOSED, self.now / 1000, reason

    # ----------------------------------------------------------------------- recovery

    def note_quarantine(self, finding: Finding) -> None:
        """Judge by later tries only whether a worker is well, from its first quarantine on.

        What it failed between being found and taken out must not count against it once it has been repaired. Later
        quarantines, after a probe, change nothing.
        """
        if not finding.was_quarantined:
            finding.was_quarantined = True
            self._begin_probation(finding, "quarantine")

    def _begin_probation(self, finding: Finding, after: str) -> None:
        finding.probation, finding.state = after, OPEN
        if finding.recovery is not None:
            finding.recovery.begin_probation()

    def _note_restart(self, worker: WorkerRef) -> None:
        for finding in self.open_findings():
            if finding.subject_kind == "worker" and finding.subject == worker.name:
                finding.first_instance = worker.index
                self._begin_probation(finding, "restart")

    def _follow(self, ended: Try) -> None:
        """Count a try for the recovery of the findings that it belongs to."""
        if ended.status == EXCLUDED:
            return
        for finding in self.open_findings():
            failing = LOST if finding.outcome == "lost" else FAILED
            if finding.outcome == "slow" or (failing == FAILED and ended.status == LOST):
                continue
            if groups.concerns(self, finding, ended):
                failed = ended.status == failing
                self._recover(finding, int(not failed), int(failed))

    def _follow_slow(self, stratum: Stratum, block: list[Try]) -> None:
        for finding in self.open_findings():
            if finding.outcome == "slow":
                # The median of this block is not yet that of the next.
                own = [pair for pair in judge_slow(block, stratum.usual) if groups.concerns(self, finding, pair[0])]
                slow = sum(is_slow for _, is_slow in own)
                self._recover(finding, len(own) - slow, slow)

    def _recover(self, finding: Finding, successes: int, failures: int) -> None:
        assert finding.recovery is not None
        finding.recovery.add(successes, failures)


def _worker_stratum(worker: WorkerRef) -> str:
    """Return the worker whose tasks are compared; pods of one try are compared by what they share."""
    return worker.values[1] or next((value for value in worker.values if value is not None), "")
