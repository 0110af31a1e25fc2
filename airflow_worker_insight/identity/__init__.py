"""Which worker am I? Asked inside a task process, answered from what the operating system shows of it.

Start with :func:`whoami`. ``process`` reads the ancestors of this process, ``engines`` recognises the worker
among them, ``machine`` and ``versions`` describe where it runs, ``text`` bounds whatever an operator or a
host may write. :func:`conditions` says what the machine is like at this moment. :func:`process_id` tells this process
from all others.

Only the standard library is imported here (and psutil where there is no ``/proc``, when it is needed): every
task process pays for it.
"""

from __future__ import annotations

from airflow_worker_insight.identity.conditions import conditions
from airflow_worker_insight.identity.process import process_id as _process_id
from airflow_worker_insight.identity.safe_call import safe_call
from airflow_worker_insight.identity.worker import Worker, local_worker, whoami

__all__ = ["Worker", "conditions", "local_worker", "process_id", "whoami"]


def process_id() -> str | None:
    """Return what tells this process from every other, or ``None``. Never raises."""
    return safe_call(_process_id, None)
