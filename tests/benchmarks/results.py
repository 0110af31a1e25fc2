"""The result of a benchmark: tables for people, JSON for programs, and targets."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from rich.table import Table

from tests.support.environments import BUILD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

FOLDER = BUILD / "bench"


@dataclass(frozen=True)
class Summary:
    """Median, percentile and extremes of a series."""

    count: int
    median: float
    p95: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Summarise a series."""
        ordered = sorted(values)
        return cls(
            count=len(ordered),
            median=statistics.median(ordered),
            p95=percentile(ordered, 95),
            least=ordered[0],
            most=ordered[-1],
        )

    def as_dict(self) -> dict[str, float]:
        """Return the same as JSON takes it."""
        return {
            "count": self.count,
            "median": round(self.median, 3),
            "p95": round(self.p95, 3),
            "min": round(self.least, 3),
            "max": round(self.most, 3),
        }


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return the smallest of the sorted values that so many percent of them do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True)
class Target:
    """A promised number and the measured one."""

    what: str
    measured: float
    """Infinite where nothing could be measured."""
    at_most: float
    unit: str

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.measured <= self.at_most

    def as_dict(self) -> dict[str, Any]:
        """Return the same as JSON takes it."""
        return {
            "what": self.what,
            "measured": round(self.measured, 3) if math.isfinite(self.measured) else None,
            "at_most": self.at_most,
            "unit": self.unit,
            "met": self.met,
        }


@dataclass
class Grid:
    """A table as it is printed."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        """Add a row; numbers are written with two decimals."""
        self.rows.append([f"{cell:,.2f}" if isinstance(cell, float) else str(cell) for cell in cells])

    def add_summary(self, what: str, summary: Summary, *more: object) -> None:
        """Add a row for a series."""
        self.add(what, str(summary.count), summary.median, summary.p95, summary.least, summary.most, *more)


SERIES = ("", "n", "median", "p95", "min", "max")


@dataclass
class Result:
    """What one benchmark found."""

    name: str
    grids: list[Grid]
    targets: list[Target]
    data: dict[str, Any]
    versions: dict[str, str]


def machine() -> dict[str, Any]:
    """Describe the machine, without its name."""
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        system = platform.system()
    return {
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "os": system,
        "kernel": platform.release(),
        "architecture": platform.machine(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def command() -> str:
    """Return the command line that repeats this."""
    return shlex.join(["python", "-m", "tests.benchmarks", *sys.argv[1:]])


def revision() -> str:
    """Return the commit that is measured, with a plus sign where files have changed since."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def write(result: Result, *, trial: str, load_before: float, seconds: float) -> Path:
    """Write a result as JSON and return the file.

    :param trial: what is added to its name where other sizes than the promised ones were measured
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{result.name}{trial}.json"
    found = {
        "benchmark": result.name,
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command(),
        "commit": revision(),
        "machine": {**machine(), "load_before": round(load_before, 2)},
        "versions": result.versions,
        "seconds": round(seconds, 1),
        "targets": [target.as_dict() for target in result.targets],
        "data": result.data,
    }
    path.write_text(json.dumps(found, indent=2) + "\n")
    return path


def show(console: Console, result: Result) -> None:
    """Print the tables of a result."""
    for grid in result.grids:
        table = Table(title=grid.title, title_justify="left", title_style="bold", min_width=70)
        for number, column in enumerate(grid.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in grid.rows:
            table.add_row(*row)
        console.print(table)


def show_targets(console: Console, results: Sequence[Result]) -> None:
    """Print every target with what was measured."""
    table = Table(title="Targets", title_justify="left", title_style="bold", min_width=70)
    for number, column in enumerate(("", "measured", "at most", "")):
        table.add_column(column, justify="right" if number in {1, 2} else "left")
    for result in results:
        for target in result.targets:
            word = "[green]met[/]" if target.met else "[bold red]missed[/]"
            table.add_row(target.what, f"{target.measured:,.2f} {target.unit}", f"{target.at_most:g}", word)
    console.print(table)
