"""Reconcile ended Dag runs: give each of their tries its final state and attribution.

For a batch of Dag runs it claims the reports that no API server claimed, reads all tries from Airflow's tables and all
records from this package's, closes the records and adds the missing ones. The number of statements does not depend on
the number of tries. Reconciling is idempotent.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from airflow_worker_insight import config
from airflow_worker_insight.capture import claim
from airflow_worker_insight.capture.counters import Counters, process_counters
from airflow_worker_insight.capture.report import REPORT_KEY
from airflow_worker_insight.compat import task_runtime
from airflow_worker_insight.domain.attempts import lost_tries
from airflow_worker_insight.domain.attribution import AttributionResult, attribute
from airflow_worker_insight.store import airflow_history, placements, rekeying, session, xcom
from airflow_worker_insight.store.attempts import close as attempts_close
from airflow_worker_insight.store.migrate import Schema
from airflow_worker_insight.store.schema_gate import read_schema
from airflow_worker_insight.store.tables import NO_WORKER

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.attempts import AirflowTry, DagRunRef
    from airflow_worker_insight.domain.attribution import RecordedInstance
    from airflow_worker_insight.domain.keys import RowKey, TryKey
    from airflow_worker_insight.store.attempts.close import RecordedTry
    from airflow_worker_insight.store.xcom import StoredReport

REPORTS_PER_READ = 100
"""Number of stored reports read at once."""

REPORTS_PER_TRANSACTION = 20
"""Number of stored reports per transaction while tries run.

Airflow cannot clear the XComs of their task instances before the transaction ends.
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many tries a pass closed, added and claimed late, and which runs have unfinished tries."""

    closed: int = 0
    added: int = 0
    claimed: int = 0
    unfinished_runs: frozenset[DagRunRef] = frozenset()

    def __add__(self, other: Outcome) -> Outcome:
        """Sum two passes."""
        return Outcome(
            self.closed + other.closed,
            self.added + other.added,
            self.claimed + other.claimed,
            self.unfinished_runs | other.unfinished_runs,
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What to write: records to close or remove, and tries to add with their attribution."""

    close: Sequence[tuple[RowKey, AirflowTry]]
    add: Sequence[tuple[AirflowTry, AttributionResult]]
    remove: Sequence[RowKey] = ()


def reconcile_runs(
    connection: Connection,
    runs: Sequence[DagRunRef],
    *,
    installed_at: datetime | None = None,
    counters: Counters = process_counters,
) -> Outcome:
    """Reconcile these Dag runs.

    The caller owns the transaction and keeps batches small.

    :param installed_at: tries that started before it are ``backfilled``; with ``None`` no try is
    :param counters: what counts the reports and tries
    """
    if not runs:
        return Outcome()
    claimed = claim_stored_reports(connection, runs, counters=counters)
    tries = airflow_history.tries_of_runs(connection, runs)
    recorded = rekeying.rekey(connection, runs, tries, attempts_close.recorded_tries(connection, runs))
    recorded_keys = {record.row_key for record in recorded}
    missing_hosts = {
        airflow_try.hostname
        for airflow_try in tries
        if airflow_try.hostname is not None and recorded_keys.isdisjoint(airflow_try.row_keys)
    }
    plan = make_plan(
        runs,
        tries,
        recorded,
        attempts_close.instances_on_hosts(connection, missing_hosts),
        default_executor=config.executor(),
        installed_at=installed_at,
    )
    attempts_close.close_tries(connection, plan.close)
    attempts_close.remove_tries(connection, plan.remove)
    hosts = attempts_close.ensure_hosts(
        connection,
        (result.worker for _, result in plan.add if result.worker is not None and result.ref is None),
        now=datetime.now(timezone.utc),
    )
    attempts_close.add_tries(
        connection, [(airflow_try, result.attribution, _ref(result, hosts)) for airflow_try, result in plan.add]
    )
    placements.copy_reasons(connection, runs, tries)
    for attribution, tries_count in Counter(result.attribution for _, result in plan.add).items():
        counters.count(f"tries.{attribution}", tries_count)
    return Outcome(
        closed=len(plan.close), added=len(plan.add), claimed=claimed, unfinished_runs=_unfinished_runs(runs, tries)
    )


