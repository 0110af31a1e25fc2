"""Heat map: workers by hour."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_worker_insight.ui import formatting
from airflow_worker_insight.ui.query_params import ANY, InsightParams, WorkersParams
from airflow_worker_insight.ui.views.parts import Option

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from airflow_worker_insight.domain.statistics import HeatMap as HeatMapData
    from airflow_worker_insight.domain.statistics import HeatMapCell, HeatMapRow

HOURS = 48
"""Hours that the map shows, the current one included."""

MAX_WORKERS = 50
"""Workers that the map shows."""

_MINUTE, _HOUR = 60, 3600


@dataclass(frozen=True, slots=True)
class Measure:
    """What the cells show."""

    text: str
    meaning: str
    levels: tuple[float, float, float, float]
    """Values from which a cell has the colour of level 1 to 4."""
    value: Callable[[HeatMapCell], float | None]
    format: Callable[[float], str]


def _excess(cell: HeatMapCell) -> float | None:
    return cell.failed + cell.lost - cell.expected_failed if cell.tries else None


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return "0s"
    if seconds < _MINUTE:
        return f"{seconds:.0f}s"
    return f"{seconds / _MINUTE:.0f}m" if seconds < _HOUR else f"{seconds / _HOUR:.0f}h"


MEASURES = {
    "": Measure(
        "Failures above expectation",
        "Failed and lost tries beyond those that the usual rates of the same tasks lead to expect.",
        (0.5, 2, 5, 10),
        _excess,
        lambda value: str(math.floor(value + 0.5)) if value >= 0.5 else "·",  # noqa: PLR2004 - rounds to 1
    ),
    "utilization": Measure(
        "Utilization",
        "Share of its slots that was busy, in percent.",
        (0.01, 0.25, 0.5, 0.75),
        lambda cell: cell.utilization,
        lambda value: f"{100 * value:.0f}",
    ),
    "queue": Measure(
        "Queue delay",
        "Mean time from queued to started, in seconds (s), minutes (m) or hours (h).",
        (1, 10, 60, 300),
        lambda cell: cell.mean_queue_seconds,
        _seconds,
    ),
}
"""What the map can show, by the value of ``measure``."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One worker in one hour; ``level`` is 0 to 4."""

    text: str
    level: int


@dataclass(frozen=True, slots=True)
class Line:
    """One worker."""

    name: str
    hostname: str
    params: WorkersParams
    """Lists the worker."""
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Workers by hour, with a switch for what is shown."""

    key: str
    meaning: str
    options: tuple[tuple[Option, InsightParams], ...]
    hours: tuple[datetime, ...]
    lines: tuple[Line, ...]
    more: str


def build_heat_map(params: InsightParams, data: HeatMapData, *, now: datetime) -> HeatMap:
    """Return the map of the latest hours.

    :param data: the workers to show, in the order to show them
    """
    last = now.replace(minute=0, second=0, microsecond=0)
    hours = tuple(last - timedelta(hours=back) for back in range(HOURS - 1, -1, -1))
    measure = MEASURES[params.measure]
    return HeatMap(
        key=params.measure or "failures",
        meaning=measure.meaning,
        options=tuple(
            (Option(key, each.text, key == params.measure, each.meaning), params.changed(measure=key))
            for key, each in MEASURES.items()
        ),
        hours=hours,
        lines=tuple(_line(row, hours, measure) for row in data.rows),
        more=f"And {formatting.count(data.others, 'worker', 'workers')} more." if data.others else "",
    )


def _line(row: HeatMapRow, hours: tuple[datetime, ...], measure: Measure) -> Line:
    return Line(
        name=row.name or row.hostname or "Unknown node",
        hostname=row.hostname,
        params=WorkersParams(search=row.name or row.hostname, state=ANY, seen=ANY),
        cells=tuple(_cell(row.cells.get(hour), measure) for hour in hours),
    )


def _cell(cell: HeatMapCell | None, measure: Measure) -> Cell:
    value = None if cell is None else measure.value(cell)
    if value is None:
        return Cell("", 0)
    return Cell(measure.format(value), sum(value >= level for level in measure.levels))
