"""Claim reports: record an attempt instead of storing its report as an XCom.

Runs in the API server when a session is about to store the report, on a savepoint inside the transaction of the
execution API's XCom request: the request succeeds whatever fails here. A report that cannot be claimed is stored as an
XCom row, which reconciling finds later. What other clients store under the reserved key, such as a user through the
public API, is stored as usual: they may read it back.
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
from airflow_worker_insight.domain.names import is_same_host
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
"""How long claiming pauses, in seconds, after a timeout or when the tables are missing.

Otherwise each claim would delay a request of Airflow's or log an error in the database. The registry's background
thread ends the pause sooner when it finds the tables usable again: see :func:`.reconcile.take_left_behind`.
"""

breaker = CircuitBreaker(PAUSE_SECONDS)
"""Open while claiming is paused."""

_one_waits = Lock()
"""Held by the one claim of this process that may wait for a table lock."""

left_behind = Event()
"""Set when a report was stored because its claim timed out or claiming was paused."""


def install() -> None:
    """Claim every report that this process stores from now on; a second call changes nothing."""
    if config.enabled() and not is_installed():
        # Load Airflow's module now and not in the middle of a request.
        metadata_database.xcom_model()
        xcom.call_before_flushes(_before_flush)


def uninstall() -> None:
    """Stop claiming: reports are stored as XComs again."""
    if is_installed():
        xcom.call_no_more_before_flushes(_before_flush)


def is_installed() -> bool:
    """Return whether this process claims reports."""
    return xcom.is_called_before_flushes(_before_flush)


def _before_flush(session: Session, _flush: Any, _objects: Any) -> None:
    # Called on each flush of the API server, so check only what is an XCom.
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
        return  # Airflow's own flush is about to raise the same.
    started = time.perf_counter()
    try:
        if not _claim_now(connection, row):
            count("reports.unclaimed")
            left_behind.set()
            return
        # Claimed: without the row in the session no XCom is stored.
        session.expunge(row)
        breaker.close()
    except Exception as error:  # noqa: BLE001
        count("reports.unclaimed")
        _handle_failure(connection, error)
    metrics.timing("claim.duration", seconds=time.perf_counter() - started)


def _claim_now(connection: Connection, row: Any) -> bool:
    """Claim a report; return ``False`` where a table is locked and another claim waits for it.

    Each claim holds one of the API server's few connections. If all of them waited, the next request would get none
    and block the event loop, where Airflow looks up the request's token, so the server could not release any.
    """
    sender = TaskInstanceKey(row.dag_id, row.run_id, row.task_id, row.map_index)
    try:
        with database.savepoint(connection, database.START, nowait_tables=(attempt, worker)) as bounded_connection:
            take(bounded_connection, sender, row.value, now=datetime.now(timezone.utc))
    except database.TablesLockedError:
        if not _one_waits.acquire(blocking=False):
            return False
        try:
            with database.savepoint(connection, database.START) as bounded_connection:
                take(bounded_connection, sender, row.value, now=datetime.now(timezone.utc))
        finally:
            _one_waits.release()
    return True


def take(connection: Connection, sender: TaskInstanceKey, value: Any, *, now: datetime, is_late: bool = False) -> None:
    """Record the attempt that a report describes, or drop a report that is not credible.

    The caller owns the transaction and removes the stored report.

    :param sender: the task instance that Airflow stored the report under
    :param value: the stored XCom value
    :param now: when the report was stored
    :param is_late: whether it was stored before this transaction
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
            return  # Expected in ``dag.test``: there is nothing to fix.
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
    airflow_try = airflow_history.try_by_id(connection, report.try_id)
    # Airflow lets a task write XComs of other tasks: a report counts only for the started try whose ID it carries.
    if airflow_try is None or airflow_try.key.task_instance != sender or airflow_try.started_at is None:
        raise RejectedReportError("not_this_try")
    if report.worker.kind == LOCAL and airflow_try.queued_by_job_id is None:
        # A local worker is a scheduler's. dag.test(use_executor=True) runs a LocalExecutor in its caller's process.
        raise RejectedReportError("in_a_test")
    # No task process starts after its try has ended. A late report may be of a process that started before the end.
    if airflow_try.is_over and not (is_late and _may_precede_end(now, airflow_try.ended_at)):
        raise RejectedReportError("try_has_ended")
    ended_at = airflow_try.ended_at if airflow_try.is_over else None
    is_expected_kind = has_workers_of(report.worker.kind, executor=airflow_try.executor, setting=config.executor())
    if is_late and airflow_try.hostname and not is_same_host(airflow_try.hostname, report.worker.hostname):
        # A process on another host may have followed this one, and Airflow keeps the latest host only.
        raise RejectedReportError(
            "not_this_host", f"it waited, and Airflow has the try on the host {airflow_try.hostname}"
        )
    try:
        return record_start(
            connection,
            StartedTry(
                airflow_try.key,
                airflow_try.instance,
                airflow_try.started_at,
                airflow_try.state,
                ended_at,
                is_expected_kind,
            ),
            worker_record(report.worker, job_id=airflow_try.queued_by_job_id, hostname=airflow_try.hostname),
            now=now,
            process=process_key(report.process),
            conditions=conditions(report.conditions),
            is_late=is_late,
        )
    except ContradictingWorkerError as error:
        raise RejectedReportError("contradicting", str(error)) from None
    except TooManyWorkersError as error:
        raise RejectedReportError("too_many_workers", str(error)) from None


def _may_precede_end(stored_at: datetime, ended_at: datetime | None) -> bool:
    """Return whether a report may be from before its try's end, by clocks of two hosts."""
    return ended_at is None or stored_at <= ended_at + CLOCK_SKEW


def _handle_failure(connection: Connection, error: Exception) -> None:
    """Warn once why a report was not claimed; pause claiming if the next ones would fail too."""
    schema = migrate.Schema.READY
    if not database.is_timeout(error):
        try:
            with database.savepoint(connection, database.EXPLAIN):
                schema = migrate.check(connection)
        except Exception as check_error:  # noqa: BLE001
            # The tables' state is unknown: report the first error, unless the check itself timed out.
            if database.is_timeout(check_error):
                error = check_error
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
