"""Why a try was placed where it was, and what is placed on a worker, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.reasons import (
    AGAIN,
    ELSEWHERE,
    FULL,
    INVALID_REQUEST,
    LEAST_LOADED,
    NO_LABEL,
    NO_SUCH_WORKER,
    NO_WORKER,
    NOT_AVAILABLE,
    OTHERS_FULL,
    ROUND_ROBIN,
    SHARED_QUEUE,
    SLOW,
    STICKY,
    STICKY_NEXT,
    WAITING,
    WORKERS_UNSEEN,
)
from airflow_worker_insight.ui import formatting
from airflow_worker_insight.ui.query_params import WaitingAddress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_worker_insight.store.placements import Placement, Why

_KEPT = {
    LEAST_LOADED: "the least loaded of those that fitted",
    ROUND_ROBIN: "the next in turn of those that fitted",
    STICKY: "the worker that this task sticks to",
    STICKY_NEXT: "the next of the workers that this task sticks to, because the first had no room",
    ELSEWHERE: "kept away from a worker that had failed this task",
    AGAIN: "on a worker that had failed this task before, because there was no other",
    SLOW: "on a worker that takes longer than others, because none of these took anything any more",
    SHARED_QUEUE: "handed to the queue that all its workers share, because nobody fitted",
}

_WAITED = {
    NO_WORKER: "no known worker consumes its queue",
    NOT_AVAILABLE: "no worker of its queue is available",
    NO_LABEL: "no available worker has the labels that it asks for",
    NO_SUCH_WORKER: "no worker has the name that it asks for",
    FULL: "all workers that fit are full",
    OTHERS_FULL: "the workers that have not failed it are full, or do not answer",
    INVALID_REQUEST: "what it asks for makes no sense",
    WORKERS_UNSEEN: "the workers cannot be seen",
}


@dataclass(frozen=True, slots=True)
class PlacedRow:
    """A try that waits at a worker for its start."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    placed: formatting.Moment | None
    why: str


@dataclass(frozen=True, slots=True)
class PlacedTries:
    """What is placed on a worker."""

    text: str
    rows: tuple[PlacedRow, ...]
    rest: str
    address: WaitingAddress
    """What waits here, among all that waits."""


def reason_text(reason: str) -> str:
    """Return why a try waits or was placed, without naming any worker."""
    return _WAITED.get(reason) or _KEPT.get(reason, reason)


def why_text(one: Why | None, *, has_started: bool = False, is_over: bool = False) -> str:
    """Return why a try was placed where it was, or waits; empty where no executor of this package placed it.

    :param has_started: whether a worker has begun with it
    :param is_over: whether it has ended
    """
    if one is None:
        return ""
    if one.reason not in WAITING:
        return f"Placed: {one.detail or _KEPT.get(one.reason, one.reason)}"
    if has_started:
        # The executor could not see the workers when it was sent.
        return "It waited for a worker, and was then sent to the queue that all its workers share"
    why = (one.detail or reason_text(one.reason)).removeprefix("waits: ")
    return f"{'Was not placed' if is_over else 'Not placed yet'}: {why}"


def build_placed(
    waiting: tuple[Sequence[Placement], int], taken: int, *, may_be_given: bool, worker_id: str
) -> PlacedTries:
    """Return what is placed on a worker and waits there.

    :param waiting: what waits, of Dags that the reader may read, and how much that is
    :param taken: how many tries of all Dags run on it or wait for it
    :param may_be_given: whether it is given new work
    :param worker_id: the worker, for the list of all that waits
    """
    rows, total = waiting
    waits = f"{formatting.count(total, 'try waits', 'tries wait')} here for a free slot."
    if not may_be_given:
        if not taken:
            text = "The worker is empty and gets no new tasks."
        elif total:
            text = f"The worker gets no new tasks. {waits}"
        else:
            runs = formatting.count(taken, "try still runs or waits", "tries still run or wait")
            text = f"The worker gets no new tasks. {runs} here."
    elif total:
        text = waits
    else:
        text = "Nothing that you may see waits here for a free slot." if taken else "No try waits here for a free slot."
    return PlacedTries(
        text,
        tuple(
            PlacedRow(
                one.key.dag_id,
                one.key.run_id,
                one.key.task_id,
                one.key.map_index,
                one.key.try_number,
                formatting.moment(one.placed_at),
                one.detail,
            )
            for one in rows
        ),
        f"And {total - len(rows):,} more." if total > len(rows) else "",
        WaitingAddress(worker=worker_id),
    )
