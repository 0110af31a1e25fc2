"""The command as a whole: what it has, what it says of itself, and what it makes of mistakes."""

from __future__ import annotations

import argparse
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from airflow.cli.cli_config import Arg

from airflow_worker_insight import __version__, cli, compat
from airflow_worker_insight.cli import arguments
from airflow_worker_insight.cli.definitions import SUBCOMMANDS
from airflow_worker_insight.domain.filters import (
    SERVICE_KINDS,
    AttemptFilter,
    FindingFilter,
    PlacementFilter,
    ServiceFilter,
    WorkerFilter,
    parameters,
)
from airflow_worker_insight.domain.parameters import Choice, Time
from airflow_worker_insight.domain.reasons import PlacementReason
from airflow_worker_insight.domain.states import UNKNOWN_STATE, WorkerAvailability, WorkerState
from airflow_worker_insight.store.placements import SLOT_STATES
from tests.unit.cli.running import Printed, ends_with, refused
from tests.unit.database import OUR_COMMAND, Database, run_command

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

UP_TO_DATE = "The tables are up to date."


def all_commands(group: Iterable[Any] = SUBCOMMANDS, before: tuple[str, ...] = ()) -> Iterator[tuple[list[str], Any]]:
    for command in group:
        yield [*before, command.name], command
        if hasattr(command, "subcommands"):
            yield from all_commands(command.subcommands, (*before, command.name))


COMMANDS = list(all_commands())
ACTIONS = [(names, command) for names, command in COMMANDS if hasattr(command, "func")]
NAMES = [" ".join(names) for names, _ in COMMANDS]


def test_it_has_what_was_promised() -> None:
    assert {" ".join(names) for names, _ in ACTIONS} == {
        *(f"workers {name}" for name in ("list", "show", "attempts", "drain", "quarantine", "release")),
        *("attempts list", "placements list", "services list", "refresh", "reconcile", "backfill", "prune"),
        *("db migrate", "db check", "db downgrade", "insight run"),
        *("findings list", "findings show", "findings dismiss"),
    }


def test_help_names_every_command(capsys: Printed) -> None:
    ends_with(0, "--help")
    shown = capsys.readouterr().out
    for command in SUBCOMMANDS:
        assert command.name in shown
        assert command.help.split()[0] in shown


def test_it_tells_its_version(capsys: Printed) -> None:
    ends_with(0, "--version")
    assert capsys.readouterr().out == f"airflow-worker-insight {__version__}\n"


@pytest.mark.parametrize("names", [names for names, _ in COMMANDS], ids=" ".join)
def test_every_command_has_help(names: list[str], capsys: Printed) -> None:
    ends_with(0, *names, "--help")
    assert "usage: airflow-worker-insight " + " ".join(names) in " ".join(capsys.readouterr().out.split())


def test_every_option_has_help() -> None:
    for name, arg in vars(arguments).items():
        if isinstance(arg, Arg):
            assert arg.kwargs["help"], name


@pytest.mark.parametrize(("names", "command"), ACTIONS, ids=[" ".join(names) for names, _ in ACTIONS])
def test_what_a_command_runs_is_there(names: list[str], command: Any) -> None:
    """It is found by its name when it runs, and not before."""
    import importlib

    path = command.func.__wrapped__.__closure__
    (import_path,) = [
        cell.cell_contents for cell in path if isinstance(cell.cell_contents, str) and "." in cell.cell_contents
    ]
    module, _, name = import_path.rpartition(".")
    assert callable(getattr(importlib.import_module(module), name)), names


def test_a_declared_filter_is_an_option_with_its_values() -> None:
    options = {
        (filters, arg.flags[0]): arg.kwargs
        for filters in (AttemptFilter, FindingFilter, PlacementFilter, WorkerFilter, ServiceFilter)
        for arg in arguments.filter_args(filters)
    }
    states = (*WorkerState.values(), UNKNOWN_STATE)
    assert options[WorkerFilter, "--state"]["type"](",".join(states)) == {*states}
    assert options[WorkerFilter, "--availability"]["choices"] == (
        WorkerAvailability.AVAILABLE,
        WorkerAvailability.DRAINING,
        WorkerAvailability.QUARANTINED,
    )
    assert options[WorkerFilter, "--label"]["type"]("zone=a=b") == ("zone", "a=b")
    assert options[ServiceFilter, "--kind"]["choices"] == SERVICE_KINDS
    assert options[ServiceFilter, "--state"]["choices"] == states
    assert options[PlacementFilter, "--reason"]["type"](PlacementReason.SHARED_QUEUE) == PlacementReason.SHARED_QUEUE
    assert options[AttemptFilter, "--map-index"]["type"]("-1") == -1
    for name, kwargs in options.items():
        assert kwargs["help"], name
    assert parameters(PlacementFilter)["try_state"].kind == Choice(SLOT_STATES)


