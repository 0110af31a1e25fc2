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
from airflow_worker_insight.capture.counters import Counters, process_counters
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
from airflow_worker_insight.store.session import Bounds, CircuitBreaker
from airflow_worker_insight.store.tables import attempt, worker
from airflow_worker_insight.store.workers.upsert import ContradictingWorkerError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import Session

PAUSE_SECONDS = 30.0
"""How long claiming pauses, in seconds, after a timeout or when the tables are missing.

Otherwise each claim would delay a request of Airflow's or log an error in the database. The registry's background
thread ends the pause sooner when it finds the tables usable again: see :func:`.reconcile.claim_left_behind`.
"""


class Claimer:
    """Claims the reports that sessions of this process are about to store."""

    def __init__(
        self,
        *,
        bounds: Bounds,
        explain_bounds: Bounds,
        breaker: CircuitBreaker | None = None,
        counters: Counters = process_counters,
    ) -> None:
        self.breaker = breaker or CircuitBreaker(PAUSE_SECONDS)
        """Open while claiming is paused."""
        self.counters = counters
        self._bounds = bounds
        self._explain_bounds = explain_bounds
        self.may_have_unclaimed = Event()
        """Set when a report was stored because its claim timed out or claiming was paused."""
        self.lock_wait = Lock()
        """Held by the one claim that may wait for a table lock."""

    def before_flush(self, session: Session, _flush: Any, _objects: Any) -> None:
        """Claim the reports among a session's new rows; SQLAlchemy calls this before each flush."""
        # Each flush of the API server comes here, so check only what is an XCom.
        model = metadata_database.xcom_model()
        for row in list(session.new):
            if isinstance(row, model) and row.key == REPORT_KEY and metadata_database.in_task_xcom_request():
                if self.breaker.allows():
                    self._claim(session, row)
                else:
                    self.may_have_unclaimed.set()

    def _claim(self, session: Session, row: Any) -> None:
        try:
            connection = session.connection()
        except Exception:  # noqa: BLE001 - Airflow's own flush is about to raise the same
            return
        started = time.perf_counter()
        try:
            if not self._claim_within_bounds(connection, row):
                self.counters.count("reports.unclaimed")
                self.may_have_unclaimed.set()
                return
            # Claimed: without the row in the session no XCom is stored.
            session.expunge(row)
            self.breaker.close()
        except Exception as error:  # noqa: BLE001 - Airflow's request must succeed, whatever fails here
            self.counters.count("reports.unclaimed")
            self._handle_failure(connection, error)
        metrics.timing("claim.duration", seconds=time.perf_counter() - started)

    def _claim_within_bounds(self, connection: Connection, row: Any) -> bool:
        """Claim a report; return ``False`` where a table is locked and another claim waits for it.

        Each claim holds one of the API server's few connections. If all of them waited, the next request would get none
        and block the event loop, where Airflow looks up the request's token, so the server could not release any.
        """
        try:
            with database.savepoint(connection, self._bounds, nowait_tables=(attempt, worker)) as bounded_connection:
                self._record(bounded_connection, row)
        except database.TablesLockedError:
            if not self.lock_wait.acquire(blocking=False):
                return False
            try:
                with database.savepoint(connection, self._bounds) as bounded_connection:
                    self._record(bounded_connection, row)
            finally:
                self.lock_wait.release()
        return True

    def _record(self, connection: Connection, row: Any) -> None:
        sender = TaskInstanceKey(row.dag_id, row.run_id, row.task_id, row.map_index)
        record_report(connection, sender, row.value, now=datetime.now(timezone.utc), counters=self.counters)

    def _handle_failure(self, connection: Connection, error: Exception) -> None:
        """Warn once why a report was not claimed; pause claiming if the next ones would fail too."""
        schema = migrate.Schema.READY
        if not database.is_timeout(error):
            try:
                with database.savepoint(connection, self._explain_bounds):
                    schema = migrate.check(connection)
            except Exception as check_error:  # noqa: BLE001 - the tables' state stays unknown
                # Report the first error, unless the check itself timed out.
                if database.is_timeout(check_error):
                    error = check_error
        if schema is not migrate.Schema.READY:
            self._pause()
            self.counters.warn_once(
                "schema",
                "%s Tasks are not affected; reports stay in the xcom table until then.",
                schema.explanation,
            )
        elif database.is_timeout(error):
            self._pause()
            self.counters.count("claims.paused")
            self.counters.warn_once(
                "claim.timeout",
                "Airflow Worker Insight could not claim a report in time: its tables are locked, or the database is "
                "slow (%s). Tasks are not affected; reports stay in the xcom table until that is over.",
                str(getattr(error, "orig", None) or error).strip().partition("\n")[0],
            )
        else:
            self.breaker.close()
            self.counters.warn_once("claim", "Airflow Worker Insight could not claim a report: %s", error)

    def _pause(self) -> None:
        self.breaker.open()
        self.may_have_unclaimed.set()


_installed: Claimer | None = None


def install(claimer: Claimer | None = None) -> None:
    """Claim every report that this process stores from now on; a second call changes nothing."""
    global _installed  # noqa: PLW0603 - SQLAlchemy's hook is the process's, and so is its claimer
    if config.enabled() and _installed is None:
        # Load Airflow's module now and not in the middle of a request.
        metadata_database.xcom_model()
        _installed = claimer or Claimer(bounds=database.START, explain_bounds=database.EXPLAIN)
        xcom.add_flush_hook(_installed.before_flush)


def uninstall() -> None:
    """Stop claiming: reports are stored as XComs again."""
    global _installed  # noqa: PLW0603 - as in install
    if _installed is not None:
        xcom.remove_flush_hook(_installed.before_flush)
        _installed = None


def installed() -> Claimer | None:
    """Return what claims this process's reports, or ``None`` if they stay XComs."""
    return _installed


def record_report(
    connection: Connection,
    sender: TaskInstanceKey,
    value: Any,
    *,
    now: datetime,
    is_late: bool = False,
    counters: Counters = process_counters,
) -> None:
    """Record the attempt that a report describes, or drop a report that is not credible.

    The caller owns the transaction and removes the stored report.

    :param sender: the task instance that Airflow stored the report under
    :param value: the stored XCom value
    :param now: when the report was stored
    :param is_late: whether it was stored before this transaction
    :param counters: what counts the report
    """
    try:
        contradiction = _record(connection, sender, value, now=now, is_late=is_late)
        counters.count("reports.claimed")
        if contradiction is not None:
            counters.count("reports.contradicting")
            counters.warn_once(
                "contradicting",
                "Airflow Worker Insight recorded a report of task %s.%s for a separate worker, because it contradicts "
                "what is known of the named one (%s)",
                sender.dag_id,
                sender.task_id,
                contradiction,
            )
    except RejectedReportError as rejected:
        counters.count(f"reports.dropped.{rejected.reason}")
        if rejected.reason == "in_a_test":
            return  # Expected in ``dag.test``: there is nothing to fix.
        counters.warn_once(
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
            "not_this_host", f"it was claimed late, and Airflow has the try on the host {airflow_try.hostname}"
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
    """Return whether a report may be from before its try's end, as two hosts' clocks may differ."""
    return ended_at is None or stored_at <= ended_at + CLOCK_SKEW
