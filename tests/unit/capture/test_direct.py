"""Airflow 2.11: the task process writes its own row."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight import compat
from airflow_worker_insight.capture import direct
from tests.unit.database import Database, at

if TYPE_CHECKING:
    from typing import Any

pytestmark = pytest.mark.skipif(compat.is_airflow_3(), reason="Airflow 3 records with reports")


def a_task_instance(**others: Any) -> SimpleNamespace:
    known = {"dag_id": "etl", "run_id": "run-1", "task_id": "extract", "map_index": 3, "try_number": 2}
    times = {"start_date": at(10), "hostname": "host-1", "executor": "LocalExecutor", "queued_by_job_id": 7}
    return SimpleNamespace(**{**known, **times, **others})


def test_a_start_is_written(database: Database) -> None:
    direct.record(a_task_instance())
    direct.record(a_task_instance())
    (row,) = database.attempts()
    assert (row["dag_id"], row["run_id"], row["task_id"], row["map_index"], row["try_number"]) == (
        "etl",
        "run-1",
        "extract",
        3,
        2,
    )
    assert (row["attribution"], row["state"], row["started_at"], row["process_count"]) == (
        "reported",
        "running",
        at(10),
        2,
    )
    assert database.workers()[0]["hostname"] == "host-1"
