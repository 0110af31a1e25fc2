"""Forget what is older than a limit: tries, workers that no kept try names, and what happened to the others.

A try goes as a whole, with the rows of all its workers, when it ended before the limit; one that never ended when it
started before it and Airflow does not have it any more; one without any times with the rest of its Dag run. All is
removed in small batches, each in a transaction of its own.

**A try never points to nothing**, though no foreign key says so. A worker is removed by one transaction that locks its
row first and then looks for tries that name it. Those who write tries meanwhile are of three sorts:

- The usual start of a try takes no lock on its worker's row, where all of a busy worker would queue. Instead it writes
  only while the row says that the worker was seen within the last hour (:data:`~.start.FRESH`). Here no worker is
  removed that was seen within a day (:data:`SETTLED`), and that time is only ever set to the present. So such a start
  and a removal would have to overlap for 23 hours, or the clocks of two hosts to be as far apart.
- Any other start locks the worker's row until the try is written: the removal passes such a row by, or the start waits
  for the removal and makes the worker anew.
- Reconciling names workers of long ago. It holds a lock on all that it has read (:func:`.locks.kept`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, TypeAlias

from sqlalchemy import and_, delete, func, or_, select
from sqlalchemy.engine import Connection

from airflow_worker_insight import config
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.states import FINISHED, LOST, OFFLINE, QUARANTINED
from airflow_worker_insight.store import placements, session
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.dialects import changed_rows, disable_jit, in_rows
from airflow_worker_insight.store.locks import acquire_write_lock
from airflow_worker_insight.store.tables import attempt, change, start_slot, worker

log = logging.getLogger(__name__)

BATCH = 500
"""Rows of tries, or workers, that one transaction removes."""

SETTLED = timedelta(days=1)
"""A worker that was seen within this time stays, whatever the limit: see above."""

STEP = 5_000
"""Rows that :func:`keep_within_limit` removes at once: its thread has other things to do."""

REST = 3600.0
"""Seconds that :func:`keep_within_limit` does nothing after it has found nothing more to remove."""

MAX_DAYS = 100 * 365
"""A longer limit removes nothing either, and no calendar must hold it."""

Transaction: TypeAlias = Callable[[], AbstractContextManager[Connection]]


@dataclass(frozen=True, slots=True)
class Removed:
    """How much was removed, or would be: tries, workers, and entries of workers' histories."""

    attempts: int = 0
    workers: int = 0
    changes: int = 0

    @property
    def rows(self) -> int:
        """How much it is in all, as budgets count it."""
        return self.attempts + self.workers + self.changes

    def __add__(self, other: Removed) -> Removed:
        """Sum two batches."""
        return Removed(self.attempts + other.attempts, self.workers + other.workers, self.changes + other.changes)


@dataclass(frozen=True, slots=True)
class Preview:
    """What a limit would remove, and when the oldest try started that would stay (UTC; ``None`` without any)."""

    removed: Removed
    oldest_kept: datetime | None


def preview(connection: Connection, older_than: datetime) -> Preview:
    """Say what :func:`prune` would remove. It reads every try before the limit."""
    disable_jit(connection)
    goes = _try_goes(attempt, older_than)
    # One without a start is in no slot.
    before = or_(attempt.c.start_slot.is_(None), attempt.c.start_slot <= start_slot(older_than))
    tries = select(*_key(attempt)).where(before, goes).distinct()
    workers = select(worker.c.id).where(
        *_worker_goes(older_than, database_now(connection)), ~_is_named(lambda row: ~_try_goes(row, older_than))
    )
    changes = select(change.c.id).where(or_(change.c.worker_ref.in_(workers), _change_goes(older_than)))
    oldest = connection.execute(
        select(attempt.c.started_at)
        .where(attempt.c.start_slot.is_not(None), ~goes)
        .order_by(_from_the_oldest(connection), attempt.c.started_at)
        .limit(1)
    ).scalar()
    counted = [
        connection.execute(select(func.count()).select_from(rows.subquery())).scalar_one()
        for rows in (tries, workers, changes)
    ]
    return Preview(Removed(*counted), None if oldest is None else oldest.astimezone(timezone.utc))


def _transaction() -> AbstractContextManager[Connection]:
    return session.writing(session.BACKGROUND)


def prune(older_than: datetime, *, transaction: Transaction = _transaction) -> Iterator[Removed]:
    """Remove all that is older than the limit, yielding after each batch. It can be stopped anywhere and run again.

    :param transaction: begins one on Airflow's database; by default one that does not wait long for others
    """
    # Where reconciling has not done it, because Airflow's own history of the run was removed first.
    with transaction() as connection:
        placements.forget(connection, older_than)
    yield from _prune_tries(older_than, transaction)
    yield from _prune_workers(older_than, transaction)
    yield from _prune_changes(older_than, transaction)


