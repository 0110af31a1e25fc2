"""The commands ``airflow worker-insight …`` and ``airflow-worker-insight …``.

The first exists on Airflow 3.2 and later, the second on every version; both share the same definitions. Airflow calls
:func:`get_commands` at each start of its own command line, so a command's code is imported only when it runs: this
module, ``arguments`` and ``definitions`` import nothing that Airflow's command line has not imported already. Our own
command imports Airflow only after it has reserved the standard output for its answer; see ``process``.
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
    """Return the ``worker-insight`` command for Airflow's command line."""
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
    """Run ``airflow-worker-insight``.

    :param arguments: the arguments; ``None`` means those of the process
    """
    from airflow_worker_insight.cli.process import answer, command_process

    with command_process():
        from airflow_worker_insight.cli.definitions import DESCRIPTION, SUBCOMMANDS

        parser = argparse.ArgumentParser(prog="airflow-worker-insight", description=DESCRIPTION)
        parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
        _add_commands(parser, SUBCOMMANDS)
        # argparse prints help and the version to sys.stdout, and both are answers.
        with redirect_stdout(answer()):
            parsed = parser.parse_args(arguments)
        parsed.func(parsed)


def _add_commands(parser: argparse.ArgumentParser, commands: Sequence[ActionCommand | GroupCommand]) -> None:
    from airflow.cli.cli_config import GroupCommand

    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in commands:
        subparser = subparsers.add_parser(
            command.name, help=command.help, description=command.description or command.help
        )
        if isinstance(command, GroupCommand):
            _add_commands(subparser, tuple(command.subcommands))
        else:
            for arg in command.args:
                arg.add_to_parser(subparser)
            subparser.set_defaults(func=command.func)
