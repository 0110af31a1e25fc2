"""The executor with placement on Celery workers: what it changes, and that all else is the parent's."""

from __future__ import annotations

import socket
import time
import uuid
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight import compat
from airflow_worker_insight.capture import counters
from airflow_worker_insight.compat import celery as airflow_celery
from airflow_worker_insight.compat import task_runtime
from airflow_worker_insight.domain.reasons import PlacementReason
from airflow_worker_insight.executors.celery.queues import dedicated_queue
from airflow_worker_insight.executors.placement.policy import Candidate
from airflow_worker_insight.executors.placement.rules import Rules
from airflow_worker_insight.executors.placement.service import PlacementService, Snapshot
from airflow_worker_insight.store import migrate, placements
from tests.unit.database import add_run, add_try
from tests.unit.executors.failures import missing_table, refused_placements
from tests.unit.executors.workloads import a_workload, put, queue

if TYPE_CHECKING:
    from pytest_mock import MockerFixture

    from airflow_worker_insight.domain.keys import TryKey
    from airflow_worker_insight.store.placements import Placement
    from tests.unit.database import Database

pytest.importorskip("celery")

from airflow.providers.celery.executors.celery_executor import CeleryExecutor
from celery import Celery
from kombu.exceptions import OperationalError

from airflow_worker_insight.executors import base, keys, recorder
from airflow_worker_insight.executors.celery import WorkerInsightCeleryExecutor
from airflow_worker_insight.executors.recorder import PlacementRecorder, RecorderSettings

# Executors need the database, and send to Celery.
pytestmark = pytest.mark.usefixtures("database", "sent")

W1 = Candidate(ref=1, worker_id="celery-1", name="w1@host", queues=frozenset({"default"}), concurrency=2, capacity=3)


class FakeMonitor:
    """Knows what a test says."""

    def __init__(self, *candidates: Candidate, **others: Any) -> None:
        self.known: Snapshot | None = Snapshot(candidates, time.monotonic(), **others)

    def snapshot(self) -> Snapshot | None:
        return self.known

    def stop(self) -> None:
        pass


class Sent(list[tuple[str, str]]):
    """Tasks passed to Celery, with their queues."""

    fails: Exception | None = None


@pytest.fixture
def sent(mocker: MockerFixture) -> Sent:
    from airflow.providers.celery.executors.celery_executor_utils import ExceptionWithTraceback

    found = Sent()

    def send(_self: Any, items: Any) -> list[Any]:
        results = []
        for key, workload, name, *_ in items:
            found.append((getattr(key, "task_id", str(key)), name))
            result: Any = SimpleNamespace(task_id=str(uuid.uuid4()), backend=None, state="PENDING")
            results.append((key, workload, ExceptionWithTraceback(found.fails, "") if found.fails else result))
        return results

    name = (
        "_send_workloads_to_celery" if hasattr(CeleryExecutor, "_send_workloads_to_celery") else "_send_tasks_to_celery"
    )
    mocker.patch.object(CeleryExecutor, name, send)
    return found


def make_executor(
    kind: type[WorkerInsightCeleryExecutor] = WorkerInsightCeleryExecutor,
    rules: Rules | None = None,
    *,
    recorder: PlacementRecorder | None = None,
    **options: Any,
) -> WorkerInsightCeleryExecutor:
    """Return an executor with one worker; what it does at intervals is always due."""
    always_due = RecorderSettings(unwanted_check_interval=0.0, ends_retry_delay=0.0)
    executor = kind(recorder=recorder or PlacementRecorder(settings=always_due), **options)
    executor._service = PlacementService(rules or Rules("least_loaded", 1))
    executor._monitor = FakeMonitor(W1)  # type: ignore[assignment]
    return executor


@pytest.fixture
def executor() -> WorkerInsightCeleryExecutor:
    return make_executor()


def stored(database: Database) -> list[Placement]:
    with database.engine.connect() as connection:
        return placements.open_placements(connection)


def loads(database: Database) -> dict[int, int]:
    with database.engine.connect() as connection:
        return placements.count_open(connection)


# --- what it changes -------------------------------------------------------------------------------------------------