def prune_step(*, older_than: datetime, budget: int, transaction: Transaction = _transaction) -> Removed:
    """Remove some of what is older than the limit, and stop after the batch in which ``budget`` rows are reached.

    A step that removes less than its budget has left nothing for another.
    """
    total = Removed()
    for removed in prune(older_than, transaction=transaction):
        total += removed
        if total.rows >= budget:
            break
    return total


_rests_until = 0.0


def keep_within_limit() -> Removed | None:
    """Apply ``[worker_insight] retention_days``: one step, unless this process has just found nothing to do.

    For a thread that comes round regularly; it never raises. Where several processes do it at once they remove the
    same.

    :return: what was removed; ``None`` without a limit, or while it rests
    """
    global _rests_until  # noqa: PLW0603
    if time.monotonic() < _rests_until:
        return None
    # Before the step, so that one that fails rests too.
    _rests_until = time.monotonic() + REST
    try:
        removed = _step_to_limit()
    except Exception as error:  # noqa: BLE001
        log.warning("Airflow Worker Insight could not remove what is older than its limit: %s", error)
        return None
    if removed is not None and removed.rows >= STEP:
        _rests_until = 0.0
    return removed


def _step_to_limit() -> Removed | None:
    days = config.retention_days()
    if days <= 0:
        return None
    with session.reading(session.BACKGROUND) as connection:
        older_than = database_now(connection) - timedelta(days=min(days, MAX_DAYS))
    return prune_step(older_than=older_than, budget=STEP)


# --- tries -----------------------------------------------------------------------------------------------------------


def _prune_tries(older_than: datetime, transaction: Transaction) -> Iterator[Removed]:
    """Remove tries in the order of their start, then those without one."""
    goes, last = _try_goes(attempt, older_than), start_slot(older_than)
    # From where the last batch ended: what stays of the oldest slots is not read again each time.
    slot: int | None = -(2**31)
    while slot is not None:
        with transaction() as connection:
            removed, slot = _remove_tries(connection, attempt.c.start_slot >= slot, attempt.c.start_slot <= last, goes)
        yield removed
    full = True
    while full:
        with transaction() as connection:
            removed, _ = _remove_tries(connection, attempt.c.start_slot.is_(None), goes)
        full = removed.attempts > 0
        yield removed


def _remove_tries(connection: Connection, *conditions: Any) -> tuple[Removed, int | None]:
    """Remove a batch of tries; return how many, and the slot of the last one where there may be more."""
    disable_jit(connection)
    found = connection.execute(
        select(*_key(attempt), attempt.c.start_slot)
        .where(*conditions)
        .order_by(_from_the_oldest(connection))
        .limit(BATCH)
        # What somebody is writing is left for the next time.
        .with_for_update(skip_locked=True)
    ).all()
    keys = sorted({tuple(row[:3]) for row in found})
    if keys:
        connection.execute(delete(attempt).where(in_rows(connection, _key(attempt), keys)))
    return Removed(attempts=len(keys)), found[-1].start_slot if len(found) == BATCH else None


def _key(rows: Any) -> tuple[Any, ...]:
    return rows.c.run_key, rows.c.task_key, rows.c.try_number


def _from_the_oldest(connection: Connection) -> Any:
    # As PostgreSQL's index is ordered; the others put NULLs first by themselves.
    slot = attempt.c.start_slot.asc()
    return slot.nullsfirst() if connection.dialect.name == "postgresql" else slot


def _try_goes(row: Any, older_than: datetime) -> Any:
    """Say that the try of a row goes: none of its rows is one that stays. It is never NULL.

    :param row: the attempt table or an alias of it
    """
    other = attempt.alias()
    same_try = [mine == its for mine, its in zip(_key(row), _key(other), strict=True)]
    return and_(_row_goes(row, older_than), ~_exists(other, *same_try, ~_row_goes(other, older_than)))


def _row_goes(row: Any, older_than: datetime) -> Any:
    has_ended, has_started = row.c.ended_at.is_not(None), row.c.started_at.is_not(None)
    is_over = or_(and_(row.c.state.is_not(None), row.c.state.in_(sorted(FINISHED))), ~_airflow_has(row))
    return or_(
        and_(has_ended, row.c.ended_at < older_than),
        and_(~has_ended, has_started, row.c.started_at < older_than, is_over),
        and_(~has_ended, ~has_started, _run_goes(row, older_than)),
    )


def _airflow_has(row: Any) -> Any:
    """Say that Airflow has the row's try, as the latest one or in its history, in a Dag run that began before it."""
    run = metadata_database.dag_run_table()
    names = ("dag_id", "run_id", "task_id", "map_index", "try_number")
    began_later = _exists(
        run,
        run.c.dag_id == row.c.dag_id,
        run.c.run_id == row.c.run_id,
        # As airflow_history.run_began, in words that SQLite's parser has room for.
        run.c.clear_number == 0,
        run.c.start_date > row.c.started_at,
    )
    has = or_(
        *(
            _exists(table, *(table.c[name] == row.c[name] for name in names))
            for table in (metadata_database.task_instance_table(), metadata_database.task_instance_history_table())
        )
    )
    return and_(has, ~began_later)


