"""The executor between Airflow's own and the workers: what it changes, and that all else is the parent's."""

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
from airflow_worker_insight.store import migrate, placements, session
from tests.unit.database import add_run, add_try
from tests.unit.executors.workloads import a_workload, put, queue

if TYPE_CHECKING:
    from airflow_worker_insight.domain.keys import TryKey
    from airflow_worker_insight.store.placements import Placement
    from tests.unit.database import Database

pytest.importorskip("celery")

from airflow.providers.celery.executors.celery_executor import CeleryExecutor
from kombu.exceptions import OperationalError

from airflow_worker_insight.executors import base
from airflow_worker_insight.executors.celery import WorkerInsightCeleryExecutor

W1 = Candidate(ref=1, worker_id="celery-1", name="w1@host", queues=frozenset({"default"}), concurrency=2, capacity=3)


class FakeWatch:
    """Knows what a test says."""

    def __init__(self, *candidates: Candidate, **others: Any) -> None:
        self.known: Snapshot | None = Snapshot(candidates, time.monotonic(), **others)

    def snapshot(self) -> Snapshot | None:
        return self.known

    def stop(self) -> None:
        pass


class Sent(list[tuple[str, str]]):
    """What was handed to Celery: the task and its queue."""

    fails: Exception | None = None


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
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
    monkeypatch.setattr(CeleryExecutor, name, send)
    return found


@pytest.fixture
def executor(database: Database, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> WorkerInsightCeleryExecutor:  # noqa: ARG001
    monkeypatch.setattr(counters, "_warned", set())
    made = WorkerInsightCeleryExecutor()
    made._desk = PlacementService(Rules("least_loaded", 1))
    made._watch = FakeWatch(W1)  # type: ignore[assignment]
    return made


def stored(database: Database) -> list[Placement]:
    with database.engine.connect() as connection:
        return placements.open_placements(connection)


def loads(database: Database) -> dict[int, int]:
    with database.engine.connect() as connection:
        return placements.count_open(connection)


# --- what it changes -------------------------------------------------------------------------------------------------


def test_a_task_goes_to_its_workers_own_queue(
    executor: WorkerInsightCeleryExecutor, sent: Sent, database: Database
) -> None:
    (key,) = queue(executor, "extract")
    executor.trigger_tasks(8)
    assert sent == [("extract", dedicated_queue("celery-1"))]
    assert executor.running == {key}
    assert not executor.queued_tasks
    (one,) = stored(database)
    assert (one.key.task_id, one.worker_ref, one.dedicated_queue) == ("extract", 1, dedicated_queue("celery-1"))
    assert one.detail == "w1@host: least loaded of one worker, 0 of 3 places taken"


def test_what_does_not_fit_stays_and_goes_when_there_is_room(
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
    executor._give_back()
    assert loads(database) == {1: 1}
    executor.trigger_tasks(8)
    assert len(sent) == 5
    assert not executor.queued_tasks


def test_one_that_waits_keeps_no_other_from_its_place(executor: WorkerInsightCeleryExecutor, sent: Sent) -> None:
    nowhere = {"worker_insight": {"labels": {"zone": "moon"}}}
    waiting = [a_workload(f"moon-{number}", priority=9) for number in range(4)]
    for workload in waiting:
        workload.ti.executor_config = nowhere
        put(executor, workload)
    queue(executor, "extract")
    executor.trigger_tasks(2)
    assert [task for task, _ in sent] == ["extract"]
    assert len(executor.queued_tasks) == 4


def test_no_more_are_sent_than_there_are_slots(executor: WorkerInsightCeleryExecutor, sent: Sent) -> None:
    queue(executor, "low", priority=1)
    queue(executor, "high", priority=2)
    # (3.2 has it the other way round.)
    first = executor.order_queued_tasks_by_priority()[0][0].task_id
    executor.trigger_tasks(0)
    assert sent == []
    executor.trigger_tasks(1)
    assert [task for task, _ in sent] == [first]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"labels": {"zone": "moon"}}, PlacementReason.NO_LABEL),
        ({"labels": "moon"}, PlacementReason.INVALID_REQUEST),
        ("moon", PlacementReason.INVALID_REQUEST),
    ],
)
def test_why_a_task_waits_is_written_once(
    executor: WorkerInsightCeleryExecutor, database: Database, asked: Any, reason: str
) -> None:
    (workload,) = [a_workload("extract")]
    workload.ti.executor_config = {"worker_insight": asked}
    put(executor, workload)
    executor.trigger_tasks(8)
    (one,) = stored(database)
    executor.trigger_tasks(8)
    assert stored(database) == [one]
    assert (one.reason, one.worker_ref, one.dedicated_queue) == (reason, None, None)
    assert loads(database) == {}
    workload.ti.executor_config = None
    executor.trigger_tasks(8)
    assert loads(database) == {1: 1}


