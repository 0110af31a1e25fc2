"""Count reports, tries and runs for this process's health page and for Airflow's stats."""

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
    """Add to a counter, one of :data:`airflow_worker_insight.metrics.COUNTERS`.

    :param what: the counter's name
    :param number: how much to add
    """
    with _lock:
        _counts[what] += number
    metrics.count(what, number)


def snapshot() -> dict[str, int]:
    """Return the counters of this process since it started."""
    with _lock:
        return dict(_counts)


def warn_once(topic: str, message: str, *arguments: object) -> None:
    """Log a warning the first time that ``topic`` occurs in this process."""
    with _lock:
        is_first = topic not in _warned
        _warned.add(topic)
    if is_first:
        log.warning(message, *arguments)
