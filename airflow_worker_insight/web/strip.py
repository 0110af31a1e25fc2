"""The strip of the Worker panel: which try ran where and when, as lanes of bars. Pure functions.

Time runs from left to right and is the same for all lanes. It is true to scale except that each stay on a worker gets
a width that can be seen: a try of two seconds beside one of two hours would vanish otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from airflow_worker_insight.web import words

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from airflow_worker_insight.store.reading import Attempt, AttemptWorker

MAX_LANES = 12
"""More workers than this share the last lane: the table below names them all."""

NOWHERE = ""
"""The lane of tries that ran on no known worker."""

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
    sure: bool
    running: bool
    is_thread: bool = False
    """Whether this is the thin line of a try's whole time, behind its stays on several workers."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A worker and the bars of the tries that it ran."""

    mark: str
    name: str
    detail: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class Strip:
    """The lanes, in the order in which the workers came to the task, and what stands around them."""

    lanes: tuple[Lane, ...]
    start: words.Moment
    end: words.Moment
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


def build_strip(attempts: Sequence[Attempt], marks: Mapping[str, str], *, now: datetime, label: str) -> Strip | None:
    """Draw the strip.

    :param attempts: the tries of a task instance, in any order
    :param marks: the letter of each worker, by worker ID, in the order of the lanes
    :param label: the strip in one sentence, for those who cannot see it
    :returns: ``None`` when no try has a time
    """
    ordered = sorted(attempts, key=lambda one: one.try_number)
    stays = [stay for one in ordered for stay in _stays(one, now)]
    if not stays:
        return None
    positions = _positions([stay for stay in stays if not stay.is_thread])
    start, end = min(stay.start for stay in stays), max(stay.end for stay in stays)
    ends_now = any(_is_running(one) for one in ordered)
    return Strip(
        lanes=_lanes(stays, marks, positions),
        start=_moment(start),
        end=_moment(end),
        length=words.duration((end - start).total_seconds()),
        ends_now=ends_now,
        label=label,
        notes=tuple(_notes(ordered, stays)),
    )


# --- where a try was ------------------------------------------------------------------------------------------------


def _stays(one: Attempt, now: datetime) -> list[_Stay]:
    """Return where a try was and when, as far as is known: when each process started, not when it ended."""
    if one.started_at is None:
        return []
    whole_end = max(one.started_at, one.ended_at or (now if _is_running(one) or _is_waiting(one) else one.started_at))
    if not one.workers:
        return [_Stay(one, NOWHERE, one.started_at, whole_end, 0, is_last=True)]
    if len(one.workers) == 1 and not _is_waiting(one):
        only = one.workers[0]
        return [_Stay(one, only.worker_id, one.started_at, whole_end, only.process_count, is_last=True)]
    last = max(one.workers, key=lambda worker: (worker.last_started_at or one.started_at, worker.worker_id))
    found = []
    for worker in one.workers:
        found.append(_Stay(one, worker.worker_id, one.started_at, whole_end, 0, is_last=False, is_thread=True))
        start, end = _known_span(worker, one.started_at)
        is_last = worker is last
        if is_last and not _is_waiting(one):
            end = max(end, whole_end)
        found.append(_Stay(one, worker.worker_id, start, end, worker.process_count, is_last=is_last))
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


def _positions(stays: Sequence[_Stay]) -> dict[tuple[int, str], tuple[float, float]]:
    """Return for each stay (by try and lane) where it begins and ends, as percentages.

    All beginnings and ends are put in order; the space between two neighbours is as wide as the time between them,
    and wider where a stay would otherwise be narrower than it may be.
    """
    edges = sorted(
        [((stay.start, stay.attempt.try_number, 0), stay, True) for stay in stays]
        + [((stay.end, stay.attempt.try_number, 1), stay, False) for stay in stays],
        key=lambda edge: edge[0],
    )
    first: dict[tuple[int, str], int] = {}
    last: dict[tuple[int, str], int] = {}
    for index, (_, stay, begins) in enumerate(edges):
        (first if begins else last)[stay.attempt.try_number, stay.lane] = index
    total = (edges[-1][0][0] - edges[0][0][0]) / timedelta(seconds=1)
    gaps = [
        ((after[0][0] - before[0][0]) / timedelta(seconds=1) / total if total else 0.0)
        for before, after in zip(edges, edges[1:], strict=False)
    ]
    least = min(0.06, 0.7 / len(stays))
    for key in sorted(first, key=lambda key: sum(gaps[first[key] : last[key]])):
        inside = range(first[key], last[key])
        missing = least - sum(gaps[index] for index in inside)
        if missing > 0 and inside:
            for index in inside:
                gaps[index] += missing / len(inside)
    width = sum(gaps) or 1.0
    places = [0.0]
    for gap in gaps:
        places.append(places[-1] + gap / width * 100)
    return {key: (places[first[key]], places[last[key]]) for key in first}


