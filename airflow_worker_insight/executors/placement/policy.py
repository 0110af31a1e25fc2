"""Choice of the worker that runs a task: pure functions, no I/O, and no import of Airflow.

Some rules precede every strategy. A worker must be online and available, consume the task's queue, match the task's
request (labels, or a name), and have room. A retry goes to a worker that has not failed this task instance. A worker
that takes much longer than the others for the same tasks gets work only if waiting for a faster one would take longer.
Each decision says in one line which worker was chosen, and which were left out and why.

Eligible workers are worked out once for all tasks of a batch with the same request. Of those with room, the worker with
the lowest score gets the task.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.limits import TEXT_LENGTH
from airflow_worker_insight.domain.reasons import PlacementReason, PlacementStrategy

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping, Sequence


MAX_NAMED = 3
"""How many left-out workers the text of a decision names per reason."""

SLOW_WORKER_DELAY = 30.0
"""Seconds without new work for faster workers after which a slow worker is used anyway.

What runs on the faster ones may take longer than the task would take on the slow one.
"""


class UnknownStrategyError(ValueError):
    """Unknown placement strategy; the message names the known ones."""


@dataclass(frozen=True, slots=True)
class Task:
    """One try to place."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    queue: str
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that the worker must have."""
    worker: str | None = None
    """Name that the worker must have, if the task requests a certain worker."""
    avoid: frozenset[str] = frozenset()
    """Names of the workers that have failed this task instance."""
    invalid_reason: str | None = None
    """What is wrong with the task's request; such a task is not placed."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One worker instance, as the registry has it."""

    ref: int
    worker_id: str
    name: str
    queues: frozenset[str]
    """Queues that it consumes, without its dedicated queue."""
    concurrency: int
    """How many tasks it can run at once."""
    capacity: int
    """How many tasks it may have, running and waiting."""
    load: int = 0
    """How many tasks it has."""
    labels: Mapping[str, str] = field(default_factory=dict)
    state: str | None = "online"
    availability: str = "available"
    alias: str | None = None
    """Another name of the worker."""
    slowness: float = 1.0
    """How many times as long as others it takes for the same tasks; 1 unless it is slow.

    See :mod:`.slow_workers`.
    """
    unavailable_reason: str | None = None
    """Why it cannot get work although it is online.

    For example, it does not consume its dedicated queue yet.
    """
    may_return: bool = True
    """Whether a retry that fits no other worker waits until this one is available again."""

    @property
    def is_slow(self) -> bool:
        """Whether to use this worker only if waiting for a faster one would take longer."""
        return self.slowness > 1


@dataclass(frozen=True, slots=True)
class Decision:
    """The worker chosen for a task, and why."""

    worker: Candidate | None
    """``None`` if no worker fits and has room."""
    reason: str
    """One of :class:`airflow_worker_insight.domain.reasons.PlacementReason`."""
    text: str
    """The reason in one line, with the workers that were left out."""


