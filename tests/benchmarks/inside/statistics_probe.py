"""Fill the tables of statistics as the analysis would, and measure adding and queries, under Airflow's Python."""

from __future__ import annotations

import argparse
import json
import random
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import filling  # type: ignore[import-not-found]
from sqlalchemy import text

from airflow_worker_insight.analysis.rollup import Rollup
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.filters import AttemptFilter
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.domain.statistics import Bucket, Selection
from airflow_worker_insight.domain.tries import AnalyzedTry, TryOutcome, TryWorker
from airflow_worker_insight.store import statistics
from airflow_worker_insight.store.insight_tables import unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Connection

BEGIN = datetime(2026, 1, 1, tzinfo=timezone.utc)
DAYS = 90
TRIES_PER_HOUR = 4
"""Tries of each worker that fill an hour; more would make no more rows."""

STEP_SECONDS = 30
TRIES_PER_SECOND = 100


def workers(number: int) -> list[TryWorker]:
    """Return named workers on half as many hosts, in four zones."""
    return [
        TryWorker(
            ref=index,
            worker_id=f"w{index}",
            name=f"w{index}@etl-{index // 2}",
            kind="celery",
            hostname=f"etl-{index // 2}",
            labels={"zone": "abcd"[index % 4]},
        )
        for index in range(number)
    ]


def a_try(chance: random.Random, worker: TryWorker, ended_at: datetime, tasks: int) -> AnalyzedTry:
    """Return a try of one of the tasks, ten to a Dag."""
    task = chance.randrange(tasks)
    key = TryKey(f"dag_{task // 10}", "run", f"task_{task % 10}", -1, 1)
    started_at = ended_at - timedelta(seconds=chance.uniform(5, 600))
    return AnalyzedTry(
        row_key=key.key_by_names,
        key=key,
        worker=worker,
        started_at=started_at,
        outcome=TryOutcome.FAILED if chance.random() < 0.05 else TryOutcome.SUCCESS,
        ended_at=ended_at,
        queue=f"queue_{worker.ref % 10}",
        queued_at=started_at - timedelta(seconds=3),
    )


def fill(connection: Connection, number: int, tasks: int) -> None:
    """Write so many days, merged as they end."""
    chance, known = random.Random(7), workers(number)
    for day in range(DAYS):
        for hour in range(24):
            begin = BEGIN + timedelta(days=day, hours=hour)
            rollup = Rollup()
            for worker in known:
                for _ in range(TRIES_PER_HOUR):
                    ended_at = begin + timedelta(seconds=chance.uniform(0, 3600))
                    rollup.add(a_try(chance, worker, ended_at, tasks), expected_failure=0.05)
                rollup.add_slots(worker, 16, begin, begin + timedelta(hours=1))
            with connection.begin():
                statistics.add(connection, rollup.take())
        more = 1
        while more:
            with connection.begin():
                more = statistics.merge_days(connection, BEGIN + timedelta(days=day + 1))
    for table in (*statistics.TABLES, unit):
        filling.vacuum(connection, table.name, options="ANALYZE")


def timed(connection: Connection, call: Callable[[], object], times: int) -> list[float]:
    """Return the milliseconds of each call in its own transaction, after two more."""
    found = []
    for _ in range(times + 2):
        begin = time.perf_counter()
        with connection.begin():
            call()
        found.append((time.perf_counter() - begin) * 1000)
    return found[2:]


def queries(connection: Connection, number: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what is asked for, by name."""
    until = BEGIN + timedelta(days=DAYS)

    def asked(group_by: str, bucket: Bucket, days: float, **filters: str) -> Callable[[], object]:
        selection = Selection(group_by, bucket, until - timedelta(days=days), until, AttemptFilter(**filters))
        return lambda: statistics.query(connection, selection, dag_ids=None, limit=1000, offset=0)

    one = workers(number)[number // 2].name
    for group_by in ("worker", "host", "kind", "label:zone", "queue", "dag", "task"):
        yield f"90 days by {group_by}", asked(group_by, Bucket.NONE, 90)
    yield "90 days by worker and day", asked("worker", Bucket.DAY, 90)
    yield "90 days by kind and day", asked("kind", Bucket.DAY, 90)
    yield "90 days of one worker by day", asked("worker", Bucket.DAY, 90, worker_name=one)
    yield "90 days of one Dag by task", asked("task", Bucket.NONE, 90, dag_id="dag_1")
    yield "the last day by worker", asked("worker", Bucket.NONE, 1)
    yield "14 days by kind and hour", asked("kind", Bucket.HOUR, 14)
    day = until - timedelta(days=1)
    yield "heat map of the last day", lambda: statistics.heat_map(connection, since=day, until=until)
    week = until - timedelta(days=7)
    yield "heat map of 7 days", lambda: statistics.heat_map(connection, since=week, until=until)


def adding(connection: Connection, number: int, tasks: int, times: int) -> list[float]:
    """Return the milliseconds of adding each step of the analysis to the statistics."""
    chance, known = random.Random(8), workers(number)
    now = BEGIN + timedelta(days=DAYS, minutes=30)
    found = []
    for step in range(times + 2):
        begin = now + timedelta(seconds=step * STEP_SECONDS)
        tries = [a_try(chance, chance.choice(known), begin, tasks) for _ in range(STEP_SECONDS * TRIES_PER_SECOND)]
        before = time.perf_counter()
        rollup = Rollup()
        for each in tries:
            rollup.add(each, expected_failure=0.05)
        for worker in known:
            rollup.add_slots(worker, 16, begin, begin + timedelta(seconds=STEP_SECONDS))
        with connection.begin():
            statistics.add(connection, rollup.take())
        found.append((time.perf_counter() - before) * 1000)
    return found[2:]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--tasks", type=int, required=True)
    parser.add_argument("--times", type=int, default=20)
    args = parser.parse_args()
    with metadata_database.engine().connect() as connection:
        begin = time.perf_counter()
        fill(connection, args.workers, args.tasks)
        filled = time.perf_counter() - begin
        with connection.begin():
            rows = {
                table.name: connection.execute(
                    text(f"SELECT count(*), pg_total_relation_size('{table.name}') FROM {table.name}")
                ).one()
                for table in (*statistics.TABLES, unit)
            }
        milliseconds = {name: timed(connection, call, args.times) for name, call in queries(connection, args.workers)}
        steps = adding(connection, args.workers, args.tasks, args.times)
    found = {
        "fill_seconds": filled,
        "rows": {name: {"rows": row[0], "bytes": row[1]} for name, row in rows.items()},
        "milliseconds": milliseconds,
        "steps": steps,
        "tries_per_step": STEP_SECONDS * TRIES_PER_SECOND,
    }
    args.output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
