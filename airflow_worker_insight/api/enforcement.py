"""Whether decisions on workers hold, for the REST API and the pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_worker_insight import config
from airflow_worker_insight.domain import enforcement
from airflow_worker_insight.store import enforcement as store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.enforcement import EnforcementStatus
    from airflow_worker_insight.domain.workers import WorkerRow


def effect(row: WorkerRow) -> str:
    """Return what a decision on a worker does, in one or two sentences."""
    return enforcement.effect(
        row.kind, places=config.places_tasks(), enforces=config.enforce_availability(), node=row.labels.get("node")
    )


def statuses(connection: Connection, rows: Sequence[WorkerRow]) -> dict[int, EnforcementStatus]:
    """Return whether the decisions in force on live workers hold, by ``ref``."""
    live = [row for row in rows if row.ended_at is None and not row.host_only]
    known = store.find(connection, [row.ref for row in live]) if live else {}
    places, enforces = config.places_tasks(), config.enforce_availability()
    found = {
        row.ref: enforcement.status(
            row.kind,
            row.availability,
            known.get(row.ref),
            places=places,
            enforces=enforces,
            node=row.labels.get("node"),
        )
        for row in live
    }
    return {ref: each for ref, each in found.items() if each is not None}
