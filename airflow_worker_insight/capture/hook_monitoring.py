"""Receive listener hooks without staying registered as a listener.

As soon as any plugin has a listener, Airflow refuses every Dag with a task that has ``end_from_trigger=True``
(``DateTimeSensorAsync`` and others), because listeners are not called at such a task's end (``DagBag.bag_dag``). This
package needs no call there: reconciling accounts for these tries. So at the first hook that Airflow calls in a process,
which comes before the process parses or forks, this package's listeners leave the listener manager. From then on
pluggy's monitoring of hook calls, which Airflow itself uses to trace listeners, calls them.

Every process of the deployment loads this module, so it imports nothing heavy.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from pluggy import HookimplMarker

from airflow_worker_insight.capture import listener, run_listener
from airflow_worker_insight.compat import task_runtime

hookimpl = HookimplMarker("airflow")

log = logging.getLogger(__name__)

_this_module = sys.modules[__name__]
_unregistered_in: set[int] = set()
"""Pids of the processes that have unregistered the listeners; a fork of one registers its own again."""


def listeners() -> list[Any]:
    """Return the listeners to register; none in a process without use for them.

    Such a process is a command that parses Dags, for example.
    """
    has_use = task_runtime.in_server_process() or task_runtime.in_task_process()
    if os.getpid() in _unregistered_in or not has_use:
        return []
    return [listener, run_listener, _this_module]


@hookimpl
def on_starting() -> None:
    """Leave the listener manager, but keep receiving its hooks through monitoring."""
    try:
        for manager in task_runtime.listener_managers():
            if manager.pm.is_registered(_this_module):
                # First, so that a listener manager created now registers nothing.
                _unregistered_in.add(os.getpid())
                manager.pm.add_hookcall_monitoring(_call_listeners, _do_nothing)
                for module in (listener, run_listener, _this_module):
                    manager.pm.unregister(module)
    except Exception as error:  # noqa: BLE001 - Airflow calls this while it starts
        log.warning("Airflow Worker Insight could not unregister its listeners: %s", error)


def _call_listeners(hook_name: str, _hook_impls: Any, arguments: Any) -> None:
    for module in (listener, run_listener):
        hook = getattr(module, hook_name, None)
        if hook is not None:
            hook(arguments["dag_run" if hook_name.startswith("on_dag_run") else "task_instance"])


def _do_nothing(*arguments: Any) -> None:
    pass