def split_into_batches(runs: Mapping[DagRunRef, int], limit: int) -> Iterator[list[DagRunRef]]:
    """Split Dag runs into batches of at most ``limit`` task instances; a larger run is a batch.

    :param runs: Dag runs and the number of their task instances
    """
    batch: list[DagRunRef] = []
    size = 0
    for run, task_count in runs.items():
        if batch and size + task_count > limit:
            yield batch
            batch, size = [], 0
        batch.append(run)
        size += task_count
    if batch:
        yield batch


def _unfinished_runs(runs: Collection[DagRunRef], tries: Collection[AirflowTry]) -> frozenset[DagRunRef]:
    running = {
        (airflow_try.key.dag_id, airflow_try.key.run_id)
        for airflow_try in tries
        if airflow_try.state is not None and not airflow_try.is_finished
    }
    return frozenset(run for run in runs if (run.dag_id, run.run_id) in running)


def make_plan(
    runs: Collection[DagRunRef],
    tries: Collection[AirflowTry],
    recorded: Collection[RecordedTry],
    instances: Collection[RecordedInstance],
    *,
    default_executor: str | None,
    installed_at: datetime | None,
) -> Plan:
    """Compare Airflow's tries with the recorded ones; skip tries that have not ended.

    Tries that were recorded in a deleted Dag run of the same name stay as they are.
    """
    by_key = {record.row_key: record for record in recorded}
    finished = [airflow_try for airflow_try in tries if airflow_try.is_finished]
    lost = lost_tries(tries)
    # A try from before the very first report is not history where its run has recorded tries.
    recorded_runs = {_run_key(airflow_try) for airflow_try in tries if _find_recorded(airflow_try, by_key) is not None}
    forgotten = _forgotten_records(runs, tries, recorded)
    close: list[tuple[RowKey, AirflowTry]] = []
    add: list[tuple[AirflowTry, AttributionResult]] = []
    for airflow_try in (*finished, *lost):
        existing = _find_recorded(airflow_try, by_key) or (
            forgotten.get(airflow_try.key) if airflow_try.is_lost else None
        )
        if existing is None:
            backfilled = _is_before(airflow_try, installed_at) and _run_key(airflow_try) not in recorded_runs
            add.append(
                (
                    airflow_try,
                    attribute(airflow_try, instances, default_executor=default_executor, backfilled=backfilled),
                )
            )
            continue
        started_try = _with_start(airflow_try, existing)
        # Keep what a worker reported of a lost try, but not that it runs: a later try exists.
        if _is_open(existing) if started_try.is_lost else not existing.is_closed_as(started_try):
            close.append((existing.row_key, started_try))
    return Plan(close, add, _unmapped_keys_to_remove(tries, recorded))


def _find_recorded(airflow_try: AirflowTry, by_key: Mapping[RowKey, RecordedTry]) -> RecordedTry | None:
    return next((by_key[key] for key in airflow_try.row_keys if key in by_key), None)


def _forgotten_records(
    runs: Collection[DagRunRef], tries: Collection[AirflowTry], recorded: Collection[RecordedTry]
) -> dict[TryKey, RecordedTry]:
    """Return the records of these Dag runs' tries whose history Airflow has removed since."""
    current_keys = {key for airflow_try in tries for key in airflow_try.row_keys}
    began_at = {(run.dag_id, run.run_id): run.started_at for run in runs}
    return {
        record.key: record
        for record in recorded
        if record.row_key not in current_keys
        # A mapped task instance may have been created again under its index.
        and record.key.map_index < 0
        and airflow_history.is_of_run(record.started_at, began_at.get((record.key.dag_id, record.key.run_id)))
    }


def _run_key(airflow_try: AirflowTry) -> tuple[str, str]:
    return airflow_try.key.dag_id, airflow_try.key.run_id


def _is_open(record: RecordedTry) -> bool:
    return record.state is not None and record.ended_at is None


def _with_start(airflow_try: AirflowTry, record: RecordedTry) -> AirflowTry:
    """Use the recorded start where Airflow has none."""
    return airflow_try if airflow_try.started_at is not None else replace(airflow_try, started_at=record.started_at)