def test_who_is_left_out_is_told_as_it_is_now(executor: WorkerInsightCeleryExecutor, database: Database) -> None:
    watch: Any = executor._watch
    queue(executor, "extract")
    for availability in ("quarantined", "draining"):
        watch.known = Snapshot((replace(W1, availability=availability),), time.monotonic())
        executor.trigger_tasks(8)
        (one,) = stored(database)
        assert (one.reason, availability in one.detail) == (PlacementReason.NOT_AVAILABLE, True)


def test_with_that_fallback_it_goes_to_the_shared_queue(
    executor: WorkerInsightCeleryExecutor, sent: Sent, database: Database
) -> None:
    executor._desk = PlacementService(Rules("least_loaded", 1, "shared_queue"))
    executor._watch = FakeWatch(replace(W1, availability="quarantined"))  # type: ignore[assignment]
    queue(executor, "extract")
    executor.trigger_tasks(8)
    assert sent == [("extract", "default")]
    (one,) = stored(database)
    assert (one.reason, one.worker_ref) == (PlacementReason.SHARED_QUEUE, None)
    assert "w1@host (quarantined)" in one.detail


def test_a_full_worker_is_full_for_all_schedulers(
    executor: WorkerInsightCeleryExecutor, sent: Sent, database: Database
) -> None:
    other = WorkerInsightCeleryExecutor()
    other._desk, other._watch = executor._desk, executor._watch
    queue(other, *(f"other-{number}" for number in range(3)))
    other.trigger_tasks(8)
    queue(executor, "extract")
    executor.trigger_tasks(8)
    assert len(sent) == 3
    assert [one.reason for one in stored(database) if one.key.task_id == "extract"] == [PlacementReason.FULL]


