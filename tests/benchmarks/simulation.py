"""Simulated fleets for the benchmark of findings, healthy and sick ones, by fixed seeds."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from itertools import accumulate

DAY, DAYS = 86_400.0, 30
START = 20_000 * DAY
TRIES_PER_WORKER = 1_500


@dataclass(frozen=True)
class Scenario:
    """What a fleet is like. Everything is off by default."""

    name: str
    workers: int = 20
    tasks: int = 100
    queues: bool = False
    incidents: bool = False
    """Daily and weekly drift, task bugs that fail everywhere for 8 hours, outages of 24 minutes."""
    outages: bool = False
    autoscaling: bool = False
    """Half of the names live for less than a day."""
    skewed: bool = False
    """A flaky task runs to 85 % on one worker."""
    retries: bool = False
    """A failed try is tried again on the same worker, and rather fails again."""
    bursts: bool = False
    """A worker takes the next few tries, whatever they are."""
    mapped: bool = False
    """Mapped instances of a run go to one worker and fail together."""
    sick: int = 0
    """Number of sick workers."""
    excess: float = 0.0
    """How much more often their tries fail, 0 to 1."""
    lost: bool = False
    """They are lost, not failed."""
    slower: float = 1.0
    one_dag: bool = False
    zones: bool = False
    sick_zone: bool = False
    hog: float = 0.0
    """Share of all tries that the sick worker takes."""
    killer: float = 0.0
    """Chance that a try of one task takes its worker and all that runs there with it."""

    @property
    def is_sick(self) -> bool:
        """Whether something is to be found."""
        return bool(self.sick or self.sick_zone or self.killer)


@dataclass(slots=True)
class SimulatedTry:
    """One try. Times are Unix times in seconds."""

    key: int
    started: float
    ended: float
    worker: str
    task: int
    run: int
    state: str
    try_number: int = 1
    is_mapped: bool = False


@dataclass
class Fleet:
    """A history, the earliest start first, and what is sick in it since when."""

    scenario: Scenario
    tries: list[SimulatedTry]
    sick_workers: set[str] = field(default_factory=set)
    sick_zone: str | None = None
    killer: int | None = None
    sick_since: float = math.inf

    def dag(self, task: int) -> str:
        """Return the Dag of a task."""
        return dag_of(task)

    def zone(self, worker: str) -> str:
        """Return the zone of a worker."""
        return "abcd"[int(worker.partition("-")[0][1:]) % 4]


def dag_of(task: int) -> str:
    """Return the Dag of a task; ten of them run every task whose number ends alike."""
    return f"dag{task % 10}"


class Maker:
    """Makes one fleet.

    :param scenario: what it is like
    :param seed: the same gives the same fleet
    """

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        # A string seeds alike in every process, a tuple would not.
        self.random = random.Random(f"{scenario.name} {seed}")
        self._make_tasks()
        self._make_workers()
        self._make_incidents()

    def _make_tasks(self) -> None:
        rng, number = self.random, self.scenario.tasks
        popularity = [1 / (rank + 1) ** 1.1 for rank in range(number)]
        rng.shuffle(popularity)
        self.cumulative = list(accumulate(popularity))
        self.rates = [rng.uniform(0, 0.02) for _ in range(number)]
        for task in rng.sample(range(number), max(1, number * 8 // 100)):
            self.rates[task] = 0.3
        self.durations = [(rng.gauss(math.log(60), 1.0), rng.uniform(0.3, 0.8)) for _ in range(number)]
        self.popular = max(range(number), key=lambda task: popularity[task])
        if self.scenario.skewed:
            self.rates[self.popular] = 0.3

    def _make_workers(self) -> None:
        rng, number = self.random, self.scenario.workers
        self.slots = list(range(number))
        self.pools = [self.slots]
        if self.scenario.queues:
            # Each worker listens to one queue at least.
            shuffled = rng.sample(self.slots, number)
            sizes = [max(2, round(number * share)) for share in (0.6, 0.4, 0.25, 0.15)]
            self.pools = [sorted(shuffled[: sizes[0]]), sorted(shuffled[-sizes[1] :])]
            self.pools += [sorted(rng.sample(self.slots, min(number, size))) for size in sizes[2:]]
        self.queue_of = [rng.randrange(len(self.pools)) for _ in range(self.scenario.tasks)]
        # Names of the second half of the slots: each lives for less than a day.
        self.lives: list[list[float]] = [[] for _ in self.slots]
        if self.scenario.autoscaling:
            for slot in self.slots[number // 2 :]:
                ends, at = self.lives[slot], START
                while at < START + DAYS * DAY:
                    at += rng.uniform(4 * 3600, DAY)
                    ends.append(at)

    def _make_incidents(self) -> None:
        rng = self.random
        self.bugs: dict[int, list[tuple[float, float]]] = {}
        self.outages: list[tuple[float, float]] = []
        if self.scenario.incidents:
            for task in rng.sample(range(self.scenario.tasks), max(2, self.scenario.tasks // 8)):
                begin = START + rng.uniform(0, DAYS * DAY)
                self.bugs.setdefault(task, []).append((begin, begin + 8 * 3600))
        if self.scenario.incidents or self.scenario.outages:
            for _ in range(6):
                begin = START + rng.uniform(0, DAYS * DAY)
                self.outages.append((begin, begin + 24 * 60))
        self.sick_since = START + rng.uniform(8, 12) * DAY if self.scenario.is_sick else math.inf

    def name(self, slot: int, at: float) -> str:
        """Return the name that a slot has at a time."""
        life = sum(end <= at for end in self.lives[slot])
        return f"w{slot}-{life}" if self.lives[slot] else f"w{slot}"

    def starts(self) -> list[float]:
        """Return when tries start."""
        rng, number = self.random, self.scenario.workers * TRIES_PER_WORKER
        times: list[float] = []
        while len(times) < number:
            at = rng.uniform(0, DAYS * DAY)
            if not self.scenario.incidents or rng.random() < self._load(at):
                times.append(START + at)
        return sorted(times)

    @staticmethod
    def _load(at: float) -> float:
        weekend = 0.5 if at // DAY % 7 >= 5 else 1.0
        return weekend * (0.6 + 0.4 * math.sin(2 * math.pi * at / DAY))

    def _rate(self, task: int, at: float) -> float:
        rate = self.rates[task]
        if self.scenario.incidents:
            rate *= 1 + 0.6 * math.sin(2 * math.pi * (at - START) / DAY) + 0.3 * math.sin(2 * math.pi * at / (7 * DAY))
            if any(begin <= at < end for begin, end in self.bugs.get(task, ())):
                rate = max(rate, 0.9)
        if any(begin <= at < end for begin, end in self.outages):
            rate = max(rate, 0.9)
        return rate

    def make(self) -> Fleet:
        """Return the fleet."""
        scenario, rng = self.scenario, self.random
        order = rng.sample(self.slots, len(self.slots))
        sick_slots = set(order[: scenario.sick])
        fleet = Fleet(scenario, [], {f"w{slot}" for slot in sick_slots}, sick_since=self.sick_since)
        if scenario.sick_zone:
            fleet.sick_zone = "b"
            sick_slots = {slot for slot in self.slots if slot % 4 == 1}
        if scenario.killer:
            fleet.killer = self._middling_task()
        self.sick_dag = f"dag{self.popular % 10}"
        burst_slot, burst_left = 0, 0
        preferred = order[0]
        burst_of_run: dict[int, tuple[int, bool]] = {}
        for start in self.starts():
            task = self._task()
            pool = self.pools[self.queue_of[task]]
            slot = pool[int(rng.random() * len(pool))]
            run, is_mapped = len(fleet.tries), False
            if scenario.skewed and task == self.popular and rng.random() < 0.85:
                slot = preferred
            if scenario.bursts:
                if not burst_left:
                    burst_slot, burst_left = slot, rng.randint(1, 8)
                slot, burst_left = burst_slot, burst_left - 1
            if scenario.hog and start >= self.sick_since and rng.random() < scenario.hog:
                slot = next(iter(sick_slots))
            forced: bool | None = None
            if scenario.mapped and task < scenario.tasks // 5:
                # About ten mapped instances of a run, all on one worker, which share their fate.
                is_mapped, run = True, task * 1_000_000 + int(start / 7200)
                slot, forced = burst_of_run.setdefault(run, (slot, rng.random() < self.rates[task]))
            is_sick = slot in sick_slots and start >= self.sick_since
            if scenario.one_dag:
                is_sick = is_sick and dag_of(task) == self.sick_dag
            self._add(fleet, start, task, slot, run, is_sick=is_sick, is_mapped=is_mapped, forced=forced)
        if fleet.killer is not None:
            _lose_what_ran_beside(fleet)
        fleet.tries.sort(key=lambda each: each.started)
        return fleet

    def _middling_task(self) -> int:
        shares = [end - begin for begin, end in zip([0.0, *self.cumulative], self.cumulative, strict=False)]
        ranked = sorted(range(self.scenario.tasks), key=lambda task: -shares[task])
        return ranked[self.scenario.tasks // 10]

    def _task(self) -> int:
        point = self.random.random() * self.cumulative[-1]
        low, high = 0, len(self.cumulative) - 1
        while low < high:
            middle = (low + high) // 2
            if self.cumulative[middle] < point:
                low = middle + 1
            else:
                high = middle
        return low

    def _add(
        self,
        fleet: Fleet,
        start: float,
        task: int,
        slot: int,
        run: int,
        *,
        is_sick: bool,
        is_mapped: bool,
        forced: bool | None,
    ) -> None:
        scenario, rng = self.scenario, self.random
        rate = self._rate(task, start)
        state = "failed" if (rng.random() < rate if forced is None else forced) else "success"
        if is_sick and scenario.excess and rng.random() < min(1.0, scenario.excess / max(1 - rate, 1e-9)):
            state = "lost" if scenario.lost else "failed"
        if fleet.killer == task and start >= self.sick_since and rng.random() < scenario.killer:
            state = "killed"
        mean, spread = self.durations[task]
        duration = min(math.exp(rng.gauss(mean, spread)), 4 * 3600)
        if is_sick:
            duration *= scenario.slower
        if state != "success":
            duration *= rng.uniform(0.1, 1.0)
        worker = self.name(slot, start)
        at = start
        for number in range(1, 4 if scenario.retries else 2):
            key = len(fleet.tries)
            fleet.tries.append(SimulatedTry(key, at, at + duration, worker, task, run, state, number, is_mapped))
            if state == "success":
                break
            at += duration + 60
            state = "failed" if rng.random() < max(rate, 0.7) else "success"


def _lose_what_ran_beside(fleet: Fleet) -> None:
    """A worker dies with a killing try, and with it all that runs there."""
    deaths = [each for each in fleet.tries if each.state == "killed"]
    for death in deaths:
        death.state = "lost"
        for each in fleet.tries:
            if each.worker == death.worker and each.started < death.ended < each.ended:
                each.state, each.ended = "lost", death.ended


def small(scenario: Scenario) -> Scenario:
    """Return the same with 5 workers and 10 tasks."""
    return replace(scenario, name=f"{scenario.name}, 5 workers", workers=5, tasks=10)


HEALTHY = (
    Scenario("plain"),
    Scenario("queues", queues=True),
    Scenario("drift and incidents", incidents=True),
    Scenario("the same, queues, autoscaling", queues=True, incidents=True, autoscaling=True),
    Scenario("flaky task on one worker", skewed=True),
    Scenario("retries on the same worker", retries=True),
    Scenario("bursts and outages", bursts=True, outages=True),
)

MAPPED = Scenario("mapped instances on one worker", mapped=True)
"""Healthy too, but not among the seven of the target."""

ALL, HALF, FIFTH, TWENTIETH = 1.0, 0.5, 0.2, 0.05

SICK = (
    Scenario("fails all", sick=1, excess=ALL),
    Scenario("fails all, 5 workers", workers=5, tasks=10, sick=1, excess=ALL),
    Scenario("+50", sick=1, excess=HALF),
    Scenario("+20", sick=1, excess=FIFTH),
    Scenario("+20, queues and incidents", sick=1, excess=FIFTH, queues=True, incidents=True),
    Scenario("+5", sick=1, excess=TWENTIETH),
    Scenario("three fail all", sick=3, excess=ALL),
    Scenario("one Dag +50", sick=1, excess=HALF, one_dag=True),
    Scenario("slow x1.3", sick=1, slower=1.3),
    Scenario("slow x2", sick=1, slower=2.0),
    Scenario("slow x10", sick=1, slower=10.0),
    Scenario("lost +20", sick=1, excess=FIFTH, lost=True),
    Scenario("zone +20", sick_zone=True, zones=True, excess=FIFTH),
    Scenario("zone +5", sick_zone=True, zones=True, excess=TWENTIETH),
    Scenario("one worker +20, zones", sick=1, excess=FIFTH, zones=True),
    Scenario("takes 60 % and fails all", sick=1, excess=ALL, hog=0.6),
    Scenario("task that kills workers", killer=0.2),
)
