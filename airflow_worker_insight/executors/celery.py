"""A CeleryExecutor that sends each task to the worker that it has chosen for it.

It decides *where*; sending, states, adoption, revoking and all else are Airflow's own CeleryExecutor. What cannot be
placed stays among its queued tasks and is looked at again with each heartbeat, so that a task is bound to a worker as
late as can be. Where the workers cannot be seen, it does as Airflow's own and says so once.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from airflow.exceptions import AirflowConfigException
from airflow.providers.celery.executors.celery_executor import CeleryExecutor

from airflow_worker_insight import compat
from airflow_worker_insight.capture.counters import count, warn_once
from airflow_worker_insight.executors.desk import Asked, Desk
from airflow_worker_insight.executors.own_queues import own_queue
from airflow_worker_insight.executors.rules import read_rules
from airflow_worker_insight.executors.watch import Watch
from airflow_worker_insight.store import placements
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.keys import TryKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from airflow_worker_insight.executors.desk import Placed, Snapshot

log = logging.getLogger(__name__)

OLD_AFTER = 60.0
"""Seconds after which what is known of the workers counts for nothing."""

BEGIN_SECONDS = 20.0
"""How long tasks wait at most for the first that is known of the workers, when a scheduler has just started."""

MAX_ENDED = 100_000
"""Ends that are remembered while the database cannot be written."""


class WorkerInsightCeleryExecutor(CeleryExecutor):
    """Places each task on a Celery worker: see ``docs/executors.md``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._desk: Desk | None = None
        self._watch: Watch | None = None
        self._started_at = 0.0
        self._open_slots: int | None = None
        self._ended: list[TryKey] = []
        # The tasks that wait, and the reason that was written of each.
        self._waiting: dict[TryKey, str] = {}

    def start(self) -> None:
        """Begin to watch the workers.

        :raises AirflowConfigException: when a setting makes no sense
        """
        try:
            self._desk = Desk(read_rules())
        except ValueError as error:
            raise AirflowConfigException(f"WorkerInsightCeleryExecutor cannot start: {error}") from None
        super().start()
        self._started_at = time.monotonic()
        # A command that sends one task and ends does as Airflow's own executor.
        if compat.in_scheduler():
            self._watch = Watch(compat.executors_celery_app(self), self._desk)
            self._watch.start()

    def end(self, *args: Any, **kwargs: Any) -> None:
        """End as the parent does."""
        if self._watch is not None:
            self._watch.stop()
        super().end(*args, **kwargs)
        self._give_back()

    # --- sending

    def trigger_tasks(self, open_slots: int) -> None:
        """Hand over all queued tasks, and send as many as there are slots: those that wait keep no other from its."""
        self._open_slots = open_slots
        try:
            super().trigger_tasks(max(open_slots, self._queued()) if open_slots > 0 else open_slots)
        finally:
            self._open_slots = None

    def _queued(self) -> int:
        return len(self.queued_tasks) + len(getattr(self, "queued_callbacks", ()))

    def _send_workloads(self, workload_tuples_to_send: Sequence[tuple[Any, ...]]) -> None:
        self._send_placed(workload_tuples_to_send, super()._send_workloads)

    def _send_tasks(self, task_tuples_to_send: Sequence[tuple[Any, ...]]) -> None:
        # The same in the Celery provider up to 3.12.
        parent: Any = super()
        self._send_placed(task_tuples_to_send, parent._send_tasks)  # noqa: SLF001

    def _send_placed(self, items: Sequence[tuple[Any, ...]], send: Callable[[Any], None]) -> None:
        """Place tasks and hand them to the parent, which sends them and takes them off the queued ones.

        :param items: each a key, what to run, its queue, and what else the parent wants to know
        """
        tasks = [item for item in items if hasattr(item[0], "dag_id")]
        others = [item for item in items if not hasattr(item[0], "dag_id")]
        slots = len(items) if self._open_slots is None else self._open_slots
        others = others[:slots]
        ready = [*others, *self._placed(tasks, slots - len(others))]
        if ready:
            send(ready)
        for key in (item[0] for item in ready):
            if key not in self.running and key not in self.queued_tasks:
                # It could not be sent.
                self._note_end(key)

    def _placed(self, tasks: Sequence[tuple[Any, ...]], slots: int) -> Sequence[tuple[Any, ...]]:
        """Return the tasks that are to be sent now, each with the queue that it is sent to."""
        if self._watch is None or not tasks:
            return tasks[:slots]
        snapshot = self._watch.snapshot()
        now = time.monotonic()
        if snapshot is None and now - self._started_at < BEGIN_SECONDS:
            return []
        try:
            trouble = _trouble(snapshot, now)
            if snapshot is not None and trouble is None:
                return self._place(tasks, slots, snapshot)
        except Exception as error:
            log.debug("Placing failed", exc_info=True)
            trouble = f"{type(error).__name__}: {str(getattr(error, 'orig', None) or error).strip()}".splitlines()[0]
        for item in tasks[:slots]:
            if self._waiting.pop(_try_key(item[0]), None) is not None:
                # It waits no more, which is not to be read from what was written of it.
                self._note_end(item[0])
        count("placement.plain", min(slots, len(tasks)))
        warn_once(
            "placing.plain",
            "Airflow Worker Insight cannot place tasks and sends them as Airflow's own CeleryExecutor does: %s",
            trouble,
        )
        return tasks[:slots]

    def _place(self, tasks: Sequence[tuple[Any, ...]], slots: int, snapshot: Snapshot) -> list[tuple[Any, ...]]:
        assert self._desk is not None
        by_key = {_try_key(item[0]): item for item in tasks}
        asked = [self._asked(key, item) for key, item in by_key.items()]
        with compat.short_transaction() as connection:
            decided = self._desk.decide(connection, asked, snapshot, most=slots)
            sent = [one for one in decided if not one.waits]
            written = [one.placement(_own_queue(one)) for one in (*sent, *self._to_tell(decided))]
            placements.write(connection, written, now=database_now(connection))
        shared = sum(one.decision.worker is None for one in sent)
        if shared:
            count("placement.shared", shared)
        return [_with_queue(by_key[one.asked.key], _own_queue(one)) for one in sent]

    def _asked(self, key: TryKey, item: tuple[Any, ...]) -> Asked:
        executor_config, pool = compat.queued_task(self.queued_tasks.get(item[0]))
        return Asked(key, item[2], executor_config, pool)

    def _to_tell(self, decided: Iterable[Placed]) -> list[Placed]:
        """Return the tasks whose waiting is to be written: for their pages, and for whoever adopts them."""
        before = self._waiting
        waiting = [one for one in decided if one.waits]
        self._waiting = {one.asked.key: one.decision.reason for one in waiting}
        return [one for one in waiting if before.get(one.asked.key) != one.decision.reason]

    # --- adoption

    def try_adopt_task_instances(self, tis: Sequence[Any]) -> Sequence[Any]:
        """Adopt as the parent does what was sent; what only waited for a worker is given back, to be queued again.

        It has the ID of a message that was never sent: the parent would wait for that until it counts as stuck.
        """
        by_key = {_try_key(ti.key): ti for ti in tis}
        waiting = self._never_sent(by_key)
        sent = [ti for key, ti in by_key.items() if key not in waiting]
        adopted_not = super().try_adopt_task_instances(sent) if sent else []
        return [*adopted_not, *(by_key[key] for key in waiting)]

    def _never_sent(self, keys: Iterable[TryKey]) -> set[TryKey]:
        try:
            with compat.short_transaction() as connection:
                return placements.waiting(connection, list(keys))
        except Exception as error:  # noqa: BLE001
            warn_once("placing.adopting", "Airflow Worker Insight could not read which tasks wait: %s", error)
            return set()

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
        self._give_back()

    def _note_end(self, key: Any) -> None:
        if hasattr(key, "dag_id") and len(self._ended) < MAX_ENDED:
            self._ended.append(_try_key(key))

    def _give_back(self) -> None:
        if not self._ended or self._watch is None:
            self._ended.clear()
            return
        try:
            with compat.short_transaction() as connection:
                placements.close(connection, self._ended)
        except Exception as error:  # noqa: BLE001
            # They are given back with the next ones.
            warn_once("placing.ends", "Airflow Worker Insight could not write which tasks have ended: %s", error)
        else:
            self._ended.clear()


def _trouble(snapshot: Snapshot | None, now: float) -> str | None:
    """Return why nothing can be placed by what is known."""
    if snapshot is None:
        return "Nothing is known of the workers."
    if now - snapshot.taken_at > OLD_AFTER:
        return "What is known of the workers is old."
    return snapshot.trouble


def _own_queue(one: Placed) -> str | None:
    worker = one.decision.worker
    return None if worker is None else own_queue(worker.worker_id)


def _with_queue(item: tuple[Any, ...], queue: str | None) -> tuple[Any, ...]:
    return item if queue is None else (*item[:2], queue, *item[3:])


def _try_key(key: Any) -> TryKey:
    return TryKey(key.dag_id, key.run_id, key.task_id, key.map_index, key.try_number)
