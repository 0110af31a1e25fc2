"""What Airflow learns of this package from its ``apache_airflow_provider`` entry point."""

from __future__ import annotations

from typing import Any

from airflow_worker_insight import __version__


def get_provider_info() -> dict[str, Any]:
    """Return the provider's info in the shape of Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-worker-insight",
        "name": "Airflow Worker Insight",
        "description": "Records which worker ran each try of each task, shows it and opens it over REST.",
        "versions": [__version__],
        "db-managers": ["airflow_worker_insight.store.db_manager.WorkerInsightDBManager"],
        "cli": ["airflow_worker_insight.cli.get_commands"],
        "config": {
            "worker_insight": {
                "description": "Which worker ran each try: what is recorded and what a worker says of itself.",
                "options": {
                    "enabled": {
                        "description": (
                            "Whether the workers of tries are recorded. Set it to False to stop recording without "
                            "uninstalling; what was recorded stays readable."
                        ),
                        "version_added": "0.1.0",
                        "type": "boolean",
                        "example": None,
                        "default": "True",
                    },
                    "worker_name": {
                        "description": (
                            "The name of the worker in whose environment this is set, at most 250 characters. When "
                            "it is empty, the worker's own name is taken: the Celery node name, the pod, the Edge "
                            "worker's name, or the host."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "etl-large-1",
                        "default": "",
                    },
                    "worker_labels": {
                        "description": (
                            "Labels of the worker in whose environment this is set, as a comma-separated list of "
                            "key=value; at most 32 of them."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "region=eu-west-1,zone=a",
                        "default": "",
                    },
                },
            }
        },
    }
