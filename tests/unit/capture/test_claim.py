"""The claim, inside Airflow's own transaction that stores an XCom."""

from __future__ import annotations

import logging
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text

from airflow_worker_insight.capture import claim, reconcile
from airflow_worker_insight.capture.claim import Claimer
from airflow_worker_insight.capture.report import REPORT_KEY
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.store import migrate
from airflow_worker_insight.store.session import CircuitBreaker
from tests.unit.bounds import ANY_MACHINE, ANY_MACHINE_EXPLAINS
from tests.unit.capture.reports import (
    RunningTry,
    a_report,
    a_running_try,
    airflow_3,
    push,
    push_within,
    store_as_others,
    stored_xcoms,
)
from tests.unit.database import Database, add_try, at, on_both, on_postgresql

if TYPE_CHECKING:
    from airflow_worker_insight.capture.counters import Counters

pytestmark = [airflow_3, pytest.mark.usefixtures("claimer")]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("airflow_worker_insight")
    ]


@pytest.fixture
def refused(database: Database) -> None:
    """Have the database refuse every attempt, for as long as the test says; the tables themselves are there."""
    if database.engine.dialect.name == "sqlite":
        make = "CREATE TRIGGER refuse BEFORE INSERT ON worker_insight_attempt BEGIN SELECT RAISE(ABORT, 'refused'); END"
    else:
        make = "ALTER TABLE worker_insight_attempt ADD CONSTRAINT refuse CHECK (try_number < 0)"
    with database.engine.begin() as connection:
        connection.execute(text(make))


def accept(database: Database) -> None:
    lite = database.engine.dialect.name == "sqlite"
    with database.engine.begin() as connection:
        connection.execute(
            text("DROP TRIGGER refuse" if lite else "ALTER TABLE worker_insight_attempt DROP CONSTRAINT refuse")
        )


# --- reports that are believed ---------------------------------------------------------------------------------------


@on_both
def test_a_report_becomes_an_attempt_and_leaves_no_xcom(database: Database, counters: Counters) -> None:
    running_try = a_running_try(database)
    push(running_try, a_report(running_try.try_id))

    assert stored_xcoms(database) == []
    (row,) = database.attempts()
    assert (row["dag_id"], row["run_id"], row["task_id"], row["map_index"], row["try_number"]) == (
        "etl",
        "run-1",
        "extract",
        -1,
        1,
    )
    assert (row["worker_id"], row["state"], row["attribution"]) == ("celery-1", "running", "reported")
    assert row["started_at"] == at(10)
    (worker,) = database.workers()
    assert (worker["name"], worker["kind"], worker["hostname"], worker["pid"]) == ("w1@host-1", "celery", "host-1", 100)
    assert (worker["labels"], worker["resources"]) == ({"zone": "a"}, {"cpus": 4, "os": "Debian"})
    assert worker["started_at"] == at(-3600)
    assert counters.snapshot() == {"reports.claimed": 1}


@on_both
def test_further_processes_of_a_try_are_counted(database: Database) -> None:
    running_try = a_running_try(database)
    for worker_id in ("celery-1", "celery-1", "celery-2"):
        push(running_try, a_report(running_try.try_id, worker_id=worker_id))
    assert [(row["worker_id"], row["process_count"]) for row in database.attempts()] == [
        ("celery-1", 2),
        ("celery-2", 1),
    ]
    assert stored_xcoms(database) == []


@on_both
def test_mapped_task_instances_are_recorded_separately(database: Database) -> None:
    for map_index in range(3):
        running_try = a_running_try(database, map_index=map_index)
        push(running_try, a_report(running_try.try_id, worker_id=f"celery-{map_index}"))
    assert [(row["map_index"], row["worker_id"]) for row in database.attempts()] == [
        (0, "celery-0"),
        (1, "celery-1"),
        (2, "celery-2"),
    ]


@on_both
def test_other_xcoms_are_stored_as_usual(database: Database) -> None:
    running_try = a_running_try(database)
    push(running_try, {"rows": 7}, key="return_value")
    push(running_try, a_report(running_try.try_id))
    push(running_try, a_report(running_try.try_id), key="looks_like_a_report")
    assert [(task, key) for task, key, _ in stored_xcoms(database)] == [
        ("extract", "looks_like_a_report"),
        ("extract", "return_value"),
    ]
    assert len(database.attempts()) == 1


