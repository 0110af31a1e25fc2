"""Turn recorded tries into events of the detector: pure functions, no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_worker_insight.domain.tries import TryOutcome
from airflow_worker_insight.insight.blocks import FAILED, judge
from airflow_worker_insight.insight.events import End, Ended, Started, Worker
from airflow_worker_insight.insight.lanes import TASK

if TYPE_CHECKING:
    from airflow_worker_insight.domain.keys import RowKey
    from airflow_worker_insight.domain.tries import AnalyzedTry, TryWorker
    from airflow_worker_insight.insight.detector import Detector

_ENDS = {
    TryOutcome.SUCCESS: End.SUCCESS,
    TryOutcome.FAILED: End.FAILED,
    TryOutcome.LOST: End.LOST,
    TryOutcome.OTHER: End.EXCLUDED,
}

_ODD = 0x9E3779B97F4A7C15
"""Odd, so that multiples of it modulo 2⁶⁴ differ for each try number."""


def event_key(row_key: RowKey) -> int:
    """Return the detector's key of a try: on 2.11 all tries of a task instance share the second part of ours."""
    _, instance, try_number = row_key
    return (instance + (try_number - 1) * _ODD + 2**63) % 2**64 - 2**63


def started(each: AnalyzedTry) -> Started:
    """Return the start of a try."""
    return Started(
        key=event_key(each.row_key),
        task=(each.key.dag_id, each.key.task_id),
        run=each.row_key[0],
        worker=_worker(each.worker),
        started_at=each.started_at.timestamp(),
        try_number=each.key.try_number,
        is_mapped=each.key.map_index >= 0,
    )


def ended(each: AnalyzedTry) -> Ended:
    """Return the end of a try that has an outcome and a time of its end."""
    assert each.outcome is not None
    assert each.ended_at is not None
    return Ended(event_key(each.row_key), _ENDS[each.outcome], each.ended_at.timestamp())


def _worker(worker: TryWorker) -> Worker:
    groups = {
        "host": worker.hostname,
        "node": worker.node,
        "zone": worker.labels.get("zone"),
        "image": worker.image,
    }
    return Worker(
        worker_id=worker.worker_id,
        name=worker.name,
        groups={key: value for key, value in groups.items() if value},
        is_single_try=worker.is_single_try,
    )


class PeerRates:
    """Failure rates of tasks on a worker's peers, in the latest tries that the detector has.

    A task's tries are counted once, so keep an object for one step only.
    """

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._counts: dict[tuple[str, str], dict[str, list[int]]] = {}

    def rate(self, name: str, task: tuple[str, str]) -> float:
        """Return the share of failures on other workers, 0 to 1; 0 if no other worker ran the task lately.

        :param name: of the worker; all its instances count as itself
        """
        counts = self._counts.get(task)
        if counts is None:
            counts = self._counts[task] = self._count(task)
        tries, failures = counts[_ALL]
        own_tries, own_failures = counts.get(name, (0, 0))
        return (failures - own_failures) / (tries - own_tries) if tries > own_tries else 0.0

    def _count(self, task: tuple[str, str]) -> dict[str, list[int]]:
        counts: dict[str, list[int]] = {_ALL: [0, 0]}
        stratum = self._detector.strata.get((TASK, *task))
        for each, has_failed in judge(stratum.tries, 0, FAILED) if stratum else ():
            for name in (_ALL, each.worker.name):
                own = counts.setdefault(name, [0, 0])
                own[0] += 1
                own[1] += has_failed
        return counts


_ALL = "\0"
"""Stands for all workers: no worker has this name."""
