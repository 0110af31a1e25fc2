"""Times: the database's clock, by which the fleet is looked at because hosts disagree by minutes, and UTC."""

from __future__ import annotations

from datetime import timezone
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from airflow_worker_insight.store.tables import Timestamp

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.engine import Connection


def database_now(connection: Connection) -> datetime:
    """Return the time by the database's clock, aware, in UTC."""
    # MySQL's CURRENT_TIMESTAMP is in the session's time zone; SQLite's has no fraction.
    now = {
        "mysql": func.utc_timestamp(6, type_=Timestamp()),
        "sqlite": func.strftime("%Y-%m-%d %H:%M:%f", "now", type_=Timestamp()),
    }.get(connection.dialect.name, func.clock_timestamp(type_=Timestamp()))
    found: datetime = connection.execute(select(now)).scalar_one()
    return found.astimezone(timezone.utc)
