"""Arguments of the commands, with the functions that parse and check them."""

from __future__ import annotations

import argparse
import re
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from airflow.cli.cli_config import Arg

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_LIMIT = 50
MAX_NOTE_LENGTH = 500

_DAYS_PER_UNIT = {"d": 1, "w": 7}
_STATES = ("online", "unresponsive", "offline", "lost", "unknown")


def moment(text: str) -> datetime:
    """Parse an ISO 8601 date or time; without an offset it is UTC.

    :raises argparse.ArgumentTypeError: if it is not such a time
    """
    try:
        parsed = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time such as 2026-01-31 or 2026-01-31T08:00:00+00:00"
        ) from None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)


def age(text: str) -> datetime:
    """Parse a time in the past, or an age in days or weeks such as ``90d`` or ``12w``.

    :return: the time, in UTC unless the text has another offset
    :raises argparse.ArgumentTypeError: if it is neither, or not in the past
    """
    now = datetime.now(timezone.utc)
    match = re.fullmatch(r"([0-9]{1,5})([dw])", text)
    if match is None and re.fullmatch(r"\w+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither an age such as 90d or 12w nor a time such as 2026-01-31")
    parsed = moment(text) if match is None else now - timedelta(days=int(match[1]) * _DAYS_PER_UNIT[match[2]])
    if parsed >= now:
        raise argparse.ArgumentTypeError(f"{text!r} is not in the past")
    return parsed


def label(text: str) -> tuple[str, str]:
    """Parse a worker label, ``key=value``, into its key and its value.

    :raises argparse.ArgumentTypeError: if it is not a label
    """
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not a label such as region=eu-west-1")
    return key, value


def words(allowed: tuple[str, ...]) -> Callable[[str], frozenset[str]]:
    """Return a parser for a comma-separated list of the allowed words."""

    def read(text: str) -> frozenset[str]:
        values = frozenset(part.strip() for part in text.split(","))
        if not values <= set(allowed):
            raise argparse.ArgumentTypeError(f"{text!r} is not of {', '.join(allowed)}")
        return values

    return read


def try_state(text: str) -> str:
    """Check that a text is one of Airflow's task instance states.

    :raises argparse.ArgumentTypeError: if it is not
    """
    from airflow_worker_insight.compat import metadata_database

    states = metadata_database.task_instance_states()
    if text not in states:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(sorted(states))}")
    return text


def reason(text: str) -> str:
    """Check that a text is one of :class:`~airflow_worker_insight.domain.reasons.PlacementReason`.

    :raises argparse.ArgumentTypeError: if it is not
    """
    from airflow_worker_insight.domain.reasons import PlacementReason

    if text not in PlacementReason.values():
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(sorted(PlacementReason.values()))}")
    return text


def number(least: int) -> Callable[[str], int]:
    """Return a parser for a whole number that is at least ``least``."""

    def read(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,9}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return read


