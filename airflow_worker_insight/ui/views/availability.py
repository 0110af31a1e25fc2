"""A user's decision on a worker's availability, as opposed to the observed state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.limits import MAX_NOTE_LENGTH
from airflow_worker_insight.domain.states import WorkerAvailability
from airflow_worker_insight.ui.views.parts import Option

if TYPE_CHECKING:
    from airflow_worker_insight.domain.enforcement import EnforcementStatus
    from airflow_worker_insight.domain.workers import WorkerChange, WorkerRow


@dataclass(frozen=True, slots=True)
class Availability:
    """A worker's availability, and the choices of the user."""

    current: str
    change: WorkerChange | None
    options: tuple[Option, ...]
    may_decide: bool
    effect: str
    """What a decision does."""
    status: EnforcementStatus | None
    """Whether the decision in force holds."""
    max_note_length: int = MAX_NOTE_LENGTH


_CHOICES = (
    (WorkerAvailability.AVAILABLE, "Available", "Gets new tasks."),
    (WorkerAvailability.DRAINING, "Drain", "Finishes its tasks and gets no new ones, until it restarts."),
    (
        WorkerAvailability.QUARANTINED,
        "Quarantine",
        "Gets no new tasks, also after a restart, until you make it available.",
    ),
)


def current_change(row: WorkerRow, latest: WorkerChange | None) -> WorkerChange | None:
    """Return the change that made a worker's availability what it is.

    ``None`` if there is none, or if the worker instance inherited the decision from its previous instance.
    """
    return latest if latest is not None and latest.availability == row.availability else None


def build_availability(
    row: WorkerRow,
    latest: WorkerChange | None,
    *,
    may_decide: bool,
    effect: str,
    status: EnforcementStatus | None,
) -> Availability:
    """Return the decision in force on a worker and the possible ones.

    A worker instance that has ended cannot be drained.

    :param latest: the latest change of its availability
    :param effect: what a decision does: :func:`.enforcement.effect`
    :param status: whether the decision in force holds: :func:`.enforcement.status`
    """
    options = (Option(value, text, value == row.availability, meaning) for value, text, meaning in _CHOICES)
    return Availability(
        current=row.availability,
        change=current_change(row, latest),
        options=tuple(
            option
            for option in options
            if option.is_chosen or option.value != WorkerAvailability.DRAINING or row.ended_at is None
        ),
        may_decide=may_decide,
        effect=effect,
        status=None if row.ended_at is not None else status,
    )
