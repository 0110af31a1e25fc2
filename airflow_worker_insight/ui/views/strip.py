"""Timeline strip of the Worker panel: which try ran where and when, as lanes of bars.

Pure functions. All lanes share one time axis from left to right. It is true to scale except that each stay on a worker
has a visible minimum width: a try of two seconds beside one of two hours would vanish otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.attempts import Attempt
from airflow_worker_insight.ui import formatting, lanes
from airflow_worker_insight.ui.lanes import Span

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from airflow_worker_insight.domain.attempts import AttemptWorker

MAX_LANES = 12
"""Further workers share the last lane; the table below the strip names them all."""

NO_WORKER_LANE = ""
"""Lane of tries that ran on no worker."""

UNKNOWN_LANE = "?"
"""Lane of tries whose worker is unknown; no worker has this ID."""

DETAIL_MIN_WIDTH, LABEL_MIN_WIDTH = 30, 3
"""Minimum widths of a bar in percent: to show its number of processes, and per digit of its label."""

MIN_WIDTH = 0.5
"""Minimum width of a bar, in percent."""


@dataclass(frozen=True, slots=True)
class Bar:
    """Stay of a try on a worker.

    ``x`` and ``width`` are percentages of the strip's width, ready to print.
    """

    try_number: int
    x: str
    width: str
    middle: str
    state: str
    label: str
    title: str
    detail: str
    is_reported: bool
    running: bool
    is_narrow: bool
    """Whether the label does not fit where the strip is narrow."""
    is_thread: bool = False
    """Whether this is the thin line of a try's whole duration, behind its stays on workers."""


@dataclass(frozen=True, slots=True)
class Lane:
    """Worker and the bars of the tries that it ran."""

    mark: str
    name: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class Strip:
    """Lanes in the order in which the workers first ran the task, with time axis and notes."""

    lanes: tuple[Lane, ...]
    start: datetime
    end: datetime
    length: str
    ends_now: bool
    label: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _LaneSpan(Span[Attempt]):
    """Span of one try on a lane."""

    lane: str = NO_WORKER_LANE
    processes: int = 0
    is_last: bool = False
    """Whether it is the last span of the try."""
    is_thread: bool = False
    """Whether it is the whole duration of a try that ran in several spans."""

    @property
    def attempt(self) -> Attempt:
        return self.tries[0]


def build_strip(
    attempts: Sequence[Attempt],
    marks: Mapping[str, str],
    lost: Mapping[str, datetime] | None = None,
    *,
    now: datetime,
    label: str,
) -> Strip | None:
    """Build the strip of a task instance.

    :param attempts: the tries of a task instance, in any order
    :param marks: the letter of each worker, by worker ID, in the order of the lanes
    :param lost: when workers were lost, by worker ID; the tries that they took with them are drawn until then
    :param label: the strip in one sentence, for screen readers
    :returns: ``None`` if no try is known to have run on a worker
    """
    ordered = sorted(attempts, key=lambda attempt: attempt.try_number)
    spans = [span for attempt in ordered for span in _spans(attempt, lost or {}, now)]
    if not any(span.lane in marks for span in spans):
        return None
    start, end = min(span.start for span in spans), max(span.end for span in spans)
    return Strip(
        lanes=_lanes(spans, marks, _positions(spans)),
        start=start,
        end=end,
        length=formatting.duration((end - start).total_seconds()),
        ends_now=any(span.is_running and span.end == end for span in spans),
        label=label,
        notes=tuple(_notes(ordered, spans)),
    )


# --- where a try was ------------------------------------------------------------------------------------------------


def _spans(attempt: Attempt, lost: Mapping[str, datetime], now: datetime) -> list[_LaneSpan]:
    """Return where and when a try ran, as far as is known.

    The start of each of its processes is recorded, the end is not.
    """
    start = attempt.started_at
    if start is None:
        return []
    is_waiting, is_running = _is_waiting(attempt), _is_running(attempt)
    end = max(start, attempt.ended_at or (now if is_running or is_waiting else start))
    if not attempt.workers:
        lane = UNKNOWN_LANE if attempt.attribution == "unknown" else NO_WORKER_LANE
        return [_LaneSpan((attempt,), start, end, is_running, lane=lane, is_last=True)]
    last_worker = max(attempt.workers, key=lambda worker: (worker.last_started_at or start, worker.worker_id))
    lost_at = lost.get(last_worker.worker_id)
    is_cut = lanes.ends_with_worker(end, lost_at, attempt.state)
    if lost_at is not None and is_cut:
        end, is_running = max(start, lost_at), False
    spans = []
    is_only = len(attempt.workers) == 1 and not is_waiting
    for worker in attempt.workers:
        if not is_only:
            spans.append(_LaneSpan((attempt,), start, end, lane=worker.worker_id, is_thread=True))
        first, last = (start, end) if is_only else _known_span(worker, start)
        is_last = worker is last_worker
        if is_last and not is_waiting:
            last = max(last, end)
        spans.append(
            _LaneSpan(
                (attempt,),
                first,
                last,
                is_running=is_last and is_running,
                is_cut=is_last and is_cut,
                lane=worker.worker_id,
                processes=worker.process_count,
                is_last=is_last,
            )
        )
    return spans


def _known_span(worker: AttemptWorker, try_start: datetime) -> tuple[datetime, datetime]:
    start = max(worker.first_started_at or try_start, try_start)
    return start, max(worker.last_started_at or start, start)


def _is_running(attempt: Attempt) -> bool:
    return attempt.state in ("running", "restarting") and attempt.ended_at is None


