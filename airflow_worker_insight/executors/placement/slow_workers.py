"""Detection of slow workers by run times of the same tasks: pure functions, no I/O.

Only tries of the same task are compared, so that a worker that got the long tasks does not count as slow. A running try
counts as soon as it has taken that much longer: on a worker that has become ten times slower, no try ends for a long
time.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import median, median_low
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DEFAULT_SLOW_FROM = 3.0
"""How many times as long as others a slow worker takes at least, unless configured."""

MIN_TRIES_ELSEWHERE = 3
"""Minimum number of tries on other workers from which a task's usual duration is known."""

MIN_LATEST_TRIES, MAX_LATEST_TRIES = 4, 5
"""Minimum and maximum number of a worker's latest tries that tell how fast it is.

Only the latest count, because the worker may have become slow just now. All must have been slow: if a task's durations
vary widely, any worker gets some long tries in a row.
"""

MIN_EXTRA_SECONDS = 1.0
"""Minimum seconds that a slow try takes longer; less is the noise of starting a process."""


@dataclass(frozen=True, slots=True)
class TaskRun:
    """A try that has run on a worker, or is running."""

    ref: int
    task: tuple[str, str]
    """Dag ID and task ID."""
    seconds: float
    """How long it took, or has taken so far."""
    has_ended: bool


def slowness(tries: Iterable[TaskRun], slow_from: float = DEFAULT_SLOW_FROM) -> dict[int, float]:
    """Return how many times as long as others each worker takes; 1 unless it is slow.

    The factor is the median over the worker's latest tries, each duration divided by the median duration of the same
    task on the other workers.

    :param tries: the latest first
    :param slow_from: how many times as long as others a slow worker takes at least
    :return: the factor by the worker's ``ref``, without workers that have too few tries to compare
    """
    runs = list(tries)
    by_task: dict[tuple[str, str], list[TaskRun]] = defaultdict(list)
    for run in runs:
        by_task[run.task].append(run)
    usual = {task: _usual_elsewhere(task_runs) for task, task_runs in by_task.items()}
    ratios: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        if run.ref in usual[run.task]:
            ratio = _ratio(run.seconds, usual[run.task][run.ref])
            # The final duration of a running try is unknown, so it counts only once it is slow.
            if run.has_ended or ratio >= slow_from:
                ratios[run.ref].append(ratio)
    latest = {ref: factors[:MAX_LATEST_TRIES] for ref, factors in ratios.items() if len(factors) >= MIN_LATEST_TRIES}
    return {ref: median_low(factors) if min(factors) >= slow_from else 1.0 for ref, factors in latest.items()}


def _usual_elsewhere(runs: Iterable[TaskRun]) -> Mapping[int, float]:
    """Return for each worker a task's usual duration on the others, if they ran enough tries."""
    by_worker: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        by_worker[run.ref] += [run.seconds] if run.has_ended else []
    # The median of the workers' medians: a worker that ran most tries must not speak for all.
    medians = {ref: median(durations) for ref, durations in by_worker.items() if durations}
    number = sum(map(len, by_worker.values()))
    return {
        ref: median(duration for other, duration in medians.items() if other != ref)
        for ref, durations in by_worker.items()
        if number - len(durations) >= MIN_TRIES_ELSEWHERE
    }


def _ratio(seconds: float, usual: float) -> float:
    return max(1.0, seconds / usual) if seconds - usual >= MIN_EXTRA_SECONDS and usual > 0 else 1.0
