"""``db …``: the tables."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import inspect, text

from airflow_worker_insight.store import migrate
from airflow_worker_insight.store.tables import VERSION_TABLE, attempt
from tests.unit.cli.running import Printed, ends_with, refused, run
from tests.unit.database import OUR_COMMAND

if TYPE_CHECKING:
    from tests.unit.database import Database

UP_TO_DATE = "The tables are up to date."


@pytest.mark.usefixtures("database")
def test_check_of_tables_that_are_there(capsys: Printed) -> None:
    run("db", "check")
    assert UP_TO_DATE in capsys.readouterr().out


@pytest.mark.usefixtures("without_tables")
def test_check_of_tables_that_are_missing(capsys: Printed) -> None:
    ends_with(1, "db", "check")
    assert "airflow-worker-insight db migrate" in capsys.readouterr().out


def test_migrate_makes_the_tables(without_tables: Database, capsys: Printed) -> None:
    for _ in range(2):
        run("db", "migrate")
        assert "up to date" in capsys.readouterr().out
    assert inspect(without_tables.engine).has_table(attempt.name)


def test_migrate_leaves_the_tables_of_a_later_package_alone(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    assert "newer version" in refused("db", "migrate")
    with database.engine.connect() as connection:
        assert migrate.current_revision(connection) == "9999"


def test_migrate_can_only_print(without_tables: Database, capsys: Printed) -> None:
    run("db", "migrate", "--show-sql-only")
    assert f"CREATE TABLE {attempt.name}" in capsys.readouterr().out
    assert not inspect(without_tables.engine).has_table(attempt.name)


@pytest.mark.parametrize("command", [["migrate"], ["downgrade", "--to-revision", "base"]], ids=" ".join)
def test_what_is_printed_is_sql(without_tables: Database, command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OUR_COMMAND, "db", *command, "--show-sql-only"],
        env={**os.environ, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": without_tables.url},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert re.match(r"(CREATE TABLE|--|BEGIN|DROP)", done.stdout)
    assert "alembic" not in done.stdout.replace(VERSION_TABLE, "")
    assert "Generating static SQL" in done.stderr


@pytest.mark.parametrize("answer", ["", "n", "no", "yes please", None], indirect=True)
def test_going_back_is_asked_about(database: Database, answer: list[str]) -> None:
    assert refused("db", "downgrade", "--to-revision", "base") == "Nothing was changed."
    assert answer == ["Downgrade to base? Recorded tries are lost. [y/N] "]
    assert inspect(database.engine).has_table(attempt.name)


@pytest.mark.parametrize("answer", ["y", " Y "], indirect=True)
@pytest.mark.usefixtures("answer")
def test_going_back_after_a_yes(database: Database) -> None:
    run("db", "downgrade", "--to-revision", "base")
    assert not inspect(database.engine).has_table(attempt.name)


def test_going_back_unasked(database: Database) -> None:
    run("db", "downgrade", "--to-revision", "base", "--yes")
    assert not inspect(database.engine).has_table(attempt.name)


def test_going_back_can_only_print(database: Database, capsys: Printed) -> None:
    run("db", "downgrade", "--to-revision", "base", "--show-sql-only")
    assert f"DROP TABLE {attempt.name}" in capsys.readouterr().out
    assert inspect(database.engine).has_table(attempt.name)


@pytest.mark.parametrize("options", [["--yes"], ["--show-sql-only"]])
def test_going_back_to_nowhere(database: Database, options: list[str]) -> None:
    assert "nonsense" in refused("db", "downgrade", "--to-revision", "nonsense", *options)
    assert inspect(database.engine).has_table(attempt.name)
