"""Findings as they are stored and shown: states, subjects, outcomes, and what happened to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_worker_insight.domain.states import StrEnum

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


# The database stores positions in the order of members: append new ones, never move existing ones.
class FindingState(StrEnum):
    """Whether a finding still holds."""

    OPEN = "open"
    """Its subject fails, loses or slows more tries than its peers."""
    RECOVERING = "recovering"
    """Its latest tries rather look well."""
    CLOSED = "closed"
    """Its subject is well again or gone, or a user dismissed the finding."""


class SubjectKind(StrEnum):
    """What a finding is about."""

    WORKER = "worker"
    HOST = "host"
    LABEL = "label"
    """Workers that share a label, a Kubernetes node or an image."""
    TASK = "task"
    """A task whose tries end their workers."""


class FindingOutcome(StrEnum):
    """What a finding counts."""

    FAILED = "failed"
    """Tries that failed."""
    LOST = "lost"
    """Tries that ended with their worker."""
    SLOW = "slow"
    """Successful tries that took longer than the same task usually does."""


class FindingAction(StrEnum):
    """What happened to a finding."""

    FOUND = "found"
    RECOVERING = "recovering"
    OPEN_AGAIN = "open_again"
    """It no longer recovers."""
    CLOSED = "closed"
    DISMISSED = "dismissed"
    """A user said that it needs no action."""
    DRAINING = "draining"
    QUARANTINED = "quarantined"
    RELEASED = "released"
    """The worker was made available again."""


@dataclass(frozen=True, slots=True)
class FindingEvent:
    """An entry in the history of a finding."""

    happened_at: datetime
    action: FindingAction
    actor: str | None
    """The user; ``None`` for what the analysis did."""
    reason: str | None


@dataclass(frozen=True, slots=True)
class StoredFinding:
    """A finding as the database has it.

    ``data`` is the whole finding (``insight.findings.from_json`` makes an object of it); the other fields are those
    that lists filter and order by.
    """

    finding_id: int
    state: FindingState
    subject_kind: SubjectKind
    outcome: FindingOutcome
    found_at: datetime
    ended_at: datetime | None
    data: Mapping[str, Any]