class Placer:
    """Placer of tasks, one after the other; its own placements count in the workers' loads."""

    def __init__(
        self,
        strategy: str,
        candidates: Sequence[Candidate],
        history: MutableMapping[int, float] | None = None,
        *,
        now: float = 0.0,
    ) -> None:
        """Take the current workers and compute their scores.

        :param strategy: one of :class:`airflow_worker_insight.domain.reasons.PlacementStrategy`
        :param history: when each worker (by ``ref``) last got a task, in seconds of a monotonic clock; the placer
            updates it, so that workers with equal scores take turns, also from one placer to the next
        :param now: the current time of the same clock, in seconds
        :raises UnknownStrategyError: for any other strategy
        """
        check_strategy(strategy)
        self._strategy = strategy
        self._candidates = candidates
        self._loads = [candidate.load for candidate in candidates]
        self._digests = [_digest(candidate.name) for candidate in candidates]
        self._history = {} if history is None else history
        self._now = now
        # Time of the latest placement. It grows with each, so that placements made at one time are ordered.
        self._latest = max(now, *self._history.values(), 0.0)
        self._scores = [self._score(index) for index in range(len(candidates))]
        self._eligible: dict[tuple[str, frozenset[tuple[str, str]], str | None], _Eligible] = {}

    def place(self, task: Task) -> Decision:
        """Choose a worker for a task, and count the task in the worker's load."""
        if task.invalid_reason is not None:
            return Decision(None, PlacementReason.INVALID_REQUEST, _join_parts(f"waits: {task.invalid_reason}"))
        eligible = self._eligible_for(task)
        index, reason = self._choose(eligible, task)
        if index is None:
            why = _WAITING_TEXTS[reason].format(queue=task.queue, worker=task.worker)
            return Decision(None, reason, _join_parts(f"waits: {why}", eligible.left_out))
        worker = self._candidates[index]
        text = _join_parts(
            f"{worker.name}: {_CHOICE_TEXTS[reason].format(number=_workers(len(eligible.members)))},"
            f" {self._loads[index]} of {worker.capacity} slots taken",
            f"avoids {_join_names(sorted(task.avoid))}, which failed it"
            if reason == PlacementReason.RETRY_ELSEWHERE
            else "",
            eligible.left_out,
        )
        self._count_task(index)
        return Decision(worker, reason, text)

    def _eligible_for(self, task: Task) -> _Eligible:
        """Return the workers that may run a task; tasks with equal requests share the result."""
        key = (task.queue, frozenset(task.labels.items()), task.worker)
        eligible = self._eligible.get(key)
        if eligible is None:
            eligible = self._eligible[key] = _Eligible.of(self._candidates, task)
            for index in eligible.members:
                if not self._has_room(index):
                    eligible.drop(index)
        return eligible

    def _choose(self, eligible: _Eligible, task: Task) -> tuple[int | None, str]:
        """Return the index of the chosen worker, or ``None``, and the reason."""
        if not eligible.members:
            return None, eligible.why_empty
        avoided = frozenset(index for name in task.avoid for index in eligible.named.get(name, ()))
        if avoided and len(avoided) == len(eligible.members):
            if any(name not in task.avoid for name in eligible.may_return):
                return None, PlacementReason.OTHERS_FULL
            # Retries avoid a worker only if there is another one.
            index, reason = self._choose_fast_or_slow(eligible, task, frozenset())
            return index, reason if index is None else PlacementReason.RETRY_AGAIN
        index, reason = self._choose_fast_or_slow(eligible, task, avoided)
        if avoided:
            return index, PlacementReason.OTHERS_FULL if index is None else PlacementReason.RETRY_ELSEWHERE
        return index, reason

    def _choose_fast_or_slow(self, eligible: _Eligible, task: Task, avoided: frozenset[int]) -> tuple[int | None, str]:
        """Return the best worker; a slow one only if no faster worker gets to the task sooner."""
        fast_indexes = _without(eligible.fast_with_room, avoided)
        if fast_indexes:
            return self._choose_by_strategy(fast_indexes, eligible.fast, task)
        slow_indexes = _without(eligible.slow_with_room, avoided)
        if slow_indexes and (
            eligible.waiting >= eligible.slow_after_waiting or not self._got_task_lately(eligible.fast, avoided)
        ):
            return self._choose_by_strategy(slow_indexes, eligible.slow, task)[0], PlacementReason.SLOW
        eligible.waiting += 1
        return None, PlacementReason.FULL

    def _choose_by_strategy(self, with_room: Sequence[int], members: Sequence[int], task: Task) -> tuple[int, str]:
        if self._strategy != PlacementStrategy.STICKY:
            return min(with_room, key=self._scores.__getitem__), self._strategy
        task_digest, digests = _digest(f"{task.dag_id}\0{task.task_id}"), self._digests

        def rank(index: int) -> int:
            # Rendezvous hashing: each task has its own order of workers, in which only workers that join or leave move.
            return (task_digest ^ digests[index]) * _MULTIPLIER & _MASK

        preferred = min(members, key=rank)
        return (
            (preferred, PlacementStrategy.STICKY)
            if preferred in with_room
            else (min(with_room, key=rank), PlacementReason.STICKY_NEXT)
        )

    def _got_task_lately(self, members: Sequence[int], avoided: frozenset[int]) -> bool:
        """Return whether one of these workers got a task lately, so that it soon has room again."""
        since = self._now - SLOW_WORKER_DELAY
        refs = (self._candidates[index].ref for index in members if index not in avoided)
        return any(self._history.get(ref, since) > since for ref in refs)

    def _count_task(self, index: int) -> None:
        self._loads[index] += 1
        self._latest += _TICK
        self._history[self._candidates[index].ref] = self._latest
        self._scores[index] = self._score(index)
        if not self._has_room(index):
            for eligible in self._eligible.values():
                eligible.drop(index)

    def _has_room(self, index: int) -> bool:
        return self._loads[index] < self._candidates[index].capacity

    def _score(self, index: int) -> tuple[float, float, int]:
        """Return a worker's score; the worker with the lowest score is chosen.

        Load is relative to concurrency: a task should not wait at a small worker while a large one is idle. Of equal
        workers, the one with the lowest digest of its name comes first, which is not always the alphabetical first.
        """
        worker = self._candidates[index]
        load = self._loads[index] / worker.concurrency if self._strategy == PlacementStrategy.LEAST_LOADED else 0.0
        return load, self._history.get(worker.ref, 0.0), self._digests[index]


