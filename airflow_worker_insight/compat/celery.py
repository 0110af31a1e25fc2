"""The Celery application of Airflow's CeleryExecutor."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


def celery_app(team: str | None) -> Any:
    """Return Airflow's own Celery application, or a team's (Airflow 3.2 and later)."""
    utils = import_module("airflow.providers.celery.executors.celery_executor_utils")
    if team is None:
        return utils.app
    from airflow.executors.base_executor import ExecutorConf

    return utils.create_celery_app(ExecutorConf(team))


def executors_celery_app(executor: Any) -> Any:
    """Return the Celery application of a CeleryExecutor; before its provider's 3.15 there was one for all."""
    app = getattr(executor, "celery_app", None)
    return app if app is not None else celery_app(None)
