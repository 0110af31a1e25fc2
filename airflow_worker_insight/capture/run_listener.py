"""The listener in the scheduler and the API server: a Dag run has ended, have it reconciled.

Every process of the deployment loads this module, so it imports nothing heavy.
"""

from __future__ import annotations

import logging
from typing import Any

from pluggy import HookimplMarker

from airflow_worker_insight import compat, config
from airflow_worker_insight.compat import task_runtime

hookimpl = HookimplMarker("airflow")

log = logging.getLogger(__name__)


@hookimpl
def on_dag_run_success(dag_run: Any) -> None:
    """Reconcile a Dag run that succeeded."""
    _ended(dag_run)


@hookimpl
def on_dag_run_failed(dag_run: Any) -> None:
    """Reconcile a Dag run that failed."""
    _ended(dag_run)


@hookimpl
def on_task_instance_success(task_instance: Any) -> None:
    """Reconcile where a person marked a task instance as succeeded."""
    _set_by_hand(task_instance)


@hookimpl
def on_task_instance_failed(task_instance: Any) -> None:
    """Reconcile where a person marked a task instance as failed."""
    _set_by_hand(task_instance)


def _set_by_hand(task_instance: Any) -> None:
    # In a task process the same hooks tell of the task's own end, which the end of its Dag run covers. Under
    # LocalExecutor that process is a fork of the scheduler and looks like one.
    if compat.is_airflow_3() and task_runtime.task_channel() is None:
        _ended(task_instance)


def _ended(run: Any) -> None:
    try:
        if task_runtime.in_server_process() and config.enabled():
            from airflow_worker_insight.capture.queue import queue

            queue.put(run.dag_id, run.run_id)
    except Exception as error:  # noqa: BLE001
        log.warning("Airflow Worker Insight could not note the end of a Dag run: %s", error)
