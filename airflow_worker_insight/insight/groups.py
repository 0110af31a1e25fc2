"""Which subject is named: a worker, its host, its zone, and what belongs to a finding.

A group is named only if it is found without its worst worker too; then its workers are not named beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

from airflow_worker_insight.insight.lanes import NAME, TASK, WORKER, Contribution, Lane
from airflow_worker_insight.insight.units import FLOORS, NAMES, Sums

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_worker_insight.insight.blocks import Try, WorkerRef
    from airflow_worker_insight.insight.findings import Finding
    from airflow_worker_insight.insight.population import Population


class Known(Protocol):
    """The parts of the detector that decide who is named."""

    lanes: list[Lane]
    population: Population

    def open_findings(self) -> list[Finding]:
        """Return the findings that have not ended."""

    def lane_of(self, finding: Finding) -> Lane:
        """Return the lane in which something was found."""

    def sums(self, lane: Lane, *values: str) -> dict[int, Sums]:
        """Return the counts by day of units together."""


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


def is_said(known: Known, lane: Lane, value: str) -> bool:
    """Return whether an open finding concerns all workers of a unit."""
    said = [each for each in known.open_findings() if each.outcome == NAMES[lane.outcome]]
    if lane.name == TASK:
        return any(each.dimension == TASK and each.unit == value for each in said)
    said = [each for each in said if each.dimension != TASK]
    if not said:
        return False
    ref = known.population.workers.get(value) if lane.name == WORKER else None
    if ref is not None:
        return any(_is_of(known.population, finding, ref) for finding in said)
    members = members_of(known.population, lane, value)
    return any(members <= workers_of(known.population, finding) for finding in said)


def _is_of(population: Population, finding: Finding, ref: WorkerRef) -> bool:
    if finding.dimension in {WORKER, NAME}:
        return ref.name == finding.subject
    return ref.values[population.dimension(finding.dimension)] == finding.unit


def replaced(known: Known, lane: Lane, value: str, first_day: int) -> list[Finding] | None:
    """Return the open findings that a new one replaces, ``None`` if they say it better.

    A group that contains the subjects of open findings is named only if the rest of it fails too much as well.
    """
    if lane.name == TASK:
        return []
    members = members_of(known.population, lane, value)
    inner: list[Finding] = []
    found: set[str] = set()
    for finding in known.open_findings():
        if finding.outcome != NAMES[lane.outcome] or finding.dimension == TASK:
            continue
        theirs = workers_of(known.population, finding)
        if theirs <= members:
            inner.append(finding)
            found |= theirs
    if not inner or _rest_fails(known, lane.outcome, members - found, first_day):
        return inner
    return None


def _rest_fails(known: Known, outcome: int, worker_ids: set[str], first_day: int) -> bool:
    lane = next(lane for lane in known.lanes if lane.name == WORKER and lane.outcome == outcome)
    total = Sums()
    for day, sums in known.sums(lane, *sorted(worker_ids)).items():
        if day >= first_day:
            total.add(sums)
    # Pods of one try have no sums of their own.
    return not total.tries or FLOORS[outcome].allows(total)


def units_within(known: Known, finding: Finding) -> Iterator[tuple[Lane, str]]:
    """Return the units all of whose workers a finding concerns, itself included."""
    theirs = workers_of(known.population, finding)
    for lane in known.lanes:
        if NAMES[lane.outcome] != finding.outcome:
            continue
        if TASK in {lane.name, finding.dimension}:
            if lane.name == finding.dimension and finding.unit in lane.units:
                yield lane, finding.unit
            continue
        members: dict[str, bool] = {}
        for worker_id, ref in known.population.rows():
            value = ref.values[lane.dimension]
            if value is not None:
                members[value] = members.get(value, True) and worker_id in theirs
        for value, is_within in members.items():
            if is_within and value in lane.units:
                yield lane, value


def concerns(known: Known, finding: Finding, ended: Try) -> bool:
    """Return whether a try tells if the subject of a finding is well again: it started later, there, in its scope."""
    if ended.started < finding.found_at * 1000 or ended.task[: len(finding.scope)] != finding.scope:
        return False
    if finding.dimension in {WORKER, NAME}:
        return ended.worker.name == finding.subject and ended.worker.index >= finding.first_instance
    return ended.values[known.lane_of(finding).dimension] == finding.unit
