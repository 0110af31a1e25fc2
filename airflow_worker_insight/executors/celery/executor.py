"""CeleryExecutor that chooses a worker for each task and sends the task to it.

It decides *where* a task runs; sending, states, adoption, revoking and all else are Airflow's own CeleryExecutor. A
task that cannot be placed stays queued and is tried again at each heartbeat, so that it is bound to a worker as late as
possible. In fallback mode it behaves like Airflow's own executor, and logs that once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.celery.executors.celery_executor import CeleryExecutor
from kombu.exceptions import OperationalError

from airflow_worker_insight.capture.counters import warn_once
from airflow_worker_insight.compat import celery as airflow_celery
from airflow_worker_insight.compat import local_executor
from airflow_worker_insight.executors.base import PlacementMixin
from airflow_worker_insight.executors.celery.monitor import CeleryWorkerMonitor
from airflow_worker_insight.executors.celery.queues import dedicated_queue
from airflow_worker_insight.executors.keys import is_task, try_key
from airflow_worker_insight.executors.placement.service import PlacementRequest, PlacementService
from airflow_worker_insight.store import placements, session

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from airflow_worker_insight.domain.keys import TryKey
    from airflow_worker_insight.executors.placement.policy import Candidate
    from airflow_worker_insight.store.placements import Placement


BROKER_TIMEOUT = 1.0
"""Maximum seconds to connect to the broker, if tasks are held while it is down."""


class WorkerInsightCeleryExecutor(PlacementMixin, CeleryExecutor):
    """Executor that places each task on a Celery worker.

    See ``docs/explanation/placement.md``.
    """

    fallback_description = "sends them as Airflow's own CeleryExecutor does"

    def make_monitor(self, service: PlacementService) -> CeleryWorkerMonitor:
        """Return the monitor of the Celery workers."""
        return CeleryWorkerMonitor(self.get_celery_app(), service)

    def get_celery_app(self) -> Any:
        """Return the Celery app of this executor."""
        return airflow_celery.celery_app_of(self)

    def dedicated_queue(self, worker: Candidate) -> str:
        """Return the worker's dedicated queue."""
        return dedicated_queue(worker.worker_id)

    # --- sending

    def _send_workloads(self, workload_tuples_to_send: Sequence[tuple[Any, ...]]) -> None:
        self._send_placed(workload_tuples_to_send, super()._send_workloads)

    def _send_tasks(self, task_tuples_to_send: Sequence[tuple[Any, ...]]) -> None:
        # Name of the method above in the Celery provider up to 3.12.
        parent: Any = super()
        self._send_placed(task_tuples_to_send, parent._send_tasks)  # noqa: SLF001 (the parent's own method)

    def _send_placed(self, items: Sequence[tuple[Any, ...]], send: Callable[[Any], None]) -> None:
        """Place tasks and pass them to the parent, which sends them and dequeues them.

        :param items: tuples of a key, what to run, its queue, and whatever else the parent needs
        :param send: the parent's method
        """
        tasks = [item for item in items if is_task(item[0])]
        non_tasks = [item for item in items if not is_task(item[0])]
        slots = len(items) if self._open_slots is None else self._open_slots
        non_tasks = non_tasks[:slots]
        ready = [*non_tasks, *self._place_tasks(tasks, slots - len(non_tasks))]
        if (
            self.holds
            and any(is_task(item[0]) for item in ready)
            and (unavailable_reason := self._broker_unavailable_reason())
        ):
            # Publishing to a broker that is down takes a second per task, and fails the task.
            self.note_broker_refusal(unavailable_reason)
            ready = [item for item in ready if not is_task(item[0])]
        if ready:
            send(ready)
        for key in (item[0] for item in ready):
            if key not in self.running and key not in self.queued_tasks:
                # The parent could not send it.
                self._recorder.note_end(key)

    def _send_workloads_to_celery(self, items: Sequence[tuple[Any, ...]]) -> list[Any]:
        return self._without_held(super()._send_workloads_to_celery(items))

    def _send_tasks_to_celery(self, items: Sequence[tuple[Any, ...]]) -> list[Any]:
        # Name of the method above in the Celery provider up to 3.12.
        parent: Any = super()
        return self._without_held(parent._send_tasks_to_celery(items))  # noqa: SLF001 (the parent's own method)

    def _without_held(self, results: Sequence[tuple[Any, Any, Any]]) -> list[Any]:
        """Return the results for the parent, without those of tasks to hold.

        If tasks are to be held, tasks that the broker did not accept wait.
        """
        if not self.holds or self._monitor is None:
            return list(results)
        reported = []
        for result in results:
            error = getattr(result[2], "exception", None)
            if error is not None and is_task(result[0]) and _is_broker_error(error):
                self.note_broker_refusal(_unreachable_reason(error))
            else:
                reported.append(result)
        return reported

    def _broker_unavailable_reason(self) -> str | None:
        """Return why the broker accepts no messages now, or ``None`` if it does."""
        try:
            with self.get_celery_app().connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=BROKER_TIMEOUT)
        except Exception as error:  # noqa: BLE001 (kombu raises whatever its transport raises)
            return _unreachable_reason(error)
        return None

    def _place_tasks(self, tasks: Sequence[tuple[Any, ...]], slots: int) -> Sequence[tuple[Any, ...]]:
        """Return the tasks to send now, each with the queue to send it to."""
        if self._monitor is None or not tasks:
            return tasks[:slots]
        by_key = {try_key(item[0]): item for item in tasks}
        results = self.place([self._request(key, item) for key, item in by_key.items()], slots)
        if results is None:
            self.note_fallback(item[0] for item in tasks[:slots])
            return tasks[:slots]
        return [_with_queue(by_key[result.request.key], self._dedicated_queue(result)) for result in results]

    def _request(self, key: TryKey, item: tuple[Any, ...]) -> PlacementRequest:
        executor_config, pool = local_executor.queued_task(self.queued_tasks.get(item[0]))
        return PlacementRequest(key, item[2], executor_config, pool)

    # --- adoption

    def try_adopt_task_instances(self, tis: Sequence[Any]) -> Sequence[Any]:
        """Adopt tasks that were sent, as the parent does; return the others to be queued again.

        A task that only waited for a worker has the ID of a message that was never sent. The parent would wait for that
        message until the task counts as stuck.
        """
        by_key = {try_key(ti.key): ti for ti in tis}
        placed = self._open_placements(by_key)
        # A running task was sent, whatever its record says.
        waiting = {key for key, placement in placed.items() if placement.waits and by_key[key].state == "queued"}
        sent = [ti for key, ti in by_key.items() if key not in waiting]
        # Before adoption, because the parent may learn at once that a task has ended.
        self._recorder.note_adopted(placement for placement in placed.values() if placement.key not in waiting)
        not_adopted = super().try_adopt_task_instances(sent) if sent else []
        self._recorder.forget(ti.key for ti in not_adopted)
        return [*not_adopted, *(by_key[key] for key in waiting)]

    def _open_placements(self, keys: Collection[TryKey]) -> dict[TryKey, Placement]:
        try:
            with session.writing(session.SCHEDULER) as connection:
                return placements.open_placements_of(connection, keys)
        except Exception as error:  # noqa: BLE001 (the scheduler's loop must go on)
            warn_once("placing.adopting", "Airflow Worker Insight could not read which tasks wait: %s", error)
            return {}


def _is_broker_error(error: BaseException) -> bool:
    """Return whether sending failed because of the broker, not because of the task."""
    # AirflowTaskTimeout is compared by name, because Airflow has moved it between modules.
    return isinstance(error, (OperationalError, OSError)) or type(error).__name__ == "AirflowTaskTimeout"


def _unreachable_reason(error: BaseException) -> str:
    return f"Celery's broker cannot be reached: {type(error).__name__}"


def _with_queue(item: tuple[Any, ...], queue: str | None) -> tuple[Any, ...]:
    return item if queue is None else (*item[:2], queue, *item[3:])
