"""Reconciling: when a Dag run has ended, every one of its tries gets its final state and an honest attribution.

For a batch of Dag runs it takes the reports that nobody claimed, reads all tries from Airflow's tables and all recorded
ones from ours, closes what is recorded and adds what is missing. The number of statements does not depend on the number
of tries. It can run any number of times.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from airflow_worker_insight import compat, config
from airflow_worker_insight.capture import claim
from airflow_worker_insight.capture.counters import count, warn_once
from airflow_worker_insight.capture.report import REPORT_KEY
from airflow_worker_insight.domain.attempts import lost_tries
from airflow_worker_insight.domain.attribution import Verdict, attribute
from airflow_worker_insight.store import airflow_history, migrate, placements, rekeying, session, xcom
from airflow_worker_insight.store.attempts import close as attempts_close
from airflow_worker_insight.store.tables import NO_WORKER

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.attempts import AirflowTry, DagRunRef
    from airflow_worker_insight.domain.attribution import WorkerInstance
    from airflow_worker_insight.domain.keys import RowKey, TryKey
    from airflow_worker_insight.store.attempts.close import Recorded
    from airflow_worker_insight.store.xcom import StoredReport

WAITING_PAGE = 100
"""Waiting reports that are read at once."""

LEFT_BEHIND_PAGE = 20
"""Waiting reports that one transaction takes while tries run: until its end Airflow cannot clear their XComs."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many tries one pass closed, added and took from waiting reports, and which runs it must see again."""

    closed: int = 0
    added: int = 0
    claimed: int = 0
    still_running: frozenset[DagRunRef] = frozenset()

    def __add__(self, other: Outcome) -> Outcome:
        """Sum two passes."""
        return Outcome(
            self.closed + other.closed,
            self.added + other.added,
            self.claimed + other.claimed,
            self.still_running | other.still_running,
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be written: recorded tries to close or remove, and tries to add with what is said of each."""

    close: Sequence[tuple[RowKey, AirflowTry]]
    add: Sequence[tuple[AirflowTry, Verdict]]
    remove: Sequence[RowKey] = ()


def reconcile_runs(
    connection: Connection, runs: Sequence[DagRunRef], *, installed_at: datetime | None = None
) -> Outcome:
    """Reconcile these Dag runs. The caller owns the transaction and keeps batches small.

    :param installed_at: tries that started before are ``backfilled``; ``None`` says that none did
    """
    if not runs:
        return Outcome()
    claimed = claim_waiting(connection, runs)
    tries = airflow_history.tries_of_runs(connection, runs)
    recorded = rekeying.rekey(connection, runs, tries, attempts_close.recorded_tries(connection, runs))
    known = {one.row_key for one in recorded}
    missing_hosts = {one.hostname for one in tries if one.hostname is not None and known.isdisjoint(one.row_keys)}
    plan = make_plan(
        runs,
        tries,
        recorded,
        attempts_close.lives_on(connection, missing_hosts),
        default_executor=config.executor(),
        installed_at=installed_at,
    )
    attempts_close.close_tries(connection, plan.close)
    attempts_close.remove_tries(connection, plan.remove)
    hosts = attempts_close.ensure_hosts(
        connection,
        (verdict.worker for _, verdict in plan.add if verdict.worker is not None and verdict.ref is None),
        now=datetime.now(timezone.utc),
    )
    attempts_close.add_tries(
        connection, [(one, verdict.attribution, _ref(verdict, hosts)) for one, verdict in plan.add]
    )
    placements.keep(connection, runs, tries)
    for attribution, number in Counter(verdict.attribution for _, verdict in plan.add).items():
        count(f"tries.{attribution}", number)
    return Outcome(
        closed=len(plan.close), added=len(plan.add), claimed=claimed, still_running=_still_running(runs, tries)
    )


def in_parts(runs: Mapping[DagRunRef, int], most: int) -> Iterator[list[DagRunRef]]:
    """Cut Dag runs into parts of at most ``most`` task instances each; a run that has more is a part of its own.

    :param runs: Dag runs and how many task instances each has
    """
    part: list[DagRunRef] = []
    size = 0
    for run, tasks in runs.items():
        if part and size + tasks > most:
            yield part
            part, size = [], 0
        part.append(run)
        size += tasks
    if part:
        yield part


def _still_running(runs: Collection[DagRunRef], tries: Collection[AirflowTry]) -> frozenset[DagRunRef]:
    running = {(one.key.dag_id, one.key.run_id) for one in tries if one.state is not None and not one.is_finished}
    return frozenset(run for run in runs if (run.dag_id, run.run_id) in running)


def make_plan(
    runs: Collection[DagRunRef],
    tries: Collection[AirflowTry],
    recorded: Collection[Recorded],
    lives: Collection[WorkerInstance],
    *,
    default_executor: str | None,
    installed_at: datetime | None,
) -> Plan:
    """Compare Airflow's tries with the recorded ones. Tries that have not ended are left alone.

    Tries that were recorded in a deleted Dag run of the same name stay as they are.
    """
    by_key = {one.row_key: one for one in recorded}
    finished = [one for one in tries if one.is_finished]
    lost = lost_tries(tries)
    # A try that starts before the very first report of all is no history where its run has tries that are recorded.
    recorded_runs = {_run_of(one) for one in tries if _recorded(one, by_key) is not None}
    forgotten = _of_forgotten_tries(runs, tries, recorded)
    close: list[tuple[RowKey, AirflowTry]] = []
    add: list[tuple[AirflowTry, Verdict]] = []
    for one in (*finished, *lost):
        known = _recorded(one, by_key) or (forgotten.get(one.key) if one.is_lost else None)
        if known is None:
            backfilled = _is_older(one, installed_at) and _run_of(one) not in recorded_runs
            add.append((one, attribute(one, lives, default_executor=default_executor, backfilled=backfilled)))
            continue
        one = _with_start(one, known)  # noqa: PLW2901
        # What a worker reported of a lost try is kept, but not that it runs: a later try is there.
        if _is_open(known) if one.is_lost else not known.is_closed_as(one):
            close.append((known.row_key, one))
    return Plan(close, add, _not_mapped_any_more(tries, recorded))


def _recorded(one: AirflowTry, by_key: Mapping[RowKey, Recorded]) -> Recorded | None:
    return next((by_key[key] for key in one.row_keys if key in by_key), None)


def _of_forgotten_tries(
    runs: Collection[DagRunRef], tries: Collection[AirflowTry], recorded: Collection[Recorded]
) -> dict[TryKey, Recorded]:
    """Return what was recorded in these Dag runs themselves of tries whose history Airflow has removed since."""
    known = {key for one in tries for key in one.row_keys}
    began = {(run.dag_id, run.run_id): run.began_at for run in runs}
    return {
        one.key: one
        for one in recorded
        if one.row_key not in known
        # A mapped task instance may have come again under its index.
        and one.key.map_index < 0
        and airflow_history.is_of_run(one.started_at, began.get((one.key.dag_id, one.key.run_id)))
    }


def _run_of(one: AirflowTry) -> tuple[str, str]:
    return one.key.dag_id, one.key.run_id


def _is_open(known: Recorded) -> bool:
    return known.state is not None and known.ended_at is None


def _with_start(one: AirflowTry, known: Recorded) -> AirflowTry:
    """Keep the start that was recorded where Airflow has none."""
    return one if one.started_at is not None else replace(one, started_at=known.started_at)


def _not_mapped_any_more(tries: Collection[AirflowTry], recorded: Collection[Recorded]) -> list[RowKey]:
    """Return what was recorded, without a worker, of a task that had not been mapped yet and has been since (2.11)."""
    mapped = {(*_run_of(one), one.key.task_id) for one in tries if one.key.map_index >= 0}
    known = {key for one in tries for key in one.row_keys}
    return [
        one.row_key
        for one in recorded
        if not one.has_worker
        and one.key.map_index < 0
        and one.row_key not in known
        and (one.key.dag_id, one.key.run_id, one.key.task_id) in mapped
    ]


def claim_waiting(connection: Connection, runs: Sequence[DagRunRef]) -> int:
    """Take the reports of these Dag runs that no API server claimed; return how many."""
    if not compat.is_airflow_3():
        return 0
    taken = failed = 0
    while True:
        # What is taken is gone from the table; what cannot be taken stays, and must not hide what is behind it.
        waiting = xcom.unclaimed_reports(connection, REPORT_KEY, runs=runs, limit=WAITING_PAGE, offset=failed)
        now_taken = sum(_take_waiting(connection, report) for report in waiting)
        taken, failed = taken + now_taken, failed + len(waiting) - now_taken
        if len(waiting) < WAITING_PAGE:
            return taken


def claim_all_waiting(bounds: session.Bounds = session.BACKGROUND) -> int:
    """Take all reports that no API server claimed, a page per transaction: no worker's row is locked for long."""
    if not compat.is_airflow_3():
        return 0
    taken = failed = 0
    while True:
        with session.writing(bounds) as connection:
            waiting = xcom.unclaimed_reports(connection, REPORT_KEY, limit=LEFT_BEHIND_PAGE, offset=failed)
            now_taken = sum(_take_waiting(connection, report) for report in waiting)
        taken, failed = taken + now_taken, failed + len(waiting) - now_taken
        if len(waiting) < LEFT_BEHIND_PAGE:
            return taken


def take_left_behind() -> int:
    """Take the reports that this process stored while claiming paused, and end the pause if that works.

    Soon, because Airflow clears a task instance's XComs when its next try starts. For a thread that comes round.
    """
    if not claim.left_behind.is_set():
        return 0
    # Before: what is left behind meanwhile counts for the next time.
    claim.left_behind.clear()
    try:
        with session.reading(session.BACKGROUND) as connection:
            is_ready = migrate.check(connection) is migrate.Schema.READY
        taken = claim_all_waiting() if is_ready else 0
    except Exception:
        claim.left_behind.set()
        raise
    if is_ready:
        claim.breaker.close()
    else:
        claim.left_behind.set()
    return taken


def _take_waiting(connection: Connection, report: StoredReport) -> bool:
    try:
        with connection.begin_nested():
            claim.take(connection, report.stored_under, report.value, now=report.stored_at, is_late=True)
            xcom.delete_report(connection, REPORT_KEY, report.stored_under)
    except Exception as error:
        if session.is_timeout(error):
            # The next ones would wait as long, with all that this transaction has locked.
            raise
        count("reports.unclaimed")
        warn_once("reconcile", "Airflow Worker Insight could not take a waiting report: %s", error)
        return False
    return True


def _is_older(one: AirflowTry, installed_at: datetime | None) -> bool:
    moment = one.started_at or one.ended_at or one.queued_at
    return installed_at is not None and moment is not None and moment < installed_at


def _ref(verdict: Verdict, hosts: Mapping[str, int]) -> int:
    if verdict.ref is not None:
        return verdict.ref
    return hosts[verdict.worker.worker_id] if verdict.worker is not None else NO_WORKER
