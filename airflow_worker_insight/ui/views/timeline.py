"""What a worker ran and when: its tries in lanes, side by side as they ran, and what became of them hour by hour."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.states import LOST, OFFLINE, UNAFFECTED_STATES
from airflow_worker_insight.ui import formatting
from airflow_worker_insight.ui.query_params import HOURS, AttemptsAddress
from airflow_worker_insight.ui.views.parts import Option

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from airflow_worker_insight.domain.keys import TryKey
    from airflow_worker_insight.domain.workers import WorkerRow
    from airflow_worker_insight.store.attempts.by_worker import Outcomes, Stay
    from airflow_worker_insight.ui.query_params import WorkerAddress

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

LEAST_SHARE = LEAST_WIDTH / 100

LEAST_HEIGHT = 3
"""Of a piece of an hourly bar, in pixels: one failed try among thousands is what the drawing is there for."""

DAY = 24
"""Hours that the hourly bars show at the least, and a timeline at the most where nobody asked for more."""

_HOUR = timedelta(hours=1)
_LANE_HEIGHTS = ((8, 18), (20, 12), (MAX_LANES, 7))
_FIRST, _LAST = ("success", "skipped"), ("upstream_failed", "up_for_retry", "failed")


@dataclass(frozen=True, slots=True)
class Bar:
    """A try's stay on the worker, or several that nobody could tell apart.

    ``x`` and ``width`` are percentages, ready to print, ``y`` is in pixels.
    """

    key: TryKey | None
    """The one try; ``None`` for several."""
    address: AttemptsAddress | None
    """Lists the several."""
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
    ticks: tuple[formatting.Moment, ...]
    highest: str
    label: str
    hours: int
    height: int = CHART_HEIGHT


@dataclass(frozen=True, slots=True)
class End:
    """The worker's end: where it is in the drawing, ready to print, and what it was."""

    x: str
    title: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """The tries of some hours in lanes, and the ways to other hours."""

    bars: tuple[Bar, ...]
    end: End | None
    lanes: int
    lane_height: int
    ticks: tuple[formatting.Moment, ...]
    ends_now: bool
    label: str
    notes: tuple[str, ...]
    lengths: tuple[tuple[Option, WorkerAddress], ...]
    earlier: WorkerAddress
    later: WorkerAddress | None
    latest: WorkerAddress | None
    """Where the timeline begins to be looked at: now, or the end of a worker that has ended."""
    latest_text: str

    @property
    def height(self) -> int:
        """Of the whole drawing, in pixels."""
        return self.lanes * self.lane_height


def window(address: WorkerAddress, row: WorkerRow, now: datetime) -> tuple[datetime, datetime]:
    """Return the beginning and the end of the hours that an address shows."""
    end = min(address.until or _latest(row, now), now)
    return end - _hours(address, row, now) * _HOUR, end


def chart_window(address: WorkerAddress, row: WorkerRow, now: datetime) -> tuple[datetime, datetime]:
    """Return the same for the hourly bars: whole hours, at least a day of them."""
    _, end = window(address, row, now)
    last = (end - timedelta.resolution).replace(minute=0, second=0, microsecond=0)
    return last - (max(DAY, _hours(address, row, now)) - 1) * _HOUR, end


def _hours(address: WorkerAddress, row: WorkerRow, now: datetime) -> int:
    """Return how many hours are drawn: without a wish as few as hold the worker's life, and a day at the most."""
    if address.hours is not None:
        return address.hours
    began = row.started_at or row.registered_at
    # A host stands for workers that came and went.
    if address.until is not None or row.host_only or began > _latest(row, now):
        return DAY
    return next((hours for hours in HOURS if hours >= DAY or _latest(row, now) - began <= hours * _HOUR), DAY)


def _latest(row: WorkerRow, now: datetime) -> datetime:
    """Return until when there is anything to see: now, or the end of the hour in which the worker ended."""
    gone = row.last_seen_at if row.host_only else row.ended_at
    if gone is None:
        return now
    return min(now, gone.replace(minute=0, second=0, microsecond=0) + _HOUR)


# --- lanes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Span:
    """What is drawn of a stay, or of several that follow one another."""

    stays: tuple[Stay, ...]
    start: datetime
    end: datetime
    is_running: bool
    is_cut: bool = False
    """Whether it ends with the worker, which was lost, and not where Airflow noticed."""
    lane: int = 0

    @property
    def state(self) -> str:
        return self.stays[0].state or "no_status"


