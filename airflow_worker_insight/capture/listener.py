"""Report the worker of a task process, once and without harm to the task.

This is the listener in the task process. Every task process of the deployment loads this module, so it imports only
what Airflow has imported already.
"""

from __future__ import annotations

import logging
from typing import Any

from pluggy import HookimplMarker

from airflow_worker_insight import config
from airflow_worker_insight.capture.report import REPORT_KEY, build_report
from airflow_worker_insight.compat import task_runtime

# Equivalent to Airflow's own marker (airflow.listeners.hookimpl): pluggy matches by name. This one saves the import.
hookimpl = HookimplMarker("airflow")

log = logging.getLogger(__name__)


@hookimpl
def on_task_instance_running(task_instance: Any) -> None:
    """Report the worker of this task process; no error reaches the task."""
    try:
        _report_start(task_instance)
    except Exception as error:  # noqa: BLE001 - no error may reach the task
        # One process runs one try, so this logs at most one line per try.
        log.warning("Airflow Worker Insight could not record the worker of this try: %s", error)


def _report_start(task_instance: Any) -> None:
    channel = task_runtime.task_channel()
    if channel is not None:
        if config.enabled():
            _send(channel, task_instance)
    elif task_runtime.runs_under_local_task_job(task_instance) and config.enabled():
        from airflow_worker_insight.capture.direct import record

        record(task_instance)


def _send(channel: tuple[Any, Any], task_instance: Any) -> None:
    """Send the report to the task's supervisor, over its connection and with its token."""
    comms, set_xcom = channel
    run_id = task_runtime.escape_run_id(task_instance.run_id)
    if run_id is None:
        return  # The response would be a 404, and a warning in each try's log.
    comms.send(
        set_xcom(
            key=REPORT_KEY,
            value=build_report(task_instance),
            dag_id=task_instance.dag_id,
            run_id=run_id,
            task_id=task_instance.task_id,
            map_index=task_instance.map_index,
        )
    )