def test_a_retry_is_kept_away_from_the_worker_that_failed_it(
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
        one = placements.Placement(first, "least_loaded", "", worker_ref=refs["w1"], is_open=False)
        placements.write(connection, [one], now=NOON)
    w2 = replace(W1, ref=refs["w2"], worker_id="celery-2", name="w2@host", load=0)
    executor._watch = FakeWatch(replace(W1, ref=refs["w1"]), w2)  # type: ignore[assignment]
    for _ in range(2):
        sent.clear()
        queue(executor, "extract", try_number=2)
        executor.trigger_tasks(8)
        assert sent == [("extract", dedicated_queue("celery-2"))]
        executor.running.clear()


# --- where the workers cannot be seen --------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["unavailable", "old", "nothing", "tables"])
def test_where_the_workers_cannot_be_seen_it_does_as_the_parent_and_says_so_once(
    executor: WorkerInsightCeleryExecutor, sent: Sent, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    watch: Any = executor._watch
    executor._started_at = time.monotonic() - 60
    if why == "unavailable":
        watch.known = Snapshot((W1,), time.monotonic(), unavailable_reason="nobody looks")
    elif why == "old":
        watch.known = Snapshot((W1,), time.monotonic() - 3600)
    elif why == "nothing":
        watch.known = None
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


def test_one_failure_is_no_reason_to_pass_by_what_was_decided(
    executor: WorkerInsightCeleryExecutor, sent: Sent, monkeypatch: pytest.MonkeyPatch, database: Database
) -> None:
    queue(executor, "extract")
    watch: Any = executor._watch
    watch.known = Snapshot((replace(W1, state="lost"),), time.monotonic())
    with monkeypatch.context() as broken:
        broken.setattr(placements, "write", lambda *_, **__: 1 / 0)
        executor.trigger_tasks(8)
    assert sent == []
    # Its reason is written as soon as it can be.
    executor.trigger_tasks(8)
    with database.engine.connect() as connection:
        (one,) = placements.open_placements(connection)
    assert one.reason == PlacementReason.NOT_AVAILABLE


def test_it_says_when_it_begins_to_send_plainly_and_when_it_places_again(
    executor: WorkerInsightCeleryExecutor, sent: Sent, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    watch: Any = executor._watch
    known = watch.known
    for number in range(2):
        for snapshot in (replace(known, unavailable_reason="nobody looks"), replace(known, taken_at=time.monotonic())):
            watch.known = snapshot
            queue(executor, f"task-{number}-{snapshot.unavailable_reason}")
            executor.trigger_tasks(8)
    assert len(sent) == 4
    said = [one.message for one in caplog.records if one.name == base.__name__]
    assert ["cannot place" in one for one in said] == [True, False, True, False]


def test_what_waits_behind_the_last_slot_is_still_known_to_wait(
    executor: WorkerInsightCeleryExecutor, sent: Sent, database: Database
) -> None:
    watch: Any = executor._watch
    watch.known = Snapshot((replace(W1, state="lost"),), time.monotonic())
    keys = queue(executor, "extract", "load")
    executor.trigger_tasks(8)
    # One of them is sent, and the other one is not come to.
    watch.known = Snapshot((W1,), time.monotonic())
    executor.trigger_tasks(1)
    assert len(sent) == 1
    watch.known = Snapshot((), time.monotonic(), unavailable_reason="nobody looks")
    executor.trigger_tasks(8)
    executor._give_back()
    with database.engine.connect() as connection:
        assert not any(
            one.waits for one in placements.open_placements_of(connection, [a_key(key) for key in keys]).values()
        )


def test_what_waited_and_is_sent_as_the_parent_does_is_not_said_to_wait(
    executor: WorkerInsightCeleryExecutor, sent: Sent, database: Database
) -> None:
    watch: Any = executor._watch
    watch.known = Snapshot((replace(W1, state="lost"),), time.monotonic())
    (key,) = queue(executor, "extract")
    executor.trigger_tasks(8)
    with database.engine.connect() as connection:
        assert placements.open_placements_of(connection, [a_key(key)])[a_key(key)].waits
    watch.known = Snapshot((), time.monotonic(), unavailable_reason="nobody looks")
    executor.trigger_tasks(8)
    executor._give_back()
    assert sent == [("extract", "default")]
    with database.engine.connect() as connection:
        assert placements.open_placements_of(connection, [a_key(key)]) == {}


def test_a_scheduler_that_has_just_started_waits_for_a_moment(
    executor: WorkerInsightCeleryExecutor, sent: Sent
) -> None:
    watch: Any = executor._watch
    watch.known, executor._started_at = None, time.monotonic()
    queue(executor, "extract")
    executor.trigger_tasks(8)
    assert sent == []
    assert executor.queued_tasks


def test_a_command_that_sends_one_task_does_as_the_parent(
    executor: WorkerInsightCeleryExecutor, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_runtime, "in_scheduler", lambda: False)
    executor._watch = None
    executor.start()
    assert executor._watch is None
    queue(executor, "extract")
    executor.trigger_tasks(8)
    executor.sync()
    assert sent == [("extract", "default")]


@pytest.mark.parametrize(
    ("option", "value", "says"), [("STRATEGY", "fastest", "fastest"), ("LABELS", "gpu", "pool:key=value")]
)
def test_a_setting_that_makes_no_sense_keeps_the_scheduler_from_starting(
    executor: WorkerInsightCeleryExecutor, monkeypatch: pytest.MonkeyPatch, option: str, value: str, says: str
) -> None:
    from airflow.exceptions import AirflowConfigException

    monkeypatch.setenv(f"AIRFLOW__WORKER_INSIGHT__PLACEMENT_{option}", value)
    with pytest.raises(AirflowConfigException, match=says):
        executor.start()


def end_without_the_database(executor: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have a task run and end, which cannot be written; return its key."""
    (key,) = queue(executor, "extract")
    executor.trigger_tasks(8)
    executor.success(key)
    with monkeypatch.context() as broken:
        broken.setattr(session, "writing", lambda _: 1 / 0)
        executor._give_back()
    # Its pause is over.
    executor._ends_due = 0.0
    return key


def test_ends_that_cannot_be_written_are_written_later(
    executor: WorkerInsightCeleryExecutor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_without_the_database(executor, monkeypatch)
    assert loads(database) == {1: 1}
    executor._give_back()
    assert loads(database) == {}


def test_an_end_that_could_not_be_written_gives_no_place_of_the_same_try_back_once_it_goes_on(
    executor: WorkerInsightCeleryExecutor, sent: Sent, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = end_without_the_database(executor, monkeypatch)
    # It was deferred, and its trigger has fired.
    assert queue(executor, "extract") == [key]
    executor.trigger_tasks(8)
    executor._give_back()
    assert len(sent) == 2
    assert loads(database) == {1: 1}


def test_what_another_scheduler_has_placed_since_keeps_its_place(
    executor: WorkerInsightCeleryExecutor, sent: Sent, database: Database
) -> None:
    (key,) = queue(executor, "deferred")
    executor.trigger_tasks(8)
    other = WorkerInsightCeleryExecutor()
    other._desk, other._watch = executor._desk, executor._watch
    # Its trigger fires, and the other one goes on with it before this one hears that it was deferred.
    queue(other, "deferred")
    other.trigger_tasks(8)
    executor.success(key)
    executor._give_back()
    assert len(sent) == 2
    assert loads(database) == {1: 1}
    other.success(key)
    other._give_back()
    assert loads(database) == {}


def test_what_is_revoked_and_queued_again_is_known_to_wait(
    executor: WorkerInsightCeleryExecutor, database: Database
) -> None:
    watch: Any = executor._watch
    watch.known = Snapshot((replace(W1, state="lost"),), time.monotonic())
    (key,) = queue(executor, "stuck")
    executor.trigger_tasks(8)
    executor.revoke_task(ti=SimpleNamespace(key=key, queued_by_job_id=None, external_executor_id=None))
    assert queue(executor, "stuck") == [key]
    executor._give_back()
    executor.trigger_tasks(8)
    executor._give_back()
    with database.engine.connect() as connection:
        assert placements.open_placements_of(connection, [a_key(key)])[a_key(key)].waits


def test_what_waits_and_is_not_to_run_any_more_gives_its_slot_back(
    executor: WorkerInsightCeleryExecutor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "UNWANTED_EVERY", 0.0)
    watch: Any = executor._watch
    watch.known = Snapshot((replace(W1, availability="quarantined"),), time.monotonic())
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
    assert [one.key.task_id for one in stored(database)] == ["wanted"]
    (again,) = queue(executor, "cleared", try_number=2)
    executor.trigger_tasks(8)
    assert set(executor.queued_tasks) == {wanted, again}
    watch.known = Snapshot((W1,), time.monotonic())
    executor.trigger_tasks(8)
    assert executor.running == {wanted, again}
    assert not executor._waiting


def test_what_waits_is_looked_at_now_and_then(
    executor: WorkerInsightCeleryExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Any] = []
    # (Pools are asked for in the same way, here none.)
    monkeypatch.setattr(
        placements, "try_details", lambda _connection, keys: looked.extend([keys] if keys else []) or {}
    )
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(base, "time", SimpleNamespace(monotonic=lambda: clock.now))
    watch: Any = executor._watch
    watch.known = Snapshot((replace(W1, availability="quarantined"),), clock.now)
    (key,) = queue(executor, "extract")
    for seconds in (0, 0, base.UNWANTED_EVERY - 1, 0):
        clock.now += seconds
        executor.trigger_tasks(8)
        executor.sync()
    assert looked == []
    clock.now += 1
    executor.sync()
    assert looked == [{a_key(key)}]
    executor.sync()
    assert len(looked) == 1
    assert not executor.queued_tasks


def test_slots_of_what_waits_are_kept_while_the_database_is_away(
    executor: WorkerInsightCeleryExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "UNWANTED_EVERY", 0.0)
    watch: Any = executor._watch
    watch.known = Snapshot((replace(W1, availability="quarantined"),), time.monotonic())
    (key,) = queue(executor, "extract")
    executor.trigger_tasks(8)
    monkeypatch.setattr(session, "writing", lambda _: 1 / 0)
    for _ in range(3):
        executor.sync()
    assert set(executor.queued_tasks) == {key}


# --- what stays the parent's -----------------------------------------------------------------------------------------


@pytest.fixture(params=["parent", "placing"])
def either(request: pytest.FixtureRequest, executor: WorkerInsightCeleryExecutor) -> CeleryExecutor:
    """Return either executor: what is published of Airflow's must hold for both."""
    return executor if request.param == "placing" else CeleryExecutor()


def a_key(key: Any) -> TryKey:
    return base.try_key(key)


def test_queued_run_and_ended(either: CeleryExecutor) -> None:
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


def test_what_cannot_be_sent_fails(either: CeleryExecutor, sent: Sent, database: Database) -> None:
    sent.fails = OSError("refused")
    (key,) = queue(either, "extract")
    either.trigger_tasks(8)
    assert either.get_event_buffer()[key][0] == "failed"
    assert not either.queued_tasks
    either.sync()
    assert loads(database) == {}


def test_revoked(either: CeleryExecutor, monkeypatch: pytest.MonkeyPatch, database: Database) -> None:
    revoked: list[str] = []
    control = SimpleNamespace(revoke=revoked.append)
    monkeypatch.setattr(type(airflow_celery.executors_celery_app(either)), "control", control)
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


def test_adopted(either: CeleryExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    fetcher: Any = either.bulk_state_fetcher
    monkeypatch.setattr(fetcher, "get_many", lambda results: {one.task_id: ("STARTED", None) for one in results})
    (key,) = queue(WorkerInsightCeleryExecutor(), "extract")
    known = SimpleNamespace(key=key, external_executor_id=str(uuid.uuid4()))
    unknown = SimpleNamespace(key=a_workload("other").ti.key, external_executor_id=None)
    monkeypatch.setattr("celery.result.AsyncResult.result", None)
    assert either.try_adopt_task_instances([known, unknown]) == [unknown]  # type: ignore[list-item]
    assert either.running == {key}


def test_what_has_ended_before_it_is_adopted_gives_its_place_back(
    executor: WorkerInsightCeleryExecutor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = queue(executor, "ended", "unknown")
    executor.trigger_tasks(8)
    after = WorkerInsightCeleryExecutor()
    after._watch = executor._watch
    monkeypatch.setattr(
        after.bulk_state_fetcher, "get_many", lambda results: {one.task_id: ("SUCCESS", None) for one in results}
    )
    monkeypatch.setattr("celery.result.AsyncResult.result", None)
    ended, unknown = (SimpleNamespace(key=key, external_executor_id=None, state="queued") for key in keys)
    ended.external_executor_id = str(uuid.uuid4())
    assert list(after.try_adopt_task_instances([ended, unknown])) == [unknown]  # type: ignore[list-item]
    after._give_back()
    assert loads(database) == {1: 1}, "the place of the other one is given back when Airflow has reset it"
    assert not after._placed_at


def test_what_was_never_sent_is_given_back_and_what_was_sent_is_adopted(
    executor: WorkerInsightCeleryExecutor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        executor.bulk_state_fetcher, "get_many", lambda results: {one.task_id: ("PENDING", None) for one in results}
    )
    monkeypatch.setattr("celery.result.AsyncResult.result", None)
    keys = queue(executor, *(f"task-{number}" for number in range(5)))
    executor.trigger_tasks(8)
    sent_keys = set(executor.running)
    assert len(sent_keys) == 3
    # The scheduler dies, and another one finds what it had queued; Airflow has given each an ID before it was sent.
    after = WorkerInsightCeleryExecutor()
    tis = [SimpleNamespace(key=key, external_executor_id=str(uuid.uuid4()), state="queued") for key in keys]
    assert {ti.key for ti in after.try_adopt_task_instances(tis)} == set(keys) - sent_keys
    assert after.running == sent_keys
    after._watch = executor._watch
    ended, *_ = sent_keys
    after.success(ended)
    after._give_back()
    assert loads(database) == {1: 2}
    with monkeypatch.context() as broken:
        broken.setattr(session, "writing", lambda _: 1 / 0)
        other = WorkerInsightCeleryExecutor()
        assert list(other.try_adopt_task_instances(tis)) == []
        assert other.running == set(keys)
    # What runs was sent, whatever was written of it.
    running = [SimpleNamespace(key=ti.key, external_executor_id=ti.external_executor_id, state="running") for ti in tis]
    assert list(WorkerInsightCeleryExecutor().try_adopt_task_instances(running)) == []


def test_ended_with_the_scheduler(either: CeleryExecutor) -> None:
    either.end()
    either.terminate()  # type: ignore[no-untyped-call]


def test_callbacks_go_the_parents_way(either: CeleryExecutor, sent: Sent) -> None:
    if compat.airflow_version() < (3, 2):
        pytest.skip("executors run callbacks from 3.2 on")
    callback = SimpleNamespace(key="callback-1")
    either._send_workloads([("callback-1", callback, "callbacks", None)])  # type: ignore[arg-type]
    assert sent == [("callback-1", "callbacks")]


def test_it_says_of_itself_what_the_parent_says() -> None:
    assert WorkerInsightCeleryExecutor().parallelism == CeleryExecutor().parallelism
    for name in ("supports_ad_hoc_ti_run", "supports_callbacks", "supports_multi_team", "is_local", "serve_logs"):
        assert getattr(WorkerInsightCeleryExecutor, name, None) == getattr(CeleryExecutor, name, None)
    assert WorkerInsightCeleryExecutor.get_cli_commands is CeleryExecutor.get_cli_commands


# --- where tasks are held while the workers cannot be seen -----------------------------------------------------------


@pytest.fixture
def holding(executor: WorkerInsightCeleryExecutor, monkeypatch: pytest.MonkeyPatch) -> WorkerInsightCeleryExecutor:
    """The executor with ``when_workers_unseen = hold`` and a broker that takes connections."""
    executor._desk = PlacementService(Rules("least_loaded", 1, when_unseen="hold"))
    executor._started_at = time.monotonic() - 60
    monkeypatch.setattr(executor, "_broker_unavailable_reason", lambda: None)
    return executor


@pytest.mark.parametrize("why", ["unavailable", "old", "nothing"])
def test_tasks_are_held_while_the_workers_cannot_be_seen_and_placed_afterwards(
    holding: WorkerInsightCeleryExecutor, sent: Sent, database: Database, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    watch: Any = holding._watch
    watch.known = {
        "unavailable": Snapshot((W1,), time.monotonic(), unavailable_reason="None of Celery's workers answers."),
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
    (one,) = stored(database)
    assert (one.reason, one.worker_ref, one.waits) == (PlacementReason.WORKERS_UNREACHABLE, None, True)
    assert one.detail.startswith("waits: the workers cannot be seen since 2")
    said = [one for one in caplog.records if "holds them until it sees the workers again" in one.message]
    assert len(said) == 1
    assert counters.snapshot()["placement.held"] == before + 1

    watch.known = Snapshot((W1,), time.monotonic())
    holding.trigger_tasks(8)
    assert sent == [("extract", dedicated_queue("celery-1"))]
    assert holding.running == {key}
    assert [one.worker_ref for one in stored(database)] == [1]


def test_since_when_a_task_waits_does_not_change_with_its_reason(
    holding: WorkerInsightCeleryExecutor, database: Database
) -> None:
    watch: Any = holding._watch
    queue(holding, "extract")
    waits = []
    for snapshot in (
        Snapshot((replace(W1, availability="draining"),), time.monotonic()),
        Snapshot((), time.monotonic(), unavailable_reason="None of Celery's workers answers."),
        Snapshot((replace(W1, state="lost"),), time.monotonic()),
    ):
        watch.known = snapshot
        holding.trigger_tasks(8)
        waits += stored(database)
    assert [one.reason for one in waits] == [
        PlacementReason.NOT_AVAILABLE,
        PlacementReason.WORKERS_UNREACHABLE,
        PlacementReason.NOT_AVAILABLE,
    ]
    assert len({one.placed_at for one in waits}) == 1


def test_tasks_are_held_too_while_the_database_takes_no_reason(
    holding: WorkerInsightCeleryExecutor, sent: Sent, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    (key,) = queue(holding, "extract")
    with monkeypatch.context() as broken:
        broken.setattr(placements, "write", lambda *_, **__: 1 / 0)
        for _ in range(base.GIVES_UP_AFTER + 2):
            holding.trigger_tasks(8)
    assert sent == []
    assert [*holding.queued_tasks] == [key]
    assert stored(database) == []
    holding.trigger_tasks(8)
    assert sent == [("extract", dedicated_queue("celery-1"))]


def test_a_held_task_that_nobody_wants_any_more_gives_its_slot_back(
    holding: WorkerInsightCeleryExecutor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "UNWANTED_EVERY", 0.0)
    watch: Any = holding._watch
    watch.known = Snapshot((), time.monotonic(), unavailable_reason="None of Celery's workers answers.")
    queue(holding, "extract")
    holding.trigger_tasks(8)
    # Airflow has no such try.
    holding.sync()
    holding.sync()
    assert not holding.queued_tasks
    assert stored(database) == []


@pytest.mark.parametrize("error", [OSError("refused"), OperationalError("refused")])
def test_a_task_that_the_broker_does_not_take_is_held_and_keeps_its_retry(
    holding: WorkerInsightCeleryExecutor, sent: Sent, database: Database, error: Exception
) -> None:
    watch: Any = holding._watch
    sent.fails = error
    (key,) = queue(holding, "extract")
    holding.trigger_tasks(8)
    # It is not tried again until the watch has reached the broker, whatever was known before.
    sent.fails = None
    holding.trigger_tasks(8)
    holding.trigger_tasks(8)
    assert len(sent) == 1
    assert [*holding.queued_tasks] == [key]
    assert not holding.event_buffer
    (one,) = stored(database)
    assert (one.reason, one.worker_ref) == (PlacementReason.WORKERS_UNREACHABLE, None)
    assert "Celery's broker cannot be reached" in one.detail

    watch.known = Snapshot((W1,), time.monotonic(), answered_at=time.monotonic())
    holding.trigger_tasks(8)
    assert len(sent) == 2
    assert holding.running == {key}


def test_a_task_that_cannot_be_sent_for_its_own_sake_fails_as_with_the_parent(
    holding: WorkerInsightCeleryExecutor, sent: Sent
) -> None:
    sent.fails = ValueError("not to be written as JSON")
    (key,) = queue(holding, "extract")
    holding.trigger_tasks(8)
    assert not holding.queued_tasks
    assert holding.event_buffer[key][0] == "failed"


def test_nothing_is_sent_to_a_broker_that_takes_no_connection(
    executor: WorkerInsightCeleryExecutor, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    from celery import Celery

    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        app = Celery(broker=f"redis://127.0.0.1:{taken.getsockname()[1]}/0")
        monkeypatch.setattr(executor, "celery_app_here", lambda: app)
        executor._desk = PlacementService(Rules("least_loaded", 1, when_unseen="hold"))
        queue(executor, "extract")
        executor.trigger_tasks(8)
        assert sent == []
        assert len(executor.queued_tasks) == 1
        # By default that is Airflow's own business.
        executor._desk = PlacementService(Rules("least_loaded", 1))
        executor._unsent = None
        executor.trigger_tasks(8)
        assert len(sent) == 1
