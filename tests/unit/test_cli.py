"""The command, as Airflow's subcommand and on its own."""

from __future__ import annotations

import argparse
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import inspect, text

from airflow_worker_insight import cli, compat
from airflow_worker_insight.capture import backfill, reconcile
from airflow_worker_insight.store import migrate
from airflow_worker_insight.store.tables import VERSION_TABLE, attempt
from tests.unit.database import OUR_COMMAND, Database, add_run, add_try, at, run_command

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS = [
    ["reconcile"],
    ["backfill"],
    ["db"],
    ["db", "migrate"],
    ["db", "check"],
    ["db", "downgrade"],
]
UP_TO_DATE = "The tables are there and up to date."


def run(*arguments: str) -> None:
    cli.main(arguments)


def refused(*arguments: str) -> str:
    """Run the command, which must fail, and return the line it ends with."""
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert isinstance(ended.value.code, str)  # Python prints it to stderr and exits with 1.
    return ended.value.code


def ends_with(code: int, *arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == code


def recorded(database: Database) -> list[tuple[str, str]]:
    return sorted((row["run_id"], row["attribution"]) for row in database.attempts())


# --- help and mistakes -----------------------------------------------------------------------------------------------


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    ends_with(0, "--help")
    shown = capsys.readouterr().out
    for command in cli._subcommands():
        assert command.name in shown
        assert command.help.split()[0] in shown


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    ends_with(0, *command, "--help")
    assert "usage: airflow-worker-insight " + " ".join(command) in " ".join(capsys.readouterr().out.split())


def test_every_option_has_help() -> None:
    for name, arg in vars(cli).items():
        if name.startswith("ARG_"):
            assert arg.kwargs["help"], name


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["db"],
        ["nonsense"],
        ["reconcile", "--nonsense"],
        ["reconcile", "--since", "yesterday"],
        ["backfill", "--after", "-1"],
        ["backfill", "--after", "many"],
        ["backfill", "--since", ""],
        ["db", "downgrade"],
    ],
    ids=" ".join,
)
def test_a_mistake_is_said_and_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    ends_with(2, *arguments)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "usage: airflow-worker-insight" in shown.err


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=timezone.utc)),
        ("2026-01-31T08:00:00", datetime(2026, 1, 31, 8, tzinfo=timezone.utc)),
        ("2026-01-31 08:00", datetime(2026, 1, 31, 8, tzinfo=timezone.utc)),
        ("2026-01-31T08:00:00Z", datetime(2026, 1, 31, 8, tzinfo=timezone.utc)),
        ("2026-01-31T08:00:00+02:00", datetime(2026, 1, 31, 6, tzinfo=timezone.utc)),
    ],
)
def test_a_time_is_utc_unless_it_says_otherwise(written: str, meant: datetime) -> None:
    assert cli._moment(written) == meant


def test_airflow_takes_the_commands() -> None:
    """Airflow adds what it is given to its own parser in this way."""
    from airflow.cli.cli_parser import _add_command

    (group,) = cli.get_commands()
    parser = argparse.ArgumentParser()
    _add_command(parser.add_subparsers(dest="subcommand"), group)
    parsed = parser.parse_args(["worker-insight", "backfill", "--dag-id", "etl", "--after", "7"])
    assert (parsed.func, parsed.dag_id, parsed.after) == (cli.backfill, "etl", 7)


def test_both_commands_on_a_command_line(database: Database) -> None:
    assert UP_TO_DATE in run_command(database.url, "-c", OUR_COMMAND, "db", "check")
    if compat.airflow_version() >= (3, 2):
        assert UP_TO_DATE in run_command(database.url, "-m", "airflow", "worker-insight", "db", "check")


# --- db --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def without_tables(database: Database) -> Database:
    migrate.downgrade("base")
    return database


@pytest.mark.usefixtures("database")
def test_check_of_tables_that_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    run("db", "check")
    assert UP_TO_DATE in capsys.readouterr().out


