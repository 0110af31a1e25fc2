"""Airflow's metadata database: its engine, its tables and what their columns mean."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from airflow_worker_insight import compat

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from typing import Any
    from uuid import UUID

    from sqlalchemy import Table
    from sqlalchemy.engine import Engine


def engine() -> Engine:
    """Return Airflow's own database engine, with its pool and its settings.

    Only :mod:`.store.session`, which bounds what is done with it, and our migrations use it.
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
    """Return what to select the identity of tries from, and its columns, for :func:`.airflow_history.instance_keys`.

    These are the row and the logical date of the Dag run, and on Airflow 3 the task instance's ID.

    :param table: Airflow's ``task_instance`` or its history
    """
    run = dag_run_table()
    joined = table.join(run, (run.c.dag_id == table.c.dag_id) & (run.c.run_id == table.c.run_id))
    moment = run.c.logical_date if compat.is_airflow_3() else run.c.execution_date
    columns = [run.c.id.label("identity_run"), moment.label("identity_moment")]
    if compat.is_airflow_3():
        own = table.c.task_instance_id if "task_instance_id" in table.c else table.c.id
        columns.append(own.label("identity_own"))
    return joined, columns


def run_of(task_instance: Any) -> tuple[int, datetime]:
    """Return the row ID and the logical date of the Dag run of a task instance of 2.11, which loads it with this."""
    run = task_instance.dag_run
    return run.id, run.execution_date


def stored_try_id(try_id: UUID) -> UUID | str:
    """Return Airflow 3's ID of a try as its tables' columns take it: they are of text up to 3.1."""
    return try_id if compat.airflow_version() >= (3, 2) else str(try_id)


def dag_table() -> Table:
    """Return Airflow's table of Dags."""
    from airflow.models.dag import DagModel

    table: Table = DagModel.__table__
    return table


def dag_run_table() -> Table:
    """Return Airflow's ``dag_run`` table."""
    from airflow.models.dagrun import DagRun

    table: Table = DagRun.__table__
    return table


def run_made_at(run: Any) -> Any | None:
    """Return the column that says when a Dag run was made, from Airflow 3.3 on; ``None`` before.

    :param run: Airflow's ``dag_run`` table, or an alias of it
    """
    return run.c.get("created_at")


def job_table() -> Table:
    """Return Airflow's ``job`` table."""
    from airflow.jobs.job import Job

    table: Table = Job.__table__
    return table


def job_health_threshold(job_type: str) -> timedelta:
    """Return how long one of Airflow's jobs may be silent before Airflow calls it unhealthy."""
    from datetime import timedelta

    from airflow.jobs.job import Job, health_check_threshold

    return timedelta(seconds=health_check_threshold(job_type, Job._heartrate(job_type)))  # noqa: SLF001


def task_heartbeat_timeout() -> timedelta:
    """Return after how long without a heartbeat the scheduler fails a try that runs."""
    from datetime import timedelta

    from airflow.configuration import conf

    option = "task_instance_heartbeat_timeout" if compat.is_airflow_3() else "scheduler_zombie_task_threshold"
    return timedelta(seconds=conf.getint("scheduler", option, fallback=300))


def xcom_model() -> Any:
    """Return the mapped class behind Airflow 3's ``xcom`` table."""
    from airflow.models.xcom import XComModel

    return XComModel


_MOST_FRAMES = 40
"""Calls between the execution API's route and a flush: some ten with SQLAlchemy 1.4 and 2.0."""


def stores_xcom_for_a_task() -> bool:
    """Return whether the caller is in the execution API's route that stores an XCom for a task process.

    It stores within the same call (3.0 to 3.3). No other route of Airflow's is this module's, and where it moves some
    day the answer is no.
    """
    frame = sys._getframe(1)  # noqa: SLF001
    for _ in range(_MOST_FRAMES):
        if frame.f_globals.get("__name__") == "airflow.api_fastapi.execution_api.routes.xcoms":
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False


def db_manager_base() -> type[Any]:
    """Return Airflow 3's ``BaseDBManager``; Airflow 2.11 has none (``ImportError``)."""
    return compat.import_class("airflow.utils.db_manager", "BaseDBManager")


def task_instance_states() -> frozenset[str]:
    """Return all states of a task instance that this Airflow knows."""
    from airflow.utils.state import TaskInstanceState

    return frozenset(state.value for state in TaskInstanceState)
