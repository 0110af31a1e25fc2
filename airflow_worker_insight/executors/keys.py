"""Keys under which an executor keeps what it runs."""

from __future__ import annotations

from typing import Any

from airflow_worker_insight.domain.keys import TryKey


def is_task(key: Any) -> bool:
    """Return whether an executor's key is a task's, not a callback's or a connection test's."""
    return hasattr(key, "dag_id")


def try_key(key: Any) -> TryKey:
    """Convert Airflow's key of a task to a :class:`.TryKey`."""
    return TryKey(key.dag_id, key.run_id, key.task_id, key.map_index, key.try_number)
