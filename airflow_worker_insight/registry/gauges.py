"""Emit the gauges of the fleet and of findings to Airflow's stats, in the process that has just polled."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from airflow_worker_insight import config, metrics
from airflow_worker_insight.store import findings, session
from airflow_worker_insight.store.workers import counts as worker_counts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log = logging.getLogger(__name__)

MAX_KINDS = 20
"""Maximum number of kinds with their own series.

Workers name their kind themselves, and a series exists for ever.
"""

OTHER_KINDS = "other"

_KINDS = frozenset({"celery", "edge", "kubernetes", "local"})


class FleetGauges:
    """The gauges of the fleet, with what this process has emitted.

    A gauge keeps its value, so what is gone must be set to zero.
    """

    def __init__(self) -> None:
        self._series: set[tuple[str, str]] = set()
        """The kinds and states that have a series."""
        self._workers: set[str] = set()
        """The workers that have a series."""

    def update(self) -> None:
        """Set all gauges to what the database says now; never raise."""
        try:
            with session.reading(session.BACKGROUND) as connection:
                counts = worker_counts.count_workers(connection)
                loads = worker_counts.worker_loads(connection) if config.metrics_per_worker() else ()
                open_findings = findings.count_open(connection)
        except Exception:
            log.debug("Airflow Worker Insight could not count the workers", exc_info=True)
            return
        self.emit(counts, loads)
        for outcome, number in open_findings.items():
            metrics.gauge("findings.open", number, outcome=outcome)

    def emit(self, counts: Mapping[tuple[str, str], int], loads: Sequence[worker_counts.WorkerLoad] = ()) -> None:
        """Set the gauges.

        :param counts: how many workers there are by kind and state
        :param loads: the tries and slots of single workers, where an operator wants them
        """
        current = self._with_few_kinds(counts)
        self._series.update(current)
        for kind, state in sorted(self._series):
            metrics.gauge("workers", current.get((kind, state), 0), state=state, kind=kind)
        gone_workers = self._workers - {load.name for load in loads}
        for load in (*loads, *(worker_counts.WorkerLoad(name, 0, 0) for name in sorted(gone_workers))):
            if load.running is not None:
                metrics.gauge("worker.running", load.running, worker=load.name)
            if load.concurrency is not None:
                metrics.gauge("worker.concurrency", load.concurrency, worker=load.name)
        self._workers = {load.name for load in loads}

    def _with_few_kinds(self, counts: Mapping[tuple[str, str], int]) -> Mapping[tuple[str, str], int]:
        """Merge kinds beyond :data:`MAX_KINDS`; known and emitted kinds keep their series."""
        kinds = {kind for kind, _ in (*self._series, *counts)} - {OTHER_KINDS}
        emitted_kinds = {kind for kind, _ in self._series}
        ordered = sorted(kinds, key=lambda kind: (kind not in _KINDS, kind not in emitted_kinds, kind))
        kept = set(ordered[:MAX_KINDS])
        merged: Counter[tuple[str, str]] = Counter()
        for (kind, state), number in counts.items():
            merged[kind if kind in kept else OTHER_KINDS, state] += number
        return merged


_gauges = FleetGauges()


def emit_gauges() -> None:
    """Set this process's gauges of the fleet to what the database says now; never raise."""
    _gauges.update()
