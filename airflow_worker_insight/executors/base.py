"""What all executors of this package have in common: they place a batch of tasks, and note what waits and what ends.

It stands between an executor and its parent, which is one of Airflow's own. How a placed task reaches its worker is the
executor's business; where it goes is decided here, from what its watch knows of the workers.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow.exceptions import AirflowConfigException

from airflow_worker_insight.capture.counters import count, warn_once
from airflow_worker_insight.compat import task_runtime
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.domain.limits import TEXT_LENGTH
from airflow_worker_insight.domain.reasons import WORKERS_UNSEEN
from airflow_worker_insight.domain.states import QUEUED
from airflow_worker_insight.executors.monitor import in_a_line
from airflow_worker_insight.executors.placement.rules import HOLD, read_rules
from airflow_worker_insight.executors.placement.service import PlacementRequest, PlacementService
from airflow_worker_insight.store import placements, session
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.placements import Placement

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from airflow.executors.base_executor import BaseExecutor

    from airflow_worker_insight.executors.monitor import WorkerMonitor
    from airflow_worker_insight.executors.placement.policy import Candidate
    from airflow_worker_insight.executors.placement.rules import Rules
    from airflow_worker_insight.executors.placement.service import PlacementResult, Snapshot
else:
    BaseExecutor = object

log = logging.getLogger(__name__)

OLD_AFTER = 60.0
"""Seconds after which what is known of the workers counts for nothing."""

BEGIN_SECONDS = 20.0
"""How long tasks wait at most for the first that is known of the workers, when a scheduler has just started."""

GIVES_UP_AFTER = 3
"""Times in a row that placing fails before tasks are sent as Airflow's own executor does."""

UNWANTED_EVERY = 30.0
"""Seconds between two looks for tasks that wait and that nobody wants any more, and how long they wait at least."""

WRITE_AGAIN = 10.0
"""Seconds after a failure until the executor tries again to write why it holds tasks."""

ENDS_AGAIN_AFTER = 5.0
"""Seconds after which ends are written again that could not be: the scheduler's loop must not wait each time."""

MAX_ENDED = 100_000
"""Ends that are remembered while the database cannot be written."""


