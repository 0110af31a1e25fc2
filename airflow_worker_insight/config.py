"""The ``[worker_insight]`` section: each option is read here and nowhere else.

The options' types, defaults and descriptions are declared in :mod:`airflow_worker_insight.provider_info`. The defaults
are repeated here because a task process does not load the providers' configuration.
"""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

SECTION = "worker_insight"

_warned: set[str] = set()
"""Options that this process has warned of."""


def enabled() -> bool:
    """Return whether tries are recorded at all."""
    return _conf_boolean("enabled", fallback=True)


def worker_name() -> str | None:
    """Return the name an operator gave this worker, or ``None``."""
    return _conf_text("worker_name")


def worker_labels() -> str | None:
    """Return the labels an operator gave this worker as written: ``region=…,zone=…``."""
    return _conf_text("worker_labels")


def worker_image() -> str | None:
    """Return the container image that an operator says this worker runs in."""
    return _conf_text("worker_image")


def retention_days() -> int:
    """Return after how many days recorded tries are removed; 0 keeps them."""
    return _conf_integer("retention_days", fallback=0)


def metrics_per_worker() -> bool:
    """Return whether Airflow's stats are told of single workers."""
    return _conf_boolean("metrics_per_worker", fallback=False)


def refresh_interval() -> int:
    """Return how many seconds lie between two looks at the workers."""
    return max(1, _conf_integer("refresh_interval", fallback=30))


def heartbeat_timeout() -> int:
    """Return how many seconds a worker may be silent before it is unresponsive."""
    return max(1, _conf_integer("heartbeat_timeout", fallback=60))


def lost_timeout() -> int:
    """Return how many seconds a worker may be silent before it is lost: never less than to be unresponsive."""
    return max(heartbeat_timeout(), _conf_integer("lost_timeout", fallback=180))


def placement_strategy() -> str:
    """Return how the executors of this package choose among the workers that fit."""
    return _conf_text("placement_strategy") or "least_loaded"


def placement_backlog() -> str | None:
    """Return how many tasks may wait at a worker beyond those that it runs: see ``executors.placement.rules``."""
    return _conf_text("placement_backlog")


def placement_fallback() -> str:
    """Return what becomes of a task that no worker fits: ``wait`` or ``shared_queue``."""
    return _conf_text("placement_fallback") or "wait"


def when_workers_unseen() -> str:
    """Return what the executors do with tasks while they cannot see the workers: ``send`` or ``hold``."""
    return _conf_text("when_workers_unseen") or "send"


def placement_slow_from() -> str:
    """Return from how many times as long as the others on a worker is slow: see ``executors.placement.rules``."""
    return _conf_text("placement_slow_from") or "3.0"


def placement_labels() -> str | None:
    """Return the labels that tasks of a pool ask for: see ``executors.placement.rules``."""
    return _conf_text("placement_labels")


def placement_worker_labels() -> str | None:
    """Return the labels that an operator gives workers for placement: see ``executors.placement.rules``."""
    return _conf_text("placement_worker_labels")


def placement_trust_reports() -> bool:
    """Return whether what task processes report of their worker counts for placement."""
    return _conf_boolean("placement_trust_reports", fallback=False)


def local_workers() -> str:
    """Return the local workers of a scheduler as written: see ``executors.local.settings``."""
    return _conf_text("local_workers") or "local-1,local-2"


def _conf_boolean(option: str, *, fallback: bool) -> bool:
    from airflow.configuration import conf

    return bool(conf.getboolean(SECTION, option, fallback=fallback))


def _conf_integer(option: str, *, fallback: int) -> int:
    """Read a number; what is none counts as the default, because every page and every look asks for these."""
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
    """Return Airflow's own ``[core] executor``: the executor of every task that names none."""
    from airflow.configuration import conf

    value = conf.get("core", "executor", fallback=None)
    return str(value) if value else None


def names_hosts_otherwise() -> bool:
    """Return whether ``[core] hostname_callable`` is another than those that return a host's own name."""
    from airflow.configuration import conf

    value = conf.get("core", "hostname_callable", fallback=None)
    return bool(value) and str(value).replace(":", ".") not in _OWN_NAMES


_OWN_NAMES = frozenset({"airflow.utils.net.getfqdn", "socket.getfqdn", "socket.gethostname", "platform.node"})


def places_tasks() -> bool:
    """Return whether an executor of this package is among those of ``[core] executor``."""
    return "airflow_worker_insight.executors." in (executor() or "")


def places_on_celery() -> bool:
    """Return whether the executor for Celery's workers is among those of ``[core] executor``."""
    return "airflow_worker_insight.executors.celery." in (executor() or "")


def parallelism() -> int | None:
    """Return Airflow's own ``[core] parallelism``, or ``None`` where it is without limit."""
    from airflow.configuration import conf

    return int(conf.getint("core", "parallelism", fallback=0)) or None
