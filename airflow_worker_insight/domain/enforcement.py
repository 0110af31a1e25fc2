"""Enforcement: what makes a decision on a worker hold with executors that do not know it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.states import LOCAL, StrEnum, WorkerAvailability

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime


MAX_QUEUES = 1_000
"""Queues that are remembered of one worker."""

NO_ANSWER = "The worker did not answer."
NOTHING_REMEMBERED = "It is not known which queues it consumed before. Restart it: then it consumes its own again."


@dataclass(frozen=True, slots=True)
class Enforcement:
    """What was done to keep work off a worker instance. Times are aware UTC, by the database's clock."""

    queues: tuple[str, ...]
    """The queues that it was seen to consume before; they are given back on release."""
    requested_at: datetime
    in_effect_at: datetime | None = None
    """When it was first seen to take no new work; ``None`` until then."""
    released_at: datetime | None = None
    """When it was seen to take work again; ``None`` until then."""
    fetched: int | None = None
    """Tries that it had fetched before and still runs; ``None`` if unknown."""
    error: str | None = None
    """Why the latest request failed."""


@dataclass(frozen=True, slots=True)
class EnforcedWorker:
    """A worker instance that takes no new work, is to take work again, or was released."""

    ref: int
    engine_name: str
    """The worker source's name of it."""
    availability: str
    enforcement: Enforcement | None = None

    @property
    def is_held(self) -> bool:
        """Whether the worker must take no new work, because a user drained or quarantined it."""
        return self.availability != WorkerAvailability.AVAILABLE

    @property
    def is_released(self) -> bool:
        """Whether it was seen to take work again after it was held."""
        return not self.is_held and self.enforcement is not None and self.enforcement.released_at is not None


@dataclass(frozen=True, slots=True)
class Request:
    """What a worker source is asked to do, by the source's names of workers."""

    hold: frozenset[str]
    """Workers that are to take no new work."""
    release: Mapping[str, tuple[str, ...]]
    """Workers that are to take work again, from these queues."""
    released: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Workers that did so already: from these queues, should they consume none by now."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker does after a request."""

    takes_work: bool
    """Whether it takes new work: from any queue of its own, or from all queues given back."""
    queues: tuple[str, ...] = ()
    """The queues that it consumes now."""
    fetched: int | None = None
    error: str | None = None
    """Why it did not do what was asked."""


def request_for(workers: Iterable[EnforcedWorker]) -> Request:
    """Return what to ask of a source; of several instances under one name the strictest decision holds."""
    workers = list(workers)
    hold = frozenset(each.engine_name for each in workers if each.is_held)
    release: dict[str, tuple[str, ...]] = {}
    released: dict[str, tuple[str, ...]] = {}
    for each in workers:
        if each.enforcement is not None and each.engine_name not in hold:
            group = released if each.is_released else release
            group[each.engine_name] = tuple(sorted({*group.get(each.engine_name, ()), *each.enforcement.queues}))
    return Request(hold, release, {name: queues for name, queues in released.items() if name not in release})


def with_queues(known: Enforcement | None, queues: Iterable[str], *, now: datetime) -> Enforcement:
    """Return an enforcement that remembers these queues too, begun now if there is none in force."""
    begun = known if known is not None and known.released_at is None else None
    remembered = known.queues if known is not None else ()
    added = sorted(set(queues) - set(remembered))
    together = (*remembered, *added)[:MAX_QUEUES]
    return replace(begun, queues=together) if begun is not None else Enforcement(together, now)


def after(
    worker: EnforcedWorker, known: Enforcement | None, answer: Answer | None, *, error: str | None, now: datetime
) -> Enforcement | None:
    """Return what is known of a worker's enforcement after a request.

    :param known: what is known of it now: another process may have written since the worker was read
    :param answer: what the worker does now; ``None`` if it did not answer
    :param error: why the request could not be made
    :return: ``None`` if nothing was ever enforced
    """
    problem = error or (NO_ANSWER if answer is None else answer.error)
    if not worker.is_held:
        return None if known is None else _after_release(known, answer, problem, now)
    held = with_queues(known, (), now=now)
    if answer is None:
        return replace(held, error=problem)
    if answer.takes_work:
        return replace(held, in_effect_at=None, fetched=None, error=problem)
    if held.in_effect_at is not None:
        return replace(held, error=None)
    return replace(held, in_effect_at=now, fetched=answer.fetched, error=None)


def _after_release(known: Enforcement, answer: Answer | None, problem: str | None, now: datetime) -> Enforcement:
    if answer is None:
        # The worker has confirmed its release before: its silence changes nothing.
        return known if known.released_at is not None else replace(known, error=problem)
    if not answer.takes_work:
        return replace(known, released_at=None, error=problem)
    return replace(known, in_effect_at=None, released_at=known.released_at or now, fetched=None, error=None)


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
        is_over = known is None or known.released_at is not None
        return None if is_over else _asked(known, "The worker has not confirmed yet that it takes work again.")
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