class PlacementMixin(BaseExecutor):
    """The front of an executor that places tasks: to be put before Airflow's own among the bases of a class."""

    plainly = "runs them as Airflow's own executor does"
    """What becomes of tasks while the workers cannot be seen, in words for the log."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._desk: PlacementService | None = None
        self._watch: WorkerMonitor | None = None
        self._started_at = 0.0
        self._open_slots: int | None = None
        # When each try was placed that has not ended, and of those whose end is still to be written.
        self._placed_at: dict[TryKey, datetime] = {}
        self._ended: dict[TryKey, datetime] = {}
        self._failures = 0
        self._in_fallback = False
        # Since when the workers cannot be seen, and why and when a task could not be sent although they could.
        self._unseen_since: datetime | None = None
        self._unsent: tuple[float, str] | None = None
        self._write_due = 0.0
        # The tasks that wait, what was written of each, and which of them waited at the last look at them.
        self._waiting: dict[TryKey, str] = {}
        self._waited: frozenset[TryKey] = frozenset()
        self._unwanted_due = 0.0
        self._ends_due = 0.0

    # --- what differs from one executor to another

    def read_rules(self) -> Rules:
        """Return the rules of the configuration.

        :raises ValueError: when a setting makes no sense
        """
        return read_rules()

    def make_watch(self, desk: PlacementService) -> WorkerMonitor:
        """Return what watches the workers in a scheduler."""
        raise NotImplementedError

    def own_queue(self, worker: Candidate) -> str | None:
        """Return the worker's own queue that a task is sent to, where it has one."""
        raise NotImplementedError

    def as_now(self, snapshot: Snapshot, asked: Sequence[PlacementRequest]) -> Snapshot:  # noqa: ARG002
        """Return what is known of the workers with what has changed since, for a batch of tasks."""
        return snapshot

    # --- its life

    def start(self) -> None:
        """Begin to watch the workers.

        :raises AirflowConfigException: when a setting makes no sense
        """
        try:
            self._desk = PlacementService(self.read_rules())
        except ValueError as error:
            raise AirflowConfigException(f"{type(self).__name__} cannot start: {error}") from None
        super().start()  # type: ignore[no-untyped-call]
        self._started_at = time.monotonic()
        # A command that sends one task and ends does as Airflow's own executor. So does dag.test(use_executor=True),
        # which loads the scheduler as well: only a scheduler gives its executors its job.
        if task_runtime.in_scheduler() and self.job_id is not None:
            self._watch = self.make_watch(self._desk)
            self._watch.start()

    def end(self, *args: Any, **kwargs: Any) -> None:
        """End as the parent does."""
        if self._watch is not None:
            self._watch.stop()
        super().end(*args, **kwargs)
        self._give_back()

    # --- placing

    def trigger_tasks(self, open_slots: int) -> None:
        """Hand over all queued tasks, and send as many as there are slots: those that wait keep no other from its."""
        self._open_slots = open_slots
        try:
            super().trigger_tasks(max(open_slots, self._queued()) if open_slots > 0 else open_slots)
        finally:
            self._open_slots = None

    def _queued(self) -> int:
        return len(self.queued_tasks) + len(getattr(self, "queued_callbacks", ()))

    def place(self, asked: Sequence[PlacementRequest], slots: int) -> list[PlacementResult] | None:
        """Decide which of these tasks go where now, and write it: those that are not returned wait.

        :param slots: how many may go at most
        :return: ``None`` where the workers cannot be seen and tasks are not to be held, which is said once and counted
        """
        assert self._watch is not None
        snapshot = self._watch.snapshot()
        now = time.monotonic()
        if snapshot is None and now - self._started_at < BEGIN_SECONDS:
            return []
        unavailable_reason = _unavailable_reason(snapshot, now) or self._unsent_reason(snapshot)
        if snapshot is not None and unavailable_reason is None:
            try:
                placed = self._place(asked, slots, self.as_now(snapshot, asked))
            except Exception as error:
                log.debug("Placing failed", exc_info=True)
                unavailable_reason = in_a_line(error)
                self._failures += 1
                if self._failures < GIVES_UP_AFTER:
                    # A lock that was not free in time is no reason to pass by what was decided of the workers.
                    return []
            else:
                self._failures = 0
                self._say(None)
                return placed
        self._say(unavailable_reason)
        if self.holds:
            self._hold(asked, unavailable_reason or "")
            return []
        count("placement.plain", min(slots, len(asked)))
        return None

    @property
    def holds(self) -> bool:
        """Whether tasks wait while the workers cannot be seen, instead of being sent as Airflow's own executor does."""
        return self._desk is not None and self._desk.rules.when_unseen == HOLD

    def note_unsent(self, why: str) -> None:
        """Hold tasks until the broker answers again: it has just refused one."""
        self._unsent = time.monotonic(), why

    def _unsent_reason(self, snapshot: Snapshot | None) -> str | None:
        if self._unsent is not None and snapshot is not None and (snapshot.answered_at or 0.0) > self._unsent[0]:
            self._unsent = None
        return None if self._unsent is None else self._unsent[1]

    def _hold(self, asked: Sequence[PlacementRequest], unavailable_reason: str) -> None:
        """Let tasks wait, and write why as soon as the database takes it."""
        since = self._unseen_since or datetime.now(timezone.utc)
        text = f"waits: the workers cannot be seen since {since:%Y-%m-%d %H:%M:%S} UTC: {unavailable_reason}"[
            :TEXT_LENGTH
        ]
        known = self._waiting
        new = [one.key for one in asked if one.key not in known]
        if new:
            count("placement.held", len(new))
        # The blank text differs from what is to be written.
        self._waiting = {one.key: known.get(one.key, "") for one in asked}
        unwritten = [key for key, told in self._waiting.items() if told != text]
        if not unwritten or time.monotonic() < self._write_due:
            return
        try:
            with session.writing(session.SCHEDULER) as connection:
                now = database_now(connection)
                placed_at = {key: self._waits_since(key, now) for key in unwritten}
                written = [Placement(key, WORKERS_UNSEEN, text, placed_at=at) for key, at in placed_at.items()]
                placements.write(connection, written, now=now)
        except Exception as error:  # noqa: BLE001
            self._write_due = time.monotonic() + WRITE_AGAIN
            warn_once("placing.holding", "Airflow Worker Insight could not write why it holds tasks: %s", error)
        else:
            self._waiting |= dict.fromkeys(unwritten, text)
            self._placed_at |= placed_at

    def _waits_since(self, key: TryKey, now: datetime) -> datetime:
        """Return since when a task waits: another reason does not begin the wait anew."""
        return self._placed_at.get(key, now) if key in self._waiting else now

    def _say(self, unavailable_reason: str | None) -> None:
        """Say that tasks are not placed any more, or again, when that changes."""
        if unavailable_reason is None:
            self._unseen_since = None
        elif self._unseen_since is None:
            self._unseen_since = datetime.now(timezone.utc)
        if unavailable_reason is not None and not self._in_fallback:
            does = "holds them until it sees the workers again" if self.holds else self.plainly
            log.warning("Airflow Worker Insight cannot place tasks and %s: %s", does, unavailable_reason)
        elif unavailable_reason is None and self._in_fallback:
            log.info("Airflow Worker Insight places tasks again")
        self._in_fallback = unavailable_reason is not None

    def _place(self, asked: Sequence[PlacementRequest], slots: int, snapshot: Snapshot) -> list[PlacementResult]:
        assert self._desk is not None
        with session.writing(session.SCHEDULER) as connection:
            decided = self._desk.decide(connection, asked, snapshot, most=slots)
            sent = [one for one in decided if not one.waits]
            told = [one for one in decided if one.waits and self._waiting.get(one.asked.key) != one.decision.text]
            now = database_now(connection)
            placed_at = {
                **{one.asked.key: now for one in sent},
                **{one.asked.key: self._waits_since(one.asked.key, now) for one in told},
            }
            placements.write(
                connection,
                [
                    replace(one.placement(self._own_queue(one)), placed_at=placed_at[one.asked.key])
                    for one in (*sent, *told)
                ],
                now=now,
            )
        self._placed_at |= placed_at
        self._note_waiting(asked, decided)
        shared = sum(one.decision.worker is None for one in sent)
        if shared:
            count("placement.shared", shared)
        return sent

    def _own_queue(self, one: PlacementResult) -> str | None:
        return None if one.decision.worker is None else self.own_queue(one.decision.worker)

    def _note_waiting(self, asked: Sequence[PlacementRequest], decided: Sequence[PlacementResult]) -> None:
        """Remember of which tasks it is written that they wait; those behind the last slot are as they were."""
        still = {one.key for one in asked} - {one.asked.key for one in decided}
        self._waiting = {
            **{key: text for key, text in self._waiting.items() if key in still},
            **{one.asked.key: one.decision.text for one in decided if one.waits},
        }

    def note_placed(self, placed: Iterable[Placement]) -> None:
        """Note what another scheduler has placed whose ends this one will hear of."""
        self._placed_at |= {one.key: one.placed_at for one in placed if one.placed_at is not None}

    def forget_placed(self, keys: Iterable[Any]) -> None:
        """Forget when these were placed: this executor will not hear of their ends."""
        for key in keys:
            self._placed_at.pop(try_key(key), None)

    def note_fallback(self, keys: Iterable[Any]) -> None:
        """Note that these tasks wait no more although nobody placed them: what was written of them says they do."""
        for key in keys:
            self._note_end(key)

    # --- tasks that wait for nothing

    def _drop_unwanted(self) -> None:
        """Take off the queued tasks what has waited for a while and is not to run any more.

        Somebody has failed, cleared or deleted it. Airflow tells an executor only of what it takes for stuck, and each
        would go on taking one of the scheduler's slots.
        """
        now = time.monotonic()
        if now < self._unwanted_due:
            return
        self._unwanted_due = now + UNWANTED_EVERY
        queued = {try_key(key): key for key in self.queued_tasks if is_task(key)} if self._waiting else {}
        waiting = frozenset(self._waiting.keys() & queued.keys())
        # What has just been queued may not be committed yet.
        keys, self._waited = waiting & self._waited, waiting
        if not keys:
            return
        try:
            with session.writing(session.SCHEDULER) as connection:
                wanted = placements.wanted(connection, keys)
        except Exception as error:  # noqa: BLE001
            warn_once("placing.unwanted", "Airflow Worker Insight could not read which tasks are to wait: %s", error)
            return
        for key in keys:
            if key not in wanted or wanted[key].state != QUEUED:
                self.queued_tasks.pop(queued[key], None)
                self._note_end(queued[key])

    # --- ends

    def change_state(self, key: Any, state: Any, info: Any = None, remove_running: bool = True) -> None:
        """Note that a task has ended, and do as the parent does."""
        super().change_state(key, state, info, remove_running=remove_running)
        if remove_running:
            self._note_end(key)

    def revoke_task(self, *, ti: Any) -> None:
        """Revoke a task as the parent does."""
        super().revoke_task(ti=ti)
        self._note_end(ti.key)

    def sync(self) -> None:
        """Learn what has ended as the parent does, and give back its places."""
        super().sync()
        self._drop_unwanted()
        self._give_back()

    def _note_end(self, key: Any) -> None:
        if not is_task(key):
            return
        ours = try_key(key)
        self._waiting.pop(ours, None)
        placed_at = self._placed_at.pop(ours, None)
        if placed_at is not None and len(self._ended) < MAX_ENDED:
            self._ended[ours] = placed_at

    def _give_back(self) -> None:
        if not self._ended or self._watch is None:
            self._ended.clear()
            return
        if time.monotonic() < self._ends_due:
            return
        try:
            with session.writing(session.SCHEDULER) as connection:
                placements.close(connection, self._ended)
        except Exception as error:  # noqa: BLE001
            # They are given back with the next ones.
            self._ends_due = time.monotonic() + ENDS_AGAIN_AFTER
            warn_once("placing.ends", "Airflow Worker Insight could not write which tasks have ended: %s", error)
        else:
            self._ended.clear()


def is_task(key: Any) -> bool:
    """Return whether the key of what an executor has is a task's, and not a callback's or a connection test's."""
    return hasattr(key, "dag_id")


def try_key(key: Any) -> TryKey:
    """Return Airflow's key of a task as ours."""
    return TryKey(key.dag_id, key.run_id, key.task_id, key.map_index, key.try_number)


def _unavailable_reason(snapshot: Snapshot | None, now: float) -> str | None:
    """Return why nothing can be placed by what is known."""
    if snapshot is None:
        return "Nothing is known of the workers."
    if now - snapshot.taken_at > OLD_AFTER:
        return "What is known of the workers is old."
    return snapshot.unavailable_reason
