"""What is kept of each unit: its evidence, its sums by day, and which blocks spoke against it.

A unit is a worker, a group of workers, or a task.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from airflow_worker_insight.insight import evidence
from airflow_worker_insight.insight.blocks import FAILED as HAS_FAILED
from airflow_worker_insight.insight.blocks import LOST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_worker_insight.insight.blocks import Judged
    from airflow_worker_insight.insight.evidence import Logs

PARTS = 1 << 20
"""Expected failures are summed in steps of 1/:data:`PARTS`, so that the order of blocks does not matter."""

NOTES = 24
"""Closed blocks with a failure that a unit remembers, the latest ones: they say in which tasks it fails."""

WINDOW = 30
"""Days that sums are kept."""

SINGLE_DAYS, MERGED = 7, 7
"""Older days are merged by weeks, so that few sums are stored."""

NAMES = ("failed", "lost", "slow")
FAILED, LOST_OUTCOME, SLOW = range(3)


@dataclass(frozen=True, slots=True)
class Floor:
    """What a finding needs beside evidence, so that what is true but tiny is not said.

    :param failures: fewest failures
    :param ratio: fewest failures as a multiple of those expected
    :param excess: smallest excess of failures as a share of all tries, 0 to 1
    """

    failures: int
    ratio: float
    excess: float

    def allows(self, sums: Sums) -> bool:
        """Return whether the failures of a window exceed the floor."""
        expected = sums.expected / PARTS
        return (
            sums.failures >= self.failures
            and sums.failures >= self.ratio * expected
            and sums.failures - expected >= self.excess * sums.tries
        )


FLOORS = (Floor(3, 2.0, 0.02), Floor(3, 2.0, 0.02), Floor(8, 1.2, 0.05))
"""By outcome."""


@dataclass(slots=True)
class Sums:
    """Counts of a unit and of its peers in the same blocks, in which a peer ran too."""

    tries: int = 0
    failures: int = 0
    expected: int = 0
    """Own tries times the rate of failures among the peers of the same block, in steps of 1/:data:`PARTS`."""
    peer_tries: int = 0
    peer_failures: int = 0
    since: int | None = None
    """Start of the first own failure in milliseconds."""

    def add(self, other: Sums) -> None:
        """Add the counts of another window."""
        self.tries += other.tries
        self.failures += other.failures
        self.expected += other.expected
        self.peer_tries += other.peer_tries
        self.peer_failures += other.peer_failures
        if other.since is not None and (self.since is None or other.since < self.since):
            self.since = other.since

    @property
    def excess(self) -> float:
        """Failures beyond those expected."""
        return self.failures - self.expected / PARTS

    @property
    def likelihood(self) -> float:
        """Poisson log likelihood ratio of the failures against those expected; 0 if they are fewer."""
        expected = max(self.expected / PARTS, 0.1)
        if self.failures <= expected:
            return 0.0
        return self.failures * math.log(self.failures / expected) - (self.failures - expected)

    def as_list(self) -> list[int | None]:
        """Return the counts as JSON stores them."""
        return [self.tries, self.failures, self.expected, self.peer_tries, self.peer_failures, self.since]


@dataclass(frozen=True, slots=True)
class Note:
    """A block in which a unit failed: its stratum's index, the day, own tries and failures, and all of them."""

    stratum: int
    day: int
    own_tries: int
    own_failures: int
    tries: int
    failures: int

    @property
    def excess(self) -> float:
        """Own failures beyond those expected by the peers' rate."""
        peers = self.tries - self.own_tries
        return self.own_failures - self.own_tries * (self.failures - self.own_failures) / peers if peers else 0.0


