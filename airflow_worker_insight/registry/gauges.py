"""Tell Airflow's own stats how the fleet is: by whichever process has just looked at it."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from airflow_worker_insight import config, metrics
from airflow_worker_insight.store import session
from airflow_worker_insight.store.workers import counts as worker_counts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log = logging.getLogger(__name__)

MAX_KINDS = 20
"""Kinds that have series of their own: a kind is what a worker says, and a series lives for ever."""

OTHER_KINDS = "other"

_KINDS = frozenset({"celery", "edge", "kubernetes", "local"})

_told: set[tuple[str, str]] = set()
_told_workers: set[str] = set()
"""What this process has told before: a gauge keeps its value, so that what is gone must be set to zero."""


def report_fleet() -> None:
    """Set all gauges to what the database says now; it never raises."""
    try:
        with session.reading(session.BACKGROUND) as connection:
            counts = worker_counts.count_workers(connection)
            loads = worker_counts.loads(connection) if config.metrics_per_worker() else ()
    except Exception:
        log.debug("Airflow Worker Insight could not count the workers", exc_info=True)
        return
    emit_fleet(counts, loads)


def emit_fleet(counts: Mapping[tuple[str, str], int], loads: Sequence[worker_counts.Load] = ()) -> None:
    """Set the gauges of the fleet.

    :param counts: how many workers there are by kind and state
    :param loads: what single workers run, where an operator wants to know
    """
    told = _with_few_kinds(counts)
    _told.update(told)
    for kind, state in sorted(_told):
        metrics.gauge("workers", told.get((kind, state), 0), state=state, kind=kind)
    gone = _told_workers - {one.name for one in loads}
    for one in (*loads, *(worker_counts.Load(name, 0, 0) for name in sorted(gone))):
        if one.running is not None:
            metrics.gauge("worker.running", one.running, worker=one.name)
        if one.concurrency is not None:
            metrics.gauge("worker.concurrency", one.concurrency, worker=one.name)
    _told_workers.clear()
    _told_workers.update(one.name for one in loads)


def _with_few_kinds(counts: Mapping[tuple[str, str], int]) -> Mapping[tuple[str, str], int]:
    """Count kinds beyond :data:`MAX_KINDS` as one; those told before, and the engines' own, keep their series."""
    kinds = {kind for kind, _ in (*_told, *counts)} - {OTHER_KINDS}
    told_before = {kind for kind, _ in _told}
    ordered = sorted(kinds, key=lambda kind: (kind not in _KINDS, kind not in told_before, kind))
    kept = set(ordered[:MAX_KINDS])
    found: Counter[tuple[str, str]] = Counter()
    for (kind, state), workers in counts.items():
        found[kind if kind in kept else OTHER_KINDS, state] += workers
    return found
