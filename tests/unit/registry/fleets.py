"""Workers as sources and tables know them, for the tests of this folder."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow_worker_insight.domain.workers import WorkerInstance
from airflow_worker_insight.registry.liveness import Timeouts
from airflow_worker_insight.registry.observations import WorkerObservation
from tests.unit.database import NOON, at

TIMEOUTS = Timeouts(heartbeat=timedelta(seconds=60), lost=timedelta(seconds=180))


def an_instance(ref: int = 1, **others: Any) -> WorkerInstance:
    """Return an instance of a Celery worker that started an hour before noon and was seen at noon."""
    known: dict[str, Any] = {
        "kind": "celery",
        "hostname": "host-1",
        "is_reported": False,
        "registered_at": at(-3600),
        "last_seen_at": NOON,
        "engine_name": "w1@host-1",
        "pid": 100,
        "state": "online",
        "running": 0,
        "engine_started_at": at(-3600),
        "engine_heartbeat_at": NOON,
    }
    return WorkerInstance(ref=ref, **{**known, **others})


def an_observation(**others: Any) -> WorkerObservation:
    """Return an observation of the same worker, half a minute after noon."""
    known: dict[str, Any] = {
        "kind": "celery",
        "engine_name": "w1@host-1",
        "hostname": "host-1",
        "pid": 100,
        "started_at": at(-3600),
        "heartbeat_at": at(30),
    }
    return WorkerObservation(**{**known, **others})
