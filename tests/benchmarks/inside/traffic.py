"""
What a busy deployment would record, in the order in which it would record it.

400 Dags run every five minutes, 10 task instances each, on 200 workers: some 14 tries start per second and some 600
Dag runs are open at any moment, so that the rows of one run lie scattered among those of many others. A fifth of the
Dags has a mapped task, 3 % of the tries fail and are tried again. The same numbers come out every time.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

DAGS = 400
WORKERS = 200
EVERY = timedelta(minutes=5)
TASKS = 10
RETRIED = 0.03
BEGIN = datetime(2026, 3, 1, tzinfo=timezone.utc)

_DOMAINS = ("billing", "catalog", "finance", "invoice", "pricing", "returns", "revenue", "traffic")
_KINDS = ("export", "import", "ledger", "orders", "report")
# The levels of each run: all tasks of a level start when those of the level before have ended.
_LEVELS = (
    ("wait_for_source_file",),
    ("extract_line_items", "extract_customers", "extract_price_list"),
    ("transform_by_region", "transform_by_segment", "transform_currencies", "check_for_duplicates"),
    ("load_into_warehouse", "publish_the_results"),
)
_MAPPED_LEVEL = 2
_MAPPED_TASK = "transform_partitions"


@dataclass(slots=True)
class Run:
    """A Dag run, which is reconciled at a time that is known when its last try has ended."""

    dag_id: str
    logical: datetime
    run_id: str
    closed_at: datetime


@dataclass(frozen=True, slots=True)
class Start:
    """A task process starts."""

    run: Run
    task_id: str
    map_index: int
    try_number: int
    worker: int
    started_at: datetime
    reported_at: datetime
    ended_at: datetime
    state: str
    conditions: dict[str, Any]
    """What the worker's machine is like: load per CPU, share of memory that is free, tries that run beside."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A Dag run has ended and is reconciled: these are its tries."""

    tries: tuple[Start, ...]


def dag_ids() -> list[str]:
    """Return the IDs of all Dags, 22 characters each."""
    return [f"{_DOMAINS[n // 5 % 8]}_{_KINDS[n % 5]}_hour_{n // 40:02d}" for n in range(DAGS)]


def task_ids() -> list[str]:
    """Return the IDs of all tasks."""
    return [task_id for level in _LEVELS for task_id in level] + [_MAPPED_TASK]


def run_id(logical: datetime) -> str:
    """Return the ID of the scheduled run for a time, 36 characters."""
    return f"scheduled__{logical.isoformat()}"


def events(tries: int, workers: int = WORKERS) -> Iterator[Start | Closed]:
    """Yield events in order until so many tries have started; running ones stay open."""
    chance = random.Random(20260301)
    names = dag_ids()
    waiting: list[tuple[datetime, int, Start | Closed]] = []
    started = order = number = 0
    step = EVERY / DAGS
    while started < tries:
        logical = BEGIN + EVERY * (number // DAGS)
        begin = BEGIN + step * number + timedelta(seconds=chance.uniform(1, 4))
        while waiting and waiting[0][0] <= begin and started < tries:
            event = heapq.heappop(waiting)[2]
            started += isinstance(event, Start)
            yield event
        run = Run(names[number % DAGS], logical, run_id(logical), closed_at=begin)
        for moment, event in _run(run, begin, number % 5 == 0, workers, chance):
            heapq.heappush(waiting, (moment, order, event))
            order += 1
        number += 1


def _run(
    run: Run, begin: datetime, mapped: bool, workers: int, chance: random.Random
) -> list[tuple[datetime, Start | Closed]]:
    found: list[Start] = []
    moment = begin
    for number, level in enumerate(_LEVELS):
        tasks = (
            [(_MAPPED_TASK, index) for index in range(4)]
            if mapped and number == _MAPPED_LEVEL
            else [(task_id, -1) for task_id in level]
        )
        ends = moment
        for task_id, map_index in tasks:
            for start in _tries(run, task_id, map_index, moment, workers, chance):
                found.append(start)
                ends = max(ends, start.ended_at)
        moment = ends + timedelta(seconds=chance.uniform(0.5, 3))
    run.closed_at = moment + timedelta(seconds=3)
    return [(start.reported_at, start) for start in found] + [(run.closed_at, Closed(tuple(found)))]


def _tries(
    run: Run, task_id: str, map_index: int, moment: datetime, workers: int, chance: random.Random
) -> Iterator[Start]:
    try_number = 1
    while True:
        started_at = moment + timedelta(seconds=chance.uniform(0.5, 3))
        ended_at = started_at + timedelta(seconds=chance.lognormvariate(3.6, 0.7))
        again = chance.random() < RETRIED
        yield Start(
            run=run,
            task_id=task_id,
            map_index=map_index,
            try_number=try_number,
            worker=chance.randrange(workers),
            started_at=started_at,
            reported_at=started_at + timedelta(seconds=chance.uniform(0.1, 0.6)),
            ended_at=ended_at,
            state="failed" if again else "success",
            conditions={
                "load": chance.lognormvariate(-0.7, 0.6),
                "memory_free": chance.uniform(0.05, 0.8),
                "running_beside": chance.randrange(16),
            },
        )
        if not again:
            return
        try_number += 1
        moment = ended_at + timedelta(seconds=60)
