"""Sum up tries that have ended by hour, worker, queue and task. No I/O."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.statistics import Deltas, Sums, hour_of, split_hours, unit_of
from airflow_worker_insight.domain.tries import TryOutcome

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_worker_insight.domain.tries import AnalyzedTry, TryWorker


class Rollup:
    """Collects tries until :meth:`take`."""

    def __init__(self) -> None:
        self._deltas = _empty()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added since the last :meth:`take`."""
        return not (self._deltas.units or self._deltas.queues or self._deltas.tasks)

    def add(self, each: AnalyzedTry, *, expected_failure: float) -> None:
        """Add a try.

        Its seconds count in the hours that it ran in, all else in the hour in which it ended. Of a try whose outcome is
        :attr:`.TryOutcome.OTHER` only the seconds count. Times that contradict each other count as 0 seconds.

        :param expected_failure: how likely a try of its task fails, from 0 to 1
        :raises ValueError: if the try has not ended
        """
        if each.outcome is None or each.ended_at is None:
            raise ValueError(f"{each.key} has not ended")
        for hour, seconds in split_hours(each.started_at, each.ended_at):
            for sums in self._sums_of(each, hour):
                sums.busy_seconds += seconds
        if each.outcome == TryOutcome.OTHER:
            return
        duration = max(0.0, (each.ended_at - each.started_at).total_seconds())
        for sums in self._sums_of(each, hour_of(each.ended_at)):
            sums.tries += 1
            sums.failed += each.outcome == TryOutcome.FAILED
            sums.lost += each.outcome == TryOutcome.LOST
            sums.expected_failed += expected_failure
            sums.duration_seconds += duration
            if each.queued_at is not None:
                sums.queued_tries += 1
                sums.queue_seconds += max(0.0, (each.started_at - each.queued_at).total_seconds())

    def add_slots(self, worker: TryWorker, concurrency: int, since: datetime, until: datetime) -> None:
        """Add the slots that a worker had while it was online.

        :param concurrency: the number of its slots
        """
        for hour, seconds in split_hours(since, until):
            sums = self._deltas.units[hour, unit_of(worker)]
            sums.slot_seconds = (sums.slot_seconds or 0.0) + concurrency * seconds

    def take(self) -> Deltas:
        """Return what was added since the last call, and forget it."""
        deltas, self._deltas = self._deltas, _empty()
        return deltas

    def _sums_of(self, each: AnalyzedTry, hour: int) -> tuple[Sums, Sums, Sums]:
        return (
            self._deltas.units[hour, unit_of(each.worker)],
            self._deltas.queues[hour, each.queue or ""],
            self._deltas.tasks[hour, each.key.dag_id, each.key.task_id],
        )


def _empty() -> Deltas:
    return Deltas(defaultdict(Sums), defaultdict(Sums), defaultdict(Sums))