@dataclass(slots=True)
class _Eligible:
    """Workers eligible for all tasks with the same request, by index."""

    fast: list[int]
    """Workers that fit, full or not, and are not slow."""
    slow: list[int]
    """Workers that fit, full or not, and are slow."""
    may_return: list[str]
    """Names of workers that would fit and may be available again soon."""
    left_out: str
    """Text that names the workers that do not fit or are slow, and says why."""
    why_empty: str
    """The reason if no worker fits."""
    named: Mapping[str, Sequence[int]]
    """Workers that fit, by their names."""
    slow_after_waiting: float
    """How many tasks must wait before a slow worker would finish one sooner than faster ones."""
    fast_with_room: list[int]
    slow_with_room: list[int]
    waiting: int = 0
    """How many tasks have found no room."""

    @property
    def members(self) -> list[int]:
        """All workers that fit."""
        return self.fast + self.slow

    def drop(self, index: int) -> None:
        """Remove a worker that has no room left."""
        for with_room in (self.fast_with_room, self.slow_with_room):
            if index in with_room:
                with_room.remove(index)

    @classmethod
    def of(cls, candidates: Sequence[Candidate], task: Task) -> _Eligible:
        fast: list[int] = []
        slow: list[int] = []
        may_return: list[str] = []
        left_out: dict[str, list[str]] = {}
        why_empty = PlacementReason.NO_WORKER if task.worker is None else PlacementReason.NO_SUCH_WORKER
        for index, worker in enumerate(candidates):
            if task.queue not in worker.queues or task.worker not in (None, worker.name, worker.alias):
                # Unrelated workers are not named: that would say nothing about this task.
                continue
            reason = exclusion_reason(worker)
            has_labels = all(worker.labels.get(key) == value for key, value in task.labels.items())
            if reason is not None:
                why_empty = why_empty if why_empty == PlacementReason.NO_LABEL else PlacementReason.NOT_AVAILABLE
                may_recover = worker.may_return and worker.state in _STATES_THAT_MAY_RECOVER
                if has_labels and may_recover and worker.availability == "available":
                    may_return.append(worker.name)
            elif not has_labels:
                reason = "lacks " + ",".join(f"{key}={value}" for key, value in sorted(task.labels.items()))
                why_empty = PlacementReason.NO_LABEL
            elif not worker.is_slow:
                fast.append(index)
                continue
            else:
                slow.append(index)
                reason = f"takes {worker.slowness:.0f} times as long as others"
            left_out.setdefault(reason, []).append(worker.name)
        named: dict[str, list[int]] = {}
        for index in fast + slow:
            named.setdefault(candidates[index].name, []).append(index)
        at_once = sum(candidates[index].concurrency for index in fast)
        return cls(
            fast,
            slow,
            may_return,
            "left out: " + "; ".join(_names_with_reason(names, reason) for reason, names in left_out.items())
            if left_out
            else "",
            why_empty,
            named,
            at_once * (min((candidates[index].slowness for index in slow), default=1.0) - 1),
            fast.copy(),
            slow.copy(),
        )


def check_strategy(strategy: str) -> None:
    """Reject an unknown strategy.

    :raises UnknownStrategyError: with a message for operators
    """
    if strategy not in PlacementStrategy.values():
        allowed = ", ".join(PlacementStrategy.values())
        raise UnknownStrategyError(f"[worker_insight] placement_strategy must be one of {allowed}, not {strategy!r}")


_TICK = 1e-6
"""Seconds between the recorded times of two placements made at one time."""

_MULTIPLIER, _MASK = 0x9E3779B97F4A7C15, 2**64 - 1

_CHOICE_TEXTS: dict[str, str] = {
    PlacementStrategy.LEAST_LOADED: "least loaded of {number}",
    PlacementStrategy.ROUND_ROBIN: "next in turn of {number}",
    PlacementStrategy.STICKY: "the worker that this task sticks to",
    PlacementReason.STICKY_NEXT: "next of the workers that this task sticks to",
    PlacementReason.RETRY_ELSEWHERE: "retry on another worker",
    PlacementReason.RETRY_AGAIN: "has failed this task before, but no other worker is eligible",
    PlacementReason.SLOW: "slow, but no faster worker is free soon enough",
}

_WAITING_TEXTS: dict[str, str] = {
    PlacementReason.NO_WORKER: "no known worker consumes the queue {queue}",
    PlacementReason.NOT_AVAILABLE: "no worker of the queue {queue} is available",
    PlacementReason.NO_LABEL: "no available worker of the queue {queue} has the requested labels",
    PlacementReason.NO_SUCH_WORKER: "no worker of the queue {queue} is named {worker}",
    PlacementReason.FULL: "all eligible workers are full",
    PlacementReason.OTHERS_FULL: "all workers that have not failed it are full or do not answer",
}

_STATES_THAT_MAY_RECOVER = ("online", "unresponsive")


def exclusion_reason(worker: Candidate) -> str | None:
    """Return why a worker gets no tasks at all, or ``None`` if it may get some.

    Drains and quarantines take effect here. :meth:`.service.PlacementService.decide` reads them again for each batch.
    """
    if worker.state != "online":
        return worker.state or "state unknown"
    if worker.availability != "available":
        return worker.availability
    return worker.unavailable_reason


def _workers(number: int) -> str:
    return f"{number} workers" if number != 1 else "one worker"


def _names_with_reason(names: Sequence[str], reason: str) -> str:
    return f"{_join_names(names)} ({reason})"


def _join_names(names: Sequence[str]) -> str:
    unnamed = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {unnamed} more" if unnamed > 0 else "")


def _join_parts(*parts: str) -> str:
    text = "; ".join(part for part in parts if part)
    return text if len(text) <= TEXT_LENGTH else f"{text[: TEXT_LENGTH - 1]}…"


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def _without(indexes: list[int], avoided: frozenset[int]) -> list[int]:
    return [index for index in indexes if index not in avoided] if avoided else indexes
