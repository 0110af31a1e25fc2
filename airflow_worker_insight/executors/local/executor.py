"""A LocalExecutor with several named workers on the scheduler's machine, which chooses the worker for each task.

Each worker is a LocalExecutor of Airflow's own with processes of its own, which say whose they are. Here it is decided
*where* a task runs; queueing, processes and states are Airflow's. Nothing waits at a worker: what finds no room stays
among the queued tasks and is looked at again with each heartbeat. Where the registry cannot be read, tasks go to the
worker that has the least to do.
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
from airflow_worker_insight.domain.reasons import LEAST_LOADED
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
    """The processes of one named worker: Airflow's own, with the worker's name in their environment.

    What it is handed is run, and what becomes of that is told to the executor that it belongs to.
    """

    def __init__(
        self, record: WorkerRecord, environment: Mapping[str, str], owner: NamedWorkers, **others: Any
    ) -> None:
        """Take what the processes will say of themselves.

        :param environment: what they need to say so
        :param owner: the executor that the worker is one of
        """
        super().__init__(**others)  # type: ignore[no-untyped-call]
        self.record = record
        self._environment = {**environment, NAME_VARIABLE: record.name}
        self._owner = owner
        # A task may be queued again before its end is read, so that one is there twice.
        self._at_work: Counter[Any] = Counter()
        self._alive: frozenset[int] = frozenset()
        self._has_begun = False

    @property
    def load(self) -> int:
        """Return how much it runs."""
        return self._at_work.total()

    @property
    def capacity(self) -> int:
        """Return how much it can run at once."""
        return (
            self.parallelism
            if local_executor.local_processes_come_back()
            else min(self.parallelism, len(self._living()))
        )

    def has(self, key: Any) -> bool:
        """Return whether it runs this."""
        return self._at_work[key] > 0

    def take(self, key: Any, item: Any) -> None:
        """Run something."""
        self._at_work[key] += 1
        local_executor.run_locally(self, key, item)

    def forget(self, key: Any) -> None:
        """Count this no longer among what it runs."""
        self._at_work.pop(key, None)

    def lost(self) -> list[Any]:
        """Return what it runs if some process of it has died since the last time: with it an end that nobody tells."""
        before, self._alive = self._alive, self._living()
        return list(self._at_work) if before - self._alive else []

    def _living(self) -> frozenset[int]:
        return frozenset(process.pid for process in local_executor.local_processes(self) if process.is_alive())

    # --- what Airflow's own does differently here

    def start(self) -> None:
        """Start the processes, as the parent does."""
        self._has_begun = True
        # 2.11 starts them here and nowhere else.
        with with_variables(self._environment):
            super().start()
        # 3.0 would fork them one by one when there is work, from a process that has threads by then.
        if multiprocessing.get_start_method() == "fork":
            while len(local_executor.local_processes(self)) < self.parallelism:
                self._spawn_worker()
        self._alive = self._living()

    def end(self) -> None:
        """Wait until all is done, and end the processes, as the parent does."""
        # A scheduler may be asked to end before it has started them all.
        if self._has_begun:
            local_executor.dismiss_local_processes(self)
            super().end()

    def _spawn_worker(self) -> None:
        # The environment is set within: a fork server passes on its own and not this process's.
        run, arguments = local_executor.local_process(self)
        with late_signals() as handlers, self._owner.at_rest():
            process = multiprocessing.Process(target=run_as, args=(self._environment, handlers, run), kwargs=arguments)
            process.start()
            assert process.pid is not None
            self.workers[process.pid] = process

    def change_state(self, key: Any, state: Any, info: Any = None, remove_running: bool = True) -> None:  # noqa: ARG002
        """Tell what has become of what it was handed."""
        # Callbacks and connection tests say also when they begin.
        is_over = str(getattr(state, "value", state)) != "running"
        if is_over and self.has(key):
            self._at_work[key] -= 1
            self._at_work += Counter()
        self._owner.told(key, state, info, is_over=is_over)


class NamedWorkers(LocalExecutor):
    """A LocalExecutor whose processes belong to several named workers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._workers: list[Processes] = []

    def make_workers(self, known: Sequence[LocalWorker]) -> None:
        """Take the workers that it has from its start on."""
        team = local_executor.executors_team(self)
        others: dict[str, Any] = {} if team is None else {"team_name": team}
        for one in known:
            # A team has an executor of its own beside the others.
            name = one.name if team is None else f"{one.name}.{team}"
            worker, environment = identity.local_worker(
                name, hostname=local_executor.hostname(), labels=config.worker_labels(), image=config.worker_image()
            )
            job_id = self.job_id if isinstance(self.job_id, int) else None
            record = worker_record(worker, job_id=job_id)
            self._workers.append(Processes(record, environment, self, parallelism=one.concurrency, **others))

    def start(self) -> None:
        """Start the processes of all workers."""
        for one in self._workers:
            one.start()

    def sync(self) -> None:
        """Learn from all workers what has become of what they run."""
        for one in self._workers:
            one.sync()

    def end(self) -> None:
        """Wait until the workers have done what they run, and end them."""
        for one in self._workers:
            one.end()
        self._workers.clear()

    def at_rest(self) -> AbstractContextManager[None]:
        """Keep threads beside this one from what must not be forked in the middle."""
        return nullcontext()

    def hand_over(self, one: Processes, key: Any, item: Any) -> None:
        """Run something on a worker."""
        one.take(key, item)
        self.running.add(key)

    def told(self, key: Any, state: Any, info: Any, *, is_over: bool) -> None:
        """Learn what has become of something that a worker runs."""
        is_elsewhere = any(other.has(key) for other in self._workers)
        self.change_state(key, state, info, remove_running=is_over and not is_elsewhere)


