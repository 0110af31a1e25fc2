"""Identify the worker that a task process runs on.

It runs inside the task process and uses only what the operating system shows of it. Start with :func:`whoami`.
``process`` reads the ancestors of this process, ``detection`` detects the worker among them, ``machine`` and
``versions`` describe where it runs, ``domain.names`` cleans and bounds text that operators or hosts write.
:func:`conditions` returns the current load of the machine. :func:`process_id` returns a unique ID of this process.

Only the standard library is imported here, because the import time is added to every task process.
"""

from __future__ import annotations

from airflow_worker_insight.identity.conditions import conditions
from airflow_worker_insight.identity.process import process_id as _process_id
from airflow_worker_insight.identity.safe_call import safe_call
from airflow_worker_insight.identity.worker import Worker, local_worker, whoami

__all__ = ["Worker", "conditions", "local_worker", "process_id", "whoami"]


def process_id() -> str | None:
    """Return an ID that no other process has, or ``None`` if unknown. Never raises."""
    return safe_call(_process_id, None)
