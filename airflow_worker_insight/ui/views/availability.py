"""A user's decision on a worker's availability, as opposed to the observed state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.limits import MAX_NOTE_LENGTH
from airflow_worker_insight.domain.states import AVAILABLE, DRAINING, QUARANTINED
from airflow_worker_insight.ui import formatting

if TYPE_CHECKING:
    from airflow_worker_insight.domain.workers import Change, WorkerRow

NO_EFFECT = (
    "Airflow’s own executors ignore this setting. Configure an executor of Worker Insight to make it take effect."
)
EFFECT = "The executor of Worker Insight follows this setting. Airflow’s own executors ignore it."


@dataclass(frozen=True, slots=True)
class CurrentAvailability:
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
class AvailabilityOption:
    """Possible decision and its meaning."""

    value: str
    text: str
    meaning: str
    is_chosen: bool


@dataclass(frozen=True, slots=True)
class Availability:
    """Decision in force on a worker, and the choices of the user."""

    decision: CurrentAvailability
    choices: tuple[AvailabilityOption, ...]
    may_decide: bool
    effect: str
    max_note_length: int = MAX_NOTE_LENGTH


_CHOICES = (
    (AVAILABLE, "Available", "Gets new tasks."),
    (DRAINING, "Drain", "Finishes its tasks and gets no new ones, until it restarts."),
    (QUARANTINED, "Quarantine", "Gets no new tasks, also after a restart, until you make it available."),
)


def decision(availability: str, latest: Change | None) -> CurrentAvailability:
    """Return a decision as a page shows it.

    :param latest: the change that made it; ``None`` if there is none, or if the worker instance inherited the decision
        from its previous instance
    """
    is_recorded = latest is not None and latest.availability == availability
    return CurrentAvailability(
        key=availability,
        text=availability.capitalize(),
        note=(latest.reason or "") if is_recorded and latest else "",
        changed_by=(latest.changed_by or "") if is_recorded and latest else "",
        changed=formatting.moment(latest.changed_at) if is_recorded and latest else None,
    )


def build_availability(row: WorkerRow, latest: Change | None, *, may_decide: bool, places: bool) -> Availability:
    """Return the decision in force on a worker and the possible ones.

    A worker instance that has ended cannot be drained.

    :param places: whether an executor of this package is configured
    """
    choices = [AvailabilityOption(value, text, meaning, value == row.availability) for value, text, meaning in _CHOICES]
    return Availability(
        decision=decision(row.availability, latest),
        choices=tuple(
            choice for choice in choices if choice.is_chosen or choice.value != DRAINING or row.ended_at is None
        ),
        may_decide=may_decide,
        effect=EFFECT if places else NO_EFFECT,
    )
