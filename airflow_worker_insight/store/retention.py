"""Retention: delete attempts, workers and worker history that are older than a limit.

- An attempt is deleted as a whole, with the rows of all its workers, when it ended before the limit. An attempt without
  an end is deleted when it started before the limit and Airflow no longer has the try. An attempt without any times is
  deleted with the rest of its Dag run.
- A worker is deleted when no remaining attempt refers to it.
- Of the workers that stay, old history entries are deleted.
- Statistics are deleted when their hour or day ended before the limit, and then what they were of.

Rows are deleted in small batches, each in its own transaction.

**No attempt ever refers to a missing worker**, although there is no foreign key. One transaction deletes a worker: it
locks the worker's row first and then searches for attempts that refer to it. Three kinds of writers may add an attempt
meanwhile:

- The usual start of a try does not lock the worker's row, because all starts on a busy worker would queue there.
  Instead it writes only while the row says that the worker was seen within the last hour
  (:data:`~.start.MAX_UNLOCKED_AGE`). Here no worker is deleted that was seen within a day (:data:`MIN_UNSEEN`), and
  that time is only ever set to the present. So a conflict would take a start and a deletion that overlap for 23 hours,
  or two hosts whose clocks differ by as much.
- Any other start locks the worker's row until the attempt is written. The deletion skips a locked row; a start that
  waits for the deletion creates the worker again.
- Reconciling refers to workers of long ago. It locks all workers that it has read (:func:`.locks.lock_for_share`).
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
from airflow_worker_insight.domain.states import FINISHED, WorkerAvailability, WorkerState
from airflow_worker_insight.store import enforcement, findings, late_attempts, placements, session, statistics
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.dialects import disable_jit, execute_and_count, in_rows
from airflow_worker_insight.store.locks import acquire_write_lock
from airflow_worker_insight.store.tables import attempt, change, key_columns, start_slot, worker

log = logging.getLogger(__name__)

BATCH = 500
"""Number of rows (of attempts, workers or history) that one transaction deletes."""

MIN_UNSEEN = timedelta(days=1)
"""A worker that was seen within this time stays, whatever the limit: see the module."""

STEP_BUDGET = 5_000
"""Rows that one step of :class:`RetentionTask` deletes, whose thread also has other work."""

PAUSE_SECONDS = 3600.0
"""Seconds that :class:`RetentionTask` pauses when nothing is left to delete."""

MAX_DAYS = 100 * 365
"""Upper bound of the limit in days: no calendar holds more, and more deletes nothing."""

Transaction: TypeAlias = Callable[[], AbstractContextManager[Connection]]


@dataclass(frozen=True, slots=True)
class Removed:
    """Number of attempts, workers, history entries and rows of statistics that were, or would be, deleted."""

    attempts: int = 0
    workers: int = 0
    changes: int = 0
    statistics: int = 0

    @property
    def rows(self) -> int:
        """The total, which counts towards the budget of :func:`prune_step`."""
        return self.attempts + self.workers + self.changes + self.statistics

    def __add__(self, other: Removed) -> Removed:
        """Add up two batches."""
        return Removed(
            self.attempts + other.attempts,
            self.workers + other.workers,
            self.changes + other.changes,
            self.statistics + other.statistics,
        )


@dataclass(frozen=True, slots=True)
class Preview:
    """What a limit would delete."""

    removed: Removed
    oldest_kept: datetime | None
    """Start of the oldest attempt that would stay (UTC); ``None`` if none would."""


def preview(connection: Connection, older_than: datetime) -> Preview:
    """Return what :func:`prune` would delete. This reads all attempts from before the limit."""
    disable_jit(connection)
    expired = _is_try_expired(attempt, older_than)
    # The slot is NULL without a start.
    before_limit = or_(attempt.c.start_slot.is_(None), attempt.c.start_slot <= start_slot(older_than))
    tries = select(*key_columns(attempt)).where(before_limit, expired).distinct()
    workers = select(worker.c.id).where(
        *_expired_worker(older_than, database_now(connection)),
        ~_is_named(lambda row: ~_is_try_expired(row, older_than)),
    )
    changes = select(change.c.id).where(or_(change.c.worker_ref.in_(workers), _is_change_expired(older_than)))
    oldest = connection.execute(
        select(attempt.c.started_at)
        .where(attempt.c.start_slot.is_not(None), ~expired)
        .order_by(_oldest_first(connection), attempt.c.started_at)
        .limit(1)
    ).scalar()
    counts = [
        connection.execute(select(func.count()).select_from(rows.subquery())).scalar_one()
        for rows in (tries, workers, changes)
    ]
    counts.append(statistics.count_older(connection, older_than))
    return Preview(Removed(*counts), None if oldest is None else oldest.astimezone(timezone.utc))


def _transaction() -> AbstractContextManager[Connection]:
    return session.writing(session.BACKGROUND)


def prune(
    older_than: datetime, *, transaction: Transaction = _transaction, batch_size: int = BATCH
) -> Iterator[Removed]:
    """Delete all that is older than a limit, and yield after each batch.

    The caller may stop after any batch and start again later.

    :param transaction: begins a transaction on Airflow's database; by default within :data:`.session.BACKGROUND`
    :param batch_size: rows (of attempts, workers or history) that one transaction deletes
    """
    # Reconciling does not delete these if Airflow's own history of the Dag run was deleted first.
    with transaction() as connection:
        placements.delete_closed_before(connection, older_than)
        findings.delete_closed_before(connection, older_than, now=database_now(connection))
    yield from _prune_tries(older_than, transaction, batch_size)
    yield from _prune_workers(older_than, transaction, batch_size)
    yield from _prune_changes(older_than, transaction, batch_size)
    yield from _prune_statistics(older_than, transaction)
    # What the analysis never read, because it does not run.
    are_more = True
    while are_more:
        with transaction() as connection:
            are_more = late_attempts.delete_orphans(connection, limit=batch_size) == batch_size


def prune_step(
    *, older_than: datetime, budget: int, transaction: Transaction = _transaction, batch_size: int = BATCH
) -> Removed:
    """Delete what is older than a limit, but stop after the batch that reaches a budget.

    :param budget: number of rows. A step that deletes fewer has left nothing for another step
    """
    total = Removed()
    for removed in prune(older_than, transaction=transaction, batch_size=batch_size):
        total += removed
        if total.rows >= budget:
            break
    return total


class RetentionTask:
    """Applies ``[worker_insight] retention_days``, step by step, in a thread that also has other work."""

    def __init__(
        self,
        *,
        step_budget: int = STEP_BUDGET,
        batch_size: int = BATCH,
        pause_seconds: float = PAUSE_SECONDS,
        transaction: Transaction = _transaction,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Be due at once.

        :param step_budget: rows that one step deletes
        :param batch_size: rows that one transaction deletes
        :param pause_seconds: how long to pause after a failure, and when nothing is left to delete
        :param transaction: begins a transaction on Airflow's database
        :param clock: returns seconds that never go back
        """
        self._step_budget = step_budget
        self._batch_size = batch_size
        self._pause_seconds = pause_seconds
        self._transaction = transaction
        self._clock = clock
        self._due_at = clock()

    def run_if_due(self) -> Removed | None:
        """Run one step unless paused; never raise.

        Several processes may do so at the same time: they delete the same rows.

        :return: what was deleted; ``None`` without a limit, during a pause, or after an error
        """
        if self._clock() < self._due_at:
            return None
        # Set before the step, so that it also pauses after a failure.
        self._due_at = self._clock() + self._pause_seconds
        try:
            removed = self._step()
        except Exception as error:  # noqa: BLE001 - the next step may succeed
            log.warning("Airflow Worker Insight could not delete what is older than its limit: %s", error)
            return None
        if removed is not None and removed.rows >= self._step_budget:
            self._due_at = self._clock()
        return removed

    def _step(self) -> Removed | None:
        days = config.retention_days()
        if days <= 0:
            return None
        with session.reading(session.BACKGROUND) as connection:
            older_than = database_now(connection) - timedelta(days=min(days, MAX_DAYS))
        return prune_step(
            older_than=older_than,
            budget=self._step_budget,
            transaction=self._transaction,
            batch_size=self._batch_size,
        )


