"""What one look at one engine returns: an engine is what runs tasks on workers and knows something of these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from datetime import datetime, timedelta
    from typing import Any

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.workers import WorkerInstance


@dataclass(frozen=True, slots=True)
class WorkerObservation:
    """What an engine says of one of its workers. It was validated; times are aware UTC."""

    kind: str
    engine_name: str
    """What the engine calls it."""
    hostname: str
    pid: int | None = None
    """Of the worker's main process."""
    job_id: int | None = None
    """Airflow's job that the worker is: a scheduler with LocalExecutor."""
    ref: int | None = None
    """The worker's row, where the engine knows the worker from there."""
    started_at: datetime | None = None
    """When this life of it began, always by the same clock: it tells the lives of one name apart."""
    heartbeat_at: datetime | None = None
    """The latest heartbeat by whichever clock the engine has; that it moves is what counts."""
    has_left: bool = False
    """Whether the worker said goodbye."""
    queues: tuple[str, ...] | None = None
    concurrency: int | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    is_partial: bool = False
    """Whether it tells too little to make a worker known that is not: then another look will."""
    unavailable_reason: str | None = None
    """What the engine says is wrong with it although it lives."""


@dataclass(frozen=True, slots=True)
class PollResult:
    """All that one engine said."""

    sightings: tuple[WorkerObservation, ...] = ()
    error: str | None = None
    """Why the engine, or a part of it, could not be asked."""
    mailboxes: frozenset[str] | None = None
    """Names of the workers that the engine keeps a mailbox for, which goes when a worker leaves in order and stays when
    it dies; ``None`` where the engine does not tell."""
    ignored: int = 0
    """Answers that made no sense."""
    on_written: Callable[[], None] | None = None
    """What is to be done once all this is written: until then the engine keeps what it says only once."""


@dataclass(frozen=True, slots=True)
class PollContext:
    """What an engine's adapter may need for a look."""

    clock: Callable[[], datetime]
    """The time by the database's clock."""
    began_at: datetime
    """When this look began, by the same clock."""
    before: datetime | None
    """When the one before began, on whichever API server; ``None`` where nobody has looked."""
    interval: timedelta
    """How far apart looks are meant to be."""
    lives: tuple[WorkerInstance, ...]
    """The lives of this engine's workers that have not ended."""
    database: Callable[[], AbstractContextManager[Connection]]
    """Opens a short read of Airflow's database."""


class WorkerSource(Protocol):
    """Looks at the workers of one engine."""

    @property
    def name(self) -> str:
        """Return the engine's name: see ``domain.states.engine_of``."""

    def look(self, view: PollContext) -> PollResult:
        """Return what the engine says of its workers now; what it raises is why it could not be asked."""


class SourceUnavailableError(Exception):
    """An engine cannot be asked; the message says why, in words for an operator."""
