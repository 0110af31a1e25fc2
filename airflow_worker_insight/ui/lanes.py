"""The strip of the Worker panel: which try ran where and when, as lanes of bars. Pure functions.

Time runs from left to right and is the same for all lanes. It is true to scale except that each stay on a worker gets
a width that can be seen: a try of two seconds beside one of two hours would vanish otherwise.
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
"""More workers than this share the last lane: the table below names them all."""

NOWHERE = ""
"""The lane of tries that ran on no worker."""

UNKNOWN = "?"
"""The lane of tries that ran somewhere, not known where. No worker's ID is this."""

WIDE, THIN = 30, 3
"""From which width on (in percent) a bar tells its processes, and below which (per digit) its label may not fit."""

SURE = frozenset({"reported"})
"""Attributions that the worker itself vouches for; bars of all others are drawn as less than sure."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A try's stay on a worker. ``x`` and ``width`` are percentages of the strip's width, ready to print."""

    try_number: int
    x: str
    width: str
    middle: str
    state: str
    label: str
    title: str
    detail: str
    sure: bool
    running: bool
    thin: bool
    """Whether the label does not fit where the strip is narrow."""
    is_thread: bool = False
    """Whether this is the thin line of a try's whole time, behind its stays on several workers."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A worker and the bars of the tries that it ran."""

    mark: str
    name: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class Strip:
    """The lanes, in the order in which the workers came to the task, and what stands around them."""

    lanes: tuple[Lane, ...]
    start: formatting.Moment
    end: formatting.Moment
    length: str
    ends_now: bool
    label: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Stay:
    """A piece of a try on one lane."""

    attempt: Attempt
    lane: str
    start: datetime
    end: datetime
    processes: int
    is_last: bool
    is_thread: bool = False
    is_cut: bool = False
    """Whether it ends with the worker, which was lost, and not where Airflow noticed."""


def build_strip(
    attempts: Sequence[Attempt],
    marks: Mapping[str, str],
    lost: Mapping[str, datetime] | None = None,
    *,
    now: datetime,
    label: str,
) -> Strip | None:
    """Draw the strip.

    :param attempts: the tries of a task instance, in any order
    :param marks: the letter of each worker, by worker ID, in the order of the lanes
    :param lost: when workers were lost, by worker ID: nothing that they took with them is drawn beyond
    :param label: the strip in one sentence, for those who cannot see it
    :returns: ``None`` when there is nothing to see: no try was on a worker, as far as is known
    """
    ordered = sorted(attempts, key=lambda one: one.try_number)
    stays = [stay for one in ordered for stay in _stays(one, lost or {}, now)]
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


def _stays(one: Attempt, lost: Mapping[str, datetime], now: datetime) -> list[_Stay]:
    """Return where a try was and when, as far as is known: when each process started, not when it ended."""
    if one.started_at is None:
        return []
    whole_end = max(one.started_at, one.ended_at or (now if _is_running(one) or _is_waiting(one) else one.started_at))
    if not one.workers:
        lane = UNKNOWN if one.attribution == "unknown" else NOWHERE
        return [_Stay(one, lane, one.started_at, whole_end, 0, is_last=True)]
    last = max(one.workers, key=lambda worker: (worker.last_started_at or one.started_at, worker.worker_id))
    ended = lost.get(last.worker_id)
    is_cut = ended is not None and ended < whole_end and one.state not in UNAFFECTED_STATES
    if ended is not None and is_cut:
        whole_end = max(one.started_at, ended)
    if len(one.workers) == 1 and not _is_waiting(one):
        only = one.workers[0]
        return [_Stay(one, only.worker_id, one.started_at, whole_end, only.process_count, is_last=True, is_cut=is_cut)]
    found = []
    for worker in one.workers:
        found.append(_Stay(one, worker.worker_id, one.started_at, whole_end, 0, is_last=False, is_thread=True))
        start, end = _known_span(worker, one.started_at)
        is_last = worker is last
        if is_last and not _is_waiting(one):
            end = max(end, whole_end)
        found.append(
            _Stay(one, worker.worker_id, start, end, worker.process_count, is_last=is_last, is_cut=is_last and is_cut)
        )
    return found


def _known_span(worker: AttemptWorker, otherwise: datetime) -> tuple[datetime, datetime]:
    start = max(worker.first_started_at or otherwise, otherwise)
    return start, max(worker.last_started_at or start, start)


def _is_running(one: Attempt) -> bool:
    return one.state in ("running", "restarting") and one.ended_at is None


def _is_waiting(one: Attempt) -> bool:
    """Return whether the try has started and is, at this moment, on no worker."""
    return one.ended_at is None and one.state in ("deferred", "up_for_reschedule", "awaiting_input")


# --- time to place --------------------------------------------------------------------------------------------------


