"""Workers from the Edge provider's table, whose columns depend on the provider's version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect, select
from sqlalchemy.orm import Session

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


def request_maintenance(connection: Connection, name: str, comment: str) -> None:
    """Ask an Edge worker to take no new tasks; it finishes those that it runs.

    :param comment: why, for the page of the Edge workers
    :raises ValueError: if the provider knows no such worker
    """
    from airflow.providers.edge3.models import edge_worker

    with Session(bind=connection) as orm:
        edge_worker.request_maintenance(name, comment, session=orm)
        orm.flush()


def exit_maintenance(connection: Connection, name: str) -> None:
    """Ask an Edge worker to take tasks again.

    :raises ValueError: if the provider knows no such worker
    """
    from airflow.providers.edge3.models import edge_worker

    with Session(bind=connection) as orm:
        edge_worker.exit_maintenance(name, session=orm)
        orm.flush()
