"""Blocks: 32 first tries of one stratum in the order in which they started.

The stratum of workers and groups is a task; that of tasks that kill workers is a worker. A block is full by count and
closes once nothing that it says can change: until then a late report takes its place in the order.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from airflow_worker_insight.insight.events import TaskId
    from airflow_worker_insight.insight.evidence import Logs

BLOCK = 32
"""Tries of a block."""

RUNNING, SUCCEEDED, FAILED, LOST, EXCLUDED = range(5)
"""Status of a try. A running one has not failed so far."""


@dataclass(slots=True)
class WorkerRef:
    """A known instance of a worker: its values are shared by its tries.

    ``values`` has one per dimension: the instance, its name, its groups; ``None`` where it has none.
    """

    index: int
    name: str
    values: tuple[str | None, ...]
    last_day: int

    def member(self, dimension: int) -> str:
        """Return who it is among those of a group: an instance of a name, a name of all other groups."""
        return self.values[0] or self.name if dimension <= 1 else self.name


@dataclass(slots=True, eq=False)
class Try:
    """A counted first try. ``started`` and ``duration`` are in milliseconds."""

    key: int
    started: int
    worker: WorkerRef
    task: TaskId
    values: tuple[str | None, ...]
    """Those of its worker, then its task: a unit in each dimension."""
    status: int = RUNNING
    duration: int | None = None
    dropped: int = 0
    """Bit ``1 << lane``: this failure is not separate from the one before; see :mod:`.separation`."""
    strata: tuple[Stratum, ...] = ()
    before: Try | None = None
    """Neighbours in the order of starts of all tries; see :class:`.Timeline`."""
    after: Try | None = None
    is_on_timeline: bool = False

    @property
    def order(self) -> tuple[int, int]:
        """Place among all tries: by start, those of equal starts by key."""
        return self.started, self.key

    @property
    def day(self) -> int:
        """Day of the start, counted from 1970-01-01 UTC."""
        return self.started // DAY


_by_order = attrgetter("order")

DAY = 86_400_000
"""Milliseconds of a day."""

Contributions: TypeAlias = "dict[int, dict[tuple[str, str | None], Logs]]"
"""What a block has added to evidence: by lane, then by unit and the member left out (``None`` if all count)."""


@dataclass(slots=True, eq=False)
class Stratum:
    """The tries of one task, or of one worker, that no closed block has.

    ``tries`` are in the order of starts; each 32 of them are a block, the last of which may not be full. ``given`` has
    what each block contributes to evidence now.
    """

    index: int
    kind: str
    """``task`` or ``worker``."""
    name: tuple[str, ...]
    tries: list[Try] = field(default_factory=list)
    given: list[Contributions] = field(default_factory=list)
    usual: int | None = None
    """Median duration of the latest closed block's successes in milliseconds."""
    runs: dict[int, set[int]] = field(default_factory=dict)
    """Workers that have run a mapped instance, by Dag run: the latest :data:`RUNS`."""
    last_day: int = 0
    total: int = 0
    """Tries ever seen, to tell which tasks are tested."""
    due: int | None = None
    """When the first block may close, in milliseconds; ``None`` while it is not full or one of its tries runs."""

    def insert(self, started_try: Try) -> int:
        """Insert a try by its start and return the number of the first block that changes."""
        position = bisect_right(self.tries, started_try.order, key=_by_order)
        self.tries.insert(position, started_try)
        if len(self.tries) > len(self.given) * BLOCK:
            self.given.append({})
        return position // BLOCK

    def block(self, number: int) -> list[Try]:
        """Return the tries of an open block, the oldest block being 0."""
        return self.tries[number * BLOCK : (number + 1) * BLOCK]

    def blocks(self) -> Iterator[list[Try]]:
        """Return the open blocks, the oldest first."""
        return (self.block(number) for number in range(len(self.given)))

    def number_of(self, wanted: Try) -> int | None:
        """Return the number of the open block that has a try, ``None`` if it is closed."""
        position = bisect_left(self.tries, wanted.order, key=_by_order)
        is_here = position < len(self.tries) and self.tries[position] is wanted
        return position // BLOCK if is_here else None

    def schedule(self, now: int, grace: int) -> int | None:
        """Set and return when the first block may close, ``None`` if it is not full or one of its tries runs.

        :param now: the detector's clock in milliseconds
        :param grace: how long after its last start a late report may still join, in milliseconds
        """
        first = self.tries[:BLOCK]
        is_complete = len(first) == BLOCK and all(each.status != RUNNING for each in first)
        self.due = max(now, first[-1].started + grace) if is_complete else None
        return self.due

    def ran_before(self, run: int, worker: WorkerRef) -> bool:
        """Note a mapped instance, and return whether one of the same run had run on the same worker."""
        workers = self.runs.pop(run, None)
        if workers is None:
            workers = set()
            while len(self.runs) >= RUNS:
                del self.runs[next(iter(self.runs))]
        self.runs[run] = workers
        if worker.index in workers:
            return True
        workers.add(worker.index)
        return False


RUNS = 16
"""Latest Dag runs of a task for which the first mapped instance on each worker is remembered."""


Judged: TypeAlias = "list[tuple[Try, bool]]"
"""The tries of a block that count for a question, each with whether it is a failure."""


def judge(tries: Iterable[Try], lane: int, failing: int) -> Judged:
    """Return the tries that count for failed or lost ones.

    :param lane: number of the dimension and outcome, for the failures that are dropped
    :param failing: the status that is a failure, :data:`FAILED` or :data:`LOST`
    """
    bit = 1 << lane
    # A lost try neither failed nor did not: it ended before its task could say.
    void = (EXCLUDED, LOST) if failing == FAILED else (EXCLUDED,)
    return [(each, each.status == failing) for each in tries if each.status not in void and not each.dropped & bit]


@dataclass(slots=True)
class Counts:
    """Tries and failures of a block: of all, of each unit, and of each member of each unit."""

    tries: int
    failures: int
    units: dict[str, list[int]]
    """Own tries and own failures by unit."""
    members: dict[tuple[str, str], list[int]]


def count(judged: Judged, dimension: int, *, with_members: bool) -> Counts:
    """Count a block for one dimension.

    :param with_members: whether the members of each unit are counted too
    """
    failures = 0
    units: dict[str, list[int]] = {}
    members: dict[tuple[str, str], list[int]] = {}
    for each, failed in judged:
        failures += failed
        value = each.values[dimension]
        if value is None:
            continue
        own = units.get(value)
        if own is None:
            own = units[value] = [0, 0]
        own[0] += 1
        own[1] += failed
        if with_members:
            part = members.setdefault((value, each.worker.member(dimension)), [0, 0])
            part[0] += 1
            part[1] += failed
    return Counts(len(judged), failures, units, members)
