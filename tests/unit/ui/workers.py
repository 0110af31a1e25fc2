"""Build workers and query results for the tests of the view models."""

from __future__ import annotations

from typing import Any

from airflow_worker_insight.domain.attempts import AttemptPage
from airflow_worker_insight.domain.workers import SourceStatus, WorkerChange, WorkerRow
from airflow_worker_insight.ui.views.worker import WorkerInstance
from airflow_worker_insight.ui.views.workers import Listing
from tests.unit.database import NOON, at

NOW = at(1000)


def a_worker_row(worker_id: str = "celery-1", **others: Any) -> WorkerRow:
    """Return a worker that is online."""
    known: dict[str, Any] = {
        "ref": 1,
        "name": "w1@host-1",
        "engine_name": "w1@host-1",
        "kind": "celery",
        "hostname": "host-1",
        "pid": 4711,
        "host_only": False,
        "state": "online",
        "state_reason": None,
        "availability": "available",
        "queues": ("default",),
        "concurrency": 8,
        "running": 2,
        "started_at": NOON,
        "registered_at": at(60),
        "last_seen_at": at(120),
        "ended_at": None,
        "labels": {"zone": "a", "region": "eu"},
        "resources": {"cpus": 4, "memory_bytes": 8 * 1024**3, "os": "Debian", "swap_bytes": 1024},
        "versions": {"python": "3.11.7", "provider": "0.1.0", "something_else": "1"},
    }
    return WorkerRow(worker_id=worker_id, **{**known, **others})


def a_change(seconds: float, state: str | None = None, availability: str | None = None, **others: Any) -> WorkerChange:
    """Return an entry of a worker's history, ``seconds`` after noon."""
    known: dict[str, Any] = {"reason": None, "changed_by": None}
    return WorkerChange(changed_at=at(seconds), state=state, availability=availability, **{**known, **others})


def a_listing(*rows: WorkerRow, **others: Any) -> Listing:
    """Return the query results of a list of these workers."""
    counts: dict[str | None, int] = {}
    for row in rows:
        counts[row.state] = counts.get(row.state, 0) + 1
    known: dict[str, Any] = {
        "rows": rows,
        "total": len(rows) + len(others.get("groups", ())),
        "groups": (),
        "counts": counts,
        "decisions": {},
        "label_keys": (),
        "any_worker": bool(rows),
        "sources": (SourceStatus("celery", NOW, is_current=True, error=None),),
    }
    return Listing(**{**known, **others})


def an_instance(row: WorkerRow | None = None, **others: Any) -> WorkerInstance:
    """Return the query results of a worker's page: by default without tries and history."""
    known: dict[str, Any] = {
        "sees_all_dags": True,
        "changes": (),
        "decision": None,
        "others": (),
        "running": ((), 0),
        "lost_tries": ((), 0),
        "stays": (),
        "is_truncated": False,
        "outcomes": (),
        "attempts": AttemptPage([], 0, total_is_exact=True),
    }
    return WorkerInstance(row=row or a_worker_row(), **{**known, **others})