@on_both
def test_what_others_store_under_the_reserved_key_can_be_read_back(database: Database, counters: Counters) -> None:
    """As the public API does within its request; without the row its answer is a 500."""
    from airflow.utils.session import create_session

    running_try = a_running_try(database)
    model = metadata_database.xcom_model()
    with create_session() as session:
        store_as_others(session, running_try, a_report(running_try.try_id))
        (found,) = session.query(model).all()
        assert found.key == REPORT_KEY
    assert [key for _, key, _ in stored_xcoms(database)] == [REPORT_KEY]
    assert (database.attempts(), database.workers(), counters.snapshot()) == ([], [], {})

    # The task's own report takes its place.
    push(running_try, a_report(running_try.try_id, worker_id="celery-2"))
    assert stored_xcoms(database) == []
    assert [row["worker_id"] for row in database.attempts()] == ["celery-2"]


def test_a_try_that_has_ended_takes_no_report(database: Database, counters: Counters) -> None:
    first_id = uuid.uuid4()
    second = a_running_try(database, try_number=2)
    with database.engine.begin() as connection:
        add_try(connection, second.run, try_number=1, state="failed", try_id=first_id, history=True)
        ended = add_try(connection, second.run, "ended", try_id=(ended_id := uuid.uuid4()))
    push(second, a_report(first_id))
    push(RunningTry(second.run, ended, ended_id), a_report(ended_id))
    assert database.attempts() == []
    assert counters.snapshot() == {"reports.dropped.try_has_ended": 2}


@on_both
def test_a_report_that_arrives_again_counts_no_process(database: Database) -> None:
    running_try = a_running_try(database)
    first, second = ({**a_report(running_try.try_id), "process": process} for process in ("a1", "b2"))
    for report in (first, first, first, second, second):
        push(running_try, report)
    (row,) = database.attempts()
    assert row["process_count"] == 2
    # A worker of an older version does not say which process it is.
    push(running_try, a_report(running_try.try_id))
    assert database.attempts()[0]["process_count"] == 3


def test_the_job_of_a_local_worker_is_airflows_word(database: Database) -> None:
    running_try = a_running_try(database, queued_by_job_id=7, executor="LocalExecutor")
    push(running_try, a_report(running_try.try_id, worker_id="local-1", kind="local"))
    other = a_running_try(database, "other", queued_by_job_id=7)
    push(other, a_report(other.try_id, worker_id="celery-1", kind="celery"))
    assert {row["worker_id"]: row["job_id"] for row in database.workers()} == {"local-1": 7, "celery-1": None}


def test_local_executor_of_dag_test_is_no_worker(
    database: Database, counters: Counters, caplog: pytest.LogCaptureFixture
) -> None:
    """``dag.test(use_executor=True)``: its tries are queued by no scheduler."""
    running_try = a_running_try(database, queued_by_job_id=None)
    push(running_try, a_report(running_try.try_id, worker_id="local-1", kind="local"))
    assert (database.workers(), database.attempts(), stored_xcoms(database)) == ([], [], [])
    assert counters.snapshot() == {"reports.dropped.in_a_test": 1}
    assert warnings(caplog) == []


@on_both
@pytest.mark.parametrize(
    "name", ["<script>alert('x')</script>", 'w1\'s "host"', "🐘" * 62, "x" * 250, "../../etc/passwd", "%s %(name)s :p"]
)
def test_a_worker_may_have_any_name(database: Database, name: str) -> None:
    running_try = a_running_try(database, hostname=name)
    push(running_try, a_report(running_try.try_id, name=name, hostname="elsewhere", labels={name[:64]: name}))
    (worker,) = database.workers()
    assert (worker["name"], worker["hostname"], worker["labels"]) == (name, name, {name[:64]: name})


# --- reports that are not --------------------------------------------------------------------------------------------

NOBODY = uuid.UUID(int=0)


def deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"worker": value}
    return value


BAD = {
    "of_no_try": (a_report(NOBODY), "not_this_try"),
    "of_a_later_version": ({**a_report(NOBODY), "version": 2}, "unknown_version"),
    "too_long": (a_report(NOBODY, name="x" * 9000), "oversized"),
    "many_labels": (a_report(NOBODY, labels={f"k{number}": "v" for number in range(33)}), "malformed"),
    "not_a_dict": ([1, 2, 3], "malformed"),
    "a_word": ("hello", "malformed"),
    "a_number": (5, "malformed"),
    "true": (True, "malformed"),
    "nothing": ({}, "malformed"),
    "no_uuid": (a_report("1 OR 1=1"), "malformed"),
    "a_field_more": ({**a_report(NOBODY), "attribution": "reported"}, "malformed"),
    "a_field_of_the_worker_more": (a_report(NOBODY, host_only=True), "malformed"),
    "the_id_of_a_host": (a_report(NOBODY, worker_id="host-0123456789abcdef01234567"), "malformed"),
    "an_id_with_a_slash": (a_report(NOBODY, worker_id="a/b"), "malformed"),
    "a_name_of_251": (a_report(NOBODY, name="x" * 251), "malformed"),
    "a_huge_pid": (a_report(NOBODY, pid=10**30), "malformed"),
    "a_huge_resource": (a_report(NOBODY, resources={"cpus": 10**300}), "malformed"),
    "deep": (deep(100), "malformed"),
}

