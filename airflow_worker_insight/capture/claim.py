"""The claim: take a report out of the session that is about to store it as an XCom, and write the attempt instead.

Runs in the API server, inside the transaction of the execution API's XCom request, on a savepoint: whatever goes wrong
here, the request succeeds. A report that could not be taken is stored as an XCom row, for reconciling to find. What
others store under the reserved key, as a person through the public API, is stored as ever: they may read it back.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

from airflow_worker_insight import config, metrics
from airflow_worker_insight.capture.counters import count, warn_once
from airflow_worker_insight.capture.report import REPORT_KEY
from airflow_worker_insight.capture.report_schema import RejectedReportError, conditions, parse_report, worker_record
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.attempts import StartedTry
from airflow_worker_insight.domain.attribution import has_workers_of
from airflow_worker_insight.domain.clock import CLOCK_SKEW
from airflow_worker_insight.domain.keys import TaskInstanceKey, process_key
from airflow_worker_insight.domain.names import are_one_host
from airflow_worker_insight.domain.states import LOCAL
from airflow_worker_insight.store import airflow_history, migrate, xcom
from airflow_worker_insight.store import session as database
from airflow_worker_insight.store.attempts.start import TooManyWorkersError, record_start
from airflow_worker_insight.store.session import CircuitBreaker
from airflow_worker_insight.store.tables import attempt, worker
from airflow_worker_insight.store.workers.upsert import ContradictingWorkerError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import Session

PAUSE_SECONDS = 30.0
"""How long claiming pauses after a time-out, or after the tables were found missing.

