"""Is it the worker? False alarms, recall and tries until found on simulated fleets, beside other methods."""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_worker_insight.insight.detector import Detector
from airflow_worker_insight.insight.events import End, Ended, Started, Worker
from airflow_worker_insight.insight.recovery import Recovery
from airflow_worker_insight.insight.settings import Settings
from tests.benchmarks.methods import METHODS, flagged
from tests.benchmarks.results import Grid, Result, Target
from tests.benchmarks.simulation import (
    DAY,
    DAYS,
    HEALTHY,
    MAPPED,
    SICK,
    START,
    Fleet,
    Maker,
    Scenario,
    dag_of,
    small,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from airflow_worker_insight.insight.findings import Finding
    from tests.benchmarks.setting import Setting

OURS = "this method"
HEALTHY_FLEETS, SICK_FLEETS, ZONE_FLEETS = 30, 12, 8


@dataclass
class Measured:
    """What all methods found in one fleet."""

    scenario: str
    seed: int
    sick: int
    """Subjects to be found."""
    false: dict[str, int] = field(default_factory=dict)
    """Wrongly blamed subjects by method; each counts once."""
    found: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """By method, for each sick subject that was found: first tries on it until then, and hours."""
    told: bool | None = None
    """Whether a sick zone was told from a single worker, or the other way round; ``None``: there are no zones."""
    text: list[str] = field(default_factory=list)
    """False findings of this method, to look at."""
    seconds: float = 0.0


def events(fleet: Fleet) -> Iterator[Started | Ended]:
    """Return the starts and ends of a fleet's tries in the order of time."""
    with_zones = fleet.scenario.zones
    workers: dict[str, Worker] = {}
    times = [(each.started, 0, each) for each in fleet.tries] + [(each.ended, 1, each) for each in fleet.tries]
    for at, kind, each in sorted(times, key=lambda entry: (entry[0], entry[1], entry[2].key)):
        if at >= START + DAYS * DAY:
            return
        if kind:
            yield Ended(each.key, End(each.state), each.ended)
            continue
        worker = workers.get(each.worker)
        if worker is None:
            groups = {"zone": fleet.zone(each.worker)} if with_zones else {}
            worker = workers[each.worker] = Worker(each.worker, each.worker, groups)
        task = (dag_of(each.task), f"t{each.task}")
        yield Started(each.key, task, each.run, worker, each.started, each.try_number, each.is_mapped)


def detect(fleet: Fleet) -> Detector:
    """Run the detector over a fleet; it decides after every event."""
    detector = Detector(Settings(groups=("zone",) if fleet.scenario.zones else ()))
    detector.step(events(fleet), START + DAYS * DAY)
    return detector


def measure(job: tuple[Scenario, int, bool]) -> Measured:
    """Make one fleet and let all methods look at it.

    :param job: the scenario, the seed, and whether the other methods look too
    """
    scenario, seed, with_others = job
    fleet = Maker(scenario, seed).make()
    begin = time.process_time()
    detector = detect(fleet)
    seconds = time.process_time() - begin
    measured = Measured(scenario.name, seed, sick=scenario.sick or int(scenario.is_sick), seconds=seconds)
    _count_ours(fleet, detector.findings(), measured)
    if with_others:
        for method, blamed in flagged(fleet).items():
            _count_workers(fleet, method, blamed, measured)
    return measured


def _subjects(fleet: Fleet) -> set[tuple[str, str]]:
    if fleet.sick_zone:
        return {("zone", fleet.sick_zone)}
    if fleet.killer is not None:
        return {("task", f"{dag_of(fleet.killer)}.t{fleet.killer}")}
    return {("worker", worker) for worker in fleet.sick_workers}


def _count_ours(fleet: Fleet, findings: Sequence[Finding], measured: Measured) -> None:
    sick, first = _subjects(fleet), {}
    false: set[tuple[str, str]] = set()
    for finding in findings:
        subject = (finding.subject_kind if finding.subject_kind != "label" else finding.dimension, finding.subject)
        if subject in sick and finding.found_at >= fleet.sick_since:
            first.setdefault(subject, finding)
        elif not _is_in_sick_zone(fleet, finding):
            false.add(subject)
            measured.text.append(f"{subject} {finding.outcome} {(finding.found_at - START) / 3600:.0f} h")
    measured.false[OURS] = len(false)
    measured.found[OURS] = [_until(fleet, subject, finding.found_at) for subject, finding in first.items()]
    if fleet.scenario.zones:
        open_kinds = {finding.dimension for finding in findings if finding.end_reason != "part_of"}
        measured.told = open_kinds == ({"zone"} if fleet.sick_zone else {"worker"})


def _is_in_sick_zone(fleet: Fleet, finding: Finding) -> bool:
    is_worker = finding.subject_kind == "worker" and finding.found_at >= fleet.sick_since
    return is_worker and fleet.sick_zone is not None and fleet.zone(finding.subject) == fleet.sick_zone


def _count_workers(fleet: Fleet, method: str, blamed: dict[str, float], measured: Measured) -> None:
    sick = {worker for kind, worker in _subjects(fleet) if kind == "worker"}
    if fleet.sick_zone:
        sick = {each.worker for each in fleet.tries if fleet.zone(each.worker) == fleet.sick_zone}
    right = {worker for worker, at in blamed.items() if worker in sick and at >= fleet.sick_since}
    measured.false[method] = len(set(blamed) - right)
    if not fleet.sick_zone:
        measured.found[method] = [_until(fleet, ("worker", worker), blamed[worker]) for worker in right]


def _until(fleet: Fleet, subject: tuple[str, str], at: float) -> tuple[int, float]:
    kind, value = subject
    tries = sum(
        each.try_number == 1
        and fleet.sick_since <= each.started <= at
        and (
            each.worker == value
            if kind == "worker"
            else fleet.zone(each.worker) == value
            if kind == "zone"
            else f"{dag_of(each.task)}.t{each.task}" == value
        )
        for each in fleet.tries
    )
    return tries, (at - fleet.sick_since) / 3600


# --------------------------------------------------------------------------- recovery


def wrongly_well(excess: float, rate: float, runs: int, *, peers: float = 0.02, tries: int = 1500) -> float:
    """Return the share of workers that are declared well although they still fail too much.

    :param excess: that was found
    :param rate: how often they fail now
    :param tries: over how many tries, 50 a day
    """
    rng = random.Random(f"recovery {excess} {rate}")
    wrong = 0
    for _ in range(runs):
        recovery = Recovery(peers, excess)
        for number in range(1, tries + 1):
            failed = rng.random() < rate
            recovery.add(int(not failed), int(failed))
            if recovery.is_well:
                wrong += 1
                break
            if number % 50 == 0:
                recovery.end_day()
    return wrong / runs


def recoveries(runs: int, *, peers: float = 0.02) -> dict[str, tuple[float, float]]:
    """Return for each excess how often a worker is wrongly declared well at half of it and at all of it."""
    return {
        name: (
            wrongly_well(excess, peers + excess / 2, runs, peers=peers),
            wrongly_well(excess, peers + excess, runs, peers=peers),
        )
        for name, excess in (("failed all", 0.98), ("half", 0.48), ("20 %", 0.18), ("7 %", 0.05))
    }


# --------------------------------------------------------------------------- the benchmark


def jobs(*, quick: bool) -> list[tuple[Scenario, int, bool]]:
    """Return the fleets to make: each scenario with its seeds."""
    healthy, sick = (1, 1) if quick else (HEALTHY_FLEETS, SICK_FLEETS)
    listed = [(scenario, seed) for each in HEALTHY for scenario in (each, small(each)) for seed in range(healthy)]
    listed += [(MAPPED, seed) for seed in range(healthy)]
    for scenario in SICK:
        listed += [(scenario, seed) for seed in range(1 if quick else ZONE_FLEETS if scenario.zones else sick)]
    return [(scenario, seed, True) for scenario, seed in listed]


def run(setting: Setting) -> Result:
    """Measure all fleets, on all CPUs."""
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        measured = pool.map(measure, jobs(quick=setting.quick), chunksize=1)
    return report(measured, recoveries(setting.size(2000, 200)))


def report(measured: Iterable[Measured], recovery: dict[str, tuple[float, float]]) -> Result:
    """Make tables and targets of what was measured."""
    by_scenario: dict[str, list[Measured]] = defaultdict(list)
    for each in measured:
        by_scenario[each.scenario].append(each)
    healthy = {name: by_scenario[name] for each in HEALTHY for name in (each.name, small(each).name)}
    healthy = {name: fleets for name, fleets in healthy.items() if fleets}
    sick = {scenario.name: by_scenario[scenario.name] for scenario in SICK if by_scenario[scenario.name]}
    grids = [
        _healthy_grid({**healthy, MAPPED.name: by_scenario[MAPPED.name]}),
        _sick_grid(sick),
        Grid("Wrongly declared well (share of workers)", ["", "half the excess", "the full excess"]),
    ]
    for name, (half, full) in recovery.items():
        grids[-1].add(name, f"{half:.1%}", f"{full:.1%}")
    targets = [*_healthy_targets(healthy), *_sick_targets(sick)]
    targets += [
        Target("insight: wrongly well at half the excess", max(half for half, _ in recovery.values()) * 100, 6, "%"),
        Target("insight: wrongly well at the full excess", max(full for _, full in recovery.values()) * 100, 1, "%"),
    ]
    seconds = [each.seconds for fleets in by_scenario.values() for each in fleets]
    data = {
        "seconds of CPU a fleet": round(statistics.median(seconds), 2) if seconds else None,
        "recovery": recovery,
        "scenarios": {name: _summary(fleets) for name, fleets in by_scenario.items() if fleets},
    }
    return Result("insight", grids, targets, data, {})


def _alarm_rate(fleets: Sequence[Measured], method: str) -> float:
    return sum(each.false.get(method, 0) > 0 for each in fleets) / len(fleets) if fleets else math.inf


def _healthy_grid(healthy: dict[str, list[Measured]]) -> Grid:
    grid = Grid("Healthy fleets with a false alarm", ["", "fleets", OURS, *METHODS])
    for name, fleets in healthy.items():
        if fleets:
            grid.add(name, len(fleets), *(f"{_alarm_rate(fleets, method):.0%}" for method in (OURS, *METHODS)))
    return grid


def _reached(fleets: Sequence[Measured], method: str) -> tuple[float, float, float]:
    """Return recall, and the medians of tries and of hours until found."""
    found = [each for fleet in fleets for each in fleet.found.get(method, [])]
    sick = sum(fleet.sick for fleet in fleets)
    if not found:
        return 0.0, math.inf, math.inf
    return (
        len(found) / sick,
        statistics.median(tries for tries, _ in found),
        statistics.median(hours for _, hours in found),
    )


def _sick_grid(sick: dict[str, list[Measured]]) -> Grid:
    grid = Grid(
        "Sick fleets: recall, first tries until found (median), fleets with a false alarm",
        ["", "fleets", OURS, "hours", *METHODS],
    )
    for name, fleets in sick.items():
        cells = []
        for method in (OURS, *METHODS):
            recall, tries, _ = _reached(fleets, method)
            cells.append(f"{recall:.2f}, {tries:.0f}, {_alarm_rate(fleets, method):.0%}")
        grid.add(name, len(fleets), cells[0], f"{_reached(fleets, OURS)[2]:.1f}", *cells[1:])
    return grid


def _healthy_targets(healthy: dict[str, list[Measured]]) -> list[Target]:
    every = [each for fleets in healthy.values() for each in fleets]
    worst = max((_alarm_rate(fleets, OURS) for fleets in healthy.values()), default=math.inf)
    return [
        Target(f"insight: healthy fleets with a false alarm, of {len(every)}", _alarm_rate(every, OURS) * 100, 3, "%"),
        Target("insight: the worst healthy scenario", worst * 100, 10, "%"),
    ]


AT_MOST_TRIES = {
    "fails all": 12,
    "fails all, 5 workers": 15,
    "+50": 20,
    "+20": 60,
    "+20, queues and incidents": 70,
    "+5": 400,
    "three fail all": 15,
    "slow x2": 100,
    "slow x1.3": 350,
}
LEAST_RECALL = {"one Dag +50": 0.85}


def _sick_targets(sick: dict[str, list[Measured]]) -> list[Target]:
    targets = []
    for name, fleets in sick.items():
        recall, tries, _ = _reached(fleets, OURS)
        missed = (1 - LEAST_RECALL.get(name, 1.0)) * 100
        targets.append(Target(f"insight: {name}, not found", (1 - recall) * 100, round(missed, 1), "%"))
        if name in AT_MOST_TRIES:
            targets.append(Target(f"insight: {name}, tries until found (median)", tries, AT_MOST_TRIES[name], "tries"))
        if fleets[0].told is not None:
            not_told = sum(not each.told for each in fleets) / len(fleets) * 100
            targets.append(Target(f"insight: {name}, worker and zone confused", not_told, 12.5, "%"))
        if name.startswith("takes"):
            targets.append(Target(f"insight: {name}, hours until found (median)", _reached(fleets, OURS)[2], 1, "h"))
    every = [each for fleets in sick.values() for each in fleets]
    false = sum(each.false[OURS] for each in every)
    right = sum(len(each.found[OURS]) for each in every)
    if every:
        share = false / max(false + right, 1) * 100
        targets.append(Target("insight: false among all findings in sick fleets", share, 5, "%"))
    return targets


def _summary(fleets: Sequence[Measured]) -> dict[str, object]:
    return {
        "fleets": len(fleets),
        "methods": {
            method: {
                "false alarms": round(_alarm_rate(fleets, method), 4),
                "recall": round(_reached(fleets, method)[0], 4),
                "tries": _reached(fleets, method)[1] if math.isfinite(_reached(fleets, method)[1]) else None,
                "hours": round(_reached(fleets, method)[2], 2) if math.isfinite(_reached(fleets, method)[2]) else None,
            }
            for method in (OURS, *METHODS)
        },
        "told": sum(bool(each.told) for each in fleets),
        "false findings": [f"{each.seed}: {text}" for each in fleets for text in each.text],
    }
