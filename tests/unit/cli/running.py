"""Run the command in this process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from airflow_worker_insight import cli

if TYPE_CHECKING:
    from collections.abc import Callable

Printed = pytest.CaptureFixture[str]


def run(*arguments: str) -> None:
    """Run the command."""
    cli.main(arguments)


def refused(*arguments: str) -> str:
    """Run the command, which must fail, and return the line it ends with."""
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert isinstance(ended.value.code, str)  # Python prints it to stderr and exits with 1.
    return ended.value.code


def ends_with(code: int, *arguments: str) -> None:
    """Run the command, which must exit with ``code``."""
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == code


def printed(capsys: Printed, *arguments: str) -> str:
    """Run the command and return what it printed as its result."""
    capsys.readouterr()
    run(*arguments)
    return capsys.readouterr().out


def read(capsys: Printed, *arguments: str, output: str = "json") -> list[dict[str, Any]]:
    """Run a command that lists something and return its rows."""
    parse: Callable[[str], Any] = json.loads if output == "json" else yaml.safe_load
    rows: list[dict[str, Any]] = parse(printed(capsys, *arguments, "--output", output))
    return rows
