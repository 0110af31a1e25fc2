"""LocalExecutor and its processes, and the queued tasks of any executor."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from airflow_worker_insight import compat

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def queued_task(item: Any) -> tuple[Any, str | None]:
    """Return ``executor_config`` and, on 2.11, the pool of a task in an executor's queue.

    Airflow 3 queues a workload, which does not name the pool; 2.11 queues a tuple that ends with the task instance.
    """
    if isinstance(item, tuple):
        return item[-1].executor_config, item[-1].pool
    return getattr(getattr(item, "ti", None), "executor_config", None), None


def run_locally(executor: Any, key: Any, item: Any) -> None:
    """Send a workload, or on 2.11 a command, to a LocalExecutor, past its queued tasks.

    :param key: Airflow's key of the workload or command
    """
    if not compat.is_airflow_3():
        executor.execute_async(key, item)
        return
    # 3.0 passes it on at once, later versions when they process workloads.
    executor.queue_workload(item, session=None)
    if compat.airflow_version() >= (3, 1):
        executor._process_workloads([item])  # noqa: SLF001 - nothing public sends a single workload


def workload_key(workload: Any) -> Any:
    """Return Airflow's key of a workload, under which an executor reports its state."""
    if hasattr(workload, "key"):
        return workload.key
    return workload.ti.key if hasattr(workload, "ti") else workload.callback.id


def local_processes(executor: Any) -> list[Any]:
    """Return the processes that a LocalExecutor knows, including dead ones."""
    return list(executor.workers.values() if isinstance(executor.workers, dict) else executor.workers)


def local_executor_restarts_processes() -> bool:
    """Return whether LocalExecutor replaces processes that died."""
    return compat.is_airflow_3()


def local_executor_has_no_queue() -> bool:
    """Return whether LocalExecutor passes workloads to its processes immediately (3.0)."""
    return compat.airflow_version() == (3, 0)


def stop_local_processes(executor: Any) -> None:
    """Send all processes of Airflow 3's LocalExecutor the message to end.

    The executor's own ``end`` may fail to do so (3.0 to 3.3): it sends one message for each process that lives. If a
    process takes a message and ends before ``end`` checks it, no message is sent for it. Then another process gets
    none, and the scheduler waits for that forever. Extra messages are harmless.
    """
    if compat.is_airflow_3():
        for _ in local_processes(executor):
            executor.activity_queue.put(None)


def local_process(executor: Any) -> tuple[Callable[..., None], dict[str, Any]]:
    """Return the function that a process of Airflow 3's LocalExecutor runs, and its arguments."""
    from inspect import signature

    target = import_module("airflow.executors.local_executor")._run_worker  # noqa: SLF001 - the target of the executor's own processes
    available = {
        "logger_name": executor.log.name,
        "input": executor.activity_queue,
        "output": executor.result_queue,
        "unread_messages": executor._unread_messages,  # noqa: SLF001 - an argument of that target
        # From 3.2 on.
        "team_conf": getattr(executor, "conf", None),
    }
    return target, {parameter: available[parameter] for parameter in signature(target).parameters}


def team_name_of(executor: Any) -> str | None:
    """Return the team of an executor, or ``None`` (Airflow 3.1 and later)."""
    return getattr(executor, "team_name", None)


def hostname() -> str:
    """Return Airflow's name of this host."""
    from airflow.utils.net import get_hostname

    return str(get_hostname())
