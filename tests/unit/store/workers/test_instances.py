"""What is read and written of workers' instances, on the databases whose statements differ."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, insert, select, update

from airflow_worker_insight import compat
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.states import SourceName, source_of
from airflow_worker_insight.domain.workers import NewWorkerInstance, WorkerInstance
from airflow_worker_insight.store import leases
from airflow_worker_insight.store.attempts import running as attempts_running
from airflow_worker_insight.store.leases import SourceRow
from airflow_worker_insight.store.tables import attempt, change, worker
from airflow_worker_insight.store.workers import instances as store
from airflow_worker_insight.store.workers.upsert import upsert_worker
from tests.unit.database import NOON, Database, a_worker, add_run, add_try, at, change_try, on_both, record_start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from airflow_worker_insight.domain.keys import TryKey


def a_new_instance(name: str = "w1@host-1", **others: Any) -> NewWorkerInstance:
    known: dict[str, Any] = {
        "kind": "celery",
        "engine_name": name,
        "hostname": "host-1",
        "state": "online",
        "pid": 100,
        "started_at": at(-60),
        "heartbeat_at": NOON,
        "concurrency": 16,
    }
    return NewWorkerInstance(**{**known, **others})


def register(database: Database, *some: NewWorkerInstance) -> list[WorkerInstance]:
    with database.engine.begin() as connection:
        store.register(connection, some, now=NOON)
    return open_instances(database)


def open_instances(database: Database, engine: str = SourceName.CELERY) -> list[WorkerInstance]:
    with database.engine.connect() as connection:
        return store.open_instances(connection, engine)


@contextmanager
def counted(database: Database) -> Iterator[Counter[str]]:
    """Count the statements that are sent meanwhile, by their first word."""
    sent: Counter[str] = Counter()

    def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent[statement.split(maxsplit=1)[0]] += 1

    event.listen(database.engine, "before_cursor_execute", count)
    try:
        yield sent
    finally:
        event.remove(database.engine, "before_cursor_execute", count)


# --- the lease -------------------------------------------------------------------------------------------------------


@on_both
def test_a_source_is_due_at_once_and_then_once_per_interval(database: Database) -> None:
    assert [take(database, seconds) for seconds in (0, 0, 29.9, 30, 31)] == [True, False, False, True, False]
    assert take(database, 40, only_if_due=False)
    assert [take(database, seconds) for seconds in (60, 70)] == [False, True]


def take(database: Database, seconds: float, *, only_if_due: bool = True) -> bool:
    with database.engine.begin() as connection:
        leases.get_or_create_source(connection, SourceName.CELERY, now=at(seconds))
        return leases.acquire_lease(
            connection,
            SourceName.CELERY,
            now=at(seconds),
            until=at(seconds + 30),
            at_most=at(seconds + 60),
            only_if_due=only_if_due,
        )


@on_both
def test_a_clock_that_was_set_back_does_not_delay_a_poll(database: Database) -> None:
    assert take(database, 3600)
    assert take(database, 0), "3630 is further away than anybody takes it for"
    assert not take(database, 1)


@on_both
def test_only_the_holder_releases_a_lease(database: Database) -> None:
    def give_back(until: float) -> None:
        with database.engine.begin() as connection:
            leases.release_lease(connection, SourceName.CELERY, until=at(until), due_at=at(5))

    assert take(database, 0)
    give_back(29)
    assert not take(database, 5)
    give_back(30)
    assert take(database, 5)


@on_both
def test_the_state_of_a_source_is_stored(database: Database) -> None:
    row = SourceRow(SourceName.CELERY, at(30), NOON, at(-600), "down")
    with database.engine.begin() as connection:
        assert leases.get_or_create_source(connection, SourceName.CELERY, now=NOON) == SourceRow(
            SourceName.CELERY, NOON
        )
        leases.get_or_create_source(connection, SourceName.EDGE, now=NOON)
        leases.write_source(connection, row)
    with database.engine.begin() as connection:
        assert leases.get_or_create_source(connection, SourceName.CELERY, now=at(1)) == row
        assert leases.get_or_create_source(connection, SourceName.EDGE, now=at(1)) == SourceRow(SourceName.EDGE, NOON)


def test_each_kind_belongs_to_a_known_source() -> None:
    names = [source_of(kind) for kind in ("celery", "edge", "local", "kubernetes", "MyExecutor")]
    assert names == [SourceName.CELERY, SourceName.EDGE, SourceName.JOBS, SourceName.TRIES, SourceName.TRIES]


# --- registering -----------------------------------------------------------------------------------------------------


@on_both
def test_a_worker_is_known_before_its_first_try(database: Database) -> None:
    (instance,) = register(database, a_new_instance(queues=("default", "large"), versions={"airflow": "3.3.2"}))
    assert (instance.engine_name, instance.pid, instance.state, instance.running) == ("w1@host-1", 100, "online", 0)
    assert (instance.engine_started_at, instance.engine_heartbeat_at) == (at(-60), NOON)
    assert instance.queues == ("default", "large")
    assert not instance.is_reported
    (row,) = database.workers()
    assert (row["name"], row["reported_id"], row["availability"]) == ("w1@host-1", None, "available")
    assert (row["registered_at"], row["last_seen_at"], row["versions"]) == (NOON, NOON, {"airflow": "3.3.2"})
    assert row["worker_id"].startswith("celery-")
    assert len(row["worker_id"]) <= 64


@on_both
@pytest.mark.parametrize("started_at", [at(-60), at(-64), at(-56), at(-110)])
def test_its_first_report_takes_the_same_row(database: Database, started_at: datetime) -> None:
    """Its process started some seconds before the worker says that it did."""
    (instance,) = register(database, a_new_instance())
    one = a_worker("celery-x", engine_name="w1@host-1", pid=100, started_at=started_at)
    with database.engine.begin() as connection:
        ref = upsert_worker(connection, one, now=at(10))
    assert ref == instance.ref
    assert [one.is_reported for one in open_instances(database)] == [True]


@on_both
@pytest.mark.parametrize("started_at", [at(-3600), at(-130), at(-50), at(600), None])
def test_a_report_with_another_start_leaves_the_row_alone(database: Database, started_at: datetime | None) -> None:
    """It may be of the instance before; the next look knows."""
    (instance,) = register(database, a_new_instance())
    one = a_worker("celery-x", engine_name="w1@host-1", pid=100, started_at=started_at)
    with database.engine.begin() as connection:
        assert upsert_worker(connection, one, now=at(10)) != instance.ref
    assert [one.is_reported for one in open_instances(database)] == [False, True]


@on_both
@pytest.mark.parametrize("started_at", [at(-3600), None])
def test_a_report_takes_the_row_of_a_source_that_knows_no_start(
    database: Database, started_at: datetime | None
) -> None:
    register(database, a_new_instance("edge-1", kind="edge", pid=None, started_at=None))
    (instance,) = open_instances(database, SourceName.EDGE)
    one = a_worker("edge-x", kind="edge", engine_name="edge-1", started_at=started_at)
    with database.engine.begin() as connection:
        assert upsert_worker(connection, one, now=at(10)) == instance.ref


@on_both
def test_unknown_queues_are_null_and_not_a_json_null(database: Database) -> None:
    """Else they could not be asked for in SQL."""
    register(database, a_new_instance("w1"), a_new_instance("w2", queues=()), a_new_instance("w3"))
    with database.engine.connect() as connection:
        unknown = connection.execute(
            select(worker.c.engine_name).where(worker.c.queues.is_(None)).order_by(worker.c.engine_name)
        )
        assert list(unknown.scalars()) == ["w1", "w3"]


@on_both
def test_a_quarantine_outlives_a_restart_and_a_drain_does_not(database: Database) -> None:
    register(database, a_new_instance("sick"), a_new_instance("drained"), a_new_instance("released"))
    with database.engine.begin() as connection:
        for name, decided in (("sick", "quarantined"), ("drained", "draining"), ("released", "quarantined")):
            connection.execute(update(worker).where(worker.c.name == name).values(availability=decided))
    register(database, a_new_instance("released", pid=150))
    with database.engine.begin() as connection:
        later = (worker.c.name == "released") & (worker.c.pid == 150)
        connection.execute(update(worker).where(later).values(availability="available"))
    register(database, *(a_new_instance(name, pid=200) for name in ("sick", "drained", "released", "new")))
    with database.engine.connect() as connection:
        rows = connection.execute(select(worker.c.name, worker.c.availability).where(worker.c.pid == 200))
        assert dict(rows.all()) == {
            "sick": "quarantined",
            "drained": "available",
            "released": "available",
            "new": "available",
        }


def test_of_another_kind_a_name_says_nothing(database: Database) -> None:
    register(database, a_new_instance("one", kind="edge"))
    with database.engine.begin() as connection:
        connection.execute(update(worker).values(availability="quarantined"))
    register(database, a_new_instance("one"))
    assert [row["availability"] for row in database.workers()] == ["quarantined", "available"]


# --- writing ---------------------------------------------------------------------------------------------------------


@on_both
def test_each_row_gets_its_own_values(database: Database) -> None:
    instances = register(database, *(a_new_instance(f"w{n}", queues=("default",)) for n in range(4)))
    first, second, third, fourth = (instance.ref for instance in instances)
    with database.engine.begin() as connection:
        store.update_instances(
            connection,
            {
                first: {"running": 3, "last_seen_at": at(60), "queues": ["large", "small"]},
                second: {"running": 0, "last_seen_at": at(60), "state": "lost", "ended_at": at(30)},
                third: {"last_seen_at": at(60), "state": None, "state_reason": "quote ' and \\ and 😀"},
                fourth: {},
            },
        )
    found = {row["id"]: row for row in database.workers()}
    columns = ("running", "last_seen_at", "queues", "state", "state_reason", "ended_at")
    assert {ref: tuple(row[name] for name in columns) for ref, row in found.items()} == {
        first: (3, at(60), ["large", "small"], "online", None, None),
        second: (0, at(60), ["default"], "lost", None, at(30)),
        third: (0, at(60), ["default"], None, "quote ' and \\ and 😀", None),
        fourth: (0, NOON, ["default"], "online", None, None),
    }


@on_both
def test_two_thousand_workers_are_a_handful_of_statements(database: Database) -> None:
    with database.engine.begin() as connection, counted(database) as sent:
        store.register(connection, [a_new_instance(f"w{n}") for n in range(2000)], now=NOON)
    assert sum(sent.values()) - sent["INSERT"] <= 12
    # SQLAlchemy sends a thousand rows with each statement to PostgreSQL.
    assert sent["INSERT"] <= 5
    instances = open_instances(database)
    with database.engine.begin() as connection, counted(database) as sent:
        changed = {
            instance.ref: {
                "last_seen_at": at(30),
                "engine_heartbeat_at": at(number / 100),
                "running": number % 17,
                "state": ("online", "unresponsive", "lost", "offline")[number % 4],
            }
            for number, instance in enumerate(instances)
        }
        store.update_instances(connection, changed)
        store.add_changes(connection, [(instance.ref, "lost", "silent") for instance in instances], now=at(30))
    assert sent["UPDATE"] == 4
    assert sent["INSERT"] <= 3
    for number, row in enumerate(database.workers()):
        assert (row["running"], row["engine_heartbeat_at"]) == (number % 17, at(number / 100))


@on_both
def test_changes_are_kept_with_their_time_and_reason(database: Database) -> None:
    (instance,) = register(database, a_new_instance())
    with database.engine.begin() as connection:
        store.add_changes(connection, [(instance.ref, "unresponsive", "silent"), (instance.ref, None, None)], now=at(5))
        store.add_changes(connection, [], now=at(6))
        rows = connection.execute(select(change).order_by(change.c.id)).all()
    assert [(row.worker_ref, row.changed_at, row.state, row.reason, row.changed_by) for row in rows] == [
        (instance.ref, at(5), "unresponsive", "silent", None),
        (instance.ref, at(5), None, None, None),
    ]


def told_apart(database: Database, **others: Any) -> tuple[int, int]:
    """Have a worker with two rows: its engine's and one that its processes told of; return their IDs."""
    (instance,) = register(database, a_new_instance(queues=("large",)))
    one = a_worker("celery-x", engine_name="w1@host-1", pid=100, name="etl-large", started_at=at(-3600), **others)
    with database.engine.begin() as connection:
        told = upsert_worker(connection, one, now=at(20))
    assert told != instance.ref
    return instance.ref, told


