"""What one start of a task process writes, on the databases whose statements differ."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event, insert, select, text, update
from sqlalchemy.dialects import mysql, postgresql, sqlite

from airflow_worker_insight.domain.attempts import Conditions, StartedTry
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.domain.names import is_same_host
from airflow_worker_insight.domain.workers import NewWorkerInstance, WorkerRecord
from airflow_worker_insight.store import dialects
from airflow_worker_insight.store.attempts import start as attempts_start
from airflow_worker_insight.store.attempts.queries import task_instance_attempts
from airflow_worker_insight.store.attempts.start import SEEN_INTERVAL, TooManyWorkersError
from airflow_worker_insight.store.insight_tables import late_attempt
from airflow_worker_insight.store.tables import attempt, worker
from airflow_worker_insight.store.workers import instances
from airflow_worker_insight.store.workers.upsert import initial_availability, upsert_worker
from tests.support.processes import wait_for
from tests.unit.database import NOON, Database, a_worker, at, on_both, on_postgresql, record_start

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
    conditions: Conditions | None = None,
    process: int | None = None,
    is_late: bool = False,
    max_workers: int = attempts_start.MAX_WORKERS,
) -> None:
    started = StartedTry(key, key.task_key, try_started_at, state)
    with database.engine.begin() as connection:
        attempts_start.record_start(
            connection,
            started,
            record,
            now=now,
            conditions=conditions,
            process=process,
            is_late=is_late,
            max_workers=max_workers,
        )


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
def test_a_try_that_has_ended_stays_so(database: Database) -> None:
    start(database, a_worker(), state="running")
    with database.engine.begin() as connection:
        connection.execute(attempt.update().values(state="failed", ended_at=at(9), attribution="inferred"))

    start(database, a_worker(), now=at(10))

    (row,) = database.attempts()
    assert (row["state"], row["ended_at"], row["attribution"]) == ("failed", at(9), "reported")


@on_both
def test_the_usual_start_is_one_statement(database: Database) -> None:
    start(database, a_worker(), now=at(0))
    with statements(database) as seen:
        start(database, a_worker(), replace(KEY, task_id="load"), now=at(30))
    assert seen == ["INSERT worker_insight_attempt"]
    with statements(database) as seen:
        start(database, a_worker(), replace(KEY, task_id="load"), now=at(31))
    # Around a wait for somebody's lock PostgreSQL is told how long it may take, and then that it is over.
    writes = [statement for statement in seen if "worker_insight" in statement]
    assert writes == ["INSERT worker_insight_attempt", "UPDATE worker_insight_attempt"]
    assert len(seen) <= 4


def noted(database: Database) -> list[tuple[int, ...]]:
    with database.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(select(late_attempt))]


@pytest.mark.parametrize(("age", "is_late"), [(0, False), (60, False), (-300, False), (61, True), (3600, True)])
@on_both
def test_what_is_recorded_late_is_noted_for_the_analysis(database: Database, age: float, is_late: bool) -> None:
    start(database, a_worker(), replace(KEY, task_id="before"), now=at(0))
    with statements(database) as seen:
        start(database, a_worker(), now=at(30), try_started_at=at(30 - age))
    assert noted(database) == ([KEY.key_by_names] if is_late else [])
    assert seen == ["INSERT worker_insight_attempt", *(["INSERT worker_insight_late_attempt"] if is_late else [])]
    # A further process is not noted again, and nothing fails where it is reported twice.
    start(database, a_worker(), now=at(31), try_started_at=at(30 - age))
    assert len(noted(database)) == is_late


@on_both
def test_a_report_that_had_to_wait_is_noted(database: Database) -> None:
    start(database, a_worker(), now=at(0), is_late=True)
    assert noted(database) == [KEY.key_by_names]


@on_both
def test_a_further_worker_of_a_try_is_not_noted(database: Database) -> None:
    start(database, a_worker("celery-1"), now=at(0))
    start(database, a_worker("celery-2"), now=at(600), try_started_at=at(0))
    assert len(database.attempts()) == 2
    assert noted(database) == []


def test_nothing_is_noted_while_the_analysis_is_switched_off(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__INSIGHT_ENABLED", "False")
    start(database, a_worker(), now=at(600), try_started_at=at(0))
    assert noted(database) == []


@on_both
def test_a_worker_is_marked_as_seen_once_a_minute(database: Database) -> None:
    start(database, a_worker(), now=NOON)
    start(database, a_worker(), now=NOON + SEEN_INTERVAL - timedelta(seconds=1))
    assert database.workers()[0]["last_seen_at"] == NOON

    later = NOON + SEEN_INTERVAL
    start(database, a_worker(), now=later)

    (stored,) = database.workers()
    assert (stored["registered_at"], stored["last_seen_at"]) == (NOON, later)
    (row,) = database.attempts()
    assert row["process_count"] == 3


CHANGES = [
    {"labels": {}},
    {"labels": {"zone": "b"}},
    {"resources": {"cpus": 8}},
    {"versions": {"airflow": "4"}},
    {"job_id": 9},
    {"engine_name": "w1@host-1"},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "-".join(map(str, change.items())))
def test_a_changed_description_is_written_once(database: Database, change: dict[str, Any]) -> None:
    start(database, a_worker(), now=at(0))
    changed = a_worker(**change)

    with statements(database) as seen:
        start(database, changed, replace(KEY, task_id="load"), now=at(1))
    assert seen.count("UPDATE worker_insight_worker") == 1
    assert "INSERT worker_insight_worker" not in seen
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
@on_both
def test_a_report_cannot_rewrite_an_instance(database: Database, change: dict[str, Any]) -> None:
    """A report that gives its ID all the same is of a worker of its own."""
    start(database, a_worker(), now=at(0))
    for number in range(2):
        start(database, a_worker(**change, labels={"mine": "yes"}), replace(KEY, task_id=f"load-{number}"), now=at(1))
    stored, apart = database.workers()
    assert (stored["hostname"], stored["kind"], stored["pid"]) == ("host-1", "celery", 100)
    assert apart["worker_id"].startswith("apart-")
    assert {name: apart[name] for name in change} == change
    assert [row["worker_id"] for row in database.attempts()] == ["celery-1", *[apart["worker_id"]] * 2]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("etl-1", "etl-1.example.org", True),
        ("ETL-1.example.org.", "etl-1", True),
        ("etl-1", "etl-10", False),
        ("etl-1.a.example", "etl-1.b.example", False),
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "10", False),
        ("fe80::1", "fe80::2", False),
        ("etl-1", "", False),
    ],
)
def test_a_host_is_known_with_and_without_its_domain(one: str, other: str, same: bool) -> None:
    assert is_same_host(one, other) is same
    assert is_same_host(other, one) is same


def test_a_try_does_not_have_workers_without_end(database: Database) -> None:
    start(database, a_worker("a"), max_workers=2)
    start(database, a_worker("b"), max_workers=2)
    with pytest.raises(TooManyWorkersError):
        start(database, a_worker("c"), max_workers=2)
    start(database, a_worker("a"), max_workers=2)
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
    engine_name=st.none() | texts,
)


def test_a_start_worked_out_a_second_apart_is_no_change(database: Database) -> None:
    """Task processes of one instance compute it from the uptime: it moves when the clock is set."""
    start(database, a_worker(started_at=at(-60)), now=at(0))
    start(database, a_worker(started_at=at(-59)), replace(KEY, task_id="load"), now=at(1))
    assert database.workers()[0]["started_at"] == at(-60)


@given(descriptions, descriptions)
def test_the_fingerprint_tells_descriptions_apart(one: WorkerRecord, other: WorkerRecord) -> None:
    same = (one.description(), one.job_id, one.engine_name) == (other.description(), other.job_id, other.engine_name)
    assert (one.fingerprint == other.fingerprint) == same


def test_the_fingerprint_does_not_depend_on_the_order_of_labels() -> None:
    assert a_worker(labels={"a": "1", "b": "2"}).fingerprint == a_worker(labels={"b": "2", "a": "1"}).fingerprint


def test_two_writers_of_the_same_new_worker_get_the_same_row(database: Database) -> None:
    with database.engine.begin() as connection:
        first = upsert_worker(connection, a_worker(), now=at(0))
        second = upsert_worker(connection, a_worker(labels={"zone": "b"}), now=at(1))
    assert first == second
    assert [(row["labels"], row["registered_at"]) for row in database.workers()] == [({"zone": "b"}, at(0))]


def test_a_report_does_not_rename_a_worker_that_its_source_knows(database: Database) -> None:
    with database.engine.begin() as connection:
        first = upsert_worker(connection, a_worker(engine_name=None), now=at(0))
        # Not all processes of a worker know what its engine calls it.
        for engine_name in ("w1@host-1", None, "w1@host-1"):
            assert upsert_worker(connection, a_worker(name="renamed", engine_name=engine_name), now=at(1)) == first
        other = upsert_worker(connection, a_worker(name="renamed", engine_name="w2@host-1"), now=at(1))
    assert [(row["id"], row["name"], row["engine_name"]) for row in database.workers()] == [
        (first, "celery-1@host-1", "w1@host-1"),
        (other, "renamed", "w2@host-1"),
    ]


def test_a_report_renames_a_worker_that_no_source_knows(database: Database) -> None:
    with database.engine.begin() as connection:
        for name in ("one", "renamed"):
            upsert_worker(connection, a_worker(kind="AwsEcsExecutor", name=name), now=at(0))
    assert [row["name"] for row in database.workers()] == ["renamed"]


# --- what the machine was like ---------------------------------------------------------------------------------------


def stored_conditions(database: Database) -> tuple[Any, Any, Any]:
    (row,) = database.attempts()
    return row["load"], row["memory_free"], row["running_beside"]


@pytest.mark.parametrize(
    ("conditions", "stored"),
    [
        (Conditions(load=1.256, memory_free=0.4996, running_beside=3), (126, 500, 3)),
        (Conditions(load=0.0, memory_free=0.0, running_beside=0), (0, 0, 0)),
        (Conditions(load=0.004, memory_free=1.0, running_beside=1), (0, 1000, 1)),
        # What no machine can be is cut to what two bytes hold, instead of costing the try its row.
        (Conditions(load=1e6, memory_free=0.5, running_beside=2**31 - 1), (32767, 500, 32767)),
        (Conditions(load=2.5), (250, None, None)),
        (Conditions(), (None, None, None)),
        (None, (None, None, None)),
    ],
    ids=str,
)
@on_both
def test_conditions_are_kept_in_two_bytes_each(
    database: Database, conditions: Conditions | None, stored: tuple[Any, Any, Any]
) -> None:
    start(database, a_worker(), conditions=conditions)
    assert stored_conditions(database) == stored


def test_conditions_are_those_when_the_try_started(database: Database) -> None:
    start(database, a_worker(), now=at(0), conditions=Conditions(0.5, 0.5, 1))
    start(database, a_worker(), now=at(9), conditions=Conditions(9.0, 0.1, 9))
    assert stored_conditions(database) == (50, 500, 1)


def test_every_start_is_in_its_ten_minutes(database: Database) -> None:
    for seconds in (-1, 0, 599, 600):
        start(database, a_worker(), replace(KEY, task_id=f"at {seconds}"), try_started_at=at(seconds))
    slots = {row["task_id"]: row["start_slot"] for row in database.attempts()}
    noon = slots["at 0"]
    assert noon * 600 == NOON.timestamp()
    assert slots == {"at -1": noon - 1, "at 0": noon, "at 599": noon, "at 600": noon + 1}


# --- workers that their engine made known before ---------------------------------------------------------------------

CELERY = {"kind": "celery", "engine_name": "w1@host-1", "pid": 100}
LOCAL = {"kind": "local", "job_id": 7, "engine_name": "local@host-1"}
EDGE = {"kind": "edge", "engine_name": "e1"}


def by_engine(database: Database, worker_id: str = "fleet-1", **others: Any) -> None:
    """Store a worker as the fleet does when an engine tells of one that has run nothing yet."""
    known = {"kind": "celery", "name": "w1@host-1", "hostname": "host-1", "host_only": False, "fingerprint": ""}
    described: dict[str, Any] = {"labels": {}, "resources": {}, "versions": {}}
    seen = {"registered_at": at(-99), "last_seen_at": at(-9), "state": "online", "availability": "draining"}
    row = {"worker_id": worker_id, **known, **described, **seen, **others}
    with database.engine.begin() as connection:
        connection.execute(insert(worker).values(row))


def ids(database: Database) -> list[tuple[str, str | None]]:
    return [(row["worker_id"], row["reported_id"]) for row in database.workers()]


@pytest.mark.parametrize(
    ("engine", "report"),
    [
        pytest.param(CELERY, CELERY, id="celery: node and process"),
        # A scheduler knows its job; what its engine calls it, its workers cannot know.
        pytest.param({**LOCAL, "engine_name": "local@fqdn"}, {**LOCAL, "engine_name": "local@host"}, id="local: job"),
        pytest.param({**LOCAL, "pid": None}, {**LOCAL, "pid": 5}, id="local: process not known to the engine"),
        # Edge's table holds no process, and Airflow takes the worker's name for its host.
        pytest.param({**EDGE, "pid": None, "hostname": "e1"}, {**EDGE, "pid": 5, "hostname": "e1"}, id="edge: name"),
        pytest.param(CELERY, {**CELERY, "name": "etl-large-1"}, id="an operator named the worker"),
    ],
)
@on_both
def test_the_first_report_completes_the_sources_row(
    database: Database, engine: dict[str, Any], report: dict[str, Any]
) -> None:
    by_engine(database, **engine)
    start(database, a_worker("mine", **report), now=at(0))
    start(database, a_worker("mine", **report), replace(KEY, task_id="load"), now=at(1))

    (stored,) = database.workers()
    # Who has a link to it keeps it; its processes find it by their own ID.
    assert (stored["worker_id"], stored["reported_id"]) == ("fleet-1", "mine")
    assert (stored["labels"], stored["resources"]) == ({"zone": "a"}, {"cpus": 4})
    assert {name: stored[name] for name in report} == {**report, "engine_name": engine["engine_name"]}
    # What the engine told and what a person decided stays.
    assert (stored["state"], stored["availability"], stored["registered_at"]) == ("online", "draining", at(-99))
    assert [row["worker_id"] for row in database.attempts()] == ["fleet-1", "fleet-1"]


@pytest.mark.parametrize(
    ("engine", "report"),
    [
        pytest.param({**CELERY, "ended_at": at(-5)}, CELERY, id="that instance has ended"),
        pytest.param({**CELERY, "pid": 99}, CELERY, id="celery: another process"),
        pytest.param({**CELERY, "engine_name": "w2@host-1"}, CELERY, id="celery: another node"),
        pytest.param({**CELERY, "reported_id": "another"}, CELERY, id="another worker has reported it"),
        pytest.param({**LOCAL, "job_id": 8}, LOCAL, id="local: another scheduler"),
        pytest.param({**EDGE, "engine_name": "e2"}, EDGE, id="edge: another name"),
        pytest.param({**EDGE, "kind": "celery"}, EDGE, id="another kind"),
        pytest.param({**CELERY, "host_only": True}, CELERY, id="the whole host"),
    ],
)
def test_what_is_another_worker_is_left_alone(
    database: Database, engine: dict[str, Any], report: dict[str, Any]
) -> None:
    by_engine(database, **engine)
    start(database, a_worker("mine", **report))
    assert ids(database) == [("fleet-1", engine.get("reported_id")), ("mine", "mine")]
    assert database.attempts()[0]["worker_id"] == "mine"
    assert database.workers()[1]["state"] == "online"


def test_a_report_belongs_to_the_latest_open_instance_of_its_name(database: Database) -> None:
    """The engine of an Edge worker that was killed does not say at once that it has ended."""
    by_engine(database, "fleet-1", **EDGE)
    by_engine(database, "fleet-2", **EDGE)
    start(database, a_worker("mine", **EDGE))
    assert ids(database) == [("fleet-1", None), ("fleet-2", "mine")]


def race(database: Database, *records: WorkerRecord) -> None:
    """Have each record reported by a process of its own, all at once: the first one commits when all others wait."""
    failed: list[BaseException] = []

    def report(number: int, record: WorkerRecord) -> None:
        try:
            start(database, record, replace(KEY, map_index=number))
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    others = [threading.Thread(target=report, args=one) for one in enumerate(records[1:], 1)]
    with database.engine.connect() as connection, connection.begin():
        first = replace(KEY, map_index=0)
        record_start(connection, first, records[0], try_started_at=NOON, state="running", now=NOON)
        for thread in others:
            thread.start()
        wait_for(lambda: connection.execute(waiting).scalar_one() >= len(others), 30, "the others to wait for this one")
    for thread in others:
        thread.join()
    assert failed == []


@on_postgresql
def test_the_first_reports_of_one_worker_at_once_make_one_row(database: Database) -> None:
    race(database, a_worker("mine"), a_worker("mine"), a_worker("mine", name="renamed"))
    assert ids(database) == [("mine", "mine")]
    assert [row["worker_id"] for row in database.attempts()] == ["mine"] * 3


@on_postgresql
def test_concurrent_first_reports_of_a_worker_take_its_sources_row_once(database: Database) -> None:
    by_engine(database, **CELERY)
    record = a_worker("mine", **CELERY)
    race(database, record, record, record)
    assert ids(database) == [("fleet-1", "mine")]
    assert [row["worker_id"] for row in database.attempts()] == ["fleet-1"] * 3


@on_postgresql
def test_of_two_workers_that_claim_one_row_of_the_source_one_gets_it(database: Database) -> None:
    by_engine(database, **EDGE)
    race(database, a_worker("one", **EDGE), a_worker("two", **EDGE, started_at=at(-60)))
    assert ids(database) == [("fleet-1", "one"), ("two", "two")]
    assert [row["worker_id"] for row in database.attempts()] == ["fleet-1", "two"]


# --- what a person decided -------------------------------------------------------------------------------------------


def decide(database: Database, availability: str) -> None:
    with database.engine.begin() as connection:
        latest = select(worker.c.id).order_by(worker.c.id.desc()).limit(1).scalar_subquery()
        connection.execute(update(worker).where(worker.c.id == latest).values(availability=availability))


@pytest.mark.parametrize(
    ("before", "after"), [("quarantined", "quarantined"), ("draining", "available"), ("available", "available")]
)
@on_both
def test_a_quarantine_outlives_a_restart_and_a_drain_does_not(database: Database, before: str, after: str) -> None:
    start(database, a_worker("first", name="w1"))
    decide(database, before)
    start(database, a_worker("second", name="w1", pid=101), replace(KEY, task_id="load"))
    assert [row["availability"] for row in database.workers()] == [before, after]


def test_only_the_latest_instance_decides(database: Database) -> None:
    for number, availability in enumerate(["quarantined", "available"]):
        start(database, a_worker(f"instance-{number}", name="w1", pid=number), replace(KEY, map_index=number))
        decide(database, availability)
    start(database, a_worker("next", name="w1", pid=7))
    assert database.workers()[-1]["availability"] == "available"


@pytest.mark.parametrize(
    ("others", "inherited"),
    [
        ({"name": "w1", "engine_name": None}, "quarantined"),
        ({"name": "etl-large-1", "engine_name": "w1@host-1"}, "quarantined"),
        ({"name": "w1@host-1", "engine_name": None}, "quarantined"),
        ({"name": "w2", "engine_name": "w2@host-1"}, "available"),
        ({"name": "w1", "engine_name": "w1@host-1", "kind": "edge"}, "available"),
    ],
    ids=str,
)
def test_a_worker_is_the_same_by_either_of_its_names(
    database: Database, others: dict[str, Any], inherited: str
) -> None:
    start(database, a_worker("first", name="w1", engine_name="w1@host-1"))
    decide(database, "quarantined")
    record = a_worker("second", pid=101, **others)
    with database.engine.connect() as connection:
        found = initial_availability(connection, record.kind, record.name, record.engine_name, hostname=record.hostname)
    assert found == inherited


@pytest.mark.parametrize(
    ("engine_name", "hostname", "inherited"),
    [
        ("etl@host-1", "host-1", "quarantined"),
        # The scheduler's other workers, and the one that it is itself.
        ("reports@host-1", "host-1", "available"),
        ("local@host-1", "host-1", "available"),
        # Another host has a worker of the same name.
        ("etl@host-2", "host-2", "available"),
    ],
)
def test_what_is_decided_of_one_of_several_local_workers_is_of_no_other(
    database: Database, engine_name: str, hostname: str, inherited: str
) -> None:
    local = {"kind": "local", "job_id": 1}
    start(database, a_worker("first", name="etl", engine_name="etl@host-1", **local))
    decide(database, "quarantined")
    name = engine_name.partition("@")[0]
    second = a_worker("second", name=name, engine_name=engine_name, hostname=hostname, pid=101, kind="local", job_id=2)
    start(database, second, replace(KEY, task_id="load"))
    assert database.workers()[-1]["availability"] == inherited


def test_one_of_several_local_workers_is_not_the_row_of_their_scheduler(database: Database) -> None:
    instance = NewWorkerInstance("local", "local@host-1", "host-1", "online", job_id=7)
    with database.engine.begin() as connection:
        instances.register(connection, [instance], now=NOON)
    start(database, a_worker("etl", name="etl", engine_name="etl@host-1", kind="local", job_id=7))
    assert [row["engine_name"] for row in database.workers()] == ["local@host-1", "etl@host-1"]


def test_a_host_is_no_instance_of_a_worker(database: Database) -> None:
    start(database, a_worker("host-1f", name="w1", host_only=True))
    decide(database, "quarantined")
    start(database, a_worker("first", name="w1"), replace(KEY, task_id="load"))
    assert database.workers()[-1]["availability"] == "available"


# --- other databases -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", [attempts_start._first_process, attempts_start._further_process])
@pytest.mark.parametrize("dialect", [mysql, postgresql, sqlite], ids=lambda module: module.__name__)
def test_the_statements_are_the_same_for_every_database(statement: Callable[[str], Any], dialect: Any) -> None:
    """MySQL is not at hand in these tests: what runs on the others must need nothing that is theirs alone."""
    compiled = dialect.dialect()
    sql = str(statement(compiled.name).compile(dialect=compiled))
    assert ("RETURNING" in sql) == (compiled.name == "postgresql")
    assert not re.search(r"ON DUPLICATE|::", sql)
    assert "ON CONFLICT" not in sql or compiled.name != "mysql"


@pytest.mark.parametrize("table", [worker, attempt], ids=lambda table: table.name)
def test_the_upsert_for_mysql(table: Table) -> None:
    key = [column.name for column in table.primary_key]
    statement = dialects.upsert("mysql", table, None, key=key, update={key[0]: table.c[key[0]]})
    dialect: Any = mysql
    sql = " ".join(str(statement.compile(dialect=dialect.dialect())).split())
    assert sql.startswith(f"INSERT INTO {table.name} (")
    assert sql.endswith(f" ON DUPLICATE KEY UPDATE {key[0]} = {table.name}.{key[0]}")


@pytest.mark.parametrize(
    ("dialect", "clause"),
    [
        (postgresql, "ON CONFLICT DO NOTHING"),
        (sqlite, "ON CONFLICT DO NOTHING"),
        (mysql, "ON DUPLICATE KEY UPDATE id = worker_insight_worker.id"),
    ],
    ids=["postgresql", "sqlite", "mysql"],
)
def test_a_new_row_yields_to_one_in_any_index(dialect: Any, clause: str) -> None:
    """Where one index is named, PostgreSQL fails at another when two insert the same row at once."""
    statement = dialects.insert_new(dialect.dialect.name, worker, {"worker_id": "w", "reported_id": "w"})
    assert clause in " ".join(str(statement.compile(dialect=dialect.dialect())).split())
