"""What one start of a task process writes, on the databases whose statements differ."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event
from sqlalchemy.dialects import mysql, postgresql, sqlite

from airflow_worker_insight.store import recording
from airflow_worker_insight.store.keys import TryKey
from airflow_worker_insight.store.reading import task_instance_attempts
from airflow_worker_insight.store.recording import (
    SEEN_EVERY,
    ContradictingWorker,
    TooManyWorkers,
    WorkerRecord,
    record_start,
    upsert_worker,
)
from airflow_worker_insight.store.tables import attempt, worker
from tests.unit.database import NOON, Database, a_worker, at, on_both

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from sqlalchemy import Table

KEY = TryKey("etl", "run-1", "extract", -1, 1)


def start(
    database: Database,
    record: WorkerRecord,
    key: TryKey = KEY,
    *,
    now: datetime = NOON,
    try_started_at: datetime | None = NOON,
    state: str = "running",
) -> None:
    with database.engine.begin() as connection:
        record_start(connection, key, record, try_started_at=try_started_at, state=state, now=now)


def processes(database: Database) -> list[tuple[str, int, datetime | None, datetime | None]]:
    """Return the workers of the try as readers see them: how many processes, the first and the last start."""
    with database.engine.connect() as connection:
        (one,) = task_instance_attempts(
            connection, dag_id=KEY.dag_id, run_id=KEY.run_id, task_id=KEY.task_id, map_index=KEY.map_index
        )
    return [(by.worker_id, by.process_count, by.first_started_at, by.last_started_at) for by in one.workers]


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """Collect the first word and the table of each statement that is sent meanwhile."""
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        table = re.search(r"(?:INTO|FROM|UPDATE)\s+(\w+)", statement)
        seen.append(f"{statement.split(maxsplit=1)[0]} {table.group(1) if table else ''}".strip())

    event.listen(database.engine, "before_cursor_execute", note)
    yield seen
    event.remove(database.engine, "before_cursor_execute", note)


@on_both
def test_the_first_start_makes_the_worker_and_the_attempt(database: Database) -> None:
    record = a_worker(job_id=7)
    start(database, record, TryKey("etl", "run-1", "extract", 4, 2), now=at(5), try_started_at=at(3))

    (stored,) = database.workers()
    assert {name: stored[name] for name in ("worker_id", *record.description())} == {
        "worker_id": "celery-1",
        **record.description(),
    }
    assert (stored["job_id"], stored["registered_at"], stored["last_seen_at"]) == (7, at(5), at(5))
    (row,) = database.attempts()
    assert {name: row[name] for name in ("dag_id", "run_id", "task_id", "map_index", "try_number")} == {
        "dag_id": "etl",
        "run_id": "run-1",
        "task_id": "extract",
        "map_index": 4,
        "try_number": 2,
    }
    assert (row["worker_id"], row["ordinal"], row["process_count"]) == ("celery-1", 0, 1)
    assert (row["state"], row["attribution"], row["ended_at"]) == ("running", "reported", None)
    assert row["started_at"] == at(3)


def test_microseconds_are_kept(database: Database) -> None:
    moment = at(0.123456)
    start(database, a_worker(started_at=moment), now=moment, try_started_at=moment)
    (row,) = database.attempts()
    assert row["started_at"] == moment
    assert database.workers()[0]["started_at"] == moment


def test_a_try_without_a_start_in_airflow_started_now(database: Database) -> None:
    start(database, a_worker(), now=at(5), try_started_at=None)
    assert database.attempts()[0]["started_at"] == at(5)


@on_both
def test_a_second_process_on_the_same_worker_is_counted(database: Database) -> None:
    start(database, a_worker(), now=at(0))
    start(database, a_worker(), now=at(40))

    start(database, a_worker(), now=at(80))

    (row,) = database.attempts()
    assert row["ordinal"] == 0
    assert processes(database) == [("celery-1", 3, at(0), at(80))]


@on_both
def test_each_further_worker_of_a_try_gets_the_next_ordinal(database: Database) -> None:
    for number, worker_id in enumerate(["one", "two", "one", "three", "two"]):
        start(database, a_worker(worker_id), now=at(number))

    assert [(row["worker_id"], row["ordinal"]) for row in database.attempts()] == [("one", 0), ("two", 1), ("three", 2)]
    assert processes(database) == [
        ("one", 2, at(0), at(2)),
        ("two", 2, at(1), at(4)),
        ("three", 1, at(3), at(3)),
    ]


def test_tries_and_mapped_tasks_are_counted_apart(database: Database) -> None:
    keys = [
        KEY,
        replace(KEY, try_number=2),
        replace(KEY, map_index=0),
        replace(KEY, task_id="load"),
        replace(KEY, run_id="run-2"),
        replace(KEY, dag_id="elt"),
    ]
    for key in keys:
        start(database, a_worker("one"), key)
        start(database, a_worker("two"), key)
    assert sorted(row["ordinal"] for row in database.attempts()) == [0] * len(keys) + [1] * len(keys)


@on_both
def test_a_try_that_goes_on_is_open_again(database: Database) -> None:
    start(database, a_worker(), state="running")
    with database.engine.begin() as connection:
        connection.execute(attempt.update().values(state="failed", ended_at=at(9), attribution="inferred"))

    start(database, a_worker(), now=at(10))

    (row,) = database.attempts()
    assert (row["state"], row["ended_at"], row["attribution"]) == ("running", None, "reported")


@on_both
def test_the_usual_start_is_one_statement(database: Database) -> None:
    start(database, a_worker(), now=at(0))
    with statements(database) as seen:
        start(database, a_worker(), replace(KEY, task_id="load"), now=at(30))
    assert seen == ["INSERT worker_insight_attempt"]
    with statements(database) as seen:
        start(database, a_worker(), replace(KEY, task_id="load"), now=at(31))
    assert seen == ["INSERT worker_insight_attempt", "UPDATE worker_insight_attempt"]


@on_both
def test_a_worker_is_marked_as_seen_once_a_minute(database: Database) -> None:
    start(database, a_worker(), now=NOON)
    start(database, a_worker(), now=NOON + SEEN_EVERY - timedelta(seconds=1))
    assert database.workers()[0]["last_seen_at"] == NOON

    later = NOON + SEEN_EVERY
    start(database, a_worker(), now=later)

    (stored,) = database.workers()
    assert (stored["registered_at"], stored["last_seen_at"]) == (NOON, later)
    (row,) = database.attempts()
    assert row["process_count"] == 3


CHANGES = [
    {"name": "renamed"},
    {"labels": {}},
    {"labels": {"zone": "b"}},
    {"resources": {"cpus": 8}},
    {"versions": {"airflow": "4"}},
    {"job_id": 9},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "-".join(map(str, change.items())))
def test_a_changed_description_is_written_once(database: Database, change: dict[str, Any]) -> None:
    start(database, a_worker(), now=at(0))
    changed = a_worker(**change)

    with statements(database) as seen:
        start(database, changed, replace(KEY, task_id="load"), now=at(1))
    assert "INSERT worker_insight_worker" in seen
    with statements(database) as seen:
        start(database, changed, replace(KEY, task_id="report"), now=at(2))
    assert seen == ["INSERT worker_insight_attempt"]

    (stored,) = database.workers()
    for name, value in change.items():
        assert stored[name] == value
    assert stored["registered_at"] == at(0)


@pytest.mark.parametrize(
    "change", [{"hostname": "host-2"}, {"kind": "edge"}, {"pid": 101}, {"host_only": True}], ids=str
)
def test_what_a_life_is_cannot_be_rewritten(database: Database, change: dict[str, Any]) -> None:
    start(database, a_worker(), now=at(0))
    with pytest.raises(ContradictingWorker):
        start(database, a_worker(**change, labels={"mine": "yes"}), replace(KEY, task_id="load"), now=at(1))
    (stored,) = database.workers()
    assert (stored["hostname"], stored["kind"], stored["pid"]) == ("host-1", "celery", 100)
    assert len(database.attempts()) == 1


def test_a_try_does_not_have_workers_without_end(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MAX_WORKERS", 2)
    recording._first_process.cache_clear()
    start(database, a_worker("a"))
    start(database, a_worker("b"))
    with pytest.raises(TooManyWorkers):
        start(database, a_worker("c"))
    start(database, a_worker("a"))
    recording._first_process.cache_clear()
    assert [row["process_count"] for row in database.attempts()] == [2, 1]


def test_the_caller_decides_about_the_transaction(database: Database) -> None:
    with database.engine.connect() as connection:
        transaction = connection.begin()
        record_start(connection, KEY, a_worker(), try_started_at=None, state="running", now=NOON)
        transaction.rollback()
    assert database.attempts() == []
    assert database.workers() == []


texts = st.text(max_size=20)
descriptions = st.builds(
    WorkerRecord,
    worker_id=st.just("w"),
    name=texts,
    kind=texts,
    hostname=texts,
    pid=st.none() | st.integers(0, 2**31 - 1),
    labels=st.dictionaries(texts, texts, max_size=3),
    resources=st.dictionaries(texts, st.integers() | texts, max_size=3),
    job_id=st.none() | st.integers(1, 9),
)


def test_a_start_worked_out_a_second_apart_is_no_change(database: Database) -> None:
    """Task processes of one life compute it from the uptime: it moves when the clock is set."""
    start(database, a_worker(started_at=at(-60)), now=at(0))
    start(database, a_worker(started_at=at(-59)), replace(KEY, task_id="load"), now=at(1))
    assert database.workers()[0]["started_at"] == at(-60)


@given(descriptions, descriptions)
def test_the_fingerprint_tells_descriptions_apart(one: WorkerRecord, other: WorkerRecord) -> None:
    same = (one.description(), one.job_id) == (other.description(), other.job_id)
    assert (one.fingerprint == other.fingerprint) == same


def test_the_fingerprint_does_not_depend_on_the_order_of_labels() -> None:
    assert a_worker(labels={"a": "1", "b": "2"}).fingerprint == a_worker(labels={"b": "2", "a": "1"}).fingerprint


def test_two_writers_of_the_same_new_worker_get_the_same_row(database: Database) -> None:
    with database.engine.begin() as connection:
        first = upsert_worker(connection, a_worker(), now=at(0))
        second = upsert_worker(connection, a_worker(name="renamed"), now=at(1))
    assert first == second
    assert [(row["name"], row["registered_at"]) for row in database.workers()] == [("renamed", at(0))]


@pytest.mark.parametrize("statement", [recording._first_process, recording._further_process])
@pytest.mark.parametrize("dialect", [mysql, postgresql, sqlite], ids=lambda module: module.__name__)
def test_the_statements_are_the_same_for_every_database(statement: Callable[[], Any], dialect: Any) -> None:
    """MySQL is not at hand in these tests: what runs on the others must need nothing that is theirs alone."""
    sql = str(statement().compile(dialect=dialect.dialect()))
    assert not re.search(r"ON CONFLICT|ON DUPLICATE|RETURNING|::", sql)


@pytest.mark.parametrize("table", [worker, attempt], ids=lambda table: table.name)
def test_the_upsert_for_mysql(table: Table) -> None:
    key = [column.name for column in table.primary_key]
    statement = recording.upsert("mysql", table, None, key=key, update={key[0]: table.c[key[0]]})
    dialect: Any = mysql
    sql = " ".join(str(statement.compile(dialect=dialect.dialect())).split())
    assert sql.startswith(f"INSERT INTO {table.name} (")
    assert sql.endswith(f" ON DUPLICATE KEY UPDATE {key[0]} = {table.name}.{key[0]}")