def row_id(text: str) -> int:
    """Parse the row number that an interrupted run printed.

    :raises argparse.ArgumentTypeError: if it is not a number
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not the number that an interrupted run printed")
    return int(text)


def note(text: str) -> str:
    """Strip and check the note of a decision: one line that can be stored and shown.

    :raises argparse.ArgumentTypeError: if it has several lines or is too long
    """
    stripped = text.strip()
    if not stripped.isprintable() or len(stripped) > MAX_NOTE_LENGTH:
        raise argparse.ArgumentTypeError(f"a note is one line of at most {MAX_NOTE_LENGTH} characters")
    return stripped


# --- workers ---------------------------------------------------------------------------------------------------------

ARG_WORKER = Arg(("worker",), help="The worker's ID, or its name if one living worker alone has it", metavar="WORKER")
ARG_WORKER_STATE = Arg(
    ("--state",),
    type=words(_STATES),
    help=f"Only workers in these states, separated by commas: {', '.join(_STATES)}",
)
ARG_KIND = Arg(("--kind",), help="Only workers of this kind: celery, local, kubernetes, edge, or an executor's name")
ARG_NAME = Arg(("--name",), help="Only workers of this name, all their lives")
ARG_HOSTNAME = Arg(("--hostname",), help="Only on this host")
ARG_LABEL = Arg(("--label",), type=label, metavar="KEY=VALUE", help="Only workers with this label")
ARG_QUEUE = Arg(("--queue",), help="Only workers that take tasks from this queue")
ARG_AVAILABILITY = Arg(
    ("--availability",),
    choices=("available", "draining", "quarantined"),
    help="Only workers of which this was decided",
)
ARG_SEARCH = Arg(("--search",), help="Only workers with this in their name, host name or ID")
ARG_NOTE = Arg(("--note",), type=note, help="Why, for those who see it on the worker's page")

# --- attempts --------------------------------------------------------------------------------------------------------

ARG_DAG_ID = Arg(("--dag-id",), help="Only this Dag")
ARG_RUN_ID = Arg(("--run-id",), help="Only this Dag run")
ARG_TASK_ID = Arg(("--task-id",), help="Only this task")
ARG_MAP_INDEX = Arg(("--map-index",), type=number(-1), help="Only this mapped task; -1 is a task that is not mapped")
ARG_TRY_NUMBER = Arg(("--try-number",), type=number(0), help="Only tries of this number")
ARG_WORKER_ID = Arg(("--worker-id",), help="Only tries that the worker with this ID ran")
ARG_WORKER_NAME = Arg(("--worker-name",), help="Only tries that a worker of this name ran")
ARG_TRY_STATE = Arg(("--state",), type=try_state, help="Only tries in this state, as Airflow has it now")
ARG_STARTED_AT_GTE = Arg(
    ("--started-at-gte",), type=moment, metavar="TIME", help="Only tries that started at this time (UTC) or later"
)
ARG_STARTED_AT_LTE = Arg(
    ("--started-at-lte",), type=moment, metavar="TIME", help="Only tries that started at this time (UTC) or earlier"
)

# --- placements ------------------------------------------------------------------------------------------------------

ARG_PLACEMENT_STATE = Arg(
    ("--state",), choices=("waiting", "placed"), help="Only tries that wait for a worker, or that are placed on one"
)
ARG_PLACEMENT_WORKER_ID = Arg(("--worker-id",), help="Only tries that are placed on the worker with this ID")
ARG_REASON = Arg(("--reason",), type=reason, help="Only tries that wait or were placed for this reason, in a word")

# --- services --------------------------------------------------------------------------------------------------------

ARG_SERVICE_KIND = Arg(
    ("--kind",), choices=("scheduler", "triggerer", "dag_processor", "worker"), help="Only processes of this kind"
)
ARG_SERVICE_STATE = Arg(("--state",), choices=_STATES, help="Only processes in this state")

# --- number of rows --------------------------------------------------------------------------------------------------

ARG_LIMIT = Arg(
    ("--limit",), type=number(1), default=DEFAULT_LIMIT, help=f"Show at most so many (default: {DEFAULT_LIMIT})"
)
ARG_ALL = Arg(("--all",), action="store_true", help="Show all, however many")

# --- maintenance -----------------------------------------------------------------------------------------------------

ARG_EVERY = Arg(
    ("--every",),
    type=number(1),
    metavar="SECONDS",
    help="Go on until stopped, once in so many seconds: what the API server does by itself on Airflow 3",
)
ARG_RECONCILE_RUN_ID = Arg(("--run-id",), help="Only this Dag run (with --dag-id)")
ARG_SINCE = Arg(("--since",), type=moment, help="Only Dag runs that ended at or after this time (UTC)")
ARG_AFTER = Arg(("--after",), type=row_id, default=0, help="Go on after this row, as an interrupted run printed it")
ARG_OLDER_THAN = Arg(
    ("--older-than",),
    type=age,
    required=True,
    metavar="AGE",
    help="What is removed: older than so many days or weeks (90d, 12w), or than a time (2026-01-31)",
)
ARG_DRY_RUN = Arg(("--dry-run",), action="store_true", help="Say what would be removed, and remove nothing")
ARG_TO_REVISION = Arg(
    ("--to-revision",), required=True, help="The migration to go back to, or `base` to remove all tables"
)
ARG_SQL_ONLY = Arg(("--show-sql-only",), action="store_true", help="Print the SQL and change nothing")
ARG_YES = Arg(("-y", "--yes"), action="store_true", help="Do not ask")
