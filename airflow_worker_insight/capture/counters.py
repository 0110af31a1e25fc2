"""Count what happens to reports: for the health page of this process and for Airflow's own metrics."""

from __future__ import annotations

import logging
from collections import Counter
from threading import Lock

from airflow_worker_insight import compat

log = logging.getLogger(__name__)

_counts: Counter[str] = Counter()
_warned: set[str] = set()
_lock = Lock()


def count(what: str) -> None:
    """Add one to the counter ``what``, for example ``claimed`` or ``dropped.malformed``."""
    with _lock:
        _counts[what] += 1
    try:
        compat.count_metric(f"worker_insight.reports.{what}", {})
    except Exception:
        log.debug("Airflow's metrics did not take worker_insight.reports.%s", what, exc_info=True)


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
