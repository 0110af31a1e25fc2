"""Fill the tables as a busy deployment would, and measure them at each of the sizes given: run by Airflow's Python.

The rows come in the order in which they would arrive, and each is closed when its Dag run ends. One start in a hundred
goes through the real statements, as does one closing in a hundred; the others are written in bulk, equal to those. The
table is vacuumed whenever autovacuum's defaults would have it vacuumed.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import traffic  # type: ignore[import-not-found]
from psycopg2.extras import execute_batch
from sqlalchemy import text

from airflow_worker_insight import compat
from airflow_worker_insight.store import closing, reading
from airflow_worker_insight.store.airflow_tries import AirflowTry
from airflow_worker_insight.store.keys import TryKey
from airflow_worker_insight.store.recording import WorkerRecord, record_start, upsert_worker
from airflow_worker_insight.store.tables import attempt, worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy.engine import Connection

WINDOW = 200
"""Tries written at once: some 15 seconds of the traffic."""

REAL_EVERY = 100
"""One window in so many goes through the real statements."""

TABLE = attempt.name

# autovacuum_vacuum_threshold and autovacuum_vacuum_scale_factor, PostgreSQL's defaults.
VACUUM_THRESHOLD, VACUUM_SCALE_FACTOR = 50, 0.2


# --- filling ---------------------------------------------------------------------------------------------------------


def worker_record(number: int) -> WorkerRecord:
    """Return one of the workers, described as fully as a real one describes itself."""
    host = f"airflow-worker-{number // 4:02d}.prod.example.internal"
    return WorkerRecord(
        worker_id=f"celery-{number:024x}",
        name=f"worker{number % 4}@{host}",
        kind="celery",
        hostname=host,
        pid=1000 + number,
        started_at=traffic.BEGIN,
        labels={"region": "eu-central-1", "zone": "eu-central-1a"},
        resources={"cpus": 8, "memory_bytes": 34359738368, "os": "Debian GNU/Linux 12", "architecture": "x86_64"},
        versions={"airflow": "3.3.2", "python": "3.12.8", "celery": "5.6.0"},
    )


def key(one: traffic.Start) -> TryKey:
    """Return the key of a try."""
    return TryKey(one.dag_id, one.run_id, one.task_id, one.map_index, one.try_number)


class Filler:
    """Writes the traffic into the tables."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.cursor: Any = connection.connection.cursor()
        self.records = [worker_record(number) for number in range(traffic.WORKERS)]
        # How the database holds a value of a column, where that is not the value: states are stored as numbers.
        self.stored: dict[str, Callable[[Any], Any]] = {
            name: processor
            for name in ("state", "attribution")
            if (processor := attempt.c[name].type.bind_processor(connection.dialect)) is not None
        }
        self.rows = self.changed = self.windows = self.vacuums = 0
        with connection.begin():
            self._prepare()
            self.refs = [upsert_worker(connection, one, now=traffic.BEGIN) for one in self.records]

    def _prepare(self) -> None:
        # It is vacuumed at known points instead, so that every run of the benchmark finds the same.
        self.cursor.execute(f"ALTER TABLE {TABLE} SET (autovacuum_enabled = off)")
        state = attempt.c.state.type.compile(self.connection.dialect)
        self.cursor.execute(
            f"PREPARE close_try (bigint, bigint, integer, {state}, timestamptz, timestamptz) AS "
            f"UPDATE {TABLE} SET state = $4, started_at = $5, ended_at = $6 "
            "WHERE run_key = $1 AND task_key = $2 AND try_number = $3"
        )

    def fill(self, events: Iterable[traffic.Start | traffic.Closed], tries: int) -> None:
        """Write events until the table holds so many rows."""
        starts: list[traffic.Start] = []
        ended: list[traffic.Start] = []
        for event in events:
            if isinstance(event, traffic.Closed):
                ended += event.tries
                continue
            starts.append(event)
            if len(starts) == WINDOW:
                self._write(starts, ended)
                starts, ended = [], []
                if self.rows >= tries:
                    return

    def _write(self, starts: Sequence[traffic.Start], ended: Sequence[traffic.Start]) -> None:
        write = self._really if self.windows % REAL_EVERY == 0 else self._in_bulk
        with self.connection.begin():
            write(starts, ended)
        self.windows += 1
        self.rows += len(starts)
        self.changed += len(ended)
        if self.changed > VACUUM_THRESHOLD + VACUUM_SCALE_FACTOR * self.rows:
            self.vacuum(TABLE)
            self.vacuums += 1

    def _really(self, starts: Sequence[traffic.Start], ended: Sequence[traffic.Start]) -> None:
        for one in starts:
            record_start(
                self.connection,
                key(one),
                self.records[one.worker],
                try_started_at=one.started_at,
                state="running",
                now=one.reported_at,
            )
        closing.close_tries(self.connection, [_airflow_try(one) for one in ended])

    def _in_bulk(self, starts: Sequence[traffic.Start], ended: Sequence[traffic.Start]) -> None:
        lines = io.StringIO()
        columns: list[str] = []
        for one in starts:
            row = self._row(one)
            columns = columns or list(row)
            lines.write("\t".join(map(str, row.values())) + "\n")
        lines.seek(0)
        self.cursor.copy_expert(f"COPY {TABLE} ({', '.join(columns)}) FROM STDIN", lines)
        execute_batch(
            self.cursor,
            "EXECUTE close_try (%s, %s, %s, %s, %s, %s)",
            [
                (at.run_key, at.task_key, at.try_number, self._store("state", one.state), one.started_at, one.ended_at)
                for one in ended
                for at in (key(one),)
            ],
            page_size=WINDOW,
        )

    def _row(self, one: traffic.Start) -> dict[str, Any]:
        """Return the columns that are not NULL in what the real statement writes."""
        at = key(one)
        return {
            "run_key": at.run_key,
            "task_key": at.task_key,
            "try_number": at.try_number,
            "worker_ref": self.refs[one.worker],
            "map_index": at.map_index,
            "ordinal": 0,
            "process_count": 1,
            "started_at": one.started_at,
            "state": self._store("state", "running"),
            "attribution": self._store("attribution", "reported"),
            "dag_id": at.dag_id,
            "run_id": at.run_id,
            "task_id": at.task_id,
        }

    def _store(self, column: str, value: str) -> Any:
        return self.stored[column](value) if column in self.stored else value

    def vacuum(self, *tables: str, options: str = "") -> None:
        """Vacuum tables, outside a transaction as PostgreSQL wants it."""
        raw: Any = self.connection.connection.dbapi_connection
        raw.rollback()
        raw.autocommit = True
        for table in tables:
            self.cursor.execute(f"VACUUM {options} {table}")
        raw.autocommit = False
        self.changed = 0


