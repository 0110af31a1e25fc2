"""Separate failures: two failures of a unit count both only if another unit did well in between.

Between the starts of two failures of one unit, another unit must have started a try that has not failed so far.
Otherwise the later failure is dropped from its block: it may be the same outage. A worker that takes the next few
tries, whatever they are, would else be blamed for what fails everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_worker_insight.insight.blocks import EXCLUDED, FAILED, LOST, RUNNING, Try

if TYPE_CHECKING:
    from collections.abc import Iterator


class Timeline:
    """The latest counted tries of the whole fleet in the order of their starts.

    :param size: how many :meth:`forget_surplus` keeps; a failure whose predecessors are forgotten counts as separate
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.first: Try | None = None
        self.last: Try | None = None
        self.length = 0

    def __iter__(self) -> Iterator[Try]:
        """Return the tries, the earliest start first."""
        current = self.first
        while current is not None:
            yield current
            current = current.after

    def insert(self, added: Try) -> None:
        """Insert a try by its start."""
        before = self.last
        while before is not None and before.order > added.order:
            before = before.before
        after = self.first if before is None else before.after
        added.before, added.after, added.is_on_timeline = before, after, True
        if before is None:
            self.first = added
        else:
            before.after = added
        if after is None:
            self.last = added
        else:
            after.before = added
        self.length += 1

    def forget_surplus(self) -> None:
        """Forget the oldest tries if there are too many."""
        while self.length > self.size:
            self._forget_first()

    def forget_before(self, oldest: int) -> None:
        """Forget the tries that started before a time in milliseconds."""
        while self.first is not None and self.first.started < oldest:
            self._forget_first()

    def append(self, added: Try) -> None:
        """Add the next try of a stored timeline."""
        added.before, added.after, added.is_on_timeline = self.last, None, True
        if self.last is None:
            self.first = added
        else:
            self.last.after = added
        self.last = added
        self.length += 1

    def _forget_first(self) -> None:
        oldest = self.first
        assert oldest is not None
        self.first = oldest.after
        if self.first is None:
            self.last = None
        else:
            self.first.before = None
        oldest.before = oldest.after = None
        oldest.is_on_timeline = False
        self.length -= 1


def has_failed(status: int, failing: int) -> bool:
    """Return whether a try is no sign that its unit does well.

    :param failing: :data:`.FAILED`, for which lost tries are no good sign either, or :data:`.LOST`
    """
    return status in {failing, EXCLUDED} or (failing == FAILED and status == LOST)


def is_separate(failure: Try, dimension: int, failing: int) -> bool:
    """Return whether another unit did well between a failure and the failure of the same unit before it."""
    unit = failure.values[dimension]
    before = failure.before
    while before is not None:
        if before.values[dimension] == unit:
            if before.status == failing:
                return False
        elif not has_failed(before.status, failing):
            return True
        before = before.before
    return True


def is_settled(failure: Try, dimension: int, failing: int) -> bool:
    """Return whether no try that runs can change, when it ends, if a failure is separate."""
    unit = failure.values[dimension]
    own_runs = others_run = False
    before = failure.before
    while before is not None and not (own_runs and others_run):
        is_own = before.values[dimension] == unit
        if before.status == RUNNING:
            own_runs, others_run = own_runs or is_own, others_run or not is_own
        elif is_own:
            if before.status == failing:
                # Not separate, unless one of the others that run does well.
                return not others_run
        elif not has_failed(before.status, failing):
            break
        before = before.before
    # Separate, unless one of its own that run fails.
    return not own_runs


def depending_on(changed: Try, dimension: int, failing: int) -> list[Try]:
    """Return the later failures that may be separate, or not, because of a try.

    Those are failures between which and the try no other unit did well and the same unit did not fail.
    """
    found: list[Try] = []
    failed_units: set[str | None] = set()
    well: str | None = None
    is_one_well = False
    after = changed.after
    while after is not None:
        unit = after.values[dimension]
        if after.status == failing:
            if unit not in failed_units and (not is_one_well or unit == well):
                found.append(after)
            failed_units.add(unit)
            if is_one_well and unit == well:
                break
        elif not has_failed(after.status, failing):
            if is_one_well and unit != well:
                break
            # From here on only this unit's own failures are not separated by it.
            well, is_one_well = unit, True
            if unit in failed_units:
                break
        after = after.after
    return found
