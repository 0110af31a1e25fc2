"""``services list``: the processes of the deployment."""

from __future__ import annotations

from typing import Any

from airflow.utils.cli import suppress_logs_and_warning

from airflow_worker_insight import compat
from airflow_worker_insight.cli import output
from airflow_worker_insight.cli.common import read_pages, require_tables
from airflow_worker_insight.store import workers
from airflow_worker_insight.store.workers import UNKNOWN_STATE


@suppress_logs_and_warning
def list_services(args: Any) -> None:
    """List schedulers, triggerers, Dag processors and workers."""
    require_tables()
    with compat.engine().connect() as connection:
        found, total = read_pages(
            lambda limit, offset: workers.list_services(
                connection, kind=args.kind, state=args.state, limit=limit, offset=offset
            ),
            args,
        )
    rows = [
        {
            "kind": one.kind,
            "service_id": one.service_id,
            "name": one.name,
            "hostname": one.hostname,
            "state": one.state or UNKNOWN_STATE,
            "started_at": one.started_at,
            "last_seen_at": one.last_seen_at,
            "ended_at": one.ended_at,
        }
        for one in found
    ]
    output.show(rows, args.output)
    output.say_how_many(len(rows), total, "processes")
