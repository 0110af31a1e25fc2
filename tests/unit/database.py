"""Airflow's metadata database for unit tests, and rows of Airflow's own tables in it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.dialects import postgresql

from airflow_worker_insight import compat
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.attempts import DagRunRef, StartedTry
from airflow_worker_insight.domain.keys import TryKey, instance_key
from airflow_worker_insight.domain.workers import WorkerRecord
from airflow_worker_insight.store import airflow_history
from airflow_worker_insight.store.attempts import close as attempts_close
from airflow_worker_insight.store.attempts import start
from airflow_worker_insight.store.tables import VERSION_TABLE, attempt, metadata, worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Column, Table
    from sqlalchemy.engine import Connection, Engine

    from tests.support.services import Postgres

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)
"""When things happen in these tests."""

# SQLAlchemy 1.4 has no dialect for psycopg 3, which Airflow 3.3's PostgreSQL provider is the first to bring.
_has_psycopg_3 = hasattr(postgresql, "psycopg") and find_spec("psycopg") is not None
_on_postgresql = ["postgresql", *(["psycopg"] if _has_psycopg_3 else [])]

on_postgresql = pytest.mark.parametrize("database", _on_postgresql, indirect=True)
"""Runs a test on PostgreSQL with psycopg 2, and with psycopg 3 where Airflow can use it."""

on_both = pytest.mark.parametrize("database", ["sqlite", *_on_postgresql], indirect=True)
"""Runs a test on SQLite, and on PostgreSQL with each driver: for statements that are written differently for each."""

OUR_TABLES = [*(table.name for table in metadata.sorted_tables), VERSION_TABLE]
"""All that somebody can lock."""

_moments = itertools.count()

OUR_COMMAND = "from airflow_worker_insight.cli import main; main()"


def at(seconds: float) -> datetime:
    """Return a moment so many seconds after :data:`NOON`."""
    return NOON + timedelta(seconds=seconds)


STARTED, ENDED, RUN_ENDED = at(10), at(20), at(600)


@dataclass(frozen=True)
class Database:
    """A database of this test's own, to which Airflow in this process is connected."""

    url: str

    @property
    def engine(self) -> Engine:
        """Airflow's engine."""
        return metadata_database.engine()

    def attempts(self) -> list[dict[str, Any]]:
        """Return all rows of our attempt table, each with its worker's ID under ``worker_id``."""
        statement = (
            select(attempt, worker.c.worker_id)
            .select_from(attempt.outerjoin(worker, worker.c.id == attempt.c.worker_ref))
            .order_by(attempt.c.task_id, attempt.c.map_index, attempt.c.try_number, attempt.c.ordinal)
        )
        with self.engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(statement)]

    def workers(self) -> list[dict[str, Any]]:
        """Return all rows of our worker table."""
        with self.engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(select(worker).order_by(worker.c.id))]


@contextmanager
def locked(database: Database, table: str, mode: str = "ACCESS EXCLUSIVE") -> Iterator[None]:
    """Hold a lock until the block ends, at most a minute; fail where the block has waited for its end."""
    with database.engine.connect() as other, other.begin():
        other.execute(text("SET LOCAL idle_in_transaction_session_timeout = '60s'"))
        other.execute(text(f"LOCK TABLE {table} IN {mode} MODE"))
        yield
        # PostgreSQL ends the connection of one who holds it longer.
        other.execute(text("SELECT 1"))


_KEPT_ROWS = """
SELECT coalesce(string_agg(hash, ',' ORDER BY name), '') AS hashes FROM (
    SELECT c.relname AS name,
        md5(query_to_xml(format('SELECT * FROM %%I ORDER BY 1', c.relname), true, false, '')::text) AS hash
    FROM pg_class c WHERE c.relname = ANY(%(tables)s) AND c.relnamespace = 'public'::regnamespace
) AS kept
"""
_SCHEMA = """
SELECT md5(string_agg(item, ',' ORDER BY item)) AS hash FROM (
    SELECT format('%s.%s %s %s %s %s', a.attrelid::regclass, a.attname, a.atttypid, a.atttypmod, a.attnotnull,
        pg_get_expr(d.adbin, d.adrelid)) AS item
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE c.relnamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname ~ '^(pg_|information_schema)')
    AND NOT a.attisdropped
    UNION ALL SELECT format('%s %s', conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint
    UNION ALL SELECT pg_get_indexdef(indexrelid) || indisvalid FROM pg_index
    UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_'
    UNION ALL SELECT setconfig::text FROM pg_db_role_setting
        WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
) AS items
"""
_TABLES_WITH_ROWS = """
SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
AND (xpath('/row/filled/text()', query_to_xml(
    format('SELECT EXISTS (SELECT 1 FROM %I) AS filled', relname), true, true, '')))[1]::text = 'true'
"""
_SEQUENCES = "SELECT sequencename AS name, last_value AS last FROM pg_sequences WHERE last_value IS NOT NULL"


