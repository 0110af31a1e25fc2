"""Fill the tables as a busy deployment would, and measure them at each of the sizes given: run by Airflow's Python.

The rows come in the order in which they would arrive, and each is closed when its Dag run ends. One start in fifty goes
through the real statement, as does one closing in fifty; the others are written in bulk as rows that equal them. The
table is vacuumed as often as autovacuum's defaults would have it vacuumed.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import time
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import traffic
from airflow_worker_insight import compat
from airflow_worker_insight.store import closing, reading
from airflow_worker_insight.store.airflow_tries import AirflowTry
from airflow_worker_insight.store.keys import TryKey
from airflow_worker_insight.store.recording import WorkerRecord, record_start, upsert_worker
from airflow_worker_insight.store.tables import attempt
from psycopg2.extras import execute_batch
from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.engine import Connection

WINDOW = 200
"""Tries per bulk: some 15 seconds of the traffic."""

REAL_EVERY = 50
"""One window in so many goes through the real statements."""

TABLE = attempt.name

PREPARE_CLOSE = f"""
PREPARE close_try (bigint, bigint, integer, smallint, timestamptz, timestamptz) AS
UPDATE {TABLE} SET state = $4, started_at = $5, ended_at = $6
WHERE run_key = $1 AND task_key = $2 AND try_number = $3
"""


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


class Filler:
    """Writes the traffic into the tables."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.cursor: Any = connection.connection.cursor()
        self.cursor.execute(PREPARE_CLOSE)
        self.records = [worker_record(number) for number in range(traffic.WORKERS)]
        with connection.begin():
            self.refs = [upsert_worker(connection, one, now=traffic.BEGIN) for one in self.records]
        dialect = connection.dialect
        # How the database holds a value of each column: Airflow's words are stored as numbers.
        self.stored: dict[str, Callable[[Any], Any]] = {
            column.name: column.type.bind_processor(dialect) or (lambda value: value) for column in attempt.columns
        }
        self.rows = 0
        self.changed = 0
        self.windows = 0

    def fill(self, events: Any, tries: int) -> None:
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
        self.windows += 1
        with self.connection.begin():
            if self.windows % REAL_EVERY == 1:
                self._really(starts, ended)
            else:
                self._in_bulk(starts, ended)
        self.rows += len(starts)
        self.changed += len(ended)
        # autovacuum_vacuum_threshold and autovacuum_vacuum_scale_factor, PostgreSQL's defaults.
        if self.changed > 50 + 0.2 * self.rows:
            self.vacuum()

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
        closing.close_tries(self.connection, [airflow_try(one) for one in ended])

    def _in_bulk(self, starts: Sequence[traffic.Start], ended: Sequence[traffic.Start]) -> None:
        lines = io.StringIO()
        for one in starts:
            row = self._row(one)
            values = (self.stored[name](row[name]) for name in self.stored)
            lines.write("\t".join("\\N" if value is None else str(value) for value in values) + "\n")
        lines.seek(0)
        self.cursor.copy_expert(f"COPY {TABLE} ({', '.join(self.stored)}) FROM STDIN", lines)
        execute_batch(
            self.cursor,
            "EXECUTE close_try (%s, %s, %s, %s, %s, %s)",
            [
                (at.run_key, at.task_key, at.try_number, self.stored["state"](one.state), one.started_at, one.ended_at)
                for one in ended
                for at in (key(one),)
            ],
            page_size=WINDOW,
        )

    def _row(self, one: traffic.Start) -> dict[str, Any]:
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
            "ended_at": None,
            "first_started_at": None,
            "last_started_at": None,
            "state": "running",
            "attribution": "reported",
            "dag_id": at.dag_id,
            "run_id": at.run_id,
            "task_id": at.task_id,
        }

    def vacuum(self, *, analyze: bool = False) -> None:
        """Do what autovacuum would do now."""
        raw = self.connection.connection.dbapi_connection
        raw.rollback()
        raw.autocommit = True
        self.cursor.execute(f"VACUUM {'ANALYZE' if analyze else ''} {TABLE}")
        raw.autocommit = False
        self.changed = 0


def key(one: traffic.Start) -> TryKey:
    """Return the key of a try."""
    return TryKey(one.dag_id, one.run_id, one.task_id, one.map_index, one.try_number)


def airflow_try(one: traffic.Start) -> AirflowTry:
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


def prepare(connection: Connection) -> None:
    """Switch autovacuum off for the table: it is vacuumed at known points instead."""
    with connection.begin():
        connection.execute(text(f"ALTER TABLE {TABLE} SET (autovacuum_enabled = off)"))


# --- measuring -------------------------------------------------------------------------------------------------------


def sizes(connection: Connection) -> dict[str, Any]:
    """Return bytes per row: in all, of the heap, and of each index."""
    rows = connection.execute(text(f"SELECT count(*) FROM {TABLE}")).scalar_one()
    total = connection.execute(text(f"SELECT pg_total_relation_size('{TABLE}')")).scalar_one()
    parts = {"heap": connection.execute(text(f"SELECT pg_table_size('{TABLE}')")).scalar_one()}
    indexes = text(f"SELECT indexrelid::regclass::text, pg_relation_size(indexrelid) FROM pg_index "
                   f"WHERE indrelid = '{TABLE}'::regclass ORDER BY 1")
    for name, size in connection.execute(indexes):
        parts[name] = size
    return {
        "rows": rows,
        "total_bytes": total,
        "bytes_per_attempt": round(total / rows, 1),
        "split": {name: round(size / rows, 1) for name, size in parts.items()},
        "hot": [tuple(r) for r in connection.execute(text(f"select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname='{TABLE}'"))],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", required=True)
    args = parser.parse_args()
    wanted = [int(size) for size in args.sizes.split(",")]
    results = []
    with compat.engine().connect() as connection:
        prepare(connection)
        filler = Filler(connection)
        events = traffic.events(max(wanted) + WINDOW)
        for size in wanted:
            begin = time.perf_counter()
            filler.fill(events, size)
            filled = time.perf_counter() - begin
            filler.vacuum(analyze=True)
            with connection.begin():
                results.append({**sizes(connection), "fill_seconds": round(filled, 1)})
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
