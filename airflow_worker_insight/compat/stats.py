"""Airflow's own metrics."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from airflow_worker_insight import compat

if TYPE_CHECKING:
    from typing import Any


@cache
def stats() -> Any:
    """Return Airflow's stats (StatsD, Datadog or OpenTelemetry).

    They have ``incr``, ``gauge`` and ``timing``. From 3.2 on a process must initialize them first. The API server of
    3.2 does not, and commands do not; 3.3's API server does it at startup, in the same way as this function.
    """
    if compat.airflow_version() < (3, 2):
        from airflow.stats import Stats

        return Stats
    from airflow.configuration import conf

    module: Any = import_module("airflow._shared.observability.metrics.stats")
    factory: Any = import_module("airflow.observability.metrics.stats_utils").get_stats_factory
    if compat.airflow_version() >= (3, 3):
        if module._factory is None:  # noqa: SLF001 - nothing public says whether it is initialized
            legacy = conf.getboolean("metrics", "legacy_names_on")
            module.initialize(factory=factory(), export_legacy_names=legacy)
        return module
    if module.Stats.factory in (None, module.NoStatsLogger):
        module.Stats.initialize(factory=factory(module.Stats))
    return module.Stats


def stats_support_tags() -> bool:
    """Return whether Airflow's stats support tags; plain StatsD has only names."""
    from airflow.configuration import conf

    if conf.getboolean("metrics", "statsd_datadog_enabled", fallback=False):
        return True
    if conf.getboolean("metrics", "statsd_on", fallback=False):
        return bool(conf.getboolean("metrics", "statsd_influxdb_enabled", fallback=False))
    return bool(conf.getboolean("metrics", "otel_on", fallback=False))