def test_task_goes_to_the_dedicated_queue_of_its_worker(
    executor: WorkerInsightCeleryExecutor, sent: Sent, database: Database
) -> None:
    (key,) = queue(executor, "extract")
    executor.trigger_tasks(8)
    assert sent == [("extract", dedicated_queue("celery-1"))]
    assert executor.running == {key}
    assert not executor.queued_tasks
    (record,) = stored(database)
    assert (record.key.task_id, record.worker_ref, record.dedicated_queue) == (
        "extract",
        1,
        dedicated_queue("celery-1"),
    )
    assert record.detail == "w1@host: least loaded of one worker, 0 of 3 slots taken"


def test_task_without_room_stays_queued_until_there_is_some(
    executor: WorkerInsightCeleryExecutor, sent: Sent, database: Database
) -> None:
    keys = queue(executor, *(f"task-{number}" for number in range(5)))
    executor.trigger_tasks(8)
    assert len(sent) == 3
    assert len(executor.queued_tasks) == 2
    assert loads(database) == {1: 3}
    executor.trigger_tasks(8)
    assert len(sent) == 3
    executor.success(keys[0])
    executor.fail(keys[1])
    executor._recorder.write_ends()
    assert loads(database) == {1: 1}
    executor.trigger_tasks(8)
    assert len(sent) == 5
    assert not executor.queued_tasks


def test_waiting_task_does_not_take_the_slot_of_another(executor: WorkerInsightCeleryExecutor, sent: Sent) -> None:
    nowhere = {"worker_insight": {"labels": {"zone": "moon"}}}
    waiting = [a_workload(f"moon-{number}", priority=9) for number in range(4)]
    for workload in waiting:
        workload.ti.executor_config = nowhere
        put(executor, workload)
    queue(executor, "extract")
    executor.trigger_tasks(2)
    assert [task for task, _ in sent] == ["extract"]
    assert len(executor.queued_tasks) == 4


def test_no_more_tasks_are_sent_than_there_are_slots(executor: WorkerInsightCeleryExecutor, sent: Sent) -> None:
    queue(executor, "low", priority=1)
    queue(executor, "high", priority=2)
    # (3.2 has it the other way round.)
    first = executor.order_queued_tasks_by_priority()[0][0].task_id
    executor.trigger_tasks(0)
    assert sent == []
    executor.trigger_tasks(1)
    assert [task for task, _ in sent] == [first]


@pytest.mark.parametrize(
    ("requested", "reason"),
    [
        ({"labels": {"zone": "moon"}}, PlacementReason.NO_LABEL),
        ({"labels": "moon"}, PlacementReason.INVALID_REQUEST),
        ("moon", PlacementReason.INVALID_REQUEST),
    ],
)
def test_reason_to_wait_is_written_once(
    executor: WorkerInsightCeleryExecutor, database: Database, requested: Any, reason: str
) -> None:
    (workload,) = [a_workload("extract")]
    workload.ti.executor_config = {"worker_insight": requested}
    put(executor, workload)
    executor.trigger_tasks(8)
    (record,) = stored(database)
    executor.trigger_tasks(8)
    assert stored(database) == [record]
    assert (record.reason, record.worker_ref, record.dedicated_queue) == (reason, None, None)
    assert loads(database) == {}
    workload.ti.executor_config = None
    executor.trigger_tasks(8)
    assert loads(database) == {1: 1}


def test_reason_to_wait_follows_the_state_of_the_worker(
    executor: WorkerInsightCeleryExecutor, database: Database
) -> None:
    monitor: Any = executor._monitor
    queue(executor, "extract")
    for availability in ("quarantined", "draining"):
        monitor.known = Snapshot((replace(W1, availability=availability),), time.monotonic())
        executor.trigger_tasks(8)
        (record,) = stored(database)
        assert (record.reason, availability in record.detail) == (PlacementReason.NOT_AVAILABLE, True)


def test_fallback_may_be_the_shared_queue(
    executor: WorkerInsightCeleryExecutor, sent: Sent, database: Database
) -> None:
    executor._service = PlacementService(Rules("least_loaded", 1, "shared_queue"))
    executor._monitor = FakeMonitor(replace(W1, availability="quarantined"))  # type: ignore[assignment]
    queue(executor, "extract")
    executor.trigger_tasks(8)
    assert sent == [("extract", "default")]
    (record,) = stored(database)
    assert (record.reason, record.worker_ref) == (PlacementReason.SHARED_QUEUE, None)
    assert "w1@host (quarantined)" in record.detail


