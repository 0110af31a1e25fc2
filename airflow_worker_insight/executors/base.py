"""Common part of this package's executors: choose a worker for each task.

The mixin stands between an executor and its Airflow parent. It chooses the worker, from what the executor's worker
monitor knows; the executor delivers placed tasks to their workers.
"""

from __future__ import annotations

import logging
import time
from abc import ABCMeta, abstractmethod
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow.exceptions import AirflowConfigException

from airflow_worker_insight.capture.counters import count
from airflow_worker_insight.compat import task_runtime
from airflow_worker_insight.domain.limits import TEXT_LENGTH
from airflow_worker_insight.executors.monitor import format_error
from airflow_worker_insight.executors.placement.rules import HOLD, read_rules
from airflow_worker_insight.executors.placement.service import PlacementRequest, PlacementService
from airflow_worker_insight.executors.recorder import PlacementRecorder
from airflow_worker_insight.store import session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from airflow.executors.base_executor import BaseExecutor

    from airflow_worker_insight.executors.monitor import WorkerMonitor
    from airflow_worker_insight.executors.placement.policy import Candidate
    from airflow_worker_insight.executors.placement.rules import Rules
    from airflow_worker_insight.executors.placement.service import PlacementResult, Snapshot
else:
    BaseExecutor = object

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PlacementSettings:
    """Limits in seconds, and numbers of failures."""

    snapshot_max_age: float = 60.0
    """Age from which a snapshot of the workers is too old to place tasks by."""
    first_snapshot_timeout: float = 20.0
    """How long tasks wait for the first snapshot after a scheduler has started."""
    fallback_after_failures: int = 3
    """How many placements in a row must fail before the executor enters fallback mode."""


DEFAULTS = PlacementSettings()


