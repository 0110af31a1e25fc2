"""What this package tells Airflow's own stats (StatsD, Datadog or OpenTelemetry), see ``docs/reference/metrics.md``.

Nothing that goes wrong here reaches the caller: a number is never worth a try.
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
"""What all names begin with, behind Airflow's own prefix."""

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
    *(f"refresh.{what}.{engine}" for what in ("failed", "ignored") for engine in ("celery", "edge", "jobs", "tries")),
)
TIMERS = ("claim.duration",)
GAUGES = {
    "workers": ("state", "kind"),
    "worker.running": ("worker",),
    "worker.concurrency": ("worker",),
}
"""With what each is told apart by."""

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]")
_NOT_IN_A_TAG = re.compile(r"[^A-Za-z0-9_.-]")


def count(name: str, number: int = 1) -> None:
    """Add to a counter."""
    _send(lambda: airflow_stats.stats().incr(f"{PREFIX}.{name}", number))


def timing(name: str, *, seconds: float) -> None:
    """Tell how long something took."""
    _send(lambda: airflow_stats.stats().timing(f"{PREFIX}.{name}", timedelta(seconds=seconds)))


def gauge(name: str, value: float, **told_apart_by: str) -> None:
    """Set a gauge. What it is told apart by are tags where there are any, and else the end of its name."""
    _send(lambda: _set_gauge(f"{PREFIX}.{name}", value, told_apart_by))


def _set_gauge(name: str, value: float, told_apart_by: dict[str, str]) -> None:
    if airflow_stats.stats_take_tags():
        tags = {key: _NOT_IN_A_TAG.sub("_", text) for key, text in told_apart_by.items()}
        airflow_stats.stats().gauge(name, value, tags=tags)
    else:
        parts = [name, *(_NOT_IN_A_NAME.sub("_", text) for text in told_apart_by.values())]
        airflow_stats.stats().gauge(".".join(parts), value)


def _send(what: Callable[[], Any]) -> None:
    try:
        what()
    except Exception:
        log.debug("Airflow's stats did not take a number of Airflow Worker Insight", exc_info=True)
