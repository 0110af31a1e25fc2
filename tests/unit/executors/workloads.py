"""Workloads as a scheduler passes them to an executor."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

from airflow_worker_insight import compat


def a_workload(task_id: str, *, try_number: int = 1, priority: int = 1, **others: Any) -> Any:
    ti = SimpleNamespace(
        id=uuid.uuid4(),
        dag_version_id=uuid.uuid4(),
        dag_id="etl",
        run_id="run-1",
        task_id=task_id,
        try_number=try_number,
        map_index=-1,
        pool_slots=1,
        queue="default",
        priority_weight=priority,
        executor_config=None,
        parent_context_carrier=None,
        context_carrier=None,
        queued_dttm=None,
        external_executor_id=None,
        hostname=None,
        dag_model=SimpleNamespace(bundle_name="dags", relative_fileloc="etl.py"),
        dag_run=SimpleNamespace(bundle_version=None, start_date=None),
        **others,
    )
    if not compat.is_airflow_3():
        from airflow.models.taskinstancekey import TaskInstanceKey

        ti.key = TaskInstanceKey(ti.dag_id, ti.task_id, ti.run_id, ti.try_number, ti.map_index)
        ti.pool = "default_pool"
        return SimpleNamespace(ti=ti)
    from airflow.executors import workloads

    bundle = workloads.BundleInfo(name="dags", version=None)
    model: Any = workloads.ExecuteTask.model_fields["ti"].annotation
    return workloads.ExecuteTask(
        ti=model.model_validate(ti, from_attributes=True),
        dag_rel_path="etl.py",
        token="t",
        log_path="l",
        bundle_info=bundle,  # type: ignore[arg-type]
    )


def put(executor: Any, workload: Any) -> Any:
    """Queue a task as the scheduler of this Airflow does: a workload, or on 2.11 a command with its task instance."""
    if compat.is_airflow_3():
        executor.queue_workload(workload, session=None)
        return workload.ti.key
    ti, key = workload.ti, workload.ti.key
    command = ["airflow", "tasks", "run", key.dag_id, key.task_id, key.run_id, "--local"]
    executor.queued_tasks[key] = (command, ti.priority_weight, ti.queue, ti)
    return key


def queue(executor: Any, *task_ids: str, **others: Any) -> list[Any]:
    return [put(executor, a_workload(task_id, **others)) for task_id in task_ids]
