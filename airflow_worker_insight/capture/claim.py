"""The claim: take a report out of the XCom row that is about to be stored, and write the attempt instead.

Runs in the API server, inside the transaction of Airflow's own XCom request, on a savepoint: whatever goes wrong here,
the request succeeds. A report that could not be taken stays behind as an XCom row for reconciling to find.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from airflow_worker_insight import compat, config
from airflow_worker_insight.capture.counters import count, warn_once
from airflow_worker_insight.capture.report import REPORT_KEY
from airflow_worker_insight.capture.validation import RejectedReport, parse_report, worker_record
from airflow_worker_insight.store import airflow_tries, migrate, xcoms
from airflow_worker_insight.store.keys import TaskInstanceKey
from airflow_worker_insight.store.recording import ContradictingWorker, TooManyWorkers, record_start

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

PAUSE_SECONDS = 30.0
"""How long claiming pauses after the tables were found missing: each try would put an error into the database's log."""

_paused_until = 0.0


def install() -> None:
    """Claim every report that this process stores from now on; calling it again changes nothing."""
    if not config.enabled():
        return
    model = compat.xcom_model()
    if not event.contains(model, "after_insert", _after_insert):
        event.listen(model, "after_insert", _after_insert)


def _after_insert(_mapper: Any, connection: Connection, row: Any) -> None:
    if row.key != REPORT_KEY or time.monotonic() < _paused_until:
        return
    try:
        with connection.begin_nested():
            sender = TaskInstanceKey(row.dag_id, row.run_id, row.task_id, row.map_index)
            take(connection, sender, row.value, now=datetime.now(timezone.utc))
    except Exception as error:  # noqa: BLE001
        count("unclaimed")
        _explain(connection, error)


def take(connection: Connection, sender: TaskInstanceKey, value: Any, *, now: datetime) -> None:
    """Write the attempt that a report tells of and delete the report; one that is not believed is dropped.

    The caller owns the transaction.

    :param sender: the task instance that Airflow stored the report under
    :param value: the stored XCom value
    :param now: when the report was stored
    """
    try:
        _record(connection, sender, value, now=now)
        count("claimed")
    except RejectedReport as rejected:
        count(f"dropped.{rejected.reason}")
        warn_once(
            f"dropped.{rejected.reason}",
            "Airflow Worker Insight dropped a report of task %s.%s (%s): the XCom key %s is reserved for it",
            sender.dag_id,
            sender.task_id,
            rejected.reason,
            REPORT_KEY,
        )
    xcoms.delete_report(connection, REPORT_KEY, sender)


def _record(connection: Connection, sender: TaskInstanceKey, value: Any, *, now: datetime) -> None:
    report = parse_report(value)
    one = airflow_tries.try_by_id(connection, report.try_id)
    # Airflow lets a task write XComs of other tasks: a report counts for the try whose ID it has, if that has started.
    if one is None or one.key.task_instance != sender or one.started_at is None:
        raise RejectedReport("not_this_try")
    try:
        record_start(
            connection,
            one.key,
            worker_record(report.worker, job_id=one.queued_by_job_id),
            try_started_at=one.started_at,
            state=one.state,
            now=now,
        )
    except ContradictingWorker:
        raise RejectedReport("contradicting") from None
    except TooManyWorkers:
        raise RejectedReport("too_many_workers") from None


def _explain(connection: Connection, error: Exception) -> None:
    """Warn once of what kept a report from being claimed, and pause where it will keep the next ones too."""
    try:
        with connection.begin_nested():
            schema = migrate.check(connection)
    except Exception:  # noqa: BLE001
        schema = migrate.Schema.READY  # Nothing is known of the tables: what went wrong first is the news.
    if schema is migrate.Schema.READY:
        warn_once("claim", "Airflow Worker Insight could not claim a report: %s", error)
        return
    _pause()
    warn_once(
        "claim.schema", "%s Tasks are not affected; reports wait in the xcom table until then.", schema.explanation
    )


def _pause() -> None:
    global _paused_until  # noqa: PLW0603
    _paused_until = time.monotonic() + PAUSE_SECONDS
