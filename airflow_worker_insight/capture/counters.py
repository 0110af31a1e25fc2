"""Count what happens to reports, tries and runs: for the health page of this process and for Airflow's own stats."""

from __future__ import annotations

import logging
from collections import Counter
from threading import Lock

from airflow_worker_insight import metrics

log = logging.getLogger(__name__)

_counts: Counter[str] = Counter()
_warned: set[str] = set()
_lock = Lock()


def count(what: str, number: int = 1) -> None:
    """Add to a counter, one of :data:`airflow_worker_insight.metrics.COUNTERS`."""
    with _lock:
        _counts[what] += number
    metrics.count(what, number)


def snapshot() -> dict[str, int]:
    """Return the counters of this process since it started."""
    with _lock:
        return dict(_counts)


def warn_once(topic: str, message: str, *arguments: object) -> None:
    """Log a warning for ``topic`` the first time it happens in this process."""
    with _lock:
        first = topic not in _warned
        _warned.add(topic)
    if first:
        log.warning(message, *arguments)
