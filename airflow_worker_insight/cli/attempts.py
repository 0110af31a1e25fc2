"""``attempts list`` and ``workers attempts``: attempts and the workers that ran them."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.utils.cli import suppress_logs_and_warning

from airflow_worker_insight.api.responses import AttemptResponse
from airflow_worker_insight.cli import output
from airflow_worker_insight.cli.common import read_pages, require_tables
from airflow_worker_insight.cli.naming import find_worker
from airflow_worker_insight.domain.filters import AllDags, AttemptFilter, build
from airflow_worker_insight.store import session
from airflow_worker_insight.store.attempts import queries as attempt_queries

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.attempts import Attempt


@suppress_logs_and_warning
def list_attempts(args: Any) -> None:
    """List attempts on all workers."""
    require_tables()
    with session.reading(session.COMMAND) as connection:
        _show_attempts(connection, build(AttemptFilter, args), args)


@suppress_logs_and_warning
def list_worker_attempts(args: Any) -> None:
    """List the attempts that one worker ran."""
    require_tables()
    with session.reading(session.COMMAND) as connection:
        worker = find_worker(connection, args.worker, include_ended=True)
        filters = replace(build(AttemptFilter, args), worker_id=worker.worker_id)
        _show_attempts(connection, filters, args)


def _show_attempts(connection: Connection, filters: AttemptFilter, args: Any) -> None:
    if filters.is_reversed:
        raise SystemExit("--started-at-gte is later than --started-at-lte")
    is_cut = False

    def read(limit: int, offset: int) -> tuple[list[Attempt], int]:
        nonlocal is_cut
        page = attempt_queries.find_attempts(connection, filters, dag_ids=AllDags(), limit=limit, offset=offset)
        is_cut = page.is_cut
        return page.attempts, page.total

    attempts, total = read_pages(read, args)
    rows = (
        [output.to_rest(AttemptResponse, attempt) for attempt in attempts]
        if output.is_structured(args.output)
        else [_table_row(attempt) for attempt in attempts]
    )
    output.show(rows, args.output)
    output.warn_truncated(len(attempts), total, "tries")
    if is_cut and len(attempts) >= total:
        print(
            "Older tries were not searched: limit the time with --started-at-gte and --started-at-lte, or select a Dag "
            "run or a worker",
            file=sys.stderr,
        )


def _table_row(attempt: Attempt) -> dict[str, Any]:
    return {
        "dag_id": attempt.dag_id,
        "run_id": attempt.run_id,
        "task_id": attempt.task_id,
        "map_index": attempt.map_index,
        "try_number": attempt.try_number,
        "state": attempt.state,
        "started_at": attempt.started_at,
        "ended_at": attempt.ended_at,
        "duration": attempt.duration,
        "attribution": attempt.attribution,
        "workers": [worker.name for worker in attempt.workers],
    }
