"""Tries as the analysis reads them: who ran what, from when to when, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.states import StrEnum

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from airflow_worker_insight.domain.keys import RowKey, TryKey


class TryOutcome(StrEnum):
    """How a try ended, as far as its worker may have played a part."""

    SUCCESS = "success"
    FAILED = "failed"
    LOST = "lost"
    """It ended with its worker."""
    OTHER = "other"
    """It says nothing of its worker: skipped, removed, or no longer in Airflow.

    A try that a person marked as failed counts as failed: Airflow's tables do not tell them apart.
    """


@dataclass(frozen=True, slots=True)
class TryWorker:
    """The worker instance that ran a try first."""

    ref: int
    """Its row ID."""
    worker_id: str
    name: str
    kind: str
    hostname: str
    labels: Mapping[str, str] = field(default_factory=dict)
    image: str | None = None
    node: str | None = None
    """Kubernetes node."""
    is_single_try: bool = False
    """Whether it runs one try only, as a Kubernetes pod does."""


@dataclass(frozen=True, slots=True)
class AnalyzedTry:
    """A recorded try whose worker is known by name. Times are aware UTC, none later than when it was read."""

    row_key: RowKey
    key: TryKey
    worker: TryWorker
    started_at: datetime
    outcome: TryOutcome | None = None
    """``None`` while it runs."""
    ended_at: datetime | None = None
    queue: str | None = None
    queued_at: datetime | None = None
