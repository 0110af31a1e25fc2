"""Watch Celery's workers, from a thread beside the scheduler's loop.

Every few seconds it reads the registry, has each worker consume a queue of its own, takes back what waits at workers
that will not run it, and gives back places that nobody gave back.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_worker_insight import compat, config
from airflow_worker_insight.capture.counters import count, warn_once
from airflow_worker_insight.executors import moving
from airflow_worker_insight.executors.own_queues import own_queue, settle
from airflow_worker_insight.executors.pace import Ran, slowness
from airflow_worker_insight.executors.placement import Candidate
from airflow_worker_insight.executors.rounds import Rounds
from airflow_worker_insight.executors.rules import WAIT
from airflow_worker_insight.fleet.bounded import Bounded
from airflow_worker_insight.fleet.engines import EngineTrouble, celery_teams
from airflow_worker_insight.fleet.engines.celery import OWN_QUEUE_PREFIX
from airflow_worker_insight.fleet.refresh import refresh
from airflow_worker_insight.store import durations, lives, placements, workers
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.recording import AVAILABLE, ONLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime

    from airflow_worker_insight.executors.desk import Desk, Snapshot
    from airflow_worker_insight.store.durations import Stay
    from airflow_worker_insight.store.workers import WorkerRow

log = logging.getLogger(__name__)

ASK_EVERY = 10.0
"""Seconds between two questions to the workers which queues they consume."""

ASK_AGAIN = 4.0
"""The same where one is to consume its own queue and does not yet."""

ASK_SECONDS = 20.0
"""How long asking may take at most."""

FIRST_ANSWER_WITHIN = 30.0
"""Seconds for which tasks wait for the first worker of all that answers."""

SILENT_AFTER = 2
"""Questions that a worker has not answered after which it is given nothing new."""

COMES_BACK_WITHIN = 12
"""Questions without an answer after which nobody waits for a worker any more."""

TIDY_EVERY = 5.0
"""Seconds between two looks for messages that wait at workers that will not run them."""

SWEEP_EVERY = timedelta(seconds=30)
"""Time between two sweeps, and how old a placement is at least that is swept."""

REMOVED_AFTER, REMOVED_WITHIN = timedelta(minutes=5), timedelta(hours=2)
"""How long after a worker's end its own queue is removed: by then nobody sends to it any more."""

MOST_REMOVED = 100
"""Queues that are removed at once."""

TIDY_TAKES = timedelta(seconds=60)
"""How long taking back may take before another scheduler takes over."""

LEASE = "placing"
"""The row of the engines' table by which one scheduler at a time takes back."""

COMPARE_EVERY = 10.0
"""Seconds between two looks at how long the workers take for the same tasks."""

COMPARED = timedelta(minutes=15)
"""How old a try is at most that is compared: a worker that was slow is given work again some time later."""

MOST_COMPARED = 2_000
"""Tries that are compared at most."""

CLOCKS_DIFFER_FROM = timedelta(minutes=2)
"""How far clocks differ at least to be reckoned with: what is known of them is late by an interval of looking."""

FIRST_LOOK_WITHIN = 15.0
"""Seconds from the start for which somebody else's first look at the workers is waited for."""

GIVES_UP_AFTER = 3
"""Questions to the workers that fail one after the other before nothing is placed any more."""


