"""LocalExecutors for named workers: processes that know which worker they belong to.

Queueing, processes and states are those of Airflow's own LocalExecutor.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from airflow.executors.local_executor import LocalExecutor

from airflow_worker_insight import config, identity
from airflow_worker_insight.capture.direct import worker_record
from airflow_worker_insight.compat import local_executor
from airflow_worker_insight.executors.local.forking import defer_signals, environment_variables, run_with_environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from airflow_worker_insight.domain.workers import WorkerRecord
    from airflow_worker_insight.executors.local.settings import LocalWorker

NAME_VARIABLE = "AIRFLOW__WORKER_INSIGHT__WORKER_NAME"


class WorkerProcesses(LocalExecutor):
    """LocalExecutor of one named worker; its processes have the worker's name in their environment.

    It runs items for the executor that owns it, and reports their state changes to that.
    """

    def __init__(
        self, record: WorkerRecord, environment: Mapping[str, str], owner: NamedWorkers, **options: Any
    ) -> None:
        """Take the worker that the processes belong to.

        :param record: the worker that they report
        :param environment: the environment variables from which they know it
        :param owner: the executor that the worker belongs to
        :param options: arguments of :class:`LocalExecutor`
        """
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self.record = record
        self._environment = {**environment, NAME_VARIABLE: record.name}
        self._owner = owner
        # A counter: a task may be queued again before its end is read, so that its key is there twice.
        self._running_keys: Counter[Any] = Counter()
        self._pids: frozenset[int] = frozenset()
        self._has_started = False

    @property
    def load(self) -> int:
        """Return how many items it runs."""
        return self._running_keys.total()

    @property
    def usable_slots(self) -> int:
        """Return how many items it can run at once."""
        return (
            self.parallelism
            if local_executor.local_executor_restarts_processes()
            else min(self.parallelism, len(self._alive_pids()))
        )

    def is_running(self, key: Any) -> bool:
        """Return whether it runs the item with this key."""
        return self._running_keys[key] > 0

    def run_item(self, key: Any, item: Any) -> None:
        """Run an item."""
        self._running_keys[key] += 1
        local_executor.run_locally(self, key, item)

    def forget(self, key: Any) -> None:
        """Stop counting an item among those that it runs."""
        self._running_keys.pop(key, None)

    def find_lost_keys(self) -> list[Any]:
        """Return the keys that it runs if one of its processes has died since the last call.

        The dead process may not have reported an end.
        """
        pids_before, self._pids = self._pids, self._alive_pids()
        return list(self._running_keys) if pids_before - self._pids else []

    def _alive_pids(self) -> frozenset[int]:
        return frozenset(process.pid for process in local_executor.local_processes(self) if process.is_alive())

    # --- overrides of Airflow's LocalExecutor

    def start(self) -> None:
        """Start the processes, as the parent does."""
        self._has_started = True
        # Airflow 2.11 starts processes only here.
        with environment_variables(self._environment):
            super().start()
        # Airflow 3.0 would fork them one by one on demand, when this process already has threads.
        if multiprocessing.get_start_method() == "fork":
            while len(local_executor.local_processes(self)) < self.parallelism:
                self._spawn_worker()
        self._pids = self._alive_pids()

    def end(self) -> None:
        """Wait until all items are done, and end the processes, as the parent does."""
        # A scheduler may be asked to end before it has started all workers.
        if self._has_started:
            local_executor.stop_local_processes(self)
            super().end()

    def _spawn_worker(self) -> None:
        # The environment is set in the new process: a fork server passes on its own, not this process's.
        run, arguments = local_executor.local_process(self)
        with defer_signals() as handlers, self._owner.monitor_paused():
            process = multiprocessing.Process(
                target=run_with_environment, args=(self._environment, handlers, run), kwargs=arguments
            )
            process.start()
            assert process.pid is not None
            self.workers[process.pid] = process

    def change_state(self, key: Any, state: Any, info: Any = None, remove_running: bool = True) -> None:  # noqa: ARG002 (Airflow's signature)
        """Report an item's new state to the owner."""
        # Callbacks and connection tests also report that they begin.
        is_over = str(getattr(state, "value", state)) != "running"
        if is_over and self.is_running(key):
            self._running_keys[key] -= 1
            self._running_keys += Counter()
        self._owner.on_state_change(key, state, info, is_over=is_over)


class NamedWorkers(LocalExecutor):
    """A LocalExecutor whose processes belong to several named workers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._workers: list[WorkerProcesses] = []

    def make_workers(self, settings: Sequence[LocalWorker]) -> None:
        """Create the workers, before the executor starts.

        :param settings: their names and slots
        """
        team = local_executor.team_name_of(self)
        options: dict[str, Any] = {} if team is None else {"team_name": team}
        for setting in settings:
            # Each team has its own executor, so names must differ between teams.
            name = setting.name if team is None else f"{setting.name}.{team}"
            worker, environment = identity.local_worker(
                name, hostname=local_executor.hostname(), labels=config.worker_labels(), image=config.worker_image()
            )
            job_id = self.job_id if isinstance(self.job_id, int) else None
            record = worker_record(worker, job_id=job_id)
            self._workers.append(WorkerProcesses(record, environment, self, parallelism=setting.concurrency, **options))

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

    def monitor_paused(self) -> AbstractContextManager[None]:
        """Keep the monitor's thread idle within the context, while a process is forked."""
        return nullcontext()

    def run_on(self, worker: WorkerProcesses, key: Any, item: Any) -> None:
        """Run an item on a worker."""
        worker.run_item(key, item)
        self.running.add(key)

    def on_state_change(self, key: Any, state: Any, info: Any, *, is_over: bool) -> None:
        """Change an item's state as the worker that runs it reports it.

        :param is_over: whether the item has ended
        """
        is_elsewhere = any(other.is_running(key) for other in self._workers)
        self.change_state(key, state, info, remove_running=is_over and not is_elsewhere)
