"""Fill a deployment's tables with a fleet and its tries, under Airflow's Python.

The traffic of two hours comes again and again, each time on other workers and as other Dag runs. Rows are copied in the
order in which their tries started, closed where their Dag run has ended; the indexes are made afterwards. A few tries
go through the package's own statements, and the others must be equal to those.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filling  # type: ignore[import-not-found]
import traffic  # type: ignore[import-not-found]
from airflow.models.dag import DagModel
from airflow.models.dagbundle import DagBundleModel
from filling import TABLE
from sqlalchemy import insert, text, update

from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.keys import TryKey, run_key
from airflow_worker_insight.domain.states import source_of
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.tables import change, start_slot, worker, worker_source
from airflow_worker_insight.store.workers.upsert import upsert_worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Table
    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.workers import WorkerRecord

PERIODS = 24
"""How often each Dag runs within a cycle of the traffic."""

CYCLE = PERIODS * traffic.EVERY

REAL = 200
"""Tries that go through the package's own statements."""

SAMPLES = 60
"""How many workers, Dag runs and so on the samples hold."""

BUNDLE = "dags-folder"
ENGINES = sorted({source_of(kind) for kind in ("celery", "edge", "local", "kubernetes")})
QUEUES = ("default", "etl", "reports", "gpu", "priority", "bulk", "ml", "exports")


# --- the fleet -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a worker."""

    state: str
    ended_at: datetime | None = None
    successor: int | None = None
    """The worker that has taken its name."""


@dataclass(frozen=True, slots=True)
class Member:
    """One worker: its description and its fate."""

    record: WorkerRecord
    fate: Fate


def fleet(workers: int, begin: datetime, now: datetime) -> list[Member]:
    """Return the workers, per hundred 95 online, 1 unresponsive, 2 offline and 2 lost."""
    chance = random.Random(workers)
    found = []
    for number in range(workers):
        record = filling.worker_record(number, begin)
        word = {95: "unresponsive", 96: "offline", 97: "offline", 98: "lost", 99: "lost"}.get(number % 100, "online")
        if word in ("online", "unresponsive"):
            found.append(Member(record, Fate(word)))
            continue
        successor = number - 50
        named = found[successor].record
        record = replace(record, name=named.name, engine_name=named.engine_name, hostname=named.hostname)
        found.append(Member(record, Fate(word, now - timedelta(hours=chance.uniform(0.5, 20)), successor)))
    return found


def write_workers(connection: Connection, members: list[Member], begin: datetime, now: datetime) -> list[int]:
    """Write the fleet as the package would, and return the workers' row IDs."""
    chance = random.Random(len(members))
    refs = []
    for number, member in enumerate(members):
        fate = member.fate
        ref = upsert_worker(connection, member.record, now=begin + timedelta(seconds=number))
        refs.append(ref)
        decided = {50: "draining", 51: "quarantined"}.get(number % 100, "available")
        values = {
            "state": fate.state,
            "state_reason": _REASONS.get(fate.state),
            "last_seen_at": fate.ended_at or now - timedelta(seconds=chance.uniform(0, 30)),
            "ended_at": fate.ended_at,
            "availability": decided,
            "queues": sorted(chance.sample(QUEUES, chance.randint(1, 3))),
            "concurrency": 16,
            "running": 0 if fate.ended_at else chance.randrange(16),
            "engine_started_at": begin,
            "engine_heartbeat_at": fate.ended_at or now,
        }
        connection.execute(update(worker).where(worker.c.id == ref).values(values))
        connection.execute(insert(change), list(_changes(ref, fate, decided, begin, now, chance)))
    connection.execute(
        insert(worker_source),
        [
            # No poll may reach a fleet that does not exist, nor its rows become stale.
            {"name": name, "due_at": now + timedelta(days=1), "looked_at": now, "reached_since": begin, "error": None}
            for name in ENGINES
        ],
    )
    return refs


_REASONS = {
    "unresponsive": "No heartbeat for more than 60 seconds.",
    "offline": "Shut down gracefully.",
    "lost": "No heartbeat for more than 180 seconds.",
}


