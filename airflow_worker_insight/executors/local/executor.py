"""LocalExecutor with several named workers on the scheduler's machine, chosen per task.

Each worker is an Airflow LocalExecutor with its own processes, which report the worker they belong to. This executor
decides *where* a task runs; queueing, processes and states are Airflow's. No task waits at a worker: a task without a
free slot stays queued and is tried again at each heartbeat. If the registry cannot be read, tasks go to the least
loaded worker.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.executors.local_executor import LocalExecutor

from airflow_worker_insight import config, identity
from airflow_worker_insight.capture.direct import worker_record
from airflow_worker_insight.compat import local_executor
from airflow_worker_insight.domain.reasons import PlacementStrategy
from airflow_worker_insight.executors.base import OLD_AFTER, PlacementMixin, is_task, try_key
from airflow_worker_insight.executors.local.forking import late_signals, run_as, with_variables
from airflow_worker_insight.executors.local.monitor import LocalWorkerMonitor, OwnWorker
from airflow_worker_insight.executors.local.settings import LocalWorker, parse_local_workers
from airflow_worker_insight.executors.placement.policy import Candidate, Placer, Task
from airflow_worker_insight.executors.placement.rules import WAIT, Rules
from airflow_worker_insight.executors.placement.service import PlacementRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from airflow_worker_insight.domain.keys import TryKey
    from airflow_worker_insight.domain.workers import WorkerRecord
    from airflow_worker_insight.executors.placement.service import PlacementService, Snapshot

NAME_VARIABLE = "AIRFLOW__WORKER_INSIGHT__WORKER_NAME"


class Processes(LocalExecutor):
    """Airflow's local processes for one named worker, with its name in their environment.

    It runs what it is given, and reports state changes to the executor that owns it.
    """

    def __init__(
        self, record: WorkerRecord, environment: Mapping[str, str], owner: NamedWorkers, **options: Any
    ) -> None:
        """Take what the processes will report of themselves.

        :param record: the worker that they report
        :param environment: the environment variables by which they know it
        :param owner: the executor that the worker belongs to
        :param options: arguments of :class:`LocalExecutor`
        """
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self.record = record
        self._environment = {**environment, NAME_VARIABLE: record.name}
        self._owner = owner
        # A counter: a task may be queued again before its end is read, so that its key is there twice.
        self._running_keys: Counter[Any] = Counter()
        self._alive: frozenset[int] = frozenset()
        self._has_started = False

    @property
    def load(self) -> int:
        """Return how many items it runs."""
        return self._running_keys.total()

    @property
    def capacity(self) -> int:
        """Return how many items it can run at once."""
        return (
            self.parallelism
            if local_executor.local_processes_come_back()
            else min(self.parallelism, len(self._living_pids()))
        )

    def has(self, key: Any) -> bool:
        """Return whether it runs the item with this key."""
        return self._running_keys[key] > 0

    def take(self, key: Any, item: Any) -> None:
        """Run an item."""
        self._running_keys[key] += 1
        local_executor.run_locally(self, key, item)

    def forget(self, key: Any) -> None:
        """Stop counting an item among those that it runs."""
        self._running_keys.pop(key, None)

    def lost(self) -> list[Any]:
        """Return the keys that it runs if one of its processes has died since the last call.

        The dead process may have taken with it an end that is never reported.
        """
        alive_before, self._alive = self._alive, self._living_pids()
        return list(self._running_keys) if alive_before - self._alive else []

    def _living_pids(self) -> frozenset[int]:
        return frozenset(process.pid for process in local_executor.local_processes(self) if process.is_alive())

    # --- overrides of Airflow's LocalExecutor

    def start(self) -> None:
        """Start the processes, as the parent does."""
        self._has_started = True
        # Airflow 2.11 starts processes only here.
        with with_variables(self._environment):
            super().start()
        # Airflow 3.0 would fork them one by one on demand, when this process already has threads.
        if multiprocessing.get_start_method() == "fork":
            while len(local_executor.local_processes(self)) < self.parallelism:
                self._spawn_worker()
        self._alive = self._living_pids()

    def end(self) -> None:
        """Wait until all items are done, and end the processes, as the parent does."""
        # A scheduler may be asked to end before it has started all workers.
        if self._has_started:
            local_executor.dismiss_local_processes(self)
            super().end()

    def _spawn_worker(self) -> None:
        # The environment is set in the new process: a fork server passes on its own, not this process's.
        run, arguments = local_executor.local_process(self)
        with late_signals() as handlers, self._owner.at_rest():
            process = multiprocessing.Process(target=run_as, args=(self._environment, handlers, run), kwargs=arguments)
            process.start()
            assert process.pid is not None
            self.workers[process.pid] = process

    def change_state(self, key: Any, state: Any, info: Any = None, remove_running: bool = True) -> None:  # noqa: ARG002
        """Report an item's new state to the owner."""
        # Callbacks and connection tests report also that they begin.
        is_over = str(getattr(state, "value", state)) != "running"
        if is_over and self.has(key):
            self._running_keys[key] -= 1
            self._running_keys += Counter()
        self._owner.told(key, state, info, is_over=is_over)