# --- lanes ----------------------------------------------------------------------------------------------------------


def _lanes(
    stays: Sequence[_Stay],
    marks: Mapping[str, str],
    positions: Mapping[tuple[int, str], tuple[float, float]],
) -> tuple[Lane, ...]:
    own = list(marks)[:MAX_LANES] if len(marks) > MAX_LANES + 1 else list(marks)
    rest = [worker_id for worker_id in marks if worker_id not in own]
    lanes = [
        Lane(marks[worker_id], *_names(stays, worker_id), _bars(stays, (worker_id,), positions)) for worker_id in own
    ]
    if rest:
        lanes.append(
            Lane("…", words.count(len(rest), "more worker", "more workers"), "", _bars(stays, rest, positions))
        )
    nowhere = _bars(stays, (NOWHERE,), positions)
    if nowhere:
        lanes.append(Lane("–", "No worker", "", nowhere))
    return tuple(lane for lane in lanes if lane.bars)


def _names(stays: Iterable[_Stay], worker_id: str) -> tuple[str, str]:
    for stay in stays:
        for worker in stay.attempt.workers:
            if worker.worker_id == worker_id:
                if worker.host_only:
                    return f"a worker on {worker.hostname}", words.kind(worker.kind)
                return worker.name, words.kind(worker.kind)
    return worker_id, ""


def _bars(
    stays: Iterable[_Stay], lanes: Sequence[str], positions: Mapping[tuple[int, str], tuple[float, float]]
) -> tuple[Bar, ...]:
    mine = [stay for stay in stays if stay.lane in lanes]
    # Threads first: what is drawn later lies on top.
    return tuple(_bar(stay, positions) for stay in sorted(mine, key=lambda stay: not stay.is_thread))


def _bar(stay: _Stay, positions: Mapping[tuple[int, str], tuple[float, float]]) -> Bar:
    one = stay.attempt
    if stay.is_thread:
        all_of_it = [place for (try_number, _), place in positions.items() if try_number == one.try_number]
        x, end = min(place[0] for place in all_of_it), max(place[1] for place in all_of_it)
    else:
        x, end = positions[one.try_number, stay.lane]
    running = stay.is_last and _is_running(one)
    return Bar(
        try_number=one.try_number,
        x=f"{x:.2f}%",
        width=f"{max(end - x, 0.5):.2f}%",
        middle=f"{x + max(end - x, 0.5) / 2:.2f}%",
        state=(one.state or "no_status") if stay.is_last else "part",
        label=str(one.try_number),
        title=_title(stay),
        sure=one.attribution in SURE,
        running=running,
        is_thread=stay.is_thread,
    )


def _title(stay: _Stay) -> str:
    one = stay.attempt
    parts = [f"Try {one.try_number}"]
    if stay.lane != NOWHERE:
        name, kind = _names([stay], stay.lane)
        parts[0] += f" on {name} ({kind})" if kind else f" on {name}"
    else:
        parts[0] += ", on no worker"
    if stay.is_last:
        parts.append(words.state(one.state))
    parts.append(f"from {stay.start:%H:%M:%S} UTC, {words.duration((stay.end - stay.start).total_seconds())}")
    if stay.processes > 1:
        parts.append(words.count(stay.processes, "process", "processes"))
    return "; ".join(parts)


def _moment(value: datetime) -> words.Moment:
    found = words.moment(value)
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
    if any(not stay.is_thread and stay.attempt.attribution not in SURE and stay.lane for stay in stays):
        yield "Dashed: not reported by the worker itself."
