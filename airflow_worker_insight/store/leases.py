"""Who looks at an engine's workers, until when, and what the latest look has shown of the engine."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta, timezone
from typing import TYPE_CHECKING

from sqlalchemy import or_, select, update

from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.store.dialects import changed_rows, upsert
from airflow_worker_insight.store.tables import engine as engine_table

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.engine import Connection


LOOK_TAKES = timedelta(seconds=60)
"""How long a look may take at most: after so long another one may look, should this one have died."""


@dataclass(frozen=True, slots=True)
class SourceRow:
    """What is known of an engine. Times are aware UTC, by the database's clock."""

    name: str
    due_at: datetime
    looked_at: datetime | None = None
    reached_since: datetime | None = None
    error: str | None = None


def get_engine(connection: Connection, name: str, *, now: datetime) -> SourceRow:
    """Return an engine's row; one that is not there is made, due at once."""
    row = find_engine(connection, name)
    if row is not None:
        return row
    fresh = {"name": name, "due_at": now}
    connection.execute(upsert(connection.dialect.name, engine_table, fresh, key=["name"], update={"name": name}))
    return find_engine(connection, name) or SourceRow(name, now)


def find_engine(connection: Connection, name: str) -> SourceRow | None:
    """Return an engine's row, or ``None`` where nobody has ever come to look at it."""
    row = connection.execute(select(engine_table).where(engine_table.c.name == name)).first()
    if row is None:
        return None
    return SourceRow(
        name=row.name,
        due_at=row.due_at.astimezone(timezone.utc),
        looked_at=utc(row.looked_at),
        reached_since=utc(row.reached_since),
        error=row.error,
    )


def take_lease(
    connection: Connection, name: str, *, now: datetime, until: datetime, at_most: datetime, only_if_due: bool
) -> bool:
    """Make this caller the one to look at an engine, and nobody else until then; ``False`` if another one is.

    :param at_most: nobody can have taken it for longer than until then: the database's clock was set back, or the
        interval made shorter, and it is due
    :param only_if_due: without it the caller looks whoever else does
    """
    conditions = [engine_table.c.name == name]
    if only_if_due:
        conditions.append(or_(engine_table.c.due_at <= now, engine_table.c.due_at > at_most))
    return changed_rows(connection, update(engine_table).where(*conditions).values(due_at=until)) > 0


def give_back_lease(connection: Connection, name: str, *, until: datetime, due_at: datetime) -> None:
    """Let a look that failed be repeated at a time, unless somebody else has taken the lease since."""
    connection.execute(
        update(engine_table).where(engine_table.c.name == name, engine_table.c.due_at == until).values(due_at=due_at)
    )


def write_engine(connection: Connection, row: SourceRow) -> None:
    """Write what a look has shown. Whoever writes the same engine's workers waits here until the caller commits."""
    connection.execute(
        update(engine_table)
        .where(engine_table.c.name == row.name)
        .values(due_at=row.due_at, looked_at=row.looked_at, reached_since=row.reached_since, error=row.error)
    )
