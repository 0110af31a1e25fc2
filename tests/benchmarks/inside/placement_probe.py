"""Time placement decisions here, and print microseconds per decision as JSON."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

from airflow_worker_insight.domain.reasons import PlacementStrategy
from airflow_worker_insight.executors.placement.policy import Candidate, Placer, Task


def main() -> None:
    """Read the numbers of rounds, tasks and workers, then the last two again for full workers."""
    rounds = int(sys.argv[1])
    cases = [
        (f"{strategy}, {size} workers{more}", strategy, int(size), int(tasks), bool(more))
        for strategy in PlacementStrategy.values()
        for tasks, sizes, more in ((*sys.argv[2:4], ""), (*sys.argv[4:6], ", all full"))
        for size in sizes.split(",")
    ]
    found: dict[str, list[float]] = {name: [] for name, *_ in cases}
    for _ in range(rounds):
        for name, strategy, size, number, is_full in cases:
            candidates = fleet(size, number)
            if is_full:
                candidates = [replace(candidate, load=candidate.capacity) for candidate in candidates]
            placer = Placer(strategy, candidates)
            tasks = work(number, size)
            began = time.perf_counter()
            for task in tasks:
                placer.place(task)
            found[name].append((time.perf_counter() - began) / number * 1e6)
    print(json.dumps(found))


def fleet(size: int, tasks: int) -> list[Candidate]:
    """Return workers of three sizes on two queues, one in twenty drained, with enough slots."""
    return [
        Candidate(
            ref=number,
            worker_id=f"celery-{number}",
            name=f"worker-{number}@etl-{number // 4}",
            queues=frozenset({"default", "large"} if number % 3 == 0 else {"default"}),
            concurrency=(8, 16, 32)[number % 3],
            capacity=2 * tasks,
            load=number % 7,
            labels={"zone": "abc"[number % 3]},
            availability="draining" if number % 20 == 19 else "available",
        )
        for number in range(size)
    ]


def work(tasks: int, size: int) -> list[Task]:
    """Return tasks of 500 Dags: one in ten asks for a label, one in thirty is a retry."""
    return [
        Task(
            dag_id=f"dag-{number % 500}",
            run_id="run",
            task_id=f"task-{number % 10}",
            map_index=-1,
            try_number=2 if number % 30 == 0 else 1,
            queue="large" if number % 5 == 0 else "default",
            labels={"zone": "a"} if number % 10 == 0 else {},
            avoid=frozenset({f"worker-{number % size}@etl-{number % size // 4}"}) if number % 30 == 0 else frozenset(),
        )
        for number in range(tasks)
    ]


if __name__ == "__main__":
    main()