def _airflow_try(one: traffic.Start) -> AirflowTry:
    """Return a try as reconciling reads it from Airflow's tables."""
    return AirflowTry(
        key=key(one),
        state=one.state,
        started_at=one.started_at,
        ended_at=one.ended_at,
        hostname=None,
        pid=None,
        queued_at=None,
        executor=None,
        queued_by_job_id=None,
    )


def check_equal(connection: Connection) -> None:
    """Fail if the rows written in bulk are not of the kind that the real statements write."""
    nullness = " || ".join(f"(({column.name} IS NULL)::int)::text" for column in attempt.columns)
    found = connection.execute(
        text(
            f"SELECT DISTINCT {nullness}, ordinal, process_count, attribution FROM {TABLE} "
            "WHERE ended_at IS NOT NULL LIMIT 10"
        )
    ).all()
    if len(found) != 1:
        raise AssertionError(f"rows of several kinds: {found}")


# --- Airflow's own rows ----------------------------------------------------------------------------------------------

_TRIES = f"""
CREATE TEMPORARY TABLE tries ON COMMIT DROP AS
SELECT a.run_id, a.dag_id, a.task_id, a.map_index, a.try_number, a.started_at, a.ended_at, w.hostname,
       CASE WHEN a.ended_at IS NULL THEN 'running'
            WHEN lead(a.try_number) OVER attempts IS NULL THEN 'success' ELSE 'failed' END AS state,
       lead(a.try_number) OVER attempts IS NULL AS is_last,
       (lpad(to_hex((extract(epoch FROM a.started_at) * 1000)::bigint), 12, '0')
        || substr(md5(random()::text), 13))::uuid AS id
FROM {TABLE} a JOIN {worker.name} w ON w.id = a.worker_ref
WINDOW attempts AS (PARTITION BY a.run_key, a.task_key ORDER BY a.try_number)
"""