def _run_goes(row: Any, older_than: datetime) -> Any:
    """Say that Airflow's Dag run of a row is old or gone, and that no try of it that has times stays here."""
    run, other = metadata_database.dag_run_table(), attempt.alias()
    has_ended, has_started = other.c.ended_at.is_not(None), other.c.started_at.is_not(None)
    return and_(
        ~_exists(
            run,
            run.c.dag_id == row.c.dag_id,
            run.c.run_id == row.c.run_id,
            or_(run.c.end_date.is_(None), run.c.end_date >= older_than),
        ),
        ~_exists(
            other,
            other.c.run_key == row.c.run_key,
            or_(
                and_(has_ended, other.c.ended_at >= older_than),
                and_(~has_ended, has_started, or_(other.c.started_at >= older_than, _airflow_has(other))),
            ),
        ),
    )


def _exists(table: Any, *conditions: Any) -> Any:
    return select(table.c[next(iter(table.c)).name]).where(*conditions).correlate_except(table).exists()


# --- workers ---------------------------------------------------------------------------------------------------------


def _prune_workers(older_than: datetime, transaction: Transaction) -> Iterator[Removed]:
    """Remove workers that no try names, in the order of their rows."""
    last: int | None = 0
    while last is not None:
        with transaction() as connection:
            acquire_write_lock(connection)
            found: Sequence[int] = (
                connection.execute(
                    select(worker.c.id)
                    .where(
                        worker.c.id > last,
                        *_worker_goes(older_than, database_now(connection)),
                        ~_exists(attempt, attempt.c.worker_ref == worker.c.id),
                    )
                    .order_by(worker.c.id)
                    .limit(BATCH)
                    .with_for_update(skip_locked=True)
                )
                .scalars()
                .all()
            )
            removed = _remove_workers(connection, found)
        last = found[-1] if len(found) == BATCH else None
        yield removed


def _remove_workers(connection: Connection, refs: Sequence[int]) -> Removed:
    """Remove these workers, whose rows are locked, but for those that were named while they were being locked."""
    if not refs:
        return Removed()
    named = connection.execute(select(attempt.c.worker_ref).where(attempt.c.worker_ref.in_(refs))).scalars()
    gone = sorted(set(refs) - set(named))
    changes = changed_rows(connection, delete(change).where(change.c.worker_ref.in_(gone)))
    workers = changed_rows(connection, delete(worker).where(worker.c.id.in_(gone)))
    return Removed(workers=workers, changes=changes)


def _worker_goes(older_than: datetime, now: datetime) -> list[Any]:
    """Say that a worker goes if no try names it: it is not alive, as far as anybody knows, and was not lately.

    A quarantine passes from a life to the next one of its name, so the latest of them stays.

    :param now: by the database's clock
    """
    later = worker.alias()
    same_name = or_(later.c.name == worker.c.name, later.c.engine_name == worker.c.engine_name)
    return [
        worker.c.last_seen_at < min(older_than, now - SETTLED),
        or_(worker.c.ended_at.is_(None), worker.c.ended_at < older_than),
        or_(worker.c.state.is_(None), worker.c.state.in_([OFFLINE, LOST])),
        or_(
            worker.c.availability != QUARANTINED,
            _exists(later, later.c.kind == worker.c.kind, same_name, later.c.id > worker.c.id),
        ),
    ]


def _is_named(stays: Callable[[Any], Any]) -> Any:
    """Say that a worker is named by a try of which ``stays`` says so."""
    row = attempt.alias()
    return _exists(row, row.c.worker_ref == worker.c.id, stays(row))


# --- the history of workers that stay --------------------------------------------------------------------------------


def _prune_changes(older_than: datetime, transaction: Transaction) -> Iterator[Removed]:
    """Remove old entries of histories, in the order of their rows."""
    last: int | None = 0
    while last is not None:
        with transaction() as connection:
            found: Sequence[int] = (
                connection.execute(
                    select(change.c.id)
                    .where(change.c.id > last, _change_goes(older_than))
                    .order_by(change.c.id)
                    .limit(BATCH)
                    .with_for_update(skip_locked=True)
                )
                .scalars()
                .all()
            )
            if found:
                connection.execute(delete(change).where(change.c.id.in_(found)))
        yield Removed(changes=len(found))
        last = found[-1] if len(found) == BATCH else None


def _change_goes(older_than: datetime) -> Any:
    """Say that an entry of a history goes though its worker stays: what was seen, before something else was.

    What a person decided stays as long as the worker: it may be what counts, for a later life too.
    """
    later = change.alias()
    was_replaced = _exists(
        later, later.c.worker_ref == change.c.worker_ref, later.c.availability.is_(None), later.c.id > change.c.id
    )
    return and_(change.c.changed_at < older_than, change.c.availability.is_(None), was_replaced)
