"""Detection of the current process's role, and the channel from a task to its supervisor.

Nothing is imported at module level: every task process loads this module, and there its functions may use only what
Airflow itself has already imported.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from airflow_worker_insight import compat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any


def plugin_base() -> type[Any]:
    """Return the ``AirflowPlugin`` class that is cheapest to import in this process.

    From 3.2 on a task process has loaded the SDK's own, and importing the scheduler's would cost it some 100 ms.
    """
    module = "airflow.sdk.plugins_manager" if compat.airflow_version() >= (3, 2) else "airflow.plugins_manager"
    return compat.import_class(module, "AirflowPlugin")


def task_channel() -> tuple[Any, Callable[..., Any]] | None:
    """Return the channel to the supervisor and its ``SetXCom`` message class.

    They exist in a real Airflow 3 task process only. The result is ``None`` in the API server and the scheduler, and
    under ``dag.test()`` and ``airflow tasks test``: these run in process (``InProcessSupervisorComms``), where no API
    server would claim a report.
    """
    runner = sys.modules.get("airflow.sdk.execution_time.task_runner")
    comms_module = sys.modules.get("airflow.sdk.execution_time.comms")
    comms = getattr(runner, "SUPERVISOR_COMMS", None)
    if comms is None or comms_module is None or type(comms).__name__ != "CommsDecoder":
        return None
    return comms, comms_module.SetXCom


def escape_run_id(run_id: str) -> str | None:
    """Return a run ID as ``SetXCom`` must carry it, or ``None`` if no encoding works.

    The task's client puts it into a URL's path unescaped (3.0 to 3.3), where ``#`` and ``?`` end the path and ``%``
    starts an escape sequence; the client does not escape existing sequences again. A slash, even an escaped one, splits
    the path on the server, so that the execution API does not find the run.
    """
    if "/" in run_id:
        return None
    return run_id.replace("%", "%25").replace("#", "%23").replace("?", "%3F")


def task_processes_have_database() -> bool:
    """Return whether task processes have access to the database (2.11); those of Airflow 3 send reports instead."""
    return not compat.is_airflow_3()


def user_has_set_state() -> bool:
    """Return whether the current hook call for a task instance's end announces a state that a user set.

    Airflow 3 makes such calls in the API server. In a task process the same hooks announce the task's own end; with
    LocalExecutor that process is a fork of the scheduler and looks like one.
    """
    return compat.is_airflow_3() and task_channel() is None


def runs_under_local_task_job(task_instance: Any) -> bool:
    """Return whether a LocalTaskJob of Airflow 2.11 started this task process.

    Its command is ``airflow tasks run --raw``. ``dag.test()`` and ``airflow tasks test`` have no job, so their task
    instances carry no ``job_id``.
    """
    return task_processes_have_database() and getattr(task_instance, "job_id", None) is not None


def in_server_process() -> bool:
    """Return whether this process is a scheduler or an API server: only these reconcile.

    ``dag.test()`` calls the same Dag run listeners in a user's own process.
    """
    if hasattr(sys.modules.get("airflow.sdk.execution_time.task_runner"), "SUPERVISOR_COMMS"):
        # LocalExecutor forks its task processes from the scheduler, with all its imported modules.
        return False
    return in_scheduler() or "airflow.api_fastapi.core_api.app" in sys.modules


def in_task_process() -> bool:
    """Return whether this process runs a task for a worker.

    On 2.11: whether it has at least loaded the command for it.
    """
    if task_processes_have_database():
        return "airflow.cli.commands.task_command" in sys.modules
    return task_channel() is not None


def listener_managers() -> Iterator[Any]:
    """Yield Airflow's existing listener managers: from 3.2 on the task SDK has its own."""
    for name in ("airflow.listeners.listener", "airflow.sdk.listener"):
        module = sys.modules.get(name)
        if module is None:
            continue
        if compat.airflow_version() >= (3, 2):
            if module.get_listener_manager.cache_info().currsize:
                yield module.get_listener_manager()
        elif (manager := module._listener_manager) is not None:  # noqa: SLF001 - the public function would make one
            yield manager


def in_scheduler() -> bool:
    """Return whether this process is a scheduler or was forked from one.

    It is recognised by the scheduler's loaded module.
    """
    return "airflow.jobs.scheduler_job_runner" in sys.modules
