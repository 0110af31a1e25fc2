"""Read the store for the REST API; change availability for the REST API and the pages.

FastAPI serves the results on Airflow 3 (:mod:`.routes`), Flask on 2.11. Callers check permissions.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from airflow_worker_insight import __version__
from airflow_worker_insight.api import database, enforcement
from airflow_worker_insight.api.errors import FindingNotFoundError, InvalidRequestError, WorkerNotFoundError
from airflow_worker_insight.api.responses import MAX_CHANGES, placement_fields, worker_fields
from airflow_worker_insight.capture import counters
from airflow_worker_insight.domain.limits import MAX_INTEGER, MAX_TOTAL
from airflow_worker_insight.domain.parameters import is_worker_id
from airflow_worker_insight.domain.statistics import Bucket, Selection
from airflow_worker_insight.insight.disclosure import finding_fields, named_dag_ids
from airflow_worker_insight.registry.enforcement import enforce_soon
from airflow_worker_insight.store import findings, placements, statistics
from airflow_worker_insight.store.airflow_history import existing_dag_ids
from airflow_worker_insight.store.attempts import queries as attempt_queries
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.migrate import Schema
from airflow_worker_insight.store.workers import availability as worker_availability
from airflow_worker_insight.store.workers import freshness
from airflow_worker_insight.store.workers import queries as worker_queries
from airflow_worker_insight.store.workers import services as workers_services

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.api.queries import (
        AttemptQuery,
        FindingQuery,
        PlacementQuery,
        ServiceQuery,
        StatisticsQuery,
        WorkerAttemptQuery,
        WorkerQuery,
    )
    from airflow_worker_insight.domain.filters import AttemptFilter
    from airflow_worker_insight.domain.findings import StoredFinding
    from airflow_worker_insight.domain.workers import SourceStatus, WorkerRow


DEFAULT_WINDOW = timedelta(hours=24)
"""Length of the window of statistics if a request does not say when it begins."""

_FIRST_TIME = datetime.min.replace(tzinfo=timezone.utc)


def list_attempts(query: AttemptQuery, *, dag_ids: Collection[str], may_see_workers: bool) -> dict[str, Any]:
    """Return the fields of an :class:`.AttemptsResponse`, latest start first.

    :param dag_ids: the Dags that the reader may see
    :param may_see_workers: whether the reader may see workers, and so how much runs on them
    """
    with database.reading() as connection:
        fields = _attempts_page(connection, query, query.filters(), dag_ids)
    if not may_see_workers:
        fields["attempts"] = [attempt_queries.redact_other_dags(attempt) for attempt in fields["attempts"]]
    return fields


def list_worker_attempts(worker_id: str, query: WorkerAttemptQuery, *, dag_ids: Collection[str]) -> dict[str, Any]:
    """Return the fields of an :class:`.AttemptsResponse` for one worker, latest start first.

    :param dag_ids: the Dags that the reader may see
    :raises WorkerNotFoundError: if no worker has the ID
    """
    with database.reading() as connection:
        row = _require_worker(connection, worker_id)
        return _attempts_page(connection, query, replace(query.filters(), worker_id=row.worker_id), dag_ids)


def _attempts_page(
    connection: Connection, query: WorkerAttemptQuery, filters: AttemptFilter, dag_ids: Collection[str]
) -> dict[str, Any]:
    page = attempt_queries.find_attempts(connection, filters, dag_ids=dag_ids, limit=query.limit, offset=query.offset)
    return {"attempts": page.attempts, "total_entries": page.total, "total_is_exact": page.total_is_exact}


def list_placements(query: PlacementQuery, *, dag_ids: Collection[str], may_see_workers: bool) -> dict[str, Any]:
    """Return the fields of a :class:`.PlacementsResponse`, oldest first.

    They cover tries that wait for a worker and tries that are placed on one.

    :param dag_ids: the Dags that the reader may see
    :param may_see_workers: whether the reader may see workers that a try neither ran on nor was placed on
    """
    with database.reading() as connection:
        rows, total = placements.find(
            connection, query.filters(), dag_ids=dag_ids, limit=query.limit, offset=query.offset
        )
    return {"placements": [placement_fields(row, may_see_workers=may_see_workers) for row in rows], **_totals(total)}


def list_statistics(query: StatisticsQuery, *, dag_ids: Collection[str]) -> dict[str, Any]:
    """Return the fields of a :class:`.StatisticsResponse`.

    :param dag_ids: the Dags that the reader may see
    :raises InvalidRequestError: if the statistics cannot be told as asked
    """
    with database.reading() as connection:
        now = database_now(connection)
        until = min(query.until or now, now)
        since = query.since or max(until, _FIRST_TIME + DEFAULT_WINDOW) - DEFAULT_WINDOW
        selection = Selection(query.group_by, Bucket(query.bucket), since, until, query.filters())
        try:
            page = statistics.query(
                connection, selection, dag_ids=frozenset(dag_ids), limit=query.limit, offset=query.offset
            )
        except statistics.StatisticsError as error:
            raise InvalidRequestError(str(error)) from None
    window = {"from": page.since, "to": page.until}
    return {"statistics": page.rows, **_totals(min(page.total, MAX_TOTAL)), **window}


def list_workers(query: WorkerQuery) -> dict[str, Any]:
    """Return the fields of a :class:`.WorkersResponse`."""
    with database.reading() as connection:
        rows, total = worker_queries.list_workers(
            connection, query.filters(), order_by=query.order_by, limit=query.limit, offset=query.offset
        )
        decisions = worker_queries.decisions(connection, rows)
        statuses = enforcement.statuses(connection, rows)
    workers = [worker_fields(row, decisions.get(row.ref), statuses.get(row.ref)) for row in rows]
    return {"workers": workers, **_totals(total)}


def list_services(query: ServiceQuery) -> dict[str, Any]:
    """Return the fields of a :class:`.ServicesResponse`."""
    filters = query.filters()
    with database.reading() as connection:
        services, total = workers_services.list_services(
            connection, kind=filters.kind, state=filters.state, limit=query.limit, offset=query.offset
        )
    return {"services": services, **_totals(total)}


def _totals(total: int) -> dict[str, Any]:
    return {"total_entries": total, "total_is_exact": total < MAX_TOTAL}


def get_worker(worker_id: str) -> dict[str, Any]:
    """Return the fields of a :class:`.WorkerDetailResponse`.

    :raises WorkerNotFoundError: if no worker has the ID
    """
    with database.reading() as connection:
        return _worker_with_changes(connection, _require_worker(connection, worker_id))


def change_availability(worker_id: str, availability: str, *, note: str | None, changed_by: str) -> dict[str, Any]:
    """Set a worker's availability and return the fields of a :class:`.WorkerDetailResponse`.

    :param note: the reason for the decision
    :param changed_by: the name of the user who decided
    :raises WorkerNotFoundError: if no worker has the ID
    :raises InvalidRequestError: if the ID stands for a host, or for a worker instance that has ended
    """
    if not is_worker_id(worker_id):
        raise WorkerNotFoundError
    with database.writing() as connection:
        try:
            row = worker_availability.set_availability(
                connection,
                worker_id,
                availability,
                note=note or None,
                changed_by=changed_by,
                now=database_now(connection),
            )
        except worker_availability.HostOnlyWorkerError:
            raise InvalidRequestError("This ID stands for all workers of a host: choose one of them.") from None
        except worker_availability.WorkerEndedError as error:
            raise InvalidRequestError(str(error)) from None
        if row is None:
            raise WorkerNotFoundError
        fields = _worker_with_changes(connection, row)
    # Once it is committed: the poll thread reads it on a connection of its own.
    enforce_soon()
    return fields


def _require_worker(connection: Connection, worker_id: str) -> WorkerRow:
    row = worker_queries.get_worker(connection, worker_id)
    if row is None:
        raise WorkerNotFoundError
    return row


def _worker_with_changes(connection: Connection, row: WorkerRow) -> dict[str, Any]:
    decision = worker_queries.decisions(connection, [row]).get(row.ref)
    status = enforcement.statuses(connection, [row]).get(row.ref)
    changes = worker_queries.changes(connection, row, limit=MAX_CHANGES)
    return {**worker_fields(row, decision, status), "changes": changes}


# --- findings --------------------------------------------------------------------------------------------------------


def list_findings(
    query: FindingQuery, *, dag_ids: Collection[str], may_see_dag: Callable[[str], bool]
) -> dict[str, Any]:
    """Return the fields of a :class:`.FindingsResponse`: findings that are not closed first, then the latest found.

    :param dag_ids: the Dags that the reader may see
    :param may_see_dag: returns whether the reader may see a Dag that Airflow has deleted
    """
    with database.reading() as connection:
        now = database_now(connection)
        page, total = findings.list_findings(
            connection, query.filters(), limit=query.limit, offset=query.offset, dag_ids=dag_ids
        )
        deleted = _deleted_dag_ids(connection, page, dag_ids)
    visible = {*dag_ids, *filter(may_see_dag, sorted(deleted))}
    shown = (finding_fields(stored, dag_ids=visible, now=now) for stored in page)
    return {"findings": [fields for fields in shown if fields is not None], **_totals(total)}


def get_finding(finding_id: int, *, dag_ids: Collection[str], may_see_dag: Callable[[str], bool]) -> dict[str, Any]:
    """Return the fields of a :class:`.FindingDetailResponse`.

    :param dag_ids: the Dags that the reader may see
    :param may_see_dag: returns whether the reader may see a Dag that Airflow has deleted
    :raises FindingNotFoundError: if no finding that the reader may see has the ID
    """
    with database.reading() as connection:
        stored = _require_finding(connection, finding_id)
        deleted = _deleted_dag_ids(connection, [stored], dag_ids)
        history = findings.events(connection, [finding_id])[finding_id]
        now = database_now(connection)
    visible = {*dag_ids, *filter(may_see_dag, sorted(deleted))}
    return {**_finding_fields(stored, visible, now), "history": history}


def dismiss_finding(
    finding_id: int,
    *,
    note: str | None,
    dismissed_by: str,
    dag_ids: Collection[str],
    may_see_dag: Callable[[str], bool],
) -> dict[str, Any]:
    """Close a finding because a user says that it needs no action; return what :func:`get_finding` does.

    :param note: the reason
    :param dismissed_by: the name of the user
    :raises FindingNotFoundError: as for :func:`get_finding`
    :raises InvalidRequestError: if the finding is closed already
    """
    # This raises if the user may not see the finding: then the user cannot dismiss it either.
    get_finding(finding_id, dag_ids=dag_ids, may_see_dag=may_see_dag)
    with database.writing() as connection:
        now = database_now(connection)
        if not findings.dismiss(connection, finding_id, actor=dismissed_by, reason=note or None, now=now):
            stored = _require_finding(connection, finding_id)
            ended = f" at {stored.ended_at:%Y-%m-%d %H:%M} UTC" if stored.ended_at else ""
            reason = f": {stored.end_reason.sentence}" if stored.end_reason else "."
            raise InvalidRequestError(f"Nothing was changed, because this finding was closed{ended}{reason}")
    return get_finding(finding_id, dag_ids=dag_ids, may_see_dag=may_see_dag)


def _require_finding(connection: Connection, finding_id: int) -> StoredFinding:
    stored = findings.get_finding(connection, finding_id) if finding_id <= MAX_INTEGER else None
    if stored is None:
        raise FindingNotFoundError
    return stored


def _finding_fields(stored: StoredFinding, dag_ids: Collection[str], now: datetime) -> dict[str, Any]:
    fields = finding_fields(stored, dag_ids=dag_ids, now=now)
    if fields is None:
        raise FindingNotFoundError
    return fields


def _deleted_dag_ids(connection: Connection, found: Collection[StoredFinding], dag_ids: Collection[str]) -> set[str]:
    """Return the Dags that findings name and Airflow no longer has: no list of readable Dags has them."""
    unknown = named_dag_ids(found) - {*dag_ids}
    return unknown - existing_dag_ids(connection, unknown)


def health(*, may_see_workers: bool) -> dict[str, Any]:
    """Return the fields of a :class:`.HealthResponse`.

    :param may_see_workers: whether the reader may see workers: the error of a worker source may name hosts
    """
    schema = database.schema_now()
    sources: list[SourceStatus] | None = None
    if may_see_workers:
        sources = []
        if schema is Schema.READY:
            with database.reading() as connection:
                sources = freshness.list_sources(connection)
    return {
        "status": "healthy" if schema is Schema.READY else "unhealthy",
        "version": __version__,
        "tables": schema.value,
        "explanation": schema.explanation,
        "counters": counters.snapshot(),
        "engines": sources,
    }
