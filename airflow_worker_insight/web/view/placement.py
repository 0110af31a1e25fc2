"""Why a try was placed where it was, and what is placed on a worker, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.store import decisions
from airflow_worker_insight.web import words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_worker_insight.store.placements import Placement, Why

_KEPT = {
    decisions.LEAST_LOADED: "the least loaded of those that fitted",
    decisions.ROUND_ROBIN: "the next in turn of those that fitted",
    decisions.STICKY: "the worker that this task sticks to",
    decisions.STICKY_NEXT: "the next of the workers that this task sticks to, because the first had no room",
    decisions.ELSEWHERE: "kept away from a worker that had failed this task",
    decisions.AGAIN: "on a worker that had failed this task before, because there was no other",
    decisions.SLOW: "on a worker that takes longer than others, because none of these took anything any more",
    decisions.SHARED_QUEUE: "handed to the queue that all its workers share, because nobody fitted",
}

_WAITED = {
    decisions.NO_WORKER: "nobody consuming its queue",
    decisions.NOT_AVAILABLE: "nobody available who consumes its queue",
    decisions.NO_LABEL: "nobody available with the labels that it asks for",
    decisions.NO_SUCH_WORKER: "nobody with the name that it asks for",
    decisions.FULL: "no room at those that fit",
    decisions.OTHERS_FULL: "no room at those that have not failed it, or no answer",
    decisions.BAD_WISH: "what it asks for makes no sense",
    decisions.WORKERS_UNSEEN: "the workers could not be seen",
}


@dataclass(frozen=True, slots=True)
class PlacedRow:
    """A try that waits at a worker for its start."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    placed: words.Moment | None
    why: str


@dataclass(frozen=True, slots=True)
class PlacedTries:
    """What is placed on a worker."""

    text: str
    rows: tuple[PlacedRow, ...]
    rest: str


def why_text(one: Why | None, *, has_started: bool = False, is_over: bool = False) -> str:
    """Return why a try was placed where it was, or waits; empty where no executor of this package placed it.

    :param has_started: whether a worker has begun with it
    :param is_over: whether it has ended
    """
    if one is None:
        return ""
    if one.reason not in decisions.WAITING:
        return f"Placed: {one.detail or _KEPT.get(one.reason, one.reason)}"
    if has_started:
        # The executor could not see the workers when it was sent.
        return "It waited for a worker, and was then sent to the queue that all its workers share"
    why = (one.detail or _WAITED[one.reason]).removeprefix("waits: ")
    return f"{'Was not placed' if is_over else 'Not placed yet'}: {why}"


def build_placed(waiting: tuple[Sequence[Placement], int], taken: int, *, may_be_given: bool) -> PlacedTries | None:
    """Return what is placed on a worker and waits there; ``None`` where there is nothing to say.

    :param waiting: what waits, of Dags that the reader may read, and how much that is
    :param taken: how many tries of all Dags run on it or wait for it
    :param may_be_given: whether it is given new work
    """
    rows, total = waiting
    if not (taken or total) and may_be_given:
        return None
    if not may_be_given:
        text = (
            f"{words.count(taken, 'try', 'tries')} here {'has' if taken == 1 else 'have'} not ended; nothing new comes."
            if taken
            else "It is empty: no try runs or waits here, and nothing new comes."
        )
    elif total:
        text = f"{words.count(total, 'try waits', 'tries wait')} here for a free place."
    else:
        text = "Nothing that you may see waits here for a free place."
    return PlacedTries(
        text,
        tuple(
            PlacedRow(
                one.key.dag_id,
                one.key.run_id,
                one.key.task_id,
                one.key.map_index,
                one.key.try_number,
                words.moment(one.placed_at),
                one.detail,
            )
            for one in rows
        ),
        f"And {total - len(rows):,} more." if total > len(rows) else "",
    )
