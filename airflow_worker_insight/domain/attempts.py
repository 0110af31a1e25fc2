"""A try: as Airflow keeps it, as a task process starts it, and as readers get it."""

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
    """A worker as one attempt shows it; ``process_count`` task processes of the try ran there."""

    worker_id: str
    name: str
    kind: str
    hostname: str
    host_only: bool
    process_count: int
    first_started_at: datetime | None
    last_started_at: datetime | None
    load: float | None = None
    """The machine's load average per CPU when the try first started there: 1.0 is a machine that is just busy."""
    memory_free: float | None = None
    """Its free memory at that time as a share of all, 0 to 1."""
    running_beside: int | None = None
    """How many other tries ran on the worker at that time."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of one task instance and the workers that ran it. Times are aware UTC, ``duration`` is in seconds.

    ``is_recorded`` is ``False`` for a try that only Airflow's own tables tell of, so far: its host has no page.
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
    """What an executor of this package decided of it last, one of :data:`~.reasons.REASONS`."""
    deleted: str | None = None
    """``run`` or ``task_instance``: what Airflow has deleted, with which it deleted the try. What bears the same names
    in Airflow now, if anything does, is another one."""
    row_key: RowKey | None = None
    ran_in_a_test: bool = False
    """Whether somebody ran it in a process of their own: see :attr:`.attempts.AirflowTry.ran_in_a_test`."""
    placement_detail: str | None = None
    """The same as ``placement`` in a sentence, for as long as that is kept."""


@dataclass(frozen=True, slots=True)
class AttemptPage:
    """One page of a list of attempts."""

    attempts: list[Attempt]
    total: int
    """How many there are in all, counted up to :data:`.limits.MAX_TOTAL`."""
    total_is_exact: bool
    """Whether all were counted; see :mod:`~.search` for what cuts a count short."""
    is_cut: bool = False
    """Whether there are older ones that no page shows, because too many would have to be looked through."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the worker's machine was like when a try started; ``None`` is not known."""

    load: float | None = None
    """Load average of the last minute per CPU: 1.0 is a machine that is just busy."""
    memory_free: float | None = None
    """Free memory as a share of all, 0 to 1."""
    running_beside: int | None = None
    """How many other tries ran on the worker."""

    def columns(self) -> dict[str, int | None]:
        """Return the same as the attempt table stores it: in 2 bytes each."""
        return {
            "load": _small(self.load, 100),
            "memory_free": _small(self.memory_free, 1000),
            "running_beside": _small(self.running_beside, 1),
        }


def _small(value: float | None, unit: int) -> int | None:
    return None if value is None else min(round(value * unit), 2**15 - 1)


@dataclass(frozen=True, slots=True)
class StartedTry:
    """The try that a task process has started, as Airflow has it. Times are aware UTC."""

    key: TryKey
    instance: int
    """The key of its task instance: see :mod:`.keys`."""
    started_at: datetime | None
    """When Airflow says that the try started."""
    state: str = "running"
    ended_at: datetime | None = None
    """When it ended, where a report of it had to wait for so long."""
    fits: bool | None = True
    """Whether its executor has workers of the kind that is reported; ``None`` where that is not known."""


@dataclass(frozen=True, slots=True)
class AirflowTry:
    """What Airflow itself keeps of a try. Times are aware UTC; blanks are ``None``.

    ``is_lost`` marks a try of which Airflow keeps nothing; see :func:`lost_tries`.
    """

    key: TryKey
    instances: tuple[int, ...] = ()
    """The keys of its task instance (:func:`.airflow_history.instance_keys`); new rows are kept by the first."""
    state: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    hostname: str | None = None
    pid: int | None = None
    queued_at: datetime | None = None
    executor: str | None = None
    queued_by_job_id: int | None = None
    external_executor_id: str | None = None
    is_lost: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether this try has ended for good."""
        return self.state in FINISHED

    @property
    def row_keys(self) -> tuple[RowKey, ...]:
        """What it may be recorded by: the first is what it is recorded by from now on."""
        return tuple((self.key.run_key, instance, self.key.try_number) for instance in self.instances)

    @property
    def ran_in_a_test(self) -> bool:
        """Whether somebody ran this try in a process of their own: ``dag.test()``, ``airflow dags test``.

        A process did run it, and no scheduler queued it: every scheduler, and 2.11's backfill, writes when it queued
        the try and by which job. Where Airflow takes that back, something is left: the time when a scheduler resets an
        orphan, the job when 2.11 queues a stuck task again. 3.3 takes back both of a stuck task, which no process can
        start before it is queued anew. Celery's and Kubernetes' executors leave the ID of what they started as well.
        """
        # 2.11 writes no start of it.
        is_queued = self.queued_at is not None or self.queued_by_job_id is not None
        return self.hostname is not None and not is_queued and self.external_executor_id is None


def lost_tries(known: Collection[AirflowTry]) -> list[AirflowTry]:
    """Return the tries that must have been, because a later one is known, and of which Airflow has no row.

    Airflow writes no history when the scheduler fails a task that is still queued (seen on 2.11.2 and 3.3.2), and
    before 2.10 it had none at all.
    """
    present: dict[TaskInstanceKey, dict[int, AirflowTry]] = defaultdict(dict)
    for one in known:
        present[one.key.task_instance][one.key.try_number] = one
    lost = []
    for key, tries in present.items():
        later = tries[max(tries)]
        for number in range(max(tries) - 1, 0, -1):
            later = tries.get(number, later)
            if number not in tries:
                # A try that the scheduler failed while it was queued has left its ID to the next one.
                names = TryKey(key.dag_id, key.run_id, key.task_id, key.map_index, number)
                lost.append(AirflowTry(names, later.instances, is_lost=True))
    return lost


@dataclass(frozen=True, slots=True)
class DagRunRef:
    """A Dag run by its row's ID and its names."""

    row_id: int
    dag_id: str
    run_id: str
    state: str | None = field(default=None, compare=False)
    began_at: datetime | None = field(default=None, compare=False)
    """When it began, before any try of it did; ``None`` where Airflow does not tell (``airflow_history.run_began``)."""

    @property
    def is_finished(self) -> bool:
        """Whether Airflow has committed the run's end."""
        return self.state in FINISHED_RUN