@on_both
def test_merging_keeps_the_sources_row_the_history_and_the_decisions(database: Database) -> None:
    kept, told = told_apart(database)
    with database.engine.begin() as connection:
        store.add_changes(connection, [(told, "unresponsive", None)], now=NOON)
        connection.execute(update(worker).where(worker.c.id == told).values(availability="draining"))
        key = add_try(connection, add_run(connection))
        one = a_worker("celery-x", engine_name="w1@host-1", pid=100, name="etl-large", started_at=at(-3600))
        record_start(connection, key, one, try_started_at=NOON, state="running", now=at(20))
        store.merge(connection, kept, told, now=at(30))
        assert list(connection.execute(select(change.c.worker_ref)).scalars()) == [kept]
    row, gone = database.workers()
    assert (row["id"], row["availability"], row["reported_id"]) == (kept, "draining", "celery-x")
    assert (row["name"], row["engine_name"], row["labels"]) == ("etl-large", "w1@host-1", {"zone": "a"})
    assert (row["registered_at"], row["queues"], row["concurrency"], row["pid"]) == (NOON, ["large"], 16, 100)
    assert (gone["id"], gone["state"], gone["ended_at"]) == (told, None, at(30))
    assert row["worker_id"] in gone["state_reason"]
    assert [row["worker_ref"] for row in database.attempts()] == [kept]
    # What comes later finds the same row.
    with database.engine.begin() as connection:
        assert upsert_worker(connection, one, now=at(40)) == kept


