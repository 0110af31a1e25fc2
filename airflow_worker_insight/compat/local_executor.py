"""LocalExecutor and its processes, and what any executor has queued."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from airflow_worker_insight import compat

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def queued_task(item: Any) -> tuple[Any, str | None]:
    """Return the ``executor_config`` and, on 2.11, the pool of one of an executor's queued tasks.

    Airflow 3 queues a workload, which does not name the pool; 2.11 a tuple that ends with the task instance.
    """
    if isinstance(item, tuple):
        return item[-1].executor_config, item[-1].pool
    return getattr(getattr(item, "ti", None), "executor_config", None), None


def run_locally(executor: Any, key: Any, item: Any) -> None:
    """Hand something to a LocalExecutor, past its queued tasks: a workload, or on 2.11 a command.

    :param key: Airflow's key of it
    """
    if not compat.is_airflow_3():
        executor.execute_async(key, item)
        return
    # 3.0 hands it on at once, later versions when they are told to.
    executor.queue_workload(item, session=None)
    if compat.airflow_version() >= (3, 1):
        executor._process_workloads([item])  # noqa: SLF001


def workload_key(workload: Any) -> Any:
    """Return Airflow's key of a workload, by which an executor tells what has become of it."""
    if hasattr(workload, "key"):
        return workload.key
    return workload.ti.key if hasattr(workload, "ti") else workload.callback.id


def local_processes(executor: Any) -> list[Any]:
    """Return the processes of a LocalExecutor that it knows of, dead ones too."""
    return list(executor.workers.values() if isinstance(executor.workers, dict) else executor.workers)


def local_processes_come_back() -> bool:
    """Return whether LocalExecutor starts a process in the place of one that died."""
    return compat.is_airflow_3()


def local_executor_queues_nothing() -> bool:
    """Return whether LocalExecutor hands a workload to its processes as soon as it gets it (3.0)."""
    return compat.airflow_version() == (3, 0)


def dismiss_local_processes(executor: Any) -> None:
    """Tell all processes of Airflow 3's LocalExecutor to end, as its own ``end`` may fail to do (3.0 to 3.3).

    That sends one message for each that lives. One that takes it and ends before ``end`` comes to it is sent none, so
    that another one is left without, and the scheduler waits for that forever. What is sent too much does no harm.
    """
    if compat.is_airflow_3():
        for _ in local_processes(executor):
            executor.activity_queue.put(None)


def local_process(executor: Any) -> tuple[Callable[..., None], dict[str, Any]]:
    """Return what a process of Airflow 3's LocalExecutor runs, and what it is given."""
    from inspect import signature

    run = import_module("airflow.executors.local_executor")._run_worker  # noqa: SLF001
    known = {
        "logger_name": executor.log.name,
        "input": executor.activity_queue,
        "output": executor.result_queue,
        "unread_messages": executor._unread_messages,  # noqa: SLF001
        # From 3.2 on.
        "team_conf": getattr(executor, "conf", None),
    }
    return run, {name: known[name] for name in signature(run).parameters}


def executors_team(executor: Any) -> str | None:
    """Return the team that an executor is of (Airflow 3.1 and later)."""
    return getattr(executor, "team_name", None)


def hostname() -> str:
    """Return what Airflow calls this host."""
    from airflow.utils.net import get_hostname

    return str(get_hostname())
