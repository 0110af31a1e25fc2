"""The executor with named local workers, with real processes of Airflow's: only what a task does is the test's own."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections import Counter
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from airflow.executors.local_executor import LocalExecutor
from sqlalchemy import update

from airflow_worker_insight import compat, identity
from airflow_worker_insight.compat import local_executor, task_runtime
from airflow_worker_insight.domain.reasons import PlacementReason
from airflow_worker_insight.executors.keys import try_key
from airflow_worker_insight.executors.local import WorkerInsightLocalExecutor
from airflow_worker_insight.executors.local.monitor import LocalWorkerMonitor, OwnWorker
from airflow_worker_insight.store import migrate, placements
from airflow_worker_insight.store.tables import worker
from tests.support.processes import wait_for
from tests.unit.database import NOON, add_run, add_try, change_try
from tests.unit.executors.failures import refused_placements
from tests.unit.executors.workloads import a_workload, put, queue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_mock import MockerFixture

    from airflow_worker_insight.executors.placement.service import PlacementService
    from tests.unit.database import Database

pytestmark = pytest.mark.usefixtures("database")

WORKERS = "w1:2,w2:2"


@dataclass
class Work:
    """What the tasks of a test do, in their processes: they note their worker; those named so wait or fail."""

    folder: Path

    def __call__(self, name: str) -> None:
        worker = identity.whoami(executor="LocalExecutor", name=os.environ.get("AIRFLOW__WORKER_INSIGHT__WORKER_NAME"))
        line = {
            "task": name,
            "worker": worker.name,
            "worker_id": worker.worker_id,
            "full": worker.engine_name,
            "pid": os.getpid(),
        }
        with (self.folder / "ran").open("a") as file:
            file.write(json.dumps(line) + "\n")
        while name.startswith("held") and not (self.folder / "go").exists():
            time.sleep(0.01)
        if name.startswith("bad"):
            raise RuntimeError("on purpose")

    def ran(self) -> list[dict[str, Any]]:
        """Return what tasks have noted, in their order."""
        with suppress(FileNotFoundError):
            return [json.loads(line) for line in (self.folder / "ran").read_text().splitlines()]
        return []

    def let_go(self) -> None:
        """End those that wait."""
        (self.folder / "go").touch()


@pytest.fixture
def work(tmp_path: Path, mocker: MockerFixture) -> Iterator[Work]:
    """Put the test's work in the place of a supervisor; processes that are forked inherit it."""
    found = Work(tmp_path)
    if not compat.is_airflow_3():
        from airflow.executors.local_executor import LocalWorkerBase
        from airflow.utils.state import TaskInstanceState

        def run_command(_self: Any, command: list[str]) -> Any:
            try:
                found(command[4])
            except RuntimeError:
                return TaskInstanceState.FAILED
            return TaskInstanceState.SUCCESS

        mocker.patch.object(LocalWorkerBase, "_execute_work_in_fork", run_command)
    elif compat.airflow_version() >= (3, 3):
        from airflow.executors.base_executor import BaseExecutor

        def run_workload(workload: Any, **_: Any) -> None:
            found(workload.ti.task_id if hasattr(workload, "ti") else str(workload.key.id))

        mocker.patch.object(BaseExecutor, "run_workload", run_workload)
    else:
        mocker.patch(
            "airflow.executors.local_executor._execute_work", lambda _log, workload, *_: found(workload.ti.task_id)
        )
    yield found
    found.let_go()


class StoppedMonitor(LocalWorkerMonitor):
    """A monitor without a thread: the tests call ``run_once``."""

    def start(self) -> None:
        self.prepare()


class Executor(WorkerInsightLocalExecutor):
    """The executor with such a monitor, which polls no other workers."""

    def make_monitor(self, _service: PlacementService) -> StoppedMonitor:
        workers = [OwnWorker(worker.record, worker.parallelism) for worker in self._workers]
        return StoppedMonitor(workers, refresh=lambda **_: None)


@pytest.fixture
def start(work: Work, monkeypatch: pytest.MonkeyPatch, mocker: MockerFixture) -> Iterator[Callable[..., Any]]:
    """Return a function that starts an executor as a scheduler does; it is ended with the test."""
    mocker.patch.object(task_runtime, "in_scheduler", return_value=True)
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__LOCAL_WORKERS", WORKERS)
    started: list[Any] = []

    def begin(kind: type[LocalExecutor] = Executor, job_id: int | None = 7) -> Any:
        executor = kind(parallelism=4)  # type: ignore[no-untyped-call]
        executor.job_id = job_id
        started.append(executor)
        executor.start()
        return executor

    yield begin
    work.let_go()
    for executor in started:
        end(executor)