_task = RetentionTask()


def apply_retention() -> Removed | None:
    """Run the :class:`RetentionTask` of this process if it is due; a periodic thread calls this."""
    return _task.run_if_due()


# --- attempts --------------------------------------------------------------------------------------------------------


def _prune_tries(older_than: datetime, transaction: Transaction, batch_size: int) -> Iterator[Removed]:
    """Delete attempts in the order of their start, then those without a start."""
    expired, last_slot = _is_try_expired(attempt, older_than), start_slot(older_than)
    # Each batch begins where the last one ended, so that attempts that stay are not read again each time.
    slot: int | None = -(2**31)
    while slot is not None:
        with transaction() as connection:
            removed, slot = _remove_tries(
                connection, batch_size, attempt.c.start_slot >= slot, attempt.c.start_slot <= last_slot, expired
            )
        yield removed
    may_have_more = True
    while may_have_more:
        with transaction() as connection:
            removed, _ = _remove_tries(connection, batch_size, attempt.c.start_slot.is_(None), expired)
        may_have_more = removed.attempts > 0
        yield removed


def _remove_tries(connection: Connection, batch_size: int, *conditions: Any) -> tuple[Removed, int | None]:
    """Delete a batch of attempts; return their number and where to continue.

    :return: the second value is the slot of the last attempt; ``None`` when there are no more
    """
    disable_jit(connection)
    rows = connection.execute(
        select(*key_columns(attempt), attempt.c.start_slot)
        .where(*conditions)
        .order_by(_oldest_first(connection))
        .limit(batch_size)
        # Rows that another transaction is writing are left for the next time.
        .with_for_update(skip_locked=True)
    ).all()
    keys = sorted({tuple(row[:3]) for row in rows})
    if keys:
        connection.execute(delete(attempt).where(in_rows(connection, key_columns(attempt), keys)))
    return Removed(attempts=len(keys)), rows[-1].start_slot if len(rows) == batch_size else None