def _positions(stays: Sequence[_Stay]) -> list[tuple[float, float]]:
    """Return where each stay begins and ends, as percentages.

    All beginnings and ends are put in order; the space between two neighbours is as wide as the time between them,
    and wider where a stay would otherwise be narrower than it may be.
    """
    # At the same moment, an earlier try ends before a later one begins, and a thread is around what is on it.
    edges = sorted(
        (moment, stay.attempt.try_number, side, stay.is_thread == bool(side), index)
        for index, stay in enumerate(stays)
        for side, moment in enumerate((stay.start, stay.end))
    )
    place_of = {(index, side): place for place, (_, _, side, _, index) in enumerate(edges)}
    spans = [(place_of[index, 0], place_of[index, 1]) for index in range(len(stays))]
    total = _seconds(edges[-1][0] - edges[0][0])
    gaps = [_seconds(after[0] - before[0]) / total if total else 0.0 for before, after in pairwise(edges)]
    drawn = [span for stay, span in zip(stays, spans, strict=True) if not stay.is_thread]
    least = min(0.06, 1.2 / len(drawn))
    for first, last in sorted(drawn, key=lambda span: sum(gaps[span[0] : span[1]])):
        missing = least - sum(gaps[first:last])
        if missing > 0:
            gaps[first:last] = [gap + missing / (last - first) for gap in gaps[first:last]]
    width = sum(gaps) or 1.0
    places = [0.0, *(100 * reached / width for reached in accumulate(gaps))]
    return [(places[first], places[last]) for first, last in spans]


def _seconds(length: timedelta) -> float:
    return length / timedelta(seconds=1)


# --- lanes ----------------------------------------------------------------------------------------------------------


def _lanes(
    stays: Sequence[_Stay], marks: Mapping[str, str], positions: Sequence[tuple[float, float]]
) -> tuple[Lane, ...]:
    own = list(marks)[:MAX_LANES] if len(marks) > MAX_LANES + 1 else list(marks)
    rest = set(marks).difference(own)
    wanted: list[tuple[str, str, Collection[str]]] = [
        (marks[worker_id], _name_and_kind(stays, worker_id)[0], (worker_id,)) for worker_id in own
    ]
    wanted.append(("…", formatting.count(len(rest), "more worker", "more workers"), rest))
    wanted.append(("?", "Not known where", (UNKNOWN,)))
    wanted.append(("–", "On no worker", (NOWHERE,)))
    lanes = (Lane(mark, name, _bars(stays, ids, positions)) for mark, name, ids in wanted)
    return tuple(lane for lane in lanes if lane.bars)


def _name_and_kind(stays: Iterable[_Stay], worker_id: str) -> tuple[str, str]:
    for stay in stays:
        for worker in stay.attempt.workers:
            if worker.worker_id == worker_id:
                name = f"a worker on {worker.hostname}" if worker.host_only else worker.name
                return name, formatting.kind(worker.kind)
    return worker_id, ""


def _bars(stays: Sequence[_Stay], lanes: Collection[str], positions: Sequence[tuple[float, float]]) -> tuple[Bar, ...]:
    mine = [(stay, place) for stay, place in zip(stays, positions, strict=True) if stay.lane in lanes]
    # Threads first: what is drawn later lies on top.
    return tuple(_bar(stay, *place) for stay, place in sorted(mine, key=lambda pair: not pair[0].is_thread))


def _bar(stay: _Stay, start: float, end: float) -> Bar:
    one = stay.attempt
    width = max(end - start, 0.5)
    label = str(one.try_number)
    return Bar(
        try_number=one.try_number,
        x=f"{start:.2f}%",
        width=f"{width:.2f}%",
        middle=f"{start + width / 2:.2f}%",
        state=(one.state or "no_status") if stay.is_last else "part",
        label=label,
        title=_title(stay),
        detail=f" · {formatting.count(stay.processes, 'process', 'processes')}"
        if stay.processes > 1 and width >= WIDE
        else "",
        sure=one.attribution in SURE,
        running=stay.is_last and _is_running(one) and not stay.is_cut,
        thin=width < THIN * len(label),
        is_thread=stay.is_thread,
    )


def _title(stay: _Stay) -> str:
    one = stay.attempt
    if stay.lane in (NOWHERE, UNKNOWN):
        where = "on no worker" if stay.lane == NOWHERE else "not known where"
    else:
        where = "on {} ({})".format(*_name_and_kind([stay], stay.lane))
    parts = [f"Try {one.try_number} {where}"]
    if stay.is_last:
        parts.append(formatting.state(one.state))
    lasted = formatting.duration(_seconds(stay.end - stay.start))
    parts.append(f"from {stay.start:%H:%M:%S} UTC, {lasted}{', until the worker was lost' if stay.is_cut else ''}")
    if stay.processes > 1:
        parts.append(formatting.count(stay.processes, "process", "processes"))
    return "; ".join(parts)


def _moment(value: datetime) -> formatting.Moment:
    found = formatting.moment(value)
    assert found is not None
    return found


def _notes(attempts: Sequence[Attempt], stays: Sequence[_Stay]) -> Iterable[str]:
    timeless = [one.try_number for one in attempts if one.started_at is None and one.try_number > 0]
    if timeless:
        numbers = ", ".join(map(str, timeless))
        yield (
            f"Not drawn, because it never started: try {numbers}."
            if len(timeless) == 1
            else (f"Not drawn, because they never started: tries {numbers}.")
        )
    if any(stay.attempt.attribution not in SURE and stay.lane not in (NOWHERE, UNKNOWN) for stay in stays):
        yield "Dashed: not reported by the worker itself."
