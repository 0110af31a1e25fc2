"""Timeline of a worker's tries in parallel lanes, and a chart of their outcomes per hour."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.states import UNAFFECTED_STATES, WorkerState
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
"""Maximum number of tries drawn: more would be indistinguishable and slow the page down."""

MAX_LANES = 40
"""Maximum number of lanes; if more tries run side by side, the last lane holds all others."""

TICKS = 4
"""Number of parts into which the time labels divide a drawing."""

CHART_HEIGHT = 96
"""Height of the hourly bars, in pixels."""

LEAST_WIDTH = 0.25
"""Minimum width of a bar, in percent: a try of a second in a week would vanish otherwise."""

LEAST_SHARE = LEAST_WIDTH / 100

LEAST_HEIGHT = 3
"""Minimum height of a piece of an hourly bar, in pixels.

The chart has to show one failed try among thousands.
"""

DAY = 24
"""Hours that the chart shows at least, and that a timeline shows at most by default."""

_HOUR = timedelta(hours=1)
_LANE_HEIGHTS = ((8, 18), (20, 12), (MAX_LANES, 7))
_FIRST, _LAST = ("success", "skipped"), ("upstream_failed", "up_for_retry", "failed")


@dataclass(frozen=True, slots=True)
class Bar:
    """Stay of a try on the worker, or several stays too short to be told apart.

    ``x`` and ``width`` are percentages, ready to print, ``y`` is in pixels.
    """

    key: TryKey | None
    """The try; ``None`` for several."""
    address: AttemptsAddress | None
    """The list of these tries, if there are several."""
    x: str
    width: str
    y: int
    state: str
    title: str
    running: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """Tries of one hour in the same state; ``y``, from the top, and ``height`` are in pixels."""

    state: str
    y: int
    height: int


@dataclass(frozen=True, slots=True)
class HourBar:
    """Tries that started within one hour; ``address`` shows only that hour."""

    x: str
    width: str
    pieces: tuple[Piece, ...]
    title: str
    address: WorkerAddress


@dataclass(frozen=True, slots=True)
class Legend:
    """State and the number of tries in it."""

    state: str
    text: str
    count: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Outcomes of the tries per hour."""

    bars: tuple[HourBar, ...]
    legend: tuple[Legend, ...]
    ticks: tuple[formatting.Moment, ...]
    highest: str
    label: str
    hours: int
    height: int = CHART_HEIGHT


@dataclass(frozen=True, slots=True)
class End:
    """End of the worker: its position in percent, ready to print, and its description."""

    x: str
    title: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """Tries of the chosen hours in lanes, with links to other hours."""

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
    """Default position of the timeline: now, or the end of a worker that has ended."""
    latest_text: str

    @property
    def height(self) -> int:
        """Height of the whole drawing, in pixels."""
        return self.lanes * self.lane_height


def window(address: WorkerAddress, row: WorkerRow, now: datetime) -> tuple[datetime, datetime]:
    """Return the start and end of the hours that the URL selects."""
    end = min(address.until or _latest(row, now), now)
    return end - _hours(address, row, now) * _HOUR, end


def chart_window(address: WorkerAddress, row: WorkerRow, now: datetime) -> tuple[datetime, datetime]:
    """Return the start and end of the chart: whole hours from the start on, at least a day."""
    _, end = window(address, row, now)
    last = (end - timedelta.resolution).replace(minute=0, second=0, microsecond=0)
    return last - (max(DAY, _hours(address, row, now)) - 1) * _HOUR, end


def _hours(address: WorkerAddress, row: WorkerRow, now: datetime) -> int:
    """Return how many hours to draw.

    By default as few as cover the worker instance's lifetime, at most a day.
    """
    if address.hours is not None:
        return address.hours
    began = row.started_at or row.registered_at
    # A host stands for all its workers, past and present.
    if address.until is not None or row.host_only or began > _latest(row, now):
        return DAY
    return next((hours for hours in HOURS if hours >= DAY or _latest(row, now) - began <= hours * _HOUR), DAY)