def _is_waiting(attempt: Attempt) -> bool:
    """Return whether the try has started and is on no worker at the moment."""
    return attempt.ended_at is None and attempt.state in ("deferred", "up_for_reschedule", "awaiting_input")


# --- positions ------------------------------------------------------------------------------------------------------


def _positions(spans: Sequence[_LaneSpan]) -> list[tuple[float, float]]:
    """Return the start and end of each span in percent of the strip's width.

    All starts and ends are sorted. The gap between two neighbours is as wide as the time between them, and wider where
    a span would otherwise be narrower than the minimum.
    """
    # At the same time, an earlier try ends before a later one begins, and a thread encloses its spans.
    edges = sorted(
        (time, span.attempt.try_number, side, span.is_thread == bool(side), index)
        for index, span in enumerate(spans)
        for side, time in enumerate((span.start, span.end))
    )
    edge_of = {(index, side): edge for edge, (_, _, side, _, index) in enumerate(edges)}
    extents = [(edge_of[index, 0], edge_of[index, 1]) for index in range(len(spans))]
    total = edges[-1][0] - edges[0][0]
    gaps = [(after[0] - before[0]) / total if total else 0.0 for before, after in pairwise(edges)]
    drawn = [extent for span, extent in zip(spans, extents, strict=True) if not span.is_thread]
    min_width = min(0.06, 1.2 / len(drawn))
    for first, last in sorted(drawn, key=lambda extent: sum(gaps[extent[0] : extent[1]])):
        missing = min_width - sum(gaps[first:last])
        if missing > 0:
            gaps[first:last] = [gap + missing / (last - first) for gap in gaps[first:last]]
    width = sum(gaps) or 1.0
    percentages = [0.0, *(100 * offset / width for offset in accumulate(gaps))]
    return [(percentages[first], percentages[last]) for first, last in extents]


# --- lanes ----------------------------------------------------------------------------------------------------------


def _lanes(
    spans: Sequence[_LaneSpan], marks: Mapping[str, str], positions: Sequence[tuple[float, float]]
) -> tuple[Lane, ...]:
    named = list(marks)[:MAX_LANES] if len(marks) > MAX_LANES + 1 else list(marks)
    rest = set(marks).difference(named)
    candidates: list[tuple[str, str, Collection[str]]] = [
        (marks[worker_id], _name_and_kind(spans, worker_id)[0], (worker_id,)) for worker_id in named
    ]
    candidates.append(("…", formatting.count(len(rest), "more worker", "more workers"), rest))
    candidates.append(("?", "Unknown worker", (UNKNOWN_LANE,)))
    candidates.append(("–", "No worker", (NO_WORKER_LANE,)))
    drawn = (Lane(mark, name, _bars(spans, ids, positions)) for mark, name, ids in candidates)
    return tuple(lane for lane in drawn if lane.bars)


def _name_and_kind(spans: Iterable[_LaneSpan], worker_id: str) -> tuple[str, str]:
    for span in spans:
        for worker in span.attempt.workers:
            if worker.worker_id == worker_id:
                name = f"a worker on {worker.hostname}" if worker.host_only else worker.name
                return name, formatting.kind(worker.kind)
    return worker_id, ""


def _bars(
    spans: Sequence[_LaneSpan], lane_ids: Collection[str], positions: Sequence[tuple[float, float]]
) -> tuple[Bar, ...]:
    on_lane = [(span, position) for span, position in zip(spans, positions, strict=True) if span.lane in lane_ids]
    # Threads first: later bars are drawn on top.
    return tuple(_bar(span, *position) for span, position in sorted(on_lane, key=lambda pair: not pair[0].is_thread))


def _bar(span: _LaneSpan, start: float, end: float) -> Bar:
    attempt = span.attempt
    x, width = lanes.bar(start, end, min_width=MIN_WIDTH)
    label = str(attempt.try_number)
    has_detail = span.processes > 1 and width >= DETAIL_MIN_WIDTH
    return Bar(
        try_number=attempt.try_number,
        x=f"{x:.2f}%",
        width=f"{width:.2f}%",
        middle=f"{x + width / 2:.2f}%",
        state=(attempt.state or "no_status") if span.is_last else "part",
        label=label,
        title=_title(span),
        detail=f" · {formatting.count(span.processes, 'process', 'processes')}" if has_detail else "",
        is_reported=attempt.attribution == "reported",
        running=span.is_running,
        is_narrow=width < LABEL_MIN_WIDTH * len(label),
        is_thread=span.is_thread,
    )


def _title(span: _LaneSpan) -> str:
    attempt = span.attempt
    if span.lane in (NO_WORKER_LANE, UNKNOWN_LANE):
        where = "on no worker" if span.lane == NO_WORKER_LANE else "on an unknown worker"
    else:
        where = "on {} ({})".format(*_name_and_kind([span], span.lane))
    parts = [f"Try {attempt.try_number} {where}"]
    if span.is_last:
        parts.append(formatting.state(attempt.state))
    parts.append(span.when)
    if span.processes > 1:
        parts.append(formatting.count(span.processes, "process", "processes"))
    return "; ".join(parts)


def _notes(attempts: Sequence[Attempt], spans: Sequence[_LaneSpan]) -> Iterable[str]:
    unstarted = [attempt.try_number for attempt in attempts if attempt.started_at is None and attempt.try_number > 0]
    if unstarted:
        numbers = ", ".join(map(str, unstarted))
        yield f"Not shown, because never started: {'try' if len(unstarted) == 1 else 'tries'} {numbers}."
    if any(
        span.attempt.attribution != "reported" and span.lane not in (NO_WORKER_LANE, UNKNOWN_LANE) for span in spans
    ):
        yield "Dashed: not reported by the worker."
