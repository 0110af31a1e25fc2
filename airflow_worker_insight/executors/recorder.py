"""Records of one executor's placements: decisions, reasons why tasks wait, and ends.

The scheduler's loop must not wait for a database that cannot be written. What could not be written is kept in memory
and written later.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from airflow_worker_insight.capture.counters import count, warn_once
from airflow_worker_insight.domain.reasons import PlacementReason
from airflow_worker_insight.domain.states import QUEUED
from airflow_worker_insight.executors.keys import is_task, try_key
from airflow_worker_insight.store import placements, session
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.placements import Placement

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.keys import TryKey
    from airflow_worker_insight.executors.placement.service import PlacementRequest, PlacementResult


@dataclass(frozen=True, slots=True)
class RecorderSettings:
    """Intervals in seconds, and limits."""

    unwanted_check_interval: float = 30.0
    """Time between two checks for waiting tasks that should not run any more, and minimum wait before the first."""
    reason_retry_delay: float = 10.0
    """Time after a failed write until the executor records again why it holds tasks."""
    ends_retry_delay: float = 5.0
    """Time after a failed write until ended tries are written again."""
    max_ended: int = 100_000
    """How many ended tries to keep in memory while the database cannot be written."""


DEFAULTS = RecorderSettings()


class PlacementRecorder:
    """Recorder of one executor's placements."""

    def __init__(self, *, settings: RecorderSettings = DEFAULTS, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        # Placement times of tries that have not ended, and of ended tries that are still to be written.
        self._placed_at: dict[TryKey, datetime] = {}
        self._ended: dict[TryKey, datetime] = {}
        # Waiting tasks with the text recorded for each; those that were waiting at the last check for unwanted ones.
        self._waiting: dict[TryKey, str] = {}
        self._waited_before: frozenset[TryKey] = frozenset()
        self._reason_retry_at = self._ends_retry_at = self._unwanted_check_at = 0.0

    # --- decisions

    def write_decisions(
        self,
        connection: Connection,
        results: Sequence[PlacementResult],
        queue_of: Callable[[PlacementResult], str | None],
    ) -> dict[TryKey, datetime]:
        """Write decisions, except of tasks that go on waiting for the same reason.

        Call :meth:`note_decisions` once they are committed.

        :param queue_of: returns the dedicated queue that a task is sent to, if any
        :return: the placement times that were written
        """
        now = database_now(connection)
        new = [
            result
            for result in results
            if not result.waits or self._waiting.get(result.request.key) != result.decision.text
        ]
        placed_at = {
            result.request.key: self._waiting_since(result.request.key, now) if result.waits else now for result in new
        }
        written = [
            replace(result.placement(queue_of(result)), placed_at=placed_at[result.request.key]) for result in new
        ]
        placements.write(connection, written, now=now)
        return placed_at

    def note_decisions(
        self,
        requests: Sequence[PlacementRequest],
        results: Sequence[PlacementResult],
        placed_at: Mapping[TryKey, datetime],
    ) -> None:
        """Remember decisions that were written; tasks without a decision go on waiting as before."""
        self._placed_at |= placed_at
        not_decided = {request.key for request in requests} - {result.request.key for result in results}
        self._waiting = {
            **{key: text for key, text in self._waiting.items() if key in not_decided},
            **{result.request.key: result.decision.text for result in results if result.waits},
        }

    def hold(self, requests: Sequence[PlacementRequest], text: str) -> None:
        """Note that these tasks wait for workers, and record why as soon as the database can be written."""
        waiting = self._waiting
        new = [request.key for request in requests if request.key not in waiting]
        if new:
            count("placement.held", len(new))
        # An empty text marks a task whose reason is still to be written.
        self._waiting = {request.key: waiting.get(request.key, "") for request in requests}
        unwritten = [key for key, recorded in self._waiting.items() if recorded != text]
        if not unwritten or self._clock() < self._reason_retry_at:
            return
        try:
            with session.writing(session.SCHEDULER) as connection:
                now = database_now(connection)
                placed_at = {key: self._waiting_since(key, now) for key in unwritten}
                written = [
                    Placement(key, PlacementReason.WORKERS_UNREACHABLE, text, placed_at=at)
                    for key, at in placed_at.items()
                ]
                placements.write(connection, written, now=now)
        except Exception as error:  # noqa: BLE001 (the scheduler's loop must go on)
            self._reason_retry_at = self._clock() + self._settings.reason_retry_delay
            warn_once("placing.holding", "Airflow Worker Insight could not record why tasks wait: %s", error)
        else:
            self._waiting |= dict.fromkeys(unwritten, text)
            self._placed_at |= placed_at

    def _waiting_since(self, key: TryKey, now: datetime) -> datetime:
        """Return since when a task waits; a new reason does not restart the wait."""
        return self._placed_at.get(key, now) if key in self._waiting else now

    def note_adopted(self, placed: Iterable[Placement]) -> None:
        """Track tries that another scheduler placed and whose ends this one will receive."""
        self._placed_at |= {
            placement.key: placement.placed_at for placement in placed if placement.placed_at is not None
        }

    def forget(self, keys: Iterable[Any]) -> None:
        """Stop tracking tries whose ends this executor will not receive."""
        for key in keys:
            self._placed_at.pop(try_key(key), None)

    # --- waiting tasks that should not run any more

    def find_unwanted(self, queued: Collection[Any]) -> list[Any]:
        """Return the keys of queued tasks that have waited for a while and should not run any more, if due.

        Someone has failed, cleared or deleted them. Airflow notifies an executor only about tasks that it considers
        stuck, and each of these would go on taking one of the scheduler's slots.
        """
        now = self._clock()
        if now < self._unwanted_check_at:
            return []
        self._unwanted_check_at = now + self._settings.unwanted_check_interval
        by_key = {try_key(key): key for key in queued if is_task(key)} if self._waiting else {}
        waiting = frozenset(self._waiting.keys() & by_key.keys())
        # The scheduler may not have committed a task that it has just queued.
        keys, self._waited_before = waiting & self._waited_before, waiting
        if not keys:
            return []
        try:
            with session.writing(session.SCHEDULER) as connection:
                wanted = placements.try_details(connection, keys)
        except Exception as error:  # noqa: BLE001 (the scheduler's loop must go on)
            warn_once("placing.unwanted", "Airflow Worker Insight could not check tasks that wait: %s", error)
            return []
        return [by_key[key] for key in keys if key not in wanted or wanted[key].state != QUEUED]

    # --- ends

    def note_end(self, key: Any) -> None:
        """Note that a task has ended, or waits no more; :meth:`write_ends` frees its slot."""
        if not is_task(key):
            return
        tracked_key = try_key(key)
        self._waiting.pop(tracked_key, None)
        placed_at = self._placed_at.pop(tracked_key, None)
        if placed_at is not None and len(self._ended) < self._settings.max_ended:
            self._ended[tracked_key] = placed_at

    def write_ends(self) -> None:
        """Close the placements of ended tries; those that cannot be written are written with the next ones."""
        if not self._ended or self._clock() < self._ends_retry_at:
            return
        try:
            with session.writing(session.SCHEDULER) as connection:
                placements.close(connection, self._ended)
        except Exception as error:  # noqa: BLE001 (the scheduler's loop must go on)
            self._ends_retry_at = self._clock() + self._settings.ends_retry_delay
            warn_once("placing.ends", "Airflow Worker Insight could not record which tasks have ended: %s", error)
        else:
            self._ended.clear()
