"""``findings …``: list, show and dismiss findings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.utils.cli import suppress_logs_and_warning
from airflow.utils.platform import getuser

from airflow_worker_insight.api.responses import FindingDetailResponse, FindingResponse
from airflow_worker_insight.cli import output
from airflow_worker_insight.cli.common import read_pages, require_tables
from airflow_worker_insight.cli.process import print_answer
from airflow_worker_insight.domain.filters import AllDags, FindingFilter, build
from airflow_worker_insight.insight.disclosure import finding_fields
from airflow_worker_insight.store import findings, session
from airflow_worker_insight.store.clock import database_now

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.findings import FindingEvent, StoredFinding


@suppress_logs_and_warning
def list_findings(args: Any) -> None:
    """List findings."""
    require_tables()
    filters = build(FindingFilter, args)
    with session.reading(session.COMMAND) as connection:

        def read(limit: int, offset: int) -> tuple[list[StoredFinding], int]:
            return findings.list_findings(connection, filters, limit=limit, offset=offset, dag_ids=AllDags())

        page, total = read_pages(read, args)
        now = database_now(connection)
    rows = [_fields(stored, now) for stored in page]
    if output.is_structured(args.output):
        output.show([output.to_rest(FindingResponse, fields) for fields in rows], args.output)
    else:
        output.show([_table_row(fields) for fields in rows], args.output)
    output.warn_truncated(len(rows), total, "findings")


@suppress_logs_and_warning
def show(args: Any) -> None:
    """Show a finding and its history."""
    require_tables()
    with session.reading(session.COMMAND) as connection:
        fields = _fields(_find(connection, args.finding_id), database_now(connection))
        history = findings.events(connection, [args.finding_id])[args.finding_id]
    if output.is_structured(args.output):
        output.show([output.to_rest(FindingDetailResponse, {**fields, "history": history})], args.output)
        return
    output.show([{"property": name, "value": value} for name, value in _properties(fields).items()], args.output)
    output.show([_event_row(event) for event in history], args.output)


def dismiss(args: Any) -> None:
    """Close a finding that needs no action."""
    require_tables()
    with session.writing(session.COMMAND) as connection:
        stored = _find(connection, args.finding_id)
        now = database_now(connection)
        if not findings.dismiss(connection, stored.finding_id, actor=getuser(), reason=args.note or None, now=now):
            reason = stored.end_reason.sentence if stored.end_reason else "The finding has ended."
            raise SystemExit(f"Finding {stored.finding_id} is closed already. {reason}")
    print_answer(f"Finding {stored.finding_id} ({_fields(stored, now)['title']}) is closed now.")


def _find(connection: Connection, finding_id: int) -> StoredFinding:
    stored = findings.get_finding(connection, finding_id)
    if stored is None:
        raise SystemExit(f"No finding has the ID {finding_id}: see `findings list`")
    return stored


def _fields(stored: StoredFinding, now: datetime) -> dict[str, Any]:
    fields = finding_fields(stored, dag_ids=AllDags(), now=now)
    assert fields is not None, "who reads the database sees all Dags"
    return fields


def _table_row(fields: dict[str, Any]) -> dict[str, Any]:
    names = ("finding_id", "state", "subject_kind", "subject", "outcome", "since", "text")
    return {name: fields[name] for name in names}


def _properties(fields: dict[str, Any]) -> dict[str, Any]:
    tasks = [f"{task['dag_id']}.{task['task_id']} ({task['failures']} of {task['tries']})" for task in fields["tasks"]]
    return {**{name: value for name, value in fields.items() if name != "hidden_tasks"}, "tasks": tasks}


def _event_row(event: FindingEvent) -> dict[str, Any]:
    return {
        "happened_at": event.happened_at,
        "action": event.action,
        "reason": event.reason,
        "actor": event.actor,
    }
