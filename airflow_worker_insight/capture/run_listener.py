"""Queue ended Dag runs to be reconciled: the listener in the scheduler and the API server.

Every process of the deployment loads this module, so it imports nothing heavy.
"""

from __future__ import annotations

import logging
from typing import Any

from pluggy import HookimplMarker

from airflow_worker_insight import config
from airflow_worker_insight.compat import task_runtime

hookimpl = HookimplMarker("airflow")

log = logging.getLogger(__name__)


@hookimpl
def on_dag_run_success(dag_run: Any) -> None:
    """Reconcile a Dag run that succeeded."""
    _queue_reconciliation(dag_run)


@hookimpl
def on_dag_run_failed(dag_run: Any) -> None:
    """Reconcile a Dag run that failed."""
    _queue_reconciliation(dag_run)


@hookimpl
def on_task_instance_success(task_instance: Any) -> None:
    """Reconcile the run of a task instance that a user marked as succeeded."""
    _queue_if_set_by_user(task_instance)


@hookimpl
def on_task_instance_failed(task_instance: Any) -> None:
    """Reconcile the run of a task instance that a user marked as failed."""
    _queue_if_set_by_user(task_instance)


def _queue_if_set_by_user(task_instance: Any) -> None:
    # The end of the Dag run covers the ends of its tasks.
    if task_runtime.user_has_set_state():
        _queue_reconciliation(task_instance)


def _queue_reconciliation(run: Any) -> None:
    try:
        if task_runtime.in_server_process() and config.enabled():
            from airflow_worker_insight.capture.queue import queue

            queue.put(run.dag_id, run.run_id)
    except Exception as error:  # noqa: BLE001 - no error may reach the scheduler
        log.warning("Airflow Worker Insight could not queue a Dag run to be reconciled: %s", error)