@dataclass(slots=True)
class Unit:
    """Evidence and sums of one unit for one outcome.

    ``logs`` are ln E for each odds ratio, closed and open blocks together. ``without`` has what is added to them if
    one member is left out.
    """

    logs: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    without: dict[str, list[int]] = field(default_factory=dict)
    days: dict[int, Sums] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    judge_after: int = 0
    """Time in milliseconds until which it is not judged again: it had enough evidence, but was not to be named."""

    @property
    def evidence(self) -> float:
        """Evidence E: how many to 1 the tries speak against this unit."""
        return evidence.mean_evidence(self.logs)

    def evidence_without_worst(self) -> float:
        """Return the evidence that is left if the member is left out without which least is left."""
        left = [
            evidence.mean_evidence([log + part for log, part in zip(self.logs, parts, strict=True)])
            for parts in self.without.values()
        ]
        return min(left, default=0.0)

    def worst_member(self) -> str | None:
        """Return the member without which least evidence is left."""
        return min(
            sorted(self.without),
            key=lambda member: evidence.mean_evidence(
                [log + part for log, part in zip(self.logs, self.without[member], strict=True)]
            ),
            default=None,
        )

    def replace(self, member: str | None, old: Logs | None, new: Logs | None) -> None:
        """Replace what a block contributes."""
        logs = self.logs if member is None else self.without.setdefault(member, [0, 0, 0, 0])
        for index in range(len(logs)):
            logs[index] += (new[index] if new else 0) - (old[index] if old else 0)

    def end_day(self, today: int) -> None:
        """Let a share of the evidence start anew and forget the sums of more than :data:`WINDOW` days ago."""
        for parts in self.without.values():
            for index, part in enumerate(parts):
                parts[index] = evidence.restart(self.logs[index] + part)
        self.logs = [evidence.restart(log) for log in self.logs]
        for parts in self.without.values():
            for index, log in enumerate(self.logs):
                parts[index] -= log
        for day in [day for day in self.days if day < today - SINGLE_DAYS and day % MERGED]:
            self.days.setdefault(day - day % MERGED, Sums()).add(self.days.pop(day))
        for day in [day for day in self.days if day <= today - WINDOW]:
            del self.days[day]
        if self.notes and self.notes[0].day <= today - WINDOW:
            self.notes = [note for note in self.notes if note.day > today - WINDOW]

    def start_anew(self) -> None:
        """Forget all evidence, as of now: a finding has ended."""
        self.logs = [0] * len(self.logs)
        self.without = {member: [0] * len(self.logs) for member in self.without}
        self.days.clear()
        self.notes.clear()

    @property
    def is_neutral(self) -> bool:
        """Whether it says no more than a new one."""
        return not self.days and not any(self.logs) and not any(map(any, self.without.values()))


@dataclass(frozen=True, slots=True)
class Part:
    """One unit's share of a block: the counts of each day, and of the whole block."""

    days: dict[int, Sums]
    own_tries: int
    own_failures: int


def parts_of(judged: Judged, dimension: int) -> dict[str, Part]:
    """Split a block by unit and day of start.

    A block that only one unit ran says nothing and has no parts.

    :return: for each unit its counts; the expected ones by the rate of its peers in the whole block
    """
    totals: dict[str | None, list[int]] = defaultdict(lambda: [0, 0])
    by_day: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    own: dict[tuple[str | None, int], Sums] = {}
    for each, failed in judged:
        value, day = each.values[dimension], each.day
        for sums in (totals[value], by_day[day]):
            sums[0] += 1
            sums[1] += failed
        share = own.setdefault((value, day), Sums())
        share.tries += 1
        share.failures += failed
        if failed and (share.since is None or each.started < share.since):
            share.since = each.started
    number = sum(sums[0] for sums in by_day.values())
    failures = sum(sums[1] for sums in by_day.values())
    found: dict[str, Part] = {}
    for value, (own_tries, own_failures) in totals.items():
        if value is None or own_tries == number:
            continue
        rate = PARTS * (failures - own_failures) / (number - own_tries)
        days: dict[int, Sums] = {}
        for day, (day_tries, day_failures) in by_day.items():
            share = own.get((value, day), Sums())
            share.expected = round(share.tries * rate)
            share.peer_tries = day_tries - share.tries
            share.peer_failures = day_failures - share.failures
            days[day] = share
        found[value] = Part(days, own_tries, own_failures)
    return found


def fold(unit: Unit, part: Part, note: Note | None, today: int) -> None:
    """Add a unit's share of a closed block to its sums."""
    for day, sums in part.days.items():
        if day > today - WINDOW:
            unit.days.setdefault(day, Sums()).add(sums)
    if note is not None and note.own_failures:
        unit.notes.append(note)
        del unit.notes[:-NOTES]


def best_window(days: dict[int, Sums], floor: Floor, today: int) -> tuple[int, Sums] | None:
    """Return the window that ends now, is cut at whole days and shows most, if one exceeds the effect floor.

    :param days: counts by day
    :param today: days after it do not exist; clocks that are ahead are counted today
    :return: its first day and its counts
    """
    total, best, best_day = Sums(), None, 0
    for day in sorted(days, reverse=True):
        total.add(days[day])
        if day > today - WINDOW and floor.allows(total) and (best is None or total.likelihood > best.likelihood):
            best, best_day = replace(total), day
    return None if best is None else (best_day, best)


def failing_status(outcome: int) -> int:
    """Return the status that counts as a failure for an outcome."""
    return LOST if outcome == LOST_OUTCOME else HAS_FAILED


def as_json(unit: Unit) -> list[Any]:
    """Return a unit as JSON stores it."""
    return [
        unit.logs,
        unit.without,
        [[day, *sums.as_list()] for day, sums in unit.days.items()],
        unit.judge_after,
        [[n.stratum, n.day, n.own_tries, n.own_failures, n.tries, n.failures] for n in unit.notes],
    ]


def from_json(stored: Sequence[Any]) -> Unit:
    """Return a unit from :func:`as_json`."""
    logs, without, days, judge_after, notes = stored
    return Unit(
        list(logs),
        {member: list(parts) for member, parts in without.items()},
        {row[0]: Sums(*row[1:]) for row in days},
        [Note(*row) for row in notes],
        judge_after,
    )
