"""Which subject is named: a worker, its host, its zone, and what belongs to a finding.

A group is named only if it is found without its worst worker too; then its workers are not named beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from airflow_worker_insight.insight.lanes import NAME, TASK, WORKER, Contribution, Lane
from airflow_worker_insight.insight.units import FLOORS, NAMES, Sums

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_worker_insight.insight.blocks import Try, WorkerRef
    from airflow_worker_insight.insight.detector import Detector
    from airflow_worker_insight.insight.findings import Finding
    from airflow_worker_insight.insight.population import Population

Given: TypeAlias = "Contribution | None"


def members_of(population: Population, lane: Lane, value: str) -> set[str]:
    """Return the worker IDs that a finding about a unit would concern: of a worker, all instances of its name."""
    if lane.name == WORKER:
        ref = population.workers.get(value)
        return population.instances(ref.name) if ref else {value}
    return population.members(lane.dimension, value)


def workers_of(population: Population, finding: Finding) -> set[str]:
    """Return the worker IDs that a finding concerns; a finding about a task concerns none."""
    if finding.dimension == TASK:
        return set()
    if finding.dimension in {WORKER, NAME}:
        return population.instances(finding.subject)
    dimension = population.dimension(finding.dimension)
    return population.members(dimension, finding.unit)


def is_said(detector: Detector, lane: Lane, value: str) -> bool:
    """Return whether an open finding concerns all workers of a unit."""
    said = [each for each in detector.open_findings() if each.outcome == NAMES[lane.outcome]]
    if lane.name == TASK:
        return any(each.dimension == TASK and each.unit == value for each in said)
    said = [each for each in said if each.dimension != TASK]
    if not said:
        return False
    ref = detector.population.workers.get(value) if lane.name == WORKER else None
    if ref is not None:
        return any(_is_of(detector.population, finding, ref) for finding in said)
    members = members_of(detector.population, lane, value)
    return any(members <= workers_of(detector.population, finding) for finding in said)


def _is_of(population: Population, finding: Finding, ref: WorkerRef) -> bool:
    if finding.dimension in {WORKER, NAME}:
        return ref.name == finding.subject
    return ref.values[population.dimension(finding.dimension)] == finding.unit


def replaced(detector: Detector, lane: Lane, value: str, first_day: int) -> list[Finding] | None:
    """Return the open findings that a new one replaces, ``None`` if they say it better.

    A group that contains the subjects of open findings is named only if the rest of it fails too much as well.
    """
    if lane.name == TASK:
        return []
    members = members_of(detector.population, lane, value)
    inner: list[Finding] = []
    found: set[str] = set()
    for finding in detector.open_findings():
        if finding.outcome != NAMES[lane.outcome] or finding.dimension == TASK:
            continue
        theirs = workers_of(detector.population, finding)
        if theirs <= members:
            inner.append(finding)
            found |= theirs
    if not inner or _rest_fails(detector, lane.outcome, members - found, first_day):
        return inner
    return None


def _rest_fails(detector: Detector, outcome: int, worker_ids: set[str], first_day: int) -> bool:
    lane = next(lane for lane in detector.lanes if lane.name == WORKER and lane.outcome == outcome)
    total = Sums()
    for worker_id in sorted(worker_ids):
        for day, sums in detector.sums(lane, worker_id).items():
            if day >= first_day:
                total.add(sums)
    # Pods of one try have no sums of their own.
    return not total.tries or FLOORS[outcome].allows(total)


def units_within(detector: Detector, finding: Finding) -> Iterator[tuple[Lane, str]]:
    """Return the units all of whose workers a finding concerns, itself included."""
    theirs = workers_of(detector.population, finding)
    for lane in detector.lanes:
        if NAMES[lane.outcome] != finding.outcome:
            continue
        if TASK in {lane.name, finding.dimension}:
            if lane.name == finding.dimension and finding.unit in lane.units:
                yield lane, finding.unit
            continue
        members: dict[str, bool] = {}
        for worker_id, ref in detector.population.rows():
            value = ref.values[lane.dimension]
            if value is not None:
                members[value] = members.get(value, True) and worker_id in theirs
        for value, is_within in members.items():
            if is_within and value in lane.units:
                yield lane, value


def concerns(detector: Detector, finding: Finding, ended: Try) -> bool:
    """Return whether a try tells if the subject of a finding is well again: it started later, there, in its scope."""
    if ended.started < finding.found_at * 1000 or ended.task[: len(finding.scope)] != finding.scope:
        return False
    if finding.dimension in {WORKER, NAME}:
        return ended.worker.name == finding.subject
    return ended.values[detector.lane_of(finding).dimension] == finding.unit
