"""Record that a worker started a try: this runs for every task process of the deployment.

Usually one statement does it. It copies the worker's ID from the worker table and inserts nothing if the worker is
unknown, has changed its description or has not been seen for long; only then the worker's row is written too, so that
concurrent starts do not wait for each other's lock on it.

The statement gets ON CONFLICT as plain SQL, because SQLAlchemy 2.0 compiles its own construct for it anew each time,
which takes milliseconds.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from functools import cache
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from sqlalchemy import Integer, bindparam, case, func, insert, literal, not_, or_, select, update

from airflow_worker_insight.domain.attempts import Conditions
from airflow_worker_insight.domain.names import short_host
from airflow_worker_insight.domain.states import Attribution
from airflow_worker_insight.store.dialects import row_count, with_row_count
from airflow_worker_insight.store.tables import Timestamp, attempt, start_slot, worker
from airflow_worker_insight.store.workers.names import is_known_to_source
from airflow_worker_insight.store.workers.upsert import store_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from sqlalchemy.engine import Connection, Engine

    from airflow_worker_insight.domain.attempts import StartedTry
    from airflow_worker_insight.domain.keys import TryKey
    from airflow_worker_insight.domain.workers import WorkerRecord
    from airflow_worker_insight.store.workers.upsert import StoredWorker


SEEN_INTERVAL = timedelta(seconds=60)
"""Precision of ``last_seen_at``.

A busy worker's row is written once per this time, not once per task.
"""

LATE_AFTER = timedelta(seconds=60)
"""Age of its start from which an attempt is recorded late.

By the clock of the host that records it. The analysis reads starts again for as long as that clock may be behind the
database's, and two minutes (:data:`.analysis.job.OVERLAP`): half of these are for transactions that commit late.
"""

MAX_UNLOCKED_AGE = timedelta(hours=1)
"""Time since a worker was seen during which it may be referenced without a row lock.

See :mod:`.retention`.
"""

MAX_REMEMBERED = 10_000
"""Workers that one process remembers to have marked as seen."""

MAX_WORKERS = 100
"""Workers of one try.

A try that defers changes workers; one with more than this is a task that makes workers up.
"""

MAX_NEW_OF_A_TRY = 5
"""Workers of one host that one try reports and no source knows.

