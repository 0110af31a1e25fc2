"""A CeleryExecutor that sends each task to the worker that it has chosen for it.

It decides *where*; sending, states, adoption, revoking and all else are Airflow's own CeleryExecutor. What cannot be
placed stays among its queued tasks and is looked at again with each heartbeat, so that a task is bound to a worker as
late as can be. Where the workers cannot be seen, it does as Airflow's own and says so once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.celery.executors.celery_executor import CeleryExecutor
from kombu.exceptions import OperationalError

from airflow_worker_insight.capture.counters import warn_once
from airflow_worker_insight.compat import celery as airflow_celery
from airflow_worker_insight.compat import local_executor
from airflow_worker_insight.executors.base import PlacementMixin, is_task, try_key
from airflow_worker_insight.executors.celery.monitor import CeleryWorkerMonitor
from airflow_worker_insight.executors.celery.queues import own_queue
from airflow_worker_insight.executors.placement.service import PlacementRequest, PlacementService
from airflow_worker_insight.store import placements, session

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from airflow_worker_insight.domain.keys import TryKey
    from airflow_worker_insight.executors.placement.policy import Candidate
    from airflow_worker_insight.store.placements import Placement


PROBE_SECONDS = 1.0
"""How long the broker may take at most to accept a connection, where tasks are held while it is away."""


class WorkerInsightCeleryExecutor(PlacementMixin, CeleryExecutor):
    """Places each task on a Celery worker: see ``docs/explanation/placement.md``."""

    plainly = "sends them as Airflow's own CeleryExecutor does"

    def make_watch(self, desk: PlacementService) -> CeleryWorkerMonitor:
        """Return what watches the Celery workers."""
        return CeleryWorkerMonitor(self.celery_app_here(), desk)

    def celery_app_here(self) -> Any:
        """Return the Celery app of this executor."""
        return airflow_celery.executors_celery_app(self)

    def own_queue(self, worker: Candidate) -> str:
        """Return the worker's own queue."""
        return own_queue(worker.worker_id)

    # --- sending

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
        tasks = [item for item in items if is_task(item[0])]
        others = [item for item in items if not is_task(item[0])]
        slots = len(items) if self._open_slots is None else self._open_slots
        others = others[:slots]
        ready = [*others, *self._placed(tasks, slots - len(others))]
        if (
            self.holds
            and any(is_task(item[0]) for item in ready)
            and (unavailable_reason := self._broker_unavailable_reason())
        ):
            # Publishing to a broker that is away takes a second for each task, and fails it.
            self.note_unsent(unavailable_reason)
            ready = [item for item in ready if not is_task(item[0])]
        if ready:
            send(ready)
        for key in (item[0] for item in ready):
            if key not in self.running and key not in self.queued_tasks:
                # It could not be sent.
                self._note_end(key)

    def _send_workloads_to_celery(self, items: Sequence[tuple[Any, ...]]) -> list[Any]:
        return self._sent(super()._send_workloads_to_celery(items))

    def _send_tasks_to_celery(self, items: Sequence[tuple[Any, ...]]) -> list[Any]:
        # The same in the Celery provider up to 3.12.
        parent: Any = super()
        return self._sent(parent._send_tasks_to_celery(items))  # noqa: SLF001

    def _sent(self, results: Sequence[tuple[Any, Any, Any]]) -> list[Any]:
        """Return what the parent is to know of: tasks that the broker did not take wait, where tasks are to be held."""
        if not self.holds or self._watch is None:
            return list(results)
        known = []
        for one in results:
            error = getattr(one[2], "exception", None)
            if error is not None and is_task(one[0]) and _is_of_the_broker(error):
                self.note_unsent(_cannot_be_reached(error))
            else:
                known.append(one)
        return known

    def _broker_unavailable_reason(self) -> str | None:
        """Return why the broker takes no message now."""
        try:
            with self.celery_app_here().connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=PROBE_SECONDS)
        except Exception as error:  # noqa: BLE001
            return _cannot_be_reached(error)
        return None

    def _placed(self, tasks: Sequence[tuple[Any, ...]], slots: int) -> Sequence[tuple[Any, ...]]:
        """Return the tasks that are to be sent now, each with the queue that it is sent to."""
        if self._watch is None or not tasks:
            return tasks[:slots]
        by_key = {try_key(item[0]): item for item in tasks}
        placed = self.place([self._asked(key, item) for key, item in by_key.items()], slots)
        if placed is None:
            self.note_fallback(item[0] for item in tasks[:slots])
            return tasks[:slots]
        return [_with_queue(by_key[one.asked.key], self._own_queue(one)) for one in placed]

    def _asked(self, key: TryKey, item: tuple[Any, ...]) -> PlacementRequest:
        executor_config, pool = local_executor.queued_task(self.queued_tasks.get(item[0]))
        return PlacementRequest(key, item[2], executor_config, pool)

    # --- adoption

    def try_adopt_task_instances(self, tis: Sequence[Any]) -> Sequence[Any]:
        """Adopt as the parent does what was sent; what only waited for a worker is given back, to be queued again.

        It has the ID of a message that was never sent: the parent would wait for that until it counts as stuck.
        """
        by_key = {try_key(ti.key): ti for ti in tis}
        placed = self._open_of(by_key)
        # What runs was sent, whatever was written of it.
        waiting = {key for key, one in placed.items() if one.waits and by_key[key].state == "queued"}
        sent = [ti for key, ti in by_key.items() if key not in waiting]
        # First, because the parent may learn at once that one of them has ended.
        self.note_placed(one for one in placed.values() if one.key not in waiting)
        adopted_not = super().try_adopt_task_instances(sent) if sent else []
        self.forget_placed(ti.key for ti in adopted_not)
        return [*adopted_not, *(by_key[key] for key in waiting)]

    def _open_of(self, keys: Collection[TryKey]) -> dict[TryKey, Placement]:
        try:
            with session.writing(session.SCHEDULER) as connection:
                return placements.open_of(connection, keys)
        except Exception as error:  # noqa: BLE001
            warn_once("placing.adopting", "Airflow Worker Insight could not read which tasks wait: %s", error)
            return {}


def _is_of_the_broker(error: BaseException) -> bool:
    """Return whether a task could not be sent because of the broker, and not because of what was to be sent."""
    # Airflow has moved its time-out from one module to another.
    return isinstance(error, (OperationalError, OSError)) or type(error).__name__ == "AirflowTaskTimeout"


def _cannot_be_reached(error: BaseException) -> str:
    return f"Celery's broker cannot be reached: {type(error).__name__}"


def _with_queue(item: tuple[Any, ...], queue: str | None) -> tuple[Any, ...]:
    return item if queue is None else (*item[:2], queue, *item[3:])
