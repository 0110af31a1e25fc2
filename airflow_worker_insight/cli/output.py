"""Print rows in the formats of Airflow's ``--output``."""

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
"""Columns of a table that goes to a file or a pipe, as in Airflow's own commands."""


def is_structured(output: str) -> bool:
    """Return whether a format is for programs, which get REST objects; see :func:`to_rest`."""
    return output in _STRUCTURED


def to_rest(model: type[BaseModel], fields: Any) -> dict[str, Any]:
    """Return an object in the form of the REST API: numbers, and all times in one format.

    :param model: the response model
    :param fields: its fields, as a mapping or as an object with attributes
    """
    return model.model_validate(fields).model_dump(mode="json")


def show(rows: Sequence[Mapping[str, Any]], output: str) -> None:
    """Print rows in a format of ``--output``.

    Names come from anywhere, so the console's markup is off: it prints them literally.

    :param rows: the rows; for JSON and YAML their values must be of types that these formats have
    :param output: the format
    """
    is_yaml = output == "yaml"
    # Lines of YAML must not wrap at the width of the terminal.
    stream = answer()
    console = AirflowConsole(markup=False, emoji=False, highlight=False, soft_wrap=is_yaml, file=stream)
    # Airflow takes the width from sys.stdout, which is not the answer's stream here.
    console.width = os.get_terminal_size(stream.fileno()).columns if stream.isatty() else WIDTH
    # Airflow prints plain tables to sys.stdout instead of its console.
    with redirect_stdout(stream):
        if is_structured(output):
            # Airflow's print_as would turn numbers into strings.
            printer: Any = console.print_as_yaml if is_yaml else console.print_as_json
            printer([dict(row) for row in rows])
            return
        console.print_as([{name: _format_cell(value) for name, value in row.items()} for row in rows], output)


def warn_truncated(shown: int, total: int, noun: str) -> None:
    """Print to the standard error that there are more rows, if so."""
    if shown < total:
        available = f"{MAX_TOTAL} or more" if total >= MAX_TOTAL else total
        print(f"{shown} of {available} {noun} shown: use --limit or --all", file=sys.stderr)


def _format_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_format_cell(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_format_cell(item) for item in value)
    return str(value)
