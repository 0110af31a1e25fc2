"""The rows of Airflow 3's xcom table that carry reports."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timezone
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, select

from airflow_worker_insight import compat
from airflow_worker_insight.store.keys import TaskInstanceKey

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.store.airflow_tries import DagRunRef


@dataclass(frozen=True, slots=True)
class StoredReport:
    """A report that nobody claimed, with the task instance it is stored under and when it was stored (UTC)."""

    stored_under: TaskInstanceKey
    value: Any
    stored_at: datetime


def delete_report(connection: Connection, key: str, stored_under: TaskInstanceKey) -> None:
    """Delete the row that carries a task instance's report."""
    table = compat.xcom_model().__table__
    connection.execute(
        delete(table).where(
            table.c.key == key,
            table.c.dag_id == stored_under.dag_id,
            table.c.run_id == stored_under.run_id,
            table.c.task_id == stored_under.task_id,
            table.c.map_index == stored_under.map_index,
        )
    )


def unclaimed_reports(
    connection: Connection, key: str, *, runs: Collection[DagRunRef] | None = None, limit: int, offset: int = 0
) -> list[StoredReport]:
    """Return stored reports that nobody claimed, of these Dag runs or of all, a page of them."""
    table = compat.xcom_model().__table__
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
