"""Leases of worker sources: which process polls a source, and what its latest poll showed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta, timezone
from typing import TYPE_CHECKING

from sqlalchemy import or_, select, update

from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.store.dialects import execute_and_count, upsert
from airflow_worker_insight.store.tables import worker_source

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.engine import Connection


POLL_TIMEOUT = timedelta(seconds=60)
"""Longest duration of a poll; after that another process may poll, in case this one died."""


@dataclass(frozen=True, slots=True)
class SourceRow:
    """Stored state of a worker source. Times are aware UTC, by the database's clock."""

    name: str
    due_at: datetime
    """When the next poll is due; during a poll, when its lease ends."""
    polled_at: datetime | None = None
    """Time of the latest poll."""
    reached_since: datetime | None = None
    """Start of the unbroken series of successful polls."""
    error: str | None = None
    """Why the latest poll failed; ``None`` if it succeeded."""


def get_or_create_source(connection: Connection, name: str, *, now: datetime) -> SourceRow:
    """Return the row of a worker source; create one that is due at once if there is none."""
    row = find_source(connection, name)
    if row is not None:
        return row
    values = {"name": name, "due_at": now}
    connection.execute(upsert(connection.dialect.name, worker_source, values, key=["name"], update={"name": name}))
    return find_source(connection, name) or SourceRow(name, now)


def find_source(connection: Connection, name: str) -> SourceRow | None:
    """Return the row of a worker source, or ``None`` if it was never polled."""
    row = connection.execute(select(worker_source).where(worker_source.c.name == name)).first()
    if row is None:
        return None
    return SourceRow(
        name=row.name,
        due_at=row.due_at.astimezone(timezone.utc),
        polled_at=utc(row.looked_at),
        reached_since=utc(row.reached_since),
        error=row.error,
    )


def acquire_lease(
    connection: Connection, name: str, *, now: datetime, until: datetime, at_most: datetime, only_if_due: bool
) -> bool:
    """Take the lease on a worker source, so that only the caller polls it.

    :param until: end of the lease
    :param at_most: latest time until which another lease can be valid. A later one counts as due: the database's clock
        was set back, or the interval was shortened
    :param only_if_due: if false, take the lease even while another process holds it
    :return: whether the caller has the lease
    """
    conditions = [worker_source.c.name == name]
    if only_if_due:
        conditions.append(or_(worker_source.c.due_at <= now, worker_source.c.due_at > at_most))
    return execute_and_count(connection, update(worker_source).where(*conditions).values(due_at=until)) > 0


def release_lease(connection: Connection, name: str, *, until: datetime, due_at: datetime) -> None:
    """Schedule the next poll after a failed one, unless another process took the lease since.

    :param until: end of the caller's lease, which identifies it
    :param due_at: when the next poll is due
    """
    connection.execute(
        update(worker_source).where(worker_source.c.name == name, worker_source.c.due_at == until).values(due_at=due_at)
    )


def write_source(connection: Connection, row: SourceRow) -> None:
    """Write the result of a poll.

    This locks the row: another process that writes workers of the same source waits here until the caller commits.
    """
    connection.execute(
        update(worker_source)
        .where(worker_source.c.name == row.name)
        .values(due_at=row.due_at, looked_at=row.polled_at, reached_since=row.reached_since, error=row.error)
    )