def _unmapped_keys_to_remove(tries: Collection[AirflowTry], recorded: Collection[RecordedTry]) -> list[RowKey]:
    """Return the keys of unmapped records that mapped ones have replaced (2.11).

    Airflow 2.11 expands a mapped task after it made its unmapped task instance, whose record has no worker.
    """
    mapped = {
        (*_run_key(airflow_try), airflow_try.key.task_id) for airflow_try in tries if airflow_try.key.map_index >= 0
    }
    current_keys = {key for airflow_try in tries for key in airflow_try.row_keys}
    return [
        record.row_key
        for record in recorded
        if not record.has_worker
        and record.key.map_index < 0
        and record.row_key not in current_keys
        and (record.key.dag_id, record.key.run_id, record.key.task_id) in mapped
    ]


def claim_stored_reports(
    connection: Connection,
    runs: Sequence[DagRunRef],
    *,
    page_size: int = REPORTS_PER_READ,
    counters: Counters = process_counters,
) -> int:
    """Claim the stored reports of these Dag runs that no API server claimed; return how many."""
    if task_runtime.task_processes_have_database():
        return 0  # They send no reports.
    claimed = failed = 0
    while True:
        # Claimed reports leave the table. Failed ones stay: skip them to reach those behind.
        reports = xcom.unclaimed_reports(connection, REPORT_KEY, runs=runs, limit=page_size, offset=failed)
        claimed_now = sum(_claim_stored_report(connection, report, counters) for report in reports)
        claimed, failed = claimed + claimed_now, failed + len(reports) - claimed_now
        if len(reports) < page_size:
            return claimed


def claim_all_stored_reports(
    bounds: session.Bounds = session.BACKGROUND,
    *,
    page_size: int = REPORTS_PER_TRANSACTION,
    counters: Counters = process_counters,
) -> int:
    """Claim all stored reports, one page per transaction; return how many.

    Small transactions lock no worker's row for long.
    """
    if task_runtime.task_processes_have_database():
        return 0  # They send no reports.
    claimed = failed = 0
    while True:
        with session.writing(bounds) as connection:
            reports = xcom.unclaimed_reports(connection, REPORT_KEY, limit=page_size, offset=failed)
            claimed_now = sum(_claim_stored_report(connection, report, counters) for report in reports)
        claimed, failed = claimed + claimed_now, failed + len(reports) - claimed_now
        if len(reports) < page_size:
            return claimed


def claim_left_behind() -> int:
    """Claim the reports that this process stored while claiming was paused; return how many.

    If that works, it ends the pause. A background thread calls this every few seconds, because Airflow clears a task
    instance's XComs when its next try starts.
    """
    claimer = claim.installed()
    if claimer is None or not claimer.may_have_unclaimed.is_set():
        return 0
    # Clear first: a report that is stored meanwhile counts for the next call.
    claimer.may_have_unclaimed.clear()
    try:
        is_ready = read_schema(session.BACKGROUND) is Schema.READY
        claimed = claim_all_stored_reports(counters=claimer.counters) if is_ready else 0
    except Exception:
        claimer.may_have_unclaimed.set()
        raise
    if is_ready:
        claimer.breaker.close()
    else:
        claimer.may_have_unclaimed.set()
    return claimed


def _claim_stored_report(connection: Connection, report: StoredReport, counters: Counters) -> bool:
    try:
        with connection.begin_nested():
            claim.record_report(
                connection, report.stored_under, report.value, now=report.stored_at, is_late=True, counters=counters
            )
            xcom.delete_report(connection, REPORT_KEY, report.stored_under)
    except Exception as error:
        if session.is_timeout(error):
            # The next reports would time out too, while this transaction holds its locks.
            raise
        counters.count("reports.unclaimed")
        counters.warn_once("reconcile", "Airflow Worker Insight could not claim a stored report: %s", error)
        return False
    return True


def _is_before(airflow_try: AirflowTry, installed_at: datetime | None) -> bool:
    moment = airflow_try.started_at or airflow_try.ended_at or airflow_try.queued_at
    return installed_at is not None and moment is not None and moment < installed_at


def _ref(result: AttributionResult, hosts: Mapping[str, int]) -> int:
    if result.ref is not None:
        return result.ref
    return hosts[result.worker.worker_id] if result.worker is not None else NO_WORKER