MISTAKES = """
nothing
db
nonsense
workers
workers nonsense
workers list --state asleep
workers list --state online,asleep
workers list --label zone
workers list --label =a
workers list --availability gone
workers list --limit 0
workers list --limit many
workers list --output xml
workers show
workers drain
attempts list --state bogus
attempts list --state failed,success
workers attempts w1 --state lost
attempts list --map-index -2
attempts list --try-number one
attempts list --started-at-gte yesterday
findings list --state gone
findings show
findings show w1
findings dismiss 0
services list --kind celery
services list --state up
refresh --every 0
refresh --every soon
insight run --every 0
reconcile --nonsense
reconcile --since yesterday
backfill --after -1
backfill --after many
backfill --since
prune
prune --older-than 0d
prune --older-than -1d
prune --older-than 90
prune --older-than 3y
prune --older-than 2999-01-01
prune --older-than yesterday
prune --older-than 99999999d
db downgrade
""".strip().splitlines()


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_said_and_ends_with_2(line: str, capsys: Printed) -> None:
    words = [] if line == "nothing" else [word.replace("\\n", "\n") for word in line.split()]
    ends_with(2, *words)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "usage: airflow-worker-insight" in shown.err


def test_a_state_that_is_none_is_said_with_those_that_are(capsys: Printed) -> None:
    ends_with(2, "attempts", "list", "--state", "bogus")
    said = capsys.readouterr().err
    assert "argument --state: 'bogus' is not one of " in said
    for state in ("deferred", "failed", "upstream_failed"):
        assert state in said


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
    assert arguments.parser_of(Time())(written) == meant
    assert arguments.parse_age(written) == meant


@pytest.mark.parametrize(("written", "days"), [("1d", 1), ("90d", 90), ("12w", 84)])
def test_an_age_is_counted_back_from_now(written: str, days: int) -> None:
    before = datetime.now(timezone.utc)
    meant = arguments.parse_age(written)
    assert before <= meant + timedelta(days=days) <= datetime.now(timezone.utc)


def test_airflow_takes_the_commands() -> None:
    """Airflow adds what it is given to its own parser in this way."""
    from airflow.cli.cli_parser import _add_command

    (group,) = cli.get_commands()
    parser = argparse.ArgumentParser()
    _add_command(parser.add_subparsers(dest="subcommand"), group)
    for names, command in ACTIONS:
        needed = {"drain": ["w1"], "quarantine": ["w1"], "release": ["w1"], "show": ["w1"], "attempts": ["w1"]}
        options = {"prune": ["--older-than", "1d"], "downgrade": ["--to-revision", "base"], **needed}
        finding = ["7"] if names[0] == "findings" and names[-1] != "list" else None
        parsed = parser.parse_args(["worker-insight", *names, *(finding or options.get(names[-1], []))])
        assert parsed.func is command.func


@pytest.mark.parametrize(
    "line",
    [
        "workers list",
        "workers show w1",
        "workers attempts w1",
        "workers drain w1",
        "findings list",
        "findings show 7",
        "findings dismiss 7",
        "attempts list",
        "services list",
        "refresh",
        "refresh --every 1",
        "insight run",
        "reconcile",
        "backfill",
        "prune --older-than 1d",
    ],
)
def test_without_tables_it_says_how_to_make_them(without_tables: Database, line: str) -> None:
    del without_tables
    assert "airflow-worker-insight db migrate" in refused(*line.split())


def test_both_commands_on_a_command_line(database: Database) -> None:
    assert UP_TO_DATE in run_command(database.url, "-c", OUR_COMMAND, "db", "check")
    if compat.airflow_version() >= (3, 2):
        assert UP_TO_DATE in run_command(database.url, "-m", "airflow", "worker-insight", "db", "check")
        assert "No data found" in run_command(database.url, "-m", "airflow", "worker-insight", "workers", "list")
