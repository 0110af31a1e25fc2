"""Read the Edge provider's table of workers. Its columns differ between versions of the provider."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect, select

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Connection, Row


def edge_workers(connection: Connection) -> Sequence[Row[Any]] | None:
    """Return every worker that the table names, those that are long gone too; ``None`` where there is no table yet."""
    from airflow.providers.edge3.models.edge_worker import EdgeWorkerModel

    table = EdgeWorkerModel.__table__
    if not inspect(connection).has_table(table.name, schema=table.schema):
        return None
    return connection.execute(select(table)).all()
