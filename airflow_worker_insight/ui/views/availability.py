"""A user's decision on a worker's availability, as opposed to the observed state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.limits import MAX_NOTE_LENGTH
from airflow_worker_insight.domain.states import WorkerAvailability
from airflow_worker_insight.ui import formatting

if TYPE_CHECKING:
    from airflow_worker_insight.domain.workers import WorkerChange, WorkerRow

NO_EFFECT = (
    "A decision is kept and shown to everybody. By itself it does not keep Airflow from giving the worker work: only "
    "an executor of Worker Insight does that."
)
EFFECT = (
    "A decision is kept and shown to everybody. The executor of Worker Insight gives the worker work accordingly; "
    "Airflow’s own do not ask."
)


@dataclass(frozen=True, slots=True)
class Decision:
    """Decision in force: its label and note, who made it and when."""

    key: str
    text: str
    note: str
    changed_by: str
    changed: formatting.Moment | None

    @property
    def title(self) -> str:
        """Label, user and note in one line."""
        who = f" by {self.changed_by}" if self.changed_by else ""
        return f"{self.text}{who}{f': {self.note}' if self.note else ''}"


@dataclass(frozen=True, slots=True)
class Choice:
    """Possible decision and its meaning."""

    value: str
    text: str
    meaning: str
    is_chosen: bool


@dataclass(frozen=True, slots=True)
class Availability:
    """Decision in force on a worker, and the choices of the user."""

    decision: Decision
    choices: tuple[Choice, ...]
    may_decide: bool
    effect: str
    max_note_length: int = MAX_NOTE_LENGTH


_CHOICES = (
    (WorkerAvailability.AVAILABLE, "Available", "Takes work as usual."),
    (
        WorkerAvailability.DRAINING,
        "Drain",
        "Finishes what it runs and is to get nothing new. Ends with its next restart.",
    ),
    (
        WorkerAvailability.QUARANTINED,
        "Quarantine",
        "Is to get nothing new, also after a restart, until somebody releases it.",
    ),
)


def decision(availability: str, latest: WorkerChange | None) -> Decision:
    """Return a decision as a page shows it.

    :param latest: the change that made it; ``None`` if there is none, or if the worker instance inherited the decision
        from its previous instance
    """
    is_recorded = latest is not None and latest.availability == availability
    return Decision(
        key=availability,
        text=availability.capitalize(),
        note=(latest.reason or "") if is_recorded and latest else "",
        changed_by=(latest.changed_by or "") if is_recorded and latest else "",
        changed=formatting.moment(latest.changed_at) if is_recorded and latest else None,
    )


def build_availability(row: WorkerRow, latest: WorkerChange | None, *, may_decide: bool, places: bool) -> Availability:
    """Return the decision in force on a worker and the possible ones.

    A worker instance that has ended cannot be drained.

    :param places: whether an executor of this package is configured
    """
    choices = [Choice(value, text, meaning, value == row.availability) for value, text, meaning in _CHOICES]
    return Availability(
        decision=decision(row.availability, latest),
        choices=tuple(
            choice
            for choice in choices
            if choice.is_chosen or choice.value != WorkerAvailability.DRAINING or row.ended_at is None
        ),
        may_decide=may_decide,
        effect=EFFECT if places else NO_EFFECT,
    )