# PostgreSQL refuses these in JSON: there the task's own request fails in Airflow, before anything of ours.
BAD_ON_SQLITE = {
    "nul": (a_report(NOBODY, name="a\0b"), "malformed"),
    "lone_surrogate": (a_report(NOBODY, name="a\ud800b"), "malformed"),
    "not_a_number": (a_report(NOBODY, resources={"cpus": float("nan")}), "malformed"),
    "infinite": (a_report(NOBODY, resources={"cpus": float("inf")}), "malformed"),
}


def dropped(database: Database, counters: Counters, value: Any, reason: str) -> None:
    running_try = a_running_try(database)
    push(running_try, "mine", key="return_value")
    push(running_try, value)
    assert [key for _, key, _ in stored_xcoms(database)] == ["return_value"]
    assert (database.attempts(), database.workers()) == ([], [])
    assert counters.snapshot() == {f"reports.dropped.{reason}": 1}


@on_both
@pytest.mark.parametrize("name", BAD)
def test_a_bad_report_is_dropped_and_counted(database: Database, counters: Counters, name: str) -> None:
    dropped(database, counters, *BAD[name])


@pytest.mark.parametrize("name", BAD_ON_SQLITE)
def test_a_report_that_only_sqlite_stores_is_dropped_too(database: Database, counters: Counters, name: str) -> None:
    dropped(database, counters, *BAD_ON_SQLITE[name])


@on_both
def test_task_cannot_report_for_another_task(database: Database, counters: Counters) -> None:
    """A task may write XComs of other tasks, and might know the ID of another try: the two must fit."""
    mine, other = a_running_try(database, "mine"), a_running_try(database, "other")
    mapped = a_running_try(database, "mapped", 0), a_running_try(database, "mapped", 1)
    push(mine, a_report(other.try_id))
    push(other, a_report(mine.try_id))
    push(mapped[0], a_report(mapped[1].try_id))
    assert database.attempts() == []
    assert counters.snapshot() == {"reports.dropped.not_this_try": 3}
    assert stored_xcoms(database) == []


def test_the_reserved_key_is_named_once_to_the_author_of_the_dag(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    running_try = a_running_try(database)
    for value in ("hello", {"my": "data"}):
        push(running_try, value)
    (message,) = warnings(caplog)
    assert "etl.extract" in message
    assert REPORT_KEY in message
    assert stored_xcoms(database) == []


# --- when the database does not play along ---------------------------------------------------------------------------


@on_both
def test_without_tables_the_request_succeeds_and_the_report_stays_an_xcom(
    database: Database, counters: Counters, caplog: pytest.LogCaptureFixture
) -> None:
    migrate.downgrade("base")
    running_try = a_running_try(database)
    report = a_report(running_try.try_id)

    push(running_try, report)
    push(running_try, {"rows": 7}, key="return_value")

    assert [key for _, key, _ in stored_xcoms(database)] == [REPORT_KEY, "return_value"]
    assert counters.snapshot() == {"reports.unclaimed": 1}
    (message,) = warnings(caplog)
    assert "airflow db migrate" in message


def test_missing_tables_are_not_queried_for_each_report(
    database: Database, counters: Counters, caplog: pytest.LogCaptureFixture
) -> None:
    """Each try would put an error into the database's log."""
    now = [1000.0]
    claim.uninstall()
    breaker = CircuitBreaker(claim.PAUSE_SECONDS, clock=lambda: now[0])
    claim.install(Claimer(counters=counters, breaker=breaker, bounds=ANY_MACHINE, explain_bounds=ANY_MACHINE_EXPLAINS))
    migrate.downgrade("base")
    running_try, other = a_running_try(database), a_running_try(database, "load")
    push(running_try, a_report(running_try.try_id))

    asked: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *args: asked.append(args[2]))
    push(other, a_report(other.try_id))
    assert asked
    assert not [statement for statement in asked if "worker_insight" in statement]
    assert len(warnings(caplog)) == 1

    migrate.upgrade()
    now[0] += claim.PAUSE_SECONDS
    push(other, a_report(other.try_id))
    assert [row["task_id"] for row in database.attempts()] == ["load"]


