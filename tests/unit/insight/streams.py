"""Small streams of tries for the tests of the detector, and a recomputation that knows no shortcut."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.insight.detector import Detector
from airflow_worker_insight.insight.events import End, Ended, Started, Worker
from airflow_worker_insight.insight.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

DAY = 86_400.0
START = 20_000 * DAY
THETAS = (3.0, 10.0, 30.0, 100.0)

Event = Started | Ended


def worker(name: str, **groups: str) -> Worker:
    return Worker(f"{name}@1", name, groups)


@dataclass(frozen=True)
class Row:
    """A try of a history."""

    key: int
    started: float
    ended: float
    worker: str
    task: str
    end: End


def rows(
    number: int,
    *,
    seed: int = 0,
    workers: int = 4,
    tasks: int = 2,
    days: float = 3.0,
    rate: Callable[[str, float], float] = lambda _worker, _at: 0.1,
    seconds: float = 600.0,
) -> list[Row]:
    """Return a random history, the earliest start first."""
    rng = random.Random(seed)
    found = []
    for key, at in enumerate(sorted(rng.uniform(0, days * DAY) for _ in range(number))):
        name = f"w{rng.randrange(workers)}"
        end = End.FAILED if rng.random() < rate(name, at) else End.SUCCESS
        started = START + round(at)
        found.append(
            Row(key, started, started + round(rng.expovariate(1 / seconds)), name, f"t{rng.randrange(tasks)}", end)
        )
    return found


def events(history: Iterable[Row], zones: Callable[[str], str] | None = None) -> list[Event]:
    """Return starts and ends in the order of time."""
    timed: list[tuple[float, int, int, Event]] = []
    for row in history:
        groups = {"zone": zones(row.worker)} if zones else {}
        timed.append(
            (
                row.started,
                0,
                row.key,
                Started(row.key, ("d", row.task), row.key, worker(row.worker, **groups), row.started),
            )
        )
        timed.append((row.ended, 1, row.key, Ended(row.key, row.end, row.ended)))
    return [event for *_, event in sorted(timed, key=lambda each: each[:3])]


def feed(stream: Iterable[Event], settings: Settings | None = None) -> Detector:
    detector = Detector(settings or Settings(groups=()))
    for event in stream:
        detector.add(event)
    return detector


def logs(detector: Detector, name: str = "worker", outcome: int = 0) -> dict[str, list[int]]:
    """Return ln E of each unit that says anything."""
    lane = next(lane for lane in detector.lanes if lane.name == name and lane.outcome == outcome)
    return {unit: list(found.logs) for unit, found in lane.units.items() if any(found.logs)}


def state(detector: Detector) -> dict[str, str]:
    from airflow_worker_insight.insight.state import dump

    return dump(detector)


# ------------------------------------------------------------------------- a recomputation from the definitions


def e_value(tries: int, failures: int, own_tries: int, own_failures: int, theta: float) -> float:
    """INSIGHT.md §3, written down as it stands there."""
    normal = sum(
        math.comb(own_tries, y) * math.comb(tries - own_tries, failures - y) / math.comb(tries, failures) * theta**y
        for y in range(own_tries + 1)
        if 0 <= failures - y <= tries - own_tries
    )
    return theta**own_failures / normal


def recomputed(history: Sequence[Row], until: float, *, restarts: bool = True) -> dict[str, list[float]]:
    """Return ln E of each worker from the whole history: M and O of blocks, with the daily unit.

    ``restarts``: with it E follows M ← 29/30 M + 1/30 / O at each midnight.
    """
    names = sorted({row.worker for row in history})
    evidence = {name: [1.0] * len(THETAS) for name in names}
    before = {name: [1.0] * len(THETAS) for name in names}
    midnight = (START // DAY + 1) * DAY
    times = []
    while midnight <= until:
        times.append((midnight, restarts))
        midnight += DAY
    for at, is_midnight in [*times, (until, False)]:
        product = _products(history, at, names, strictly=is_midnight)
        for name in names:
            for index in range(len(THETAS)):
                evidence[name][index] *= product[name][index] / before[name][index]
                if is_midnight:
                    evidence[name][index] = 29 / 30 * evidence[name][index] + 1 / 30
        before = product
    return {name: [math.log(each) for each in values] for name, values in evidence.items()}


def _products(history: Sequence[Row], at: float, names: Sequence[str], *, strictly: bool) -> dict[str, list[float]]:
    def is_past(time: float) -> bool:
        return time < at if strictly else time <= at

    known = sorted((row for row in history if is_past(row.started)), key=lambda row: (row.started, row.key))
    failed = {row.key for row in known if is_past(row.ended) and row.end is End.FAILED}
    dropped = set()
    for position, row in enumerate(known):
        if row.key not in failed:
            continue
        earlier = [each for each in known[:position] if each.worker == row.worker and each.key in failed]
        if earlier:
            between = known[known.index(earlier[-1]) + 1 : position]
            if not any(each.worker != row.worker and each.key not in failed for each in between):
                dropped.add(row.key)
    product = {name: [1.0] * len(THETAS) for name in names}
    for task in {row.task for row in known}:
        of_task = [row for row in known if row.task == task]
        for begin in range(0, len(of_task), 32):
            block = [row for row in of_task[begin : begin + 32] if row.key not in dropped]
            failures = sum(row.key in failed for row in block)
            for name in names:
                own = [row for row in block if row.worker == name]
                own_failures = sum(row.key in failed for row in own)
                for index, theta in enumerate(THETAS):
                    if failures and own:
                        product[name][index] *= e_value(len(block), failures, len(own), own_failures, theta)
    return product
