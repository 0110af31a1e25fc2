"""``workers …``: list and show workers, and change their availability."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from airflow.utils.cli import suppress_logs_and_warning
from airflow.utils.platform import getuser

from airflow_worker_insight.api import enforcement
from airflow_worker_insight.api.responses import WorkerDetailResponse, WorkerResponse, worker_fields
from airflow_worker_insight.cli import output
from airflow_worker_insight.cli.common import PAGE, confirm, read_pages, require_tables
from airflow_worker_insight.cli.naming import find_worker
from airflow_worker_insight.cli.process import print_answer
from airflow_worker_insight.domain.filters import WorkerFilter, build
from airflow_worker_insight.domain.states import UNKNOWN_STATE, WorkerAvailability
from airflow_worker_insight.store import session
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.workers import queries as worker_queries
from airflow_worker_insight.store.workers.availability import (
    HostOnlyWorkerError,
    WorkerEndedError,
    require_effect,
    set_availability,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.enforcement import EnforcementStatus
    from airflow_worker_insight.domain.workers import WorkerChange, WorkerRow

MAX_CHANGES = 50
"""Entries of a worker's history to show at most: the latest."""


@suppress_logs_and_warning
def list_workers(args: Any) -> None:
    """List workers."""
    require_tables()
    filters = build(WorkerFilter, args)
    with session.reading(session.COMMAND) as connection:
        rows, total = read_pages(
            lambda limit, offset: worker_queries.list_workers(connection, filters, limit=limit, offset=offset), args
        )
        decisions = [decision for page in _batches(rows) for decision in _decisions_of(connection, page)]
        statuses: dict[int, EnforcementStatus] = {}
        for page in _batches(rows):
            statuses |= enforcement.statuses(connection, page)
    if output.is_structured(args.output):
        fields = [
            worker_fields(row, change, statuses.get(row.ref)) for row, change in zip(rows, decisions, strict=True)
        ]
        output.show([output.to_rest(WorkerResponse, each) for each in fields], args.output)
    else:
        output.show([_table_row(row) for row in rows], args.output)
    output.warn_truncated(len(rows), total, "workers")


@suppress_logs_and_warning
def show(args: Any) -> None:
    """Show a worker and its history."""
    require_tables()
    with session.reading(session.COMMAND) as connection:
        worker = find_worker(connection, args.worker, include_ended=True)
        changes = worker_queries.changes(connection, worker, limit=MAX_CHANGES)
        (decision,) = _decisions_of(connection, [worker])
        status = enforcement.statuses(connection, [worker]).get(worker.ref)
    if output.is_structured(args.output):
        fields = {**worker_fields(worker, decision, status), "changes": changes}
        output.show(
            [{**output.to_rest(WorkerDetailResponse, fields), "engine_name": worker.engine_name}],
            args.output,
        )
        return
    properties = _properties(worker, status)
    output.show([{"property": name, "value": value} for name, value in properties.items()], args.output)
    if changes:
        output.show([_change_row(change) for change in changes], args.output)


def drain(args: Any) -> None:
    """Set a worker to draining: no new tasks until it restarts or is released."""
    _change_availability(args, WorkerAvailability.DRAINING)


def quarantine(args: Any) -> None:
    """Set a worker to quarantined: no new tasks until it is released.

    Later worker instances of the same name are quarantined too.
    """
    _change_availability(args, WorkerAvailability.QUARANTINED)


def release(args: Any) -> None:
    """Set a worker to available: it may get tasks again."""
    _change_availability(args, WorkerAvailability.AVAILABLE)


def _change_availability(args: Any, availability: str) -> None:
    require_tables()
    try:
        with session.reading(session.COMMAND) as connection:
            worker = find_worker(connection, args.worker)
            question = None
            if availability == WorkerAvailability.DRAINING and worker.availability == WorkerAvailability.QUARANTINED:
                require_effect(connection, worker, availability)
                question = _downgrade_question(worker, worker_queries.decisions(connection, [worker]).get(worker.ref))
        if question and not args.yes and not confirm(question):
            raise SystemExit("Nothing was changed. Use --yes to drain it without confirmation.")
        with session.writing(session.COMMAND) as connection:
            set_availability(
                connection,
                worker.worker_id,
                availability,
                note=args.note or None,
                changed_by=getuser(),
                now=database_now(connection),
            )
    except WorkerEndedError as error:
        raise SystemExit(str(error)) from None
    except HostOnlyWorkerError:
        raise SystemExit(f"{args.worker} stands for all workers of a host: choose one of them") from None
    print_answer(f"{worker.name} ({worker.worker_id}) is {availability} now.")
    if availability != WorkerAvailability.AVAILABLE:
        print(enforcement.effect(worker), file=sys.stderr)


def _downgrade_question(worker: WorkerRow, decision: WorkerChange | None) -> str:
    """Return the prompt for replacing a quarantine by a drain, with its author and reason."""
    author = f" by {decision.changed_by}" if decision is not None and decision.changed_by else ""
    why = f": {decision.reason}" if decision is not None and decision.reason else ""
    return (
        f"{worker.name} ({worker.worker_id}) was quarantined{author}{why}. A drain is weaker: it ends with a restart. "
        "Drain it instead?"
    )


def _decisions_of(connection: Connection, rows: list[WorkerRow]) -> list[WorkerChange | None]:
    """Return the decision behind each worker's availability, or ``None``, in row order."""
    decisions = worker_queries.decisions(connection, rows)
    return [decisions.get(row.ref) for row in rows]


def _batches(rows: list[WorkerRow]) -> Iterator[list[WorkerRow]]:
    for start in range(0, len(rows), PAGE):
        yield rows[start : start + PAGE]


def _table_row(row: WorkerRow) -> dict[str, Any]:
    return {
        "worker_id": row.worker_id,
        "name": row.name,
        "kind": row.kind,
        "state": row.state or UNKNOWN_STATE,
        "availability": row.availability,
        "running": row.running,
        "concurrency": row.concurrency,
        "queues": row.queues,
        "hostname": row.hostname,
        "last_seen_at": row.last_seen_at,
    }


def _properties(row: WorkerRow, status: EnforcementStatus | None) -> dict[str, Any]:
    return {
        "worker_id": row.worker_id,
        "name": row.name,
        "engine_name": row.engine_name,
        "kind": row.kind,
        "hostname": row.hostname,
        "pid": row.pid,
        "state": row.state or UNKNOWN_STATE,
        "state_reason": row.state_reason,
        "availability": row.availability,
        "enforcement": None if status is None else f"{status.state}: {status.text}",
        "queues": row.queues,
        "concurrency": row.concurrency,
        "running": row.running,
        "started_at": row.started_at,
        "registered_at": row.registered_at,
        "last_seen_at": row.last_seen_at,
        "ended_at": row.ended_at,
        "labels": dict(row.labels),
        "resources": dict(row.resources),
        "versions": dict(row.versions),
    }


def _change_row(change: WorkerChange) -> dict[str, Any]:
    return {
        "changed_at": change.changed_at,
        "change": change.state or change.availability,
        "reason": change.reason,
        "changed_by": change.changed_by,
    }
