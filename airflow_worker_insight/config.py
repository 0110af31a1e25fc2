"""Read the options of the ``[worker_insight]`` section; only this module does.

:mod:`.options` declares them. A task process does not load the providers' configuration, so their defaults are read
from there.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from airflow_worker_insight import options

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from airflow_worker_insight.options import Option

    T = TypeVar("T")

log = logging.getLogger(__name__)

SECTION = "worker_insight"


class OptionReader:
    """Reads options; an invalid value is logged once and replaced by the option's default.

    Every page and every poll reads options, so an error here would break them all.
    """

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def boolean(self, option: Option) -> bool:
        """Return the value of a boolean option."""
        from airflow.configuration import conf

        default = option.default == "True"
        return self._or_default(option, default, lambda: bool(conf.getboolean(SECTION, option.name, fallback=default)))

    def integer(self, option: Option) -> int:
        """Return the value of an integer option, at least its minimum."""
        from airflow.configuration import conf

        default = int(option.default)

        def read() -> int:
            value = int(conf.getint(SECTION, option.name, fallback=default))
            if option.minimum is not None and value < option.minimum:
                raise ValueError(f"{value} is less than {option.minimum}")
            return value

        return self._or_default(option, default, read)

    def text(self, option: Option) -> str:
        """Return the value of an option as it is written, or its default where that is empty."""
        from airflow.configuration import conf

        return str(conf.get(SECTION, option.name, fallback=None) or option.default)

    def _or_default(self, option: Option, default: T, read: Callable[[], T]) -> T:
        from airflow.exceptions import AirflowConfigException

        try:
            return read()
        except (AirflowConfigException, ValueError) as error:
            if option.name not in self._logged:
                self._logged.add(option.name)
                log.warning(
                    "Airflow Worker Insight uses the default %s for [%s] %s, whose value is invalid: %s",
                    option.default,
                    SECTION,
                    option.name,
                    error,
                )
            return default


_read = OptionReader()


def enabled() -> bool:
    """Return whether tries are recorded."""
    return _read.boolean(options.ENABLED)


def worker_name() -> str | None:
    """Return the name that an operator gave this worker, or ``None``."""
    return _read.text(options.WORKER_NAME) or None


def worker_labels() -> str | None:
    """Return the labels that an operator gave this worker, unparsed: ``region=…,zone=…``."""
    return _read.text(options.WORKER_LABELS) or None


def worker_image() -> str | None:
    """Return the container image that an operator says this worker runs in, or ``None``."""
    return _read.text(options.WORKER_IMAGE) or None


def retention_days() -> int:
    """Return the days after which recorded tries are deleted; 0 keeps them."""
    return _read.integer(options.RETENTION_DAYS)


def metrics_per_worker() -> bool:
    """Return whether Airflow's stats get metrics of single workers."""
    return _read.boolean(options.METRICS_PER_WORKER)


def insight_enabled() -> bool:
    """Return whether recorded tries are analysed."""
    return enabled() and _read.boolean(options.INSIGHT_ENABLED)


def insight_interval() -> int:
    """Return the seconds between two steps of the analysis, at least 5."""
    return _read.integer(options.INSIGHT_INTERVAL)


def refresh_interval() -> int:
    """Return the seconds between two polls of the workers, at least 1."""
    return _read.integer(options.REFRESH_INTERVAL)


def heartbeat_timeout() -> int:
    """Return the seconds without a heartbeat after which a worker is unresponsive, at least 1."""
    return _read.integer(options.HEARTBEAT_TIMEOUT)


def lost_timeout() -> int:
    """Return the seconds without a heartbeat after which a worker is lost.

    It is never less than :func:`heartbeat_timeout`.
    """
    return max(heartbeat_timeout(), _read.integer(options.LOST_TIMEOUT))


def placement_strategy() -> str:
    """Return how this package's executors choose among the workers that fit a task."""
    return _read.text(options.PLACEMENT_STRATEGY)


def placement_backlog() -> str | None:
    """Return how many tasks may wait at a worker beyond those that it runs, unparsed.

    See ``executors.placement.rules``.
    """
    return _read.text(options.PLACEMENT_BACKLOG) or None


def placement_fallback() -> str:
    """Return what happens to a task that no worker fits: ``wait`` or ``shared_queue``."""
    return _read.text(options.PLACEMENT_FALLBACK)


def when_workers_unseen() -> str:
    """Return how executors handle tasks while workers are unavailable: ``send`` or ``hold``."""
    return _read.text(options.WHEN_WORKERS_UNSEEN)


def placement_slow_from() -> str:
    """Return the factor over the other workers' duration from which a worker counts as slow.

    It is unparsed: see ``executors.placement.rules``.
    """
    return _read.text(options.PLACEMENT_SLOW_FROM)


def placement_labels() -> str | None:
    """Return the labels that tasks of a pool require: see ``executors.placement.rules``."""
    return _read.text(options.PLACEMENT_LABELS) or None


def placement_worker_labels() -> str | None:
    """Return the placement labels that an operator gave workers, unparsed.

    See ``executors.placement.rules``.
    """
    return _read.text(options.PLACEMENT_WORKER_LABELS) or None


def placement_trust_reports() -> bool:
    """Return whether placement uses what task processes report of their worker."""
    return _read.boolean(options.PLACEMENT_TRUST_REPORTS)


def enforce_availability() -> bool:
    """Return whether to keep work off drained and quarantined workers with executors that know no decisions."""
    return _read.boolean(options.ENFORCE_AVAILABILITY)


def local_workers() -> str:
    """Return the local workers of a scheduler, unparsed: see ``executors.local.settings``."""
    return _read.text(options.LOCAL_WORKERS)


def on_finding() -> str | None:
    """Return the dotted path of the function that is called with findings, or ``None``."""
    return _read.text(options.ON_FINDING).strip() or None


def auto_quarantine() -> bool:
    """Return whether the analysis quarantines workers."""
    return _read.boolean(options.AUTO_QUARANTINE)


def executor() -> str | None:
    """Return Airflow's ``[core] executor``; tasks that name no executor use the first one."""
    from airflow.configuration import conf

    value = conf.get("core", "executor", fallback=None)
    return str(value) if value else None


def names_hosts_otherwise() -> bool:
    """Return whether ``[core] hostname_callable`` may return another name than the host's own."""
    from airflow.configuration import conf

    value = conf.get("core", "hostname_callable", fallback=None)
    return bool(value) and str(value).replace(":", ".") not in _STANDARD_HOSTNAME_CALLABLES


_STANDARD_HOSTNAME_CALLABLES = frozenset(
    {"airflow.utils.net.getfqdn", "socket.getfqdn", "socket.gethostname", "platform.node"}
)


def places_tasks() -> bool:
    """Return whether ``[core] executor`` contains an executor of this package."""
    return "airflow_worker_insight.executors." in (executor() or "")


def places_on_celery() -> bool:
    """Return whether ``[core] executor`` contains this package's Celery executor."""
    return "airflow_worker_insight.executors.celery." in (executor() or "")


def parallelism() -> int | None:
    """Return Airflow's ``[core] parallelism``, or ``None`` if it is unlimited."""
    from airflow.configuration import conf

    return int(conf.getint("core", "parallelism", fallback=0)) or None