def build_timeline(
    row: WorkerRow, stays: Sequence[Stay], address: WorkerAddress, *, is_cut: bool, now: datetime
) -> Timeline:
    """Return the tries of a worker in lanes.

    :param stays: those that the reader may see and that were on it within the hours of the address, in any order
    :param is_cut: whether there are more, earlier ones
    """
    start, end = window(address, row, now)
    spans = sorted((_span(row, one, now) for one in stays), key=lambda span: (span.start, span.end))
    spans = [span for span in spans if span.end >= start and span.start <= end]
    places = _places(spans)
    lanes = min(MAX_LANES, max(places, default=0) + 1)
    height = next(height for most, height in _LANE_HEIGHTS if lanes <= most)
    notes = []
    if is_cut:
        notes.append(f"Only the latest {MAX_TRIES:,} tries are drawn: choose fewer hours to see earlier ones.")
    if max(places, default=0) >= MAX_LANES:
        notes.append(f"More than {MAX_LANES} tries ran side by side: the last lane holds all others.")
    in_lanes = [replace(span, lane=min(place, MAX_LANES - 1)) for span, place in zip(spans, places, strict=True)]
    hours = _hours(address, row, now)
    step = hours * _HOUR
    latest = _latest(row, now)
    is_latest = address.until is None or address.until >= latest
    later = None if is_latest else min(end + step, latest)
    return Timeline(
        bars=tuple(_bar(span, row, height, start, end) for span in _together(in_lanes, (end - start) * LEAST_SHARE)),
        end=_end(row, start, end),
        lanes=lanes,
        lane_height=height,
        ticks=_ticks(start, end),
        ends_now=end == now,
        label=f"{formatting.count(len(spans), 'try', 'tries')}, at most {lanes} side by side" if spans else "No try",
        notes=tuple(notes),
        lengths=tuple(
            (Option(str(length), _length(length), length == hours), address.changed(hours=length)) for length in HOURS
        ),
        earlier=address.changed(hours=hours, until=start),
        later=None if later is None else address.changed(hours=hours, until=None if later == latest else later),
        latest=None if is_latest else address.changed(until=None),
        latest_text="Now" if latest == now else "Its end",
    )


def _end(row: WorkerRow, start: datetime, end: datetime) -> End | None:
    if row.state not in (LOST, OFFLINE) or row.ended_at is None or not start <= row.ended_at <= end:
        return None
    return End(
        f"{(row.ended_at - start) / (end - start):.2%}",
        f"{formatting.worker_state(row.state)} at {row.ended_at:%H:%M:%S} UTC",
    )


def _length(hours: int) -> str:
    return f"{hours} h" if hours <= DAY else f"{hours // DAY} d"


def _span(row: WorkerRow, one: Stay, now: datetime) -> _Span:
    """Return when a try was on the worker, as far as is known: it may have gone on elsewhere."""
    start = one.began_at or now
    last_process = one.last_process_at or start
    is_open = not one.went_on and one.ended_at is None and one.state in ("running", "restarting")
    # One that was told to stop may still let its tries end.
    is_running = is_open and (row.ended_at is None or row.state == OFFLINE)
    is_cut = False
    if is_running:
        end = now
    elif one.went_on:
        end = last_process
    else:
        end = one.ended_at or (row.ended_at if is_open else None) or last_process
        # What ran when the worker was last seen ended there with it, whenever Airflow noticed.
        if row.state == LOST and row.ended_at is not None and one.state not in UNAFFECTED_STATES:
            is_cut = is_open or end > row.ended_at
            end = min(end, row.ended_at)
    return _Span((one,), start, max(start, end), is_running, is_cut)


def _places(spans: Iterable[_Span]) -> list[int]:
    """Return the lane of each span, the first one that is free; they come in the order in which they began."""
    free: list[int] = []
    taken: list[tuple[datetime, int]] = []
    places = []
    for span in spans:
        while taken and taken[0][0] <= span.start:
            heappush(free, heappop(taken)[1])
        place = heappop(free) if free else len(taken)
        heappush(taken, (span.end, place))
        places.append(place)
    return places


