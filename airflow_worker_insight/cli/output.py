"""Print rows with Airflow's own ``--output``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from airflow.cli.simple_table import AirflowConsole

from airflow_worker_insight.store.reading import MAX_TOTAL

_STRUCTURED = ("json", "yaml")


def show(rows: Sequence[Mapping[str, Any]], output: str) -> None:
    """Print rows as ``output`` says.

    What Airflow's console would read as its own markup is printed as it is: names come from anywhere.
    """
    is_yaml = output == "yaml"
    # A line of YAML must not be broken at the edge of a screen.
    console = AirflowConsole(markup=False, emoji=False, highlight=False, soft_wrap=is_yaml)
    as_printed = _plain if output in _STRUCTURED else _in_a_cell
    console.print_as([{name: as_printed(value) for name, value in row.items()} for row in rows], output)


def say_how_many(shown: int, total: int, what: str) -> None:
    """Say, beside the result, that there is more."""
    if shown < total:
        of = f"{MAX_TOTAL} or more" if total >= MAX_TOTAL else total
        print(f"{shown} of {of} {what} shown: use --limit or --all", file=sys.stderr)


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _in_a_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_in_a_cell(text)}" for key, text in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_in_a_cell(part) for part in value)
    return str(value)
