"""Data that the registry and the worker sources exchange in a poll.

A source is what knows the workers of one executor, such as Celery's broker or a table of Airflow's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from contextlib import AbstractContextManager
    from datetime import datetime, timedelta
    from typing import Any

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.workers import WorkerInstance


Remember: TypeAlias = "Callable[[Mapping[str, Collection[str]]], None]"
"""Stores queues by the source's names of workers, and raises if that fails."""


@dataclass(frozen=True, slots=True)
class WorkerObservation:
    """What a source says about one of its workers: validated, with times in aware UTC."""

    kind: str
    engine_name: str
    """The source's name of the worker."""
    hostname: str
    pid: int | None = None
    """Process ID of the worker's main process."""
    job_id: int | None = None
    """ID of Airflow's job that the worker is: a scheduler with LocalExecutor."""
    ref: int | None = None
    """ID of the worker's row, where the source knows the worker from there."""
    started_at: datetime | None = None
    """When this instance started, always by the same clock.

    It tells apart instances with the same name.
    """
    heartbeat_at: datetime | None = None
    """The latest heartbeat, by any clock: what counts is that it moves."""
    has_left: bool = False
    """Whether the worker shut down."""
    queues: tuple[str, ...] | None = None
    concurrency: int | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    is_partial: bool = False
    """Whether it says too little to register a new worker; another poll will."""
    unavailable_reason: str | None = None
    """Problem that the source reports although the worker is alive."""


@dataclass(frozen=True, slots=True)
class PollResult:
    """The result of polling one source."""

    observations: tuple[WorkerObservation, ...] = ()
    error: str | None = None
    """Why the source, or a part of it, could not be polled."""
    mailboxes: frozenset[str] | None = None
    """Names of the workers that have a mailbox; ``None`` where the source has no mailboxes.

    A mailbox goes when its worker shuts down gracefully and stays when the worker dies.
    """
    ignored: int = 0
    """Number of invalid answers."""
    on_written: Callable[[], None] | None = None
    """Called once all this is written: until then the source keeps what it says only once."""


@dataclass(frozen=True, slots=True)
class PollContext:
    """What a source may need for a poll; times are by the database's clock."""

    clock: Callable[[], datetime]
    """Returns the current time."""
    started_at: datetime
    """When this poll started."""
    previous_started_at: datetime | None
    """When the previous poll started, on any API server; ``None`` before the first poll."""
    interval: timedelta
    """The configured interval between polls."""
    instances: tuple[WorkerInstance, ...]
    """The instances of this source's workers that have not ended."""
    database: Callable[[], AbstractContextManager[Connection]]
    """Opens a short read of Airflow's database."""


class WorkerSource(Protocol):
    """A source of worker states: what knows the workers of one executor."""

    @property
    def name(self) -> str:
        """Return the source's name: see ``domain.states.source_of``."""

    def poll(self, context: PollContext) -> PollResult:
        """Return what the source says about its workers now.

        Any exception says why the source could not be polled.
        """


class SourceUnavailableError(Exception):
    """The source cannot be polled; the message says why, for operators."""
