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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

DAGS = 400
WORKERS = 200
EVERY = timedelta(minutes=5)
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


@dataclass(frozen=True, slots=True)
class Start:
    """A task process starts."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    worker: int
    started_at: datetime
    reported_at: datetime
    ended_at: datetime
    state: str


@dataclass(frozen=True, slots=True)
class Closed:
    """A Dag run has ended and is reconciled: these are its tries."""

    tries: tuple[Start, ...]


def dag_ids() -> list[str]:
    """Return the IDs of all Dags, 22 characters each."""
    return [f"{_DOMAINS[n // 5 % 8]}_{_KINDS[n % 5]}_hour_{n // 40:02d}" for n in range(DAGS)]


def events(tries: int) -> Iterator[Start | Closed]:
    """Yield what happens, in order, until so many tries have started; what is under way then stays open."""
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
        for moment, event in _run(names[number % DAGS], logical, begin, number % 5 == 0, chance):
            heapq.heappush(waiting, (moment, order, event))
            order += 1
        number += 1


def _run(
    dag_id: str, logical: datetime, begin: datetime, mapped: bool, chance: random.Random
) -> list[tuple[datetime, Start | Closed]]:
    run_id = f"scheduled__{logical.isoformat()}"
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
            for one in _tries(dag_id, run_id, task_id, map_index, moment, chance):
                found.append(one)
                ends = max(ends, one.ended_at)
        moment = ends + timedelta(seconds=chance.uniform(0.5, 3))
    return [(one.reported_at, one) for one in found] + [(moment + timedelta(seconds=3), Closed(tuple(found)))]


def _tries(
    dag_id: str, run_id: str, task_id: str, map_index: int, moment: datetime, chance: random.Random
) -> Iterator[Start]:
    try_number = 1
    while True:
        started_at = moment + timedelta(seconds=chance.uniform(0.5, 3))
        ended_at = started_at + timedelta(seconds=chance.lognormvariate(3.6, 0.7))
        again = chance.random() < RETRIED
        yield Start(
            dag_id=dag_id,
            run_id=run_id,
            task_id=task_id,
            map_index=map_index,
            try_number=try_number,
            worker=chance.randrange(WORKERS),
            started_at=started_at,
            reported_at=started_at + timedelta(seconds=chance.uniform(0.1, 0.6)),
            ended_at=ended_at,
            state="failed" if again else "success",
        )
        if not again:
            return
        try_number += 1
        moment = ended_at + timedelta(seconds=60)
