"""Ask Celery's workers which queues they consume, have each consume one of its own, and remember who answers."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_worker_insight import config
from airflow_worker_insight.domain.executors import celery_teams
from airflow_worker_insight.domain.states import AVAILABLE, ONLINE
from airflow_worker_insight.executors.celery.queues import own_queue, sync_consumers
from airflow_worker_insight.registry.observations import SourceUnavailableError
from airflow_worker_insight.registry.timeouts import Bounded
from airflow_worker_insight.store import session
from airflow_worker_insight.store.workers import queries as worker_queries

if TYPE_CHECKING:
    from airflow_worker_insight.domain.workers import WorkerRow

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

GIVES_UP_AFTER = 3
"""Questions that fail one after the other before nothing is placed any more."""


class ConsumerManager:
    """Asks the workers of one executor. A node is a worker as :attr:`.WorkerRow.known_as` names it."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.unavailable_reason: str | None = None
        """Why nothing can be placed by what is known."""
        self.answered_at: float | None = None
        """When the latest question was asked that the broker took, by the monotonic clock."""
        self._asking: Bounded[dict[str, frozenset[str]]] = Bounded("Celery's workers")
        self._consumed: dict[str, frozenset[str]] = {}
        self._unanswered: Counter[str] = Counter()
        self._answered: set[str] = set()
        self._held: frozenset[str] = frozenset()
        self._asked_at: float | None = None
        self._failures = 0
        self._made_at = time.monotonic()
        # Whether any worker answered here, and whether one ever answered anybody.
        self._answered_here = self._answered_ever = False

    # --- what is known

    def consumed(self, node: str) -> frozenset[str] | None:
        """Return the queues that a worker consumes by its last answer."""
        return self._consumed.get(node)

    def is_consumed(self, queue: str) -> bool:
        """Return whether any worker consumes a queue by its last answer."""
        return any(queue in queues for queues in self._consumed.values())

    def has_answered(self, node: str) -> bool:
        """Return whether a worker has answered here in its life. One that has not may be another team's."""
        return node in self._answered

    def is_silent(self, node: str) -> bool:
        """Return whether a worker has not answered for a while."""
        return self._unanswered[node] >= SILENT_AFTER

    def comes_back(self, node: str) -> bool:
        """Return whether a worker has answered and is to be waited for if it does not now."""
        return node in self._answered and self._unanswered[node] < COMES_BACK_WITHIN

    # --- asking

    def ask(self, living: list[WorkerRow]) -> None:
        """Ask, if that is due: who may be given work is to consume its own queue, and who may not is not to."""
        give = {one.engine_name: own_queue(one.worker_id) for one in living if one.engine_name and is_usable(one)}
        hold = {
            one.engine_name: own_queue(one.worker_id)
            for one in living
            if one.engine_name and one.availability != AVAILABLE and one.engine_name not in give
        }
        self._forget_all_but({one.known_as for one in living}, told=give.keys() | hold.keys())
        now = time.monotonic()
        wait = 0.0 if self._asked_at is None else self._asked_at + self._pace(give, hold) - now
        # Who has just been drained is to take nothing more from its queue.
        if wait > 0 and hold.keys() <= self._held:
            return
        self._held = frozenset(hold)
        try:
            answers = self._asking.ask(partial(sync_consumers, self.app, give=give, hold=hold), seconds=ASK_SECONDS)
        except SourceUnavailableError as error:
            self.unavailable_reason = str(error)
            return
        except Exception as error:  # noqa: BLE001
            self._not_answered(f"Celery's broker cannot be reached: {type(error).__name__}")
            return
        finally:
            self._asked_at = time.monotonic()
        self.answered_at = now
        for node in give.keys() | hold.keys():
            self._unanswered[node] = 0 if node in answers else self._unanswered[node] + 1
        self._consumed.update(answers)
        self._answered |= answers.keys()
        self._answered_here = self._answered_here or bool(answers)
        if answers or not (self._is_awaited(give.keys() | hold.keys()) or self._cannot_be_seen()):
            self._failures, self.unavailable_reason = 0, None
        else:
            self._not_answered("None of Celery's workers answers.")

    def _forget_all_but(self, living: set[str], *, told: set[str]) -> None:
        self._consumed = {node: queues for node, queues in self._consumed.items() if node in told}
        self._answered &= living
        self._unanswered = Counter({node: number for node, number in self._unanswered.items() if node in living})

    def _is_awaited(self, nodes: set[str]) -> bool:
        """Return whether one of these is to answer: with several teams those that did before.

        The others may be of another team, with a broker of its own.
        """
        is_alone = len(celery_teams(config.executor())) < 2  # noqa: PLR2004
        return bool(nodes if is_alone or not self._answered_here else nodes & self._answered)

    def _cannot_be_seen(self) -> bool:
        """Return whether workers may be there although none is known: where some answered before, there are none."""
        if not self._answered_ever:
            with session.reading(session.BACKGROUND) as connection:
                self._answered_ever = worker_queries.have_answered(connection, "celery")
        # They may be about to start, as the scheduler has just been.
        return not self._answered_ever and time.monotonic() - self._made_at >= FIRST_ANSWER_WITHIN

    def _not_answered(self, why: str) -> None:
        """Give up after some questions in a row, or at once where there never was an answer."""
        self._failures += 1
        if self._failures >= GIVES_UP_AFTER or not self._consumed:
            self.unavailable_reason = why

    def _pace(self, give: dict[str, str], hold: dict[str, str]) -> float:
        is_settled = all(queue in self._consumed.get(node, ()) for node, queue in give.items())
        is_held = not any(queue in self._consumed.get(node, ()) for node, queue in hold.items())
        return ASK_EVERY if is_settled and is_held and self.unavailable_reason is None else ASK_AGAIN


def is_usable(one: WorkerRow) -> bool:
    """Return whether a worker may be given work by what the registry knows and people have decided."""
    return one.state == ONLINE and one.availability == AVAILABLE
