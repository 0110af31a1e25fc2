"""``workers …``: who the workers are, and what a person decides of one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from airflow.utils.cli import suppress_logs_and_warning
from airflow.utils.platform import getuser

from airflow_worker_insight import config
from airflow_worker_insight.api.schemas import OneWorkerResponse, WorkerResponse, worker_fields
from airflow_worker_insight.cli import output
from airflow_worker_insight.cli.common import PAGE, confirmed, read_pages, require_tables
from airflow_worker_insight.cli.naming import one_worker
from airflow_worker_insight.cli.process import say
from airflow_worker_insight.domain.filters import WorkerFilter
from airflow_worker_insight.domain.states import AVAILABLE, DRAINING, QUARANTINED, UNKNOWN_STATE
from airflow_worker_insight.store import session
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.workers import queries as worker_queries
from airflow_worker_insight.store.workers.availability import (
    HostOnlyWorkerError,
    WorkerEndedError,
    require_meaning,
    set_availability,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.workers import Change, WorkerRow

MAX_CHANGES = 50
"""Entries of a worker's history that are shown: the latest."""

OUR_EXECUTORS = "WorkerInsight"
"""What the names of this package's executors begin with."""

NOT_BY_ITSELF = (
    "Airflow goes on giving it tasks: no executor of this package is in [core] executor, and others do not ask. With "
    "any Celery `airflow celery remove-queue` or SIGTERM keeps work off a worker."
)


@suppress_logs_and_warning
def list_workers(args: Any) -> None:
    """List workers."""
    require_tables()
    filters = WorkerFilter(
        states=args.state,
        kind=args.kind,
        name=args.name,
        hostname=args.hostname,
        label=args.label,
        queue=args.queue,
        availability=args.availability,
        search=args.search,
    )
    with session.reading(session.COMMAND) as connection:
        rows, total = read_pages(
            lambda limit, offset: worker_queries.list_workers(connection, filters, limit=limit, offset=offset), args
        )
        decided = [decision for page in _pages(rows) for decision in _decisions(connection, page)]
    if output.is_structured(args.output):
        found = zip(rows, decided, strict=True)
        output.show([output.like_rest(WorkerResponse, worker_fields(row, why)) for row, why in found], args.output)
    else:
        output.show([_line(row) for row in rows], args.output)
    output.say_how_many(len(rows), total, "workers")


@suppress_logs_and_warning
def show(args: Any) -> None:
    """Show all that is known of a worker."""
    require_tables()
    with session.reading(session.COMMAND) as connection:
        one = one_worker(connection, args.worker, also_gone=True)
        changes = worker_queries.changes(connection, one, limit=MAX_CHANGES)
        (decision,) = _decisions(connection, [one])
    if output.is_structured(args.output):
        fields = {**worker_fields(one, decision), "changes": changes}
        output.show(
            [{**output.like_rest(OneWorkerResponse, fields), "engine_name": one.engine_name}],
            args.output,
        )
        return
    output.show([{"property": name, "value": value} for name, value in _facts(one).items()], args.output)
    if changes:
        output.show([_entry(entry) for entry in changes], args.output)


def drain(args: Any) -> None:
    """Decide that a worker is to get no new tasks until it restarts or is released."""
    _decide(args, DRAINING)


def quarantine(args: Any) -> None:
    """Decide that a worker, and those of its name after it, are to get no new tasks until it is released."""
    _decide(args, QUARANTINED)


def release(args: Any) -> None:
    """Decide that a worker may get tasks again."""
    _decide(args, AVAILABLE)


def _decide(args: Any, availability: str) -> None:
    require_tables()
    try:
        with session.reading(session.COMMAND) as connection:
            one = one_worker(connection, args.worker)
            weaker = None
            if availability == DRAINING and one.availability == QUARANTINED:
                require_meaning(connection, one, availability)
                weaker = _weaker(one, worker_queries.decisions(connection, [one]).get(one.ref))
        if weaker and not args.yes and not confirmed(weaker):
            raise SystemExit("Nothing was changed: --yes drains it without asking.")
        with session.writing(session.COMMAND) as connection:
            set_availability(
                connection,
                one.worker_id,
                availability,
                note=args.note or None,
                changed_by=getuser(),
                now=database_now(connection),
            )
    except WorkerEndedError as error:
        raise SystemExit(str(error)) from None
    except HostOnlyWorkerError:
        raise SystemExit(f"{args.worker} stands for all workers of a host: decide of one of them") from None
    say(f"{one.name} ({one.worker_id}) is {availability} now.")
    if availability != AVAILABLE and OUR_EXECUTORS not in (config.executor() or ""):
        print(NOT_BY_ITSELF, file=sys.stderr)


def _weaker(one: WorkerRow, decided: Change | None) -> str:
    """Ask whether somebody's quarantine is to become a drain, with whose it is and why."""
    by = f" by {decided.changed_by}" if decided is not None and decided.changed_by else ""
    why = f": {decided.reason}" if decided is not None and decided.reason else ""
    return (
        f"{one.name} ({one.worker_id}) was quarantined{by}{why}. A drain is weaker: it ends with a restart. "
        "Drain it instead?"
    )


def _decisions(connection: Connection, rows: list[WorkerRow]) -> list[Change | None]:
    """Return the decision behind each worker's availability."""
    found = worker_queries.decisions(connection, rows)
    return [found.get(row.ref) for row in rows]


def _pages(rows: list[WorkerRow]) -> Iterator[list[WorkerRow]]:
    for start in range(0, len(rows), PAGE):
        yield rows[start : start + PAGE]


def _line(row: WorkerRow) -> dict[str, Any]:
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


def _facts(row: WorkerRow) -> dict[str, Any]:
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


def _entry(entry: Change) -> dict[str, Any]:
    return {
        "changed_at": entry.changed_at,
        "change": entry.state or entry.availability,
        "reason": entry.reason,
        "changed_by": entry.changed_by,
    }
