"""Consumers of Celery workers: poll them, manage dedicated queues, and track who answers."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_worker_insight import config
from airflow_worker_insight.domain.executors import celery_teams
from airflow_worker_insight.domain.states import WorkerAvailability, WorkerState
from airflow_worker_insight.executors.celery.queues import dedicated_queue, sync_consumers
from airflow_worker_insight.registry.observations import SourceUnavailableError
from airflow_worker_insight.registry.timeouts import Bounded
from airflow_worker_insight.store import session
from airflow_worker_insight.store.workers import queries as worker_queries

if TYPE_CHECKING:
    from airflow_worker_insight.domain.workers import WorkerRow

ASK_EVERY = 10.0
"""Seconds between two polls of the queues that workers consume."""

ASK_AGAIN = 4.0
"""Seconds until the next poll while a worker does not consume its dedicated queue yet."""

ASK_SECONDS = 20.0
"""Maximum seconds that a poll may take."""

FIRST_ANSWER_WITHIN = 30.0
"""Seconds that tasks wait for the first answer of any worker ever."""

SILENT_AFTER = 2
"""Missed polls after which a worker gets no new tasks."""

COMES_BACK_WITHIN = 12
"""Missed polls after which tasks no longer wait for a worker."""

GIVES_UP_AFTER = 3
"""Consecutive failed polls after which no task is placed any more."""


class ConsumerManager:
    """Manager of the consumers of one executor's workers.

    A node is the name of a worker as :attr:`.WorkerRow.display_name` has it.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.unavailable_reason: str | None = None
        """Why no task can be placed by the latest answers."""
        self.answered_at: float | None = None
        """When the latest poll began that reached the broker, in seconds of the monotonic clock."""
        self._bounded: Bounded[dict[str, frozenset[str]]] = Bounded("Celery's workers")
        self._consumed: dict[str, frozenset[str]] = {}
        self._missed: Counter[str] = Counter()
        self._answered_nodes: set[str] = set()
        self._held_nodes: frozenset[str] = frozenset()
        self._polled_at: float | None = None
        self._failures = 0
        self._created_at = time.monotonic()
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
        return self._missed[node] >= SILENT_AFTER

    def comes_back(self, node: str) -> bool:
        """Return whether tasks should wait for a worker that does not answer now.

        It must have answered before.
        """
        return node in self._answered_nodes and self._missed[node] < COMES_BACK_WITHIN

    # --- polling

    def ask(self, rows: list[WorkerRow]) -> None:
        """Poll workers if due. Available workers consume their dedicated queue; drained ones stop."""
        give = {row.engine_name: dedicated_queue(row.worker_id) for row in rows if row.engine_name and is_usable(row)}
        hold = {
            row.engine_name: dedicated_queue(row.worker_id)
            for row in rows
            if row.engine_name and row.availability != WorkerAvailability.AVAILABLE and row.engine_name not in give
        }
        self._retain({row.display_name for row in rows}, polled=give.keys() | hold.keys())
        now = time.monotonic()
        delay = 0.0 if self._polled_at is None else self._polled_at + self._poll_interval(give, hold) - now
        # Poll at once for workers that were just drained: they must take nothing more from their queues.
        if delay > 0 and hold.keys() <= self._held_nodes:
            return
        self._held_nodes = frozenset(hold)
        try:
            answers = self._bounded.ask(partial(sync_consumers, self.app, give=give, hold=hold), seconds=ASK_SECONDS)
        except SourceUnavailableError as error:
            self.unavailable_reason = str(error)
            return
        except Exception as error:  # noqa: BLE001
            self._note_failure(f"Celery's broker cannot be reached: {type(error).__name__}")
            return
        finally:
            self._polled_at = time.monotonic()
        self.answered_at = now
        for node in give.keys() | hold.keys():
            self._missed[node] = 0 if node in answers else self._missed[node] + 1
        self._consumed.update(answers)
        self._answered_nodes |= answers.keys()
        self._answered_here = self._answered_here or bool(answers)
        if answers or not (self._is_answer_expected(give.keys() | hold.keys()) or self._may_have_unknown_workers()):
            self._failures, self.unavailable_reason = 0, None
        else:
            self._note_failure("None of Celery's workers answers.")

    def _retain(self, live_nodes: set[str], *, polled: set[str]) -> None:
        self._consumed = {node: queues for node, queues in self._consumed.items() if node in polled}
        self._answered_nodes &= live_nodes
        self._missed = Counter({node: count for node, count in self._missed.items() if node in live_nodes})

    def _is_answer_expected(self, nodes: set[str]) -> bool:
        """Return whether any of these nodes should answer.

        With several teams only nodes that answered before count: others may be another team's, with another broker.
        """
        is_alone = len(celery_teams(config.executor())) < 2  # noqa: PLR2004
        return bool(nodes if is_alone or not self._answered_here else nodes & self._answered_nodes)

    def _may_have_unknown_workers(self) -> bool:
        """Return whether workers may exist although none is known.

        Once any worker has answered, no known worker means that there is none.
        """
        if not self._answered_ever:
            with session.reading(session.BACKGROUND) as connection:
                self._answered_ever = worker_queries.has_any_heartbeat(connection, "celery")
        # Workers may be about to start together with the scheduler.
        return not self._answered_ever and time.monotonic() - self._created_at >= FIRST_ANSWER_WITHIN

    def _note_failure(self, reason: str) -> None:
        """Count a failed poll; give up after some in a row, or at once without any answer so far."""
        self._failures += 1
        if self._failures >= GIVES_UP_AFTER or not self._consumed:
            self.unavailable_reason = reason

    def _poll_interval(self, give: dict[str, str], hold: dict[str, str]) -> float:
        is_settled = all(queue in self._consumed.get(node, ()) for node, queue in give.items())
        is_held = not any(queue in self._consumed.get(node, ()) for node, queue in hold.items())
        return ASK_EVERY if is_settled and is_held and self.unavailable_reason is None else ASK_AGAIN


def is_usable(row: WorkerRow) -> bool:
    """Return whether a worker may get tasks by its state and by what operators have decided."""
    return row.state == WorkerState.ONLINE and row.availability == WorkerAvailability.AVAILABLE
