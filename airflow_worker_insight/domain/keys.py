"""The keys of a try: by Airflow's names, which come again, and by Airflow's own task instance, which does not.

A Dag run that is deleted may come again under its name, and so may a mapped task instance. So recorded tries are kept
by :data:`RowKey`, whose middle is a digest of what Airflow gives no second task instance (:func:`instance_key`).
What an executor has queued is known by its names (:class:`TryKey`): it queues no two tries of one name at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timezone
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from datetime import datetime

RowKey: TypeAlias = tuple[int, int, int]
"""A recorded try: the digest of its Dag run's names, of Airflow's task instance, and the number of the try."""


@dataclass(frozen=True, slots=True)
class TaskInstanceKey:
    """One task instance, as Airflow names it; ``map_index`` is -1 for an unmapped task."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int

    def as_tuple(self) -> tuple[str, str, str, int]:
        """Return the four names in Airflow's own order."""
        return self.dag_id, self.run_id, self.task_id, self.map_index


@dataclass(frozen=True, slots=True)
class TryKey:
    """One try of one task instance, as Airflow names it; ``map_index`` is -1 for an unmapped task."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int

    @property
    def task_instance(self) -> TaskInstanceKey:
        """The task instance whose try this is."""
        return TaskInstanceKey(self.dag_id, self.run_id, self.task_id, self.map_index)

    @property
    def run_key(self) -> int:
        """Digest of the Dag run."""
        return run_key(self.dag_id, self.run_id)

    @property
    def task_key(self) -> int:
        """Digest of the task instance's names within its Dag run."""
        return task_key(self.task_id, self.map_index)


def run_key(dag_id: str, run_id: str) -> int:
    """Return the digest of a Dag run as a signed 64-bit integer."""
    return _digest(dag_id, run_id)


def task_key(task_id: str, map_index: int) -> int:
    """Return the digest of a task instance's names within its Dag run as a signed 64-bit integer.

    Two different task instances of one run share a key with a probability of n²/2⁶⁵ (10,000 mapped tasks: 3e-12).
    """
    return _digest(task_id, str(map_index))


def instance_key(task_instance_id: str) -> int:
    """Return the digest of an Airflow 3 task instance as a signed 64-bit integer.

    :param task_instance_id: ``task_instance.id`` as text: another one for each try, and never given again
    """
    return _digest("id", task_instance_id)


def instance_key_by_run(run_row_id: int, logical_date: datetime, task_id: str, map_index: int) -> int:
    """Return the digest of an Airflow 2.11 task instance, which has no ID, as a signed 64-bit integer.

    :param run_row_id: ``dag_run.id``, which SQLite may give again after the latest Dag run was deleted
    :param logical_date: aware; no two runs of a Dag have the same
    """
    moment = logical_date.astimezone(timezone.utc).isoformat()
    return _digest("run", str(run_row_id), moment, task_id, str(map_index))


def process_key(process_id: str | None) -> int | None:
    """Return the digest of a task process as a signed 32-bit integer, ``None`` for one that is not known.

    :param process_id: see :func:`airflow_worker_insight.identity.process_id`
    """
    if process_id is None:
        return None
    return int.from_bytes(blake2b(process_id.encode(), digest_size=4).digest(), "big", signed=True)


def _digest(*parts: str) -> int:
    # NUL cannot be part of an Airflow ID (PostgreSQL refuses it), so the joined text is unambiguous.
    return int.from_bytes(blake2b("\0".join(parts).encode(), digest_size=8).digest(), "big", signed=True)
