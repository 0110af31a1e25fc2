"""Analyse a day's busiest minutes through the database, step by step, under Airflow's Python.

A hundred tries start per second. Before each step their attempts and task instances are written as of its time, outside
what is measured.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import uuid
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg2.extras import execute_values
from sqlalchemy import event, func, select, text, update

from airflow_worker_insight.analysis.job import Job
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.keys import instance_key, run_key
from airflow_worker_insight.domain.workers import WorkerRecord
from airflow_worker_insight.store.insight_tables import detector_part
from airflow_worker_insight.store.tables import attempt, start_slot, worker
from airflow_worker_insight.store.workers.upsert import upsert_worker

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

BEGIN = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
PER_SECOND = 100


@dataclass(frozen=True)
class Planned:
    """A try that will start and end."""

    number: int
    started_at: datetime
    ended_at: datetime
    worker: int
    task_id: str
    state: str
    own: uuid.UUID

    @property
    def run_id(self) -> str:
        """A Dag run for each: of the mapped instances of one run the analysis counts only the first."""
        return f"run-{self.number}"


def plan(tries: int, workers: int, tasks: int) -> list[Planned]:
    """Return tries of heavy-tailed tasks, 2 % of which fail, on workers at random."""
    chance = random.Random(1)
    found = []
    for number in range(tries):
        started_at = BEGIN + timedelta(seconds=number / PER_SECOND)
        ended_at = started_at + timedelta(seconds=min(chance.lognormvariate(2, 1), 120))
        task = f"task_{min(int(chance.paretovariate(1)) - 1, tasks - 1)}"
        state = "failed" if chance.random() < 0.02 else "success"
        own = uuid.UUID(int=number + 1)
        found.append(Planned(number, started_at, ended_at, chance.randrange(workers), task, state, own))
    return found


def write_workers(connection: Connection, workers: int) -> list[int]:
    """Write workers that are alive for as long as this runs."""
    refs = []
    for number in range(workers):
        record = WorkerRecord(
            worker_id=f"celery-{number}",
            name=f"worker-{number}",
            kind="celery",
            hostname=f"host-{number // 4}",
            labels={"zone": "abc"[number // 12 % 3]},
        )
        refs.append(upsert_worker(connection, record, now=BEGIN))
    alive = {"last_seen_at": BEGIN + timedelta(days=1), "state": "online", "concurrency": 16}
    connection.execute(update(worker).values(alive))
    return refs


def write_starts(connection: Connection, tries: list[Planned], refs: list[int]) -> None:
    """Write what has started as Airflow and the claim do."""
    cursor: Any = connection.connection.cursor()
    reported = attempt.c.attribution.type.bind_processor(connection.dialect)("reported")
    running = attempt.c.state.type.bind_processor(connection.dialect)("running")
    execute_values(
        cursor,
        "INSERT INTO dag_run (dag_id, run_id, run_type, run_after, logical_date, start_date, state, clear_number) "
        "VALUES %s",
        [("etl", each.run_id, "scheduled", BEGIN, each.started_at, each.started_at, "running", 0) for each in tries],
    )
    execute_values(
        cursor,
        "INSERT INTO task_instance (id, dag_id, run_id, task_id, map_index, try_number, state, start_date, "
        "queued_dttm, queue, pool, pool_slots, max_tries, hostname, priority_weight, external_executor_id, "
        "task_display_name) VALUES %s",
        [
            (
                *(str(each.own), "etl", each.run_id, each.task_id, -1, 1, "running", each.started_at),
                *(each.started_at, "default", "default_pool", 1, 0, "host", 1, "id", each.task_id),
            )
            for each in tries
        ],
    )
    execute_values(
        cursor,
        f"INSERT INTO {attempt.name} (run_key, task_key, try_number, worker_ref, map_index, process_count, start_slot, "
        "ordinal, state, attribution, dag_id, run_id, task_id, started_at) VALUES %s",
        [
            (
                *(run_key("etl", each.run_id), instance_key(str(each.own)), 1, refs[each.worker], -1, 1),
                *(start_slot(each.started_at), 0, running, reported, "etl", each.run_id, each.task_id, each.started_at),
            )
            for each in tries
        ],
    )


def write_ends(connection: Connection, tries: list[Planned]) -> None:
    """Write what has ended as Airflow does."""
    execute_values(
        connection.connection.cursor(),
        "UPDATE task_instance SET state = given.state, end_date = given.ended_at FROM (VALUES %s) "
        "AS given (id, state, ended_at) WHERE task_instance.id = given.id",
        [(str(each.own), each.state, each.ended_at) for each in tries],
        template="(%s::uuid, %s, %s)",
    )


def main() -> None:
    """Write and analyse the tries, and say what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tries", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--tasks", type=int, required=True)
    parser.add_argument("--interval", type=int, default=30)
    args = parser.parse_args()
    tries = plan(args.tries, args.workers, args.tasks)
    engine = metadata_database.engine()
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE task_instance DISABLE TRIGGER ALL"))
        refs = write_workers(connection, args.workers)
    statements: list[tuple[str, float]] = []
    """Those of a step, each with its seconds in the database."""
    by_text: dict[str, float] = defaultdict(float)

    def begin(*_: object) -> None:
        statements.append(("", time.perf_counter()))

    def end(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seconds = time.perf_counter() - statements[-1][1]
        statements[-1] = (statement, seconds)
        by_text[" ".join(statement.split())] += seconds

    clock = BEGIN
    job = Job(clock=lambda _connection: clock)
    steps: list[dict[str, float]] = []
    begun = over = 0
    by_end = sorted(tries, key=lambda each: each.ended_at)
    while over < len(tries):
        clock += timedelta(seconds=args.interval)
        first_begun, first_over = begun, over
        while begun < len(tries) and tries[begun].started_at <= clock:
            begun += 1
        while over < len(tries) and by_end[over].ended_at <= clock:
            over += 1
        with engine.begin() as connection:
            if begun > first_begun:
                write_starts(connection, tries[first_begun:begun], refs)
            if over > first_over:
                write_ends(connection, by_end[first_over:over])
            # As autovacuum has done where the tables do not begin empty.
            connection.execute(text(f"ANALYZE dag_run, task_instance, {attempt.name}"))
        while True:
            statements.clear()
            event.listen(engine, "before_cursor_execute", begin)
            event.listen(engine, "after_cursor_execute", end)
            began, cpu = time.perf_counter(), time.thread_time()
            result = job.step()
            seconds, cpu_seconds = time.perf_counter() - began, time.thread_time() - cpu
            event.remove(engine, "before_cursor_execute", begin)
            event.remove(engine, "after_cursor_execute", end)
            steps.append(
                {
                    "seconds": seconds,
                    "cpu_seconds": cpu_seconds,
                    "statements": len(statements),
                    "database_seconds": sum(seconds for _, seconds in statements),
                    "started": result.started,
                    "ended": result.ended,
                    "lag": result.lag,
                }
            )
            if not result.is_behind:
                break
    job.finish()
    began = time.perf_counter()
    again = Job(clock=lambda _connection: clock)
    again.step()
    restored = time.perf_counter() - began
    with engine.connect() as connection:
        parts, size = connection.execute(select(func.count(), func.sum(func.length(detector_part.c.value)))).one()
    slowest = sorted(by_text.items(), key=lambda each: -each[1])[:5]
    found = {"slowest": slowest, "steps": steps, "restored_seconds": restored, "parts": parts, "state_bytes": int(size)}
    args.output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
