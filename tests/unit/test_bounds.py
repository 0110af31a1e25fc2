"""The watch over unbounded statements, which all unit tests are under."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, text

from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.store import migrate, session
from airflow_worker_insight.store.tables import worker
from airflow_worker_insight.store.workers import counts as worker_counts
from tests.unit.database import on_postgresql

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection

    from tests.unit.bounds import UnboundedStatements
    from tests.unit.database import Database

pytestmark = on_postgresql


def as_ours(source: str) -> Callable[[], None]:
    """Return code as if it stood in a module of the package."""
    found: dict[str, Callable[[], None]] = {}
    code = compile(f"def act():\n    {source}", f"{migrate.__file__.removesuffix('migrate.py')}sloppy.py", "exec")
    exec(
        code, {"metadata_database": metadata_database, "session": session, "census": worker_counts, "text": text}, found
    )
    return found["act"]


def caught(watching: UnboundedStatements) -> list[str]:
    """Return what was found, which then fails no test."""
    found = [one.partition(": ")[2] for one in watching.found]
    watching.found.clear()
    return found


COUNT = "SELECT count(*) FROM worker_insight_worker"
OPENED = f"with metadata_database.engine().connect() as connection: connection.execute(text('{COUNT}'))"


@pytest.mark.usefixtures("database")
def test_a_statement_on_a_plain_connection_is_caught(unbounded_statements: UnboundedStatements) -> None:
    as_ours(OPENED)()
    assert caught(unbounded_statements) == [COUNT]


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("setting", ["lock_timeout = 100", "statement_timeout = 100"])
def test_one_of_the_two_bounds_is_not_enough(unbounded_statements: UnboundedStatements, setting: str) -> None:
    bound = f"connection.execute(text('SET LOCAL {setting}')); "
    as_ours(OPENED.replace(": ", f": {bound}", 1))()
    assert caught(unbounded_statements) == [COUNT]


@pytest.mark.usefixtures("database")
def test_bounds_end_with_their_transaction(unbounded_statements: UnboundedStatements) -> None:
    bounded = "connection.exec_driver_sql(session.setting(connection, session.PAGE)); "
    count = f"connection.execute(text('{COUNT}')); "
    opened = "with metadata_database.engine().connect() as connection: "
    as_ours(opened + bounded + count)()
    assert caught(unbounded_statements) == []
    as_ours(opened + bounded + count + "connection.rollback(); " + count)()
    assert caught(unbounded_statements) == [COUNT]
    # The connection is the same one of the pool.
    as_ours(OPENED)()
    assert caught(unbounded_statements) == [COUNT]


@pytest.mark.usefixtures("database")
def test_in_somebody_elses_transaction_bounds_end_with_the_savepoint(
    unbounded_statements: UnboundedStatements,
) -> None:
    from airflow.utils.session import create_session

    def store(connection: Connection, *, fail: bool) -> None:
        with session.savepoint(connection, session.START) as bounded:
            worker_counts.count_workers(bounded)
            if fail:
                raise ValueError

    with create_session() as airflows:
        # Airflow has opened it: a test would be exempt.
        connection = opened_by_airflow(airflows)
        for fail in (False, True):
            try:
                store(connection, fail=fail)
            except ValueError:
                assert fail
            assert caught(unbounded_statements) == []
            worker_counts.count_workers(connection)
            (statement,) = caught(unbounded_statements)
            assert worker.name in statement


def opened_by_airflow(airflows: object) -> Connection:
    code = compile("connection = airflows.connection()", "/site-packages/airflow/models/xcom.py", "exec")
    found: dict[str, Connection] = {}
    exec(code, {"airflows": airflows}, found)
    return found["connection"]


@pytest.mark.usefixtures("database")
def test_what_is_ours_and_bounded_or_not_ours_is_none_of_its_business(
    database: Database, unbounded_statements: UnboundedStatements
) -> None:
    with session.reading(session.PAGE) as connection:
        worker_counts.count_workers(connection)
    with database.engine.connect() as connection:
        worker_counts.count_workers(connection)
        connection.execute(select(worker))
    as_ours(
        "with metadata_database.engine().connect() as connection: connection.execute(text('SELECT 1 FROM dag_run'))"
    )()
    assert caught(unbounded_statements) == []