@on_both
def test_a_try_that_names_both_rows_keeps_both(database: Database) -> None:
    kept, told = told_apart(database)
    with database.engine.begin() as connection:
        run = add_run(connection)
        keys = [add_try(connection, run, name) for name in ("both", "one")]
        one = a_worker("celery-x", engine_name="w1@host-1", pid=100, name="etl-large", started_at=at(-3600))
        for key in keys:
            record_start(connection, key, one, try_started_at=NOON, state="running", now=at(20))
        known = a_worker("celery-y", engine_name="w1@host-1", pid=100, started_at=at(-60))
        record_start(connection, keys[0], known, try_started_at=NOON, state="running", now=at(20))
        store.merge(connection, kept, told, now=at(30))
    assert [(row["task_id"], row["worker_ref"]) for row in database.attempts()] == [
        ("both", told),
        ("both", kept),
        ("one", kept),
    ]


@on_both
def test_many_tries_of_two_rows_are_more_than_one_statement_takes(database: Database) -> None:
    """SQLite refuses a condition of more than a thousand parts."""
    kept, told = told_apart(database)
    number = 2400
    same = {"map_index": -1, "process_count": 1, "ordinal": 0, "attribution": "reported"}
    names = {"dag_id": "etl", "run_id": "run-1", "task_id": "load", "run_key": 1, "try_number": 1}
    rows = [
        {**same, **names, "task_key": task_key, "worker_ref": ref}
        for task_key in range(number)
        for ref in ((kept, told) if task_key % 2 else (told,))
    ]
    with database.engine.begin() as connection:
        connection.execute(insert(attempt), rows)
        store.merge(connection, kept, told, now=at(30))
        refs = Counter(connection.execute(select(attempt.c.worker_ref)).scalars())
    assert refs == {kept: number, told: number // 2}


# --- reading ---------------------------------------------------------------------------------------------------------


@on_both
def test_open_instances_are_read_by_source(database: Database) -> None:
    register(
        database,
        a_new_instance("c1"),
        a_new_instance("e1", kind="edge"),
        a_new_instance("l1", kind="local"),
        a_new_instance("p1", kind="kubernetes"),
        a_new_instance("p2", kind="kubernetes"),
        a_new_instance("c2"),
        a_new_instance("c3"),
        a_new_instance("c4"),
    )
    with database.engine.begin() as connection:
        for name, values in (
            ("c2", {"state": "lost", "ended_at": NOON}),
            ("c3", {"state": None}),
            ("c4", {"host_only": True}),
            ("p2", {"state": None}),
        ):
            connection.execute(update(worker).where(worker.c.name == name).values(values))
    found = {
        engine: [instance.engine_name for instance in open_instances(database, engine)]
        for engine in (SourceName.CELERY, SourceName.EDGE, SourceName.JOBS, SourceName.TRIES)
    }
    assert found == {
        SourceName.CELERY: ["c1", "c3"],
        SourceName.EDGE: ["e1"],
        SourceName.JOBS: ["l1"],
        SourceName.TRIES: ["p1"],
    }


@on_both
def test_the_latest_ended_instance_of_each_process_is_read(database: Database) -> None:
    again = a_new_instance("w1", pid=1, started_at=at(-30))
    register(database, a_new_instance("w1", pid=1), again, a_new_instance("w1", pid=2), a_new_instance("w2"))
    with database.engine.begin() as connection:
        connection.execute(update(worker).values(state="lost", ended_at=NOON))
        found = store.latest_ended_instances(connection, "celery", {"w1", "nobody"})
        assert store.latest_ended_instances(connection, "edge", {"w1"}) == []
    assert sorted(instance.ref for instance in found) == [2, 3]


# --- running tries ---------------------------------------------------------------------------------------------------


@pytest.fixture
def ran(database: Database) -> dict[str, TryKey]:
    """Store four tries that run on two workers, one that has ended, and one that no worker told of."""
    keys = {}
    with database.engine.begin() as connection:
        run = add_run(connection, state="running", ended_at=None)
        for name, worker_id, state in (
            ("a", "celery-1", "running"),
            ("b", "celery-1", "running"),
            ("c", "celery-2", "running"),
            ("d", "celery-2", "success"),
            ("e", None, "running"),
            ("f", "celery-2", "restarting"),
        ):
            key = keys[name] = add_try(connection, run, name, state=state, ended_at=None)
            if worker_id is not None:
                one = a_worker(worker_id, pid=int(worker_id[-1]))
                record_start(connection, key, one, try_started_at=NOON, state=state, now=NOON)
    return keys


def running(database: Database) -> dict[str, int]:
    with database.engine.connect() as connection:
        found = attempts_running.running_tries(connection)
        names = dict(connection.execute(select(worker.c.id, worker.c.worker_id)).all())
    return {names[ref]: number for ref, number in found.counts.items()}


@on_both
@pytest.mark.usefixtures("ran")
def test_running_tries_are_counted_by_worker(database: Database) -> None:
    assert running(database) == {"celery-1": 2, "celery-2": 2}


@on_both
def test_a_try_runs_on_the_worker_that_began_it_last(database: Database, ran: dict[str, TryKey]) -> None:
    """It has deferred, and gone on elsewhere."""
    with database.engine.begin() as connection:
        moved = a_worker("celery-2", pid=2)
        record_start(connection, ran["a"], moved, try_started_at=NOON, state="running", now=at(60))
    assert running(database) == {"celery-1": 1, "celery-2": 3}
    with database.engine.begin() as connection:
        back = a_worker("celery-1", pid=1)
        record_start(connection, ran["a"], back, try_started_at=NOON, state="running", now=at(120))
    assert running(database) == {"celery-1": 2, "celery-2": 2}


@on_both
def test_the_next_try_is_not_the_one_that_ran(database: Database, ran: dict[str, TryKey]) -> None:
    with database.engine.begin() as connection:
        change_try(connection, ran["a"], try_number=2)
    assert running(database) == {"celery-1": 1, "celery-2": 2}


@on_both
@pytest.mark.skipif(not compat.is_airflow_3(), reason="2.11 has the heartbeats of its tries in their jobs")
def test_the_latest_heartbeat_of_its_tries_is_the_workers(database: Database, ran: dict[str, TryKey]) -> None:
    with database.engine.begin() as connection:
        for name, seconds in (("a", 10), ("b", 20)):
            change_try(connection, ran[name], last_heartbeat_at=at(seconds))
        found = attempts_running.running_tries(connection)
    assert list(found.heartbeats.values()) == [at(20)]


@on_both
@pytest.mark.skipif(compat.is_airflow_3(), reason="Airflow 3 has heartbeats in its task instances")
def test_on_2_11_the_heartbeat_is_that_of_the_tries_job(database: Database, ran: dict[str, TryKey]) -> None:
    job = metadata_database.job_table()
    with database.engine.begin() as connection:
        connection.execute(job.insert().values(id=7, job_type="LocalTaskJob", latest_heartbeat=at(20)))
        change_try(connection, ran["a"], job_id=7)
        found = attempts_running.running_tries(connection)
    assert list(found.heartbeats.values()) == [at(20)]


@on_both
def test_thousands_of_running_tries_are_a_handful_of_statements(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection, state="running", ended_at=None)
        for number in range(600):
            key = add_try(connection, run, "mapped", number, state="running", ended_at=None)
            one = a_worker(f"celery-{number % 3}", pid=number % 3 + 1)
            record_start(connection, key, one, try_started_at=NOON, state="running", now=NOON)
    with counted(database) as sent:
        assert running(database) == {f"celery-{number}": 200 for number in range(3)}
    assert sent["SELECT"] <= 4


def test_an_instance_is_read_as_it_was_written(database: Database) -> None:
    (instance,) = register(database, a_new_instance())
    with database.engine.connect() as connection:
        assert store.instances_by_ref(connection, SourceName.CELERY, [instance.ref, 99]) == [instance]
        assert store.instances_by_ref(connection, SourceName.TRIES, [instance.ref]) == []
    assert instance == replace(instance, registered_at=NOON + timedelta(0))