def test_full_worker_is_full_for_all_schedulers(
    executor: WorkerInsightCeleryExecutor, sent: Sent, database: Database
) -> None:
    other = WorkerInsightCeleryExecutor()
    other._service, other._monitor = executor._service, executor._monitor
    queue(other, *(f"other-{number}" for number in range(3)))
    other.trigger_tasks(8)
    queue(executor, "extract")
    executor.trigger_tasks(8)
    assert len(sent) == 3
    assert [record.reason for record in stored(database) if record.key.task_id == "extract"] == [PlacementReason.FULL]


def test_retry_avoids_the_worker_that_failed_it(
    executor: WorkerInsightCeleryExecutor, sent: Sent, database: Database
) -> None:
    from airflow_worker_insight.store.workers.upsert import upsert_worker
    from tests.unit.database import NOON, a_worker

    refs = {}
    with database.engine.begin() as connection:
        run = add_run(connection, state="running", ended_at=None)
        add_try(connection, run, try_number=2, state="queued", ended_at=None, hostname=None)
        first = add_try(connection, run, try_number=1, state="failed", history=True)
        for name in ("w1", "w2"):
            refs[name] = upsert_worker(connection, a_worker(f"celery-{name}", engine_name=f"{name}@host"), now=NOON)
        record = placements.Placement(first, "least_loaded", "", worker_ref=refs["w1"], is_open=False)
        placements.write(connection, [record], now=NOON)
    w2 = replace(W1, ref=refs["w2"], worker_id="celery-2", name="w2@host", load=0)
    executor._monitor = FakeMonitor(replace(W1, ref=refs["w1"]), w2)  # type: ignore[assignment]
    for _ in range(2):
        sent.clear()
        queue(executor, "extract", try_number=2)
        executor.trigger_tasks(8)
        assert sent == [("extract", dedicated_queue("celery-2"))]
        executor.running.clear()


