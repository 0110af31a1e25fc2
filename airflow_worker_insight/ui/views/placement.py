"""Texts about placement: why a try was placed or waits, and what is placed on a worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.reasons import WAITING_REASONS, PlacementReason
from airflow_worker_insight.ui import formatting
from airflow_worker_insight.ui.query_params import WaitingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_worker_insight.store.placements import Explanation, Placement

_PLACED_TEXTS: dict[str, str] = {
    PlacementReason.LEAST_LOADED: "the least loaded of the eligible workers",
    PlacementReason.ROUND_ROBIN: "the next in turn of the eligible workers",
    PlacementReason.STICKY: "the worker that this task sticks to",
    PlacementReason.STICKY_NEXT: "the next worker that this task sticks to: the first was full or not eligible",
    PlacementReason.RETRY_ELSEWHERE: "avoids a worker that failed this task",
    PlacementReason.RETRY_AGAIN: "on a worker that failed this task before: no other worker was eligible",
    PlacementReason.SLOW: "on a worker that takes longer: the faster ones took no more tasks",
    PlacementReason.SHARED_QUEUE: "sent to the shared queue: no worker was eligible",
}

_WAITING_TEXTS: dict[str, str] = {
    PlacementReason.NO_WORKER: "no known worker consumes its queue",
    PlacementReason.NOT_AVAILABLE: "no worker of its queue is available",
    PlacementReason.NO_LABEL: "no available worker has the requested labels",
    PlacementReason.NO_SUCH_WORKER: "no worker has the requested name",
    PlacementReason.FULL: "all eligible workers are full",
    PlacementReason.OTHERS_FULL: "the workers that have not failed it are full or unresponsive",
    PlacementReason.INVALID_REQUEST: "its placement request is invalid",
    PlacementReason.WORKERS_UNREACHABLE: "workers cannot be reached",
}


@dataclass(frozen=True, slots=True)
class PlacedTries:
    """Tries that are placed on a worker and have not started."""

    text: str
    rows: Sequence[Placement]
    rest: str
    params: WaitingParams
    """The list of waiting tries, filtered by this worker."""


def reason_text(reason: str) -> str:
    """Return why a try waits or was placed, without the name of a worker."""
    return _WAITING_TEXTS.get(reason) or _PLACED_TEXTS.get(reason, reason)


def why_text(placement: Explanation | None, *, has_started: bool = False, is_over: bool = False) -> str:
    """Return why a try was placed on its worker, or waits.

    Empty if no executor of this package decided.

    :param has_started: whether a worker has started the try
    :param is_over: whether the try has ended
    """
    if placement is None:
        return ""
    if placement.reason not in WAITING_REASONS:
        return f"Placed: {placement.detail or _PLACED_TEXTS.get(placement.reason, placement.reason)}"
    if has_started:
        # The executor sent it in fallback mode, while the workers were unavailable.
        return "Waited for a worker, then sent to the shared queue in fallback mode"
    why = (placement.detail or reason_text(placement.reason)).removeprefix("waits: ")
    return f"{'Not placed' if is_over else 'Not placed yet'}: {why}"


def build_placed(
    listed: tuple[Sequence[Placement], int], open_tries: int, *, gets_new_tasks: bool, worker_id: str
) -> PlacedTries:
    """Return the tries that are placed on a worker and wait to start there.

    :param listed: the waiting tries of Dags that the user may read, and their total number
    :param open_tries: the number of tries of all Dags that run on the worker or are placed on it
    :param gets_new_tasks: whether the executor sends new tasks to the worker
    :param worker_id: the worker's ID, to filter the list of waiting tries
    """
    rows, total = listed
    waiting_text = f"{formatting.count(total, 'try waits', 'tries wait')} for a free slot."
    if not gets_new_tasks:
        if not open_tries:
            text = "The worker is empty and gets no new tasks."
        elif total:
            text = f"The worker gets no new tasks. {waiting_text}"
        else:
            open_text = formatting.count(open_tries, "try still runs or waits", "tries still run or wait")
            text = f"The worker gets no new tasks. {open_text}."
    elif total:
        text = waiting_text
    else:
        text = "No try that you can see waits for a free slot." if open_tries else "No try waits for a free slot."
    return PlacedTries(
        text,
        rows,
        f"And {total - len(rows):,} more." if total > len(rows) else "",
        WaitingParams(worker=worker_id),
    )
