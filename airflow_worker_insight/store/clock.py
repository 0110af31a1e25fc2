"""The database's clock, which polls use because the clocks of hosts differ by minutes."""

from __future__ import annotations

from datetime import timezone
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from airflow_worker_insight.store.tables import Timestamp

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.engine import Connection


def database_now(connection: Connection) -> datetime:
    """Return the current time by the database's clock, as an aware UTC time."""
    # CURRENT_TIMESTAMP is in the session's time zone on MySQL, and has no fraction on SQLite.
    expression = {
        "mysql": func.utc_timestamp(6, type_=Timestamp()),
        "sqlite": func.strftime("%Y-%m-%d %H:%M:%f", "now", type_=Timestamp()),
    }.get(connection.dialect.name, func.clock_timestamp(type_=Timestamp()))
    now: datetime = connection.execute(select(expression)).scalar_one()
    return now.astimezone(timezone.utc)
