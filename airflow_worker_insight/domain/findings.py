"""Findings as they are stored and shown: states, subjects, outcomes, and what happened to them."""

from __future__ import annotations

from dataclasses import dataclass, field
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


def subject_kind_of(dimension: str) -> SubjectKind:
    """Return what a finding in a dimension of the detector is about."""
    if dimension in ("worker", "name"):
        return SubjectKind.WORKER
    return SubjectKind(dimension) if dimension in (SubjectKind.HOST, SubjectKind.TASK) else SubjectKind.LABEL


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
    PROBE = "probe"
    """The analysis made a worker that it had quarantined available for a short time."""
    NOT_QUARANTINED = "not_quarantined"
    """The analysis did not quarantine the worker, for the reason that it gives."""


class EndReason(StrEnum):
    """Why a finding was closed. Its positions are stored too."""

    WELL = "well"
    GONE = "gone"
    PART_OF = "part_of"
    DISMISSED = "dismissed"
    NOT_FOUND = "not_found"

    @property
    def sentence(self) -> str:
        """The reason for the history of the finding."""
        return _SENTENCES[self]


_SENTENCES = {
    EndReason.WELL: "Well again: its tries since then do as well as those of its peers.",
    EndReason.GONE: "It has run no try for 30 days.",
    EndReason.PART_OF: "A finding about a group of workers that contains it was made.",
    EndReason.DISMISSED: "A user dismissed it.",
    EndReason.NOT_FOUND: "The analysis was computed anew from the history and did not find it again.",
}


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

    ``data`` is the whole finding (``insight.findings.from_json`` makes an object of it), with the state, the end and
    its reason as the other fields have them.
    """

    finding_id: int
    state: FindingState
    subject_kind: SubjectKind
    outcome: FindingOutcome
    found_at: datetime
    ended_at: datetime | None
    end_reason: EndReason | None
    data: Mapping[str, Any]

    @property
    def number(self) -> int:
        """The detector's own number of it, which another finding has once the analysis was computed anew."""
        return int(self.data["number"])


@dataclass(frozen=True, slots=True)
class FindingChanges:
    """What storing the detector's findings has changed."""

    new: list[StoredFinding]
    """Findings that were not stored yet, also those that have ended since."""
    changed: list[StoredFinding]
    """Findings whose state or numbers have changed."""
    dismissed: frozenset[int] = frozenset()
    """The detector's numbers of open findings that a user dismissed: the detector must close them."""
    quarantined: frozenset[int] = frozenset()
    """The detector's numbers of open findings whose worker has been quarantined since it was found."""
    actions: Mapping[int, FindingAction] = field(default_factory=dict)
    """What happened to each, by finding ID. Those without an entry have other numbers only."""
