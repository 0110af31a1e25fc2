"""Why a try was placed where it was, or why it waits: the words that are kept with it. Nothing is imported here."""

from __future__ import annotations

LEAST_LOADED, ROUND_ROBIN, STICKY = STRATEGIES = ("least_loaded", "round_robin", "sticky")
"""What chose the worker, where nothing spoke against what the strategy wanted."""

STICKY_NEXT = "sticky_next"
"""The worker that the task sticks to was full, or did not fit: the next one in its order."""

ELSEWHERE = "elsewhere"
"""A retry, kept away from a worker that has failed this task instance."""

AGAIN = "again"
"""A retry on a worker that has failed this task instance, because there is no other."""

SLOW = "slow"
"""The worker takes much longer than the others for the same tasks, but these took nothing any more."""

SHARED_QUEUE = "shared_queue"
"""Nobody fitted, and it was handed to the queue that all its workers share."""

NO_WORKER, NOT_AVAILABLE, NO_LABEL, NO_SUCH_WORKER, FULL, OTHERS_FULL, INVALID_REQUEST, WORKERS_UNSEEN = WAITING = (
    "waits_no_worker",
    "waits_not_available",
    "waits_no_label",
    "waits_no_such_worker",
    "waits_full",
    "waits_others_full",
    "waits_bad_wish",
    "waits_workers_unseen",
)
"""Why a task waits for a worker."""

# The order is what the database holds: words may be added at the end and never moved.
REASONS = (
    *(*STRATEGIES, STICKY_NEXT, ELSEWHERE, AGAIN, SHARED_QUEUE),
    *(NO_WORKER, NOT_AVAILABLE, NO_LABEL, FULL, OTHERS_FULL, INVALID_REQUEST),
    *(SLOW, NO_SUCH_WORKER, WORKERS_UNSEEN),
)
