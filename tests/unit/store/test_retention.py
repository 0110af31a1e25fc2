"""What is forgotten and what is not, alone and while others write."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, insert, select, text

from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.domain.states import WorkerAvailability
from airflow_worker_insight.store import retention, session
from airflow_worker_insight.store.attempts.close import ensure_hosts, instances_on_hosts
from airflow_worker_insight.store.retention import Removed, RetentionTask
from airflow_worker_insight.store.tables import NO_WORKER, attempt, change, start_slot, worker
from tests.support.processes import wait_for
from tests.unit.database import NOON, Database, a_worker, add_run, add_try, at, on_both, on_postgresql, record_start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from sqlalchemy.engine import Connection

LIMIT = NOON
"""What is older is to go."""

DAY = 86400.0
KEY = TryKey("etl", "run-1", "extract", -1, 1)


def store_worker(database: Database, worker_id: str = "celery-1", *, changes: int = 0, **others: Any) -> int:
    """Store a worker that left a day before the limit, and return the ID of its row."""
    known = {
        "reported_id": worker_id,
        "name": f"{worker_id}@host-1",
        "kind": "celery",
        "hostname": "host-1",
        "pid": 100,
    }
    times = {"registered_at": at(-9 * DAY), "last_seen_at": at(-DAY), "ended_at": at(-DAY), "state": "offline"}
    described: dict[str, Any] = {"labels": {}, "resources": {}, "versions": {}, "fingerprint": "", "host_only": False}
    row = {"worker_id": worker_id, **known, **times, **described, **others}
    with database.engine.begin() as connection:
        connection.execute(insert(worker).values(row))
        ref: int = connection.execute(select(worker.c.id).where(worker.c.worker_id == worker_id)).scalar_one()
        for _ in range(changes):
            connection.execute(insert(change).values(worker_ref=ref, changed_at=at(-DAY), state="offline"))
    return ref


def store_try(
    database: Database,
    ref: int = NO_WORKER,
    key: TryKey = KEY,
    *,
    started_at: datetime | None = None,
    ended_at: datetime | None = None,
    state: str | None = "success",
    ordinal: int = 0,
) -> TryKey:
    """Store a row of a try."""
    row = {
        "run_key": key.run_key,
        "task_key": key.task_key,
        "try_number": key.try_number,
        "worker_ref": ref,
        "map_index": key.map_index,
        "ordinal": ordinal,
        "process_count": 1,
        "started_at": started_at,
        "start_slot": start_slot(started_at),
        "ended_at": ended_at,
        "state": state,
        "attribution": "reported",
        "dag_id": key.dag_id,
        "run_id": key.run_id,
        "task_id": key.task_id,
    }
    with database.engine.begin() as connection:
        connection.execute(insert(attempt).values(row))
    return key


def store_old_try(database: Database, ref: int = NO_WORKER, key: TryKey = KEY, **others: Any) -> TryKey:
    return store_try(database, ref, key, started_at=at(-20), ended_at=at(-10), **others)


def store_new_try(database: Database, ref: int = NO_WORKER, key: TryKey = KEY, **others: Any) -> TryKey:
    return store_try(database, ref, key, started_at=at(10), ended_at=at(20), **others)


def prune(database: Database, older_than: datetime = LIMIT, *, batch_size: int = retention.BATCH) -> Removed:
    """Remove what is older, which must be what was said before."""
    with database.engine.connect() as connection:
        said = retention.preview(connection, older_than)
    removed = sum(retention.prune(older_than, batch_size=batch_size), Removed())
    assert removed == said.removed
    return removed


def tries(database: Database) -> list[str]:
    return sorted({row["task_id"] for row in database.attempts()})


def workers(database: Database) -> list[str]:
    return [row["worker_id"] for row in database.workers()]


def count_changes(database: Database) -> int:
    with database.engine.connect() as connection:
        number: int = connection.execute(select(func.count()).select_from(change)).scalar_one()
        return number


def assert_no_try_points_to_nothing(database: Database) -> None:
    assert [row for row in database.attempts() if row["worker_ref"] != NO_WORKER and row["worker_id"] is None] == []


# --- tries -----------------------------------------------------------------------------------------------------------


@on_both
def test_a_try_goes_when_it_ended_before_the_limit(database: Database) -> None:
    for name, started, ended in (
        ("long ago", at(-9 * DAY), at(-8 * DAY)),
        ("just before", at(-20), at(-0.001)),
        ("at the limit", at(-20), at(0)),
        ("over the limit", at(-9 * DAY), at(5)),
        ("after", at(5), at(6)),
    ):
        store_try(database, key=replace(KEY, task_id=name), started_at=started, ended_at=ended)
    assert prune(database).attempts == 2
    assert tries(database) == ["after", "at the limit", "over the limit"]


@on_both
def test_a_try_goes_or_stays_with_all_its_workers(database: Database) -> None:
    refs = [store_worker(database, name) for name in ("celery-1", "celery-2")]
    goes, stays, is_open = (replace(KEY, task_id=name) for name in ("goes", "stays", "open"))
    for ordinal, ref in enumerate(refs):
        store_old_try(database, ref, goes, ordinal=ordinal)
    store_old_try(database, refs[0], stays)
    store_new_try(database, refs[1], stays, ordinal=1)
    store_old_try(database, refs[0], is_open)
    store_try(database, refs[1], is_open, started_at=at(10), ordinal=1)
    assert prune(database) == Removed(attempts=1)
    assert Counter(row["task_id"] for row in database.attempts()) == {"stays": 2, "open": 2}
    assert workers(database) == ["celery-1", "celery-2"]


@on_both
def test_a_try_that_never_ended_goes_when_airflow_has_it_no_more(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection, state="running", started_at=at(-10 * DAY), ended_at=None)
        latest = add_try(connection, run, "latest", try_number=2, state="running", ended_at=None)
        earlier = add_try(connection, run, "latest", try_number=1, history=True)
    gone = replace(latest, task_id="gone")
    of_another_number = replace(latest, try_number=3)
    for key in (latest, earlier, gone, of_another_number):
        store_try(database, key=key, started_at=at(-9 * DAY), state="running")
    store_try(database, key=replace(KEY, task_id="new"), started_at=at(1), state="running")
    # It is over, but Airflow has no time for that.
    store_try(database, key=replace(latest, task_id="over"), started_at=at(-9 * DAY), state="failed")
    assert prune(database).attempts == 3
    assert [(row["task_id"], row["try_number"]) for row in database.attempts()] == [
        ("latest", 1),
        ("latest", 2),
        ("new", 1),
    ]


@on_both
def test_a_try_without_a_start_goes_by_its_end(database: Database) -> None:
    store_try(database, key=replace(KEY, task_id="old"), ended_at=at(-5), state="failed")
    store_try(database, key=replace(KEY, task_id="new"), ended_at=at(5), state="failed")
    assert prune(database).attempts == 1
    assert tries(database) == ["new"]


@on_both
def test_a_try_without_times_goes_with_its_run(database: Database) -> None:
    with database.engine.begin() as connection:
        add_run(connection, run_id="old", ended_at=at(-DAY))
        add_run(connection, run_id="new", ended_at=at(DAY))
        add_run(connection, run_id="runs", state="running", ended_at=None)
    for run_id in ("old", "new", "runs", "gone"):
        store_try(database, key=replace(KEY, run_id=run_id, task_id=f"lost of {run_id}"), state=None)
    kept = replace(KEY, run_id="gone, others not")
    store_try(database, key=replace(kept, task_id="lost of kept"), state=None)
    store_new_try(database, key=replace(kept, task_id="kept"))
    removed = replace(KEY, run_id="gone, and all others")
    store_try(database, key=replace(removed, task_id="lost of removed"), state=None)
    store_old_try(database, key=replace(removed, task_id="removed"))
    assert prune(database).attempts == 4
    assert tries(database) == ["kept", "lost of kept", "lost of new", "lost of runs"]


# --- workers ---------------------------------------------------------------------------------------------------------


@on_both
def test_a_worker_that_no_kept_try_names_goes_with_its_history(database: Database) -> None:
    named, unnamed = store_worker(database, "named", changes=1), store_worker(database, "unnamed", changes=2)
    store_new_try(database, named, replace(KEY, task_id="new"))
    store_old_try(database, named, replace(KEY, task_id="old"))
    store_old_try(database, unnamed, replace(KEY, task_id="old, too"))
    assert prune(database) == Removed(attempts=2, workers=1, changes=2)
    assert workers(database) == ["named"]
    assert count_changes(database) == 1
    assert_no_try_points_to_nothing(database)


@pytest.mark.parametrize(
    ("known", "goes"),
    [
        ({"state": "offline"}, True),
        ({"state": "lost"}, True),
        ({"state": "online", "ended_at": None}, False),
        ({"state": "unresponsive", "ended_at": None}, False),
        # Of a worker of an unknown executor, or of a whole host, nothing tells whether it lives.
        ({"state": None, "ended_at": None}, True),
        ({"state": None, "ended_at": None, "host_only": True, "reported_id": None}, True),
        ({"state": None, "ended_at": None, "last_seen_at": at(1)}, False),
        ({"last_seen_at": at(1), "ended_at": at(1)}, False),
        ({"ended_at": at(0)}, False),
        ({"availability": WorkerAvailability.DRAINING}, True),
        ({"availability": WorkerAvailability.QUARANTINED}, False),
    ],
    ids=str,
)
@on_both
def test_a_worker_goes_when_it_was_gone_before_the_limit(database: Database, known: dict[str, Any], goes: bool) -> None:
    store_worker(database, **known)
    assert prune(database).workers == int(goes)
    assert workers(database) == ([] if goes else ["celery-1"])


@pytest.mark.parametrize("same", [{"name": "w1"}, {"engine_name": "w1@host"}], ids=str)
def test_a_quarantine_stays_as_long_as_it_is_the_latest_of_its_name(database: Database, same: dict[str, Any]) -> None:
    store_worker(database, "earlier", availability=WorkerAvailability.QUARANTINED, **same)
    store_worker(database, "latest", availability=WorkerAvailability.QUARANTINED, **same)
    assert prune(database).workers == 1
    assert workers(database) == ["latest"]


@on_both
def test_a_worker_that_was_seen_within_a_day_stays_whatever_the_limit(database: Database) -> None:
    now = datetime.now(timezone.utc)
    for worker_id, hours in (("lately", 23), ("before", 25)):
        seen = now - timedelta(hours=hours)
        store_worker(database, worker_id, last_seen_at=seen, ended_at=seen)
    assert prune(database, now - timedelta(seconds=1)).workers == 1
    assert workers(database) == ["lately"]


# --- before and in parts ---------------------------------------------------------------------------------------------


@on_both
def test_old_history_is_deleted_except_for_the_latest_state_and_decisions(database: Database) -> None:
    ref = store_worker(database, state="online", ended_at=None)
    idle = store_worker(database, "celery-2", state="lost", ended_at=None, last_seen_at=at(DAY))
    history: list[tuple[int, float, str | None, str | None]] = [
        (ref, -5, "unresponsive", None),
        (ref, -4, None, "quarantined"),
        (ref, -4, "online", None),
        (idle, -4, "unresponsive", None),
        (idle, -3, "lost", None),
        (ref, -3, None, "available"),
        (ref, -2, None, None),
        (ref, 1, "unresponsive", None),
        (ref, 2, "online", None),
    ]
    with database.engine.begin() as connection:
        for worker_ref, day, state, decided in history:
            values = {"worker_ref": worker_ref, "changed_at": at(day * DAY), "state": state, "availability": decided}
            connection.execute(insert(change).values(values))
        expected = retention.preview(connection, LIMIT).removed
    assert sum(retention.prune(LIMIT, batch_size=2), Removed()) == expected == Removed(changes=4)
    with database.engine.connect() as connection:
        left = connection.execute(
            select(change.c.worker_ref, change.c.state, change.c.availability).order_by(change.c.id)
        ).all()
    assert [tuple(row) for row in left] == [
        (ref, None, "quarantined"),
        (idle, "lost", None),
        (ref, None, "available"),
        (ref, "unresponsive", None),
        (ref, "online", None),
    ]


@on_both
def test_the_oldest_try_that_stays_is_named(database: Database) -> None:
    store_old_try(database)
    for seconds in (30, 20, 700):
        started = at(seconds)
        store_try(database, key=replace(KEY, task_id=str(seconds)), started_at=started, ended_at=started)
    with database.engine.connect() as connection:
        assert retention.preview(connection, LIMIT).oldest_kept == at(20)
        assert retention.preview(connection, at(DAY)).oldest_kept is None


def test_an_empty_installation_has_nothing_to_remove(database: Database) -> None:
    assert prune(database) == Removed()


@on_both
def test_everything_old_is_deleted_batch_by_batch(database: Database) -> None:
    refs = [store_worker(database, f"celery-{number}", changes=1) for number in range(5)]
    for number in range(7):
        key = replace(KEY, map_index=number)
        # Some ten minutes have many tries, some of which stay.
        store_try(database, refs[number % 5], key, started_at=at(-3000 - number // 3 * 600), ended_at=at(-10))
        store_try(database, refs[0], replace(key, task_id="stays"), started_at=at(-3000), ended_at=at(10))
        store_try(database, key=replace(key, task_id="no start"), ended_at=at(-10))
    assert prune(database, batch_size=2) == Removed(attempts=14, workers=4, changes=4)
    assert Counter(row["task_id"] for row in database.attempts()) == {"stays": 7}
    assert workers(database) == ["celery-0"]


def test_a_batch_that_is_done_stays_done_when_it_is_interrupted(database: Database) -> None:
    for number in range(5):
        store_old_try(database, key=replace(KEY, map_index=number))
    first = next(iter(retention.prune(LIMIT, batch_size=2)))
    assert (first.attempts, len(database.attempts())) == (2, 3)
    assert prune(database).attempts == 3


def test_a_step_stops_at_its_budget(database: Database) -> None:
    for number in range(7):
        store_old_try(database, key=replace(KEY, map_index=number))
    steps = [retention.prune_step(older_than=LIMIT, budget=4, batch_size=2).attempts for _ in range(3)]
    assert steps == [4, 3, 0]


# --- the limit of the configuration ----------------------------------------------------------------------------------


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return what sets the limit in days."""
    return lambda days: monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__RETENTION_DAYS", str(days))


