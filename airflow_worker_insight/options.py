"""Options of the ``[worker_insight]`` section, each declared once.

:mod:`.config` reads them, :mod:`.provider_info` tells them to Airflow and ``scripts/generate_reference.py`` documents
them. A task process loads this module.
"""

from __future__ import annotations

from typing import NamedTuple


class Option(NamedTuple):
    """One option, as an operator sees it."""

    name: str
    type: str
    """One of Airflow's types: ``boolean``, ``float``, ``integer`` or ``string``."""
    default: str
    description: str
    example: str | None = None
    minimum: int | None = None
    choices: tuple[str, ...] = ()
    version_added: str = "0.1.0"


ENABLED = Option(
    "enabled",
    "boolean",
    "True",
    "Record the worker of each try. Set it to False to stop recording without uninstalling; recorded tries stay "
    "readable.",
)
WORKER_NAME = Option(
    "worker_name",
    "string",
    "",
    "Name of the worker in whose environment this is set, at most 250 characters. If empty, the worker's own name is "
    "used: the Celery node name, the pod, the Edge worker's name, or the host.",
    example="etl-large-1",
)
WORKER_LABELS = Option(
    "worker_labels",
    "string",
    "",
    "Labels of the worker in whose environment this is set: a comma-separated list of key=value, at most 32.",
    example="region=eu-west-1,zone=a",
)
WORKER_IMAGE = Option(
    "worker_image",
    "string",
    "",
    "Container image of the worker in whose environment this is set, at most 250 characters. A process cannot find out "
    "its own image.",
    example="registry.example.com/data/airflow:3.3.2-7",
)
REFRESH_INTERVAL = Option(
    "refresh_interval",
    "integer",
    "30",
    "Seconds between two polls of the workers. Celery's workers are asked once per interval, however many API servers "
    "there are.",
    minimum=1,
)
HEARTBEAT_TIMEOUT = Option(
    "heartbeat_timeout",
    "integer",
    "60",
    "Seconds without a heartbeat after which a worker is unresponsive. Set it to at least twice refresh_interval.",
    minimum=1,
)
LOST_TIMEOUT = Option(
    "lost_timeout",
    "integer",
    "180",
    "Seconds without a heartbeat after which a worker is lost, with the tries that ran on it. Time during which its "
    "source could not be polled does not count.",
    minimum=1,
)
RETENTION_DAYS = Option(
    "retention_days",
    "integer",
    "0",
    "Days after which recorded tries are deleted, with the workers that no remaining try names. 0 keeps everything "
    "until you run `airflow-worker-insight prune`.",
    example="365",
    minimum=0,
)
PLACEMENT_STRATEGY = Option(
    "placement_strategy",
    "string",
    "least_loaded",
    "How an executor of this package chooses among the workers that fit a task: least_loaded, round_robin or sticky.",
    choices=("least_loaded", "round_robin", "sticky"),
)
PLACEMENT_BACKLOG = Option(
    "placement_backlog",
    "integer",
    "",
    "Maximum number of tasks that wait at a worker beyond those that it runs. Further tasks stay with the scheduler, "
    "which places them on whichever worker becomes free. If empty: as many as the worker runs at once, and at least 4.",
    minimum=0,
)
PLACEMENT_FALLBACK = Option(
    "placement_fallback",
    "string",
    "wait",
    "What happens to a task that no worker fits. With wait it waits and its page says why; with shared_queue it is "
    "sent to the queue that all its workers share.",
    example="shared_queue",
    choices=("wait", "shared_queue"),
)
WHEN_WORKERS_UNSEEN = Option(
    "when_workers_unseen",
    "string",
    "send",
    "What an executor of this package does while the broker, the database or all workers do not answer. With send it "
    "sends tasks as Airflow's own executor does; with hold it holds tasks and places them once workers answer.",
    example="hold",
    choices=("send", "hold"),
)
PLACEMENT_SLOW_FROM = Option(
    "placement_slow_from",
    "float",
    "3.0",
    "How many times as long as other workers a worker must take for the same tasks to count as slow. An executor of "
    "this package avoids slow workers. 0 turns this off.",
    example="5.0",
)
PLACEMENT_LABELS = Option(
    "placement_labels",
    "string",
    "",
    "Labels that a worker must have to run tasks of a pool: JSON by pool, or a comma-separated list of pool:key=value.",
    example="gpu_pool:gpu=yes,eu_pool:region=eu-west-1",
)
PLACEMENT_WORKER_LABELS = Option(
    "placement_worker_labels",
    "string",
    "",
    "Labels that Celery workers have for placement, whatever they report themselves: JSON by node name, or a "
    "comma-separated list of node:key=value. A node name may be a pattern: *@etl-*.",
    example="*@gpu-*:gpu=yes,w1@etl-1:zone=secure",
)
PLACEMENT_TRUST_REPORTS = Option(
    "placement_trust_reports",
    "boolean",
    "False",
    "Use the labels and the name that a worker's task processes report (worker_labels, worker_name) for placement. Any "
    "task can report anything about its worker: set it to True only if you trust all Dags.",
)
LOCAL_WORKERS = Option(
    "local_workers",
    "string",
    "local-1,local-2",
    "Workers of WorkerInsightLocalExecutor on each scheduler's machine: a comma-separated list of names, each with the "
    "number of tasks that it runs at once (name:number). Workers without a number share what the others leave of "
    "[core] parallelism.",
    example="etl:8,reports:2",
)
ENFORCE_AVAILABILITY = Option(
    "enforce_availability",
    "boolean",
    "True",
    "Keep work off drained and quarantined workers with any executor: have Celery workers stop consuming their queues, "
    "and put Edge workers into maintenance mode. Set it to False to record such decisions only; what was done before "
    "is undone.",
)
METRICS_PER_WORKER = Option(
    "metrics_per_worker",
    "boolean",
    "False",
    "Emit metrics of single workers to Airflow's stats: one series per worker name.",
)
INSIGHT_ENABLED = Option(
    "insight_enabled",
    "boolean",
    "True",
    "Compare each worker's tries with those of its peers on the same tasks and keep what is found. Set it to False to "
    "stop the analysis; what was found stays readable.",
)
INSIGHT_INTERVAL = Option(
    "insight_interval",
    "integer",
    "30",
    "Seconds between two steps of the analysis, which reads the tries that have started or ended since the last one. "
    "One process does so at a time, however many API servers there are.",
    minimum=5,
)

