"""Workers from the Edge provider's table, whose columns depend on the provider's version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect, select

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Connection, Row


def edge_workers(connection: Connection) -> Sequence[Row[Any]] | None:
    """Return all workers in the table, including those that ended long ago.

    :return: ``None`` if the table does not exist yet
    """
    from airflow.providers.edge3.models.edge_worker import EdgeWorkerModel

    table = EdgeWorkerModel.__table__
    if not inspect(connection).has_table(table.name, schema=table.schema):
        return None
    return connection.execute(select(table)).all()