class ReusedDatabases:
    """
    Copies of a PostgreSQL database, each for one test after the other: making one costs more than most tests.

    A copy is emptied between two tests. One whose schema, settings or given rows a test has changed is dropped.
    """

    def __init__(self, server: Postgres, template: str) -> None:
        self.server = server
        self._template = template
        self._free: list[str] = []
        name = server.create_database(template)
        self._given = [row["relname"] for row in server.execute(_TABLES_WITH_ROWS, database=name)]
        self._sequences = self._read_sequences(name)
        self._fingerprint = self._read_fingerprint(name)
        self._free.append(name)

    def take(self) -> str:
        """Return the name of a database as the template is."""
        return self._free.pop() if self._free else self.server.create_database(self._template)

    def give_back(self, name: str) -> None:
        """Empty a database for the next test, or drop it where that is not all that has to be done."""
        self.server.disconnect(name)
        if self._read_fingerprint(name) != self._fingerprint:
            self.server.drop_database(name)
            return
        filled = {row["relname"] for row in self.server.execute(_TABLES_WITH_ROWS, database=name)} - {*self._given}
        # In this role no trigger asks for the order of foreign keys.
        statements = ["SET session_replication_role = replica", *(f'DELETE FROM "{table}"' for table in filled)]
        for sequence in self._read_sequences(name).items() - self._sequences.items():
            last = self._sequences.get(sequence[0])
            restart = f"'\"{sequence[0]}\"', {last or 1}, {'true' if last else 'false'}"
            statements.append(f"SELECT setval({restart})")
        self.server.execute("; ".join(statements), database=name)
        self._free.append(name)

    def _read_fingerprint(self, name: str) -> tuple[str, str]:
        (schema,) = self.server.execute(_SCHEMA, database=name)
        (rows,) = self.server.execute(_KEPT_ROWS, {"tables": self._given}, database=name)
        return schema["hash"], rows["hashes"]

    def _read_sequences(self, name: str) -> dict[str, int]:
        return {row["name"]: row["last"] for row in self.server.execute(_SEQUENCES, database=name)}


def make_tables(url: str, *, with_ours: bool = True) -> None:
    """Have Airflow's own command make its tables, and ours make its own where Airflow's does not."""
    run_command(url, "-m", "airflow", "db", "migrate")
    if with_ours and compat.airflow_version() < (3, 2):
        run_command(url, "-c", OUR_COMMAND, "db", "migrate")


def run_command(url: str, *arguments: str, expect: int = 0, **env: str) -> str:
    """Run this Python in a process of its own, with Airflow connected to ``url``; return what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url, "COLUMNS": "200", **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == expect, done.stdout
    return done.stdout


# --- rows of Airflow's tables ----------------------------------------------------------------------------------------


def add_run(
    connection: Connection,
    dag_id: str = "etl",
    run_id: str = "run-1",
    *,
    state: str = "success",
    started_at: datetime = NOON,
    ended_at: datetime | None = RUN_ENDED,
) -> DagRunRef:
    """Store a Dag run."""
    run = metadata_database.dag_run_table()
    times: dict[str, Any] = {"start_date": started_at, "end_date": ended_at}
    if "created_at" in run.c:
        times["created_at"] = started_at
    if compat.is_airflow_3():
        times["run_after"] = NOON
    else:
        # 2.11 allows a Dag only one run of each moment.
        times["execution_date"] = at(-next(_moments))
    _store(connection, run, dag_id=dag_id, run_id=run_id, state=state, run_type="manual", **times)
    row_id = connection.execute(select(run.c.id).where(run.c.dag_id == dag_id, run.c.run_id == run_id)).scalar_one()
    return DagRunRef(row_id, dag_id, run_id, state, started_at)


def add_try(
    connection: Connection,
    run: DagRunRef,
    task_id: str = "extract",
    map_index: int = -1,
    try_number: int = 1,
    *,
    state: str | None = "success",
    started_at: datetime | None = STARTED,
    ended_at: datetime | None = ENDED,
    hostname: str | None = "host-1",
    history: bool = False,
    try_id: uuid.UUID | None = None,
    **others: Any,
) -> TryKey:
    """Store a try: the task instance's last one, or with ``history`` an earlier one (store the last one first)."""
    # What ran without a word of a scheduler or an executor ran in a test.
    others.setdefault("external_executor_id", "celery-task-1")
    table = metadata_database.task_instance_history_table() if history else metadata_database.task_instance_table()
    names = (run.dag_id, run.run_id, task_id, map_index)
    id_column = "task_instance_id" if history else "id"
    if compat.is_airflow_3():
        others[id_column] = metadata_database.stored_try_id(try_id or _try_id(TryKey(*names, try_number)))
    _store(
        connection,
        table,
        dag_id=run.dag_id,
        run_id=run.run_id,
        task_id=task_id,
        map_index=map_index,
        try_number=try_number,
        state=state,
        start_date=started_at,
        end_date=ended_at,
        hostname=hostname or "",
        pool="default_pool",
        **others,
    )
    return TryKey(run.dag_id, run.run_id, task_id, map_index, try_number)