# --- where the workers cannot be seen --------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["unavailable", "old", "nothing", "tables"])
def test_fallback_mode_sends_as_the_parent_and_is_logged_once(
    executor: WorkerInsightCeleryExecutor, sent: Sent, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    monitor: Any = executor._monitor
    if why == "unavailable":
        monitor.known = Snapshot((W1,), time.monotonic(), unavailable_reason="Worker states are stale.")
    elif why == "old":
        monitor.known = Snapshot((W1,), time.monotonic() - 3600)
    elif why == "nothing":
        monitor.known = None
    else:
        migrate.downgrade("base")
    for number in range(3):
        queue(executor, f"task-{number}")
        executor.trigger_tasks(8)
    assert sent == [(f"task-{number}", "default") for number in range(3)]
    assert len(executor.running) == 3
    assert [record.message for record in caplog.records].count(
        next(record.message for record in caplog.records if "as Airflow's own CeleryExecutor does" in record.message)
    ) == 1


def test_one_failure_does_not_start_fallback_mode(
    executor: WorkerInsightCeleryExecutor, sent: Sent, database: Database
) -> None:
    queue(executor, "extract")
    monitor: Any = executor._monitor
    monitor.known = Snapshot((replace(W1, state="lost"),), time.monotonic())
    with refused_placements(database):
        executor.trigger_tasks(8)
    assert sent == []
    # Its reason is written as soon as it can be.
    executor.trigger_tasks(8)
    with database.engine.connect() as connection:
        (record,) = placements.open_placements(connection)
    assert record.reason == PlacementReason.NOT_AVAILABLE


def test_begin_and_end_of_fallback_mode_are_logged(
    executor: WorkerInsightCeleryExecutor, sent: Sent, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monitor: Any = executor._monitor
    known = monitor.known
    for number in range(2):
        for snapshot in (
            replace(known, unavailable_reason="Worker states are stale."),
            replace(known, taken_at=time.monotonic()),
        ):
            monitor.known = snapshot
            queue(executor, f"task-{number}-{snapshot.unavailable_reason}")
            executor.trigger_tasks(8)
    assert len(sent) == 4
    logged = [entry.message for entry in caplog.records if entry.name == base.__name__]
    assert ["cannot place" in message for message in logged] == [True, False, True, False]


def test_task_behind_the_last_slot_is_still_tracked_as_waiting(
    executor: WorkerInsightCeleryExecutor, sent: Sent, database: Database
) -> None:
    monitor: Any = executor._monitor
    monitor.known = Snapshot((replace(W1, state="lost"),), time.monotonic())
    keys = queue(executor, "extract", "load")
    executor.trigger_tasks(8)
    # One of them is sent, and the other one is not come to.
    monitor.known = Snapshot((W1,), time.monotonic())
    executor.trigger_tasks(1)
    assert len(sent) == 1
    monitor.known = Snapshot((), time.monotonic(), unavailable_reason="Worker states are stale.")
    executor.trigger_tasks(8)
    executor._recorder.write_ends()
    with database.engine.connect() as connection:
        assert not any(
            record.waits for record in placements.open_placements_of(connection, [a_key(key) for key in keys]).values()
        )


def test_waiting_record_is_closed_when_the_task_is_sent_in_fallback_mode(
    executor: WorkerInsightCeleryExecutor, sent: Sent, database: Database
) -> None:
    monitor: Any = executor._monitor
    monitor.known = Snapshot((replace(W1, state="lost"),), time.monotonic())
    (key,) = queue(executor, "extract")
    executor.trigger_tasks(8)
    with database.engine.connect() as connection:
        assert placements.open_placements_of(connection, [a_key(key)])[a_key(key)].waits
    monitor.known = Snapshot((), time.monotonic(), unavailable_reason="Worker states are stale.")
    executor.trigger_tasks(8)
    executor._recorder.write_ends()
    assert sent == [("extract", "default")]
    with database.engine.connect() as connection:
        assert placements.open_placements_of(connection, [a_key(key)]) == {}


def test_scheduler_that_has_just_started_waits_for_the_first_snapshot(sent: Sent) -> None:
    clock = SimpleNamespace(now=0.0)
    executor = make_executor(clock=lambda: clock.now)
    monitor: Any = executor._monitor
    monitor.known = None
    (key,) = queue(executor, "extract")
    executor.trigger_tasks(8)
    assert sent == []
    assert set(executor.queued_tasks) == {key}
    clock.now += base.DEFAULTS.first_snapshot_timeout
    executor.trigger_tasks(8)
    assert sent == [("extract", "default")]


def test_command_that_sends_one_task_behaves_like_the_parent(
    executor: WorkerInsightCeleryExecutor, sent: Sent, mocker: MockerFixture
) -> None:
    mocker.patch.object(task_runtime, "in_scheduler", return_value=False)
    executor._monitor = None
    executor.start()
    assert executor._monitor is None
    queue(executor, "extract")
    executor.trigger_tasks(8)
    executor.sync()
    assert sent == [("extract", "default")]


@pytest.mark.parametrize(
    ("option", "value", "says"), [("STRATEGY", "fastest", "fastest"), ("LABELS", "gpu", "pool:key=value")]
)
def test_scheduler_does_not_start_with_an_invalid_setting(
    executor: WorkerInsightCeleryExecutor, monkeypatch: pytest.MonkeyPatch, option: str, value: str, says: str
) -> None:
    from airflow.exceptions import AirflowConfigException

    monkeypatch.setenv(f"AIRFLOW__WORKER_INSIGHT__PLACEMENT_{option}", value)
    with pytest.raises(AirflowConfigException, match=says):
        executor.start()


def end_without_the_database(executor: Any, database: Database) -> Any:
    """Have a task run and end, which cannot be written; return its key."""
    (key,) = queue(executor, "extract")
    executor.trigger_tasks(8)
    executor.success(key)
    with missing_table(database):
        executor._recorder.write_ends()
    return key


def test_ends_that_cannot_be_written_are_written_later(
    executor: WorkerInsightCeleryExecutor, database: Database
) -> None:
    end_without_the_database(executor, database)
    assert loads(database) == {1: 1}
    executor._recorder.write_ends()
    assert loads(database) == {}


def test_unwritten_end_does_not_free_the_slot_of_the_resumed_try(
    executor: WorkerInsightCeleryExecutor, sent: Sent, database: Database
) -> None:
    key = end_without_the_database(executor, database)
    # It was deferred, and its trigger has fired.
    assert queue(executor, "extract") == [key]
    executor.trigger_tasks(8)
    executor._recorder.write_ends()
    assert len(sent) == 2
    assert loads(database) == {1: 1}


def test_late_end_does_not_free_the_slot_of_a_later_placement(
    executor: WorkerInsightCeleryExecutor, sent: Sent, database: Database
) -> None:
    (key,) = queue(executor, "deferred")
    executor.trigger_tasks(8)
    other = WorkerInsightCeleryExecutor()
    other._service, other._monitor = executor._service, executor._monitor
    # Its trigger fires, and the other one goes on with it before this one hears that it was deferred.
    queue(other, "deferred")
    other.trigger_tasks(8)
    executor.success(key)
    executor._recorder.write_ends()
    assert len(sent) == 2
    assert loads(database) == {1: 1}
    other.success(key)
    other._recorder.write_ends()
    assert loads(database) == {}


def test_revoked_task_that_is_queued_again_is_tracked_as_waiting(
    executor: WorkerInsightCeleryExecutor, database: Database
) -> None:
    monitor: Any = executor._monitor
    monitor.known = Snapshot((replace(W1, state="lost"),), time.monotonic())
    (key,) = queue(executor, "stuck")
    executor.trigger_tasks(8)
    executor.revoke_task(ti=SimpleNamespace(key=key, queued_by_job_id=None, external_executor_id=None))
    assert queue(executor, "stuck") == [key]
    executor._recorder.write_ends()
    executor.trigger_tasks(8)
    executor._recorder.write_ends()
    with database.engine.connect() as connection:
        assert placements.open_placements_of(connection, [a_key(key)])[a_key(key)].waits


def test_waiting_task_that_should_not_run_any_more_frees_its_slot(
    executor: WorkerInsightCeleryExecutor, database: Database
) -> None:
    monitor: Any = executor._monitor
    monitor.known = Snapshot((replace(W1, availability="quarantined"),), time.monotonic())
    with database.engine.begin() as connection:
        run = add_run(connection, state="running", ended_at=None)
        states = {"wanted": "queued", "failed": "failed", "elsewhere": "running", "good": "success", "reset": None}
        for task_id, state in states.items():
            add_try(connection, run, task_id, state=state, ended_at=None)
        add_try(connection, run, "cleared", try_number=2, state="queued", ended_at=None)
    wanted, *others = queue(executor, *states, "cleared", "deleted")
    slots = executor.slots_available
    executor.trigger_tasks(8)
    executor.sync()
    assert set(executor.queued_tasks) == {wanted, *others}, "what was just queued may not be committed yet"
    executor.trigger_tasks(8)
    executor.sync()
    assert set(executor.queued_tasks) == {wanted}
    assert executor.slots_available == slots + len(others)
    assert [record.key.task_id for record in stored(database)] == ["wanted"]
    (again,) = queue(executor, "cleared", try_number=2)
    executor.trigger_tasks(8)
    assert set(executor.queued_tasks) == {wanted, again}
    monitor.known = Snapshot((W1,), time.monotonic())
    executor.trigger_tasks(8)
    assert executor.running == {wanted, again}
    assert not executor._recorder._waiting


def test_waiting_tasks_are_checked_at_intervals(sent: Sent) -> None:
    clock = SimpleNamespace(now=1000.0)
    executor = make_executor(recorder=PlacementRecorder(clock=lambda: clock.now))
    monitor: Any = executor._monitor
    monitor.known = Snapshot((replace(W1, availability="quarantined"),), time.monotonic())
    # Airflow has no such try.
    (key,) = queue(executor, "extract")
    for seconds in (0, 0, recorder.DEFAULTS.unwanted_check_interval - 1, 0):
        clock.now += seconds
        executor.trigger_tasks(8)
        executor.sync()
        assert set(executor.queued_tasks) == {key}
    clock.now += 1
    executor.sync()
    assert not executor.queued_tasks
    assert sent == []


def test_waiting_tasks_keep_their_slots_while_the_database_is_away(
    executor: WorkerInsightCeleryExecutor, database: Database
) -> None:
    monitor: Any = executor._monitor
    monitor.known = Snapshot((replace(W1, availability="quarantined"),), time.monotonic())
    (key,) = queue(executor, "extract")
    executor.trigger_tasks(8)
    with missing_table(database, "task_instance"):
        for _ in range(3):
            executor.sync()
    assert set(executor.queued_tasks) == {key}
    for _ in range(2):
        executor.sync()
    assert not executor.queued_tasks


# --- what stays the parent's -----------------------------------------------------------------------------------------


@pytest.fixture(params=["parent", "placing"])
def either(request: pytest.FixtureRequest, executor: WorkerInsightCeleryExecutor) -> CeleryExecutor:
    """Return either executor: what is published of Airflow's must hold for both."""
    return executor if request.param == "placing" else CeleryExecutor()


def a_key(key: Any) -> TryKey:
    return keys.try_key(key)


def test_task_is_queued_sent_and_ended(either: CeleryExecutor) -> None:
    good, bad = queue(either, "good", "bad")
    assert either.has_task(SimpleNamespace(id=None, key=good))  # type: ignore[arg-type]
    either.trigger_tasks(8)
    events = either.get_event_buffer()
    assert {key: state for key, (state, _) in events.items()} == {good: "queued", bad: "queued"}
    assert all(info for _, info in events.values()), "the ID of the Celery task"
    assert either.slots_occupied == 2
    either.update_task_state(good, "SUCCESS", None)
    either.update_task_state(bad, "FAILURE", None)
    assert {key: state for key, (state, _) in either.get_event_buffer().items()} == {good: "success", bad: "failed"}
    assert (either.running, either.slots_occupied) == (set(), 0)


def test_task_that_cannot_be_sent_fails(either: CeleryExecutor, sent: Sent, database: Database) -> None:
    sent.fails = OSError("refused")
    (key,) = queue(either, "extract")
    either.trigger_tasks(8)
    assert either.get_event_buffer()[key][0] == "failed"
    assert not either.queued_tasks
    either.sync()
    assert loads(database) == {}


def test_revoked_task_frees_its_slot(either: CeleryExecutor, database: Database, mocker: MockerFixture) -> None:
    revoked: list[str] = []
    control = SimpleNamespace(revoke=revoked.append)
    mocker.patch.object(type(airflow_celery.celery_app_of(either)), "control", control)
    sent_key, waiting_key = queue(either, "sent", "waiting")
    either.queued_tasks.pop(waiting_key)
    either.trigger_tasks(8)
    queue(either, "waiting")
    for key in (sent_key, waiting_key):
        either.revoke_task(ti=SimpleNamespace(key=key))  # type: ignore[arg-type]
    assert len(revoked) == 1
    assert (either.running, either.queued_tasks) == (set(), {})
    either.sync()
    assert loads(database) == {}


def test_running_task_is_adopted(either: CeleryExecutor, mocker: MockerFixture) -> None:
    fetcher: Any = either.bulk_state_fetcher
    mocker.patch.object(fetcher, "get_many", lambda results: {result.task_id: ("STARTED", None) for result in results})
    (key,) = queue(WorkerInsightCeleryExecutor(), "extract")
    known = SimpleNamespace(key=key, external_executor_id=str(uuid.uuid4()))
    unknown = SimpleNamespace(key=a_workload("other").ti.key, external_executor_id=None)
    mocker.patch("celery.result.AsyncResult.result", None)
    assert either.try_adopt_task_instances([known, unknown]) == [unknown]  # type: ignore[list-item]
    assert either.running == {key}


def test_task_that_ended_before_its_adoption_frees_its_slot(
    executor: WorkerInsightCeleryExecutor, database: Database, mocker: MockerFixture
) -> None:
    keys = queue(executor, "ended", "unknown")
    executor.trigger_tasks(8)
    after = WorkerInsightCeleryExecutor()
    after._monitor = executor._monitor
    mocker.patch.object(
        after.bulk_state_fetcher, "get_many", lambda results: {result.task_id: ("SUCCESS", None) for result in results}
    )
    mocker.patch("celery.result.AsyncResult.result", None)
    ended, unknown = (SimpleNamespace(key=key, external_executor_id=None, state="queued") for key in keys)
    ended.external_executor_id = str(uuid.uuid4())
    assert list(after.try_adopt_task_instances([ended, unknown])) == [unknown]  # type: ignore[list-item]
    after._recorder.write_ends()
    assert loads(database) == {1: 1}, "the slot of the other task is freed when Airflow has reset it"
    assert not after._recorder._placed_at


def test_only_tasks_that_were_sent_are_adopted(
    executor: WorkerInsightCeleryExecutor, database: Database, mocker: MockerFixture
) -> None:
    mocker.patch.object(
        executor.bulk_state_fetcher,
        "get_many",
        lambda results: {result.task_id: ("PENDING", None) for result in results},
    )
    mocker.patch("celery.result.AsyncResult.result", None)
    keys = queue(executor, *(f"task-{number}" for number in range(5)))
    executor.trigger_tasks(8)
    sent_keys = set(executor.running)
    assert len(sent_keys) == 3
    # The scheduler dies, and another one finds what it had queued; Airflow has given each an ID before it was sent.
    after = WorkerInsightCeleryExecutor()
    tis = [SimpleNamespace(key=key, external_executor_id=str(uuid.uuid4()), state="queued") for key in keys]
    assert {ti.key for ti in after.try_adopt_task_instances(tis)} == set(keys) - sent_keys
    assert after.running == sent_keys
    after._monitor = executor._monitor
    ended, *_ = sent_keys
    after.success(ended)
    after._recorder.write_ends()
    assert loads(database) == {1: 2}
    with missing_table(database):
        other = WorkerInsightCeleryExecutor()
        assert list(other.try_adopt_task_instances(tis)) == []
        assert other.running == set(keys)
    # A running task was sent, whatever its record says.
    running = [SimpleNamespace(key=ti.key, external_executor_id=ti.external_executor_id, state="running") for ti in tis]
    assert list(WorkerInsightCeleryExecutor().try_adopt_task_instances(running)) == []


def test_executor_ends_and_terminates(either: CeleryExecutor) -> None:
    either.end()
    either.terminate()  # type: ignore[no-untyped-call]


def test_callbacks_are_sent_as_by_the_parent(either: CeleryExecutor, sent: Sent) -> None:
    if compat.airflow_version() < (3, 2):
        pytest.skip("executors run callbacks from 3.2 on")
    callback = SimpleNamespace(key="callback-1")
    either._send_workloads([("callback-1", callback, "callbacks", None)])  # type: ignore[arg-type]
    assert sent == [("callback-1", "callbacks")]


def test_capabilities_are_those_of_the_parent() -> None:
    assert WorkerInsightCeleryExecutor().parallelism == CeleryExecutor().parallelism
    for name in ("supports_ad_hoc_ti_run", "supports_callbacks", "supports_multi_team", "is_local", "serve_logs"):
        assert getattr(WorkerInsightCeleryExecutor, name, None) == getattr(CeleryExecutor, name, None)
    assert WorkerInsightCeleryExecutor.get_cli_commands is CeleryExecutor.get_cli_commands


# --- where tasks are held while the workers cannot be seen -----------------------------------------------------------


HOLD = Rules("least_loaded", 1, when_workers_unseen="hold")


class OfBroker(WorkerInsightCeleryExecutor):
    """An executor whose broker accepts connections."""

    broker = "memory://"

    def get_celery_app(self) -> Any:
        return Celery(broker=self.broker)


@pytest.fixture
def holding() -> WorkerInsightCeleryExecutor:
    """Return an executor with ``when_workers_unseen = hold``."""
    return make_executor(OfBroker, HOLD)


@pytest.mark.parametrize("why", ["unavailable", "old", "nothing"])
def test_tasks_are_held_while_workers_cannot_be_reached_and_placed_afterwards(
    holding: WorkerInsightCeleryExecutor, sent: Sent, database: Database, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    monitor: Any = holding._monitor
    monitor.known = {
        "unavailable": Snapshot((W1,), time.monotonic(), unavailable_reason="No Celery worker answers."),
        "old": Snapshot((W1,), time.monotonic() - 3600),
        "nothing": None,
    }[why]
    before = counters.snapshot().get("placement.held", 0)
    (key,) = queue(holding, "extract")
    for _ in range(3):
        holding.trigger_tasks(8)
    assert sent == []
    assert [*holding.queued_tasks] == [key]
    assert not holding.event_buffer
    (record,) = stored(database)
    assert (record.reason, record.worker_ref, record.waits) == (PlacementReason.WORKERS_UNREACHABLE, None, True)
    assert record.detail.startswith("waits: workers cannot be reached since 2")
    logged = [entry for entry in caplog.records if "holds them until workers can be reached again" in entry.message]
    assert len(logged) == 1
    assert counters.snapshot()["placement.held"] == before + 1

    monitor.known = Snapshot((W1,), time.monotonic())
    holding.trigger_tasks(8)
    assert sent == [("extract", dedicated_queue("celery-1"))]
    assert holding.running == {key}
    assert [record.worker_ref for record in stored(database)] == [1]


def test_new_reason_does_not_restart_the_wait(holding: WorkerInsightCeleryExecutor, database: Database) -> None:
    monitor: Any = holding._monitor
    queue(holding, "extract")
    waits = []
    for snapshot in (
        Snapshot((replace(W1, availability="draining"),), time.monotonic()),
        Snapshot((), time.monotonic(), unavailable_reason="No Celery worker answers."),
        Snapshot((replace(W1, state="lost"),), time.monotonic()),
    ):
        monitor.known = snapshot
        holding.trigger_tasks(8)
        waits += stored(database)
    assert [record.reason for record in waits] == [
        PlacementReason.NOT_AVAILABLE,
        PlacementReason.WORKERS_UNREACHABLE,
        PlacementReason.NOT_AVAILABLE,
    ]
    assert len({record.placed_at for record in waits}) == 1


def test_tasks_are_held_although_the_reason_cannot_be_written(
    holding: WorkerInsightCeleryExecutor, sent: Sent, database: Database
) -> None:
    (key,) = queue(holding, "extract")
    with refused_placements(database):
        for _ in range(base.DEFAULTS.fallback_after_failures + 2):
            holding.trigger_tasks(8)
    assert sent == []
    assert [*holding.queued_tasks] == [key]
    assert stored(database) == []
    holding.trigger_tasks(8)
    assert sent == [("extract", dedicated_queue("celery-1"))]


def test_held_task_that_should_not_run_any_more_frees_its_slot(
    holding: WorkerInsightCeleryExecutor, database: Database
) -> None:
    monitor: Any = holding._monitor
    monitor.known = Snapshot((), time.monotonic(), unavailable_reason="No Celery worker answers.")
    queue(holding, "extract")
    holding.trigger_tasks(8)
    # Airflow has no such try.
    holding.sync()
    holding.sync()
    assert not holding.queued_tasks
    assert stored(database) == []


@pytest.mark.parametrize("error", [OSError("refused"), OperationalError("refused")])
def test_task_that_the_broker_refuses_is_held_and_keeps_its_retry(
    holding: WorkerInsightCeleryExecutor, sent: Sent, database: Database, error: Exception
) -> None:
    monitor: Any = holding._monitor
    sent.fails = error
    (key,) = queue(holding, "extract")
    holding.trigger_tasks(8)
    # It is not tried again until the monitor has reached the broker, whatever was known before.
    sent.fails = None
    holding.trigger_tasks(8)
    holding.trigger_tasks(8)
    assert len(sent) == 1
    assert [*holding.queued_tasks] == [key]
    assert not holding.event_buffer
    (record,) = stored(database)
    assert (record.reason, record.worker_ref) == (PlacementReason.WORKERS_UNREACHABLE, None)
    assert "Celery's broker cannot be reached" in record.detail

    monitor.known = Snapshot((W1,), time.monotonic(), answered_at=time.monotonic())
    holding.trigger_tasks(8)
    assert len(sent) == 2
    assert holding.running == {key}


def test_task_that_cannot_be_serialized_fails_as_with_the_parent(
    holding: WorkerInsightCeleryExecutor, sent: Sent
) -> None:
    sent.fails = ValueError("not to be written as JSON")
    (key,) = queue(holding, "extract")
    holding.trigger_tasks(8)
    assert not holding.queued_tasks
    assert holding.event_buffer[key][0] == "failed"


def test_nothing_is_sent_to_a_broker_that_accepts_no_connection(sent: Sent) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        unreachable = type(
            "OfUnreachableBroker", (OfBroker,), {"broker": f"redis://127.0.0.1:{taken.getsockname()[1]}/0"}
        )
        executor = make_executor(unreachable, HOLD)
        queue(executor, "extract")
        executor.trigger_tasks(8)
        assert sent == []
        assert len(executor.queued_tasks) == 1
        # By default that is left to Airflow.
        executor = make_executor(unreachable)
        queue(executor, "extract")
        executor.trigger_tasks(8)
        assert len(sent) == 1
