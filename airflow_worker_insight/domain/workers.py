"""Workers: their self-description, their rows, and what readers get."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.states import SOURCE_KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta
    from typing import Any


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One worker instance, or one host if ``host_only``. Times are aware UTC."""

    ref: int
    worker_id: str
    name: str
    engine_name: str | None
    kind: str
    hostname: str
    pid: int | None
    host_only: bool
    state: str | None
    """``online``, ``unresponsive``, ``offline`` or ``lost``; ``None`` if unknown."""
    state_reason: str | None
    """Reason why the worker is in this state, or why its state is unknown."""
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
    is_report_only: bool = False
    """Whether only task reports name it and its worker source does not."""
    clock_ahead: timedelta | None = None
    """Lead of the worker's clock over the database's, or a little less; ``None`` if unknown."""

    @property
    def display_name(self) -> str:
        """The worker source's name for it, or its own name if the source has none."""
        return self.engine_name or self.name


@dataclass(frozen=True, slots=True)
class WorkerChange:
    """One entry of a worker's history: either ``state`` or ``availability`` is set."""

    changed_at: datetime
    state: str | None
    availability: str | None
    reason: str | None
    changed_by: str | None
    """User who made the change; ``None`` if it was observed."""


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """Number of workers in each state that share a property, such as a queue."""

    name: str
    states: Mapping[str | None, int]
    running: int
    """Number of tries that run on the workers that have not ended.

    ``concurrency`` is the number that may run on them.
    """
    concurrency: int


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """Result of the latest polls of a worker source."""

    name: str
    """``celery``, ``edge``, ``jobs`` (local workers) or ``tries``.

    The last covers pods and workers of unknown executors.
    """
    polled_at: datetime | None
    is_current: bool
    """Whether the latest poll is recent enough for the states of these workers to be valid."""
    error: str | None
    """Reason why the latest poll failed."""

    @property
    def looked_at(self) -> datetime | None:
        """:attr:`polled_at` by its name in the REST API."""
        return self.polled_at


@dataclass(frozen=True, slots=True)
class Service:
    """A process of the deployment that has a job in Airflow, or a worker."""

    kind: str
    """``scheduler``, ``triggerer``, ``dag_processor`` or ``worker``."""
    service_id: str
    """ID of Airflow's job or of the worker."""
    name: str
    hostname: str
    state: str | None
    started_at: datetime | None
    last_seen_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """Validated self-description of a worker; see the columns of :data:`~.tables.worker`."""

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
        """Digest of the description: if it is unchanged, there is nothing to write.

        The start time is left out: when the clock was set, task processes of one worker instance may compute it a
        second apart.
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


def is_known_to_source(kind: str, *, is_reported: bool, has_heartbeat: bool) -> bool:
    """Return whether a worker source has listed a worker, so that it is not known from reports only.

    :param is_reported: whether the worker's own processes have reported it
    :param has_heartbeat: whether its source has stored a heartbeat of it
    """
    return not is_reported or (kind in SOURCE_KINDS and has_heartbeat)


@dataclass(frozen=True, slots=True)
class WorkerInstance:
    """One worker instance as its row has it. Times are aware UTC."""

    ref: int
    kind: str
    hostname: str
    is_reported: bool
    """Whether the worker's own processes have reported it."""
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
    def is_known_to_source(self) -> bool:
        """Whether its worker source has listed it, so that it is not known from reports only.

        See :func:`.names.is_known_to_source`.
        """
        return is_known_to_source(
            self.kind, is_reported=self.is_reported, has_heartbeat=self.engine_heartbeat_at is not None
        )


@dataclass(frozen=True, slots=True)
class NewWorkerInstance:
    """A worker that its worker source listed before any try of it started."""

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
