"""Options of the ``[worker_insight]`` section; only this module reads them.

The options' types, defaults and descriptions are declared in :mod:`airflow_worker_insight.provider_info`. The defaults
are repeated here because a task process does not load the providers' configuration.
"""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

SECTION = "worker_insight"

_warned: set[str] = set()
"""Options for which this process has already logged a warning."""


def enabled() -> bool:
    """Return whether tries are recorded."""
    return _conf_boolean("enabled", fallback=True)


def worker_name() -> str | None:
    """Return the name that an operator gave this worker, or ``None``."""
    return _conf_text("worker_name")


def worker_labels() -> str | None:
    """Return the labels that an operator gave this worker, unparsed: ``region=…,zone=…``."""
    return _conf_text("worker_labels")


def worker_image() -> str | None:
    """Return the container image that an operator says this worker runs in, or ``None``."""
    return _conf_text("worker_image")


def retention_days() -> int:
    """Return the days after which recorded tries are deleted; 0 keeps them."""
    return _conf_integer("retention_days", fallback=0)


def metrics_per_worker() -> bool:
    """Return whether Airflow's stats get metrics of single workers."""
    return _conf_boolean("metrics_per_worker", fallback=False)


def refresh_interval() -> int:
    """Return the seconds between two polls of the workers, at least 1."""
    return max(1, _conf_integer("refresh_interval", fallback=30))


def heartbeat_timeout() -> int:
    """Return the seconds without a heartbeat after which a worker is unresponsive, at least 1."""
    return max(1, _conf_integer("heartbeat_timeout", fallback=60))


def lost_timeout() -> int:
    """Return the seconds without a heartbeat after which a worker is lost.

    It is never less than :func:`heartbeat_timeout`.
    """
    return max(heartbeat_timeout(), _conf_integer("lost_timeout", fallback=180))


def placement_strategy() -> str:
    """Return how this package's executors choose among the workers that fit a task."""
    return _conf_text("placement_strategy") or "least_loaded"


def placement_backlog() -> str | None:
    """Return how many tasks may wait at a worker beyond those that it runs, unparsed.

    See ``executors.placement.rules``.
    """
    return _conf_text("placement_backlog")


def placement_fallback() -> str:
    """Return what happens to a task that no worker fits: ``wait`` or ``shared_queue``."""
    return _conf_text("placement_fallback") or "wait"


def when_workers_unseen() -> str:
    """Return how executors handle tasks while workers are unavailable: ``send`` or ``hold``."""
    return _conf_text("when_workers_unseen") or "send"


def placement_slow_from() -> str:
    """Return the factor over the other workers' duration from which a worker counts as slow.

    It is unparsed: see ``executors.placement.rules``.
    """
    return _conf_text("placement_slow_from") or "3.0"


def placement_labels() -> str | None:
    """Return the labels that tasks of a pool require: see ``executors.placement.rules``."""
    return _conf_text("placement_labels")


def placement_worker_labels() -> str | None:
    """Return the placement labels that an operator gave workers, unparsed.

    See ``executors.placement.rules``.
    """
    return _conf_text("placement_worker_labels")


def placement_trust_reports() -> bool:
    """Return whether placement uses what task processes report of their worker."""
    return _conf_boolean("placement_trust_reports", fallback=False)


def local_workers() -> str:
    """Return the local workers of a scheduler, unparsed: see ``executors.local.settings``."""
    return _conf_text("local_workers") or "local-1,local-2"


def _conf_boolean(option: str, *, fallback: bool) -> bool:
    from airflow.configuration import conf

    return bool(conf.getboolean(SECTION, option, fallback=fallback))


def _conf_integer(option: str, *, fallback: int) -> int:
    """Read an integer; an invalid value is logged once and replaced by the default.

    Every page and every poll reads these options, so an error here would break them all.
    """
    from airflow.configuration import conf
    from airflow.exceptions import AirflowConfigException

    try:
        return int(conf.getint(SECTION, option, fallback=fallback))
    except AirflowConfigException as error:
        if option not in _warned:
            _warned.add(option)
            log.warning("Airflow Worker Insight takes [%s] %s to be %d: %s", SECTION, option, fallback, error)
        return fallback


def _conf_text(option: str) -> str | None:
    from airflow.configuration import conf

    value = conf.get(SECTION, option, fallback=None)
    return str(value) if value else None


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
