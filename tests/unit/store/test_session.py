"""Bounds of transactions on PostgreSQL and SQLite; there is no MySQL to try them with, so a fake stands for it."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError

import airflow_worker_insight
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.store import session
from airflow_worker_insight.store.session import Bounds, CircuitBreaker, OutOfTimeError, is_timeout
from airflow_worker_insight.store.tables import metadata
from tests.unit.database import Database, on_both

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from sqlalchemy.engine import Connection

PACKAGE = Path(airflow_worker_insight.__file__).parent
BRIEF = Bounds(lock=0.2, statement=0.3)

on_postgres = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
by_both = pytest.mark.parametrize("transaction", [session.reading, session.writing])


def test_no_other_module_opens_a_connection() -> None:
    """What is opened elsewhere waits for others' locks without a bound."""
    opens = re.compile(r"\bengine\(\)|settings\.engine|create_engine|create_session|provide_session|settings\.Session")
    found = {
        path.relative_to(PACKAGE).as_posix(): sorted(set(opens.findall(path.read_text())))
        for path in PACKAGE.rglob("*.py")
        if opens.search(path.read_text())
    }
    assert found == {
        # Where Airflow's engine comes from, and the connection of migrations, whose steps have bounds of their own.
        "compat/metadata_database.py": ["engine()", "settings.engine"],
        "store/migrations/env.py": ["engine()"],
        "store/session.py": ["engine()"],
    }


@on_postgres
@by_both
@pytest.mark.parametrize("table", [table.name for table in metadata.sorted_tables])
def test_a_locked_table_is_not_waited_for(
    database: Database, table: str, transaction: Callable[[Bounds], AbstractContextManager[Connection]]
) -> None:
    with database.engine.connect() as other, other.begin():
        other.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(DBAPIError) as caught, transaction(BRIEF) as connection:
            connection.execute(text(f"SELECT count(*) FROM {table}"))
        assert is_timeout(caught.value)


@on_postgres
@by_both
def test_a_statement_that_takes_long_is_ended(
    database: Database, transaction: Callable[[Bounds], AbstractContextManager[Connection]]
) -> None:
    with pytest.raises(DBAPIError) as caught, transaction(BRIEF) as connection:
        connection.execute(text("SELECT pg_sleep(60)"))
    assert is_timeout(caught.value)
    # Nothing of it stays with the connection that is back in the pool.
    with database.engine.connect() as connection:
        for name in ("lock_timeout", "statement_timeout"):
            assert connection.execute(text(f"SHOW {name}")).scalar_one() == "0"


@by_both
def test_on_sqlite_another_writer_is_not_waited_for_and_the_connection_is_as_before(
    database: Database, transaction: Callable[[Bounds], AbstractContextManager[Connection]]
) -> None:
    with database.engine.connect() as connection:
        before = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
    path = database.url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OperationalError) as caught, transaction(BRIEF) as connection:
            connection.execute(text("UPDATE worker_insight_worker SET running = 0"))
        assert is_timeout(caught.value)
    with transaction(BRIEF) as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == 200
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == before


@on_both
@pytest.mark.usefixtures("database")
def test_reading_keeps_nothing_and_writing_does() -> None:
    insert = text("INSERT INTO worker_insight_engine (name, due_at) VALUES ('x', '2026-01-01')")
    count = text("SELECT count(*) FROM worker_insight_engine WHERE name = 'x'")
    with session.reading(BRIEF) as connection:
        connection.execute(insert)
    with session.reading(BRIEF) as connection:
        assert connection.execute(count).scalar_one() == 0
    with session.writing(BRIEF) as connection:
        connection.execute(insert)
    with session.reading(BRIEF) as connection:
        assert connection.execute(count).scalar_one() == 1


def test_no_statement_begins_after_the_whole_time(database: Database) -> None:
    del database
    with session.writing(Bounds(lock=1, statement=1, total=60)) as connection:
        connection.execute(text("SELECT 1"))
    with pytest.raises(OutOfTimeError) as caught, session.writing(Bounds(lock=1, statement=1, total=0)) as connection:
        connection.execute(text("SELECT 1"))
    assert is_timeout(caught.value)


def fail_after(connection: Connection, sql: str) -> None:
    connection.execute(text(sql))
    connection.execute(text("SELECT * FROM there_is_no_such_table"))


@on_both
def test_a_savepoint_keeps_what_was_before_it_and_gives_the_settings_back(database: Database) -> None:
    names = ("lock_timeout", "statement_timeout") if database.engine.dialect.name == "postgresql" else ()
    insert = "INSERT INTO worker_insight_engine (name, due_at) VALUES ('{}', '2026-01-01')"
    with database.engine.begin() as connection:
        for name in names:
            connection.execute(text(f"SET LOCAL {name} = '7s'"))
        connection.execute(text(insert.format("before")))
        # More often than psycopg 3 takes to prepare what it has sent before.
        for number in range(8):
            with session.savepoint(connection, BRIEF) as bounded:
                bounded.execute(text(insert.format(number)))
                for name in names:
                    assert bounded.execute(text(f"SHOW {name}")).scalar_one() in {"200ms", "300ms"}
            with pytest.raises(DBAPIError), session.savepoint(connection, BRIEF) as bounded:
                fail_after(bounded, insert.format("undone"))
            for name in names:
                assert connection.execute(text(f"SHOW {name}")).scalar_one() == "7s"
    with session.reading(BRIEF) as connection:
        found = connection.execute(text("SELECT name FROM worker_insight_engine ORDER BY name")).scalars().all()
    assert found == [*map(str, range(8)), "before"]