class NamedWorkers(LocalExecutor):
    """A LocalExecutor whose processes belong to several named workers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._workers: list[Processes] = []

    def make_workers(self, settings: Sequence[LocalWorker]) -> None:
        """Create the workers, before the executor starts.

        :param settings: their names and slots
        """
        team = local_executor.executors_team(self)
        options: dict[str, Any] = {} if team is None else {"team_name": team}
        for setting in settings:
            # Each team has its own executor, so names must differ between teams.
            name = setting.name if team is None else f"{setting.name}.{team}"
            worker, environment = identity.local_worker(
                name, hostname=local_executor.hostname(), labels=config.worker_labels(), image=config.worker_image()
            )
            job_id = self.job_id if isinstance(self.job_id, int) else None
            record = worker_record(worker, job_id=job_id)
            self._workers.append(Processes(record, environment, self, parallelism=setting.concurrency, **options))

    def start(self) -> None:
        """Start the processes of all workers."""
        for worker in self._workers:
            worker.start()

    def sync(self) -> None:
        """Collect state changes from all workers."""
        for worker in self._workers:
            worker.sync()

    def end(self) -> None:
        """Wait until the workers have finished what they run, and end them."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def at_rest(self) -> AbstractContextManager[None]:
        """Keep other threads idle within the context, while a process is forked."""
        return nullcontext()

    def hand_over(self, worker: Processes, key: Any, item: Any) -> None:
        """Run an item on a worker."""
        worker.take(key, item)
        self.running.add(key)

    def told(self, key: Any, state: Any, info: Any, *, is_over: bool) -> None:
        """Take a state change of an item from the worker that runs it.

        :param is_over: whether the item has ended
        """
        is_elsewhere = any(other.has(key) for other in self._workers)
        self.change_state(key, state, info, remove_running=is_over and not is_elsewhere)


