"""Airflow's metadata database: its engine, its tables and the meaning of their columns."""

from __future__ import annotations

from inspect import currentframe
from typing import TYPE_CHECKING

from airflow_worker_insight import compat

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from typing import Any
    from uuid import UUID

    from sqlalchemy import Table
    from sqlalchemy.engine import Engine


def engine() -> Engine:
    """Return Airflow's own SQLAlchemy engine, with its pool and settings.

    Only :mod:`.store.session`, which limits its use, and this package's migrations use it.

    :raises RuntimeError: if the database is not configured in this process
    """
    from airflow import settings

    metadata_engine: Engine | None = settings.engine
    if metadata_engine is None:
        settings.configure_orm()
        metadata_engine = settings.engine
    if metadata_engine is None:
        raise RuntimeError("Airflow's database is not configured in this process")
    return metadata_engine


def database_url() -> str:
    """Return the URL of Airflow's metadata database."""
    from airflow import settings

    return str(settings.SQL_ALCHEMY_CONN)


def task_instance_table() -> Table:
    """Return Airflow's ``task_instance`` table."""
    from airflow.models.taskinstance import TaskInstance

    table: Table = TaskInstance.__table__
    return table


def task_instance_history_table() -> Table:
    """Return Airflow's ``task_instance_history`` table."""
    from airflow.models.taskinstancehistory import TaskInstanceHistory

    table: Table = TaskInstanceHistory.__table__
    return table


def try_identity(table: Table) -> tuple[Any, list[Any]]:
    """Return what to select to identify tries: the join, and its columns.

    The columns are the row ID and the logical date of the Dag run, and on Airflow 3 the task instance's ID;
    :func:`.airflow_history.instance_keys` reads them.

    :param table: Airflow's ``task_instance`` table or its history
    """
    run = dag_run_table()
    joined = table.join(run, (run.c.dag_id == table.c.dag_id) & (run.c.run_id == table.c.run_id))
    logical_date = run.c.logical_date if compat.is_airflow_3() else run.c.execution_date
    columns = [run.c.id.label("identity_run"), logical_date.label("identity_moment")]
    if task_instances_have_ids():
        task_instance_id = table.c.task_instance_id if "task_instance_id" in table.c else table.c.id
        columns.append(task_instance_id.label("identity_own"))
    return joined, columns


def task_instances_have_ids() -> bool:
    """Return whether Airflow gives task instances an ID of their own (Airflow 3)."""
    return compat.is_airflow_3()


def dag_run_identity(task_instance: Any) -> tuple[int, datetime]:
    """Return the row ID and the logical date of a 2.11 task instance's Dag run.

    2.11 loads the Dag run together with the task instance.
    """
    run = task_instance.dag_run
    return run.id, run.execution_date


def stored_try_id(try_id: UUID) -> UUID | str:
    """Return Airflow 3's ID of a try in the type of its columns: text up to 3.1."""
    return try_id if compat.airflow_version() >= (3, 2) else str(try_id)


def dag_table() -> Table:
    """Return Airflow's ``dag`` table."""
    from airflow.models.dag import DagModel

    table: Table = DagModel.__table__
    return table


def dag_run_table() -> Table:
    """Return Airflow's ``dag_run`` table."""
    from airflow.models.dagrun import DagRun

    table: Table = DagRun.__table__
    return table


def dag_run_created_at(run: Any) -> Any | None:
    """Return the column with the creation time of a Dag run (3.3 and later), else ``None``.

    :param run: Airflow's ``dag_run`` table, or an alias of it
    """
    return run.c.get("created_at")


def job_table() -> Table:
    """Return Airflow's ``job`` table."""
    from airflow.jobs.job import Job

    table: Table = Job.__table__
    return table


def job_health_threshold(job_type: str) -> timedelta:
    """Return the time without a heartbeat after which Airflow calls a job unhealthy."""
    from datetime import timedelta

    from airflow.jobs.job import Job, health_check_threshold

    heartrate = Job._heartrate(job_type)  # noqa: SLF001 - Airflow's public rate is that of a job's object
    return timedelta(seconds=health_check_threshold(job_type, heartrate))


def task_heartbeat_timeout() -> timedelta:
    """Return the time without a heartbeat after which the scheduler fails a running try."""
    from datetime import timedelta

    from airflow.configuration import conf

    option = "task_instance_heartbeat_timeout" if compat.is_airflow_3() else "scheduler_zombie_task_threshold"
    return timedelta(seconds=conf.getint("scheduler", option, fallback=300))


def xcom_model() -> Any:
    """Return the mapped class of Airflow 3's ``xcom`` table."""
    from airflow.models.xcom import XComModel

    return XComModel


_MAX_FRAMES = 40
"""Frames to search for the execution API's route.

Between it and a flush are about ten calls with SQLAlchemy 1.4 and 2.0.
"""


def in_task_xcom_request() -> bool:
    """Return whether the caller runs in the execution API's route that stores a task's XCom.

    The route stores it within the same call (3.0 to 3.3). No other route of Airflow is in that module; if a later
    version moves the route, this returns ``False``.
    """
    frame = currentframe()
    for _ in range(_MAX_FRAMES):
        if frame is None:
            return False
        if frame.f_globals.get("__name__") == "airflow.api_fastapi.execution_api.routes.xcoms":
            return True
        frame = frame.f_back
    return False


def db_manager_base() -> type[Any]:
    """Return Airflow 3's ``BaseDBManager``.

    :raises ImportError: on Airflow 2.11, which has none
    """
    return compat.import_class("airflow.utils.db_manager", "BaseDBManager")


def task_instance_states() -> frozenset[str]:
    """Return all states of a task instance that this Airflow version knows."""
    from airflow.utils.state import TaskInstanceState

    return frozenset(state.value for state in TaskInstanceState)
