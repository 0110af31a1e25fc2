"""Provider metadata, which Airflow reads from the ``apache_airflow_provider`` entry point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_worker_insight import __version__
from airflow_worker_insight.options import OPTIONS

if TYPE_CHECKING:
    from airflow_worker_insight.options import Option


def get_provider_info() -> dict[str, Any]:
    """Return the metadata in the format of Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-worker-insight",
        "name": "Airflow Worker Insight",
        "description": "Records which worker ran each try of each task, shows it and opens it over REST.",
        "versions": [__version__],
        "db-managers": ["airflow_worker_insight.store.db_manager.WorkerInsightDBManager"],
        "cli": ["airflow_worker_insight.cli.get_commands"],
        "executors": [
            "airflow_worker_insight.executors.celery.WorkerInsightCeleryExecutor",
            "airflow_worker_insight.executors.local.WorkerInsightLocalExecutor",
        ],
        "config": {
            "worker_insight": {
                "description": "What to record of workers, how to poll them and how to place tasks on them.",
                "options": {option.name: _declared(option) for option in OPTIONS},
            }
        },
    }


def _declared(option: Option) -> dict[str, Any]:
    """Return an option in the format of Airflow's schema, which has no minimum and no choices."""
    return {
        "description": option.description,
        "version_added": option.version_added,
        "type": option.type,
        "example": option.example,
        "default": option.default,
    }