def _oldest_first(connection: Connection) -> Any:
    # The order of the index on PostgreSQL; the other databases sort NULLs first by default.
    slot = attempt.c.start_slot.asc()
    return slot.nullsfirst() if connection.dialect.name == "postgresql" else slot


def _is_try_expired(row: Any, older_than: datetime) -> Any:
    """Return the condition that all rows of a row's try are expired; it is never NULL.

    :param row: the attempt table or an alias of it
    """
    other = attempt.alias()
    same_try = [
        column == other_column for column, other_column in zip(key_columns(row), key_columns(other), strict=True)
    ]
    return and_(_is_row_expired(row, older_than), ~_exists(other, *same_try, ~_is_row_expired(other, older_than)))


def _is_row_expired(row: Any, older_than: datetime) -> Any:
    """Return the condition that one row is expired, whatever the other rows of its try are."""
    has_ended, has_started = row.c.ended_at.is_not(None), row.c.started_at.is_not(None)
    is_over = or_(and_(row.c.state.is_not(None), row.c.state.in_(sorted(FINISHED))), ~_airflow_has(row))
    return or_(
        and_(has_ended, row.c.ended_at < older_than),
        and_(~has_ended, has_started, row.c.started_at < older_than, is_over),
        and_(~has_ended, ~has_started, _is_run_expired(row, older_than)),
    )


def _airflow_has(row: Any) -> Any:
    """Return the condition that Airflow still has the row's try, current or in its history.

    A try is another one if its Dag run began after the row's start.
    """
    run = metadata_database.dag_run_table()
    names = ("dag_id", "run_id", "task_id", "map_index", "try_number")
    run_began_later = _exists(
        run,
        run.c.dag_id == row.c.dag_id,
        run.c.run_id == row.c.run_id,
        # Simpler than airflow_history.run_began, whose nesting would exceed the limit of SQLite's parser.
        run.c.clear_number == 0,
        run.c.start_date > row.c.started_at,
    )
    has_same_names = or_(
        *(
            _exists(table, *(table.c[name] == row.c[name] for name in names))
            for table in (metadata_database.task_instance_table(), metadata_database.task_instance_history_table())
        )
    )
    return and_(has_same_names, ~run_began_later)


def _is_run_expired(row: Any, older_than: datetime) -> Any:
    """Return the condition that a row's Dag run is expired.

    Airflow's Dag run ended before the limit or is deleted, and all its attempts that have times are expired.
    """
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


