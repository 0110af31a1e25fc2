"""Lanes: one question each, such as *which host fails?*, with the units that it is asked about."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_worker_insight.insight import evidence
from airflow_worker_insight.insight.blocks import count
from airflow_worker_insight.insight.units import LOST_OUTCOME, SLOW, Unit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from airflow_worker_insight.insight.blocks import Judged, Stratum
    from airflow_worker_insight.insight.events import TaskId
    from airflow_worker_insight.insight.evidence import Logs

WORKER, NAME = "worker", "name"
"""Dimensions of an instance, and of a name across its instances."""

TASK = "task"
"""Dimension of tasks, and kind of the strata in which workers are compared."""

Contribution = dict[tuple[str, "str | None"], "Logs"]


@dataclass(slots=True)
class Lane:
    """One dimension and one outcome.

    :param number: position, and the bit of dropped failures
    :param dimension: position among the values of a try
    :param name: of the dimension: ``worker``, ``name``, ``task`` or the key of a group
    :param outcome: :data:`.units.FAILED`, :data:`.units.LOST_OUTCOME` or :data:`.units.SLOW`
    """

    number: int
    dimension: int
    name: str
    outcome: int
    units: dict[str, Unit] = field(default_factory=dict)
    judged: set[str] | None = None
    """The groups that are judged, ``None``: all units, because they are no groups."""
    needed: float = 40.0
    """Evidence from which a unit is found: 2K/α."""
    threshold: int = 0
    """The same as a logarithm, minus what the mean over the odds can hide."""

    @property
    def odds(self) -> tuple[float, ...]:
        """Odds ratios that are tested."""
        return evidence.SLOW_ODDS if self.outcome == SLOW else evidence.ODDS

    @property
    def is_active(self) -> bool:
        """Whether any unit is judged."""
        return self.judged is None or bool(self.judged)

    @property
    def is_group(self) -> bool:
        """Whether its units have members, so that the worst can be left out."""
        return self.name not in {WORKER, TASK}

    @property
    def stratum_kind(self) -> str:
        """Kind of the strata in which its units are compared."""
        return WORKER if self.name == TASK else TASK

    def unit(self, value: str) -> Unit:
        """Return a unit, a new one if it has said nothing so far."""
        unit = self.units.get(value)
        if unit is None:
            unit = self.units[value] = Unit()
        return unit

    def judges(self, value: str) -> bool:
        """Return whether a unit is judged."""
        return self.judged is None or value in self.judged

    def need(self, units: int, alpha: float) -> None:
        """Set how much evidence a finding needs.

        :param units: K, the number of units tested
        :param alpha: chance of any false finding in 30 days
        """
        self.needed = 2 * max(units, 1) / alpha
        # The mean over the odds ratios reaches what is needed only if one of them does.
        self.threshold = math.floor(math.log(self.needed) * evidence.SCALE)

    def is_strong(self, unit: Unit) -> bool:
        """Return whether a unit may have enough evidence to be found."""
        return max(unit.logs) >= self.threshold

    def strong(self) -> list[str]:
        """Return the units that may have enough evidence to be found."""
        return [value for value, unit in self.units.items() if self.is_strong(unit)]

    def replace(self, old: Contribution | None, new: Contribution | None) -> list[str]:
        """Replace what a block contributes and return the units with enough evidence now."""
        old, new = old or {}, new or {}
        reached = []
        for key in {**old, **new}:
            before, after = old.get(key), new.get(key)
            if before == after:
                continue
            value, member = key
            unit = self.unit(value)
            unit.replace(member, before, after)
            if member is None and self.is_strong(unit):
                reached.append(value)
        return reached


def make_lanes(groups: Sequence[str]) -> list[Lane]:
    """Return the lanes of workers, of their groups, and of tasks that kill workers."""
    dimensions = (WORKER, NAME, *groups)
    lanes = [
        Lane(dimension * 3 + outcome, dimension, name, outcome)
        for dimension, name in enumerate(dimensions)
        for outcome in range(3)
    ]
    lanes.append(Lane(len(lanes), len(dimensions), TASK, LOST_OUTCOME))
    return lanes


def contribution(lane: Lane, judged: Judged) -> Contribution | None:
    """Return what a block says of the units of a lane; ``None``: nothing.

    For groups it also has what is added if a member is left out: all its tries are taken out of the block.
    """
    counts = count(judged, lane.dimension, with_members=lane.is_group)
    number, failures, odds = counts.tries, counts.failures, lane.odds
    if not failures:
        return None
    found: Contribution = {}
    for value, (own_tries, own_failures) in counts.units.items():
        if own_tries < number and lane.judges(value):
            found[value, None] = evidence.block_evidence(number, failures, own_tries, own_failures, odds)
    for (value, member), (tries, failed) in counts.members.items():
        whole = found.get((value, None))
        if whole is not None:
            own_tries, own_failures = counts.units[value]
            left = evidence.block_evidence(
                number - tries, failures - failed, own_tries - tries, own_failures - failed, odds
            )
            found[value, member] = tuple(part - log for part, log in zip(left, whole, strict=True))
    return found or None


def task_unit(task: TaskId) -> str:
    """Return the unit of a task: ``dag_id/task_id``. IDs may have dots, but no slash."""
    return "/".join(task)


def lanes_of(lanes: Iterable[Lane], stratum: Stratum) -> list[Lane]:
    """Return the lanes whose units are compared in a stratum."""
    return [lane for lane in lanes if lane.stratum_kind == stratum.kind]
