"""Who is there to be tested: workers, their groups, and how many of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.insight.blocks import WorkerRef
from airflow_worker_insight.insight.units import WINDOW

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from airflow_worker_insight.insight.events import Worker

LEAST_TRIES = 3
"""Tries from which a unit is tested: with fewer it cannot reach the effect floor."""


@dataclass(slots=True)
class Seen:
    """How often and when last a unit has run a try, and whether it has several members.

    Only a group of several members can be found. It is judged from the first midnight on at which it has them.
    """

    tries: int
    last_day: int
    first_member: str
    has_several: bool
    is_judged: bool

    def is_tested(self, *, is_group: bool) -> bool:
        """Return whether the unit can be found. A group of one member cannot: without it nothing is left."""
        return self.tries >= LEAST_TRIES and (self.is_judged or not is_group)


class Population:
    """The workers seen in the last 30 days and the units that they belong to.

    :param groups: keys of the groups that are judged
    :param touched: collects the keys of what changes, as :func:`.state.changes` stores it
    """

    def __init__(self, groups: Sequence[str], touched: set[tuple[str, ...]]) -> None:
        self._groups = tuple(groups)
        self.touched = touched
        self.workers: dict[str, WorkerRef] = {}
        self.seen: list[dict[str, Seen]] = [{} for _ in range(len(self._groups) + 2)]
        self.tested = 0
        """Units that can be found now; times outcomes they are K."""
        self.last_index = 0
        """Number of the worker seen last; numbers are not used again."""

    def worker(self, worker: Worker, day: int) -> tuple[WorkerRef, bool]:
        """Return what is known of a worker, and whether it is new."""
        known = self.workers.get(worker.worker_id)
        if known is not None:
            if day > known.last_day:
                known.last_day = day
                self.touched.add(("worker", worker.worker_id))
            return known, False
        groups = tuple(worker.groups.get(key) for key in self._groups)
        own = (None, None) if worker.is_single_try else (worker.worker_id, worker.name)
        self.last_index += 1
        ref = WorkerRef(self.last_index, worker.name, (*own, *groups), day)
        self.workers[worker.worker_id] = ref
        self.touched.add(("worker", worker.worker_id))
        return ref, True

    def add_try(self, worker: WorkerRef, day: int) -> bool:
        """Count a try for each unit that its worker belongs to, and return whether the number tested changed."""
        before = self.tested
        for dimension, value in enumerate(worker.values):
            if value is None:
                continue
            self.touched.add(("seen", str(dimension), value))
            member = worker.member(dimension)
            known = self.seen[dimension].get(value)
            if known is None:
                self.seen[dimension][value] = Seen(1, day, member, has_several=False, is_judged=False)
                continue
            was_tested = known.is_tested(is_group=dimension > 0)
            known.tries += 1
            known.last_day = max(known.last_day, day)
            known.has_several = known.has_several or member != known.first_member
            self.tested += known.is_tested(is_group=dimension > 0) - was_tested
        return self.tested != before

    def end_day(self, today: int, kept: AbstractSet[int]) -> bool:
        """Forget who has not been seen for 30 days.

        :param kept: indices of workers whose tries are still needed
        :return: whether more groups are judged from now on
        """
        are_more = False
        for dimension, of_dimension in enumerate(self.seen):
            for value in [value for value, known in of_dimension.items() if known.last_day <= today - WINDOW]:
                del of_dimension[value]
                self.touched.add(("seen", str(dimension), value))
            for value, known in of_dimension.items():
                if known.has_several and not known.is_judged:
                    known.is_judged = are_more = True
                    self.touched.add(("seen", str(dimension), value))
        for worker_id, ref in list(self.workers.items()):
            if ref.last_day <= today - WINDOW and ref.index not in kept:
                del self.workers[worker_id]
                self.touched.add(("worker", worker_id))
        self.count()
        return are_more

    def judged(self, dimension: int) -> set[str]:
        """Return the groups of a dimension that are judged."""
        return {value for value, known in self.seen[dimension].items() if known.is_judged}

    def count(self) -> None:
        """Count the units that can be found."""
        self.tested = sum(
            known.is_tested(is_group=dimension > 0)
            for dimension, of_dimension in enumerate(self.seen)
            for known in of_dimension.values()
        )

    def dimension(self, group: str) -> int:
        """Return the position of a group's key among the values of a worker."""
        return self._groups.index(group) + 2

    def members(self, dimension: int, value: str) -> set[str]:
        """Return the worker IDs of a unit."""
        return {key for key, ref in self.workers.items() if ref.values[dimension] == value}

    def instances(self, name: str) -> set[str]:
        """Return the worker IDs under a name."""
        return {key for key, ref in self.workers.items() if ref.name == name}

    def rows(self) -> Iterator[tuple[str, WorkerRef]]:
        """Return the workers with their IDs."""
        return iter(self.workers.items())