@on_both
@pytest.mark.usefixtures("refused")
def test_an_error_undoes_only_what_is_ours(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    from airflow.utils.session import create_session

    running_try = a_running_try(database)
    names = {"dag_id": "etl", "run_id": "run-1", "task_id": "extract"}
    model = metadata_database.xcom_model()
    with create_session() as session:
        model.set(key="before", value="1", session=session, **names)
        push_within(session, running_try, a_report(running_try.try_id))
        model.set(key="then", value="2", session=session, **names)

    assert [key for _, key, _ in stored_xcoms(database)] == [REPORT_KEY, "before", "then"]
    assert (database.attempts(), database.workers()) == ([], [])
    assert len(warnings(caplog)) == 1


@on_both
@pytest.mark.usefixtures("refused")
def test_after_an_error_the_next_report_is_claimed(
    database: Database, counters: Counters, caplog: pytest.LogCaptureFixture
) -> None:
    running_try = a_running_try(database)
    for _ in range(3):
        push(running_try, a_report(running_try.try_id))
    assert counters.snapshot() == {"reports.unclaimed": 3}
    assert len(warnings(caplog)) == 1

    accept(database)
    push(running_try, a_report(running_try.try_id))
    assert len(database.attempts()) == 1
    assert stored_xcoms(database) == []


@on_postgresql
def test_held_lock_delays_the_request_by_at_most_a_second(
    database: Database, counters: Counters, caplog: pytest.LogCaptureFixture
) -> None:
    """An API server was frozen while it wrote a look at the fleet."""
    running_try, other = a_running_try(database), a_running_try(database, "load")
    push(running_try, a_report(running_try.try_id))
    with database.engine.connect() as frozen, frozen.begin():
        frozen.execute(text("UPDATE worker_insight_worker SET running = 0"))
        began = time.monotonic()
        push(other, a_report(other.try_id, labels={"zone": "b"}))
        assert time.monotonic() - began < 5
        assert [key for _, key, _ in stored_xcoms(database)] == [REPORT_KEY]
        assert counters.snapshot() == {"reports.claimed": 1, "reports.unclaimed": 1, "claims.paused": 1}
        assert len(warnings(caplog)) == 1
    assert reconcile.claim_all_stored_reports() == 1
    assert [row["task_id"] for row in database.attempts()] == ["extract", "load"]
    assert stored_xcoms(database) == []


@on_postgresql
def test_airflows_own_statements_wait_as_long_as_before(database: Database, counters: Counters) -> None:
    from airflow.utils.session import create_session

    running_try, other = a_running_try(database), a_running_try(database, "load")
    sent: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *args: sent.append(args[2]))

    def waits_after(sender: RunningTry, **worker: Any) -> tuple[str, str, int]:
        sent.clear()
        with create_session() as session:
            session.execute(text("SET LOCAL lock_timeout = '7s'"))
            session.execute(text("SET LOCAL statement_timeout = '70s'"))
            push_within(session, sender, a_report(sender.try_id, **worker))
            waits = [
                session.execute(text(f"SHOW {name}")).scalar_one() for name in ("lock_timeout", "statement_timeout")
            ]
        return waits[0], waits[1], sum("SAVEPOINT" in statement for statement in sent)

    assert waits_after(running_try) == ("7s", "70s", 2)
    assert waits_after(other) == ("7s", "70s", 2)
    assert waits_after(running_try, pid=7) == ("7s", "70s", 2)
    assert counters.snapshot() == {"reports.claimed": 3, "reports.contradicting": 1}
    with database.engine.connect() as frozen, frozen.begin():
        frozen.execute(text("UPDATE worker_insight_worker SET running = 0"))
        assert waits_after(running_try, labels={"zone": "b"}) == ("7s", "70s", 3), "it goes back to the savepoint"
    with database.engine.connect() as connection:
        assert connection.execute(text("SHOW lock_timeout")).scalar_one() == "0", "nothing stays with the pool"


# --- where it runs ---------------------------------------------------------------------------------------------------


def test_installing_it_again_changes_nothing(database: Database) -> None:
    claim.install()
    running_try = a_running_try(database)
    push(running_try, a_report(running_try.try_id))
    assert database.attempts()[0]["process_count"] == 1


def test_switched_off_it_is_not_installed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    claim.uninstall()
    with monkeypatch.context() as switched_off:
        switched_off.setenv("AIRFLOW__WORKER_INSIGHT__ENABLED", "False")
        claim.install()
    running_try = a_running_try(database)
    push(running_try, a_report(running_try.try_id))
    assert database.attempts() == []
    assert len(stored_xcoms(database)) == 1
    claim.install()
