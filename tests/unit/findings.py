"""Findings as the detector returns them."""

from __future__ import annotations

from typing import Any

from airflow_worker_insight.insight.findings import Finding, Share, as_json
from airflow_worker_insight.insight.recovery import Recovery
from tests.unit.database import at


def a_share(dag_id: str = "etl", task_id: str = "load", *, failures: int = 9) -> Share:
    """Return a task's part of a finding."""
    return Share((dag_id, task_id), 10, failures, 50, 3, failures - 0.6)


def a_finding(number: int = 1, worker: str = "w3", **others: Any) -> dict[str, Any]:
    """Return a finding about a worker, as JSON stores it."""
    known: dict[str, Any] = {
        "dimension": "worker",
        "unit": worker,
        "subject": f"{worker}@host-1",
        "outcome": "failed",
        "state": "open",
        "since": at(0).timestamp(),
        "found_at": at(600).timestamp(),
        "evidence": 4123.0,
        "needed": 800.0,
        "tries": 10,
        "failures": 9,
        "expected": 0.6,
        "peer_tries": 50,
        "peer_failures": 3,
        "shares": [a_share()],
        "worker_ids": [worker],
        "recovery": Recovery(0.06, 0.84),
    }
    return as_json(Finding(number, **{**known, **others}))


def ended(found: dict[str, Any], reason: str = "well", *, second: float = 7200) -> dict[str, Any]:
    """Return a finding as it is after its end."""
    return {**found, "state": "closed", "ended_at": at(second).timestamp(), "end_reason": reason}