def _together(spans: Iterable[_Span], least: timedelta) -> list[_Span]:
    """Draw as one what follows one another in a lane in the same state and is too short to be told apart.

    :param spans: in the order in which they began
    :param least: how long the shortest span is drawn at the least
    :return: those that ended badly at the end, because what is drawn last lies on top
    """
    groups: list[list[_Span]] = []
    # Until when each of them is drawn, and which one is the latest of its lane and state.
    reach: list[datetime] = []
    latest: dict[tuple[int, str, bool], int] = {}
    for span in spans:
        key = (span.lane, span.state, span.is_cut)
        place = latest.get(key, -1)
        is_short = span.end - span.start < least and not span.is_running
        until = max(span.end, span.start + least)
        if place >= 0 and is_short and span.start < reach[place]:
            groups[place].append(span)
            reach[place] = max(reach[place], until)
        else:
            latest[key] = len(groups)
            groups.append([span])
            reach.append(until)
    return sorted(map(_fused, groups), key=lambda span: span.state in _LAST)


def _fused(spans: Sequence[_Span]) -> _Span:
    if len(spans) == 1:
        return spans[0]
    stays = tuple(stay for span in spans for stay in span.stays)
    return replace(spans[0], stays=stays, end=max(span.end for span in spans))


def _bar(span: _Span, row: WorkerRow, height: int, start: datetime, end: datetime) -> Bar:
    length = end - start
    x = max(0.0, (span.start - start) / length * 100)
    width = max(min(100.0, (span.end - start) / length * 100) - x, LEAST_WIDTH)
    x = min(x, 100 - LEAST_WIDTH)
    lasted = formatting.duration((span.end - span.start).total_seconds())
    when = f"from {span.start:%H:%M:%S} UTC, {lasted}{' so far' if span.is_running else ''}"
    if span.is_cut:
        when += ", until the worker was lost"
        noticed = span.stays[0].ended_at
        when += f"; Airflow noticed at {noticed:%H:%M:%S} UTC" if len(span.stays) == 1 and noticed else ""
    state = formatting.state(span.stays[0].state)
    key = address = None
    if len(span.stays) == 1:
        key = span.stays[0].key
        task = key.task_id if key.map_index < 0 else f"{key.task_id} [{key.map_index}]"
        title = f"{key.dag_id}, {task}, try {key.try_number}: {state}; {when}"
    else:
        address = AttemptsAddress(
            worker=row.worker_id,
            state=span.stays[0].state or "",
            since=span.start.replace(microsecond=0),
            until=max(one.began_at for one in span.stays if one.began_at is not None) + timedelta(seconds=1),
        )
        title = f"{len(span.stays):,} tries: {state}; {when}"
    return Bar(
        key=key,
        address=address,
        x=f"{x:.2f}%",
        width=f"{width:.2f}%",
        y=span.lane * height,
        state=span.state,
        title=title,
        running=span.is_running,
    )


def _ticks(start: datetime, end: datetime) -> tuple[formatting.Moment, ...]:
    moments = (formatting.moment(start + (end - start) * part / TICKS) for part in range(TICKS + 1))
    return tuple(moment for moment in moments if moment is not None)


# --- hours ----------------------------------------------------------------------------------------------------------


def build_chart(row: WorkerRow, outcomes: Sequence[Outcomes], address: WorkerAddress, *, now: datetime) -> Chart | None:
    """Return what became of the tries, hour by hour, or ``None`` where there are none.

    :param outcomes: the tries that the reader may see, those of ``chart_window``
    """
    start, _ = chart_window(address, row, now)
    hours = max(DAY, _hours(address, row, now))
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
        legend=tuple(Legend(state, formatting.state(state), f"{totals[state]:,}") for state in states),
        ticks=_ticks(start, start + hours * _HOUR),
        highest=f"{highest:,}",
        label=f"{formatting.count(sum(totals.values()), 'try', 'tries')}: "
        + ", ".join(f"{totals[state]:,} {formatting.state(state).lower()}" for state in states),
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
    what = ", ".join(f"{found[state]:,} {formatting.state(state).lower()}" for state in states if found.get(state))
    return HourBar(
        x=f"{x + width * 0.1:.2f}%",
        width=f"{width * 0.8:.2f}%",
        pieces=tuple(pieces),
        title=f"{hour.hour:%Y-%m-%d %H:%M} to {hour.hour + _HOUR:%H:%M} UTC: {what}",
        address=address.changed(hours=1, until=hour.hour + _HOUR),
    )
