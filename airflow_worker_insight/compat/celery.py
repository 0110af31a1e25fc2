"""Celery application of Airflow's CeleryExecutor."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


def celery_app(team: str | None) -> Any:
    """Return Airflow's Celery application, or that of a team (Airflow 3.2 and later)."""
    utils = import_module("airflow.providers.celery.executors.celery_executor_utils")
    if team is None:
        return utils.app
    from airflow.executors.base_executor import ExecutorConf

    return utils.create_celery_app(ExecutorConf(team))


def celery_app_of(executor: Any) -> Any:
    """Return the Celery application of a CeleryExecutor.

    Before version 3.15 of the Celery provider all executors share one.
    """
    app = getattr(executor, "celery_app", None)
    return app if app is not None else celery_app(None)