class Watch(Rounds):
    """Watches the Celery workers of one executor."""

    thread_name = "worker-insight-placing"

    def __init__(self, app: Any, desk: Desk) -> None:
        super().__init__()
        self.app = app
        self.desk = desk
        self._asking: Bounded[dict[str, frozenset[str]]] = Bounded("Celery's workers")
        self._consumed: dict[str, frozenset[str]] = {}
        self._unanswered: Counter[str] = Counter()
        self._answered: set[str] = set()
        self._held: frozenset[str] = frozenset()
        self._removed: frozenset[str] = frozenset()
        self._asked_at: float | None = None
        self._ask_failures = 0
        self._ask_trouble: str | None = None
        self._tidy_due = self._sweep_due = self._compare_due = 0.0
        self._slowness: dict[int, float] = {}
        self._unplaced: dict[int, int] = {}
        self._made_at = time.monotonic()
        # Whether any worker answered this watch, and whether one ever answered anybody.
        self._answered_here = self._answered_ever = False

    def go_round(self) -> None:
        """Do everything that is due once."""
        if config.enabled() and self.tables_trouble() is None:
            # The API servers of Airflow 3 do it too; whoever finds it due is the one.
            refresh(only_if_due=True)
        living, trouble = self._registry()
        if (
            trouble == workers.NOBODY_LOOKS
            and self._snapshot is None
            and time.monotonic() < self._made_at + FIRST_LOOK_WITHIN
        ):
            # An API server or the executor of another team is at it. As long as nothing is known the executor waits.
            return
        if trouble is None:
            self._ask(living)
            trouble = self._ask_trouble
            self._compare(living)
        self.publish(tuple(map(self._candidate, living)), trouble, unplaced=self._unplaced)
        if trouble is not None or self._asked_at is None:
            return
        now = time.monotonic()
        if now >= self._tidy_due:
            self._tidy_due = now + TIDY_EVERY
            self._tidy()
        if now >= self._sweep_due:
            self._sweep_due = now + SWEEP_EVERY.total_seconds()
            self._sweep()

    # --- the registry

    def _registry(self) -> tuple[list[WorkerRow], str | None]:
        """Return the workers that live, or why nobody knows."""
        trouble = self.tables_trouble()
        if trouble is not None:
            return [], trouble
        with compat.engine().connect() as connection:
            return workers.living(connection, "celery")

    def _candidate(self, one: WorkerRow) -> Candidate:
        node = one.engine_name or one.name
        concurrency = max(1, one.concurrency or 1)
        consumed = self._consumed.get(node)
        queues = consumed if consumed is not None else one.queues or ()
        return Candidate(
            ref=one.ref,
            worker_id=one.worker_id,
            name=node,
            queues=frozenset(queue for queue in queues if not queue.startswith(OWN_QUEUE_PREFIX)),
            concurrency=concurrency,
            capacity=self.desk.rules.capacity(concurrency),
            labels=one.labels,
            state=one.state,
            availability=one.availability,
            alias=one.name,
            slowness=self._slowness.get(one.ref, 1.0),
            trouble=self._trouble_with(one),
            comes_back=node in self._answered and self._unanswered[node] < COMES_BACK_WITHIN,
        )

    def _trouble_with(self, one: WorkerRow) -> str | None:
        node = one.engine_name or one.name
        if self._unanswered[node] >= SILENT_AFTER:
            return "does not answer"
        if own_queue(one.worker_id) not in self._consumed.get(node, ()):
            return "does not consume a queue of its own yet"
        return None

    def _compare(self, living: list[WorkerRow]) -> None:
        """Look at how long the workers take for the same tasks, if that is due."""
        slow_from = self.desk.rules.slow_from
        if not slow_from or time.monotonic() < self._compare_due:
            return
        self._compare_due = time.monotonic() + COMPARE_EVERY
        ahead = {one.ref: _clock_ahead(one) for one in living}
        if len(ahead) < 2:  # noqa: PLR2004
            self._slowness = {}
            return
        with compat.engine().connect() as connection:
            now = database_now(connection)
            stays = durations.recent_stays(connection, since=now - COMPARED, most=MOST_COMPARED)
        # By the worker's own clock, as its start is.
        ran = (_ran(one, now + ahead[one.ref]) for one in stays if one.ref in ahead)
        self._slowness = slowness(ran, slow_from)

    # --- the workers' own queues

    def _ask(self, living: list[WorkerRow]) -> None:
        """Ask the workers for their queues, if that is due, and have each consume its own."""
        give = {one.engine_name: own_queue(one.worker_id) for one in living if one.engine_name and _is_usable(one)}
        hold = {
            one.engine_name: own_queue(one.worker_id)
            for one in living
            if one.engine_name and one.availability != AVAILABLE and one.engine_name not in give
        }
        for node in self._consumed.keys() - give.keys() - hold.keys():
            del self._consumed[node]
        names = {one.engine_name or one.name for one in living}
        self._answered &= names
        self._unanswered = Counter({node: number for node, number in self._unanswered.items() if node in names})
        now = time.monotonic()
        wait = 0.0 if self._asked_at is None else self._asked_at + self._pace(give, hold) - now
        # Who has just been drained is to take nothing more from its queue.
        if wait > 0 and hold.keys() <= self._held:
            return
        self._held = frozenset(hold)
        try:
            answers = self._asking.ask(partial(settle, self.app, give=give, hold=hold), seconds=ASK_SECONDS)
        except EngineTrouble as error:
            self._ask_trouble = str(error)
            return
        except Exception as error:  # noqa: BLE001
            self._not_answered(f"Celery's broker cannot be reached: {type(error).__name__}")
            return
        finally:
            self._asked_at = time.monotonic()
        for node in give.keys() | hold.keys():
            self._unanswered[node] = 0 if node in answers else self._unanswered[node] + 1
        self._consumed.update(answers)
        self._answered |= answers.keys()
        self._answered_here = self._answered_here or bool(answers)
        if answers or not (self._is_awaited(give.keys() | hold.keys()) or self._cannot_be_seen()):
            self._ask_failures, self._ask_trouble = 0, None
        else:
            self._not_answered("None of Celery's workers answers.")

    def _is_awaited(self, nodes: set[str]) -> bool:
        """Return whether one of these is to answer: with several teams those that did before.

        The others may be of another team, with a broker of its own.
        """
        is_alone = len(celery_teams(config.executor())) < 2  # noqa: PLR2004
        return bool(nodes if is_alone or not self._answered_here else nodes & self._answered)

    def _cannot_be_seen(self) -> bool:
        """Return whether workers may be there although none is known: where some answered before, there are none."""
        if not self._answered_ever:
            with compat.engine().connect() as connection:
                self._answered_ever = workers.have_answered(connection, "celery")
        # They may be about to start, as the scheduler has just been.
        return not self._answered_ever and time.monotonic() - self._made_at >= FIRST_ANSWER_WITHIN

    def _not_answered(self, why: str) -> None:
        """Give up after some questions in a row, or at once where there never was an answer."""
        self._ask_failures += 1
        if self._ask_failures >= GIVES_UP_AFTER or not self._consumed:
            self._ask_trouble = why

    def _pace(self, give: dict[str, str], hold: dict[str, str]) -> float:
        is_settled = all(queue in self._consumed.get(node, ()) for node, queue in give.items())
        is_held = not any(queue in self._consumed.get(node, ()) for node, queue in hold.items())
        return ASK_EVERY if is_settled and is_held and self._ask_trouble is None else ASK_AGAIN

    # --- what is left behind

    def _sweep(self) -> None:
        with compat.short_transaction() as connection:
            settled = database_now(connection) - SWEEP_EVERY
            swept = placements.sweep(connection, lives.running_on(connection), settled=settled)
            ended = workers.ended(connection, "celery", since=settled - REMOVED_WITHIN, until=settled - REMOVED_AFTER)
        self._unplaced = dict(swept.unplaced)
        left = [queue for queue in map(own_queue, ended) if queue not in self._removed][:MOST_REMOVED]
        if left:
            moving.remove_queues(self.app, left)
            self._removed = frozenset(map(own_queue, ended)) & (self._removed | frozenset(left))

    def _tidy(self) -> None:
        """Take back what waits where it will not run, or not soon, unless another scheduler is at it."""
        snapshot = self._snapshot
        if snapshot is None:
            return
        usable = [one for one in snapshot.candidates if _may_be_given(one)]
        if not usable and self.desk.rules.fallback == WAIT:
            # There is nobody to give it to.
            return
        with compat.engine().connect() as connection:
            queues = placements.own_queues(connection)
            loads = placements.loads(connection)
            names = workers.names(connection, {ref for refs in queues.values() for ref in refs})
            # After the queues: another scheduler may have sent something to a worker that has just begun.
            living, trouble = workers.living(connection, "celery")
        if trouble is not None:
            return
        moves = []
        for queue, refs in queues.items():
            is_gone = self._is_gone(queue, living)
            if is_gone is not None:
                came_from = next((names[ref] for ref in refs if ref in names), "a worker that is gone")
                moves.append(partial(moving.take_back, queue=queue, came_from=came_from, is_gone=is_gone))
        with self._lease(bool(moves)) as is_ours:
            # What nobody has room for, or may have, stays there and keeps nothing else from its place.
            moved = sum(_do(partial(move, self.app, desk=self.desk, snapshot=snapshot)) for move in moves if is_ours)
        if moved:
            return
        fast = [one for one in usable if not one.is_slow]
        idle = [one for one in fast if loads.get(one.ref, 0) < one.concurrency]
        busy = [one for one in usable if loads.get(one.ref, 0) > one.concurrency]
        slow = [one for one in busy if one.is_slow]
        with self._lease(bool((idle and busy) or (fast and slow))) as is_ours:
            if is_ours and fast and slow:
                # The others may have more than their share for once: there it is done sooner all the same.
                self._relieve(slow, {one.ref: one.capacity + one.concurrency for one in fast}, snapshot, loads)
            elif is_ours:
                self._relieve(busy, {one.ref: one.concurrency for one in idle}, snapshot, loads)

    def _relieve(
        self, busy: list[Candidate], room: Mapping[int, int], snapshot: Snapshot, loads: Mapping[int, int]
    ) -> None:
        """Take what waits at some workers back for others.

        :param room: how much these others may have then
        """
        free = sum(most - loads.get(ref, 0) for ref, most in room.items())
        # All but they are full, but not unknown: a retry goes back to the worker that failed it only where no other is.
        snapshot = replace(
            snapshot,
            candidates=tuple(replace(one, capacity=room.get(one.ref, 0)) for one in snapshot.candidates),
            may_share=False,
        )
        for one in busy:
            if free <= 0:
                return
            free -= _do(
                partial(
                    moving.take_back,
                    self.app,
                    own_queue(one.worker_id),
                    self.desk,
                    snapshot,
                    came_from=one.name,
                    most=min(free, loads[one.ref] - one.concurrency),
                )
            )

    @contextmanager
    def _lease(self, is_wanted: bool) -> Iterator[bool]:
        """Say whether this scheduler is the one to move messages meanwhile."""
        if not is_wanted:
            yield False
            return
        with compat.short_transaction() as connection:
            now = database_now(connection)
            lives.get_engine(connection, LEASE, now=now)
            until = now + TIDY_TAKES
            is_ours = lives.take_lease(
                connection, LEASE, now=now, until=until, at_most=until + TIDY_TAKES, only_if_due=True
            )
        try:
            yield is_ours
        finally:
            if is_ours:
                with suppress(Exception), compat.short_transaction() as connection:
                    lives.give_back_lease(connection, LEASE, until=until, due_at=now)

    def _is_gone(self, queue: str, living: list[WorkerRow]) -> bool | None:
        """Return whether the worker of an own queue is no more; ``None`` where nothing is to be taken back from it."""
        one = next((one for one in living if own_queue(one.worker_id) == queue), None)
        if one is None:
            # Its row may have been merged with another of the same worker, which goes on consuming the queue.
            return None if any(queue in queues for queues in self._consumed.values()) else True
        node = one.engine_name or one.name
        if node not in self._answered:
            # It may be of another team, with a broker of its own.
            return None
        # That it does not consume the queue is no sign: another scheduler may just have told it to. Of a worker that
        # was restarted the next look at the engine ends the row.
        is_fine = _is_usable(one) and self._unanswered[node] < SILENT_AFTER
        return None if is_fine else False


def _do(move: Callable[[], int]) -> int:
    """Return how many messages were moved; a failure is counted and told once, and stops no other."""
    try:
        return move()
    except Exception as error:
        count("placement.failed")
        log.debug("Taking tasks back failed", exc_info=True)
        warn_once("placing.moving", "Airflow Worker Insight could not take tasks back: %s", error)
        return 0


def _ran(one: Stay, now: datetime) -> Ran:
    seconds = ((one.ended_at or now) - one.started_at).total_seconds()
    return Ran(one.ref, (one.key.dag_id, one.key.task_id), seconds, has_ended=one.ended_at is not None)


def _clock_ahead(one: WorkerRow) -> timedelta:
    """Return how far a worker's clock is ahead, where that is more than the time that telling it takes."""
    found = one.clock_ahead or timedelta(0)
    return found if abs(found) >= CLOCKS_DIFFER_FROM else timedelta(0)


def _may_be_given(one: Candidate) -> bool:
    return one.trouble is None and one.state == ONLINE and one.availability == AVAILABLE


def _is_usable(one: WorkerRow) -> bool:
    return one.state == ONLINE and one.availability == AVAILABLE
