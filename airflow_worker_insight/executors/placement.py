"""Decide which worker a task is to run on: pure functions, no I/O, and nothing of Airflow.

In front of every strategy stands what no strategy may overrule: a worker must live, be available, consume the task's
queue, have what the task asks for (labels, or a name), and have room; a retry goes to a worker that has not failed this
task instance; and a worker that takes much longer than the others for the same tasks is given something only when these
take nothing any more. Each decision says in one line what was chosen, and who was left out and why.

Who may be chosen is the same for all tasks that ask for the same, so that is worked out once for each such group;
within it the next worker is found in a heap. A decision costs some microseconds however many workers there are; while
nobody has room, no worker is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING, Protocol

from airflow_worker_insight.store.decisions import (
    AGAIN,
    BAD_WISH,
    ELSEWHERE,
    FULL,
    LEAST_LOADED,
    NO_LABEL,
    NO_SUCH_WORKER,
    NO_WORKER,
    NOT_AVAILABLE,
    OTHERS_FULL,
    ROUND_ROBIN,
    SLOW,
    STICKY,
    STICKY_NEXT,
    STRATEGIES,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping, Sequence

MAX_NAMED = 3
"""How many workers a line names of those that were left out for one reason."""

TEXT_LENGTH = 300
"""Characters of a line at most: as many as the database keeps."""

PATIENCE = 30.0
"""Seconds without anything given to the others after which a slow worker is used all the same: what runs on them may
take longer than the task would on it."""

_MASK = 2**64 - 1


class UnknownStrategy(ValueError):  # noqa: N818
    """A strategy that there is not; the message names those that there are."""


@dataclass(frozen=True, slots=True)
class Task:
    """One try that is to be placed."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    queue: str
    labels: Mapping[str, str] = field(default_factory=dict)
    """What the worker's labels must be."""
    worker: str | None = None
    """What the worker must be called, where only one will do."""
    avoid: frozenset[str] = frozenset()
    """Names of the workers that have failed this task instance."""
    trouble: str | None = None
    """What is wrong with what it asks for: then it is not placed."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One life of a worker, as the registry has it."""

    ref: int
    worker_id: str
    name: str
    queues: frozenset[str]
    """The queues that it consumes, but for its own."""
    concurrency: int
    """How many tasks it runs at once."""
    capacity: int
    """How many it may have, running and waiting."""
    load: int = 0
    """How many it has."""
    labels: Mapping[str, str] = field(default_factory=dict)
    state: str | None = "online"
    availability: str = "available"
    alias: str | None = None
    """What it is called beside its name."""
    slowness: float = 1.0
    """How many times as long as the others it takes for the same tasks, 1 where that is not much: see :mod:`.pace`."""
    trouble: str | None = None
    """Why it cannot be given anything although it lives, such as a queue of its own that it does not consume yet."""
    comes_back: bool = True
    """Whether a retry that has no other worker waits until its trouble is over."""

    @property
    def is_slow(self) -> bool:
        """Whether it is given something only where that is sooner done than to wait for the others."""
        return self.slowness > 1


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a task goes and why."""

    worker: Candidate | None
    """``None`` where nobody fits."""
    reason: str
    """One of :data:`airflow_worker_insight.store.decisions.REASONS`."""
    text: str
    """The same in one line, with who was left out."""


class Placer:
    """Places tasks one after the other, and counts its own placements among what the workers have."""

    def __init__(
        self,
        strategy: str,
        candidates: Sequence[Candidate],
        history: MutableMapping[int, float] | None = None,
        *,
        now: float = 0.0,
    ) -> None:
        """Take the workers as they are now.

        :param strategy: one of :data:`airflow_worker_insight.store.decisions.STRATEGIES`
        :param history: when each worker (by ``ref``) was given something last, in seconds; it is carried on, so that
            what is equal otherwise goes round, also from one placer to the next
        :param now: the same clock's time, which never goes back
        :raises UnknownStrategy: for any other strategy
        """
        check_strategy(strategy)
        self._strategy = strategy
        self._candidates = candidates
        self._loads = [one.load for one in candidates]
        self._history = {} if history is None else history
        self._now = now
        # Of what is given at one time the order counts.
        self._turn = max(now, *self._history.values(), 0.0)
        self._groups: dict[tuple[str, frozenset[tuple[str, str]], str | None], _Group] = {}

    def place(self, task: Task) -> Decision:
        """Decide where a task goes, and count it there."""
        if task.trouble is not None:
            return Decision(None, BAD_WISH, _line(f"waits: {task.trouble}"))
        group = self._group(task)
        chosen, reason = self._choose(group, task)
        if chosen is None:
            why = _WAITS[reason].format(queue=task.queue, worker=task.worker)
            return Decision(None, reason, _line(f"waits: {why}", group.left_out))
        one = self._candidates[chosen]
        text = _line(
            f"{one.name}: {_CHOSEN[reason].format(number=_workers(len(group.members)))}, {self._loads[chosen]} of"
            f" {one.capacity} places taken",
            f"kept away from {_list(sorted(task.avoid))}, which failed it" if reason == ELSEWHERE else "",
            group.left_out,
        )
        self._loads[chosen] += 1
        if not self.has_room(chosen):
            self._close(chosen)
        self._turn += _TURN
        self._history[one.ref] = self._turn
        return Decision(one, reason, text)

    def _group(self, task: Task) -> _Group:
        key = (task.queue, frozenset(task.labels.items()), task.worker)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group.of(self._candidates, task)
            for tier in group.tiers:
                tier.order = _Sticky(self, tier.members) if self._strategy == STICKY else _Heap(self, tier.members)
                tier.free = {place for place in tier.members if self.has_room(place)}
        return group

    def _close(self, place: int) -> None:
        """Note for all groups that a worker has no room any more: it happens to each once at most."""
        for group in self._groups.values():
            for tier in group.tiers:
                tier.free.discard(place)

    def _choose(self, group: _Group, task: Task) -> tuple[int | None, str]:
        """Return the place of the chosen worker, or ``None``, and the reason."""
        if not group.members:
            return None, group.why_empty
        avoided = {place for name in task.avoid for place in group.called.get(name, ())} if task.avoid else _NONE
        if avoided and len(avoided) == len(group.members):
            if any(self._candidates[place].name not in task.avoid for place in group.soon):
                return None, OTHERS_FULL
            # It is a rule for those who can choose.
            chosen, reason = self._next(group, task, _NONE)
            return chosen, reason if chosen is None else AGAIN
        chosen, reason = self._next(group, task, avoided)
        if not avoided:
            return chosen, reason
        return chosen, OTHERS_FULL if chosen is None else ELSEWHERE

    def _next(self, group: _Group, task: Task, avoided: frozenset[int] | set[int]) -> tuple[int | None, str]:
        fast, slow = group.tiers
        assert fast.order is not None
        assert slow.order is not None
        # With thousands of tasks that wait, to look through all workers for each would take seconds.
        if fast.has_room(avoided):
            chosen, is_first = fast.order.next(task, avoided)
            return chosen, self._strategy if is_first else STICKY_NEXT
        if slow.has_room(avoided) and (group.waiting >= group.patience or not self._takes(fast, avoided)):
            chosen, _ = slow.order.next(task, avoided)
            return chosen, SLOW
        group.waiting += 1
        return None, FULL

    def _takes(self, tier: _Tier, avoided: frozenset[int] | set[int]) -> bool:
        """Return whether workers that have no room now have taken something lately, so that they soon will again."""
        # Who was found to have done so for one task has for the next ones too.
        if tier.taker is None or tier.taker in avoided:
            tier.taker = next((place for place in tier.members if place not in avoided and self._took(place)), None)
        return tier.taker is not None

    def _took(self, place: int) -> bool:
        return self._now - self._history.get(self._candidates[place].ref, -PATIENCE) < PATIENCE

    # --- for the orders below

    def has_room(self, place: int) -> bool:
        """Return whether a worker may be given more."""
        return self._loads[place] < self._candidates[place].capacity

    def score(self, place: int) -> tuple[float, float]:
        """Return what the worker with the least of it is chosen by. It only ever grows."""
        one = self._candidates[place]
        last = self._history.get(one.ref, 0.0)
        # Relative to what it runs at once: what waits on a small worker while a large one idles helps nobody.
        return (self._loads[place] / one.concurrency if self._strategy == LEAST_LOADED else 0.0, last)

    def name(self, place: int) -> str:
        """Return the name of a worker."""
        return self._candidates[place].name


class _Order(Protocol):
    def next(self, task: Task, avoided: frozenset[int] | set[int]) -> tuple[int | None, bool]:
        """Return the worker that is next and has room, and whether it is the one that the task wanted first."""


class _Heap:
    """The workers by their score, the least first."""

    def __init__(self, placer: Placer, members: Sequence[int]) -> None:
        self._placer = placer
        # Of equal ones first the one whose name has the least digest: not always the first in the alphabet.
        self._heap = [(placer.score(place), _digest(placer.name(place)), place) for place in members]
        heapify(self._heap)

    def next(self, task: Task, avoided: frozenset[int] | set[int]) -> tuple[int | None, bool]:  # noqa: ARG002
        heap, aside = self._heap, []
        chosen = None
        while heap:
            score, digest, place = heap[0]
            if not self._placer.has_room(place):
                heappop(heap)
                continue
            now = self._placer.score(place)
            if now != score:
                # It was given something since, perhaps for another group: its score has grown.
                heapreplace(heap, (now, digest, place))
                continue
            if place in avoided:
                aside.append(heappop(heap))
                continue
            chosen = place
            break
        for entry in aside:
            heappush(heap, entry)
        return chosen, True


class _Sticky:
    """The workers in an order that is each task's own, and changes only by who comes and goes: rendezvous hashing."""

    def __init__(self, placer: Placer, members: Sequence[int]) -> None:
        self._placer = placer
        self._digests = [(_digest(placer.name(place)), place) for place in members]
        self._first: dict[tuple[str, str], int] = {}
        self._orders: dict[tuple[str, str], list[int]] = {}

    def next(self, task: Task, avoided: frozenset[int] | set[int]) -> tuple[int | None, bool]:
        key = (task.dag_id, task.task_id)
        first = self._first.get(key)
        if first is None and self._digests:
            own = _digest("\0".join(key))
            first = self._first[key] = max((_mix(own ^ digest), place) for digest, place in self._digests)[1]
        if first is not None and first not in avoided and self._placer.has_room(first):
            return first, True
        for place in self._order(key):
            if place not in avoided and self._placer.has_room(place):
                return place, False
        return None, False

    def _order(self, key: tuple[str, str]) -> list[int]:
        order = self._orders.get(key)
        if order is None:
            own = _digest("\0".join(key))
            ranked = sorted(((_mix(own ^ digest), place) for digest, place in self._digests), reverse=True)
            order = self._orders[key] = [place for _, place in ranked]
        return order