def _prune_workers(older_than: datetime, transaction: Transaction, batch_size: int) -> Iterator[Removed]:
    """Delete workers that no attempt refers to, in the order of their row IDs."""
    last_id: int | None = 0
    while last_id is not None:
        with transaction() as connection:
            acquire_write_lock(connection)
            refs: Sequence[int] = (
                connection.execute(
                    select(worker.c.id)
                    .where(
                        worker.c.id > last_id,
                        *_expired_worker(older_than, database_now(connection)),
                        ~_exists(attempt, attempt.c.worker_ref == worker.c.id),
                    )
                    .order_by(worker.c.id)
                    .limit(batch_size)
                    .with_for_update(skip_locked=True)
                )
                .scalars()
                .all()
            )
            removed = _remove_workers(connection, refs)
        last_id = refs[-1] if len(refs) == batch_size else None
        yield removed


def _remove_workers(connection: Connection, refs: Sequence[int]) -> Removed:
    """Delete workers whose rows are locked, except those that now have an attempt.

    An attempt may have been added while the rows were being locked.
    """
    if not refs:
        return Removed()
    in_use = connection.execute(select(attempt.c.worker_ref).where(attempt.c.worker_ref.in_(refs))).scalars()
    unused = sorted(set(refs) - set(in_use))
    changes = execute_and_count(connection, delete(change).where(change.c.worker_ref.in_(unused)))
    enforcement.delete_of(connection, unused)
    workers = execute_and_count(connection, delete(worker).where(worker.c.id.in_(unused)))
    return Removed(workers=workers, changes=changes)


def _expired_worker(older_than: datetime, now: datetime) -> list[Any]:
    """Return the conditions that a worker is expired, provided that no attempt refers to it.

    It is not known to be alive and was not seen lately. The latest worker instance of a name stays while it is
    quarantined, because the next instance takes the quarantine over.

    :param now: by the database's clock
    """
    later = worker.alias()
    same_name = or_(later.c.name == worker.c.name, later.c.engine_name == worker.c.engine_name)
    return [
        worker.c.last_seen_at < min(older_than, now - MIN_UNSEEN),
        or_(worker.c.ended_at.is_(None), worker.c.ended_at < older_than),
        or_(worker.c.state.is_(None), worker.c.state.in_([WorkerState.OFFLINE, WorkerState.LOST])),
        or_(
            worker.c.availability != WorkerAvailability.QUARANTINED,
            _exists(later, later.c.kind == worker.c.kind, same_name, later.c.id > worker.c.id),
        ),
    ]


def _is_named(stays: Callable[[Any], Any]) -> Any:
    """Return the condition that an attempt refers to a worker.

    :param stays: returns the condition on the attempt, given an alias of the attempt table
    """
    row = attempt.alias()
    return _exists(row, row.c.worker_ref == worker.c.id, stays(row))


# --- the history of workers that stay --------------------------------------------------------------------------------


def _prune_changes(older_than: datetime, transaction: Transaction, batch_size: int) -> Iterator[Removed]:
    """Delete old history entries of workers, in the order of their row IDs."""
    last_id: int | None = 0
    while last_id is not None:
        with transaction() as connection:
            change_ids: Sequence[int] = (
                connection.execute(
                    select(change.c.id)
                    .where(change.c.id > last_id, _is_change_expired(older_than))
                    .order_by(change.c.id)
                    .limit(batch_size)
                    .with_for_update(skip_locked=True)
                )
                .scalars()
                .all()
            )
            if change_ids:
                connection.execute(delete(change).where(change.c.id.in_(change_ids)))
        yield Removed(changes=len(change_ids))
        last_id = change_ids[-1] if len(change_ids) == batch_size else None


def _is_change_expired(older_than: datetime) -> Any:
    """Return the condition that a history entry is expired although its worker stays.

    An observed state is expired when a later one was observed. An operator's decision stays as long as the worker,
    because it may still be in force, also for a later worker instance.
    """
    later = change.alias()
    was_superseded = _exists(
        later, later.c.worker_ref == change.c.worker_ref, later.c.availability.is_(None), later.c.id > change.c.id
    )
    return and_(change.c.changed_at < older_than, change.c.availability.is_(None), was_superseded)


# --- statistics ------------------------------------------------------------------------------------------------------


def _prune_statistics(older_than: datetime, transaction: Transaction) -> Iterator[Removed]:
    """Delete statistics, the oldest day first."""
    removed = Removed(statistics=1)
    while removed.statistics:
        with transaction() as connection:
            removed = Removed(statistics=statistics.remove_step(connection, older_than))
        yield removed
