"""Common part of this package's executors: place tasks, record waiting tasks and ends.

The mixin stands between an executor and its Airflow parent. The executor delivers placed tasks to their workers; this
module chooses the worker, from what the executor's worker monitor knows.
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
from airflow_worker_insight.domain.reasons import PlacementReason
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
"""Seconds after which a snapshot of the workers is too old to place tasks by."""

BEGIN_SECONDS = 20.0
"""Maximum seconds that tasks wait for the first snapshot after a scheduler has started."""

GIVES_UP_AFTER = 3
"""Consecutive placement failures before the executor enters fallback mode."""

UNWANTED_EVERY = 30.0
"""Seconds between two checks for waiting tasks that should not run any more.

A task must have waited at least this long to be removed.
"""

WRITE_AGAIN = 10.0
"""Seconds after a failed write until the executor records again why it holds tasks."""

ENDS_AGAIN_AFTER = 5.0
"""Seconds after a failed write until ended tries are written again.

The scheduler's loop must not wait for the database each time.
"""

MAX_ENDED = 100_000
"""Maximum number of ended tries kept in memory while the database cannot be written."""


class PlacementMixin(BaseExecutor):
    """Executor mixin that places tasks; list it before Airflow's executor among the bases."""

    plainly = "runs them as Airflow's own executor does"
    """What happens to tasks in fallback mode, as a phrase for the log."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._desk: PlacementService | None = None
        self._watch: WorkerMonitor | None = None
        self._started_at = 0.0
        self._open_slots: int | None = None
        # Placement times of tries that have not ended, and of ended tries that are still to be written.
        self._placed_at: dict[TryKey, datetime] = {}
        self._ended: dict[TryKey, datetime] = {}
        self._failures = 0
        self._in_fallback = False
        # Since when workers have been unavailable; when and why the broker refused a task although they were available.
        self._unseen_since: datetime | None = None
        self._unsent: tuple[float, str] | None = None
        self._write_due = 0.0
        # Waiting tasks with the text recorded for each; those that were waiting at the last check for unwanted ones.
        self._waiting: dict[TryKey, str] = {}
        self._waited: frozenset[TryKey] = frozenset()
        self._unwanted_due = 0.0
        self._ends_due = 0.0

    # --- executor-specific parts

    def read_rules(self) -> Rules:
        """Return the placement rules of the configuration.

        :raises ValueError: when a setting is invalid
        """
        return read_rules()

    def make_watch(self, service: PlacementService) -> WorkerMonitor:
        """Return the monitor that watches the workers in a scheduler process."""
        raise NotImplementedError

    def dedicated_queue(self, worker: Candidate) -> str | None:
        """Return the worker's dedicated queue to send a task to, or ``None`` if it has none."""
        raise NotImplementedError

    def as_now(self, snapshot: Snapshot, requests: Sequence[PlacementRequest]) -> Snapshot:  # noqa: ARG002
        """Return a snapshot updated with what has changed since, for a batch of tasks."""
        return snapshot

    # --- lifecycle

    def start(self) -> None:
        """Start to monitor the workers.

        :raises AirflowConfigException: when a setting is invalid
        """
        try:
            self._desk = PlacementService(self.read_rules())
        except ValueError as error:
            raise AirflowConfigException(f"{type(self).__name__} cannot start: {error}") from None
        super().start()  # type: ignore[no-untyped-call]
        self._started_at = time.monotonic()
        # Only a scheduler sets `job_id`. A command that sends one task, and dag.test(use_executor=True), which loads
        # the scheduler as well, behave like Airflow's own executor.
        if task_runtime.in_scheduler() and self.job_id is not None:
            self._watch = self.make_watch(self._desk)
            self._watch.start()

    def end(self, *args: Any, **kwargs: Any) -> None:
        """End as the parent does; stop the monitor first and record ended tries last."""
        if self._watch is not None:
            self._watch.stop()
        super().end(*args, **kwargs)
        self._give_back()

    # --- placing

    def trigger_tasks(self, open_slots: int) -> None:
        """Offer all queued tasks to the parent, and send as many as there are open slots.

        Otherwise waiting tasks would keep others from their slots.
        """
        self._open_slots = open_slots
        try:
            super().trigger_tasks(max(open_slots, self._queued()) if open_slots > 0 else open_slots)
        finally:
            self._open_slots = None

    def _queued(self) -> int:
        return len(self.queued_tasks) + len(getattr(self, "queued_callbacks", ()))

    def place(self, requests: Sequence[PlacementRequest], slots: int) -> list[PlacementResult] | None:
        """Choose workers for tasks, record the decisions, and return the tasks to send now.

        All other tasks wait.

        :param slots: how many tasks to send at most
        :return: the tasks to send; ``None`` in fallback mode, which is logged once and counted: workers are unavailable
            and tasks are not to be held
        """
        assert self._watch is not None
        snapshot = self._watch.snapshot()
        now = time.monotonic()
        if snapshot is None and now - self._started_at < BEGIN_SECONDS:
            return []
        unavailable_reason = _unavailable_reason(snapshot, now) or self._unsent_reason(snapshot)
        if snapshot is not None and unavailable_reason is None:
            try:
                placed = self._place(requests, slots, self.as_now(snapshot, requests))
            except Exception as error:
                log.debug("Placing failed", exc_info=True)
                unavailable_reason = in_a_line(error)
                self._failures += 1
                if self._failures < GIVES_UP_AFTER:
                    # A lock timeout is no reason to ignore drains and labels: try again at the next heartbeat.
                    return []
            else:
                self._failures = 0
                self._set_unavailable(None)
                return placed
        self._set_unavailable(unavailable_reason)
        if self.holds:
            self._hold(requests, unavailable_reason or "")
            return []
        count("placement.plain", min(slots, len(requests)))
        return None

    @property
    def holds(self) -> bool:
        """Whether tasks wait while workers are unavailable, instead of entering fallback mode."""
        return self._desk is not None and self._desk.rules.when_unseen == HOLD

    def note_unsent(self, reason: str) -> None:
        """Hold tasks until the broker answers again: it has just refused one.

        :param reason: why the broker refused it
        """
        self._unsent = time.monotonic(), reason

    def _unsent_reason(self, snapshot: Snapshot | None) -> str | None:
        if self._unsent is not None and snapshot is not None and (snapshot.answered_at or 0.0) > self._unsent[0]:
            self._unsent = None
        return None if self._unsent is None else self._unsent[1]

    def _hold(self, requests: Sequence[PlacementRequest], unavailable_reason: str) -> None:
        """Keep tasks waiting, and record why as soon as the database can be written."""
        since = self._unseen_since or datetime.now(timezone.utc)
        text = f"waits: the workers cannot be seen since {since:%Y-%m-%d %H:%M:%S} UTC: {unavailable_reason}"[
            :TEXT_LENGTH
        ]
        waiting = self._waiting
        new = [request.key for request in requests if request.key not in waiting]
        if new:
            count("placement.held", len(new))
        # An empty text marks a task whose reason is still to be written.
        self._waiting = {request.key: waiting.get(request.key, "") for request in requests}
        unwritten = [key for key, recorded in self._waiting.items() if recorded != text]
        if not unwritten or time.monotonic() < self._write_due:
            return
        try:
            with session.writing(session.SCHEDULER) as connection:
                now = database_now(connection)
                placed_at = {key: self._waits_since(key, now) for key in unwritten}
                written = [
                    Placement(key, PlacementReason.WORKERS_UNREACHABLE, text, placed_at=at)
                    for key, at in placed_at.items()
                ]
                placements.write(connection, written, now=now)
        except Exception as error:  # noqa: BLE001
            self._write_due = time.monotonic() + WRITE_AGAIN
            warn_once("placing.holding", "Airflow Worker Insight could not write why it holds tasks: %s", error)
        else:
            self._waiting |= dict.fromkeys(unwritten, text)
            self._placed_at |= placed_at

    def _waits_since(self, key: TryKey, now: datetime) -> datetime:
        """Return since when a task waits; a new reason does not restart the wait."""
        return self._placed_at.get(key, now) if key in self._waiting else now

    def _set_unavailable(self, unavailable_reason: str | None) -> None:
        """Set whether tasks can be placed, and log when that changes."""
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

    def _place(self, requests: Sequence[PlacementRequest], slots: int, snapshot: Snapshot) -> list[PlacementResult]:
        assert self._desk is not None
        with session.writing(session.SCHEDULER) as connection:
            results = self._desk.decide(connection, requests, snapshot, most=slots)
            sent = [result for result in results if not result.waits]
            newly_waiting = [
                result
                for result in results
                if result.waits and self._waiting.get(result.asked.key) != result.decision.text
            ]
            now = database_now(connection)
            placed_at = {
                **{result.asked.key: now for result in sent},
                **{result.asked.key: self._waits_since(result.asked.key, now) for result in newly_waiting},
            }
            placements.write(
                connection,
                [
                    replace(result.placement(self._dedicated_queue(result)), placed_at=placed_at[result.asked.key])
                    for result in (*sent, *newly_waiting)
                ],
                now=now,
            )
        self._placed_at |= placed_at
        self._note_waiting(requests, results)
        shared = sum(result.decision.worker is None for result in sent)
        if shared:
            count("placement.shared", shared)
        return sent

    def _dedicated_queue(self, result: PlacementResult) -> str | None:
        return None if result.decision.worker is None else self.dedicated_queue(result.decision.worker)

    def _note_waiting(self, requests: Sequence[PlacementRequest], results: Sequence[PlacementResult]) -> None:
        """Remember the text recorded for each waiting task; tasks without a decision keep theirs."""
        not_decided = {request.key for request in requests} - {result.asked.key for result in results}
        self._waiting = {
            **{key: text for key, text in self._waiting.items() if key in not_decided},
            **{result.asked.key: result.decision.text for result in results if result.waits},
        }

    def note_placed(self, placed: Iterable[Placement]) -> None:
        """Track tries that another scheduler placed and whose ends this one will receive."""
        self._placed_at |= {
            placement.key: placement.placed_at for placement in placed if placement.placed_at is not None
        }

    def forget_placed(self, keys: Iterable[Any]) -> None:
        """Stop tracking tries whose ends this executor will not receive."""
        for key in keys:
            self._placed_at.pop(try_key(key), None)

    def note_fallback(self, keys: Iterable[Any]) -> None:
        """Close the waiting records of tasks sent in fallback mode."""
        for key in keys:
            self._note_end(key)

    # --- waiting tasks that should not run any more

    def _drop_unwanted(self) -> None:
        """Remove queued tasks that have waited for a while and should not run any more.

        Someone has failed, cleared or deleted them. Airflow notifies an executor only about tasks that it considers
        stuck, and each of these would go on taking one of the scheduler's slots.
        """
        now = time.monotonic()
        if now < self._unwanted_due:
            return
        self._unwanted_due = now + UNWANTED_EVERY
        queued = {try_key(key): key for key in self.queued_tasks if is_task(key)} if self._waiting else {}
        waiting = frozenset(self._waiting.keys() & queued.keys())
        # The scheduler may not have committed a task that it has just queued.
        keys, self._waited = waiting & self._waited, waiting
        if not keys:
            return
        try:
            with session.writing(session.SCHEDULER) as connection:
                wanted = placements.try_details(connection, keys)
        except Exception as error:  # noqa: BLE001
            warn_once("placing.unwanted", "Airflow Worker Insight could not read which tasks are to wait: %s", error)
            return
        for key in keys:
            if key not in wanted or wanted[key].state != QUEUED:
                self.queued_tasks.pop(queued[key], None)
                self._note_end(queued[key])

    # --- ends

    def change_state(self, key: Any, state: Any, info: Any = None, remove_running: bool = True) -> None:
        """Change the state as the parent does, and note when the task has ended."""
        super().change_state(key, state, info, remove_running=remove_running)
        if remove_running:
            self._note_end(key)

    def revoke_task(self, *, ti: Any) -> None:
        """Revoke a task as the parent does, and note its end."""
        super().revoke_task(ti=ti)
        self._note_end(ti.key)

    def sync(self) -> None:
        """Collect ended tasks as the parent does, and free their slots."""
        super().sync()
        self._drop_unwanted()
        self._give_back()

    def _note_end(self, key: Any) -> None:
        if not is_task(key):
            return
        tracked_key = try_key(key)
        self._waiting.pop(tracked_key, None)
        placed_at = self._placed_at.pop(tracked_key, None)
        if placed_at is not None and len(self._ended) < MAX_ENDED:
            self._ended[tracked_key] = placed_at

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
            # They are written together with the next ones.
            self._ends_due = time.monotonic() + ENDS_AGAIN_AFTER
            warn_once("placing.ends", "Airflow Worker Insight could not write which tasks have ended: %s", error)
        else:
            self._ended.clear()


def is_task(key: Any) -> bool:
    """Return whether an executor's key is a task's, not a callback's or a connection test's."""
    return hasattr(key, "dag_id")


def try_key(key: Any) -> TryKey:
    """Convert Airflow's key of a task to a :class:`.TryKey`."""
    return TryKey(key.dag_id, key.run_id, key.task_id, key.map_index, key.try_number)


def _unavailable_reason(snapshot: Snapshot | None, now: float) -> str | None:
    """Return why tasks cannot be placed by a snapshot, or ``None`` if they can."""
    if snapshot is None:
        return "Nothing is known of the workers."
    if now - snapshot.taken_at > OLD_AFTER:
        return "What is known of the workers is old."
    return snapshot.unavailable_reason