class WorkerInsightLocalExecutor(PlacementMixin, NamedWorkers):
    """Executor that places each task on one of the scheduler's local workers.

    See ``docs/how-to/local-workers.md``.
    """

    plainly = "runs them on whichever of its workers has the least to do"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._history: dict[int, float] = {}
        # Worker chosen for each task that Airflow 2.11 is about to run.
        self._chosen: dict[Any, Processes] = {}

    # --- placement hooks

    def read_rules(self) -> Rules:
        """Return the rules of the configuration, and create the workers that it names."""
        rules = super().read_rules()
        self.make_workers(parse_local_workers(config.local_workers(), self.parallelism))
        # Local workers share no queue and have no backlog.
        return replace(rules, fallback=WAIT, backlog=0)

    def make_watch(self, service: PlacementService) -> LocalWorkerMonitor:  # noqa: ARG002
        """Return the monitor that registers the workers and reads decisions about them."""
        return LocalWorkerMonitor([OwnWorker(worker.record, worker.parallelism) for worker in self._workers])

    def at_rest(self) -> AbstractContextManager[None]:
        """Keep the monitor's thread idle within the context."""
        return self._watch.at_rest() if isinstance(self._watch, LocalWorkerMonitor) else super().at_rest()

    def dedicated_queue(self, worker: Candidate) -> None:
        """Return ``None``: tasks are passed directly to a worker's processes."""

    def as_now(self, snapshot: Snapshot, requests: Sequence[PlacementRequest]) -> Snapshot:
        """Return a snapshot with the workers' current loads, and with the queues of all tasks.

        Local workers take tasks of every queue.
        """
        by_id = {worker.record.worker_id: worker for worker in self._workers}
        queues = frozenset(request.queue for request in requests)
        candidates = tuple(
            replace(candidate, queues=queues, capacity=by_id[candidate.worker_id].capacity)
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
        if local_executor.local_executor_queues_nothing():
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
            self.hand_over(worker, key, item)

    def _process_tasks(self, task_tuples: Sequence[tuple[Any, ...]]) -> None:
        """Run commands on the workers chosen for them (Airflow 2.11)."""
        items = [(item[0], item, item[2] or "") for item in task_tuples]
        ready = self._choose(items)
        self._chosen = {key: worker for key, _, worker in ready}
        parent: Any = super()
        parent._process_tasks([item for _, item, _ in ready])  # noqa: SLF001

    def execute_async(self, key: Any, command: Any, queue: Any = None, executor_config: Any = None) -> None:  # noqa: ARG002
        """Run a command on the worker chosen for it (Airflow 2.11)."""
        self.hand_over(self._chosen.pop(key), key, command)

    def _choose(self, items: Sequence[tuple[Any, Any, str]]) -> list[tuple[Any, Any, Processes]]:
        """Return what to run now, and on which worker.

        :param items: tuples of a key, the item to run, and its queue
        :return: tuples of a key, the item, and its worker
        """
        slots = len(items) if self._open_slots is None else self._open_slots
        non_tasks = [item for item in items if not is_task(item[0])][:slots]
        tasks = [item for item in items if is_task(item[0])]
        return [*self._choose_for_non_tasks(non_tasks), *self._choose_for_tasks(tasks, slots - len(non_tasks))]

    def _choose_for_non_tasks(self, non_tasks: Sequence[tuple[Any, Any, str]]) -> Iterator[tuple[Any, Any, Processes]]:
        """Choose workers for items that are not tasks, such as callbacks.

        They run at once, as in the parent, even on drained workers.
        """
        chosen: Counter[Processes] = Counter()
        for key, item, _ in non_tasks:
            worker = min(self._workers, key=lambda worker: (worker.load + chosen[worker]) / worker.parallelism)
            chosen[worker] += 1
            yield key, item, worker

    def _choose_for_tasks(self, tasks: Sequence[tuple[Any, Any, str]], slots: int) -> list[tuple[Any, Any, Processes]]:
        if not tasks:
            return []
        by_key = {try_key(key): (key, item) for key, item, _ in tasks}
        requests = [self._request(key, queue) for key, _, queue in tasks]
        results = None if self._watch is None else self.place(requests, slots)
        if results is None:
            chosen = self._by_load(requests, slots)
            self.note_fallback(by_key[key][0] for key in chosen)
        else:
            by_id = {worker.record.worker_id: worker for worker in self._workers}
            chosen = {
                result.asked.key: by_id[result.decision.worker.worker_id]
                for result in results
                if result.decision.worker is not None
            }
        return [(*by_key[key], worker) for key, worker in chosen.items()]

    def _request(self, key: Any, queue: str) -> PlacementRequest:
        executor_config, pool = local_executor.queued_task(self.queued_tasks.get(key))
        return PlacementRequest(try_key(key), queue, executor_config, pool)

    def _by_load(self, requests: Sequence[PlacementRequest], slots: int) -> dict[TryKey, Processes]:
        """Choose without the registry: the least loaded of the workers last known as available."""
        snapshot = None if self._watch is None else self._watch.snapshot()
        is_known = (
            snapshot is not None
            and snapshot.unavailable_reason is None
            and time.monotonic() - snapshot.taken_at < OLD_AFTER
        )
        availability_by_id = (
            {candidate.worker_id: candidate.availability for candidate in snapshot.candidates}
            if snapshot and is_known
            else {}
        )
        candidates = [
            Candidate(
                ref=index,
                worker_id=processes.record.worker_id,
                name=processes.record.name,
                queues=frozenset({""}),
                concurrency=processes.parallelism,
                capacity=processes.capacity,
                load=processes.load,
                availability=availability_by_id.get(processes.record.worker_id, "available"),
            )
            for index, processes in enumerate(self._workers)
        ]
        placer = Placer(PlacementStrategy.LEAST_LOADED, candidates, self._history)
        chosen: dict[TryKey, Processes] = {}
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
            for key in worker.lost():
                if is_task(key) and isinstance(self._watch, LocalWorkerMonitor):
                    self._watch.doubt(try_key(key))
                else:
                    self._stop_tracking(key)
        if isinstance(self._watch, LocalWorkerMonitor) and (ended := set(self._watch.take_over())):
            for key in [key for key in self.running if is_task(key) and try_key(key) in ended]:
                self._stop_tracking(key)

    def _stop_tracking(self, key: Any) -> None:
        """Stop tracking an item whose end will never be reported."""
        for worker in self._workers:
            worker.forget(key)
        self.running.discard(key)
        self._note_end(key)
