"""The job of the analysis: its lease, its cursor and its stored state.

The process that holds the lease runs the job. Its time is the database's: the lease of a process that died ends by
itself. Whoever takes it over replaces the holder, so a former holder notices that with its next statement here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING

from sqlalchemy import delete, or_, select, update

from airflow_worker_insight.domain.clock import utc
from airflow_worker_insight.domain.limits import REASON_LENGTH
from airflow_worker_insight.domain.names import clean
from airflow_worker_insight.store.batches import batches
from airflow_worker_insight.store.dialects import execute_and_count, in_list, insert_new, replace_many
from airflow_worker_insight.store.insight_tables import detector_part, job

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from typing import Any

    from sqlalchemy.engine import Connection

NAME = "insight"

LEASE = timedelta(seconds=60)
"""How long a lease lasts at least; each step renews it."""

BATCH = 1000
"""Parts that one statement writes or deletes."""


class LeaseLostError(RuntimeError):
    """Raised when another process has taken the job over."""

    def __init__(self) -> None:
        super().__init__("another process has taken over the analysis")


@dataclass(frozen=True, slots=True)
class JobRow:
    """The job as the database has it. Times are aware UTC, by the database's clock."""

    holder: str | None
    leased_until: datetime
    read_until: datetime | None = None
    """All tries that started before are part of the stored state."""
    stored_at: datetime | None = None
    stepped_at: datetime | None = None
    error: str | None = None
    """Why the latest step failed; ``None`` if it succeeded."""


def read(connection: Connection) -> JobRow | None:
    """Return the job, or ``None`` if it has never run."""
    row = connection.execute(select(job).where(job.c.name == NAME)).first()
    if row is None:
        return None
    leased_until = utc(row.leased_until)
    assert leased_until is not None
    return JobRow(
        row.holder, leased_until, utc(row.read_until), utc(row.stored_at), utc(row.stepped_at), row.error or None
    )


def lease(interval: timedelta) -> timedelta:
    """Return how long the lease of a process lasts that renews it once per interval."""
    return max(LEASE, 2 * interval)


def renew(connection: Connection, holder: str, *, now: datetime, lasts: timedelta = LEASE) -> bool:
    """Prolong a lease; return whether the holder still has it. No other process had it in between."""
    return _write(connection, job.c.holder == holder, leased_until=now + lasts)


def acquire(
    connection: Connection, holder: str, *, now: datetime, lasts: timedelta = LEASE, by_force: bool = False
) -> bool:
    """Take the lease if no other process has it.

    :param by_force: take it in any case: the other process stores nothing from then on
    :return: whether the caller has it now
    """
    if not by_force:
        # A latest step in the future: the database's clock was set back, so the lease would last for too long.
        is_free = or_(job.c.leased_until <= now, job.c.stepped_at > now + LEASE)
        if _write(connection, is_free, holder=holder, leased_until=now + lasts):
            return True
        if read(connection) is not None:
            return False
    values = {"name": NAME, "leased_until": now, "holder": None}
    connection.execute(insert_new(connection.dialect.name, job, values))
    is_free = job.c.name == NAME if by_force else job.c.leased_until <= now
    return _write(connection, is_free, holder=holder, leased_until=now + lasts)


def end_step(
    connection: Connection, holder: str, *, now: datetime, lasts: timedelta = LEASE, error: str | None = None
) -> None:
    """Note that a step has ended, and prolong the lease.

    :param error: why it failed
    :raises LeaseLostError: if another process has the lease
    """
    values = {"stepped_at": now, "leased_until": now + lasts, "error": error and clean(error, REASON_LENGTH)}
    if not _write(connection, job.c.holder == holder, **values):
        raise LeaseLostError


def release(connection: Connection, holder: str, *, now: datetime) -> None:
    """Give the lease back, so that another process need not wait for its end."""
    _write(connection, job.c.holder == holder, holder=None, leased_until=now)


def advance(
    connection: Connection, holder: str, *, read_until: datetime, now: datetime, lasts: timedelta = LEASE
) -> None:
    """Set the cursor, at the beginning of the transaction that stores the state.

    The row stays locked until its end: no other process can take the lease meanwhile.

    :raises LeaseLostError: if another process has the lease
    """
    values = {"read_until": read_until, "stored_at": now, "leased_until": now + lasts}
    if not _write(connection, job.c.holder == holder, **values):
        raise LeaseLostError


def reset(connection: Connection) -> None:
    """Forget the cursor, so that the stored state only says what statistics have.

    Call it with the lease.
    """
    connection.execute(update(job).where(job.c.name == NAME).values(read_until=None))


def _write(connection: Connection, condition: Any, **values: Any) -> bool:
    return execute_and_count(connection, update(job).where(job.c.name == NAME, condition).values(values)) > 0


# --- the state -------------------------------------------------------------------------------------------------------


def read_parts(connection: Connection) -> dict[str, str]:
    """Return the stored parts by their names."""
    rows = connection.execute(select(detector_part.c.value))
    # One without a line break is damaged: who reads the state notices that it is missing.
    return {name: text for name, _, text in (row.value.partition("\n") for row in rows)}


def delete_parts(connection: Connection) -> None:
    """Delete the stored state."""
    connection.execute(delete(detector_part))


def write_parts(connection: Connection, parts: Mapping[str, str | None]) -> None:
    """Insert, replace or delete parts.

    :param parts: texts by name; ``None`` deletes a part. Names have no line break
    """
    gone = sorted(_part_key(name) for name, text in parts.items() if text is None)
    for batch in batches(gone, BATCH):
        connection.execute(delete(detector_part).where(in_list(connection, detector_part.c.part_key, batch)))
    rows = [
        {"part_key": _part_key(name), "value": f"{name}\n{text}"} for name, text in parts.items() if text is not None
    ]
    for rows_at_once in batches(rows, BATCH):
        replace_many(connection, detector_part, rows_at_once)


def _part_key(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)