@dataclass(slots=True)
class _Tier:
    """Workers among which the strategy chooses."""

    members: list[int] = field(default_factory=list)
    free: set[int] = field(default_factory=set)
    """Those of them that have room."""
    order: _Order | None = None
    taker: int | None = None
    """One of them that has been given something lately, once it was looked for."""

    def has_room(self, avoided: frozenset[int] | set[int]) -> bool:
        """Return whether one that is not to be avoided has room."""
        return not self.free <= avoided


@dataclass(slots=True)
class _Group:
    """Who may be chosen for all tasks that ask for the same."""

    members: list[int]
    """The places of the workers that fit, full or not."""
    tiers: tuple[_Tier, _Tier]
    """The same, those that are as fast as others and those that are slow."""
    soon: list[int]
    """The places of those that fit but for a trouble that may be over soon."""
    left_out: str
    """Who does not fit, or is passed by, and why, in words."""
    why_empty: str
    """Why nobody fits, where that is so."""
    called: Mapping[str, Sequence[int]]
    """The places of the members, by their names."""
    patience: float
    """How many tasks wait at most until a slow worker has done one before the others come to it."""
    waiting: int = 0
    """How many tasks have found no room."""

    @classmethod
    def of(cls, candidates: Sequence[Candidate], task: Task) -> _Group:
        fast, slow = _Tier(), _Tier()
        soon: list[int] = []
        out: dict[str, list[str]] = {}
        why_empty = NO_WORKER if task.worker is None else NO_SUCH_WORKER
        for place, one in enumerate(candidates):
            if task.queue not in one.queues or task.worker not in (None, one.name, one.alias):
                # It has nothing to do with this task: naming all these would say nothing.
                continue
            why = is_out(one)
            has_labels = all(one.labels.get(key) == value for key, value in task.labels.items())
            if why is not None:
                why_empty = why_empty if why_empty == NO_LABEL else NOT_AVAILABLE
                if has_labels and one.comes_back and one.availability == "available" and one.state in _MAY_COME_BACK:
                    soon.append(place)
            elif not has_labels:
                why = "lacks " + ",".join(f"{key}={value}" for key, value in sorted(task.labels.items()))
                why_empty = NO_LABEL
            elif not one.is_slow:
                fast.members.append(place)
                continue
            else:
                slow.members.append(place)
                why = f"takes {one.slowness:.0f} times as long as others"
            out.setdefault(why, []).append(one.name)
        members = fast.members + slow.members
        called: dict[str, list[int]] = {}
        for place in members:
            called.setdefault(candidates[place].name, []).append(place)
        places = sum(candidates[place].concurrency for place in fast.members)
        return cls(
            members,
            (fast, slow),
            soon,
            "left out: " + "; ".join(_named(names, why) for why, names in out.items()) if out else "",
            why_empty,
            called,
            places * (min((candidates[place].slowness for place in slow.members), default=1.0) - 1),
        )