def ago(days: float) -> datetime:
    return datetime.now(timezone.utc) - timedelta(days=days)


def store_ages(database: Database) -> None:
    for days in (1, 29, 31, 4000):
        key = replace(KEY, task_id=f"{days} days")
        store_try(database, key=key, started_at=ago(days), ended_at=ago(days))


@pytest.mark.parametrize(
    ("days", "kept"),
    [
        (0, ["1 days", "29 days", "31 days", "4000 days"]),
        (-1, ["1 days", "29 days", "31 days", "4000 days"]),
        (10**9, ["1 days", "29 days", "31 days", "4000 days"]),
        (30, ["1 days", "29 days"]),
    ],
)
def test_the_limit_of_the_configuration_is_kept(
    database: Database, limit: Callable[[int], None], days: int, kept: list[str]
) -> None:
    limit(days)
    store_ages(database)
    RetentionTask().run_if_due()
    assert tries(database) == kept


def test_without_the_option_everything_is_kept(database: Database, limit: Callable[[int], None]) -> None:
    del limit
    store_ages(database)
    assert RetentionTask().run_if_due() is None
    assert len(tries(database)) == 4


def broken_transaction() -> AbstractContextManager[Connection]:
    raise RuntimeError("the database went away")


def test_a_failure_is_logged_and_retried_after_a_pause(
    database: Database,
    limit: Callable[[int], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    limit(30)
    store_ages(database)
    now, transactions = 100.0, [broken_transaction]

    def transaction() -> AbstractContextManager[Connection]:
        return transactions.pop()() if transactions else session.writing(session.BACKGROUND)

    task = RetentionTask(transaction=transaction, pause_seconds=60, clock=lambda: now)
    assert [task.run_if_due() for _ in range(2)] == [None, None]
    assert len([record for record in caplog.records if "older than its limit" in record.getMessage()]) == 1
    assert len(tries(database)) == 4
    now += 60
    assert task.run_if_due() == Removed(attempts=2)


def test_it_pauses_when_nothing_is_left_to_delete(database: Database, limit: Callable[[int], None]) -> None:
    limit(30)
    task = RetentionTask(batch_size=2, step_budget=2)
    for number in range(3):
        store_old_try(database, key=replace(KEY, map_index=number))
    done = [task.run_if_due() for _ in range(3)]
    assert done == [Removed(attempts=2), Removed(attempts=1), None]


# --- beside those who write ------------------------------------------------------------------------------------------

OLD = a_worker("celery-1", name="celery-1@host-1")


def start(connection: Connection, task_id: str = "extract", *, now: datetime, is_late: bool = False) -> None:
    key = replace(KEY, task_id=task_id)
    record_start(connection, key, OLD, try_started_at=now, state="running", now=now, is_late=is_late)


def store_old_worker(database: Database) -> int:
    """Store a worker as its own processes described it, that nobody has seen for long."""
    with database.engine.begin() as connection:
        start(connection, now=at(-DAY))
        connection.execute(worker.update().values(state="lost", ended_at=at(-DAY)))
        connection.execute(attempt.delete())
        ref: int = connection.execute(select(worker.c.id)).scalar_one()
        return ref


@pytest.fixture
def in_a_thread() -> Iterator[Callable[[Callable[[], object]], threading.Thread]]:
    """Return what runs a function in a thread of its own; what goes wrong there fails the test at its end."""
    failed: list[BaseException] = []
    threads: list[threading.Thread] = []

    def run(work: Callable[[], object]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001
                failed.append(error)

        thread = threading.Thread(target=guarded)
        threads.append(thread)
        thread.start()
        return thread

    yield run
    for thread in threads:
        thread.join(60)
    assert failed == []


def somebody_waits(connection: Connection) -> bool:
    return bool(connection.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one())


@on_postgresql
@pytest.mark.parametrize("is_late", [False, True])
def test_a_worker_that_starts_a_try_meanwhile_is_passed_by(database: Database, is_late: bool) -> None:
    store_old_worker(database)
    with database.engine.connect() as connection, connection.begin():
        # A report that had to wait is as old as the worker's last sign of life.
        start(connection, now=at(-DAY) if is_late else datetime.now(timezone.utc), is_late=is_late)
        assert sum(retention.prune(LIMIT), Removed()) == Removed()
    assert workers(database) == ["celery-1"]
    assert_no_try_points_to_nothing(database)


@on_postgresql
def test_a_start_that_meets_the_removal_makes_the_worker_anew(
    database: Database, in_a_thread: Callable[[Callable[[], object]], threading.Thread]
) -> None:
    ref = store_old_worker(database)

    def begin() -> None:
        with database.engine.begin() as connection:
            start(connection, now=datetime.now(timezone.utc))

    with database.engine.connect() as watching, database.engine.connect() as connection, connection.begin():
        locked = select(worker.c.id).where(worker.c.id == ref).with_for_update(skip_locked=True)
        assert retention._remove_workers(connection, connection.execute(locked).scalars().all()).workers == 1
        thread = in_a_thread(begin)
        wait_for(lambda: somebody_waits(watching), 30, "the start to wait for the removal")
    thread.join(60)
    (row,) = database.workers()
    assert (row["worker_id"], row["state"]) == ("celery-1", "online")
    assert [one["worker_id"] for one in database.attempts()] == ["celery-1"]


@on_postgresql
def test_a_worker_that_reconciling_has_read_is_passed_by(database: Database) -> None:
    store_worker(database, "pod-1", kind="kubernetes", hostname="pod-1")
    with database.engine.begin() as connection:
        host = a_worker("host-1", host_only=True, hostname="gone")
        ensure_hosts(connection, [host], now=at(-DAY))
    with database.engine.connect() as connection, connection.begin():
        assert [life.record.worker_id for life in instances_on_hosts(connection, ["pod-1"])] == ["pod-1"]
        assert ensure_hosts(connection, [host], now=NOON).keys() == {"host-1"}
        assert sum(retention.prune(LIMIT), Removed()) == Removed()
    assert workers(database) == ["pod-1", "host-1"]
    assert prune(database).workers == 2


def test_on_sqlite_no_worker_that_reconciling_has_read_is_removed(database: Database) -> None:
    from sqlalchemy.exc import OperationalError

    store_worker(database)
    with database.engine.connect() as connection, connection.begin():
        instances_on_hosts(connection, ["host-1"])
        with pytest.raises(OperationalError, match="locked"):
            sum(retention.prune(LIMIT), Removed())
    assert workers(database) == ["celery-1"]


@on_both
def test_a_start_names_no_worker_by_an_old_row_alone(database: Database) -> None:
    """Such a start locks the row first, so it writes one statement more than a usual one."""
    store_old_worker(database)
    now = datetime.now(timezone.utc)
    with database.engine.begin() as connection:
        start(connection, now=now)
    (row,) = database.workers()
    assert row["last_seen_at"] == now
    assert_no_try_points_to_nothing(database)


@on_postgresql
def test_no_try_points_to_nothing_however_many_write_meanwhile(
    database: Database, in_a_thread: Callable[[Callable[[], object]], threading.Thread]
) -> None:
    """Starts on workers of long ago, all the while they and their tries are being removed."""
    names = [f"celery-{number}" for number in range(4)]
    numbers = itertools.count()

    def is_gone(worker_id: str) -> bool:
        with database.engine.connect() as connection:
            return connection.execute(select(worker.c.id).where(worker.c.worker_id == worker_id)).first() is None

    def begin(worker_id: str) -> None:
        mine = worker.c.worker_id == worker_id
        for number in range(25):
            key = replace(KEY, map_index=next(numbers))
            with database.engine.begin() as connection:
                # As late as can be: the worker was seen last when nothing of it needs to be kept any more.
                long_ago = {"try_started_at": at(-DAY), "now": at(-DAY), "is_late": True}
                record_start(connection, key, a_worker(worker_id), state="running", **long_ago)  # type: ignore[arg-type]
            with database.engine.begin() as connection:
                of_mine = attempt.c.task_key == key.task_key
                connection.execute(attempt.update().where(of_mine).values(ended_at=at(-DAY), state="success"))
                connection.execute(worker.update().where(mine).values(state="lost", ended_at=at(-DAY)))
            if number % 5 == 4:
                # Otherwise each may always have another try by the time at which workers without any are removed.
                wait_for(lambda: is_gone(worker_id), 60, f"{worker_id} to be removed", interval=0.001)

    threads = [in_a_thread(lambda name=name: begin(name)) for name in names]  # type: ignore[misc]
    removed = Removed()
    while any(thread.is_alive() for thread in threads):
        for batch in retention.prune(LIMIT, transaction=partial(session.writing, session.COMMAND)):
            removed += batch
            assert_no_try_points_to_nothing(database)
    assert removed.workers >= 5 * len(names)
    assert removed.attempts == 25 * len(names)


# --- MySQL, which the tests do not run -------------------------------------------------------------------------------


def test_the_conditions_compile_for_mysql() -> None:
    from sqlalchemy.dialects import mysql

    assert WorkerAvailability.AVAILABLE
    statement = select(attempt.c.run_key).where(retention._is_try_expired(attempt, LIMIT))
    sql = str(statement.compile(dialect=mysql.dialect()))
    assert sql.count("EXISTS") > 4
    assert metadata_database.task_instance_table().name in sql