ON_FINDING = Option(
    "on_finding",
    "string",
    "",
    "Function that is called with each new finding and each change of one, as a dotted path. It gets one dict: the "
    "finding as the REST API has it, and its action. It runs in the process of the analysis (an API server on Airflow "
    "3), outside any request; after 30 seconds further calls are skipped until it returns.",
    example="my_company.alerts.on_finding",
)
AUTO_QUARANTINE = Option(
    "auto_quarantine",
    "boolean",
    "False",
    "Quarantine workers automatically: those whose evidence of failing or losing more tries than their peers is ten "
    "times what a finding needs, with a difference of at least 20 % of their tries. At most one worker or 10 % of each "
    "queue, never the last one. They are probed at growing pauses and released once they are well again.",
)

OPTIONS = (
    ENABLED,
    WORKER_NAME,
    WORKER_LABELS,
    WORKER_IMAGE,
    REFRESH_INTERVAL,
    HEARTBEAT_TIMEOUT,
    LOST_TIMEOUT,
    RETENTION_DAYS,
    PLACEMENT_STRATEGY,
    PLACEMENT_BACKLOG,
    PLACEMENT_FALLBACK,
    WHEN_WORKERS_UNSEEN,
    PLACEMENT_SLOW_FROM,
    PLACEMENT_LABELS,
    PLACEMENT_WORKER_LABELS,
    PLACEMENT_TRUST_REPORTS,
    LOCAL_WORKERS,
    ENFORCE_AVAILABILITY,
    METRICS_PER_WORKER,
    INSIGHT_ENABLED,
    INSIGHT_INTERVAL,
    ON_FINDING,
    AUTO_QUARANTINE,
)
"""All options, in the order of the documentation: add each new one here too."""
