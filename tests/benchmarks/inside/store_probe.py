"""Fill the tables as a busy deployment would, and measure them, under Airflow's Python.

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

import filling  # type: ignore[import-not-found]
import traffic  # type: ignore[import-not-found]
from filling import TABLE
from psycopg2.extras import execute_batch
from sqlalchemy import text

from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.filters import AttemptFilter
from airflow_worker_insight.store.attempts import queries as attempt_queries
from airflow_worker_insight.store.tables import attempt, start_slot, worker
from airflow_worker_insight.store.workers.upsert import upsert_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy.engine import Connection

WINDOW = 200
"""Tries written at once: about 15 seconds of the traffic."""

REAL_EVERY = 100
"""One window in so many goes through the real statements."""

# autovacuum_vacuum_threshold and autovacuum_vacuum_scale_factor, PostgreSQL's defaults.
VACUUM_THRESHOLD, VACUUM_SCALE_FACTOR = 50, 0.2


# --- filling ---------------------------------------------------------------------------------------------------------


class Filler:
    """Writes the traffic into the tables."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.cursor: Any = connection.connection.cursor()
        self.records = [filling.worker_record(number, traffic.BEGIN) for number in range(traffic.WORKERS)]
        self.rows = self.changed = self.windows = self.vacuums = 0
        with connection.begin():
            self._prepare()
            self.refs = [upsert_worker(connection, record, now=traffic.BEGIN) for record in self.records]

    def _prepare(self) -> None:
        # Vacuumed at known points instead, so that every run measures the same.
        self.cursor.execute(f"ALTER TABLE {TABLE} SET (autovacuum_enabled = off)")
        state = attempt.c.state.type.compile(self.connection.dialect)
        self.cursor.execute(
            f"PREPARE close_try (bigint, bigint, integer, {state}, timestamptz, timestamptz, integer) AS "
            f"UPDATE {TABLE} SET state = $4, started_at = $5, ended_at = $6, start_slot = $7 "
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
            filling.vacuum(self.connection, TABLE)
            self.changed = 0
            self.vacuums += 1

    def _really(self, starts: Sequence[traffic.Start], ended: Sequence[traffic.Start]) -> None:
        for start in starts:
            filling.record(self.connection, start, self.records[start.worker])
        filling.close(self.connection, ended)

    def _in_bulk(self, starts: Sequence[traffic.Start], ended: Sequence[traffic.Start]) -> None:
        lines = io.StringIO()
        columns: list[str] = []
        for start in starts:
            row = self._row(start)
            columns = columns or list(row)
            lines.write("\t".join(map(str, row.values())) + "\n")
        lines.seek(0)
        self.cursor.copy_expert(f"COPY {TABLE} ({', '.join(columns)}) FROM STDIN", lines)
        execute_batch(
            self.cursor,
            "EXECUTE close_try (%s, %s, %s, %s, %s, %s, %s)",
            [self._closing(start) for start in ended],
            page_size=WINDOW,
        )

    def _row(self, start: traffic.Start) -> dict[str, Any]:
        """Return the columns that are not NULL in what the real statement writes."""
        at = filling.key(start)
        return {
            "run_key": at.run_key,
            "task_key": filling.instance(at),
            "try_number": at.try_number,
            "worker_ref": self.refs[start.worker],
            "map_index": at.map_index,
            "ordinal": 0,
            "process_count": 1,
            "process_key": filling.PROCESS,
            "started_at": start.started_at,
            "start_slot": start_slot(start.started_at),
            "state": filling.stored(self.connection, "state", "running"),
            "attribution": filling.stored(self.connection, "attribution", "reported"),
            "dag_id": at.dag_id,
            "run_id": at.run_id,
            "task_id": at.task_id,
            **filling.conditions(start).columns(),
        }

    def _closing(self, start: traffic.Start) -> tuple[Any, ...]:
        """Return what close_try takes."""
        at = filling.key(start)
        state = filling.stored(self.connection, "state", start.state)
        slot = start_slot(start.started_at)
        return at.run_key, filling.instance(at), at.try_number, state, start.started_at, start.ended_at, slot


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
    """Return the milliseconds of each call in its own transaction, after ``warm`` more."""
    found = []
    for call in calls:
        begin = time.perf_counter()
        with connection.begin():
            call()
        found.append((time.perf_counter() - begin) * 1000)
    return found[warm:]


def queries(connection: Connection, panels: int, lists: int) -> dict[str, list[float]]:
    """Return the milliseconds of the queries of pages and REST, for random keys."""
    warm = 10
    all_dags = traffic.dag_ids()
    worker_ids = [filling.worker_record(number, traffic.BEGIN).worker_id for number in range(traffic.WORKERS)]
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
            attempt_queries.task_instance_attempts(
                connection, dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index
            )
        )

    def page(offset: int = 0, **filters: Any) -> Callable[[], object]:
        return lambda: expect(
            attempt_queries.list_attempts(
                connection, AttemptFilter(**filters), dag_ids=all_dags, limit=50, offset=offset
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
            connection, [page(worker_id=worker_ids[n * 7 % traffic.WORKERS]) for n in numbers], 2
        ),
        "list: one Dag": timed(connection, [page(dag_id=all_dags[n * 13 % len(all_dags)]) for n in numbers], 2),
        "list: one Dag run": timed(
            connection, [page(dag_id=row.dag_id, run_id=row.run_id) for row in instances[: lists + 2]], 2
        ),
    }


def expect(found: Sequence[object]) -> None:
    """Fail if a query found nothing, which is not what it is to measure."""
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
    with metadata_database.engine().connect() as connection:
        filler = Filler(connection)
        events = traffic.events(max(wanted) + WINDOW)
        for size in wanted:
            begin = time.perf_counter()
            filler.fill(events, size)
            filled = time.perf_counter()
            filling.vacuum(connection, TABLE, options="ANALYZE")
            with connection.begin():
                filling.check_equal(connection)
                found = {**sizes(connection), "vacuums": filler.vacuums}
            filling.write_airflow_rows(connection, latest=found["attempts"])
            filling.vacuum(connection, worker.name, options="ANALYZE")
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
