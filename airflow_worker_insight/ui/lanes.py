"""Timeline strip of the Worker panel: which try ran where and when, as lanes of bars.

Pure functions. All lanes share one time axis from left to right. It is true to scale except that each stay on a worker
has a visible minimum width: a try of two seconds beside one of two hours would vanish otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.states import UNAFFECTED_STATES
from airflow_worker_insight.ui import formatting

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from airflow_worker_insight.domain.attempts import Attempt, AttemptWorker

MAX_LANES = 12
"""Further workers share the last lane; the table below the strip names them all."""

NO_WORKER_LANE = ""
"""Lane of tries that ran on no worker."""

UNKNOWN = "?"
"""Lane of tries whose worker is unknown; no worker has this ID."""

DETAIL_MIN_WIDTH, LABEL_MIN_WIDTH = 30, 3
"""Bar widths in percent.

From ``DETAIL_MIN_WIDTH`` on a bar shows its number of processes. Below ``LABEL_MIN_WIDTH`` per digit its label may not fit.
"""

REPORTED = frozenset({"reported"})
"""Attributions reported by the worker itself; other bars are drawn as less certain."""


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
    thin: bool
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
    start: formatting.Moment
    end: formatting.Moment
    length: str
    ends_now: bool
    label: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Stay:
    """Part of a try on one lane."""

    attempt: Attempt
    lane: str
    start: datetime
    end: datetime
    processes: int
    is_last: bool
    is_thread: bool = False
    is_cut: bool = False
    """Whether the stay ends when its worker was lost, which Airflow noticed later."""


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
    stays = [stay for attempt in ordered for stay in _stays(attempt, lost or {}, now)]
    if not any(stay.lane in marks for stay in stays):
        return None
    positions = _positions(stays)
    start, end = min(stay.start for stay in stays), max(stay.end for stay in stays)
    ends_now = any(_is_running(stay.attempt) and not stay.is_cut and stay.end == end for stay in stays)
    return Strip(
        lanes=_lanes(stays, marks, positions),
        start=_moment(start),
        end=_moment(end),
        length=formatting.duration(_seconds(end - start)),
        ends_now=ends_now,
        label=label,
        notes=tuple(_notes(ordered, stays)),
    )


# --- where a try was ------------------------------------------------------------------------------------------------


def _stays(attempt: Attempt, lost: Mapping[str, datetime], now: datetime) -> list[_Stay]:
    """Return where and when a try ran, as far as is known.

    The start of each of its processes is recorded, the end is not.
    """
    if attempt.started_at is None:
        return []
    try_end = max(
        attempt.started_at,
        attempt.ended_at or (now if _is_running(attempt) or _is_waiting(attempt) else attempt.started_at),
    )
    if not attempt.workers:
        lane = UNKNOWN if attempt.attribution == "unknown" else NO_WORKER_LANE
        return [_Stay(attempt, lane, attempt.started_at, try_end, 0, is_last=True)]
    last_worker = max(
        attempt.workers, key=lambda worker: (worker.last_started_at or attempt.started_at, worker.worker_id)
    )
    lost_at = lost.get(last_worker.worker_id)
    is_cut = lost_at is not None and lost_at < try_end and attempt.state not in UNAFFECTED_STATES
    if lost_at is not None and is_cut:
        try_end = max(attempt.started_at, lost_at)
    if len(attempt.workers) == 1 and not _is_waiting(attempt):
        only_worker = attempt.workers[0]
        return [
            _Stay(
                attempt,
                only_worker.worker_id,
                attempt.started_at,
                try_end,
                only_worker.process_count,
                is_last=True,
                is_cut=is_cut,
            )
        ]
    stays = []
    for worker in attempt.workers:
        stays.append(_Stay(attempt, worker.worker_id, attempt.started_at, try_end, 0, is_last=False, is_thread=True))
        start, end = _known_span(worker, attempt.started_at)
        is_last = worker is last_worker
        if is_last and not _is_waiting(attempt):
            end = max(end, try_end)
        stays.append(
            _Stay(
                attempt, worker.worker_id, start, end, worker.process_count, is_last=is_last, is_cut=is_last and is_cut
            )
        )
    return stays


def _known_span(worker: AttemptWorker, try_start: datetime) -> tuple[datetime, datetime]:
    start = max(worker.first_started_at or try_start, try_start)
    return start, max(worker.last_started_at or start, start)


def _is_running(attempt: Attempt) -> bool:
    return attempt.state in ("running", "restarting") and attempt.ended_at is None


def _is_waiting(attempt: Attempt) -> bool:
    """Return whether the try has started and is on no worker at the moment."""
    return attempt.ended_at is None and attempt.state in ("deferred", "up_for_reschedule", "awaiting_input")


# --- positions ------------------------------------------------------------------------------------------------------


def _positions(stays: Sequence[_Stay]) -> list[tuple[float, float]]:
    """Return the start and end of each stay in percent of the strip's width.

    All starts and ends are sorted. The gap between two neighbours is as wide as the time between them, and wider where
    a stay would otherwise be narrower than the minimum.
    """
    # At the same time, an earlier try ends before a later one begins, and a thread encloses its stays.
    edges = sorted(
        (moment, stay.attempt.try_number, side, stay.is_thread == bool(side), index)
        for index, stay in enumerate(stays)
        for side, moment in enumerate((stay.start, stay.end))
    )
    position_of = {(index, side): position for position, (_, _, side, _, index) in enumerate(edges)}
    spans = [(position_of[index, 0], position_of[index, 1]) for index in range(len(stays))]
    total = _seconds(edges[-1][0] - edges[0][0])
    gaps = [_seconds(after[0] - before[0]) / total if total else 0.0 for before, after in pairwise(edges)]
    drawn = [span for stay, span in zip(stays, spans, strict=True) if not stay.is_thread]
    min_width = min(0.06, 1.2 / len(drawn))
    for first, last in sorted(drawn, key=lambda span: sum(gaps[span[0] : span[1]])):
        missing = min_width - sum(gaps[first:last])
        if missing > 0:
            gaps[first:last] = [gap + missing / (last - first) for gap in gaps[first:last]]
    width = sum(gaps) or 1.0
    percentages = [0.0, *(100 * offset / width for offset in accumulate(gaps))]
    return [(percentages[first], percentages[last]) for first, last in spans]


def _seconds(length: timedelta) -> float:
    return length / timedelta(seconds=1)


# --- lanes ----------------------------------------------------------------------------------------------------------


def _lanes(
    stays: Sequence[_Stay], marks: Mapping[str, str], positions: Sequence[tuple[float, float]]
) -> tuple[Lane, ...]:
    named = list(marks)[:MAX_LANES] if len(marks) > MAX_LANES + 1 else list(marks)
    rest = set(marks).difference(named)
    candidates: list[tuple[str, str, Collection[str]]] = [
        (marks[worker_id], _name_and_kind(stays, worker_id)[0], (worker_id,)) for worker_id in named
    ]
    candidates.append(("…", formatting.count(len(rest), "more worker", "more workers"), rest))
    candidates.append(("?", "Unknown worker", (UNKNOWN,)))
    candidates.append(("–", "No worker", (NO_WORKER_LANE,)))
    lanes = (Lane(mark, name, _bars(stays, ids, positions)) for mark, name, ids in candidates)
    return tuple(lane for lane in lanes if lane.bars)


def _name_and_kind(stays: Iterable[_Stay], worker_id: str) -> tuple[str, str]:
    for stay in stays:
        for worker in stay.attempt.workers:
            if worker.worker_id == worker_id:
                name = f"a worker on {worker.hostname}" if worker.host_only else worker.name
                return name, formatting.kind(worker.kind)
    return worker_id, ""


def _bars(stays: Sequence[_Stay], lanes: Collection[str], positions: Sequence[tuple[float, float]]) -> tuple[Bar, ...]:
    on_lane = [(stay, position) for stay, position in zip(stays, positions, strict=True) if stay.lane in lanes]
    # Threads first: later bars are drawn on top.
    return tuple(_bar(stay, *position) for stay, position in sorted(on_lane, key=lambda pair: not pair[0].is_thread))


def _bar(stay: _Stay, start: float, end: float) -> Bar:
    attempt = stay.attempt
    width = max(end - start, 0.5)
    label = str(attempt.try_number)
    return Bar(
        try_number=attempt.try_number,
        x=f"{start:.2f}%",
        width=f"{width:.2f}%",
        middle=f"{start + width / 2:.2f}%",
        state=(attempt.state or "no_status") if stay.is_last else "part",
        label=label,
        title=_title(stay),
        detail=f" · {formatting.count(stay.processes, 'process', 'processes')}"
        if stay.processes > 1 and width >= DETAIL_MIN_WIDTH
        else "",
        is_reported=attempt.attribution in REPORTED,
        running=stay.is_last and _is_running(attempt) and not stay.is_cut,
        thin=width < LABEL_MIN_WIDTH * len(label),
        is_thread=stay.is_thread,
    )


def _title(stay: _Stay) -> str:
    attempt = stay.attempt
    if stay.lane in (NO_WORKER_LANE, UNKNOWN):
        where = "on no worker" if stay.lane == NO_WORKER_LANE else "on an unknown worker"
    else:
        where = "on {} ({})".format(*_name_and_kind([stay], stay.lane))
    parts = [f"Try {attempt.try_number} {where}"]
    if stay.is_last:
        parts.append(formatting.state(attempt.state))
    lasted = formatting.duration(_seconds(stay.end - stay.start))
    parts.append(f"from {stay.start:%H:%M:%S} UTC, {lasted}{', until the worker was lost' if stay.is_cut else ''}")
    if stay.processes > 1:
        parts.append(formatting.count(stay.processes, "process", "processes"))
    return "; ".join(parts)


def _moment(value: datetime) -> formatting.Moment:
    moment = formatting.moment(value)
    assert moment is not None
    return moment


def _notes(attempts: Sequence[Attempt], stays: Sequence[_Stay]) -> Iterable[str]:
    unstarted = [attempt.try_number for attempt in attempts if attempt.started_at is None and attempt.try_number > 0]
    if unstarted:
        numbers = ", ".join(map(str, unstarted))
        yield f"Not shown, because never started: {'try' if len(unstarted) == 1 else 'tries'} {numbers}."
    if any(stay.attempt.attribution not in REPORTED and stay.lane not in (NO_WORKER_LANE, UNKNOWN) for stay in stays):
        yield "Dashed: not reported by the worker."