def end(executor: Any) -> None:
    if not isinstance(executor, WorkerInsightLocalExecutor):
        # Airflow's own might wait for ever.
        local_executor.stop_local_processes(executor)
    executor.end()


@pytest.fixture
def executor(start: Callable[..., Any]) -> Any:
    return start()


@pytest.fixture(params=["parent", "placing"])
def either(request: pytest.FixtureRequest, start: Callable[..., Any]) -> Any:
    """Return either executor: what is published of Airflow's must hold for both."""
    return start(LocalExecutor if request.param == "parent" else Executor)


def events_of(executor: Any, *keys: Any) -> dict[Any, str]:
    """Go round as a scheduler does until something has become of all of these; return what."""
    found: dict[Any, str] = {}

    def all_ended() -> bool:
        executor.heartbeat()
        events = executor.get_event_buffer()
        found.update({key: str(getattr(state, "value", state)) for key, (state, _) in events.items()})
        return found.keys() >= set(keys) and not set(found.values()) & {"running"}

    wait_for(all_ended, 60, "the ends of all tasks", interval=0.02)
    return found


def running(executor: Any, work: Work, number: int) -> None:
    """Go round until so many tasks have begun."""

    def have_begun() -> bool:
        executor.heartbeat()
        return len(work.ran()) >= number

    wait_for(have_begun, 60, f"{number} tasks to begin", interval=0.02)


