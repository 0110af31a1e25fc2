"""Build synthetic workers, attempts written by the package itself, and Airflow's rows."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import text

from airflow_worker_insight.domain.attempts import AirflowTry, Conditions, StartedTry
from airflow_worker_insight.domain.keys import TryKey, instance_key
from airflow_worker_insight.domain.workers import WorkerRecord
from airflow_worker_insight.store.attempts import close as attempts_close
from airflow_worker_insight.store.attempts.start import record_start
from airflow_worker_insight.store.tables import attempt, worker

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    import traffic  # type: ignore[import-not-found]
    from sqlalchemy.engine import Connection

TABLE = attempt.name

PROCESS = 4711
"""The key of each try's task process."""

REGIONS = ("eu-central-1", "eu-west-1", "us-east-1")


def worker_record(number: int, started_at: datetime) -> WorkerRecord:
    """Return a worker, described as fully as a real one; four are on each host."""
    host = f"airflow-worker-{number // 4:03d}.prod.example.internal"
    region = REGIONS[number // 4 % len(REGIONS)]
    name = f"worker{number % 4}@{host}"
    return WorkerRecord(
        worker_id=f"celery-{number:024x}",
        name=name,
        engine_name=name,
        kind="celery",
        hostname=host,
        pid=1000 + number,
        started_at=started_at,
        labels={"region": region, "zone": f"{region}{'abc'[number // 12 % 3]}"},
        resources={"cpus": 8, "memory_bytes": 34359738368, "os": "Debian GNU/Linux 12", "architecture": "x86_64"},
        versions={"airflow": "3.3.2", "python": "3.12.8", "celery": "5.6.0"},
    )


def key(start: traffic.Start) -> TryKey:
    """Return the key of a try."""
    return TryKey(start.run.dag_id, start.run.run_id, start.task_id, start.map_index, start.try_number)


def instance(at: TryKey) -> int:
    """Return the key of the task instance that :func:`write_airflow_rows` writes for a try."""
    names = "|".join(map(str, (at.dag_id, at.run_id, at.task_id, at.map_index, at.try_number)))
    return instance_key(str(UUID(hashlib.md5(names.encode(), usedforsecurity=False).hexdigest())))


def conditions(start: traffic.Start) -> Conditions:
    """Return what the worker's machine was like when a try started."""
    return Conditions(**start.conditions)


def record(connection: Connection, start: traffic.Start, by: WorkerRecord) -> None:
    """Record the start of a try as the claim does."""
    at = key(start)
    record_start(
        connection,
        StartedTry(at, instance(at), start.started_at),
        by,
        now=start.reported_at,
        process=PROCESS,
        conditions=conditions(start),
    )


def close(connection: Connection, tries: Iterable[traffic.Start]) -> None:
    """Close tries as reconciling does."""
    ended = [
        AirflowTry(at, (instance(at),), state=start.state, started_at=start.started_at, ended_at=start.ended_at)
        for start in tries
        for at in [key(start)]
    ]
    attempts_close.close_tries(connection, [(airflow_try.row_keys[0], airflow_try) for airflow_try in ended])


def stored(connection: Connection, column: str, value: str) -> Any:
    """Return the stored value of a word: states and the like are stored as numbers."""
    processor = attempt.c[column].type.bind_processor(connection.dialect)
    return value if processor is None else processor(value)


def check_equal(connection: Connection) -> None:
    """Fail if the rows written in bulk are not of the kind that the real statements write."""
    nullness = " || ".join(f"(({column.name} IS NULL)::int)::text" for column in attempt.columns)
    found = connection.execute(
        text(
            f"SELECT {nullness}, ordinal, process_count, attribution, start_slot = floor(extract(epoch FROM "
            f"started_at) / 600) AS is_its_slot, count(*) FROM {TABLE} WHERE ended_at IS NOT NULL "
            "GROUP BY 1, 2, 3, 4, 5 LIMIT 10"
        )
    ).all()
    if len(found) != 1 or not found[0].is_its_slot:
        raise AssertionError(f"rows of several kinds: {found}")


def vacuum(connection: Connection, *tables: str, options: str = "") -> None:
    """Vacuum tables, outside a transaction as PostgreSQL wants it."""
    raw: Any = connection.connection.dbapi_connection
    raw.rollback()
    raw.autocommit = True
    with raw.cursor() as cursor:
        for table in tables:
            cursor.execute(f"VACUUM {options} {table}")
    raw.autocommit = False


# --- Airflow's own rows ----------------------------------------------------------------------------------------------

_TRIES = f"""
CREATE TEMPORARY TABLE tries ON COMMIT DROP AS
SELECT a.run_id, a.dag_id, a.task_id, a.map_index, a.try_number, a.started_at, w.hostname,
       CASE WHEN a.ended_at <= CAST(:now AS timestamptz) THEN a.ended_at END AS ended_at,
       CASE WHEN a.ended_at IS NULL OR a.ended_at > CAST(:now AS timestamptz) THEN 'running'
            WHEN lead(a.try_number) OVER attempts IS NULL THEN 'success' ELSE 'failed' END AS state,
       lead(a.try_number) OVER attempts IS NULL AS is_last,
       md5(concat_ws('|', a.dag_id, a.run_id, a.task_id, a.map_index, a.try_number))::uuid AS id
FROM (SELECT * FROM {TABLE} ORDER BY start_slot DESC LIMIT :latest) a JOIN {worker.name} w ON w.id = a.worker_ref
WINDOW attempts AS (PARTITION BY a.run_key, a.task_id, a.map_index ORDER BY a.try_number)
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

AIRFLOW_TABLES = ("dag_run", "task_instance", "task_instance_history")


def write_airflow_rows(connection: Connection, *, latest: int, now: datetime | None = None) -> None:
    """Write Airflow's own rows of the latest tries, earlier tries of a task in the history.

    :param now: a try that ends later runs; without it those do that have not ended
    """
    with connection.begin():
        # Skips the triggers that check foreign keys: a million checks take minutes.
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("SET LOCAL work_mem = '256MB'"))
        connection.execute(text(f"TRUNCATE {', '.join(AIRFLOW_TABLES)} CASCADE"))
        connection.execute(text(_TRIES), {"latest": latest, "now": now or "infinity"})
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
    vacuum(connection, *AIRFLOW_TABLES, options="ANALYZE")
