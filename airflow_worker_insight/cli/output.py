"""Print rows with Airflow's own ``--output``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow.cli.simple_table import AirflowConsole

from airflow_worker_insight.cli.process import answer
from airflow_worker_insight.domain.limits import MAX_TOTAL

if TYPE_CHECKING:
    from pydantic import BaseModel

_STRUCTURED = ("json", "yaml")

WIDTH = 200
"""Columns of a table that goes into a file or another program: as many as Airflow's own commands print."""


def is_structured(output: str) -> bool:
    """Return whether a program reads it: then it gets the objects of the REST API, see :func:`like_rest`."""
    return output in _STRUCTURED


def like_rest(model: type[BaseModel], fields: Any) -> dict[str, Any]:
    """Return an object as the REST API has it: numbers, and all times in one form."""
    return model.model_validate(fields).model_dump(mode="json")


def show(rows: Sequence[Mapping[str, Any]], output: str) -> None:
    """Print rows as ``output`` says; for JSON and YAML they are of what these know.

    What Airflow's console would read as its own markup is printed as it is: names come from anywhere.
    """
    is_yaml = output == "yaml"
    # A line of YAML must not be broken at the edge of a screen.
    stream = answer()
    console = AirflowConsole(markup=False, emoji=False, highlight=False, soft_wrap=is_yaml, file=stream)
    # Airflow asks sys.stdout how wide it is, which is another stream while a command runs.
    console.width = os.get_terminal_size(stream.fileno()).columns if stream.isatty() else WIDTH
    # Airflow prints a plain table past its console.
    with redirect_stdout(stream):
        if is_structured(output):
            # Airflow's print_as would make texts of numbers.
            printer: Any = console.print_as_yaml if is_yaml else console.print_as_json
            printer([dict(row) for row in rows])
            return
        console.print_as([{name: _in_a_cell(value) for name, value in row.items()} for row in rows], output)


def say_how_many(shown: int, total: int, what: str) -> None:
    """Say, beside the result, that there is more."""
    if shown < total:
        of = f"{MAX_TOTAL} or more" if total >= MAX_TOTAL else total
        print(f"{shown} of {of} {what} shown: use --limit or --all", file=sys.stderr)


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