def decide(database: Database, executor: Any, name: str, availability: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(update(worker).where(worker.c.name == name).values(availability=availability))
    executor._monitor.run_once()


def reasons(database: Database) -> Counter[str]:
    with database.engine.connect() as connection:
        return Counter(record.reason for record in placements.open_placements(connection))


def loads(database: Database) -> Counter[str]:
    names = {row["id"]: row["name"] for row in database.workers()}
    with database.engine.connect() as connection:
        return Counter({names[ref]: number for ref, number in placements.count_open(connection).items()})


# --- its workers -----------------------------------------------------------------------------------------------------


def test_workers_are_registered_before_their_first_task(executor: Any, database: Database) -> None:
    found = {row["name"]: row for row in database.workers()}
    assert set(found) == {"w1", "w2"}
    for name, row in found.items():
        assert (row["kind"], row["state"], row["concurrency"], row["job_id"]) == ("local", "online", 2, 7)
        assert (row["pid"], row["engine_name"]) == (os.getpid(), f"{name}@{local_executor.hostname()}")
    assert len(executor._workers) == 2


def test_process_that_is_no_scheduler_registers_no_workers(
    start: Callable[..., Any], work: Work, database: Database
) -> None:
    """``dag.test(use_executor=True)`` loads the scheduler's module, and has no scheduler's job."""
    executor = start(job_id=None)
    work.let_go()
    (key,) = queue(executor, "tested")
    assert events_of(executor, key) == {key: "success"}
    assert database.workers() == []


def test_each_process_reports_its_worker(executor: Any, work: Work, database: Database) -> None:
    keys = queue(executor, *(f"held-{number}" for number in range(4)))
    running(executor, work, 4)
    work.let_go()
    events_of(executor, *keys)
    known = {row["worker_id"]: (row["name"], row["engine_name"]) for row in database.workers()}
    reported = Counter((entry["worker_id"], entry["worker"], entry["full"]) for entry in work.ran())
    assert reported == {(worker_id, *names): 2 for worker_id, names in known.items()}
    assert "AIRFLOW__WORKER_INSIGHT__WORKER_NAME" not in os.environ


def test_restart_is_a_new_instance_of_the_same_name(
    start: Callable[..., Any], database: Database, mocker: MockerFixture
) -> None:
    end(start())
    lineage = identity.worker.process.lineage()
    mocker.patch.object(identity.worker.process, "lineage", return_value=[lineage[0]._replace(start="0"), *lineage[1:]])
    with database.engine.begin() as connection:
        connection.execute(update(worker).where(worker.c.name == "w1").values(availability="quarantined"))
    start()
    rows = database.workers()
    assert [row["name"] for row in rows] == ["w1", "w2", "w1", "w2"]
    assert len({row["worker_id"] for row in rows}) == 4
    # A quarantine outlives the restart, and affects no other worker on that host.
    assert [row["availability"] for row in rows[2:]] == ["quarantined", "available"]


@pytest.mark.parametrize("setting", ["w1:2,w1:2", "w1:none", "zone=a"])
def test_scheduler_does_not_start_with_an_invalid_setting(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    from airflow.exceptions import AirflowConfigException

    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__LOCAL_WORKERS", setting)
    with pytest.raises(AirflowConfigException, match=r"WorkerInsightLocalExecutor cannot start.*local_workers"):
        start(WorkerInsightLocalExecutor)


# --- where tasks go --------------------------------------------------------------------------------------------------


def test_task_without_a_free_slot_stays_queued_until_there_is_one(
    executor: Any, work: Work, database: Database
) -> None:
    keys = queue(executor, *(f"held-{number}" for number in range(6)))
    running(executor, work, 4)
    assert loads(database) == {"w1": 2, "w2": 2}
    assert len(executor.running) == 4
    assert len(executor.queued_tasks) == 2
    assert executor.slots_available == 4 - 6
    assert reasons(database)[PlacementReason.FULL] == 0, "no open slot, no decision"
    work.let_go()
    assert set(events_of(executor, *keys).values()) == {"success"}
    # Any worker may run the last two.
    ran = Counter(entry["worker"] for entry in work.ran())
    assert (set(ran), sum(ran.values())) == ({"w1", "w2"}, 6)
    assert (loads(database), executor.running, executor.slots_occupied) == ({}, set(), 0)


def test_drained_worker_gets_no_new_task(executor: Any, work: Work, database: Database) -> None:
    decide(database, executor, "w1", "draining")
    keys = queue(executor, *(f"task-{number}" for number in range(5)))
    events_of(executor, *keys)
    assert {entry["worker"] for entry in work.ran()} == {"w2"}
    decide(database, executor, "w1", "available")
    decide(database, executor, "w2", "quarantined")
    events_of(executor, *queue(executor, "later"))
    assert work.ran()[-1]["worker"] == "w1"


def test_tasks_wait_with_a_reason_while_no_worker_is_available(executor: Any, work: Work, database: Database) -> None:
    for name in ("w1", "w2"):
        decide(database, executor, name, "quarantined")
    (key,) = queue(executor, "extract")
    executor.heartbeat()
    assert reasons(database) == {PlacementReason.NOT_AVAILABLE: 1}
    with database.engine.connect() as connection:
        (record,) = placements.open_placements(connection)
    assert record.detail.startswith("waits: no worker of the queue default is available; left out: w")
    assert key in executor.queued_tasks
    decide(database, executor, "w2", "available")
    assert events_of(executor, key) == {key: "success"}
    assert [entry["worker"] for entry in work.ran()] == ["w2"]


def test_retry_avoids_the_worker_that_failed_it(executor: Any, work: Work, database: Database) -> None:
    refs = {row["name"]: row["id"] for row in database.workers()}
    with database.engine.begin() as connection:
        run = add_run(connection, state="running", ended_at=None)
        add_try(connection, run, "extract", try_number=2, state="queued", ended_at=None)
        first = add_try(connection, run, "extract", try_number=1, state="failed", history=True)
        placements.write(
            connection, [placements.Placement(first, "least_loaded", "", refs["w1"], is_open=False)], now=NOON
        )
    for _ in range(2):
        events_of(executor, *queue(executor, "extract", try_number=2))
    assert [entry["worker"] for entry in work.ran()] == ["w2", "w2"]
    with database.engine.connect() as connection:
        assert placements.of_task_instance(connection, first)[2].reason == PlacementReason.RETRY_ELSEWHERE


@pytest.mark.parametrize("requested", ["w2", "w2@HOST"])
def test_task_may_request_a_worker_by_name(executor: Any, work: Work, database: Database, requested: str) -> None:
    (host,) = {row["hostname"] for row in database.workers()}
    workloads = [a_workload(f"task-{number}") for number in range(4)]
    for workload in workloads:
        workload.ti.executor_config = {"worker_insight": {"worker": requested.replace("HOST", host)}}
    keys = [put(executor, workload) for workload in workloads]
    assert set(events_of(executor, *keys).values()) == {"success"}
    assert {entry["worker"] for entry in work.ran()} == {"w2"}


def test_task_of_any_queue_is_run(executor: Any, work: Work) -> None:
    workload = a_workload("extract")
    workload.ti.queue = "gpu"
    key = put(executor, workload)
    assert events_of(executor, key) == {key: "success"}
    assert len(work.ran()) == 1


# --- where the registry cannot be read -------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["tables", "writing", "command"])
def test_fallback_mode_uses_all_workers(
    start: Callable[..., Any],
    work: Work,
    caplog: pytest.LogCaptureFixture,
    why: str,
    mocker: MockerFixture,
    database: Database,
) -> None:
    if why == "tables":
        migrate.downgrade("base")
    if why == "command":
        mocker.patch.object(task_runtime, "in_scheduler", return_value=False)
    executor = start()
    with refused_placements(database) if why == "writing" else nullcontext():
        for number in range(2):
            executor.queued_tasks.clear()
            keys = queue(executor, *(f"task-{number}-{each}" for each in range(4)))
            assert set(events_of(executor, *keys).values()) == {"success"}
    assert {entry["worker"] for entry in work.ran()} == {"w1", "w2"}
    logged = [entry for entry in caplog.records if "on the least loaded of its workers" in entry.message]
    assert len(logged) == (0 if why == "command" else 1)


def test_tasks_are_held_without_the_registry_if_configured(
    start: Callable[..., Any], work: Work, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__WHEN_WORKERS_UNSEEN", "hold")
    migrate.downgrade("base")
    executor = start()
    keys = queue(executor, "extract", "load")
    for _ in range(3):
        executor.heartbeat()
    assert work.ran() == []
    assert {*executor.queued_tasks} == {*keys}
    assert not executor.get_event_buffer()

    migrate.upgrade()
    executor._monitor.run_once()
    assert set(events_of(executor, *keys).values()) == {"success"}
    with database.engine.connect() as connection:
        assert [record.waits for record in placements.open_placements(connection)] == []


def test_quarantined_worker_gets_no_task_in_fallback_mode(executor: Any, work: Work, database: Database) -> None:
    decide(database, executor, "w1", "quarantined")
    with refused_placements(database):
        events_of(executor, *queue(executor, *(f"task-{number}" for number in range(4))))
    assert {entry["worker"] for entry in work.ran()} == {"w2"}


# --- processes that die ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not compat.is_airflow_3(), reason="on 2.11 the parent waits at its end for a task whose process was killed"
)
def test_task_whose_process_was_killed_frees_its_slot(executor: Any, work: Work, database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection, state="running", ended_at=None)
        keys = [add_try(connection, run, f"held-{n}", state="running", ended_at=None) for n in range(4)]
    queue(executor, *(f"held-{number}" for number in range(4)))
    running(executor, work, 4)
    killed = psutil.Process(work.ran()[0]["pid"])
    killed.send_signal(signal.SIGKILL)
    monitor = executor._monitor
    assert isinstance(monitor, LocalWorkerMonitor)

    def is_missed() -> bool:
        executor.sync()
        monitor.run_once()
        return bool(monitor._unchecked)

    wait_for(is_missed, 60, "the process to be missed", interval=0.02)
    assert len(executor.running) == 4, "Airflow says that they run"
    lost = next(key for key in keys if key.task_id == work.ran()[0]["task"])
    with database.engine.begin() as connection:
        change_try(connection, lost, state="failed")

    def is_freed() -> bool:
        monitor.run_once()
        executor.sync()
        return len(executor.running) == 3

    wait_for(is_freed, 60, "its slot", interval=0.02)
    assert lost not in {try_key(key) for key in executor.running}
    (extra,) = queue(executor, "extra")
    assert events_of(executor, extra) == {extra: "success"}


def test_scheduler_that_ends_waits_for_its_tasks(executor: Any, work: Work, database: Database) -> None:
    keys = queue(executor, "held-1", "bad-1")
    running(executor, work, 2)
    work.let_go()
    executor.end()
    assert set(executor.get_event_buffer()) == set(keys)
    assert (executor.running, loads(database)) == (set(), {})


# Hooks around forks cannot be taken away again.
at_fork: list[Callable[[], None]] = []
os.register_at_fork(after_in_parent=lambda: [act() for act in at_fork])


@pytest.mark.skipif(not compat.is_airflow_3(), reason="2.11 starts the processes itself")
def test_signal_during_a_fork_is_not_lost(start: Callable[..., Any]) -> None:
    def leave(_number: int, _frame: object) -> None:
        raise SystemExit

    before = signal.signal(signal.SIGTERM, leave)
    at_fork.append(lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(SystemExit):
            start()
        assert signal.getsignal(signal.SIGTERM) is leave
    finally:
        at_fork.clear()
        signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(not compat.is_airflow_3(), reason="2.11 sends as many messages as there are processes")
def test_process_that_takes_the_message_of_another_leaves_none_behind(
    executor: Any, work: Work, mocker: MockerFixture
) -> None:
    queue(executor, "held-1", "held-2")
    running(executor, work, 2)
    (idle, *_) = [
        process
        for processes in executor._workers[:1]
        for process in local_executor.local_processes(processes)
        if process.pid not in {entry["pid"] for entry in work.ran()}
    ]
    is_alive = type(idle).is_alive

    def slow(process: Any) -> bool:
        # The parent is so slow that the one with nothing to do has ended when it comes to it.
        if process is idle:
            process.join()
        return is_alive(process)

    first = executor._workers[0]
    # It is checked last.
    first.workers = {process.pid: process for process in sorted(first.workers.values(), key=lambda each: each is idle)}
    mocker.patch.object(type(idle), "is_alive", slow)
    work.let_go()
    executor.end()
    assert executor.running == set()


# --- what stays the parent's -----------------------------------------------------------------------------------------


def test_tasks_are_queued_run_and_ended(either: Any) -> None:
    good, bad = queue(either, "good", "bad")
    if compat.airflow_version() != (3, 0) or isinstance(either, WorkerInsightLocalExecutor):
        # The parent of 3.0 begins with it at once.
        assert either.has_task(SimpleNamespace(id=None, key=good))
    assert events_of(either, good, bad) == {good: "success", bad: "failed"}
    assert (either.running, either.queued_tasks, either.slots_occupied) == (set(), {}, 0)
    assert either.slots_available == 4


def test_no_task_is_adopted_or_revoked(either: Any) -> None:
    tis = [SimpleNamespace(key=a_workload("extract").ti.key)]
    assert list(either.try_adopt_task_instances(tis)) == tis
    with pytest.raises(NotImplementedError):
        either.revoke_task(ti=tis[0])


def test_executor_can_end_and_start_again(either: Any) -> None:
    end(either)
    either.terminate()
    either.start()
    (key,) = queue(either, "good")
    assert events_of(either, key) == {key: "success"}


@pytest.mark.skipif(compat.airflow_version() < (3, 3), reason="this is how 3.3 has them")
def test_callbacks_and_connection_tests_run(either: Any, work: Work, database: Database) -> None:
    from airflow.executors import workloads
    from airflow.executors.workloads.callback import CallbackDTO, CallbackFetchMethod
    from airflow.executors.workloads.connection_test import TestConnection

    callback = workloads.ExecuteCallback(
        callback=CallbackDTO(id=str(uuid.uuid4()), fetch_method=CallbackFetchMethod.IMPORT_PATH, data={"path": "a.b"}),
        dag_rel_path="etl.py",  # type: ignore[arg-type]
        token="t",
        log_path="l",
        bundle_info=workloads.BundleInfo(name="dags", version=None),
    )
    test = TestConnection(connection_test_id=uuid.uuid4(), connection_id="db", timeout=10, token="t")
    if isinstance(either, WorkerInsightLocalExecutor):
        # Even on quarantined workers: these cannot wait.
        for name in ("w1", "w2"):
            decide(database, either, name, "quarantined")
    for workload in (callback, test):
        either.queue_workload(workload, session=None)
    assert events_of(either, callback.key, test.key) == {callback.key: "success", test.key: "success"}
    assert {entry["task"] for entry in work.ran()} == {str(callback.key.id), str(test.key.id)}
    assert (either.running, either.slots_occupied) == (set(), 0)
    if isinstance(either, WorkerInsightLocalExecutor):
        assert [processes.load for processes in either._workers] == [0, 0]


def test_callbacks_of_one_batch_are_spread(executor: Any) -> None:
    chosen = executor._choose([(f"callback-{number}", None, "") for number in range(4)])
    assert Counter(processes.record.name for *_, processes in chosen) == {"w1": 2, "w2": 2}


def test_capabilities_are_those_of_the_parent() -> None:
    assert WorkerInsightLocalExecutor().parallelism == LocalExecutor().parallelism  # type: ignore[no-untyped-call]
    for name in ("supports_ad_hoc_ti_run", "supports_callbacks", "supports_multi_team", "is_local", "serve_logs"):
        assert getattr(WorkerInsightLocalExecutor, name, None) == getattr(LocalExecutor, name, None)
    assert WorkerInsightLocalExecutor.get_cli_commands() == LocalExecutor.get_cli_commands()


@pytest.mark.skipif(compat.airflow_version() < (3, 2), reason="executors of teams are 3.2's")
def test_each_team_has_its_own_workers(start: Callable[..., Any], database: Database) -> None:
    class OfATeam(Executor):
        def __init__(self, **others: Any) -> None:
            super().__init__(team_name="billing", **others)

    start()
    of_a_team = start(OfATeam)
    assert [row["name"] for row in database.workers()] == ["w1", "w2", "w1.billing", "w2.billing"]
    assert len({row["worker_id"] for row in database.workers()}) == 4
    assert {processes.team_name for processes in of_a_team._workers} == {"billing"}
