"""Others' locks on our tables: the command ends with one line instead of waiting."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight.store import session
from airflow_worker_insight.store.tables import VERSION_TABLE, attempt, placement, worker
from tests.unit.cli.running import Printed, refused, run
from tests.unit.database import Database, a_worker, add_run, add_try, at, locked, record_start

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_mock import MockerFixture

pytestmark = pytest.mark.parametrize("database", ["postgresql"], indirect=True)

COMMANDS = [
    (worker.name, ["workers", "list"]),
    (worker.name, ["workers", "show", "celery-1"]),
    (worker.name, ["workers", "drain", "celery-1"]),
    (attempt.name, ["attempts", "list"]),
    (placement.name, ["placements", "list"]),
    (attempt.name, ["reconcile", "--dag-id", "etl", "--run-id", "run-1"]),
    (attempt.name, ["backfill"]),
    (attempt.name, ["prune", "--older-than", "30d", "--yes"]),
    (worker.name, ["services", "list"]),
    (VERSION_TABLE, ["workers", "list"]),
    (VERSION_TABLE, ["db", "check"]),
]


@pytest.fixture(autouse=True)
def brief_waits(mocker: MockerFixture) -> None:
    mocker.patch.object(session, "COMMAND", replace(session.COMMAND, lock=0.2))


@pytest.mark.parametrize(("table", "command"), COMMANDS, ids=[" ".join(words) for _, words in COMMANDS])
def test_a_locked_table_ends_the_command_with_one_line(
    database: Database, table: str, command: Sequence[str], capsys: Printed
) -> None:
    with database.engine.begin() as connection:
        key = add_try(connection, add_run(connection))
        record_start(connection, key, a_worker(), try_started_at=at(10), now=at(10))
    with locked(database, table):
        line = refused(*command)
    assert line.startswith("This took too long: ")
    assert "Another transaction may hold a lock on the tables of Airflow Worker Insight" in line
    assert "\n" not in line
    # What goes on in steps says how far it has come.
    assert capsys.readouterr().out == "" or command[0] in {"reconcile", "backfill", "prune"}
    run(*command)
