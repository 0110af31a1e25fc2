"""Attempts that were recorded late: the analysis may have read the time of their start before.

Only those that record them late pay for it: the usual start of a try writes nothing here.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from sqlalchemy import bindparam, delete, insert, select

from airflow_worker_insight import config
from airflow_worker_insight.store.batches import batches
from airflow_worker_insight.store.dialects import execute_and_count, in_rows, upsert
from airflow_worker_insight.store.insight_tables import late_attempt
from airflow_worker_insight.store.tables import attempt, key_columns, worker

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.keys import RowKey

_KEY = ("run_key", "task_key", "try_number")

BATCH = 1000
"""Rows that one statement deletes."""


def note_start(connection: Connection, start: Mapping[str, Any]) -> None:
    """Note a late attempt whose first worker has just been recorded; a further worker of a try is not noted.

    :param start: the parameters of the statement that recorded it (:func:`.start.record_start`)
    """
    if config.insight_enabled():
        names = ("p_run_key", "p_task_key", "p_try_number", "p_worker_id")
        connection.execute(_note_start(), {name: start[name] for name in names})


@cache
def _note_start() -> Any:
    columns = [attempt.c[name] for name in _KEY]
    noted = select(late_attempt.c.try_number).where(*(late_attempt.c[name] == attempt.c[name] for name in _KEY))
    row = (
        select(*columns)
        .select_from(attempt.join(worker, worker.c.id == attempt.c.worker_ref))
        .where(
            *(column == bindparam(f"p_{column.name}", type_=column.type) for column in columns),
            attempt.c.ordinal == 0,
            worker.c.reported_id == bindparam("p_worker_id"),
            ~noted.exists(),
        )
    )
    for dialect in ("postgresql", "sqlite"):
        row = row.suffix_with("ON CONFLICT DO NOTHING", dialect=dialect)
    return insert(late_attempt).from_select(list(_KEY), row)


def note(connection: Connection, row_keys: Collection[RowKey]) -> None:
    """Note late attempts."""
    if row_keys and config.insight_enabled():
        unchanged = {"try_number": late_attempt.c.try_number}
        statement = upsert(connection.dialect.name, late_attempt, None, key=_KEY, update=unchanged)
        connection.execute(statement, [dict(zip(_KEY, row_key, strict=True)) for row_key in sorted(row_keys)])


def read(connection: Connection, *, limit: int) -> list[RowKey]:
    """Return the keys of noted attempts."""
    rows = connection.execute(select(*key_columns(late_attempt)).limit(limit))
    return [(row.run_key, row.task_key, row.try_number) for row in rows]


def forget(connection: Connection, row_keys: Collection[RowKey]) -> None:
    """Delete notes that the analysis has read."""
    for batch in batches(sorted(row_keys), BATCH):
        connection.execute(delete(late_attempt).where(in_rows(connection, key_columns(late_attempt), batch)))


def delete_orphans(connection: Connection, *, limit: int = BATCH) -> int:
    """Delete notes whose attempt has been deleted, and return how many."""
    is_recorded = select(attempt.c.try_number).where(
        *(noted == own for noted, own in zip(key_columns(late_attempt), key_columns(attempt), strict=True))
    )
    rows = connection.execute(select(*key_columns(late_attempt)).where(~is_recorded.exists()).limit(limit)).all()
    keys = [tuple(row) for row in rows]
    if not keys:
        return 0
    return execute_and_count(
        connection, delete(late_attempt).where(in_rows(connection, key_columns(late_attempt), keys))
    )
