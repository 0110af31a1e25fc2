"""The other methods of the benchmark of findings, as tools use them: looked at every hour over the latest day."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from typing import TYPE_CHECKING

from tests.benchmarks.simulation import DAY, DAYS, START

if TYPE_CHECKING:
    from tests.benchmarks.simulation import Fleet

METHODS = ("raw rate", "z>3", "Envoy 1.9", "Envoy 3", "Mantel-Haenszel")

LEAST_TRIES = 5
"""Tries of a worker within the window from which it is judged; fewer would only raise more false alarms."""

MANTEL_HAENSZEL_HOURS, MANTEL_HAENSZEL_DAYS = 4, 7
"""How often it is looked at, and its window: it needs more tries."""


def flagged(fleet: Fleet) -> dict[str, dict[str, float]]:
    """Return for each method the workers that it ever blames for failures, each with when it first does."""
    by_hour: dict[int, list[tuple[str, int, bool]]] = defaultdict(list)
    for each in fleet.tries:
        if each.ended < START + DAYS * DAY:
            by_hour[int((each.ended - START) // 3600)].append((each.worker, each.task, each.state != "success"))
    found: dict[str, dict[str, float]] = {method: {} for method in METHODS}
    window: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    strata: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for hour in range(DAYS * 24):
        _move(window, strata, by_hour, hour)
        at = START + (hour + 1) * 3600
        blamed = dict(_by_rates({worker: (n, x) for worker, (n, x) in window.items() if n >= LEAST_TRIES}))
        if hour % MANTEL_HAENSZEL_HOURS == 0:
            blamed["Mantel-Haenszel"] = _mantel_haenszel(strata)
        for method, workers in blamed.items():
            for worker in workers:
                found[method].setdefault(worker, at)
    return found


def _move(
    window: dict[str, list[int]],
    strata: dict[int, dict[str, list[int]]],
    by_hour: dict[int, list[tuple[str, int, bool]]],
    hour: int,
) -> None:
    for sign, of_hour in ((1, hour), (-1, hour - 24)):
        for worker, _, failed in by_hour.get(of_hour, ()):
            window[worker][0] += sign
            window[worker][1] += sign * failed
    for sign, of_hour in ((1, hour), (-1, hour - 24 * MANTEL_HAENSZEL_DAYS)):
        for worker, task, failed in by_hour.get(of_hour, ()):
            strata[task][worker][0] += sign
            strata[task][worker][1] += sign * failed


def _by_rates(counts: dict[str, tuple[int, int]]) -> dict[str, set[str]]:
    tries, failures = (sum(values) for values in zip(*counts.values(), strict=True)) if counts else (0, 0)
    blamed: dict[str, set[str]] = {"raw rate": set(), "z>3": set()}
    for worker, (n, x) in counts.items():
        others, elsewhere = tries - n, failures - x
        if not others:
            continue
        if x >= 3 and x / n >= 2 * elsewhere / others:
            blamed["raw rate"].add(worker)
        rate = failures / tries
        error = math.sqrt(rate * (1 - rate) * (1 / n + 1 / others))
        if error and (x / n - elsewhere / others) / error > 3:
            blamed["z>3"].add(worker)
    rates = {worker: 1 - x / n for worker, (n, x) in counts.items()}
    for name, factor in (("Envoy 1.9", 1.9), ("Envoy 3", 3.0)):
        blamed[name] = set()
        if len(rates) >= 5:
            lowest = statistics.fmean(rates.values()) - factor * statistics.pstdev(rates.values())
            blamed[name] = {worker for worker, rate in rates.items() if rate < lowest}
    return blamed


def _mantel_haenszel(strata: dict[int, dict[str, list[int]]]) -> set[str]:
    """Blame by the Cochran-Mantel-Haenszel test, one-sided, with Benjamini-Hochberg at 5 %."""
    observed: dict[str, float] = defaultdict(float)
    variance: dict[str, float] = defaultdict(float)
    for counts in strata.values():
        tries, failures = (sum(values) for values in zip(*counts.values(), strict=True)) if counts else (0, 0)
        if tries < 2 or not failures:
            continue
        for worker, (n, x) in counts.items():
            observed[worker] += x - n * failures / tries
            variance[worker] += n * (tries - n) * failures * (tries - failures) / (tries * tries * (tries - 1))
    values = sorted(
        (0.5 * math.erfc((observed[worker] - 0.5) / math.sqrt(2 * variance[worker])), worker)
        for worker in observed
        if variance[worker] > 0
    )
    last = max((rank for rank, (p, _) in enumerate(values, 1) if p <= 0.05 * rank / len(values)), default=0)
    return {worker for _, worker in values[:last]}
