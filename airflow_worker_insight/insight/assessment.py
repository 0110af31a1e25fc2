"""What can be said of a unit now, whether or not anything was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.insight.blocks import FAILED, judge
from airflow_worker_insight.insight.findings import Share
from airflow_worker_insight.insight.lanes import TASK, WORKER
from airflow_worker_insight.insight.sentences import (
    NOT_ENOUGH_BELOW,
    cannot_be_told_text,
    not_enough_text,
    nothing_found_text,
    title,
)
from airflow_worker_insight.insight.units import NAMES, PARTS, Sums

if TYPE_CHECKING:
    from airflow_worker_insight.insight.detector import Detector
    from airflow_worker_insight.insight.findings import Finding

FOUND, NOTHING, NOT_ENOUGH, CANNOT_BE_TOLD = "found", "nothing_found", "not_enough", "cannot_be_told"


@dataclass(frozen=True, slots=True)
class Assessment:
    """What can be said of a unit by the tries of the last 30 days that a peer's can be compared with.

    ``expected`` are the failures that its peers would have had in its place.
    """

    status: str
    """:data:`FOUND`, :data:`NOTHING`, :data:`NOT_ENOUGH` or :data:`CANNOT_BE_TOLD`."""
    evidence: float
    needed: float
    tries: int
    failures: int
    expected: float
    text: str
    finding: Finding | None = None


def assess(detector: Detector, dimension: str, unit: str, outcome: str = "failed") -> Assessment:
    """Return what can be said of a unit.

    :param dimension: ``worker``, ``name``, ``task`` or the key of a group
    :param unit: a worker ID, a name, ``dag_id/task_id``, or a group's value
    :param outcome: ``failed``, ``lost`` or ``slow``
    """
    lane = next(lane for lane in detector.lanes if lane.name == dimension and NAMES[lane.outcome] == outcome)
    total = Sums()
    for sums in detector.sums(lane, unit).values():
        total.add(sums)
    known = lane.units.get(unit)
    finding = next(
        (
            each
            for each in detector.open_findings()
            if each.outcome == outcome and each.dimension == dimension and each.unit == unit
        ),
        None,
    )
    expected = total.expected / PARTS
    ref = detector.population.workers.get(unit) if dimension == WORKER else None
    name = ref.name if ref else unit
    if finding is not None:
        status, text = FOUND, title(finding)
    elif not total.tries and _has_run(detector, lane.dimension, unit, is_task=dimension == TASK):
        status, text = CANNOT_BE_TOLD, cannot_be_told_text()
    elif total.tries < NOT_ENOUGH_BELOW:
        status, text = NOT_ENOUGH, not_enough_text(total.tries)
    else:
        status, text = NOTHING, nothing_found_text(name, total.tries, total.failures, expected)
    evidence = known.evidence if known else 1.0
    return Assessment(status, evidence, lane.needed, total.tries, total.failures, expected, text, finding)


def _has_run(detector: Detector, dimension: int, unit: str, *, is_task: bool) -> bool:
    if is_task:
        return any(key[0] == TASK and "/".join(key[1:]) == unit for key in detector.strata)
    seen = detector.population.seen[dimension].get(unit)
    return seen is not None and seen.tries >= NOT_ENOUGH_BELOW


def task_share(detector: Detector, name: str, task: tuple[str, str]) -> Share:
    """Return a worker's part of the latest tries of a task, those of open blocks: see :func:`.sentences.task_text`.

    :param name: of the worker; all its instances count
    """
    stratum = detector.strata.get((TASK, *task))
    own, others = [0, 0], [0, 0]
    for each, failed in judge(stratum.tries, 0, FAILED) if stratum else ():
        side = own if each.worker.name == name else others
        side[0] += 1
        side[1] += failed
    excess = own[1] - own[0] * others[1] / others[0] if others[0] else 0.0
    return Share(task, own[0], own[1], others[0], others[1], excess)