_DAG_RUNS = """
INSERT INTO dag_run (dag_id, run_id, run_type, run_after, logical_date, queued_at, start_date, end_date, state,
                     clear_number)
SELECT dag_id, run_id, 'scheduled', min(started_at), substr(run_id, 12)::timestamptz, min(started_at),
       min(started_at), max(ended_at), CASE WHEN bool_or(ended_at IS NULL) THEN 'running' ELSE 'success' END, 0
FROM tries GROUP BY dag_id, run_id ORDER BY min(started_at)
"""

_VALUES = """
       task_id, dag_id, run_id, map_index, started_at, ended_at, extract(epoch FROM ended_at - started_at), state,
       try_number, 3, hostname, 'airflow', 'default_pool', 1, 'default', 1, 'PythonOperator', started_at, started_at, 1,
       4242, 'CeleryExecutor', md5(task_id), task_id, started_at
FROM tries"""

_COLUMNS = """
       task_id, dag_id, run_id, map_index, start_date, end_date, duration, state,
       try_number, max_tries, hostname, unixname, pool, pool_slots, queue, priority_weight, operator, queued_dttm,
       scheduled_dttm, queued_by_job_id, pid, executor, external_executor_id, task_display_name, updated_at"""


def write_airflow_rows(connection: Connection) -> None:
    """Give every try its row in Airflow's own tables: the last in task_instance, earlier ones in the history."""
    with connection.begin():
        # Foreign keys are checked by triggers: what is written here is right, and a million checks take minutes.
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("SET LOCAL work_mem = '256MB'"))
        connection.execute(text("TRUNCATE dag_run, task_instance, task_instance_history CASCADE"))
        connection.execute(text(_TRIES))
        connection.execute(text(_DAG_RUNS))
        connection.execute(
            text(f"INSERT INTO task_instance (id, {_COLUMNS}) SELECT id, {_VALUES} WHERE is_last ORDER BY started_at")
        )
        connection.execute(
            text(
                f"INSERT INTO task_instance_history (task_instance_id, {_COLUMNS}) "
                f"SELECT id, {_VALUES} WHERE NOT is_last ORDER BY started_at"
            )
        )


# --- measuring -------------------------------------------------------------------------------------------------------


def sizes(connection: Connection) -> dict[str, Any]:
    """Return bytes per row: in all, of the heap, and of each index."""
    rows = connection.execute(text(f"SELECT count(*) FROM {TABLE}")).scalar_one()
    total = connection.execute(text(f"SELECT pg_total_relation_size('{TABLE}')")).scalar_one()
    parts = {"heap": connection.execute(text(f"SELECT pg_table_size('{TABLE}')")).scalar_one()}
    indexes = text(
        "SELECT indexrelid::regclass::text, pg_relation_size(indexrelid) FROM pg_index "
        f"WHERE indrelid = '{TABLE}'::regclass ORDER BY 1"
    )
    for name, size in connection.execute(indexes):
        parts[name.removeprefix(f"{TABLE}_")] = size
    return {
        "attempts": rows,
        "total_bytes": total,
        "bytes_per_attempt": round(total / rows, 1),
        "bytes_split": {name: round(size / rows, 1) for name, size in parts.items()},
    }


