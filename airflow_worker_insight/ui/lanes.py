"""Draw tries as bars in lanes: what the strip of the Worker panel and the timeline of a worker share.

Pure functions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Generic, TypeVar

from airflow_worker_insight.domain.states import UNAFFECTED_STATES
from airflow_worker_insight.ui import formatting

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence
    from datetime import datetime, timedelta

TICKS = 4
"""Number of parts into which the time labels divide a drawing."""

Try = TypeVar("Try")
Key = TypeVar("Key", bound="Hashable")


@dataclass(frozen=True, slots=True)
class Span(Generic[Try]):
    """Drawn part of one try, or of several consecutive ones."""

    tries: tuple[Try, ...]
    start: datetime
    end: datetime
    is_running: bool = False
    is_cut: bool = False
    """Whether the span ends when its worker was lost, which Airflow detects later."""

    @property
    def when(self) -> str:
        """Start and duration in words."""
        duration = formatting.duration((self.end - self.start).total_seconds())
        ending = " so far" if self.is_running else ", until the worker was lost" if self.is_cut else ""
        return f"from {self.start:%H:%M:%S} UTC, {duration}{ending}"


def ends_with_worker(end: datetime, lost_at: datetime | None, state: str | None) -> bool:
    """Return whether a try that Airflow ended at ``end`` ended when its worker was lost."""
    return lost_at is not None and lost_at < end and state not in UNAFFECTED_STATES


def bar(start: float, end: float, *, min_width: float) -> tuple[float, float]:
    """Return the position and width of a bar inside a drawing, in percent.

    :param start: the start, in percent of the drawing's width; it may be outside
    """
    x = max(0.0, start)
    width = max(min(100.0, end) - x, min_width)
    return min(x, 100 - min_width), width


def ticks(start: datetime, end: datetime) -> tuple[datetime, ...]:
    """Return the times that label the axis of a drawing."""
    return tuple(start + (end - start) * part / TICKS for part in range(TICKS + 1))


def assign_lanes(spans: Iterable[Span[Try]]) -> list[int]:
    """Return the lane of each span: the first free one.

    :param spans: in the order in which they start
    """
    free: list[int] = []
    taken: list[tuple[datetime, int]] = []
    lanes = []
    for span in spans:
        while taken and taken[0][0] <= span.start:
            heappush(free, heappop(taken)[1])
        lane = heappop(free) if free else len(taken)
        heappush(taken, (span.end, lane))
        lanes.append(lane)
    return lanes


def merge_short(spans: Iterable[tuple[Key, Span[Try]]], min_duration: timedelta) -> Iterable[tuple[Key, Span[Try]]]:
    """Merge consecutive spans of the same key that are too short to be told apart.

    :param spans: the spans with their keys, in the order in which they start
    :param min_duration: the minimum duration that a span is drawn with
    """
    groups: list[tuple[Key, list[Span[Try]]]] = []
    # Per group: until when it is drawn. Per key: the latest group.
    drawn_until: list[datetime] = []
    latest: dict[Key, int] = {}
    for key, span in spans:
        index = latest.get(key, -1)
        is_short = span.end - span.start < min_duration and not span.is_running
        until = max(span.end, span.start + min_duration)
        if index >= 0 and is_short and span.start < drawn_until[index]:
            groups[index][1].append(span)
            drawn_until[index] = max(drawn_until[index], until)
        else:
            latest[key] = len(groups)
            groups.append((key, [span]))
            drawn_until.append(until)
    return ((key, _merged(group)) for key, group in groups)


def _merged(spans: Sequence[Span[Try]]) -> Span[Try]:
    tries = tuple(drawn for span in spans for drawn in span.tries)
    return replace(spans[0], tries=tries, end=max(span.end for span in spans))
