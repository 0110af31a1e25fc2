"""What a person decided of a worker is kept with why, when and who."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import insert, update

from airflow_worker_insight.domain.attribution import host_worker
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.domain.workers import NewWorkerInstance
from airflow_worker_insight.store.attempts import close
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.tables import change, worker, worker_source
from airflow_worker_insight.store.workers import queries as worker_queries
from airflow_worker_insight.store.workers.availability import HostOnlyWorkerError, WorkerEndedError, set_availability
from airflow_worker_insight.store.workers.instances import merge, register
from airflow_worker_insight.store.workers.upsert import upsert_worker
from tests.unit.database import NOON, Database, a_worker, at, on_both, record_start
from tests.unit.store.fleet import get

if TYPE_CHECKING:
    from airflow_worker_insight.domain.workers import WorkerRow

HOST = "etl-1.example.org"


def decide(
    database: Database,
    availability: str,
    note: str | None = None,
    *,
    worker_id: str = "one",
    changed_by: str = "ann",
    second: float = 0,
) -> WorkerRow | None:
    with database.engine.begin() as connection:
        return set_availability(connection, worker_id, availability, note=note, changed_by=changed_by, now=at(second))


def history(database: Database) -> list[tuple[str | None, str | None, str | None]]:
    with database.engine.connect() as connection:
        one = worker_queries.get_worker(connection, "one")
        assert one is not None
        entries = worker_queries.changes(connection, one, limit=10)
    return [(entry.availability, entry.reason, entry.changed_by) for entry in entries]


@pytest.fixture(autouse=True)
def _a_worker(database: Database) -> None:
    with database.engine.begin() as connection:
        upsert_worker(connection, a_worker("one"), now=NOON)
        upsert_worker(connection, a_worker("two"), now=NOON)


@on_both
def test_decisions_are_kept_in_order(database: Database) -> None:
    drained = decide(database, "draining", "disk fails", second=1)
    assert drained is not None
    assert (drained.worker_id, drained.availability) == ("one", "draining")
    decide(database, "quarantined", "it did fail", changed_by="bob", second=2)
    decide(database, "available", second=3)
    assert history(database) == [
        ("available", None, "ann"),
        ("quarantined", "it did fail", "bob"),
        ("draining", "disk fails", "ann"),
    ]
    with database.engine.connect() as connection:
        one, two = (worker_queries.get_worker(connection, name) for name in ("one", "two"))
        assert one is not None
        assert two is not None
        assert (one.availability, two.availability) == ("available", "available")
        assert [entry.changed_at for entry in worker_queries.changes(connection, one, limit=10)] == [
            at(3),
            at(2),
            at(1),
        ]


def test_the_same_again_is_a_change_only_with_another_note(database: Database) -> None:
    decide(database, "draining", "disk")
    decide(database, "draining", "disk")
    decide(database, "draining")
    assert history(database) == [("draining", "disk", "ann")]
    decide(database, "draining", "disk, since Monday", changed_by="bob")
    assert history(database)[0] == ("draining", "disk, since Monday", "bob")


def test_a_worker_that_was_never_decided_of_is_available(database: Database) -> None:
    decide(database, "available")
    assert history(database) == []
    decide(database, "available", "looked at it, it is fine")
    assert history(database) == [("available", "looked at it, it is fine", "ann")]


def test_an_unknown_worker_has_no_availability(database: Database) -> None:
    assert decide(database, "draining", worker_id="nobody") is None


def test_nothing_is_decided_of_a_host(database: Database) -> None:
    record = host_worker("host-1", "celery")
    with database.engine.begin() as connection:
        close.ensure_hosts(connection, [record], now=NOON)
    with pytest.raises(HostOnlyWorkerError):
        decide(database, "draining", worker_id=record.worker_id)


@on_both
def test_a_long_name_and_a_long_note_are_stored(database: Database) -> None:
    decide(database, "draining", "n" * 500, changed_by="ä" * 300)
    assert history(database) == [("draining", "n" * 500, "ä" * 250)]


# --- ended instances -------------------------------------------------------------------------------------------------


def end(database: Database, worker_id: str, state: str = "lost") -> None:
    with database.engine.begin() as connection:
        values = {"state": state, "ended_at": at(5)}
        connection.execute(update(worker).where(worker.c.worker_id == worker_id).values(**values))


def follow(database: Database, worker_id: str = "next") -> None:
    with database.engine.begin() as connection:
        upsert_worker(connection, a_worker(worker_id, name="one@host-1", pid=101), now=at(6))


def availability(database: Database, worker_id: str) -> str:
    return get(database, worker_id).availability


@pytest.mark.parametrize("decision", ["draining", "quarantined"])
def test_a_superseded_instance_can_only_be_released(database: Database, decision: str) -> None:
    decide(database, "quarantined", "disk")
    end(database, "one")
    follow(database)
    with pytest.raises(WorkerEndedError, match="one has ended: change next instead, the current instance"):
        decide(database, decision, "why not")
    assert history(database) == [("quarantined", "disk", "ann")]
    decide(database, "available")
    assert (availability(database, "one"), availability(database, "next")) == ("available", "quarantined")
    end(database, "next", "offline")
    with pytest.raises(WorkerEndedError, match="one has ended, and the latest instance of its name, next, has ended"):
        decide(database, decision)


def test_an_open_instance_is_superseded_by_a_later_one(database: Database) -> None:
    follow(database)
    with pytest.raises(WorkerEndedError, match="one was followed by another instance: change next instead"):
        decide(database, "draining")
    with database.engine.begin() as connection:
        connection.execute(insert(worker_source).values(name="celery", due_at=NOON, looked_at=database_now(connection)))
    # Where somebody looks and both live, two workers bear the name.
    assert decide(database, "draining") is not None


def test_an_end_cannot_be_drained(database: Database) -> None:
    end(database, "one", "offline")
    with pytest.raises(WorkerEndedError, match="Quarantine it instead: the next instance"):
        decide(database, "draining")
    assert history(database) == []


@pytest.mark.parametrize("kind", ["celery", "edge", "local"])
@pytest.mark.parametrize("registered_by", ["its engine", "its first try"])
@pytest.mark.parametrize("state", ["offline", "lost"])
@on_both
def test_the_next_instance_inherits_the_quarantine_of_an_ended_worker(
    database: Database, kind: str, registered_by: str, state: str
) -> None:
    # A scheduler's host has another name with Airflow than with the kernel, and the operator has named each worker.
    engine_name, own_name = (f"local@{HOST}", "local@short") if kind == "local" else ("w1@a", "w1@a")
    facts = {"kind": kind, "hostname": HOST, "job_id": 1 if kind == "local" else None}
    told = NewWorkerInstance(engine_name=engine_name, state="online", pid=100 if kind == "celery" else None, **facts)  # type: ignore[arg-type]
    with database.engine.begin() as connection:
        register(connection, [told], now=NOON)
        upsert_worker(connection, a_worker("first", name="etl", engine_name=own_name, **facts), now=NOON)
    first = next(row["worker_id"] for row in database.workers() if row["reported_id"] == "first")
    end(database, first, state)
    assert decide(database, "quarantined", "disk fails", worker_id=first) is not None
    again = {**facts, "job_id": 2 if kind == "local" else None}
    with database.engine.begin() as connection:
        if registered_by == "its engine":
            register(connection, [replace(told, pid=7, job_id=again["job_id"])], now=at(9))  # type: ignore[arg-type]
        else:
            key = TryKey("etl", "run-1", "load", -1, 1)
            record = a_worker("second", name=own_name, engine_name=own_name, pid=101, **again)
            record_start(connection, key, record, try_started_at=at(9), state="running", now=at(9))
    rows = [row for row in database.workers() if row["hostname"] == HOST]
    assert [row["availability"] for row in rows] == ["quarantined", "quarantined"]
    with database.engine.connect() as connection:
        (began,) = worker_queries.changes(connection, get(database, rows[1]["worker_id"]), limit=10)
    assert (began.availability, began.changed_by, began.changed_at) == ("quarantined", "ann", at(9))
    assert began.reason == f"Inherited from instance {first}: disk fails"


@on_both
def test_an_inherited_quarantine_names_the_instance_of_the_decision(database: Database) -> None:
    decide(database, "quarantined")
    for number in range(2):
        end(database, f"next-{number - 1}" if number else "one")
        follow(database, f"next-{number}")
        # A second process of the same instance adds nothing.
        with database.engine.begin() as connection:
            upsert_worker(connection, a_worker(f"next-{number}", name="one@host-1", pid=101), now=at(7))
    with database.engine.connect() as connection:
        entries = worker_queries.changes(connection, get(database, "next-1"), limit=10)
        decision = worker_queries.decisions(connection, [get(database, "next-1")])
    assert [(entry.reason, entry.changed_by) for entry in entries] == [("Inherited from instance one", "ann")]
    assert list(decision.values()) == entries


@on_both
def test_a_quarantine_that_an_older_version_handed_down_is_recognized(database: Database) -> None:
    decide(database, "quarantined")
    end(database, "one")
    follow(database, "next-0")
    with database.engine.begin() as connection:
        inherited = change.c.reason == "Inherited from instance one"
        connection.execute(update(change).where(inherited).values(reason="Since a life before, one"))
    end(database, "next-0")
    follow(database, "next-1")
    with database.engine.connect() as connection:
        entries = worker_queries.changes(connection, get(database, "next-1"), limit=10)
    assert [(entry.reason, entry.changed_by) for entry in entries] == [("Since a life before, one", "ann")]


def test_two_rows_of_an_instance_inherit_a_quarantine_once(database: Database) -> None:
    decide(database, "quarantined", "disk")
    end(database, "one")
    follow(database)
    with database.engine.begin() as connection:
        register(
            connection,
            [NewWorkerInstance(kind="celery", engine_name="one@host-1", hostname="host-1", state="online")],
            now=at(7),
        )
    kept, twin = database.workers()[-2:]
    with database.engine.begin() as connection:
        merge(connection, kept["id"], twin["id"], now=at(8))
        entries = worker_queries.changes(connection, get(database, "next"), limit=10)
    assert [entry.reason for entry in entries] == ["Inherited from instance one: disk"]
