"""Timeline of a worker's tries in parallel lanes, and a chart of their outcomes per hour."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.states import WorkerState
from airflow_worker_insight.ui import formatting, lanes
from airflow_worker_insight.ui.lanes import Span
from airflow_worker_insight.ui.query_params import HOURS, AttemptsParams
from airflow_worker_insight.ui.views.parts import Option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_worker_insight.domain.keys import TryKey
    from airflow_worker_insight.domain.workers import WorkerRow
    from airflow_worker_insight.store.attempts.by_worker import Outcomes, Stay
    from airflow_worker_insight.ui.query_params import WorkerParams

MAX_TRIES = 2000
"""Maximum number of tries drawn: more would be indistinguishable and slow the page down."""

MAX_LANES = 40
"""Maximum number of lanes; if more tries run side by side, the last lane holds all others."""

CHART_HEIGHT = 96
"""Height of the hourly bars, in pixels."""

MIN_WIDTH = 0.25
"""Minimum width of a bar, in percent: a try of a second in a week would vanish otherwise."""

MIN_HEIGHT = 3
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
    params: AttemptsParams | None
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
    """Tries that started within one hour; ``params`` shows only that hour."""

    x: str
    width: str
    pieces: tuple[Piece, ...]
    title: str
    params: WorkerParams


@dataclass(frozen=True, slots=True)
class Chart:
    """Outcomes of the tries per hour."""

    bars: tuple[HourBar, ...]
    legend: tuple[tuple[str, str], ...]
    """States and the number of tries in each."""
    ticks: tuple[datetime, ...]
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
    ticks: tuple[datetime, ...]
    ends_now: bool
    label: str
    notes: tuple[str, ...]
    lengths: tuple[tuple[Option, WorkerParams], ...]
    earlier: WorkerParams
    later: WorkerParams | None
    latest: WorkerParams | None
    """Default position of the timeline: now, or the end of a worker that has ended."""
    latest_text: str

    @property
    def height(self) -> int:
        """Height of the whole drawing, in pixels."""
        return self.lanes * self.lane_height


def window(params: WorkerParams, row: WorkerRow, now: datetime) -> tuple[datetime, datetime]:
    """Return the start and end of the hours that the URL selects."""
    end = min(params.until or _latest(row, now), now)
    return end - _hours(params, row, now) * _HOUR, end


def chart_window(params: WorkerParams, row: WorkerRow, now: datetime) -> tuple[datetime, datetime]:
    """Return the start and end of the chart: whole hours from the start on, at least a day."""
    _, end = window(params, row, now)
    last = (end - timedelta.resolution).replace(minute=0, second=0, microsecond=0)
    return last - (max(DAY, _hours(params, row, now)) - 1) * _HOUR, end


def _hours(params: WorkerParams, row: WorkerRow, now: datetime) -> int:
    """Return how many hours to draw.

    By default as few as cover the worker instance's lifetime, at most a day.
    """
    if params.hours is not None:
        return params.hours
    began = row.started_at or row.registered_at
    # A host stands for all its workers, past and present.
    if params.until is not None or row.host_only or began > _latest(row, now):
        return DAY
    return next((hours for hours in HOURS if hours >= DAY or _latest(row, now) - began <= hours * _HOUR), DAY)


def _latest(row: WorkerRow, now: datetime) -> datetime:
    """Return the latest time to show: now, or the end of the hour in which the worker ended."""
    ended_at = row.last_seen_at if row.host_only else row.ended_at
    if ended_at is None:
        return now
    return min(now, ended_at.replace(minute=0, second=0, microsecond=0) + _HOUR)


# --- lanes ----------------------------------------------------------------------------------------------------------


def build_timeline(
    row: WorkerRow, stays: Sequence[Stay], params: WorkerParams, *, is_truncated: bool, now: datetime
) -> Timeline:
    """Return the tries of a worker in lanes.

    :param stays: the stays that the user may see, within the hours that the URL selects, in any order
    :param is_truncated: whether there are more, earlier stays
    """
    start, end = window(params, row, now)
    spans = sorted((_span(row, stay, now) for stay in stays), key=lambda span: (span.start, span.end))
    spans = [span for span in spans if span.end >= start and span.start <= end]
    lane_indexes = lanes.assign_lanes(spans)
    lane_count = min(MAX_LANES, max(lane_indexes, default=0) + 1)
    height = next(height for most, height in _LANE_HEIGHTS if lane_count <= most)
    notes = []
    if is_truncated:
        notes.append(f"Only the latest {MAX_TRIES:,} tries are shown. Choose a shorter period to see earlier ones.")
    if max(lane_indexes, default=0) >= MAX_LANES:
        notes.append(f"More than {MAX_LANES} tries ran in parallel. The last lane holds the rest.")
    keys = (
        (min(index, MAX_LANES - 1), span.tries[0].state or "no_status", span.is_cut)
        for span, index in zip(spans, lane_indexes, strict=True)
    )
    merged = lanes.merge_short(zip(keys, spans, strict=True), (end - start) * MIN_WIDTH / 100)
    bars = [_bar(span, row, lane * height, start, end) for (lane, _, _), span in merged]
    hours = _hours(params, row, now)
    step = hours * _HOUR
    latest = _latest(row, now)
    is_latest = params.until is None or params.until >= latest
    later = None if is_latest else min(end + step, latest)
    return Timeline(
        # Failed tries last: later bars are drawn on top.
        bars=tuple(sorted(bars, key=lambda bar: bar.state in _LAST)),
        end=_end(row, start, end),
        lanes=lane_count,
        lane_height=height,
        ticks=lanes.ticks(start, end),
        ends_now=end == now,
        label=f"{formatting.count(len(spans), 'try', 'tries')}, at most {lane_count} in parallel"
        if spans
        else "No tries",
        notes=tuple(notes),
        lengths=tuple(
            (Option(str(length), _length(length), length == hours), params.changed(hours=length)) for length in HOURS
        ),
        earlier=params.changed(hours=hours, until=start),
        later=None if later is None else params.changed(hours=hours, until=None if later == latest else later),
        latest=None if is_latest else params.changed(until=None),
        latest_text="Now" if latest == now else "End",
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


def _span(row: WorkerRow, stay: Stay, now: datetime) -> Span[Stay]:
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
        # Tries that ran when a lost worker was last seen ended with it, whenever Airflow detected it.
        lost_at = row.ended_at if row.state == WorkerState.LOST else None
        is_cut = lanes.ends_with_worker(now if is_open else end, lost_at, stay.state)
        if lost_at is not None and is_cut:
            end = lost_at
    return Span((stay,), start, max(start, end), is_running, is_cut)


def _bar(span: Span[Stay], row: WorkerRow, y: int, start: datetime, end: datetime) -> Bar:
    x, width = lanes.bar(
        (span.start - start) / (end - start) * 100, (span.end - start) / (end - start) * 100, min_width=MIN_WIDTH
    )
    first = span.tries[0]
    state = formatting.state(first.state)
    key = params = None
    if len(span.tries) == 1:
        key = first.key
        task = key.task_id if key.map_index < 0 else f"{key.task_id} [{key.map_index}]"
        title = f"{key.dag_id}, {task}, try {key.try_number}: {state}; {span.when}"
        if span.is_cut and first.ended_at:
            title += f"; Airflow detected it at {first.ended_at:%H:%M:%S} UTC"
    else:
        params = AttemptsParams(
            worker=row.worker_id,
            state=first.state or "",
            since=span.start.replace(microsecond=0),
            until=max(stay.first_process_at for stay in span.tries if stay.first_process_at is not None)
            + timedelta(seconds=1),
        )
        title = f"{len(span.tries):,} tries: {state}; {span.when}"
    return Bar(
        key=key,
        params=params,
        x=f"{x:.2f}%",
        width=f"{width:.2f}%",
        y=y,
        state=first.state or "no_status",
        title=title,
        running=span.is_running,
    )


# --- hours ----------------------------------------------------------------------------------------------------------


def build_chart(row: WorkerRow, outcomes: Sequence[Outcomes], params: WorkerParams, *, now: datetime) -> Chart | None:
    """Return the outcomes of the tries per hour, or ``None`` if there are none.

    :param outcomes: outcomes of the tries that the user may see, within ``chart_window``
    """
    start, _ = chart_window(params, row, now)
    hours = max(DAY, _hours(params, row, now))
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
        bars=tuple(_hour_bar(hour, states, highest, start, hours, params) for hour in outcomes),
        legend=tuple((state, f"{totals[state]:,}") for state in states),
        ticks=lanes.ticks(start, start + hours * _HOUR),
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
    hour: Outcomes, states: Sequence[str], highest: int, start: datetime, hours: int, params: WorkerParams
) -> HourBar:
    counts = {state or "no_status": count for state, count in hour.states.items()}
    max_height = CHART_HEIGHT - 4
    heights = {
        state: max(MIN_HEIGHT, round(counts[state] / highest * max_height)) for state in states if counts.get(state)
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
        params=params.changed(hours=1, until=hour.hour + _HOUR),
    )
