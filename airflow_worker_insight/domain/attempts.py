"""Tries as Airflow stores them and as task processes start them, and recorded attempts."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.domain.states import FINISHED, FINISHED_RUN

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from airflow_worker_insight.domain.keys import RowKey, TaskInstanceKey


@dataclass(frozen=True, slots=True)
class AttemptWorker:
    """A worker that ran an attempt, with ``process_count``: the task processes that ran there."""

    worker_id: str
    name: str
    kind: str
    hostname: str
    host_only: bool
    process_count: int
    first_started_at: datetime | None
    last_started_at: datetime | None
    load: float | None = None
    """Load average per CPU when the try first started on the worker; 1.0: all just busy."""
    memory_free: float | None = None
    """Free memory at that time as a share of the total, 0 to 1."""
    running_beside: int | None = None
    """Number of other tries that ran on the worker at that time."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a task instance and the workers that ran it.

    Times are aware UTC, ``duration`` is in seconds. ``is_recorded`` is ``False`` while only Airflow's own tables have
    the try: its host has no page.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    state: str | None
    started_at: datetime | None
    ended_at: datetime | None
    duration: float | None
    attribution: str
    workers: tuple[AttemptWorker, ...]
    is_recorded: bool = True
    placement: str | None = None
    """Latest placement decision of this package's executors, one of :class:`~.reasons.PlacementReason`."""
    deleted: str | None = None
    """``run`` or ``task_instance``: what Airflow deleted, and this try with it.

    If Airflow now has a Dag run or task instance of the same name, it is a different one.
    """
    row_key: RowKey | None = None
    ran_in_a_test: bool = False
    """Whether a user ran it in their own process: see :attr:`AirflowTry.ran_in_a_test`."""
    placement_detail: str | None = None
    """Sentence that explains ``placement``, for as long as it is stored."""


@dataclass(frozen=True, slots=True)
class AttemptPage:
    """One page of a list of attempts."""

    attempts: list[Attempt]
    total: int
    """Number of matching attempts, counted up to :data:`.limits.MAX_TOTAL`."""
    total_is_exact: bool
    """Whether all of them were counted; see :mod:`~.search` for what cuts a count short."""
    is_cut: bool = False
    """Whether older attempts are on no page because the search would have to scan too many."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """State of the worker's machine when a try started; ``None`` means unknown."""

    load: float | None = None
    """Load average of the last minute per CPU; 1.0 means all CPUs are just busy."""
    memory_free: float | None = None
    """Free memory as a share of the total, 0 to 1."""
    running_beside: int | None = None
    """Number of other tries that ran on the worker."""

    def columns(self) -> dict[str, int | None]:
        """Return the values as the attempt table stores them: integers of 2 bytes each."""
        return {
            "load": _scaled(self.load, 100),
            "memory_free": _scaled(self.memory_free, 1000),
            "running_beside": _scaled(self.running_beside, 1),
        }


def _scaled(value: float | None, unit: int) -> int | None:
    return None if value is None else min(round(value * unit), 2**15 - 1)


@dataclass(frozen=True, slots=True)
class StartedTry:
    """Airflow's data of a try that a task process has started. Times are aware UTC."""

    key: TryKey
    instance: int
    """Key of its task instance: see :mod:`.keys`."""
    started_at: datetime | None
    """Start of the try according to Airflow."""
    state: str = "running"
    ended_at: datetime | None = None
    """End of the try, if it ended before its report was processed."""
    kind_matches: bool | None = True
    """Whether its executor has workers of the reported kind; ``None`` if unknown."""


@dataclass(frozen=True, slots=True)
class AirflowTry:
    """Airflow's own data of a try. Times are aware UTC; blanks are ``None``.

    ``is_lost`` marks a try of which Airflow has no row; see :func:`lost_tries`.
    """

    key: TryKey
    instance_keys: tuple[int, ...] = ()
    """Keys of its task instance (:func:`.airflow_history.instance_keys`).

    New rows are stored under the first.
    """
    state: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    hostname: str | None = None
    pid: int | None = None
    queued_at: datetime | None = None
    executor: str | None = None
    queued_by_job_id: int | None = None
    external_executor_id: str | None = None
    queue: str | None = None
    is_lost: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether this try is in a final state."""
        return self.state in FINISHED

    @property
    def row_keys(self) -> tuple[RowKey, ...]:
        """Keys under which the try may be recorded; new rows use the first."""
        return tuple((self.key.run_key, instance, self.key.try_number) for instance in self.instance_keys)

    @property
    def ran_in_a_test(self) -> bool:
        """Whether a user ran this try in their own process: ``dag.test()``, ``airflow dags test``.

        Such a try has a process, but no scheduler queued it. Every scheduler, and 2.11's backfill, writes when it
        queued the try and by which job. When Airflow reverts this, it leaves one of the two: the time when a scheduler
        resets an orphan, the job when 2.11 requeues a stuck task. 3.3 clears both for a stuck task, but no process can
        start that before it is queued again. Celery's and Kubernetes' executors also leave the external ID of what they
        started.
        """
        # 2.11 writes no start time of such a try.
        is_queued = self.queued_at is not None or self.queued_by_job_id is not None
        return self.hostname is not None and not is_queued and self.external_executor_id is None


def lost_tries(known: Collection[AirflowTry]) -> list[AirflowTry]:
    """Return the tries that Airflow has no row of although a later try is known.

    Airflow writes no history when the scheduler fails a task that is still queued (seen on 2.11.2 and 3.3.2), and
    before 2.10 it had no history at all.
    """
    present: dict[TaskInstanceKey, dict[int, AirflowTry]] = defaultdict(dict)
    for airflow_try in known:
        present[airflow_try.key.task_instance][airflow_try.key.try_number] = airflow_try
    lost = []
    for key, tries in present.items():
        later = tries[max(tries)]
        for number in range(max(tries) - 1, 0, -1):
            later = tries.get(number, later)
            if number not in tries:
                # If the scheduler failed this try while it was queued, its task instance ID went to the next try.
                lost_key = TryKey(key.dag_id, key.run_id, key.task_id, key.map_index, number)
                lost.append(AirflowTry(lost_key, later.instance_keys, is_lost=True))
    return lost


@dataclass(frozen=True, slots=True)
class DagRunRef:
    """Reference to a Dag run: row ID and names."""

    row_id: int
    dag_id: str
    run_id: str
    state: str | None = field(default=None, compare=False)
    started_at: datetime | None = field(default=None, compare=False)
    """Start of the run, before any of its tries started.

    ``None`` if Airflow does not store it (``airflow_history.run_start``).
    """

    @property
    def is_finished(self) -> bool:
        """Whether Airflow has committed the end of the run."""
        return self.state in FINISHED_RUN
