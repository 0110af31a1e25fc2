"""Stored reasons why a try was placed on a worker or why it waits. Imports nothing."""

from __future__ import annotations

LEAST_LOADED, ROUND_ROBIN, STICKY = STRATEGIES = ("least_loaded", "round_robin", "sticky")
"""Strategies that chose the worker, if nothing overruled their first choice."""

STICKY_NEXT = "sticky_next"
"""The next worker in the task's order: the one it sticks to was full or did not fit."""

ELSEWHERE = "elsewhere"
"""A retry that avoids a worker that has failed this task instance."""

AGAIN = "again"
"""A retry on a worker that has failed this task instance, because there is no other."""

SLOW = "slow"
"""A worker much slower than the others on the same tasks; these took no more tasks."""

SHARED_QUEUE = "shared_queue"
"""No worker fitted, so the task was sent to the queue that all workers share."""

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
"""Reasons why a task waits for a worker."""

# The database stores positions in this order: append new values, never move existing ones.
REASONS = (
    *(*STRATEGIES, STICKY_NEXT, ELSEWHERE, AGAIN, SHARED_QUEUE),
    *(NO_WORKER, NOT_AVAILABLE, NO_LABEL, FULL, OTHERS_FULL, INVALID_REQUEST),
    *(SLOW, NO_SUCH_WORKER, WORKERS_UNSEEN),
)