def _latest(row: WorkerRow, now: datetime) -> datetime:
    """Return the latest time to show: now, or the end of the hour in which the worker ended."""
    ended_at = row.last_seen_at if row.host_only else row.ended_at
    if ended_at is None:
        return now
    return min(now, ended_at.replace(minute=0, second=0, microsecond=0) + _HOUR)


# --- lanes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Span:
    """Drawn part of one stay, or of several consecutive ones."""

    stays: tuple[Stay, ...]
    start: datetime
    end: datetime
    is_running: bool
    is_cut: bool = False
    """Whether the span ends when the worker was lost, which Airflow noticed later."""
    lane: int = 0

    @property
    def state(self) -> str:
        return self.stays[0].state or "no_status"


def build_timeline(
    row: WorkerRow, stays: Sequence[Stay], address: WorkerAddress, *, is_cut: bool, now: datetime
) -> Timeline:
    """Return the tries of a worker in lanes.

    :param stays: the stays that the user may see, within the hours that the URL selects, in any order
    :param is_cut: whether there are more, earlier stays
    """
    start, end = window(address, row, now)
    spans = sorted((_span(row, stay, now) for stay in stays), key=lambda span: (span.start, span.end))
    spans = [span for span in spans if span.end >= start and span.start <= end]
    lane_indexes = _assign_lanes(spans)
    lanes = min(MAX_LANES, max(lane_indexes, default=0) + 1)
    height = next(height for most, height in _LANE_HEIGHTS if lanes <= most)
    notes = []
    if is_cut:
        notes.append(f"Only the latest {MAX_TRIES:,} tries are drawn: choose fewer hours to see earlier ones.")
    if max(lane_indexes, default=0) >= MAX_LANES:
        notes.append(f"More than {MAX_LANES} tries ran side by side: the last lane holds all others.")
    in_lanes = [replace(span, lane=min(index, MAX_LANES - 1)) for span, index in zip(spans, lane_indexes, strict=True)]
    hours = _hours(address, row, now)
    step = hours * _HOUR
    latest = _latest(row, now)
    is_latest = address.until is None or address.until >= latest
    later = None if is_latest else min(end + step, latest)
    return Timeline(
        bars=tuple(_bar(span, row, height, start, end) for span in _merge_short(in_lanes, (end - start) * LEAST_SHARE)),
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
    if (
        row.state not in (WorkerState.LOST, WorkerState.OFFLINE)
        or row.ended_at is None
        or not start <= row.ended_at <= end
    ):
        return None
    return End(
        f"{(row.ended_at - start) / (end - start):.2%}",
        f"{formatting.worker_state(row.state)} at {row.ended_at:%H:%M:%S} UTC",
    )


def _length(hours: int) -> str:
    return f"{hours} h" if hours <= DAY else f"{hours // DAY} d"


def _span(row: WorkerRow, stay: Stay, now: datetime) -> _Span:
    """Return when a try was on the worker, as far as is known; it may have gone on elsewhere."""
    start = stay.first_process_at or now
    last_process = stay.last_process_at or start
    is_open = not stay.continued_elsewhere and stay.ended_at is None and stay.state in ("running", "restarting")
    # A stopped worker may still finish its tries.
    is_running = is_open and (row.ended_at is None or row.state == WorkerState.OFFLINE)
    is_cut = False
    if is_running:
        end = now
    elif stay.continued_elsewhere:
        end = last_process
    else:
        end = stay.ended_at or (row.ended_at if is_open else None) or last_process
        # Tries that ran when a lost worker was last seen ended with it, whenever Airflow noticed.
        if row.state == WorkerState.LOST and row.ended_at is not None and stay.state not in UNAFFECTED_STATES:
            is_cut = is_open or end > row.ended_at
            end = min(end, row.ended_at)
    return _Span((stay,), start, max(start, end), is_running, is_cut)


def _assign_lanes(spans: Iterable[_Span]) -> list[int]:
    """Return the lane of each span: the first free one.

    :param spans: in the order in which they start
    """
    free: list[int] = []
    taken: list[tuple[datetime, int]] = []
    lane_indexes = []
    for span in spans:
        while taken and taken[0][0] <= span.start:
            heappush(free, heappop(taken)[1])
        lane = heappop(free) if free else len(taken)
        heappush(taken, (span.end, lane))
        lane_indexes.append(lane)
    return lane_indexes


def _merge_short(spans: Iterable[_Span], min_duration: timedelta) -> list[_Span]:
    """Merge consecutive spans of a lane and state that are too short to be told apart.

    :param spans: in the order in which they start
    :param min_duration: the minimum duration that a span is drawn with
    :return: spans in drawing order: failed ones last, because later ones are drawn on top
    """
    groups: list[list[_Span]] = []
    # Per group: until when it is drawn. Per lane, state and cut: the latest group.
    drawn_until: list[datetime] = []
    latest_group: dict[tuple[int, str, bool], int] = {}
    for span in spans:
        key = (span.lane, span.state, span.is_cut)
        index = latest_group.get(key, -1)
        is_short = span.end - span.start < min_duration and not span.is_running
        until = max(span.end, span.start + min_duration)
        if index >= 0 and is_short and span.start < drawn_until[index]:
            groups[index].append(span)
            drawn_until[index] = max(drawn_until[index], until)
        else:
            latest_group[key] = len(groups)
            groups.append([span])
            drawn_until.append(until)
    return sorted(map(_merge, groups), key=lambda span: span.state in _LAST)


def _merge(spans: Sequence[_Span]) -> _Span:
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
            until=max(stay.first_process_at for stay in span.stays if stay.first_process_at is not None)
            + timedelta(seconds=1),
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
    """Return the outcomes of the tries per hour, or ``None`` if there are none.

    :param outcomes: outcomes of the tries that the user may see, within ``chart_window``
    """
    start, _ = chart_window(address, row, now)
    hours = max(DAY, _hours(address, row, now))
    outcomes = [outcome for outcome in outcomes if start <= outcome.hour < start + hours * _HOUR]
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
    """Return the sort key of a state: success at the bottom of a bar, failure on top."""
    if state in _FIRST:
        return _FIRST.index(state), ""
    return (len(_FIRST) + 1 + _LAST.index(state), "") if state in _LAST else (len(_FIRST), state)


def _hour_bar(
    hour: Outcomes, states: Sequence[str], highest: int, start: datetime, hours: int, address: WorkerAddress
) -> HourBar:
    counts = {state or "no_status": count for state, count in hour.states.items()}
    max_height = CHART_HEIGHT - 4
    heights = {
        state: max(LEAST_HEIGHT, round(counts[state] / highest * max_height)) for state in states if counts.get(state)
    }
    # Shorten the tallest piece by what the minimum height added, so that no bar leaves the drawing.
    heights[max(heights, key=heights.__getitem__)] -= max(0, sum(heights.values()) - max_height)
    pieces = []
    bottom = CHART_HEIGHT
    for state, height in heights.items():
        bottom -= height
        pieces.append(Piece(state, bottom, height))
    width = 100 / hours
    x = (hour.hour - start) / _HOUR * width
    summary = ", ".join(f"{counts[state]:,} {formatting.state(state).lower()}" for state in states if counts.get(state))
    return HourBar(
        x=f"{x + width * 0.1:.2f}%",
        width=f"{width * 0.8:.2f}%",
        pieces=tuple(pieces),
        title=f"{hour.hour:%Y-%m-%d %H:%M} to {hour.hour + _HOUR:%H:%M} UTC: {summary}",
        address=address.changed(hours=1, until=hour.hour + _HOUR),
    )
