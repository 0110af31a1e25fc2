"""Provider metadata, which Airflow reads from the ``apache_airflow_provider`` entry point."""

from __future__ import annotations

from typing import Any

from airflow_worker_insight import __version__


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
                    "worker_image": {
                        "description": (
                            "The container image of the worker in whose environment this is set, at most 250 "
                            "characters. A process cannot find it out by itself."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "registry.example.com/data/airflow:3.3.2-7",
                        "default": "",
                    },
                    "refresh_interval": {
                        "description": (
                            "How many seconds lie between two looks at the workers. However many API servers there "
                            "are, Celery's workers are asked once in that time."
                        ),
                        "version_added": "0.1.0",
                        "type": "integer",
                        "example": None,
                        "default": "30",
                    },
                    "heartbeat_timeout": {
                        "description": (
                            "How many seconds a worker may be silent before it is shown as unresponsive. Less than "
                            "two looks lie apart makes little sense."
                        ),
                        "version_added": "0.1.0",
                        "type": "integer",
                        "example": None,
                        "default": "60",
                    },
                    "lost_timeout": {
                        "description": (
                            "How many seconds a worker may be silent before it is lost, and with it the tries that "
                            "ran on it. Time in which its engine could not be asked does not count."
                        ),
                        "version_added": "0.1.0",
                        "type": "integer",
                        "example": None,
                        "default": "180",
                    },
                    "retention_days": {
                        "description": (
                            "After how many days recorded tries are removed by themselves, with the workers that no "
                            "kept try names. 0 keeps everything until `airflow-worker-insight prune` is run."
                        ),
                        "version_added": "0.1.0",
                        "type": "integer",
                        "example": "365",
                        "default": "0",
                    },
                    "placement_strategy": {
                        "description": (
                            "How an executor of this package chooses among the workers that fit a task: least_loaded, "
                            "round_robin or sticky. Airflow's own executors do not read it."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": None,
                        "default": "least_loaded",
                    },
                    "placement_backlog": {
                        "description": (
                            "How many tasks may wait at a worker beyond those that it runs. What exceeds it stays with "
                            "the scheduler and is placed later, on whichever worker is free then. Empty: as many as "
                            "the worker runs at once, and at least 4."
                        ),
                        "version_added": "0.1.0",
                        "type": "integer",
                        "example": None,
                        "default": "",
                    },
                    "placement_fallback": {
                        "description": (
                            "What becomes of a task that no worker fits: with wait it waits and says why, with "
                            "shared_queue it is handed to the queue that all its workers share."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "shared_queue",
                        "default": "wait",
                    },
                    "when_workers_unseen": {
                        "description": (
                            "What an executor of this package does with tasks while it cannot see the workers, because "
                            "the broker, the database or all of the workers do not answer. With send it behaves as "
                            "Airflow's own executor; with hold the tasks wait, and are placed once workers answer."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "hold",
                        "default": "send",
                    },
                    "placement_slow_from": {
                        "description": (
                            "How many times as long as the others a worker takes for the same tasks to be passed by as "
                            "slow. 0: none is."
                        ),
                        "version_added": "0.1.0",
                        "type": "float",
                        "example": "5.0",
                        "default": "3.0",
                    },
                    "placement_labels": {
                        "description": (
                            "Labels that a worker must have to be given tasks of a pool, as JSON by pool, or as a "
                            "comma-separated list of pool:key=value."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "gpu_pool:gpu=yes,eu_pool:region=eu-west-1",
                        "default": "",
                    },
                    "placement_worker_labels": {
                        "description": (
                            "Labels that Celery workers have for placement, whatever these say themselves, as JSON by "
                            "node name, or as a comma-separated list of node:key=value. A node may be a pattern: "
                            "*@etl-*."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "*@gpu-*:gpu=yes,w1@etl-1:zone=secure",
                        "default": "",
                    },
                    "placement_trust_reports": {
                        "description": (
                            "Whether the labels and the name that a worker's task processes report (worker_labels, "
                            "worker_name) count for placement. Any task can report what it likes of the worker that "
                            "runs it: set it to True only where all Dags are trusted."
                        ),
                        "version_added": "0.1.0",
                        "type": "boolean",
                        "example": None,
                        "default": "False",
                    },
                    "local_workers": {
                        "description": (
                            "The workers that WorkerInsightLocalExecutor has on each scheduler's machine, as a "
                            "comma-separated list of names, each with how many tasks it runs at once (name:number). "
                            "Those without a number share what the others leave of [core] parallelism."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "etl:8,reports:2",
                        "default": "local-1,local-2",
                    },
                    "metrics_per_worker": {
                        "description": (
                            "Whether Airflow's stats are also told how much each single worker runs: one series per "
                            "worker's name."
                        ),
                        "version_added": "0.1.0",
                        "type": "boolean",
                        "example": None,
                        "default": "False",
                    },
                },
            }
        },
    }
