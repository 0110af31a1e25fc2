"""The keys of a try: fixed-size digests of the four names that identify a task instance."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b


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
        """Digest of the task instance within its Dag run."""
        return task_key(self.task_id, self.map_index)


def run_key(dag_id: str, run_id: str) -> int:
    """Return the digest of a Dag run as a signed 64-bit integer."""
    return _digest(dag_id, run_id)


def task_key(task_id: str, map_index: int) -> int:
    """Return the digest of a task instance within its Dag run as a signed 64-bit integer.

    Two different task instances of one run share a key with a probability of n²/2⁶⁵ (10,000 mapped tasks: 3e-12).
    """
    return _digest(task_id, str(map_index))


def _digest(*parts: str) -> int:
    # NUL cannot be part of an Airflow ID (PostgreSQL refuses it), so the joined text is unambiguous.
    return int.from_bytes(blake2b("\0".join(parts).encode(), digest_size=8).digest(), "big", signed=True)
