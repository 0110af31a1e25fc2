"""Count reports, tries and runs for this process's health page and for Airflow's stats."""

from __future__ import annotations

import logging
from collections import Counter
from threading import Lock

from airflow_worker_insight import metrics

log = logging.getLogger(__name__)


class Counters:
    """Counters, and the topics that have been warned of."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._warned: set[str] = set()
        self._lock = Lock()

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter, one of :data:`airflow_worker_insight.metrics.COUNTERS`."""
        with self._lock:
            self._counts[name] += number
        metrics.count(name, number)

    def snapshot(self) -> dict[str, int]:
        """Return the current counts."""
        with self._lock:
            return dict(self._counts)

    def warn_once(self, topic: str, message: str, *arguments: object) -> None:
        """Log a warning the first time that ``topic`` occurs."""
        with self._lock:
            is_first = topic not in self._warned
            self._warned.add(topic)
        if is_first:
            log.warning(message, *arguments)


process_counters = Counters()
"""The counters of this process."""

count = process_counters.count
snapshot = process_counters.snapshot
warn_once = process_counters.warn_once
