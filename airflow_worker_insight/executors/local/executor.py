"""LocalExecutor with several named workers on the scheduler's machine, chosen per task.

It decides *where* a task runs. No task waits at a worker: a task without a free slot stays queued and is tried again at
each heartbeat. In fallback mode tasks go to the least loaded worker.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_worker_insight import config
from airflow_worker_insight.compat import local_executor
from airflow_worker_insight.domain.reasons import PlacementStrategy
from airflow_worker_insight.executors.base import PlacementMixin
from airflow_worker_insight.executors.keys import is_task, try_key
from airflow_worker_insight.executors.local.monitor import LocalWorkerMonitor, OwnWorker
from airflow_worker_insight.executors.local.processes import NamedWorkers
from airflow_worker_insight.executors.local.settings import parse_local_workers
from airflow_worker_insight.executors.placement.policy import Candidate, Placer, Task
from airflow_worker_insight.executors.placement.rules import WAIT, Rules
from airflow_worker_insight.executors.placement.service import PlacementRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from airflow_worker_insight.domain.keys import TryKey
    from airflow_worker_insight.executors.local.processes import WorkerProcesses
    from airflow_worker_insight.executors.placement.service import PlacementService, Snapshot


class WorkerInsightLocalExecutor(PlacementMixin, NamedWorkers):
    """Executor that places each task on one of the scheduler's local workers.

    See ``docs/how-to/local-workers.md``.
    """

    fallback_description = "runs them on the least loaded of its workers"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._history: dict[int, float] = {}
        # Worker chosen for each task that Airflow 2.11 is about to run.
        self._chosen: dict[Any, WorkerProcesses] = {}

    # --- placement hooks

    def read_rules(self) -> Rules:
        """Return the rules of the configuration, and create the workers that it names."""
        rules = super().read_rules()
        self.make_workers(parse_local_workers(config.local_workers(), self.parallelism))
        # Local workers share no queue and have no backlog.
        return replace(rules, fallback=WAIT, backlog=0)

    def make_monitor(self, _service: PlacementService) -> LocalWorkerMonitor:
        """Return the monitor that registers the workers and reads decisions about them."""
        return LocalWorkerMonitor([OwnWorker(worker.record, worker.parallelism) for worker in self._workers])

    def monitor_paused(self) -> AbstractContextManager[None]:
        """Keep the monitor's thread idle within the context, while a process is forked."""
        return self._monitor.paused() if isinstance(self._monitor, LocalWorkerMonitor) else super().monitor_paused()

    def dedicated_queue(self, worker: Candidate) -> None:
        """Return ``None``: tasks are passed directly to a worker's processes."""

    def update_snapshot(self, snapshot: Snapshot, requests: Sequence[PlacementRequest]) -> Snapshot:
        """Return a snapshot with the workers' current loads, and with the queues of all tasks.

        Local workers take tasks of every queue.
        """
        by_id = {worker.record.worker_id: worker for worker in self._workers}
        queues = frozenset(request.queue for request in requests)
        candidates = tuple(
            replace(candidate, queues=queues, capacity=by_id[candidate.worker_id].usable_slots)
            for candidate in snapshot.candidates
        )
        return replace(
            snapshot,
            candidates=candidates,
            loads={candidate.ref: by_id[candidate.worker_id].load for candidate in candidates},
        )

    # --- running

    def queue_workload(self, workload: Any, session: Any = None) -> None:
        """Queue a workload as all executors do; Airflow 3.0's LocalExecutor would run it at once."""
        if local_executor.local_executor_has_no_queue():
            self.queued_tasks[workload.ti.key] = workload
            return
        super().queue_workload(workload, session)

    def _process_workloads(self, workload_list: Sequence[Any]) -> None:
        """Run workloads on the workers chosen for them (Airflow 3)."""
        items = [
            (local_executor.workload_key(workload), workload, getattr(getattr(workload, "ti", None), "queue", ""))
            for workload in workload_list
        ]
        for key, item, worker in self._choose(items):
            for queued in ("queued_tasks", "queued_callbacks", "queued_connection_tests"):
                getattr(self, queued, {}).pop(key, None)
            self.run_on(worker, key, item)

    def _process_tasks(self, task_tuples: Sequence[tuple[Any, ...]]) -> None:
        """Run commands on the workers chosen for them (Airflow 2.11)."""
        items = [(item[0], item, item[2] or "") for item in task_tuples]
        ready = self._choose(items)
        self._chosen = {key: worker for key, _, worker in ready}
        parent: Any = super()
        parent._process_tasks([item for _, item, _ in ready])  # noqa: SLF001 (the parent's own method)

    def execute_async(self, key: Any, command: Any, *_: Any, **__: Any) -> None:
        """Run a command on the worker chosen for it (Airflow 2.11)."""
        self.run_on(self._chosen.pop(key), key, command)

    def _choose(self, items: Sequence[tuple[Any, Any, str]]) -> list[tuple[Any, Any, WorkerProcesses]]:
        """Return what to run now, and on which worker.

        :param items: tuples of a key, the item to run, and its queue
        :return: tuples of a key, the item, and its worker
        """
        slots = len(items) if self._open_slots is None else self._open_slots
        non_tasks = [item for item in items if not is_task(item[0])][:slots]
        tasks = [item for item in items if is_task(item[0])]
        return [*self._choose_for_non_tasks(non_tasks), *self._choose_for_tasks(tasks, slots - len(non_tasks))]

    def _choose_for_non_tasks(
        self, non_tasks: Sequence[tuple[Any, Any, str]]
    ) -> Iterator[tuple[Any, Any, WorkerProcesses]]:
        """Choose workers for items that are not tasks, such as callbacks.

        They run at once, as in the parent, even on drained workers.
        """
        chosen: Counter[WorkerProcesses] = Counter()
        for key, item, _ in non_tasks:
            worker = min(self._workers, key=lambda worker: (worker.load + chosen[worker]) / worker.parallelism)
            chosen[worker] += 1
            yield key, item, worker

    def _choose_for_tasks(
        self, tasks: Sequence[tuple[Any, Any, str]], slots: int
    ) -> list[tuple[Any, Any, WorkerProcesses]]:
        if not tasks:
            return []
        by_key = {try_key(key): (key, item) for key, item, _ in tasks}
        requests = [self._request(key, queue) for key, _, queue in tasks]
        results = None if self._monitor is None else self.place(requests, slots)
        if results is None:
            chosen = self._by_load(requests, slots)
            self.note_fallback(by_key[key][0] for key in chosen)
        else:
            by_id = {worker.record.worker_id: worker for worker in self._workers}
            chosen = {
                result.request.key: by_id[result.decision.worker.worker_id]
                for result in results
                if result.decision.worker is not None
            }
        return [(*by_key[key], worker) for key, worker in chosen.items()]

    def _request(self, key: Any, queue: str) -> PlacementRequest:
        executor_config, pool = local_executor.queued_task(self.queued_tasks.get(key))
        return PlacementRequest(try_key(key), queue, executor_config, pool)

    def _by_load(self, requests: Sequence[PlacementRequest], slots: int) -> dict[TryKey, WorkerProcesses]:
        """Choose without the registry: the least loaded of the workers last known as available."""
        snapshot = None if self._monitor is None else self._monitor.snapshot()
        availability_by_id = (
            {}
            if snapshot is None or self._snapshot_problem(snapshot, self._clock()) is not None
            else {candidate.worker_id: candidate.availability for candidate in snapshot.candidates}
        )
        candidates = [
            Candidate(
                ref=index,
                worker_id=processes.record.worker_id,
                name=processes.record.name,
                queues=frozenset({""}),
                concurrency=processes.parallelism,
                capacity=processes.usable_slots,
                load=processes.load,
                availability=availability_by_id.get(processes.record.worker_id, "available"),
            )
            for index, processes in enumerate(self._workers)
        ]
        placer = Placer(PlacementStrategy.LEAST_LOADED, candidates, self._history)
        chosen: dict[TryKey, WorkerProcesses] = {}
        for request in requests:
            key = request.key
            if len(chosen) >= slots:
                break
            worker = placer.place(Task(key.dag_id, key.run_id, key.task_id, key.map_index, key.try_number, "")).worker
            if worker is None:
                break
            chosen[key] = self._workers[worker.ref]
        return chosen

    # --- ends

    def sync(self) -> None:
        """Collect state changes, also of tasks whose process died."""
        super().sync()
        for worker in self._workers:
            for key in worker.find_lost_keys():
                if is_task(key) and isinstance(self._monitor, LocalWorkerMonitor):
                    self._monitor.request_end_check(try_key(key))
                else:
                    self._stop_tracking(key)
        if isinstance(self._monitor, LocalWorkerMonitor) and (ended := set(self._monitor.pop_ended())):
            for key in [key for key in self.running if is_task(key) and try_key(key) in ended]:
                self._stop_tracking(key)

    def _stop_tracking(self, key: Any) -> None:
        """Stop tracking an item whose end will never be reported."""
        for worker in self._workers:
            worker.forget(key)
        self.running.discard(key)
        self._recorder.note_end(key)
