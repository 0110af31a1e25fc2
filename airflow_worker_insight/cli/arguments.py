"""Arguments of the commands, with the functions that parse and check them."""

from __future__ import annotations

import argparse
import re
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from airflow.cli.cli_config import Arg

from airflow_worker_insight.domain.filters import parameters
from airflow_worker_insight.domain.parameters import Choice, Choices, Integer, Label, Note, Time, TryState

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from airflow_worker_insight.domain.filters import Filters
    from airflow_worker_insight.domain.parameters import Kind, Parameter

DEFAULT_LIMIT = 50

MAX_CHOICES = 8
"""Choices that an option's usage line lists at most."""

_DAYS_PER_UNIT = {"d": 1, "w": 7}


def parse_age(text: str) -> datetime:
    """Parse a time in the past, or an age in days or weeks such as ``90d`` or ``12w``.

    :return: the time in UTC
    :raises argparse.ArgumentTypeError: if it is neither, or not in the past
    """
    now = datetime.now(timezone.utc)
    match = re.fullmatch(r"([0-9]{1,5})([dw])", text)
    if match is None and re.fullmatch(r"\w+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither an age such as 90d or 12w nor a time such as 2026-01-31")
    if match is None:
        parsed: datetime = parser_of(Time())(text)
    else:
        parsed = now - timedelta(days=int(match[1]) * _DAYS_PER_UNIT[match[2]])
    if parsed >= now:
        raise argparse.ArgumentTypeError(f"{text!r} is not in the past")
    return parsed


def parser_of(kind: Kind | Note) -> Callable[[str], Any]:
    """Return argparse's ``type`` for a kind of parameter."""

    def parse(text: str) -> Any:
        try:
            if isinstance(kind, TryState):
                return _try_states().parse(text)
            return kind.parse_list(text) if isinstance(kind, Choices) else kind.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} {error}") from None

    return parse


def _try_states() -> Choice:
    from airflow_worker_insight.compat import metadata_database

    return Choice(tuple(metadata_database.task_instance_states()))


def filter_args(filters: type[Filters], *names: str) -> tuple[Arg, ...]:
    """Return the options for declared filters.

    :param names: the parameters to return; all that the command has by default
    """
    return tuple(
        _filter_arg(parameter)
        for parameter in parameters(filters).values()
        if parameter.command and (not names or parameter.name in names)
    )


def _filter_arg(parameter: Parameter) -> Arg:
    kind, text = parameter.kind, parameter.meaning.removesuffix(".")
    flags = (f"--{parameter.name.replace('_', '-')}",)
    if isinstance(kind, Choices):
        return Arg(flags, type=parser_of(kind), help=f"{text}. Separated by commas: {', '.join(kind.values)}")
    if isinstance(kind, Choice) and len(kind.values) <= MAX_CHOICES:
        return Arg(flags, choices=kind.values, help=text)
    metavar = "TIME" if isinstance(kind, Time) else "KEY=VALUE" if isinstance(kind, Label) else None
    return Arg(flags, type=parser_of(kind), metavar=metavar, help=text)


def parse_row_id(text: str) -> int:
    """Parse the row number that an interrupted run printed.

    :raises argparse.ArgumentTypeError: if it is not a number
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not the number that an interrupted run printed")
    return int(text)


# --- workers ---------------------------------------------------------------------------------------------------------

ARG_WORKER = Arg(("worker",), help="ID of the worker, or its name if only one living worker has it", metavar="WORKER")
ARG_NOTE = Arg(("--note",), type=parser_of(Note()), help="Reason, shown on the worker's page")

ARG_FINDING_ID = Arg(("finding_id",), type=parser_of(Integer(1)), help="ID of the finding", metavar="FINDING_ID")
ARG_DISMISS_NOTE = Arg(("--note",), type=parser_of(Note()), help="Reason, shown in the history of the finding")

# --- number of rows --------------------------------------------------------------------------------------------------

ARG_LIMIT = Arg(
    ("--limit",),
    type=parser_of(Integer(1)),
    default=DEFAULT_LIMIT,
    help=f"Maximum number of rows (default: {DEFAULT_LIMIT})",
)
ARG_ALL = Arg(("--all",), action="store_true", help="Show all rows")

# --- maintenance -----------------------------------------------------------------------------------------------------

ARG_EVERY = Arg(
    ("--every",),
    type=parser_of(Integer(1)),
    metavar="SECONDS",
    help="Poll at this interval until stopped, as the API server of Airflow 3 does",
)
ARG_ANALYSE_EVERY = Arg(
    ("--every",),
    type=parser_of(Integer(1)),
    metavar="SECONDS",
    help="Analyse at this interval until stopped, as the API server of Airflow 3 does",
)
ARG_RECOMPUTE = Arg(
    ("--recompute",), action="store_true", help="Begin anew from the recorded tries of the last 30 days"
)
ARG_DAG_ID = Arg(("--dag-id",), help="Only this Dag")
ARG_RUN_ID = Arg(("--run-id",), help="Only this Dag run (with --dag-id)")
ARG_SINCE = Arg(("--since",), type=parser_of(Time()), help="Only Dag runs that ended at or after this time (UTC)")
ARG_AFTER = Arg(
    ("--after",), type=parse_row_id, default=0, help="Continue after this row, as an interrupted run printed it"
)
ARG_OLDER_THAN = Arg(
    ("--older-than",),
    type=parse_age,
    required=True,
    metavar="AGE",
    help="Remove what is older than this: days or weeks (90d, 12w), or a time (2026-01-31)",
)
ARG_DRY_RUN = Arg(("--dry-run",), action="store_true", help="Print what would be removed, and remove nothing")
ARG_TO_REVISION = Arg(
    ("--to-revision",), required=True, help="Migration to downgrade to, or `base` to remove all tables"
)
ARG_SQL_ONLY = Arg(("--show-sql-only",), action="store_true", help="Print the SQL and change nothing")
ARG_YES = Arg(("-y", "--yes"), action="store_true", help="Do not ask for confirmation")