def check_strategy(strategy: str) -> None:
    """Refuse a strategy that there is not.

    :raises UnknownStrategy: with a message for an operator
    """
    if strategy not in STRATEGIES:
        raise UnknownStrategy(
            f"[worker_insight] placement_strategy is one of {', '.join(STRATEGIES)}, not {strategy!r}"
        )


_NONE: frozenset[int] = frozenset()

_TURN = 1e-6

_CHOSEN = {
    LEAST_LOADED: "least loaded of {number}",
    ROUND_ROBIN: "next in turn of {number}",
    STICKY: "the one that this task sticks to",
    STICKY_NEXT: "next of those that this task sticks to",
    ELSEWHERE: "a retry elsewhere",
    AGAIN: "has failed this task before, but nobody else fits",
    SLOW: "slow, but nobody faster takes anything now",
}

_WAITS = {
    NO_WORKER: "no worker that is known consumes the queue {queue}",
    NOT_AVAILABLE: "no worker of the queue {queue} is available",
    NO_LABEL: "no available worker of the queue {queue} has the labels that it asks for",
    NO_SUCH_WORKER: "no worker of the queue {queue} is called {worker}",
    FULL: "all workers that fit have as much as they may",
    OTHERS_FULL: "the workers that have not failed it have as much as they may, or do not answer now",
}

_MAY_COME_BACK = ("online", "unresponsive")


def is_out(one: Candidate) -> str | None:
    """Return why a worker is given nothing, whatever the task."""
    if one.state != "online":
        return one.state or "of unknown state"
    if one.availability != "available":
        return one.availability
    return one.trouble


def _workers(number: int) -> str:
    return f"{number} workers" if number != 1 else "one worker"


def _named(names: Sequence[str], why: str) -> str:
    return f"{_list(names)} ({why})"


def _list(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _line(*parts: str) -> str:
    text = "; ".join(part for part in parts if part)
    return text if len(text) <= TEXT_LENGTH else f"{text[: TEXT_LENGTH - 1]}…"


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def _mix(value: int) -> int:
    """Scatter the bits of a number (the end of splitmix64): a digest for each pair would take too long."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
