"""Polls of sources that say what a test wants."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_worker_insight.domain.states import SourceName
from airflow_worker_insight.registry.observations import PollContext, PollResult, WorkerObservation
from airflow_worker_insight.registry.poll import refresh
from airflow_worker_insight.store import clock

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from airflow_worker_insight.registry.poll import SourceOutcome


@dataclass
class FakeSource:
    """A source whose workers are what a test says; each entry is a live worker."""

    name: str = SourceName.CELERY
    kind: str = "celery"
    workers: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: Exception | str | None = None
    mailboxes: frozenset[str] | None = None
    polls: int = 0
    meanwhile: Callable[[], None] = lambda: None
    contexts: list[PollContext] = field(default_factory=list)

    def poll(self, context: PollContext) -> PollResult:
        self.polls += 1
        self.contexts.append(context)
        self.meanwhile()
        if isinstance(self.error, Exception):
            raise self.error
        now = context.clock()
        observations = []
        for name, facts in self.workers.items():
            known = {"pid": 100, "heartbeat_at": now, "hostname": "host-1", **facts}
            observations.append(WorkerObservation(kind=self.kind, engine_name=name, **known))
        return PollResult(tuple(observations), error=self.error, mailboxes=self.mailboxes)


class Time:
    """The database's clock, which a test moves."""

    def __init__(self) -> None:
        self.offset = timedelta(0)
        self.real = clock.database_now

    def __call__(self, connection: Any) -> datetime:
        return self.real(connection) + self.offset

    def passes(self, seconds: float) -> None:
        self.offset += timedelta(seconds=seconds)


def poll() -> SourceOutcome:
    return refresh(only_if_due=False).sources[0]
