"""What a worker ran and when: its tries in lanes, side by side as they ran, and what became of them hour by hour."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from airflow_worker_insight.web import words
from airflow_worker_insight.web.address import HOURS
from airflow_worker_insight.web.view.parts import Option

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from airflow_worker_insight.store.reading import Attempt
    from airflow_worker_insight.store.workers import Outcomes, WorkerRow
    from airflow_worker_insight.web.address import WorkerAddress

MAX_TRIES = 2000
"""More tries than these are not drawn: nobody could tell them apart, and the page would be slow."""

MAX_LANES = 40
"""Tries that run beside more than these share the last lane."""

TICKS = 4
"""Into how many parts the times below divide a drawing."""

CHART_HEIGHT = 96
"""Of the hourly bars, in pixels."""

LEAST_WIDTH = 0.25
"""Of a bar, in percent: a try of a second within a week would vanish otherwise."""

LEAST_HEIGHT = 3
"""Of a piece of an hourly bar, in pixels: one failed try among thousands is what the drawing is there for."""

_HOUR = timedelta(hours=1)
_LANE_HEIGHTS = ((8, 18), (20, 12), (MAX_LANES, 7))
_FIRST, _LAST = ("success", "skipped"), ("upstream_failed", "up_for_retry", "failed")


@dataclass(frozen=True, slots=True)
class Bar:
    """A try's stay on the worker; ``x`` and ``width`` are percentages, ready to print, ``y`` is in pixels."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    x: str
    width: str
    y: int
    state: str
    title: str
    running: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """The tries of one hour that ended in the same state, in pixels from the top."""

    state: str
    y: int
    height: int


@dataclass(frozen=True, slots=True)
class HourBar:
    """The tries that started within one hour; ``address`` shows that hour alone."""

    x: str
    width: str
    pieces: tuple[Piece, ...]
    title: str
    address: WorkerAddress


@dataclass(frozen=True, slots=True)
class Legend:
    """A state and how many tries are in it."""

    state: str
    text: str
    count: str


@dataclass(frozen=True, slots=True)
class Chart:
    """What became of the tries, hour by hour."""

    bars: tuple[HourBar, ...]
    legend: tuple[Legend, ...]
    ticks: tuple[words.Moment, ...]
    highest: str
    label: str
    hours: int
    height: int = CHART_HEIGHT


@dataclass(frozen=True, slots=True)
class Timeline:
    """The tries of some hours in lanes, and the ways to other hours."""

    bars: tuple[Bar, ...]
    lanes: int
    lane_height: int
    ticks: tuple[words.Moment, ...]
    ends_now: bool
    label: str
    notes: tuple[str, ...]
    spans: tuple[tuple[Option, WorkerAddress], ...]
    earlier: WorkerAddress
    later: WorkerAddress | None
    latest: WorkerAddress | None

    @property
    def height(self) -> int:
        """Of the whole drawing, in pixels."""
        return self.lanes * self.lane_height


def window(address: WorkerAddress, now: datetime) -> tuple[datetime, datetime]:
    """Return the beginning and the end of the hours that an address shows."""
    end = min(address.until or now, now)
    return end - address.hours * _HOUR, end


def chart_window(address: WorkerAddress, now: datetime) -> tuple[datetime, datetime]:
    """Return the same for the hourly bars: whole hours, at least a day of them."""
    _, end = window(address, now)
    last = (end - timedelta.resolution).replace(minute=0, second=0, microsecond=0)
    return last - (max(24, address.hours) - 1) * _HOUR, end


# --- lanes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Stay:
    attempt: Attempt
    start: datetime
    end: datetime
    is_running: bool


def build_timeline(
    row: WorkerRow, attempts: Sequence[Attempt], address: WorkerAddress, *, is_cut: bool, now: datetime
) -> Timeline:
    """Return the tries of a worker in lanes.

    :param attempts: those that the reader may see and that ran within the hours of the address, in any order
    :param is_cut: whether there are more, earlier ones
    """
    start, end = window(address, now)
    stays = sorted((_stay(row, one, now) for one in attempts), key=lambda stay: (stay.start, stay.end))
    stays = [stay for stay in stays if stay.end >= start and stay.start <= end]
    places = _places(stays)
    lanes = min(MAX_LANES, max(places, default=0) + 1)
    height = next(height for most, height in _LANE_HEIGHTS if lanes <= most)
    notes = []
    if is_cut:
        notes.append(f"Only the latest {MAX_TRIES:,} tries are drawn: choose fewer hours to see earlier ones.")
    if max(places, default=0) >= MAX_LANES:
        notes.append(f"More than {MAX_LANES} tries ran side by side: the last lane holds all others.")
    step = address.hours * _HOUR
    is_latest = address.until is None or address.until >= now
    later = None if is_latest else address.changed(until=min(end + step, now))
    return Timeline(
        bars=tuple(
            _bar(stay, min(place, MAX_LANES - 1) * height, start, end)
            for stay, place in zip(stays, places, strict=True)
        ),
        lanes=lanes,
        lane_height=height,
        ticks=_ticks(start, end),
        ends_now=is_latest,
        label=f"{words.count(len(stays), 'try', 'tries')}, at most {lanes} side by side" if stays else "No try",
        notes=tuple(notes),
        spans=tuple(
            (Option(str(hours), _span(hours), hours == address.hours), address.changed(hours=hours)) for hours in HOURS
        ),
        earlier=address.changed(until=start),
        later=later if later is None or later.until != now else address.changed(until=None),
        latest=None if is_latest else address.changed(until=None),
    )


