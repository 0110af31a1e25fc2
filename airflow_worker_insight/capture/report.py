"""Build the report: one small message per task process, in the schema of the claim.

Runs in the task process, so it uses the standard library only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_worker_insight import config, identity

if TYPE_CHECKING:
    from airflow_worker_insight.identity import Worker

REPORT_KEY = "__worker_insight_report__"
"""XCom key of reports. It is reserved: any value pushed under it is taken for a report."""

REPORT_VERSION = 1

MAX_REPORT_BYTES = 8192


def describe_worker(task_instance: Any) -> Worker:
    """Return the worker of this task process.

    :param task_instance: the task instance that Airflow passed to the listener
    """
    return identity.whoami(
        hostname=getattr(task_instance, "hostname", None) or None,
        executor=getattr(task_instance, "executor", None) or config.executor(),
        name=config.worker_name(),
        labels=config.worker_labels(),
        image=config.worker_image(),
    )


def build_report(task_instance: Any) -> dict[str, Any]:
    """Return the report as JSON-ready values.

    It holds its version, Airflow's ID of the try, the ID of this process, the worker, and the load of its machine.
    """
    worker = describe_worker(task_instance)
    return {
        "version": REPORT_VERSION,
        "try_id": str(task_instance.id),
        "process": identity.process_id(),
        "worker": worker.as_dict(),
        "conditions": identity.conditions(worker.pid),
    }
