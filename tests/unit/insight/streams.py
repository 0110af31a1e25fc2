"""Small streams of tries for the tests of the detector, and a recomputation that knows no shortcut."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from airflow_worker_insight.insight.detector import Detector
from airflow_worker_insight.insight.events import End, Ended, Started, Worker
from airflow_worker_insight.insight.findings import as_json
from airflow_worker_insight.insight.settings import Settings
from airflow_worker_insight.insight.units import SLOW

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


def mixed(seed: int, *, number: int = 120, days: float = 0.9) -> list[Event]:
    """Return starts and ends in the order of time in which much fails, starts coincide, and tries run for long.

    Many failures are separate by a single try, so that each end matters to others.
    """
    rng = random.Random(seed)
    timed: list[tuple[float, int, int, Event]] = []
    for key in rng.sample(range(10 * number), number):
        # A third starts at a full hour.
        started = START + round(rng.uniform(0, days * DAY)) // (3600 if rng.random() < 1 / 3 else 1) * 1.0
        index = rng.randrange(3)
        of_worker = worker(f"w{index}", zone="ab"[index % 2])
        timed.append((started, 0, key, Started(key, ("d", f"t{rng.randrange(3)}"), key, of_worker, started)))
        end = rng.choices([End.SUCCESS, End.FAILED, End.LOST, End.EXCLUDED], [6, 12 + 12 * (index == 1), 2, 1])[0]
        ended = started + round(rng.expovariate(1 / rng.choice([10.0, 3600.0, 20_000.0])))
        timed.append((ended, 1, key, Ended(key, end, ended)))
    return [event for *_, event in sorted(timed, key=lambda each: each[:3])]


def any_order(stream: Iterable[Event], rng: random.Random) -> list[Event]:
    """Return the starts as they come, and each end anywhere after its start."""
    found = [event for event in stream if isinstance(event, Started)]
    ends = [event for event in stream if isinstance(event, Ended)]
    for end in rng.sample(ends, len(ends)):
        own = next((place for place, event in enumerate(found) if event.key == end.key), -1)
        found.insert(rng.randint(own + 1, len(found)), end)
    return found


def in_steps(stream: Sequence[Event], rng: random.Random) -> list[tuple[list[Event], float]]:
    """Return a stream cut at a few times, each step with its end: the last one ends a day after all events."""
    last = time_of(stream[-1]) + DAY
    ends = sorted(rng.uniform(time_of(stream[0]), last) for _ in range(rng.choice([1, 5, 20])))
    steps = [
        ([event for event in stream if begin < time_of(event) <= end], end) for begin, end in pairwise([0.0, *ends])
    ]
    return [*steps, ([event for event in stream if time_of(event) > ends[-1]], last)]


def time_of(event: Event) -> float:
    return event.started_at if isinstance(event, Started) else event.ended_at


def take(detector: Detector, event: Event) -> bool:
    """Add an event as it comes, with the clock at its time unless that is further, and decide."""
    detector.advance_to(time_of(event))
    counts = detector.add(event)
    detector.advance_to(time_of(event))
    return counts


def feed(stream: Iterable[Event], settings: Settings | None = None) -> Detector:
    """Let a detector take the events one by one as they come."""
    detector = Detector(settings or Settings(groups=()))
    for event in stream:
        take(detector, event)
    return detector


def logs(detector: Detector, name: str = "worker", outcome: int = 0) -> dict[str, list[int]]:
    """Return ln E of each unit that says anything."""
    lane = next(lane for lane in detector.lanes if lane.name == name and lane.outcome == outcome)
    return {unit: list(found.logs) for unit, found in lane.units.items() if any(found.logs)}


def evidence(detector: Detector) -> dict[tuple[str, int, str], object]:
    """Return ln E of each unit for failed and lost tries, and what is added if a member is left out."""
    return {
        (lane.name, lane.outcome, value): (unit.logs, {name: left for name, left in unit.without.items() if any(left)})
        for lane in detector.lanes
        if lane.outcome != SLOW
        for value, unit in lane.units.items()
        if any(unit.logs)
    }


def result(detector: Detector) -> tuple[object, ...]:
    """Return the findings, and all that is known of units that say anything."""
    days = [
        (lane.number, sorted((value, unit.days) for value, unit in lane.units.items() if unit.days))
        for lane in detector.lanes
    ]
    return [as_json(finding) for finding in detector.findings()], evidence(detector), days


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