class WorkerInsightLocalExecutor(PlacementMixin, NamedWorkers):
    """Places each task on one of the scheduler's local workers: see ``docs/how-to/local-workers.md``."""

    plainly = "runs them on whichever of its workers has the least to do"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._history: dict[int, float] = {}
        # Where 2.11 is about to run a task.
        self._chosen: dict[Any, Processes] = {}

    # --- what it is for those who place

    def read_rules(self) -> Rules:
        """Return the rules of the configuration, and make the workers that it names."""
        rules = super().read_rules()
        self.make_workers(parse_local_workers(config.local_workers(), self.parallelism))
        # Local workers share no queue, and nothing waits at them.
        return replace(rules, fallback=WAIT, backlog=0)

    def make_watch(self, desk: PlacementService) -> LocalWorkerMonitor:  # noqa: ARG002
        """Return what makes the workers known and watches what is decided of them."""
        return LocalWorkerMonitor([OwnWorker(one.record, one.parallelism) for one in self._workers])

    def at_rest(self) -> AbstractContextManager[None]:
        """Keep the thread that watches the workers from beginning anything meanwhile."""
        return self._watch.at_rest() if isinstance(self._watch, LocalWorkerMonitor) else super().at_rest()

    def own_queue(self, worker: Candidate) -> None:
        """Return nothing: tasks are handed to a worker's processes."""

    def as_now(self, snapshot: Snapshot, asked: Sequence[PlacementRequest]) -> Snapshot:
        """Return what is known of the workers with what each runs now; they take tasks of every queue."""
        by_id = {one.record.worker_id: one for one in self._workers}
        queues = frozenset(one.queue for one in asked)
        candidates = tuple(
            replace(one, queues=queues, capacity=by_id[one.worker_id].capacity) for one in snapshot.candidates
        )
        return replace(
            snapshot,
            candidates=candidates,
            loads={one.ref: by_id[one.worker_id].load for one in candidates},
        )

    # --- running

    def queue_workload(self, workload: Any, session: Any = None) -> None:
        """Queue a workload as all executors do; Airflow 3.0's LocalExecutor would run it at once."""
        if local_executor.local_executor_queues_nothing():
            self.queued_tasks[workload.ti.key] = workload
            return
        super().queue_workload(workload, session)

    def _process_workloads(self, workload_list: Sequence[Any]) -> None:
        """Run workloads on the workers that are chosen for them (Airflow 3)."""
        items = [
            (local_executor.workload_key(one), one, getattr(getattr(one, "ti", None), "queue", ""))
            for one in workload_list
        ]
        for key, workload, one in self._choose(items):
            for queued in ("queued_tasks", "queued_callbacks", "queued_connection_tests"):
                getattr(self, queued, {}).pop(key, None)
            self.hand_over(one, key, workload)

    def _process_tasks(self, task_tuples: Sequence[tuple[Any, ...]]) -> None:
        """Run commands on the workers that are chosen for them (Airflow 2.11)."""
        items = [(item[0], item, item[2] or "") for item in task_tuples]
        ready = self._choose(items)
        self._chosen = {key: one for key, _, one in ready}
        parent: Any = super()
        parent._process_tasks([item for _, item, _ in ready])  # noqa: SLF001

    def execute_async(self, key: Any, command: Any, queue: Any = None, executor_config: Any = None) -> None:  # noqa: ARG002
        """Run a command on the worker that was chosen for it (Airflow 2.11)."""
        self.hand_over(self._chosen.pop(key), key, command)

    def _choose(self, items: Sequence[tuple[Any, Any, str]]) -> list[tuple[Any, Any, Processes]]:
        """Return what runs now, and on which worker.

        :param items: each a key, what is run, and its queue
        """
        slots = len(items) if self._open_slots is None else self._open_slots
        others = [item for item in items if not is_task(item[0])][:slots]
        tasks = [item for item in items if is_task(item[0])]
        return [*self._choose_for_others(others), *self._choose_for_tasks(tasks, slots - len(others))]

    def _choose_for_others(self, others: Sequence[tuple[Any, Any, str]]) -> Iterator[tuple[Any, Any, Processes]]:
        """Choose for what is no task: it runs at once, as with the parent, whatever was decided of the worker."""
        given: Counter[Processes] = Counter()
        for key, item, _ in others:
            one = min(self._workers, key=lambda one: (one.load + given[one]) / one.parallelism)
            given[one] += 1
            yield key, item, one

    def _choose_for_tasks(self, tasks: Sequence[tuple[Any, Any, str]], slots: int) -> list[tuple[Any, Any, Processes]]:
        if not tasks:
            return []
        by_key = {try_key(key): (key, item) for key, item, _ in tasks}
        asked = [self._asked(key, queue) for key, _, queue in tasks]
        placed = None if self._watch is None else self.place(asked, slots)
        if placed is None:
            chosen = self._by_load(asked, slots)
            self.note_fallback(by_key[key][0] for key in chosen)
        else:
            by_id = {one.record.worker_id: one for one in self._workers}
            chosen = {
                one.asked.key: by_id[one.decision.worker.worker_id] for one in placed if one.decision.worker is not None
            }
        return [(*by_key[key], one) for key, one in chosen.items()]

    def _asked(self, key: Any, queue: str) -> PlacementRequest:
        executor_config, pool = local_executor.queued_task(self.queued_tasks.get(key))
        return PlacementRequest(try_key(key), queue, executor_config, pool)

    def _by_load(self, asked: Sequence[PlacementRequest], slots: int) -> dict[TryKey, Processes]:
        """Choose without the registry: of those that were available a moment ago the one with the least to do."""
        snapshot = None if self._watch is None else self._watch.snapshot()
        is_known = (
            snapshot is not None
            and snapshot.unavailable_reason is None
            and time.monotonic() - snapshot.taken_at < OLD_AFTER
        )
        decided = {one.worker_id: one.availability for one in snapshot.candidates} if snapshot and is_known else {}
        candidates = [
            Candidate(
                ref=place,
                worker_id=one.record.worker_id,
                name=one.record.name,
                queues=frozenset({""}),
                concurrency=one.parallelism,
                capacity=one.capacity,
                load=one.load,
                availability=decided.get(one.record.worker_id, "available"),
            )
            for place, one in enumerate(self._workers)
        ]
        placer = Placer(LEAST_LOADED, candidates, self._history)
        found: dict[TryKey, Processes] = {}
        for one in asked:
            key = one.key
            if len(found) >= slots:
                break
            worker = placer.place(Task(key.dag_id, key.run_id, key.task_id, key.map_index, key.try_number, "")).worker
            if worker is None:
                break
            found[key] = self._workers[worker.ref]
        return found

    # --- ends

    def sync(self) -> None:
        """Learn what has ended, also with a process that died."""
        super().sync()
        for one in self._workers:
            for key in one.lost():
                if is_task(key) and isinstance(self._watch, LocalWorkerMonitor):
                    self._watch.doubt(try_key(key))
                else:
                    self._let_go(key)
        if isinstance(self._watch, LocalWorkerMonitor) and (over := set(self._watch.take_over())):
            for key in [key for key in self.running if is_task(key) and try_key(key) in over]:
                self._let_go(key)

    def _let_go(self, key: Any) -> None:
        """Count something no longer among what runs, whose end nobody has told and nobody will."""
        for one in self._workers:
            one.forget(key)
        self.running.discard(key)
        self._note_end(key)