class PlacementMixin(BaseExecutor, metaclass=ABCMeta):
    """Executor mixin that places tasks; list it before Airflow's executor among the bases."""

    fallback_description = "runs them as Airflow's own executor does"
    """What happens to tasks in fallback mode, as a phrase for the log."""

    def __init__(
        self,
        *args: Any,
        settings: PlacementSettings = DEFAULTS,
        recorder: PlacementRecorder | None = None,
        clock: Callable[[], float] = time.monotonic,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._settings = settings
        self._recorder = PlacementRecorder() if recorder is None else recorder
        self._clock = clock
        self._service: PlacementService | None = None
        self._monitor: WorkerMonitor | None = None
        self._started_at = 0.0
        self._open_slots: int | None = None
        self._failures = 0
        self._in_fallback = False
        # Since when workers have been unavailable; when and why the broker refused a task although they were available.
        self._unavailable_since: datetime | None = None
        self._refusal: tuple[float, str] | None = None

    # --- executor-specific parts

    def read_rules(self) -> Rules:
        """Return the placement rules of the configuration.

        :raises ValueError: when a setting is invalid
        """
        return read_rules()

    @abstractmethod
    def make_monitor(self, service: PlacementService) -> WorkerMonitor:
        """Return the monitor of the workers, for a scheduler process."""

    @abstractmethod
    def dedicated_queue(self, worker: Candidate) -> str | None:
        """Return the worker's dedicated queue to send a task to, or ``None`` if it has none."""

    def update_snapshot(self, snapshot: Snapshot, _requests: Sequence[PlacementRequest]) -> Snapshot:
        """Return a snapshot with what the executor knows better, for a batch of tasks."""
        return snapshot

    # --- lifecycle

    def start(self) -> None:
        """Start to monitor the workers.

        :raises AirflowConfigException: when a setting is invalid
        """
        try:
            self._service = PlacementService(self.read_rules())
        except ValueError as error:
            raise AirflowConfigException(f"{type(self).__name__} cannot start: {error}") from None
        super().start()  # type: ignore[no-untyped-call]
        self._started_at = self._clock()
        # Only a scheduler sets `job_id`. A command that sends one task, and dag.test(use_executor=True), which loads
        # the scheduler as well, behave like Airflow's own executor.
        if task_runtime.in_scheduler() and self.job_id is not None:
            self._monitor = self.make_monitor(self._service)
            self._monitor.start()

    def end(self, *args: Any, **kwargs: Any) -> None:
        """End as the parent does; stop the monitor first and record ended tries last."""
        if self._monitor is not None:
            self._monitor.stop()
        super().end(*args, **kwargs)
        self._recorder.write_ends()

    def sync(self) -> None:
        """Collect ended tasks as the parent does, and free their slots."""
        super().sync()
        for key in self._recorder.find_unwanted(self.queued_tasks):
            self.queued_tasks.pop(key, None)
            self._recorder.note_end(key)
        self._recorder.write_ends()

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
        assert self._monitor is not None
        snapshot = self._monitor.snapshot()
        now = self._clock()
        if snapshot is None and now - self._started_at < self._settings.first_snapshot_timeout:
            return []
        unavailable_reason = self._snapshot_problem(snapshot, now) or self._refusal_reason(snapshot)
        if snapshot is not None and unavailable_reason is None:
            try:
                placed = self._place(requests, slots, self.update_snapshot(snapshot, requests))
            except Exception as error:
                log.debug("Placing failed", exc_info=True)
                unavailable_reason = format_error(error)
                self._failures += 1
                if self._failures < self._settings.fallback_after_failures:
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

    def _place(self, requests: Sequence[PlacementRequest], slots: int, snapshot: Snapshot) -> list[PlacementResult]:
        assert self._service is not None
        with session.writing(session.SCHEDULER) as connection:
            results = self._service.decide(connection, requests, snapshot, limit=slots)
            placed_at = self._recorder.write_decisions(connection, results, self._dedicated_queue)
        self._recorder.note_decisions(requests, results, placed_at)
        sent = [result for result in results if not result.waits]
        shared = sum(result.decision.worker is None for result in sent)
        if shared:
            count("placement.shared", shared)
        return sent

    def _dedicated_queue(self, result: PlacementResult) -> str | None:
        return None if result.decision.worker is None else self.dedicated_queue(result.decision.worker)

    # --- while workers are unavailable

    @property
    def holds(self) -> bool:
        """Whether tasks wait while workers are unavailable, instead of being sent in fallback mode."""
        return self._service is not None and self._service.rules.when_workers_unseen == HOLD

    def note_broker_refusal(self, reason: str) -> None:
        """Hold tasks until the broker answers again: it has just refused one.

        :param reason: why the broker refused it
        """
        self._refusal = self._clock(), reason

    def note_fallback(self, keys: Iterable[Any]) -> None:
        """Close the waiting records of tasks sent in fallback mode."""
        for key in keys:
            self._recorder.note_end(key)

    def _snapshot_problem(self, snapshot: Snapshot | None, now: float) -> str | None:
        """Return why tasks cannot be placed by a snapshot, or ``None`` if they can."""
        if snapshot is None:
            return "Workers have not been checked yet."
        if now - snapshot.taken_at > self._settings.snapshot_max_age:
            return "Worker states are stale."
        return snapshot.unavailable_reason

    def _refusal_reason(self, snapshot: Snapshot | None) -> str | None:
        """Return why the broker refused a task, or ``None`` if it has answered since."""
        if self._refusal is not None and snapshot is not None and (snapshot.answered_at or 0.0) > self._refusal[0]:
            self._refusal = None
        return None if self._refusal is None else self._refusal[1]

    def _hold(self, requests: Sequence[PlacementRequest], unavailable_reason: str) -> None:
        since = self._unavailable_since or datetime.now(timezone.utc)
        text = f"waits: workers cannot be reached since {since:%Y-%m-%d %H:%M:%S} UTC: {unavailable_reason}"
        self._recorder.hold(requests, text[:TEXT_LENGTH])

    def _set_unavailable(self, unavailable_reason: str | None) -> None:
        """Set whether tasks can be placed, and log when that changes."""
        if unavailable_reason is None:
            self._unavailable_since = None
        elif self._unavailable_since is None:
            self._unavailable_since = datetime.now(timezone.utc)
        if unavailable_reason is not None and not self._in_fallback:
            does = "holds them until workers can be reached again" if self.holds else self.fallback_description
            log.warning("Airflow Worker Insight cannot place tasks and %s: %s", does, unavailable_reason)
        elif unavailable_reason is None and self._in_fallback:
            log.info("Airflow Worker Insight places tasks again")
        self._in_fallback = unavailable_reason is not None

    # --- ends

    def change_state(self, key: Any, state: Any, info: Any = None, remove_running: bool = True) -> None:
        """Change the state as the parent does, and note when the task has ended."""
        super().change_state(key, state, info, remove_running=remove_running)
        if remove_running:
            self._recorder.note_end(key)

    def revoke_task(self, *, ti: Any) -> None:
        """Revoke a task as the parent does, and note its end."""
        super().revoke_task(ti=ti)
        self._recorder.note_end(ti.key)