def _changes(
    ref: int, fate: Fate, decided: str, begin: datetime, now: datetime, chance: random.Random
) -> Iterator[dict[str, Any]]:
    """Yield a worker's history: it was unresponsive now and then, and some were drained."""
    entry = {"worker_ref": ref, "state": None, "availability": None, "reason": None, "changed_by": None}
    last = fate.ended_at or now
    silent = sorted(begin + (last - begin) * chance.random() for _ in range(chance.randrange(4)))
    yield {**entry, "changed_at": begin, "state": "online"}
    for moment in silent:
        yield {**entry, "changed_at": moment, "state": "unresponsive", "reason": _REASONS["unresponsive"]}
        yield {**entry, "changed_at": moment + timedelta(minutes=1), "state": "online"}
    if fate.state != "online":
        yield {**entry, "changed_at": last, "state": fate.state, "reason": _REASONS[fate.state]}
    if decided != "available":
        reason = "Its disk fills up: INC-4711."
        yield {**entry, "changed_at": last, "availability": decided, "reason": reason, "changed_by": "admin"}


# --- its tries -----------------------------------------------------------------------------------------------------

COLUMNS = (
    *("run_key", "task_key", "worker_ref", "started_at", "ended_at", "start_slot", "state"),
    # The same in each cycle.
    *("try_number", "map_index", "ordinal", "process_count", "process_key", "attribution", "task_id"),
    *("load", "memory_free", "running_beside"),
    *("dag_id", "run_id"),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One try of the cyclic traffic. Times are seconds from the beginning of its cycle."""

    starts: float
    lasts: float
    closes: float
    """When its Dag run is reconciled."""
    run: int
    """Which of the Dag runs of its cycle it belongs to, or of the cycle before."""
    is_of_cycle_before: bool
    worker: int
    state: int
    task: tuple[str, int, int]
    """Its task, map index and number."""
    columns: str
    """The columns that are the same in each cycle, as COPY takes them."""


class History:
    """All tries of the cycles until now."""

    def __init__(
        self, connection: Connection, refs: list[int], members: list[Member], tries: int, now: datetime
    ) -> None:
        self.now = now
        self._refs = refs
        self._failed = filling.stored(connection, "state", "failed")
        self._steps = list(self._template(connection, len(refs)))
        self._steps.sort(key=lambda step: step.starts)
        # Whole periods, so that the IDs of Dag runs are as Airflow writes them.
        since = now.timestamp() - tries / len(self._steps) * CYCLE.total_seconds()
        self.begin = datetime.fromtimestamp(since - since % traffic.EVERY.total_seconds(), timezone.utc)
        fates = [member.fate for member in members]
        self._ends = [math.inf if fate.ended_at is None else fate.ended_at.timestamp() for fate in fates]
        self._successors = [fate.successor or 0 for fate in fates]
        self._lost = [fate.state == "lost" for fate in fates]
        self.open_runs: set[int] = set()

    def _template(self, connection: Connection, workers: int) -> Iterator[Step]:
        number = {dag_id: index for index, dag_id in enumerate(traffic.dag_ids())}
        reported = filling.stored(connection, "attribution", "reported")
        # A little more than a cycle: until the last of its Dag runs has ended.
        for event in traffic.events(PERIODS * traffic.DAGS * traffic.TASKS * 3 // 2, workers):
            period = 0 if isinstance(event, traffic.Closed) else (event.run.logical - traffic.BEGIN) // traffic.EVERY
            if isinstance(event, traffic.Closed) or period >= PERIODS:
                continue
            starts = (event.started_at - traffic.BEGIN).total_seconds()
            cycles = starts // CYCLE.total_seconds()
            shift = cycles * CYCLE.total_seconds()
            fixed = (
                *(event.try_number, event.map_index, 0, 1, filling.PROCESS, reported, event.task_id),
                *filling.conditions(event).columns().values(),
            )
            yield Step(
                starts=starts - shift,
                lasts=(event.ended_at - event.started_at).total_seconds(),
                closes=(event.run.closed_at - traffic.BEGIN).total_seconds() - shift,
                run=period * traffic.DAGS + number[event.run.dag_id],
                is_of_cycle_before=bool(cycles),
                worker=event.worker,
                state=filling.stored(connection, "state", event.state),
                task=(event.task_id, event.map_index, event.try_number),
                columns="\t".join(map(str, fixed)),
            )

    def runs(self, cycle: int) -> list[tuple[int, str, str]]:
        """Return the Dag runs of a cycle: key, Dag and ID."""
        logical = [self.begin + cycle * CYCLE + period * traffic.EVERY for period in range(PERIODS)]
        ids = [traffic.run_id(moment) for moment in logical]
        return [(run_key(dag_id, run_id), dag_id, run_id) for run_id in ids for dag_id in traffic.dag_ids()]

    def lines(self) -> Iterator[str]:
        """Yield each row as COPY takes it, in the order of the starts."""
        now, workers = self.now.timestamp(), len(self._refs)
        before, cycle, base = self.runs(-1), 0, self.begin.timestamp()
        while base < now:
            runs = self.runs(cycle)
            for step in self._steps:
                starts = base + step.starts
                if starts > now:
                    break
                ends, number, state = starts + step.lasts, (step.worker + 7 * cycle) % workers, step.state
                if starts >= self._ends[number]:
                    number = self._successors[number]
                elif ends > self._ends[number] and self._lost[number]:
                    state = self._failed
                key, dag_id, run_id = (before if step.is_of_cycle_before else runs)[step.run]
                if base + step.closes > now:
                    self.open_runs.add(key)
                started_at = datetime.fromtimestamp(starts, timezone.utc)
                instance = filling.instance(TryKey(dag_id, run_id, *step.task))
                yield (
                    f"{key}\t{instance}\t{self._refs[number]}\t{started_at}\t"
                    f"{datetime.fromtimestamp(ends, timezone.utc)}\t"
                    f"{start_slot(started_at)}\t{state}\t{step.columns}\t{dag_id}\t{run_id}\n"
                )
            before, cycle, base = runs, cycle + 1, base + CYCLE.total_seconds()


class Lines:
    """A file of lines that are made while it is read."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines

    def read(self, _: int = 0) -> str:
        """Return the next lines, nothing at the end."""
        return "".join(islice(self._lines, 1000))


def write_attempts(connection: Connection, history: History, members: list[Member]) -> None:
    """Write all tries, a few of them through the package's own statements."""
    cursor: Any = connection.connection.cursor()
    with connection.begin():
        cursor.execute(f"TRUNCATE {TABLE}")
        real = [start for start in traffic.events(REAL, len(members)) if isinstance(start, traffic.Start)]
        for start in real:
            filling.record(connection, start, members[start.worker].record)
        filling.close(connection, real)
        indexes = _drop_indexes(cursor)
        cursor.copy_expert(f"COPY {TABLE} ({', '.join(COLUMNS)}) FROM STDIN", Lines(history.lines()))
        cursor.execute("SET LOCAL maintenance_work_mem = '512MB'")
        for statement in indexes:
            cursor.execute(statement)
    filling.vacuum(connection, TABLE, options="(FREEZE, ANALYZE)")


def _drop_indexes(cursor: Any) -> list[str]:
    """Drop all indexes and return the statements that make them again."""
    cursor.execute(
        "SELECT i.indexrelid::regclass::text, c.conname, pg_get_indexdef(i.indexrelid), pg_get_constraintdef(c.oid) "
        "FROM pg_index i LEFT JOIN pg_constraint c ON c.conindid = i.indexrelid "
        f"WHERE i.indrelid = '{TABLE}'::regclass"
    )
    statements = []
    for index, constraint, definition, key in cursor.fetchall():
        if constraint is None:
            cursor.execute(f"DROP INDEX {index}")
            statements.append(definition)
        else:
            cursor.execute(f"ALTER TABLE {TABLE} DROP CONSTRAINT {constraint}")
            statements.append(f"ALTER TABLE {TABLE} ADD CONSTRAINT {constraint} {key}")
    return statements


def reopen(connection: Connection, history: History) -> int:
    """Reopen the attempts of running Dag runs; return how many tries that are."""
    with connection.begin():
        statement = f"UPDATE {TABLE} SET state = :running, ended_at = NULL WHERE run_key = ANY(:keys)"
        running = filling.stored(connection, "state", "running")
        found = connection.execute(text(statement), {"running": running, "keys": list(history.open_runs)})
    return int(found.rowcount)


# --- Airflow's own rows ----------------------------------------------------------------------------------------------


def write_airflow(connection: Connection, begin: datetime, now: datetime) -> None:
    """Write the Dags, and two of each of Airflow's own services with those that ran before."""
    settings = {
        "bundle_name": BUNDLE,
        "is_stale": False,
        "max_active_tasks": 16,
        "max_consecutive_failed_dag_runs": 0,
        "has_task_concurrency_limits": False,
    }
    jobs = []
    for job_type in ("SchedulerJob", "TriggererJob", "DagProcessorJob"):
        for number in range(40):
            start = begin + (now - begin) * (number // 2) / 20
            end = None if number >= 38 else begin + (now - begin) * (number // 2 + 1) / 20
            jobs.append(
                {
                    "job_type": job_type,
                    "state": "success" if end else "running",
                    "hostname": f"airflow-{job_type.lower()}-{number % 2}.prod.example.internal",
                    "start_date": start,
                    "end_date": end,
                    "latest_heartbeat": end or now,
                    "executor_class": "CeleryExecutor",
                }
            )
    with connection.begin():
        connection.execute(insert(table(DagBundleModel)), {"name": BUNDLE})
        connection.execute(insert(table(DagModel)), [{"dag_id": dag_id, **settings} for dag_id in traffic.dag_ids()])
        connection.execute(insert(metadata_database.job_table()), jobs)


def table(model: Any) -> Table:
    """Return the table of one of Airflow's models."""
    found: Table = model.__table__
    return found


# --- samples ------------------------------------------------------------------------------------------------


def samples(members: list[Member], history: History) -> dict[str, Any]:
    """Return samples for queries: workers by state, Dag runs, hosts, Dags and tasks."""
    chance = random.Random(SAMPLES)
    records = {
        state: _sample(chance, [member.record for member in members if member.fate.state == state])
        for state in ("online", *_REASONS)
    }
    # Every Dag's run of these periods has begun.
    span = (history.now - history.begin) // traffic.EVERY - 2
    runs = [
        (chance.choice(traffic.dag_ids()), traffic.run_id(history.begin + chance.randrange(span) * traffic.EVERY))
        for _ in range(SAMPLES)
    ]
    return {
        "workers": {state: [record.worker_id for record in sample] for state, sample in records.items()},
        "names": [record.name for record in records["online"]],
        "hostnames": [record.hostname for record in records["online"]],
        "dag_ids": chance.sample(traffic.dag_ids(), SAMPLES),
        "runs": runs,
        "task_ids": traffic.task_ids(),
        "zones": sorted({record.labels["zone"] for record in records["online"]}),
        "queues": QUEUES,
        "fleet": len(members),
        "since": history.begin.isoformat(),
        "now": history.now.isoformat(),
    }


def _sample(chance: random.Random, those: list[Any]) -> list[Any]:
    return chance.sample(those, SAMPLES) if len(those) > SAMPLES else those


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--attempts", type=int, required=True)
    parser.add_argument("--airflow-rows", type=int, required=True)
    args = parser.parse_args()
    watch = [time.perf_counter()]
    with metadata_database.engine().connect() as connection:
        with connection.begin():
            now = database_now(connection)
            begin = now - timedelta(days=30)
            members = fleet(args.workers, begin, now)
            refs = write_workers(connection, members, begin, now)
        history = History(connection, refs, members, args.attempts, now)
        write_attempts(connection, history, members)
        watch.append(time.perf_counter())
        with connection.begin():
            filling.check_equal(connection)
        filling.write_airflow_rows(connection, latest=args.airflow_rows, now=now)
        not_closed = reopen(connection, history)
        write_airflow(connection, begin, now)
        filling.vacuum(connection, TABLE, worker.name, change.name, options="ANALYZE")
        watch.append(time.perf_counter())
        with connection.begin():
            found = connection.execute(
                text(
                    f"SELECT count(*) AS attempts, pg_total_relation_size('{TABLE}') AS bytes, "
                    "(SELECT count(*) FROM task_instance) AS task_instances, "
                    f"(SELECT count(*) FROM task_instance WHERE state = 'running') AS running FROM {TABLE}"
                )
            ).one()
    args.output.write_text(
        json.dumps(
            {
                "attempts": found.attempts,
                "bytes_per_attempt": round(found.bytes / found.attempts, 1),
                "not_closed": not_closed,
                "task_instances": found.task_instances,
                "running": found.running,
                "seconds": {"attempts": watch[1] - watch[0], "airflow": watch[2] - watch[1]},
                "samples": samples(members, history),
            }
        )
    )


if __name__ == "__main__":
    main()
