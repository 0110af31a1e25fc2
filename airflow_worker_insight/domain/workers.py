"""A worker: as it describes itself, as its engine tells of it, and as readers get it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.states import ENGINE_KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta
    from typing import Any


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One life of a worker, or one host where ``host_only``. Times are aware UTC."""

    ref: int
    worker_id: str
    name: str
    engine_name: str | None
    kind: str
    hostname: str
    pid: int | None
    host_only: bool
    state: str | None
    """``online``, ``unresponsive``, ``offline`` or ``lost``; ``None`` where nothing tells."""
    state_reason: str | None
    """Why the worker is in this state, or why no state is known."""
    availability: str
    queues: tuple[str, ...] | None
    concurrency: int | None
    running: int | None
    started_at: datetime | None
    registered_at: datetime
    last_seen_at: datetime
    ended_at: datetime | None
    labels: Mapping[str, str]
    resources: Mapping[str, Any]
    versions: Mapping[str, str]
    is_told_only: bool = False
    """Whether its engine does not know it, and only reports of tasks tell of it."""
    clock_ahead: timedelta | None = None
    """How far the worker's clock is ahead of the database's, or a little less; ``None`` where nothing tells."""

    @property
    def known_as(self) -> str:
        """The engine's name for it, or its own where the engine has none."""
        return self.engine_name or self.name


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of a worker's history: either ``state`` or ``availability`` is set."""

    changed_at: datetime
    state: str | None
    availability: str | None
    reason: str | None
    changed_by: str | None
    """Who decided; ``None`` for what was seen."""


@dataclass(frozen=True, slots=True)
class Group:
    """Workers that have something in common, such as a queue: how many there are in each state."""

    name: str
    states: Mapping[str | None, int]
    running: int
    """How many tries ran on those that have not ended, and how many may."""
    concurrency: int


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """What is known of the looks at the workers of one engine."""

    name: str
    """``celery``, ``edge``, ``jobs`` (local workers) or ``tries`` (pods and executors that nobody knows)."""
    looked_at: datetime | None
    is_current: bool
    """Whether somebody looked lately enough for the states of these workers to count."""
    error: str | None
    """Why the latest look failed."""


@dataclass(frozen=True, slots=True)
class Service:
    """A process of the deployment that Airflow itself keeps a job for, or a worker."""

    kind: str
    """``scheduler``, ``triggerer``, ``dag_processor`` or ``worker``."""
    service_id: str
    """The ID of Airflow's job, or of the worker."""
    name: str
    hostname: str
    state: str | None
    started_at: datetime | None
    last_seen_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """What a worker says of itself, validated; see the columns of :data:`~.tables.worker`."""

    worker_id: str
    name: str
    kind: str
    hostname: str
    pid: int | None = None
    started_at: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    host_only: bool = False
    job_id: int | None = None
    engine_name: str | None = None

    @property
    def fingerprint(self) -> str:
        """Digest of the description: equal fingerprints mean there is nothing to write.

        Without the start: task processes of one life may work it out a second apart, when the clock was set.
        """
        text = json.dumps(
            {**self.description(), "started_at": None, "job_id": self.job_id, "engine_name": self.engine_name},
            sort_keys=True,
        )
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def description(self) -> dict[str, Any]:
        """Return the descriptive columns of the worker's row."""
        return {
            "name": self.name,
            "kind": self.kind,
            "hostname": self.hostname,
            "pid": self.pid,
            "started_at": self.started_at,
            "labels": dict(self.labels),
            "resources": dict(self.resources),
            "versions": dict(self.versions),
            "host_only": self.host_only,
        }


@dataclass(frozen=True, slots=True)
class WorkerInstance:
    """One life of a worker as its row has it. Times are aware UTC."""

    ref: int
    kind: str
    hostname: str
    is_reported: bool
    """Whether the worker's own processes have told of it."""
    registered_at: datetime
    last_seen_at: datetime
    engine_name: str | None = None
    pid: int | None = None
    job_id: int | None = None
    state: str | None = None
    state_reason: str | None = None
    ended_at: datetime | None = None
    queues: tuple[str, ...] | None = None
    concurrency: int | None = None
    running: int | None = None
    engine_started_at: datetime | None = None
    engine_heartbeat_at: datetime | None = None

    @property
    def is_known_to_engine(self) -> bool:
        """Whether its engine has told of it, and not only reports: see :func:`.names.is_known_to_engine`."""
        return not self.is_reported or (self.kind in ENGINE_KINDS and self.engine_heartbeat_at is not None)


@dataclass(frozen=True, slots=True)
class NewWorkerInstance:
    """A worker that its engine told of before a try of it started."""

    kind: str
    engine_name: str
    hostname: str
    state: str
    state_reason: str | None = None
    pid: int | None = None
    job_id: int | None = None
    started_at: datetime | None = None
    heartbeat_at: datetime | None = None
    queues: tuple[str, ...] | None = None
    concurrency: int | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
