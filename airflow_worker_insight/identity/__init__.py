"""Which worker am I? Asked inside a task process, answered from what the operating system shows of it.

Start with :func:`whoami`. ``process`` reads the ancestors of this process, ``engines`` recognises the worker
among them, ``machine`` and ``versions`` describe where it runs, ``text`` bounds whatever an operator or a
host may write. :func:`conditions` says what the machine is like at this moment.

Only the standard library is imported here (and psutil where there is no ``/proc``, when it is needed): every
task process pays for it.
"""

from __future__ import annotations

from airflow_worker_insight.identity.conditions import conditions
from airflow_worker_insight.identity.worker import Worker, local_worker, whoami

__all__ = ["Worker", "conditions", "local_worker", "whoami"]
