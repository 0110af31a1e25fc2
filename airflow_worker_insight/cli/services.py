"""``services list``: the processes of the Airflow deployment."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from airflow.utils.cli import suppress_logs_and_warning

from airflow_worker_insight.api.responses import ServiceResponse
from airflow_worker_insight.cli import output
from airflow_worker_insight.cli.common import read_pages, require_tables
from airflow_worker_insight.domain.filters import ServiceFilter, build
from airflow_worker_insight.domain.states import UNKNOWN_STATE
from airflow_worker_insight.store import session
from airflow_worker_insight.store.workers import services


@suppress_logs_and_warning
def list_services(args: Any) -> None:
    """List schedulers, triggerers, Dag processors and workers."""
    require_tables()
    filters = build(ServiceFilter, args)
    with session.reading(session.COMMAND) as connection:
        processes, total = read_pages(
            lambda limit, offset: services.list_services(
                connection, kind=filters.kind, state=filters.state, limit=limit, offset=offset
            ),
            args,
        )
    rows = [output.to_rest(ServiceResponse, service) for service in processes]
    if not output.is_structured(args.output):
        rows = [{**asdict(service), "state": service.state or UNKNOWN_STATE} for service in processes]
    output.show(rows, args.output)
    output.warn_truncated(len(rows), total, "processes")