def _span(hours: int) -> str:
    return f"{hours} h" if hours <= 24 else f"{hours // 24} d"  # noqa: PLR2004


def _stay(row: WorkerRow, one: Attempt, now: datetime) -> _Stay:
    """Return when a try was on the worker, as far as is known: it may have gone on elsewhere."""
    mine = next((worker for worker in one.workers if worker.worker_id == row.worker_id), None)
    started = one.started_at or now
    start = (mine and mine.first_started_at) or started
    last_process = (mine and mine.last_started_at) or start
    newest = max((worker.last_started_at or started for worker in one.workers), default=start)
    is_last = last_process >= newest
    is_running = is_last and one.ended_at is None and one.state in ("running", "restarting") and row.ended_at is None
    if is_running:
        end = now
    elif is_last:
        # What ran when the worker was last seen ended there with it.
        end = one.ended_at or (row.ended_at if one.state == "running" else None) or last_process
    else:
        end = last_process
    return _Stay(one, start, max(start, end), is_running)


def _places(stays: Iterable[_Stay]) -> list[int]:
    """Return the lane of each stay, the first one that is free; they come in the order in which they began."""
    free: list[int] = []
    taken: list[tuple[datetime, int]] = []
    places = []
    for stay in stays:
        while taken and taken[0][0] <= stay.start:
            heappush(free, heappop(taken)[1])
        place = heappop(free) if free else len(taken)
        heappush(taken, (stay.end, place))
        places.append(place)
    return places


def _bar(stay: _Stay, y: int, start: datetime, end: datetime) -> Bar:
    one = stay.attempt
    length = end - start
    x = max(0.0, (stay.start - start) / length * 100)
    width = max(min(100.0, (stay.end - start) / length * 100) - x, LEAST_WIDTH)
    x = min(x, 100 - LEAST_WIDTH)
    task = one.task_id if one.map_index < 0 else f"{one.task_id} [{one.map_index}]"
    lasted = words.duration((stay.end - stay.start).total_seconds())
    return Bar(
        dag_id=one.dag_id,
        run_id=one.run_id,
        task_id=one.task_id,
        map_index=one.map_index,
        try_number=one.try_number,
        x=f"{x:.2f}%",
        width=f"{width:.2f}%",
        y=y,
        state=one.state or "no_status",
        title=f"{one.dag_id}, {task}, try {one.try_number}: {words.state(one.state)}; "
        f"from {stay.start:%H:%M:%S} UTC, {lasted}{' so far' if stay.is_running else ''}",
        running=stay.is_running,
    )


def _ticks(start: datetime, end: datetime) -> tuple[words.Moment, ...]:
    moments = (words.moment(start + (end - start) * part / TICKS) for part in range(TICKS + 1))
    return tuple(moment for moment in moments if moment is not None)


# --- hours ----------------------------------------------------------------------------------------------------------


def build_chart(outcomes: Sequence[Outcomes], address: WorkerAddress, *, now: datetime) -> Chart | None:
    """Return what became of the tries, hour by hour, or ``None`` where there are none.

    :param outcomes: the tries that the reader may see, those of ``chart_window``
    """
    start, _ = chart_window(address, now)
    hours = max(24, address.hours)
    outcomes = [one for one in outcomes if start <= one.hour < start + hours * _HOUR]
    totals: dict[str, int] = {}
    for hour in outcomes:
        for state, count in hour.states.items():
            totals[state or "no_status"] = totals.get(state or "no_status", 0) + count
    if not totals:
        return None
    states = sorted(totals, key=_rank)
    highest = max(sum(hour.states.values()) for hour in outcomes)
    return Chart(
        bars=tuple(_hour_bar(hour, states, highest, start, hours, address) for hour in outcomes),
        legend=tuple(Legend(state, words.state(state), f"{totals[state]:,}") for state in states),
        ticks=_ticks(start, start + hours * _HOUR),
        highest=f"{highest:,}",
        label=f"{words.count(sum(totals.values()), 'try', 'tries')}: "
        + ", ".join(f"{totals[state]:,} {words.state(state).lower()}" for state in states),
        hours=hours,
    )


def _rank(state: str) -> tuple[int, str]:
    """Put what went well at the bottom and what failed on top."""
    if state in _FIRST:
        return _FIRST.index(state), ""
    return (len(_FIRST) + 1 + _LAST.index(state), "") if state in _LAST else (len(_FIRST), state)


def _hour_bar(
    hour: Outcomes, states: Sequence[str], highest: int, start: datetime, hours: int, address: WorkerAddress
) -> HourBar:
    found = {state or "no_status": count for state, count in hour.states.items()}
    room = CHART_HEIGHT - 4
    heights = {state: max(LEAST_HEIGHT, round(found[state] / highest * room)) for state in states if found.get(state)}
    # What was made taller to be seen is taken from the tallest: no bar may grow out of the drawing.
    heights[max(heights, key=heights.__getitem__)] -= max(0, sum(heights.values()) - room)
    pieces = []
    bottom = CHART_HEIGHT
    for state, height in heights.items():
        bottom -= height
        pieces.append(Piece(state, bottom, height))
    width = 100 / hours
    x = (hour.hour - start) / _HOUR * width
    what = ", ".join(f"{found[state]:,} {words.state(state).lower()}" for state in states if found.get(state))
    return HourBar(
        x=f"{x + width * 0.1:.2f}%",
        width=f"{width * 0.8:.2f}%",
        pieces=tuple(pieces),
        title=f"{hour.hour:%Y-%m-%d %H:%M} to {hour.hour + _HOUR:%H:%M} UTC: {what}",
        address=address.changed(hours=1, until=hour.hour + _HOUR),
    )