def timed(connection: Connection, calls: Sequence[Callable[[], object]], warm: int) -> list[float]:
    """Return the milliseconds of each call, in a transaction of its own; the first ``warm`` are not counted."""
    found = []
    for call in calls:
        begin = time.perf_counter()
        with connection.begin():
            call()
        found.append((time.perf_counter() - begin) * 1000)
    return found[warm:]


def queries(connection: Connection, panels: int, lists: int) -> dict[str, list[float]]:
    """Return the milliseconds of the reader's queries, for what is picked at random."""
    warm = 10
    all_dags = traffic.dag_ids()
    with connection.begin():
        connection.execute(text("SELECT setseed(0.5)"))
        instances = connection.execute(
            text("SELECT dag_id, run_id, task_id, map_index FROM task_instance ORDER BY random() LIMIT :n"),
            {"n": panels + warm},
        ).all()
        retried = connection.execute(
            text("SELECT dag_id, run_id, task_id, map_index FROM task_instance_history ORDER BY random() LIMIT :n"),
            {"n": panels // 3 + warm},
        ).all()
        latest = connection.execute(text(f"SELECT max(started_at) FROM {TABLE}")).scalar_one()

    def panel(row: Any) -> Callable[[], object]:
        dag_id, run_id, task_id, map_index = row
        return lambda: expect(
            reading.task_instance_attempts(
                connection, dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index
            )
        )

    def page(offset: int = 0, **filters: Any) -> Callable[[], object]:
        return lambda: expect(
            reading.list_attempts(
                connection, reading.AttemptFilter(**filters), dag_ids=all_dags, limit=50, offset=offset
            )[0]
        )

    numbers = range(lists + 2)
    hour = timedelta(hours=1)
    begin: datetime = latest - hour
    return {
        "panel": timed(connection, [panel(row) for row in instances], warm),
        "panel, retried tasks": timed(connection, [panel(row) for row in retried], warm),
        "list: all, first page": timed(connection, [page() for _ in numbers], 2),
        "list: the last hour": timed(connection, [page(started_at_gte=begin) for _ in numbers], 2),
        "list: one worker": timed(
            connection, [page(worker_id=worker_record(n * 7 % traffic.WORKERS).worker_id) for n in numbers], 2
        ),
        "list: one Dag": timed(connection, [page(dag_id=all_dags[n * 13 % len(all_dags)]) for n in numbers], 2),
        "list: one Dag run": timed(
            connection, [page(dag_id=row.dag_id, run_id=row.run_id) for row in instances[: lists + 2]], 2
        ),
    }


def expect(found: Sequence[object]) -> None:
    """Fail if a query found nothing: then it was not the query that was to be measured."""
    if not found:
        raise AssertionError("nothing was found")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sizes", required=True)
    parser.add_argument("--panels", type=int, default=300)
    parser.add_argument("--lists", type=int, default=30)
    args = parser.parse_args()
    wanted = [int(size) for size in args.sizes.split(",")]
    results = []
    with compat.engine().connect() as connection:
        filler = Filler(connection)
        events = traffic.events(max(wanted) + WINDOW)
        for size in wanted:
            begin = time.perf_counter()
            filler.fill(events, size)
            filled = time.perf_counter()
            filler.vacuum(TABLE, options="ANALYZE")
            with connection.begin():
                check_equal(connection)
                found = {**sizes(connection), "vacuums": filler.vacuums}
            write_airflow_rows(connection)
            filler.vacuum("dag_run", "task_instance", "task_instance_history", worker.name, options="ANALYZE")
            airflow = time.perf_counter()
            found["milliseconds"] = queries(connection, args.panels, args.lists)
            found["seconds"] = {
                "fill": filled - begin,
                "airflow_rows": airflow - filled,
                "queries": time.perf_counter() - airflow,
            }
            results.append(found)
    args.output.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
