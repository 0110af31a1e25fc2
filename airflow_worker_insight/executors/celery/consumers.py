"""Consumers of Celery workers: poll them, manage dedicated queues, and track who answers."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_worker_insight import config
from airflow_worker_insight.domain.executors import celery_teams
from airflow_worker_insight.domain.states import WorkerAvailability, WorkerState
from airflow_worker_insight.executors.celery.queues import dedicated_queue, sync_consumers
from airflow_worker_insight.registry.observations import SourceUnavailableError
from airflow_worker_insight.registry.timeouts import TimeLimitedCaller
from airflow_worker_insight.store import session
from airflow_worker_insight.store.workers import queries as worker_queries

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_worker_insight.domain.workers import WorkerRow


@dataclass(frozen=True, slots=True)
class ConsumerSettings:
    """Intervals in seconds, and numbers of polls."""

    poll_interval: float = 10.0
    """Time between two polls of the queues that workers consume."""
    unsettled_poll_interval: float = 4.0
    """The same while a worker does not consume the queues yet that it should."""
    poll_timeout: float = 20.0
    """How long a poll may take."""
    first_answer_timeout: float = 30.0
    """How long tasks wait for the first answer of any worker ever."""
    silent_after_missed: int = 2
    """How many polls in a row a worker must miss before it gets no new tasks."""
    gone_after_missed: int = 12
    """How many polls in a row a worker must miss before tasks no longer wait for it."""
    unavailable_after_failures: int = 3
    """How many polls in a row must fail before no task is placed any more."""


DEFAULTS = ConsumerSettings()


class ConsumerManager:
    """Manager of the consumers of one executor's workers.

    A node is the name of a worker as :attr:`.WorkerRow.display_name` has it.
    """

    def __init__(
        self,
        app: Any,
        *,
        settings: ConsumerSettings = DEFAULTS,
        sync: Callable[..., dict[str, frozenset[str]]] = sync_consumers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the app of the workers.

        :param sync: makes workers consume queues, as :func:`.sync_consumers` does
        :param clock: returns seconds of a monotonic clock
        """
        self.app = app
        self._settings = settings
        self._sync = sync
        self._clock = clock
        self.unavailable_reason: str | None = None
        """Why no task can be placed by the latest answers."""
        self.answered_at: float | None = None
        """When the latest poll began that reached the broker, in seconds of the monotonic clock."""
        self._bounded: TimeLimitedCaller[dict[str, frozenset[str]]] = TimeLimitedCaller("Celery's workers")
        self._consumed: dict[str, frozenset[str]] = {}
        self._missed: Counter[str] = Counter()
        self._answered_nodes: set[str] = set()
        self._cancelled_nodes: frozenset[str] = frozenset()
        self._polled_at: float | None = None
        self._failures = 0
        self._created_at = clock()
        # Whether any worker answered this executor, and whether any ever answered at all.
        self._answered_here = self._answered_ever = False

    # --- latest answers

    def consumed(self, node: str) -> frozenset[str] | None:
        """Return the queues that a worker consumes by its last answer, if any."""
        return self._consumed.get(node)

    def is_consumed(self, queue: str) -> bool:
        """Return whether any worker consumes a queue by its last answer."""
        return any(queue in queues for queues in self._consumed.values())

    def has_answered(self, node: str) -> bool:
        """Return whether a worker instance has answered this executor.

        One that has not may be another team's.
        """
        return node in self._answered_nodes

    def is_silent(self, node: str) -> bool:
        """Return whether a worker has missed several polls in a row."""
        return self._missed[node] >= self._settings.silent_after_missed

    def may_return(self, node: str) -> bool:
        """Return whether tasks should wait for a worker that does not answer now, but did before."""
        return node in self._answered_nodes and self._missed[node] < self._settings.gone_after_missed

    # --- polling

    def poll(self, rows: list[WorkerRow]) -> None:
        """Poll workers if due. Available workers consume their dedicated queue; drained ones stop."""
        to_consume = {
            row.engine_name: dedicated_queue(row.worker_id) for row in rows if row.engine_name and is_usable(row)
        }
        to_cancel = {
            row.engine_name: dedicated_queue(row.worker_id)
            for row in rows
            if row.engine_name
            and row.availability != WorkerAvailability.AVAILABLE
            and row.engine_name not in to_consume
        }
        self._retain({row.display_name for row in rows}, polled=to_consume.keys() | to_cancel.keys())
        now = self._clock()
        delay = 0.0 if self._polled_at is None else self._polled_at + self._poll_interval(to_consume, to_cancel) - now
        # Poll at once for workers that were just drained: they must take nothing more from their queues.
        if delay > 0 and to_cancel.keys() <= self._cancelled_nodes:
            return
        self._cancelled_nodes = frozenset(to_cancel)
        try:
            sync = partial(self._sync, self.app, add=to_consume, cancel=to_cancel)
            answers = self._bounded.call(sync, seconds=self._settings.poll_timeout)
        except SourceUnavailableError as error:
            self.unavailable_reason = str(error)
            return
        except Exception as error:  # noqa: BLE001 (kombu raises whatever its transport raises)
            self._note_failure(f"Celery's broker cannot be reached: {type(error).__name__}")
            return
        finally:
            self._polled_at = self._clock()
        self.answered_at = now
        for node in to_consume.keys() | to_cancel.keys():
            self._missed[node] = 0 if node in answers else self._missed[node] + 1
        self._consumed.update(answers)
        self._answered_nodes |= answers.keys()
        self._answered_here = self._answered_here or bool(answers)
        if answers or not (
            self._is_answer_expected(to_consume.keys() | to_cancel.keys()) or self._may_have_unknown_workers()
        ):
            self._failures, self.unavailable_reason = 0, None
        else:
            self._note_failure("No Celery worker answers.")

    def _retain(self, live_nodes: set[str], *, polled: set[str]) -> None:
        self._consumed = {node: queues for node, queues in self._consumed.items() if node in polled}
        self._answered_nodes &= live_nodes
        self._missed = Counter({node: count for node, count in self._missed.items() if node in live_nodes})

    def _is_answer_expected(self, nodes: set[str]) -> bool:
        """Return whether any of these nodes should answer.

        With several teams only nodes that answered before count: others may be another team's, with another broker.
        """
        is_alone = len(celery_teams(config.executor())) <= 1
        return bool(nodes if is_alone or not self._answered_here else nodes & self._answered_nodes)

    def _may_have_unknown_workers(self) -> bool:
        """Return whether workers may exist although none is known.

        Once any worker has answered, no known worker means that none exists.
        """
        if not self._answered_ever:
            with session.reading(session.BACKGROUND) as connection:
                self._answered_ever = worker_queries.has_any_heartbeat(connection, "celery")
        # Workers may be about to start together with the scheduler.
        return not self._answered_ever and self._clock() - self._created_at >= self._settings.first_answer_timeout

    def _note_failure(self, reason: str) -> None:
        """Count a failed poll; give up after some in a row, or at once without any answer so far."""
        self._failures += 1
        if self._failures >= self._settings.unavailable_after_failures or not self._consumed:
            self.unavailable_reason = reason

    def _poll_interval(self, to_consume: dict[str, str], to_cancel: dict[str, str]) -> float:
        is_settled = (
            self.unavailable_reason is None
            and all(queue in self._consumed.get(node, ()) for node, queue in to_consume.items())
            and not any(queue in self._consumed.get(node, ()) for node, queue in to_cancel.items())
        )
        return self._settings.poll_interval if is_settled else self._settings.unsettled_poll_interval


def is_usable(row: WorkerRow) -> bool:
    """Return whether a worker may get tasks by its state and by what operators have decided."""
    return row.state == WorkerState.ONLINE and row.availability == WorkerAvailability.AVAILABLE
