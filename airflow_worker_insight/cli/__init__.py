"""The command: ``airflow worker-insight …`` (Airflow 3.2 and later) and ``airflow-worker-insight …`` (everywhere).

Both are made from the same definitions. Airflow calls :func:`get_commands` at each start of its own command line, so
what a command does is imported only when it runs: this module and its two neighbours ``arguments`` and ``definitions``
import nothing that Airflow's command line has not. And our own command imports Airflow only once it has reserved the
standard output for its answer: see ``process``.
"""

from __future__ import annotations

import argparse
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from airflow_worker_insight import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.cli.cli_config import ActionCommand, GroupCommand


def get_commands() -> list[GroupCommand]:
    """Return our command for Airflow's command line."""
    from airflow.cli.cli_config import GroupCommand

    from airflow_worker_insight.cli.definitions import DESCRIPTION, SUBCOMMANDS

    return [
        GroupCommand(
            name="worker-insight",
            help="Which worker ran each try",
            description=DESCRIPTION,
            subcommands=SUBCOMMANDS,
        )
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``airflow-worker-insight`` with these arguments, by default the process's own."""
    from airflow_worker_insight.cli.process import answer, command_process

    with command_process():
        from airflow_worker_insight.cli.definitions import DESCRIPTION, SUBCOMMANDS

        parser = argparse.ArgumentParser(prog="airflow-worker-insight", description=DESCRIPTION)
        parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
        _add(parser, SUBCOMMANDS)
        # argparse prints help and the version to the standard output, which are answers.
        with redirect_stdout(answer()):
            parsed = parser.parse_args(arguments)
        parsed.func(parsed)


def _add(parser: argparse.ArgumentParser, commands: Sequence[ActionCommand | GroupCommand]) -> None:
    from airflow.cli.cli_config import GroupCommand

    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in commands:
        child = subparsers.add_parser(command.name, help=command.help, description=command.description or command.help)
        if isinstance(command, GroupCommand):
            _add(child, tuple(command.subcommands))
        else:
            for arg in command.args:
                arg.add_to_parser(child)
            child.set_defaults(func=command.func)