A pod is a host, and exists for one process.
"""

MAX_NEW_ON_A_HOST = 100
"""Workers of one host that reports may add within :data:`NEW_WITHIN`."""

NEW_WITHIN = timedelta(hours=1)


class TooManyWorkersError(ValueError):
    """A try or a host with too many reported workers.

    The message says which limit was reached.
    """


def record_start(  # noqa: PLR0913 - all of one report
    connection: Connection,
    started: StartedTry,
    record: WorkerRecord,
    *,
    now: datetime,
    process: int | None = None,
    conditions: Conditions | None = None,
    is_late: bool = False,
    max_workers: int = MAX_WORKERS,
) -> str | None:
    """Record that a task process of a try started on the worker ``record``.

    A second process of the same try on the same worker (deferral, reschedule) is counted in the same row, and the same
    process once, however often it is reported. The recorded end of a try stays. The caller owns the transaction.

    :param connection: a connection to Airflow's database with a transaction begun
    :param now: when the process started, by the clock of the machine that writes
    :param process: the key of the process (:func:`.keys.process_key`); an unknown process counts as another one
    :param conditions: the load of the worker's machine; those of a try's first process on the worker are kept
    :param is_late: whether ``now`` is in the past, because the report had to wait
    :param max_workers: how many workers the try may have
    :return: what contradicts the worker with the reported ID, if anything: then the report gets a separate worker
    :raises ContradictingWorkerError: if the ID is that of another worker that has never reported
    :raises TooManyWorkersError: if the try, or the host, has had too many workers
    """
    key, started_at = started.key, started.started_at or now
    start = {
        "p_run_key": key.run_key,
        "p_task_key": started.instance,
        "p_try_number": key.try_number,
        "p_map_index": key.map_index,
        "p_dag_id": key.dag_id,
        "p_run_id": key.run_id,
        "p_task_id": key.task_id,
        "p_state": started.state,
        "p_started_at": started_at,
        "p_ended_at": started.ended_at,
        "p_process_key": process,
        "p_start_slot": start_slot(started_at),
        "p_now": now,
        "p_seen_since": now - MAX_UNLOCKED_AGE,
        "p_worker_id": record.worker_id,
        "p_fingerprint": record.fingerprint,
        "p_max_workers": max_workers,
        **{f"p_{name}": value for name, value in (conditions or Conditions()).columns().items()},
    }
    # Usually the first statement does it without waiting. The others lock rows that another process may hold, such as a
    # poller that froze while it wrote: the caller's timeouts end that wait.
    is_usual = not is_late and started.kind_matches is not False
    is_noted = is_late or now - started_at > LATE_AFTER
    if not is_usual or not _writes_start(connection, start, is_noted=is_noted):
        stored = _write_worker_and_start(
            connection, key, record, start, now=now, kind_matches=started.kind_matches, is_noted=is_noted
        )
        _mark_seen(connection, stored.reported_id, now=now)
        return stored.contradiction
    _mark_seen(connection, record.worker_id, now=now)
    return None


def _write_worker_and_start(
    connection: Connection,
    key: TryKey,
    record: WorkerRecord,
    start: Mapping[str, Any],
    *,
    now: datetime,
    kind_matches: bool | None,
    is_noted: bool,
) -> StoredWorker:
    if connection.execute(_workers_of_the_try(), start).scalar_one() >= start["p_max_workers"]:
        raise TooManyWorkersError(f"try {key.try_number} has run on {start['p_max_workers']} workers")
    stored = store_worker(
        connection,
        record,
        now=now,
        kind_matches=kind_matches,
        check_new=lambda: _check_new(connection, start, record, now=now),
    )
    # The worker's row is locked now, so it cannot be removed, however long ago the worker was seen.
    start = {
        **start,
        "p_seen_since": _LONG_AGO,
        "p_worker_id": stored.reported_id,
        "p_fingerprint": stored.fingerprint,
    }
    if not _writes_start(connection, start, is_noted=is_noted):
        raise LookupError(f"worker {record.worker_id} could not be stored")
    return stored


def _check_new(connection: Connection, start: Mapping[str, Any], record: WorkerRecord, *, now: datetime) -> None:
    """Refuse a new worker beyond what the processes of a try and the workers of a host can be.

    :raises TooManyWorkersError: if there are too many
    """
    on_host = worker.c.hostname.in_(sorted({record.hostname, short_host(record.hostname)}))
    is_reported_here = (on_host, worker.c.host_only.is_(False), not_(is_known_to_source(worker)))
    of_try = (
        select(func.count())
        .select_from(attempt.join(worker, worker.c.id == attempt.c.worker_ref))
        .where(*_of_this_try(attempt), *is_reported_here)
    )
    if connection.execute(of_try, start).scalar_one() >= MAX_NEW_OF_A_TRY:
        raise TooManyWorkersError(f"its try has reported {MAX_NEW_OF_A_TRY} workers of the host {record.hostname}")
    recent = (
        select(worker.c.id).where(*is_reported_here, worker.c.registered_at > now - NEW_WITHIN).limit(MAX_NEW_ON_A_HOST)
    )
    if len(connection.execute(recent).all()) >= MAX_NEW_ON_A_HOST:
        raise TooManyWorkersError(f"{MAX_NEW_ON_A_HOST} workers of {record.hostname} were reported within an hour")


class SeenWorkers:
    """Workers that this process lately marked as seen in one database: a hint that saves most starts a query."""

    def __init__(self) -> None:
        self._marked_at: dict[str, datetime] = {}

    def is_due(self, worker_id: str, *, now: datetime) -> bool:
        """Return whether to mark a worker now; if so, it counts as marked."""
        if now - self._marked_at.get(worker_id, now - SEEN_INTERVAL) < SEEN_INTERVAL:
            return False
        if len(self._marked_at) >= MAX_REMEMBERED:
            self._marked_at.clear()
        self._marked_at[worker_id] = now
        return True

    def forget(self) -> None:
        """Let each worker be due again."""
        self._marked_at.clear()


_seen_workers: WeakKeyDictionary[Engine, SeenWorkers] = WeakKeyDictionary()


def seen_workers(connection: Connection) -> SeenWorkers:
    """Return what this process remembers for the database of a connection, as long as its engine exists."""
    return _seen_workers.setdefault(connection.engine, SeenWorkers())


def _mark_seen(connection: Connection, worker_id: str, *, now: datetime) -> None:
    """Mark a worker as seen, unless that was done shortly before or its row is locked."""
    if not seen_workers(connection).is_due(worker_id, now=now):
        return
    stale = select(worker.c.id).where(worker.c.reported_id == worker_id, worker.c.last_seen_at <= now - SEEN_INTERVAL)
    row_id = connection.execute(stale.with_for_update(skip_locked=True)).scalar()
    if row_id is not None:
        connection.execute(update(worker).where(worker.c.id == row_id).values(last_seen_at=now))


def _parameter(column: Any) -> Any:
    return bindparam(f"p_{column.name}", type_=column.type)


def _of_this_try(table: Any) -> list[Any]:
    """Match the rows of a try by the front of the primary key: a handful at most."""
    return [table.c[name] == _parameter(attempt.c[name]) for name in ("run_key", "task_key", "try_number")]


def _known_worker() -> list[Any]:
    """Match the worker, unless its row must be written or locked first."""
    return [
        worker.c.reported_id == bindparam("p_worker_id"),
        worker.c.fingerprint == bindparam("p_fingerprint"),
        worker.c.last_seen_at > bindparam("p_seen_since", type_=Timestamp()),
    ]


@cache
def _workers_of_the_try() -> Any:
    return select(func.count()).select_from(attempt).where(*_of_this_try(attempt))


def _writes_start(connection: Connection, start: Mapping[str, Any], *, is_noted: bool) -> bool:
    """Write the first or a further process of a try on a worker; return whether a row was written.

    :param is_noted: whether to note the first process of a try for the analysis, because it is recorded late
    """
    if not _writes(connection, _first_process, start):
        return _writes(connection, _further_process, start)
    if is_noted:
        # Imported here: a task process of Airflow 2.11 loads this module, and seldom records late.
        from airflow_worker_insight.store import late_attempts

        late_attempts.note_start(connection, start)
    return True


def _writes(connection: Connection, build: Callable[[str], Any], start: Mapping[str, Any]) -> bool:
    """Execute one of the two statements below; return whether it wrote a row."""
    return row_count(connection.execute(build(connection.dialect.name), start)) > 0


@cache
def _first_process(dialect: str) -> Any:
    """Build the INSERT … SELECT for the first process of a try on a worker.

    For a further process it inserts nothing.
    """
    try_row, own_row = attempt.alias("other"), attempt.alias("own")
    other_workers = select(func.count()).select_from(try_row).where(*_of_this_try(try_row)).scalar_subquery()
    later_worker_only = case((other_workers == 0, None), else_=_NOW)
    columns: dict[str, Any] = {
        **{name: _parameter(attempt.c[name]) for name in ("run_key", "task_key", "try_number", "map_index")},
        "worker_ref": worker.c.id,
        "ordinal": other_workers,
        "process_count": literal(1),
        "process_key": _parameter(attempt.c.process_key),
        "started_at": _parameter(attempt.c.started_at),
        "ended_at": _parameter(attempt.c.ended_at),
        "first_started_at": later_worker_only,
        "last_started_at": later_worker_only,
        "state": _parameter(attempt.c.state),
        "attribution": literal(Attribution.REPORTED, attempt.c.attribution.type),
        **{
            name: _parameter(attempt.c[name])
            for name in ("dag_id", "run_id", "task_id", "start_slot", "load", "memory_free", "running_beside")
        },
    }
    already_recorded = (
        select(own_row.c.worker_ref).where(*_of_this_try(own_row), own_row.c.worker_ref == worker.c.id).exists()
    )
    row = select(*columns.values()).where(*_known_worker(), ~already_recorded, other_workers < _MAX_WORKERS)
    # Airflow's client may send a request again while the first one is still being processed.
    for name in ("postgresql", "sqlite"):
        row = row.suffix_with("ON CONFLICT DO NOTHING", dialect=name)
    return with_row_count(insert(attempt).from_select(list(columns), row), dialect)


@cache
def _further_process(dialect: str) -> Any:
    """Build the UPDATE that counts one more process of a try on a worker.

    It does not count the process that was counted last, and a try that has ended stays ended. The order of the values
    is for MySQL, which evaluates them from left to right and reads the new values of those before.
    """
    is_new = or_(
        attempt.c.process_key.is_(None),
        _parameter(attempt.c.process_key).is_(None),
        attempt.c.process_key != _parameter(attempt.c.process_key),
    )
    statement = (
        update(attempt)
        .where(
            *_of_this_try(attempt),
            attempt.c.worker_ref == select(worker.c.id).where(*_known_worker()).scalar_subquery(),
        )
        .ordered_values(
            (
                attempt.c.first_started_at,
                case(
                    (is_new, func.coalesce(attempt.c.first_started_at, attempt.c.started_at)),
                    else_=attempt.c.first_started_at,
                ),
            ),
            (attempt.c.last_started_at, case((is_new, _NOW), else_=attempt.c.last_started_at)),
            (attempt.c.process_count, case((is_new, attempt.c.process_count + 1), else_=attempt.c.process_count)),
            (
                attempt.c.process_key,
                func.coalesce(_parameter(attempt.c.process_key), attempt.c.process_key),
            ),
            (
                attempt.c.state,
                case((attempt.c.ended_at.is_(None), _parameter(attempt.c.state)), else_=attempt.c.state),
            ),
            (attempt.c.ended_at, func.coalesce(attempt.c.ended_at, _parameter(attempt.c.ended_at))),
            (attempt.c.attribution, literal(Attribution.REPORTED, attempt.c.attribution.type)),
        )
    )
    return with_row_count(statement, dialect)


_NOW = bindparam("p_now", type_=Timestamp())
_MAX_WORKERS = bindparam("p_max_workers", type_=Integer())
_LONG_AGO = datetime(2000, 1, 1, tzinfo=timezone.utc)
