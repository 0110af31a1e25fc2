"""Setting for a scheduler's local workers: parsing and validation, no I/O."""

from __future__ import annotations

import re
from typing import NamedTuple

from airflow_worker_insight.domain.names import SINGLE_LOCAL_NAME, clean
from airflow_worker_insight.executors.placement.rules import PlacementConfigError

MAX_WORKERS = 64
MAX_CONCURRENCY = 1_000
"""Limit against typing errors: each slot is a process, and a machine bears only so many."""

UNLIMITED = 32
"""Slots to share if Airflow 2.11 has no limit: the default of its ``parallelism``."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,63}")
_WHERE = "[worker_insight] local_workers"


class LocalWorker(NamedTuple):
    """One of a scheduler's local workers."""

    name: str
    concurrency: int


def parse_local_workers(setting: str, parallelism: int) -> list[LocalWorker]:
    """Parse ``etl:8, reports:2``: names of workers with the number of their slots.

    Names without a number share evenly the slots that the others leave; each gets at least one.

    :param parallelism: how many tasks the executor runs at once; 0 for no limit
    :raises PlacementConfigError: with a message for operators
    """
    items = [_parse_item(item.strip()) for item in re.split(r"[,\n]", setting)]
    if len(items) > MAX_WORKERS:
        raise PlacementConfigError(f"{_WHERE} names {len(items)} workers; it may name at most {MAX_WORKERS}")
    # Some databases compare names case-insensitively.
    names: set[str] = set()
    for name, _ in items:
        if name.lower() in names:
            raise PlacementConfigError(f"{_WHERE} names the worker {name} twice")
        names.add(name.lower())
    sharing = sum(number is None for _, number in items)
    left = (parallelism or UNLIMITED) - sum(number or 0 for _, number in items)
    workers = []
    for name, number in items:
        slots = number
        if slots is None:
            # The first workers get the remainder.
            slots = min(MAX_CONCURRENCY, max(1, -(-left // sharing)))
            left, sharing = left - slots, sharing - 1
        workers.append(LocalWorker(name, slots))
    return workers


def _parse_item(item: str) -> tuple[str, int | None]:
    name, colon, number = (part.strip() for part in item.partition(":"))
    if not name:
        raise PlacementConfigError(f"{_WHERE} must be a list of name or name:number, and has an item without a name")
    if not _NAME.fullmatch(name):
        raise PlacementConfigError(
            f"{_WHERE}: {clean(repr(name), 80)} is not a valid worker name: use at most 63 of A-Z a-z 0-9 . _ -"
        )
    if name.lower() == SINGLE_LOCAL_NAME:
        raise PlacementConfigError(
            f"{_WHERE}: the worker of Airflow's own LocalExecutor is named {name}: choose another name"
        )
    if not colon:
        return name, None
    if not re.fullmatch(r"[0-9]{1,9}", number) or not 0 < int(number) <= MAX_CONCURRENCY:
        raise PlacementConfigError(
            f"{_WHERE}: the number of slots in {name}:{clean(number, 40)} must be a whole number from 1 to "
            f"{MAX_CONCURRENCY}"
        )
    return name, int(number)
