"""Reports in Airflow 3's ``xcom`` table, and the hook that runs before a session writes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timezone
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, event, select
from sqlalchemy.orm import Session

from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.keys import TaskInstanceKey

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.attempts import DagRunRef


@dataclass(frozen=True, slots=True)
class StoredReport:
    """An unclaimed report."""

    stored_under: TaskInstanceKey
    """The task instance whose XCom it is."""
    value: Any
    stored_at: datetime
    """When it was stored (UTC)."""


def delete_report(connection: Connection, key: str, stored_under: TaskInstanceKey) -> None:
    """Delete the XCom of a task instance that holds its report.

    :param key: key of the XCom
    """
    connection.execute(
        _delete(),
        {
            "p_key": key,
            "p_dag_id": stored_under.dag_id,
            "p_run_id": stored_under.run_id,
            "p_task_id": stored_under.task_id,
            "p_map_index": stored_under.map_index,
        },
    )


@cache
def _delete() -> Any:
    """Build the statement of :func:`delete_report` once: building takes longer than executing."""
    table = metadata_database.xcom_model().__table__
    names = ("key", "dag_id", "run_id", "task_id", "map_index")
    return delete(table).where(*(table.c[name] == bindparam(f"p_{name}", type_=table.c[name].type) for name in names))


def unclaimed_reports(
    connection: Connection, key: str, *, runs: Collection[DagRunRef] | None = None, limit: int, offset: int = 0
) -> list[StoredReport]:
    """Return a page of the reports that are stored and unclaimed.

    :param key: key of their XComs
    :param runs: only reports of these Dag runs; by default of all
    """
    table = metadata_database.xcom_model().__table__
    statement = (
        select(
            table.c.dag_id,
            table.c.run_id,
            table.c.task_id,
            table.c.map_index,
            table.c.value,
            table.c.timestamp,
        )
        .where(table.c.key == key)
        .order_by(table.c.dag_run_id, table.c.task_id, table.c.map_index)
        .limit(limit)
        .offset(offset)
    )
    if runs is not None:
        statement = statement.where(table.c.dag_run_id.in_([run.row_id for run in runs]))
    return [
        StoredReport(
            stored_under=TaskInstanceKey(row.dag_id, row.run_id, row.task_id, row.map_index),
            value=row.value,
            stored_at=row.timestamp.astimezone(timezone.utc),
        )
        for row in connection.execute(statement)
    ]


def add_flush_hook(hook: Callable[[Session, Any, Any], None]) -> None:
    """Make all sessions of this process call ``hook`` before each flush."""
    event.listen(Session, "before_flush", hook)


def remove_flush_hook(hook: Callable[[Session, Any, Any], None]) -> None:
    """Undo :func:`add_flush_hook`."""
    event.remove(Session, "before_flush", hook)