@pytest.mark.usefixtures("without_tables")
def test_check_of_tables_that_are_missing(capsys: pytest.CaptureFixture[str]) -> None:
    ends_with(1, "db", "check")
    assert "airflow-worker-insight db migrate" in capsys.readouterr().out


def test_migrate_makes_the_tables(without_tables: Database, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        run("db", "migrate")
        assert "up to date" in capsys.readouterr().out
    assert inspect(without_tables.engine).has_table(attempt.name)


def test_migrate_leaves_the_tables_of_a_later_package_alone(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    assert "newer version" in refused("db", "migrate")
    with database.engine.connect() as connection:
        assert migrate.current(connection) == "9999"


def test_migrate_can_only_print(without_tables: Database, capsys: pytest.CaptureFixture[str]) -> None:
    run("db", "migrate", "--show-sql-only")
    assert f"CREATE TABLE {attempt.name}" in capsys.readouterr().out
    assert not inspect(without_tables.engine).has_table(attempt.name)


@pytest.fixture
def answer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Answer the command's question with the test's parameter, or with the end of the input."""
    asked: list[str] = []

    def reply(question: str) -> str:
        asked.append(question)
        if request.param is None:
            raise EOFError
        return str(request.param)

    monkeypatch.setattr("builtins.input", reply)
    yield asked
    assert len(asked) == 1


@pytest.mark.parametrize("answer", ["", "n", "no", "yes please", None], indirect=True)
def test_going_back_is_asked_about(database: Database, answer: list[str]) -> None:
    assert refused("db", "downgrade", "--to-revision", "base") == "Nothing was changed."
    assert "base" in answer[0]
    assert inspect(database.engine).has_table(attempt.name)


@pytest.mark.parametrize("answer", ["y", " Y "], indirect=True)
@pytest.mark.usefixtures("answer")
def test_going_back_after_a_yes(database: Database) -> None:
    run("db", "downgrade", "--to-revision", "base")
    assert not inspect(database.engine).has_table(attempt.name)


def test_going_back_unasked(database: Database) -> None:
    run("db", "downgrade", "--to-revision", "base", "--yes")
    assert not inspect(database.engine).has_table(attempt.name)


def test_going_back_can_only_print(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    run("db", "downgrade", "--to-revision", "base", "--show-sql-only")
    assert f"DROP TABLE {attempt.name}" in capsys.readouterr().out
    assert inspect(database.engine).has_table(attempt.name)


@pytest.mark.parametrize("options", [["--yes"], ["--show-sql-only"]])
def test_going_back_to_nowhere(database: Database, options: list[str]) -> None:
    assert "nonsense" in refused("db", "downgrade", "--to-revision", "nonsense", *options)
    assert inspect(database.engine).has_table(attempt.name)


# --- reconcile and backfill ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_tables")
@pytest.mark.parametrize("command", ["reconcile", "backfill"])
def test_without_tables_it_says_how_to_make_them(command: str) -> None:
    assert "airflow-worker-insight db migrate" in refused(command)


def ago(**time: float) -> datetime:
    return datetime.now(timezone.utc) - timedelta(**time)


@pytest.fixture
def runs(database: Database) -> Database:
    """Have runs of two Dags that ended at different times, and one that runs."""
    ends = {"new": ("etl", ago(hours=1)), "other": ("elt", ago(hours=2)), "old": ("etl", ago(hours=25))}
    with database.engine.begin() as connection:
        for run_id, (dag_id, ended_at) in ends.items():
            add_try(connection, add_run(connection, dag_id, run_id, ended_at=ended_at))
        running = add_run(connection, run_id="running", state="running", ended_at=None)
        add_try(connection, running, state="failed")
    return database


def test_reconcile_takes_the_last_day(runs: Database, capsys: pytest.CaptureFixture[str]) -> None:
    run("reconcile")
    assert recorded(runs) == [("new", "inferred"), ("other", "inferred")]
    assert capsys.readouterr().out == "2 Dag runs: 2 tries added, 0 closed, 0 waiting reports taken\n"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--dag-id", "etl"], ["new"]),
        (["--since", "2000-01-01"], ["new", "old", "other"]),
        (["--dag-id", "etl", "--since", "2000-01-01"], ["new", "old"]),
        (["--dag-id", "etl", "--run-id", "old"], ["old"]),
        (["--dag-id", "etl", "--run-id", "running"], ["running"]),
        (["--dag-id", "nothing"], []),
    ],
    ids=" ".join,
)
def test_reconcile_takes_what_is_asked_for(runs: Database, options: list[str], found: list[str]) -> None:
    run("reconcile", *options)
    assert [run_id for run_id, _ in recorded(runs)] == found


def test_reconcile_of_a_run_needs_its_dag(runs: Database) -> None:
    assert "--dag-id" in refused("reconcile", "--run-id", "new")
    assert "'never'" in refused("reconcile", "--dag-id", "etl", "--run-id", "never")
    assert "'elt'" in refused("reconcile", "--dag-id", "elt", "--run-id", "new")
    assert recorded(runs) == []


@pytest.mark.skipif(not compat.is_airflow_3(), reason="Airflow 2.11 records without reports")
def test_reconcile_takes_the_reports_that_wait_also_of_runs_that_run(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.unit.capture.reports import a_report, a_running_try, push, stored_xcoms

    one = a_running_try(database)
    push(one, a_report(one.try_id))
    run("reconcile")
    assert recorded(database) == [("run-1", "reported")]
    assert stored_xcoms(database) == []
    assert "1 waiting reports taken" in capsys.readouterr().out


def test_backfill_takes_everything_that_has_ended(runs: Database, capsys: pytest.CaptureFixture[str]) -> None:
    run("backfill")
    everything = [("new", "backfilled"), ("old", "backfilled"), ("other", "backfilled")]
    assert recorded(runs) == everything
    assert "3 Dag runs: 3 tries added" in capsys.readouterr().out

    run("backfill")
    assert recorded(runs) == everything
    assert "3 Dag runs: 0 tries added, 0 closed" in capsys.readouterr().out


def test_backfill_can_be_limited(runs: Database) -> None:
    run("backfill", "--dag-id", "etl", "--since", ago(hours=3).isoformat())
    assert [run_id for run_id, _ in recorded(runs)] == ["new"]


def test_backfill_shows_how_far_it_is_beside_its_result(runs: Database, capsys: pytest.CaptureFixture[str]) -> None:
    run("backfill")
    shown = capsys.readouterr()
    assert "3/3" in shown.err
    assert shown.out.count("\n") == 1
    assert recorded(runs)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_backfill_says_how_to_go_on(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stop: type[BaseException],
) -> None:
    with database.engine.begin() as connection:
        for number in range(5):
            add_try(connection, add_run(connection, run_id=f"run-{number}", ended_at=at(number)))
    monkeypatch.setattr(backfill, "BATCH", 2)
    real, batches = reconcile.reconcile_runs, iter([True, False])

    def second_batch_stops(*arguments: object, **options: object) -> object:
        if not next(batches):
            raise stop("stopped here")
        return real(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as stopping:
        stopping.setattr(backfill, "reconcile_runs", second_batch_stops)
        with pytest.raises(stop):
            run("backfill", "--dag-id", "etl", "--since", "2026-01-01")
    shown = capsys.readouterr()
    assert "2 Dag runs: 2 tries added" in shown.out
    _, _, command = shown.err.partition("go on with: airflow-worker-insight ")
    assert command.split()[:-1] == [
        "backfill", "--dag-id", "etl", "--since", "2026-01-01T00:00:00+00:00", "--after"
    ]  # fmt: skip

    run(*command.split())
    assert "3 Dag runs: 3 tries added" in capsys.readouterr().out
    assert [run_id for run_id, _ in recorded(database)] == [f"run-{number}" for number in range(5)]