def test_the_start_of_a_try_is_kept_for_a_second_at_most() -> None:
    assert session.START.lock < session.START.statement
    assert session.START.total is not None
    assert session.START.total + session.START.statement <= 1
    # Whoever waits behind a migration that waits for a lock is not kept for as long.
    assert session.MIGRATION_STEP.lock < session.START.lock


# --- MySQL and MariaDB -----------------------------------------------------------------------------------------------


class FakeMySQL:
    """A connection that remembers what is set, and waited as long as Airflow lets it before."""

    def __init__(self, *, is_mariadb: bool = False) -> None:
        self.dialect = SimpleNamespace(name="mysql", is_mariadb=is_mariadb)
        self.info: dict[str, Any] = {}
        self.sent: list[str] = []
        self.is_broken = False
        self.is_invalid = False

    def exec_driver_sql(self, sql: str) -> Any:
        if self.is_broken:
            raise OSError("gone away")
        self.sent.append(sql)
        return SimpleNamespace(one=lambda: (31536000, 50, 0), close=lambda: None)

    def invalidate(self) -> None:
        self.is_invalid = True


def use(connection: FakeMySQL, error: Exception | None = None) -> list[str]:
    """Use a savepoint; return what was sent."""
    connection.sent.clear()
    with session.savepoint(connection, session.START):  # type: ignore[arg-type]
        if error is not None:
            raise error
    return connection.sent


BEFORE = "SET SESSION lock_wait_timeout = 31536000, innodb_lock_wait_timeout = 50, {} = 0"


@pytest.mark.parametrize(
    ("is_mariadb", "limit", "value"), [(False, "max_execution_time", 400), (True, "max_statement_time", 0.4)]
)
def test_on_mysql_metadata_locks_and_row_locks_are_waited_for_briefly(
    is_mariadb: bool, limit: str, value: float
) -> None:
    connection = FakeMySQL(is_mariadb=is_mariadb)
    asked = f"SELECT @@SESSION.lock_wait_timeout, @@SESSION.innodb_lock_wait_timeout, @@SESSION.{limit}"
    sent = [
        f"SET SESSION lock_wait_timeout = 1, innodb_lock_wait_timeout = 1, {limit} = {value}",
        "SAVEPOINT worker_insight",
        "RELEASE SAVEPOINT worker_insight",
        BEFORE.format(limit),
    ]
    assert use(connection) == [asked, *sent]
    assert use(connection) == sent, "what the connection had is asked once"


def test_on_mysql_the_connection_gets_its_settings_back_whatever_happens() -> None:
    connection = FakeMySQL()
    with pytest.raises(ValueError, match="locked"):
        use(connection, ValueError("locked"))
    assert connection.sent[-3:] == [
        "ROLLBACK TO SAVEPOINT worker_insight",
        "RELEASE SAVEPOINT worker_insight",
        BEFORE.format("max_execution_time"),
    ]


def test_a_connection_that_cannot_be_given_its_settings_back_does_not_go_back_to_the_pool() -> None:
    connection = FakeMySQL()
    session._restore(connection, "SET SESSION")  # type: ignore[arg-type]
    assert not connection.is_invalid
    connection.is_broken = True
    session._restore(connection, "SET SESSION")  # type: ignore[arg-type]
    assert connection.is_invalid


@pytest.mark.parametrize("code", [1205, 1969, 3024])
def test_mysqls_own_codes_are_time_outs(code: int) -> None:
    assert is_timeout(OperationalError("SELECT 1", {}, Exception(code, "took too long")))
    assert not is_timeout(OperationalError("SELECT 1", {}, Exception(1146, "no such table")))
    assert not is_timeout(ValueError("no"))


# --- the circuit breaker ---------------------------------------------------------------------------------------------


def test_an_open_breaker_lets_one_caller_try_after_a_while() -> None:
    now = 100.0
    breaker = CircuitBreaker(30, trial=2, clock=lambda: now)
    assert breaker.allows()
    breaker.open()
    assert (breaker.allows(), breaker.is_open) == (False, True)
    now += 30
    assert [breaker.allows(), breaker.allows()] == [True, False]
    breaker.open()
    now += 29
    assert not breaker.allows()
    now += 1
    assert breaker.allows()
    breaker.close()
    assert [breaker.allows(), breaker.allows()] == [True, True]
    assert not breaker.is_open


def test_a_caller_that_reports_nothing_blocks_the_others_briefly() -> None:
    now = 100.0
    breaker = CircuitBreaker(30, trial=2, clock=lambda: now)
    breaker.open()
    now += 30
    assert breaker.allows()
    now += 2
    assert breaker.allows()


def test_migrations_use_the_engine_that_has_airflows_settings(database: Database) -> None:
    assert str(database.engine.url.render_as_string(hide_password=True)) == session.database_name()
    assert metadata_database.engine() is database.engine
