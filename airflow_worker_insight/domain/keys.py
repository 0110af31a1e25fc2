"""Keys of tries: by Airflow's names, which are reused, and by task instance, which is not.

A deleted Dag run may be created again under its name, and so may a mapped task instance. So recorded tries are stored
under :data:`RowKey`, whose second part is a digest of what Airflow never reuses for another task instance
(:func:`instance_key`). Tries in an executor's queue are identified by their names (:class:`TryKey`): an executor never
queues two tries of the same name at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timezone
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from datetime import datetime

RowKey: TypeAlias = tuple[int, int, int]
"""Key of a recorded try: Dag run digest, task instance digest and try number.

The first is a digest of the Dag run's names, the second of Airflow's task instance.
"""


@dataclass(frozen=True, slots=True)
class TaskInstanceKey:
    """A task instance by Airflow's names; ``map_index`` is -1 for an unmapped task."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int

    def as_tuple(self) -> tuple[str, str, str, int]:
        """Return the four names in Airflow's own order."""
        return self.dag_id, self.run_id, self.task_id, self.map_index


@dataclass(frozen=True, slots=True)
class TryKey:
    """A try of a task instance by Airflow's names; ``map_index`` is -1 for an unmapped task."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int

    @property
    def task_instance(self) -> TaskInstanceKey:
        """Key of the task instance that this try belongs to."""
        return TaskInstanceKey(self.dag_id, self.run_id, self.task_id, self.map_index)

    @property
    def run_key(self) -> int:
        """Digest of the names of the Dag run."""
        return run_key(self.dag_id, self.run_id)

    @property
    def task_key(self) -> int:
        """Digest of the task instance's names within its Dag run."""
        return task_key(self.task_id, self.map_index)

    @property
    def key_by_names(self) -> RowKey:
        """Digests of the names: the key of placements, and of attempts that are recorded by names."""
        return self.run_key, self.task_key, self.try_number


def run_key(dag_id: str, run_id: str) -> int:
    """Return the digest of a Dag run's names as a signed 64-bit integer."""
    return digest(dag_id, run_id)


def task_key(task_id: str, map_index: int) -> int:
    """Return the digest of a task instance's names in its Dag run as a signed 64-bit integer.

    Two different task instances of one run share a key with a probability of n²/2⁶⁵ (10,000 mapped tasks: 3e-12).
    """
    return digest(task_id, str(map_index))


def instance_key(task_instance_id: str) -> int:
    """Return the digest of an Airflow 3 task instance as a signed 64-bit integer.

    :param task_instance_id: ``task_instance.id`` as text; it differs for each try and is never reused
    """
    return digest("id", task_instance_id)


def instance_key_by_run(run_row_id: int, logical_date: datetime, task_id: str, map_index: int) -> int:
    """Return the digest of an Airflow 2.11 task instance as a signed 64-bit integer.

    Task instances of 2.11 have no ID of their own.

    :param run_row_id: ``dag_run.id``, which SQLite may reuse after the latest Dag run was deleted
    :param logical_date: aware; no two runs of a Dag have the same
    """
    logical_date_text = logical_date.astimezone(timezone.utc).isoformat()
    return digest("run", str(run_row_id), logical_date_text, task_id, str(map_index))


def process_key(process_id: str | None) -> int | None:
    """Return the digest of a task process as a signed 32-bit integer, ``None`` if unknown.

    :param process_id: see :func:`airflow_worker_insight.identity.process_id`
    """
    if process_id is None:
        return None
    return int.from_bytes(blake2b(process_id.encode(), digest_size=4).digest(), "big", signed=True)


def finding_key(dimension: str, unit: str, outcome: str) -> int:
    """Return the digest of what a finding is about as a signed 64-bit integer.

    :param dimension: ``worker``, ``name``, ``task``, or the key of a label
    :param unit: its value in the dimension
    :param outcome: one of :class:`.findings.FindingOutcome`
    """
    return digest("finding", dimension, unit, outcome)


def digest(*parts: str) -> int:
    """Return the digest of texts without NUL characters as a signed 64-bit integer."""
    # NUL cannot be part of an Airflow ID (PostgreSQL rejects it), so the joined text is unambiguous.
    return int.from_bytes(blake2b("\0".join(parts).encode(), digest_size=8).digest(), "big", signed=True)
