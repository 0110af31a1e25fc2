"""Metrics for Airflow's own stats (StatsD, Datadog or OpenTelemetry).

See ``docs/reference/metrics.md``. Errors never reach the caller: no metric is worth a failed try.
"""

from __future__ import annotations

import logging
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_worker_insight.compat import stats as airflow_stats

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

PREFIX = "worker_insight"
"""Prefix of all metric names, after Airflow's own prefix."""

COUNTERS = (
    "reports.claimed",
    "reports.unclaimed",
    "reports.contradicting",
    "claims.paused",
    "pages.refused",
    "reports.dropped.malformed",
    "reports.dropped.oversized",
    "reports.dropped.unknown_version",
    "reports.dropped.not_this_try",
    "reports.dropped.try_has_ended",
    "reports.dropped.not_this_host",
    "reports.dropped.contradicting",
    "reports.dropped.too_many_workers",
    "reports.dropped.in_a_test",
    "tries.inferred",
    "tries.backfilled",
    "tries.not_on_a_worker",
    "tries.never_started",
    "tries.unknown",
    "runs.not_reconciled",
    "placement.plain",
    "placement.held",
    "placement.shared",
    "placement.moved",
    "placement.failed",
    "insight.failed",
    "insight.quarantine.failed",
    "findings.found",
    "findings.hook.failed",
    "findings.hook.skipped",
    "enforcement.failed.celery",
    "enforcement.failed.edge",
    *(
        f"refresh.{outcome}.{source}"
        for outcome in ("failed", "ignored")
        for source in ("celery", "edge", "jobs", "tries")
    ),
)
TIMERS = ("claim.duration", "insight.step")
GAUGES = {
    "workers": ("state", "kind"),
    "worker.running": ("worker",),
    "worker.concurrency": ("worker",),
    "insight.lag": (),
    "findings.open": ("outcome",),
}
"""Gauges with the labels of each."""

_INVALID_IN_NAME = re.compile(r"[^A-Za-z0-9_-]")
_INVALID_IN_TAG = re.compile(r"[^A-Za-z0-9_.-]")


def count(name: str, number: int = 1) -> None:
    """Add ``number`` to a counter."""
    _send(lambda: airflow_stats.stats().incr(f"{PREFIX}.{name}", number))


def timing(name: str, *, seconds: float) -> None:
    """Record a duration."""
    _send(lambda: airflow_stats.stats().timing(f"{PREFIX}.{name}", timedelta(seconds=seconds)))


def gauge(name: str, value: float, **labels: str) -> None:
    """Set a gauge.

    Labels become tags if Airflow's stats support them; otherwise their values are appended to the name.
    """
    _send(lambda: _set_gauge(f"{PREFIX}.{name}", value, labels))


def _set_gauge(name: str, value: float, labels: dict[str, str]) -> None:
    if airflow_stats.stats_support_tags():
        tags = {key: _INVALID_IN_TAG.sub("_", text) for key, text in labels.items()}
        airflow_stats.stats().gauge(name, value, tags=tags)
    else:
        parts = [name, *(_INVALID_IN_NAME.sub("_", text) for text in labels.values())]
        airflow_stats.stats().gauge(".".join(parts), value)


def _send(emit: Callable[[], Any]) -> None:
    try:
        emit()
    except Exception:
        log.debug("Airflow's stats did not accept a metric of Airflow Worker Insight", exc_info=True)
