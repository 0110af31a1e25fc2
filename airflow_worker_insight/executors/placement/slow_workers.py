"""Say how many times as long as the others a worker takes for the same tasks: pure functions, no I/O.

Only tries of the same task are compared, so that a worker which was given the long tasks does not count as slow. What
still runs counts as soon as it has taken so much longer: of a worker that has become ten times slower nothing ends for
a long time.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import median, median_low
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SLOW_FROM = 3.0
"""Times as long as the others for the same tasks, from which on a worker counts as slow where nobody says otherwise."""

LEAST_ELSEWHERE = 3
"""Tries of a task on other workers that tell how long it takes."""

LEAST_TRIES, LATEST_TRIES = 4, 5
"""How many tries of a worker tell how fast it is: its latest ones, because it may have become slow just now. All must
have been slow: of a task whose tries take very different times any worker is given some long ones in a row."""

MARGIN = 1.0
"""Seconds that a try takes longer at least, to say something: below it is the noise of starting a process."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A try that has run on a worker, or runs."""

    ref: int
    task: tuple[str, str]
    """The Dag's and the task's ID."""
    seconds: float
    """How long it took, or has taken up to now."""
    has_ended: bool


def slowness(tries: Iterable[Ran], slow_from: float = SLOW_FROM) -> dict[int, float]:
    """Return how many times as long as the others each worker takes: 1 for all but slow ones.

    :param tries: the latest first
    :param slow_from: times as long as the others, from which on a worker is slow

    It is the median of what its latest tries took, each divided by the median of the same task's on the other workers.
    Workers of which there is too little to compare are left out.
    """
    known = list(tries)
    by_task: dict[tuple[str, str], list[Ran]] = defaultdict(list)
    for one in known:
        by_task[one.task].append(one)
    usual = {task: _elsewhere(same) for task, same in by_task.items()}
    ratios: dict[int, list[float]] = defaultdict(list)
    for one in known:
        if one.ref in usual[one.task]:
            ratio = _ratio(one.seconds, usual[one.task][one.ref])
            # Of what runs nobody knows yet how long it will take.
            if one.has_ended or ratio >= slow_from:
                ratios[one.ref].append(ratio)
    latest = {ref: found[:LATEST_TRIES] for ref, found in ratios.items() if len(found) >= LEAST_TRIES}
    return {ref: median_low(found) if min(found) >= slow_from else 1.0 for ref, found in latest.items()}


def _elsewhere(same: Iterable[Ran]) -> Mapping[int, float]:
    """Return for each worker how long a task usually takes on the others, where enough of them tell."""
    took: dict[int, list[float]] = defaultdict(list)
    for one in same:
        took[one.ref] += [one.seconds] if one.has_ended else []
    if len(took) < 2:  # noqa: PLR2004
        return {}
    # The median of each worker's median: one that ran most of them does not speak for all.
    medians = {ref: median(found) for ref, found in took.items() if found}
    number = sum(map(len, took.values()))
    return {
        ref: median(one for other, one in medians.items() if other != ref)
        for ref, found in took.items()
        if number - len(found) >= LEAST_ELSEWHERE
    }


def _ratio(seconds: float, usual: float) -> float:
    return max(1.0, seconds / usual) if seconds - usual >= MARGIN and usual > 0 else 1.0
