"""Enforcement: what makes a decision on a worker hold with executors that do not know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.states import LOCAL, StrEnum, WorkerAvailability

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class Enforcement:
    """What was done to keep work off a worker instance. Times are aware UTC, by the database's clock."""

    queues: tuple[str, ...]
    """The queues that it consumed before; they are given back on release."""
    requested_at: datetime
    in_effect_at: datetime | None = None
    """When it was first seen to take no new work; ``None`` until then."""
    fetched: int | None = None
    """Tries that it had fetched before and still runs; ``None`` if unknown."""
    error: str | None = None
    """Why the latest request failed."""


@dataclass(frozen=True, slots=True)
class EnforcedWorker:
    """A worker instance that takes no new work, or is to take work again."""

    ref: int
    engine_name: str
    """The worker source's name of it."""
    availability: str
    enforcement: Enforcement | None = None

    @property
    def is_held(self) -> bool:
        """Whether new work is to be kept off it."""
        return self.availability != WorkerAvailability.AVAILABLE


@dataclass(frozen=True, slots=True)
class Request:
    """What a worker source is asked to do, by the source's names of workers."""

    hold: frozenset[str]
    """Workers that are to take no new work."""
    release: dict[str, tuple[str, ...]]
    """Workers that are to take work again, from these queues."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker does after a request."""

    takes_work: bool
    """Whether it takes new work: from any queue of its own, or from all queues given back."""
    queues: tuple[str, ...] = ()
    """The queues that it consumed before this request."""
    fetched: int | None = None
    error: str | None = None
    """Why it did not do what was asked."""


def request_for(workers: list[EnforcedWorker]) -> Request:
    """Return what to ask of a source; of several instances under one name the strictest decision holds."""
    hold = frozenset(each.engine_name for each in workers if each.is_held)
    release: dict[str, tuple[str, ...]] = {}
    for each in workers:
        if each.enforcement is not None and each.engine_name not in hold:
            release[each.engine_name] = tuple(sorted({*release.get(each.engine_name, ()), *each.enforcement.queues}))
    return Request(hold, release)


def after(worker: EnforcedWorker, answer: Answer | None, *, error: str | None, now: datetime) -> Enforcement | None:
    """Return what is known of a worker's enforcement after a request.

    :param answer: what the worker does now; ``None`` if it did not answer
    :param error: why the request could not be made
    :return: ``None`` once nothing is to be enforced any more
    """
    before = worker.enforcement or Enforcement((), now)
    problem = error or (NO_ANSWER if answer is None else answer.error)
    if answer is None:
        return Enforcement(before.queues, before.requested_at, before.in_effect_at, before.fetched, problem)
    if not worker.is_held:
        return None if answer.takes_work else Enforcement(before.queues, before.requested_at, error=problem)
    queues = tuple(sorted({*before.queues, *answer.queues}))
    if answer.takes_work:
        return Enforcement(queues, before.requested_at, error=problem)
    in_effect_at = before.in_effect_at or now
    fetched = answer.fetched if before.in_effect_at is None else before.fetched
    return Enforcement(queues, before.requested_at, in_effect_at, fetched)


NO_ANSWER = "The worker did not answer."


# --- what readers get ------------------------------------------------------------------------------------------------


class EnforcementState(StrEnum):
    """Whether a decision on a worker holds."""

    REQUESTED = "requested"
    """The worker was asked, or will be at the next poll, and has not confirmed it."""
    IN_EFFECT = "in_effect"
    """The worker takes no new work."""
    FAILED = "failed"
    """The worker could not be asked, or did not do it. It is asked again at each poll."""
    NOT_ENFORCED = "not_enforced"
    """Nothing keeps work off the worker: its executor cannot, or the operator has switched that off."""


@dataclass(frozen=True, slots=True)
class EnforcementStatus:
    """Whether a decision on a worker holds, and since when."""

    state: EnforcementState
    since: datetime | None
    """When it was requested, or came into effect."""
    text: str
    """The same in one or two sentences, without the time."""


ENFORCED_KINDS = frozenset({"celery", "edge"})
"""Kinds of workers whose source can keep work off them."""

_HOW = {
    "celery": "The worker stops consuming its queues and finishes what it has fetched.",
    "edge": "The worker goes into the Edge provider’s maintenance mode and finishes what it runs.",
}


def effect(kind: str, *, places: bool, enforces: bool, node: str | None = None) -> str:
    """Return what a decision on a worker does, in one or two sentences.

    :param kind: the worker's kind
    :param places: whether an executor of this package is configured
    :param enforces: whether ``[worker_insight] enforce_availability`` is on
    :param node: the Kubernetes node of a pod
    """
    if kind == "kubernetes":
        command = f"kubectl cordon {node}" if node else "kubectl cordon NODE"
        return f"Airflow starts a pod for each try. To keep new pods off this one’s node, run: {command}"
    if kind in ENFORCED_KINDS and enforces:
        return _HOW[kind]
    if places:
        return "The executor of Worker Insight gives the worker no new tasks."
    if kind in ENFORCED_KINDS:
        return "This is recorded only: [worker_insight] enforce_availability is off."
    if kind == LOCAL:
        return (
            "This is recorded only: LocalExecutor starts tasks in the scheduler itself. It takes effect with "
            "WorkerInsightLocalExecutor."
        )
    return "This is recorded only: nothing is known that would keep tasks off workers of this executor."


def status(
    kind: str, availability: str, known: Enforcement | None, *, places: bool, enforces: bool, node: str | None = None
) -> EnforcementStatus | None:
    """Return whether a decision on a worker holds; ``None`` for an available worker that takes work.

    The parameters are those of :func:`effect`, and what was done about the worker.
    """
    if availability == WorkerAvailability.AVAILABLE:
        return None if known is None else _asked(known, "The worker has not confirmed yet that it takes work again.")
    if kind not in ENFORCED_KINDS or not enforces:
        state = EnforcementState.IN_EFFECT if places else EnforcementState.NOT_ENFORCED
        return EnforcementStatus(state, None, effect(kind, places=places, enforces=enforces, node=node))
    if known is None or known.error or known.in_effect_at is None:
        return _asked(known, "The worker has not confirmed yet that it takes no new work.")
    return EnforcementStatus(EnforcementState.IN_EFFECT, known.in_effect_at, _in_effect(kind, known))


def _asked(known: Enforcement | None, text: str) -> EnforcementStatus:
    if known is None:
        return EnforcementStatus(EnforcementState.REQUESTED, None, text)
    if known.error:
        text = f"{known.error} The worker is asked again at each poll."
        return EnforcementStatus(EnforcementState.FAILED, known.requested_at, text)
    return EnforcementStatus(EnforcementState.REQUESTED, known.requested_at, text)


def _in_effect(kind: str, known: Enforcement) -> str:
    if kind == "edge":
        return "The worker is in maintenance mode."
    text = "The worker consumes none of its queues"
    text += f" ({', '.join(known.queues)})." if known.queues else "."
    if known.fetched:
        tries = "1 try" if known.fetched == 1 else f"{known.fetched:,} tries"
        text += f" It had fetched {tries} before and still ran them."
    return text