def _try_id(key: TryKey) -> uuid.UUID:
    """Return the ID that Airflow 3 gives a try here, unless a test says another one."""
    return uuid.uuid5(uuid.NAMESPACE_URL, repr(key))


def instance_of(connection: Connection, key: TryKey) -> int:
    """Return the key of the task instance of a try: of Airflow's own where it has one, else of one that it had."""
    known = airflow_history.tries_by_row(connection, [key]).values()
    found = next((one.instance_keys[0] for one in known if one.key == key), None)
    if found is not None:
        return found
    return instance_key(str(_try_id(key))) if compat.is_airflow_3() else key.task_key


def record_start(
    connection: Connection,
    key: TryKey,
    record: WorkerRecord,
    *,
    try_started_at: datetime | None,
    state: str = "running",
    **others: Any,
) -> None:
    """Write that a process of a try started on a worker: the try that Airflow has by these names, if it has one."""
    started = StartedTry(key, instance_of(connection, key), try_started_at, state)
    start.record_start(connection, started, record, **others)


def close(connection: Connection, run: DagRunRef) -> None:
    """Write the ends of all tries of a Dag run as Airflow has them."""
    tries = airflow_history.tries_of_runs(connection, [run])
    attempts_close.close_tries(connection, [(one.row_keys[0], one) for one in tries])


def change_try(connection: Connection, key: TryKey, **values: Any) -> None:
    """Change the row of a task instance's last try."""
    table = metadata_database.task_instance_table()
    done = connection.execute(
        table.update()
        .where(
            table.c.dag_id == key.dag_id,
            table.c.run_id == key.run_id,
            table.c.task_id == key.task_id,
            table.c.map_index == key.map_index,
        )
        .values(**values)
    )
    assert done.rowcount == 1


def xcoms(connection: Connection) -> list[tuple[str, str, Any]]:
    """Return task, key and value of all stored XComs."""
    table = metadata_database.xcom_model().__table__
    rows: Iterable[Any] = connection.execute(select(table.c.task_id, table.c.key, table.c.value).order_by(table.c.key))
    return [tuple(row) for row in rows]


def a_worker(worker_id: str = "celery-1", **others: Any) -> WorkerRecord:
    """Return a worker's description."""
    known: dict[str, Any] = {
        "name": f"{worker_id}@host-1",
        "kind": "celery",
        "hostname": "host-1",
        "pid": 100,
        "started_at": at(-3600),
        "labels": {"zone": "a"},
        "resources": {"cpus": 4},
        "versions": {"airflow": "3"},
    }
    return WorkerRecord(worker_id=worker_id, **{**known, **others})


def _store(connection: Connection, table: Table, **values: Any) -> None:
    for column in table.c:
        if column.name not in values and _must_be_given(column):
            values[column.name] = _anything(column)
    connection.execute(insert(table).values(**values))


def _must_be_given(column: Column[Any]) -> bool:
    has_default = column.default is not None or column.server_default is not None
    return not column.nullable and not has_default and not (column.primary_key and column.name == "id")


def _anything(column: Column[Any]) -> Any:
    kind = column.type.python_type
    return NOON if kind is datetime else kind()