Each claim would keep a request of Airflow's waiting, or put an error into the database's log. The registry's background
thread ends the pause sooner when it finds the tables usable again: see :func:`.reconcile.take_left_behind`.
"""

breaker = CircuitBreaker(PAUSE_SECONDS)
"""Open while claiming pauses."""

_one_waits = Lock()
"""Held by the one claim of this process that waits for a lock on a whole table."""

left_behind = Event()
"""Set where a report was stored because its claim timed out, or came while claiming paused."""


def install() -> None:
    """Claim every report that this process stores from now on; calling it again changes nothing."""
    if config.enabled() and not is_installed():
        # Airflow's own module is loaded now and not in the middle of a request.
        metadata_database.xcom_model()
        xcom.call_before_flushes(_before_flush)


def uninstall() -> None:
    """Store reports as XComs again."""
    if is_installed():
        xcom.call_no_more_before_flushes(_before_flush)


def is_installed() -> bool:
    """Return whether this process claims reports."""
    return xcom.is_called_before_flushes(_before_flush)


def _before_flush(session: Session, _flush: Any, _objects: Any) -> None:
    # Of each flush of the API server, so nothing is asked of what is no XCom.
    model = metadata_database.xcom_model()
    for row in list(session.new):
        if isinstance(row, model) and row.key == REPORT_KEY and metadata_database.stores_xcom_for_a_task():
            if breaker.allows():
                _claim(session, row)
            else:
                left_behind.set()


def _claim(session: Session, row: Any) -> None:
    try:
        connection = session.connection()
    except Exception:  # noqa: BLE001
        return  # Airflow's own flush is about to say the same.
    began = time.perf_counter()
    try:
        if not _take_now(connection, row):
            count("reports.unclaimed")
            left_behind.set()
            return
        # It is taken: what is not in the session is not stored.
        session.expunge(row)
        breaker.close()
    except Exception as error:  # noqa: BLE001
        count("reports.unclaimed")
        _explain(connection, error)
    metrics.timing("claim.duration", seconds=time.perf_counter() - began)


def _take_now(connection: Connection, row: Any) -> bool:
    """Take a report; return ``False`` where a table is locked and another claim waits already to see for how long.

    Each claim holds one of the API server's few connections. Were all of them to wait, the next request would find none
    and, because Airflow looks up its token in the event loop, keep the server from giving one back.
    """
    sender = TaskInstanceKey(row.dag_id, row.run_id, row.task_id, row.map_index)
    try:
        with database.savepoint(connection, database.START, unlocked=(attempt, worker)) as bounded:
            take(bounded, sender, row.value, now=datetime.now(timezone.utc))
    except database.TablesLockedError:
        if not _one_waits.acquire(blocking=False):
            return False
        try:
            with database.savepoint(connection, database.START) as bounded:
                take(bounded, sender, row.value, now=datetime.now(timezone.utc))
        finally:
            _one_waits.release()
    return True


def take(connection: Connection, sender: TaskInstanceKey, value: Any, *, now: datetime, is_late: bool = False) -> None:
    """Write the attempt that a report tells of; one that is not believed is dropped.

    The caller owns the transaction, and sees to it that the report is not stored any longer.

    :param sender: the task instance that Airflow stored the report under
    :param value: the stored XCom value
    :param now: when the report was stored
    :param is_late: whether that was before this transaction
    """
    try:
        contradiction = _record(connection, sender, value, now=now, is_late=is_late)
        count("reports.claimed")
        if contradiction is not None:
            count("reports.contradicting")
            warn_once(
                "contradicting",
                "Airflow Worker Insight records a report of task %s.%s for a worker of its own: what it says does not "
                "agree with what is known (%s)",
                sender.dag_id,
                sender.task_id,
                contradiction,
            )
    except RejectedReportError as rejected:
        count(f"reports.dropped.{rejected.reason}")
        if rejected.reason == "in_a_test":
            return  # There is nothing to mend.
        warn_once(
            f"dropped.{rejected.reason}",
            "Airflow Worker Insight dropped a report of task %s.%s (%s): %s",
            sender.dag_id,
            sender.task_id,
            rejected.reason,
            rejected.explanation or f"the XCom key {REPORT_KEY} is reserved for it",
        )


def _record(connection: Connection, sender: TaskInstanceKey, value: Any, *, now: datetime, is_late: bool) -> str | None:
    report = parse_report(value)
    one = airflow_history.try_by_id(connection, report.try_id)
    # Airflow lets a task write XComs of other tasks: a report counts for the try whose ID it has, if that has started.
    if one is None or one.key.task_instance != sender or one.started_at is None:
        raise RejectedReportError("not_this_try")
    if report.worker.kind == LOCAL and one.queued_by_job_id is None:
        # A local worker is a scheduler's. dag.test(use_executor=True) has a LocalExecutor in a process of its caller.
        raise RejectedReportError("in_a_test")
    # No task process starts in a try that has ended. A report that had to wait may tell of one that started before.
    if one.is_over and not (is_late and _may_be_before(now, one.ended_at)):
        raise RejectedReportError("try_has_ended")
    ended_at = one.ended_at if one.is_over else None
    fits = has_workers_of(report.worker.kind, executor=one.executor, setting=config.executor())
    if is_late and one.hostname and not are_one_host(one.hostname, report.worker.hostname):
        # Its process may have been followed by one on another host, and Airflow keeps the latest host only.
        raise RejectedReportError("not_this_host", f"it waited, and Airflow has the try on the host {one.hostname}")
    try:
        return record_start(
            connection,
            StartedTry(one.key, one.instance, one.started_at, one.state, ended_at, fits),
            worker_record(report.worker, job_id=one.queued_by_job_id, hostname=one.hostname),
            now=now,
            process=process_key(report.process),
            conditions=conditions(report.conditions),
            is_late=is_late,
        )
    except ContradictingWorkerError as error:
        raise RejectedReportError("contradicting", str(error)) from None
    except TooManyWorkersError as error:
        raise RejectedReportError("too_many_workers", str(error)) from None


def _may_be_before(stored_at: datetime, ended_at: datetime | None) -> bool:
    """Return whether a report may have been stored before its try ended, by clocks of two hosts."""
    return ended_at is None or stored_at <= ended_at + CLOCK_SKEW


def _explain(connection: Connection, error: Exception) -> None:
    """Warn once of what kept a report from being claimed, and pause where it will keep the next ones too."""
    schema = migrate.Schema.READY
    if not database.is_timeout(error):
        try:
            with database.savepoint(connection, database.EXPLAIN):
                schema = migrate.check(connection)
        except Exception as unknown:  # noqa: BLE001
            # Nothing is known of the tables: what went wrong first is the news, unless nobody can look at them.
            if database.is_timeout(unknown):
                error = unknown
    if schema is not migrate.Schema.READY:
        breaker.open()
        left_behind.set()
        warn_once("schema", "%s Tasks are not affected; reports wait in the xcom table until then.", schema.explanation)
    elif database.is_timeout(error):
        breaker.open()
        left_behind.set()
        count("claims.paused")
        warn_once(
            "claim.timeout",
            "Airflow Worker Insight could not claim a report in time: its tables are locked, or the database is slow "
            "(%s). Tasks are not affected; reports wait in the xcom table until that is over.",
            str(getattr(error, "orig", None) or error).strip().partition("\n")[0],
        )
    else:
        breaker.close()
        warn_once("claim", "Airflow Worker Insight could not claim a report: %s", error)
