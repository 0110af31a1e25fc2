"""The ``[worker_insight]`` section: each option is read here and nowhere else.

The options' types, defaults and descriptions are declared in :mod:`airflow_worker_insight.provider_info`. The defaults
are repeated here because a task process does not load the providers' configuration.
"""

from __future__ import annotations

SECTION = "worker_insight"


def enabled() -> bool:
    """Return whether tries are recorded at all."""
    return _conf_boolean("enabled", fallback=True)


def worker_name() -> str | None:
    """Return the name an operator gave this worker, or ``None``."""
    return _conf_text("worker_name")


def worker_labels() -> str | None:
    """Return the labels an operator gave this worker as written: ``region=…,zone=…``."""
    return _conf_text("worker_labels")


def _conf_boolean(option: str, *, fallback: bool) -> bool:
    from airflow.configuration import conf

    return bool(conf.getboolean(SECTION, option, fallback=fallback))


def _conf_text(option: str) -> str | None:
    from airflow.configuration import conf

    value = conf.get(SECTION, option, fallback=None)
    return str(value) if value else None


def executor() -> str | None:
    """Return Airflow's own ``[core] executor``: the executor of every task that names none."""
    from airflow.configuration import conf

    value = conf.get("core", "executor", fallback=None)
    return str(value) if value else None
