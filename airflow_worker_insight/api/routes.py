"""Routes of the REST API ``/api/v1`` on Airflow 3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, status
from pydantic import BaseModel, ValidationError

from airflow_worker_insight import __version__
from airflow_worker_insight.api import service
from airflow_worker_insight.api.auth import ReaderDep  # noqa: TC001  (FastAPI reads the annotations)
from airflow_worker_insight.api.csrf import CROSS_ORIGIN_REFUSED, is_json, passes_csrf_checks
from airflow_worker_insight.api.queries import (
    AttemptQuery,
    Decision,
    FindingDecision,
    FindingQuery,
    PlacementQuery,
    ServiceQuery,
    StatisticsQuery,
    WorkerAttemptQuery,
    WorkerQuery,
    error_details,
    parse_decision,
)
from airflow_worker_insight.api.responses import (
    AttemptsResponse,
    FindingDetailResponse,
    FindingsResponse,
    HealthResponse,
    PlacementsResponse,
    ServicesResponse,
    StatisticsResponse,
    WorkerDetailResponse,
    WorkersResponse,
)
from airflow_worker_insight.compat import auth as airflow_auth
from airflow_worker_insight.compat import links as airflow_links
from airflow_worker_insight.domain.limits import MAX_BODY, MAX_INTEGER
from airflow_worker_insight.domain.parameters import WORKER_ID

if TYPE_CHECKING:
    from airflow_worker_insight.api.queries import DecisionType
    from airflow_worker_insight.api.reader import Reader


class Problem(BaseModel):
    """Body of an error."""

    detail: Any


router = APIRouter(
    prefix="/api/v1",
    responses={
        401: {"model": Problem, "description": "Not logged in."},
        403: {
            "model": Problem,
            "description": "The user lacks the right, or a change did not come from a page of this server.",
        },
        503: {
            "model": Problem,
            "description": "The tables are missing or of another version, or the database is busy; says what to do.",
        },
    },
)

_ATTEMPTS_EXAMPLE = {
    "attempts": [
        {
            "dag_id": "sales",
            "run_id": "scheduled__2026-01-31T08:00:00+00:00",
            "task_id": "load",
            "map_index": -1,
            "try_number": 2,
            "state": "success",
            "started_at": "2026-01-31T08:00:12.340000Z",
            "ended_at": "2026-01-31T08:01:02.100000Z",
            "duration": 49.76,
            "attribution": "reported",
            "workers": [
                {
                    "worker_id": "celery-5f0c2f9a1d3b4e6788aa90bc",
                    "name": "w2@etl-1",
                    "kind": "celery",
                    "hostname": "etl-1",
                    "process_count": 1,
                    "first_started_at": "2026-01-31T08:00:12.900000Z",
                    "last_started_at": "2026-01-31T08:00:12.900000Z",
                    "load": 0.35,
                    "memory_free": 0.7,
                    "running_beside": 3,
                }
            ],
            "placement": "elsewhere",
            "placement_detail": "w2@etl-1: retry on another worker, 3 of 32 slots taken; avoids w1@etl-1",
        }
    ],
    "total_entries": 1,
    "total_is_exact": True,
}
_PLACEMENTS_EXAMPLE = {
    "placements": [
        {
            "dag_id": "sales",
            "run_id": "scheduled__2026-01-31T08:00:00+00:00",
            "task_id": "load",
            "map_index": -1,
            "try_number": 1,
            "state": "waiting",
            "worker": None,
            "reason": "waits_not_available",
            "detail": "no worker of the queue default is available; left out: w1@etl-1 (quarantined)",
            "since": "2026-01-31T08:00:02.110000Z",
            "queue": "default",
            "try_state": "queued",
        }
    ],
    "total_entries": 1,
    "total_is_exact": True,
}
_WORKER_EXAMPLE: dict[str, Any] = {
    "worker_id": "celery-5f0c2f9a1d3b4e6788aa90bc",
    "name": "w2@etl-1",
    "kind": "celery",
    "hostname": "etl-1",
    "pid": 4711,
    "state": "online",
    "state_reason": None,
    "availability": "draining",
    "availability_note": "disk is being replaced",
    "availability_changed_by": "ann",
    "availability_changed_at": "2026-01-31T08:05:00Z",
    "enforcement": {
        "state": "in_effect",
        "since": "2026-01-31T08:05:04Z",
        "text": "The worker consumes none of its queues (default). It had fetched 2 tries before and still ran them.",
    },
    "queues": ["default"],
    "concurrency": 16,
    "running": 3,
    "started_at": "2026-01-30T06:00:00Z",
    "registered_at": "2026-01-30T06:00:04.200000Z",
    "last_seen_at": "2026-01-31T08:07:30.100000Z",
    "ended_at": None,
    "labels": {"zone": "eu-1"},
    "resources": {"cpus": 8, "memory_bytes": 16777216000},
    "versions": {"airflow": "3.3.2", "python": "3.11.9"},
}
_CHANGE_EXAMPLE = {
    "changed_at": "2026-01-31T08:05:00Z",
    "state": None,
    "availability": "draining",
    "reason": "disk is being replaced",
    "changed_by": "ann",
}
_WORKERS_EXAMPLE = {"workers": [_WORKER_EXAMPLE], "total_entries": 1, "total_is_exact": True}
_WORKER_DETAIL_EXAMPLE = {**_WORKER_EXAMPLE, "changes": [_CHANGE_EXAMPLE]}
_STATISTICS_EXAMPLE = {
    "statistics": [
        {
            "group": "w2@etl-1",
            "bucket": "2026-01-31T08:00:00Z",
            "tries": 118,
            "failed": 3,
            "lost": 0,
            "busy_seconds": 20736.4,
            "utilization": 0.36,
            "mean_duration": 175.7,
            "mean_queue_seconds": 4.2,
        }
    ],
    "total_entries": 1,
    "total_is_exact": True,
    "from": "2026-01-31T08:00:00Z",
    "to": "2026-01-31T09:00:00Z",
}
_SERVICES_EXAMPLE = {
    "services": [
        {
            "kind": "scheduler",
            "service_id": "17",
            "name": "scheduler-0",
            "hostname": "scheduler-0",
            "state": "online",
            "started_at": "2026-01-30T06:00:00Z",
            "last_seen_at": "2026-01-31T08:07:30.100000Z",
            "ended_at": None,
        }
    ],
    "total_entries": 1,
    "total_is_exact": True,
}
_FINDING_EXAMPLE: dict[str, Any] = {
    "finding_id": 7,
    "subject_kind": "worker",
    "subject": "w3@etl-2",
    "label": None,
    "outcome": "failed",
    "state": "open",
    "title": "w3@etl-2 fails more than its peers on the same tasks",
    "text": "9 of 12 failures of `load` ran on w3@etl-2, which ran 10 of its 60 tries; of its peers' 50 tries 3 "
    "failed. Only in tasks of Dag `sales`. Since Sat 06:10. Evidence 4,100 : 1 (800 needed).",
    "recovery": None,
    "since": "2026-01-31T06:10:00Z",
    "found_at": "2026-01-31T07:42:11Z",
    "ended_at": None,
    "ended_reason": None,
    "evidence": 4123.4,
    "needed": 800.0,
    "tries": 10,
    "failures": 9,
    "expected": 0.6,
    "peer_tries": 50,
    "peer_failures": 3,
    "scope": {"dag_id": "sales", "task_id": None},
    "tasks": [{"dag_id": "sales", "task_id": "load", "tries": 10, "failures": 9, "peer_tries": 50, "peer_failures": 3}],
    "hidden_tasks": 0,
    "worker_ids": ["celery-5f0c2f9a1d3b4e6788aa90bc"],
}
_FINDINGS_EXAMPLE = {"findings": [_FINDING_EXAMPLE], "total_entries": 1, "total_is_exact": True}
_FINDING_EVENT_EXAMPLE = {"happened_at": "2026-01-31T07:42:11Z", "action": "found", "actor": None, "reason": None}
_FINDING_DETAIL_EXAMPLE = {**_FINDING_EXAMPLE, "history": [_FINDING_EVENT_EXAMPLE]}
_HEALTH_EXAMPLE = {
    "status": "healthy",
    "version": __version__,
    "tables": "ready",
    "explanation": "The tables are up to date.",
    "counters": {"reports.claimed": 1204},
    "engines": [{"name": "celery", "looked_at": "2026-01-31T08:07:30Z", "is_current": True, "error": None}],
}


# --- routes ---------------------------------------------------------------------------------------------------------


def _responses(
    example: dict[str, Any], *, names_worker: bool = False, names_finding: bool = False
) -> dict[int | str, dict[str, Any]]:
    """Return the ``responses`` of a route: an example for 200, and 404 where it applies.

    :param example: the example of a 200 answer
    :param names_worker: whether the path names a worker, which may not exist
    :param names_finding: whether the path names a finding, which may not exist
    """
    responses: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {"example": example}}}}
    if names_worker:
        responses[404] = {"model": Problem, "description": "No such worker was recorded."}
    if names_finding:
        responses[404] = {
            "model": Problem,
            "description": "No such finding was made, or it is about a task of a Dag that the user may not see.",
        }
    return responses


_WorkerIdPath = Annotated[str, Path(pattern=WORKER_ID, description="ID of a worker instance.")]


@router.get(
    "/attempts",
    summary="List attempts",
    response_model=AttemptsResponse,
    responses=_responses(_ATTEMPTS_EXAMPLE),
)
def list_attempts(query: Annotated[AttemptQuery, Query()], reader: ReaderDep) -> Any:
    """List tries and the workers that ran them, latest start first.

    The list and its total cover the Dags whose task instances the user may see in Airflow.
    """
    dag_ids = reader.require_dag_ids(query.filters().dag_id)
    return service.list_attempts(query, dag_ids=dag_ids, may_see_workers=reader.may_see_workers())


@router.get(
    "/placements",
    summary="List waiting and placed tries",
    response_model=PlacementsResponse,
    responses=_responses(_PLACEMENTS_EXAMPLE),
)
def list_placements(query: Annotated[PlacementQuery, Query()], reader: ReaderDep) -> Any:
    """List tries that wait for a worker, and tries that an executor of this package placed and that have not ended.

    The list and its total cover the Dags whose task instances the user may see in Airflow.
    """
    dag_ids = reader.require_dag_ids(query.filters().dag_id)
    return service.list_placements(query, dag_ids=dag_ids, may_see_workers=reader.may_see_workers())


@router.get(
    "/workers",
    summary="List workers",
    response_model=WorkersResponse,
    responses=_responses(_WORKERS_EXAMPLE),
)
def list_workers(query: Annotated[WorkerQuery, Query()], reader: ReaderDep) -> Any:
    """List worker instances, also ended ones. Requires the right to see Airflow's jobs."""
    reader.require_workers()
    return service.list_workers(query)


@router.get(
    "/workers/{worker_id}",
    summary="Show a worker",
    response_model=WorkerDetailResponse,
    responses=_responses(_WORKER_DETAIL_EXAMPLE, names_worker=True),
)
def show_worker(worker_id: _WorkerIdPath, reader: ReaderDep) -> Any:
    """Show a worker instance and its history. Requires the right to see Airflow's jobs."""
    reader.require_workers()
    return service.get_worker(worker_id)


@router.get(
    "/workers/{worker_id}/attempts",
    summary="List a worker's attempts",
    response_model=AttemptsResponse,
    responses=_responses(_ATTEMPTS_EXAMPLE, names_worker=True),
)
def list_worker_attempts(
    worker_id: _WorkerIdPath, query: Annotated[WorkerAttemptQuery, Query()], reader: ReaderDep
) -> Any:
    """List the tries that a worker instance ran, latest start first.

    Requires the right to see Airflow's jobs. The list covers the same Dags as that of all attempts.
    """
    reader.require_workers()
    dag_ids = reader.require_dag_ids(query.filters().dag_id)
    return service.list_worker_attempts(worker_id, query, dag_ids=dag_ids)


async def _read_body(request: Request) -> bytes:
    """Return the request body, or its beginning if it is longer than :data:`MAX_BODY`."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            break
    return body


BodyDep = Annotated[bytes, Depends(_read_body)]
"""The body of a request, as a FastAPI dependency: at most a little longer than :data:`MAX_BODY`."""


@router.patch(
    "/workers/{worker_id}",
    summary="Change a worker's availability",
    response_model=WorkerDetailResponse,
    responses={
        **_responses(_WORKER_DETAIL_EXAMPLE, names_worker=True),
        422: {
            "model": Problem,
            "description": "The body is invalid, or the ID stands for a whole host or for an instance that has ended.",
        },
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": Decision.model_json_schema()}},
        }
    },
)
def change_availability(request: Request, worker_id: _WorkerIdPath, reader: ReaderDep, body: BodyDep) -> Any:
    """Make a worker available, draining or quarantined, with a note that says why.

    Requires the rights to see Airflow's jobs and to edit its pools. A request with a login cookie must come from a page
    of this server.
    """
    decision = _checked_decision(Decision, request, reader, body)
    return service.change_availability(worker_id, decision.availability, note=decision.note, changed_by=reader.name)


def _checked_decision(model: type[DecisionType], request: Request, reader: Reader, body: bytes) -> DecisionType:
    """Check the rights to decide and where the request comes from, and return its body."""
    reader.require_workers()
    reader.require_pool_edit()
    has_cookie = airflow_auth.LOGIN_COOKIE in request.cookies
    if not passes_csrf_checks(request.headers, has_login_cookie=has_cookie, base_url=airflow_links.base_url()):
        raise HTTPException(status.HTTP_403_FORBIDDEN, CROSS_ORIGIN_REFUSED)
    try:
        return parse_decision(model, body, is_json=is_json(request.headers))
    except ValidationError as error:
        raise HTTPException(422, error_details(error, "body")) from None


_FindingIdPath = Annotated[int, Path(ge=1, le=MAX_INTEGER, description="ID of a finding.")]


@router.get(
    "/findings",
    summary="List findings",
    response_model=FindingsResponse,
    responses=_responses(_FINDINGS_EXAMPLE),
)
def list_findings(query: Annotated[FindingQuery, Query()], reader: ReaderDep) -> Any:
    """List what fails, loses or slows more tries than its peers: first what is not closed, then the latest found.

    Requires the right to see Airflow's jobs. Tasks of Dags whose task instances the user may not see are only counted,
    and findings about such tasks are left out.
    """
    reader.require_workers()
    return service.list_findings(
        query, dag_ids=reader.finding_dag_ids(query.filters().dag_id), may_see_dag=reader.may_see_task_instances
    )


@router.get(
    "/findings/{finding_id}",
    summary="Show a finding",
    response_model=FindingDetailResponse,
    responses=_responses(_FINDING_DETAIL_EXAMPLE, names_finding=True),
)
def show_finding(finding_id: _FindingIdPath, reader: ReaderDep) -> Any:
    """Show a finding and its history. Requires the right to see Airflow's jobs."""
    reader.require_workers()
    return service.get_finding(
        finding_id, dag_ids=reader.finding_dag_ids(None), may_see_dag=reader.may_see_task_instances
    )


@router.patch(
    "/findings/{finding_id}",
    summary="Dismiss a finding",
    response_model=FindingDetailResponse,
    responses={
        **_responses(_FINDING_DETAIL_EXAMPLE, names_finding=True),
        422: {"model": Problem, "description": "The body is invalid, or the finding is closed already."},
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": FindingDecision.model_json_schema()}},
        }
    },
)
def dismiss_finding(request: Request, finding_id: _FindingIdPath, reader: ReaderDep, body: BodyDep) -> Any:
    """Close a finding that needs no action, with a note that says why.

    Requires the same rights as a change of a worker's availability. Its subject is found again if later tries say so.
    """
    decision = _checked_decision(FindingDecision, request, reader, body)
    return service.dismiss_finding(
        finding_id,
        note=decision.note,
        dismissed_by=reader.name,
        dag_ids=reader.finding_dag_ids(None),
        may_see_dag=reader.may_see_task_instances,
    )


@router.get(
    "/statistics",
    summary="Show statistics of tries",
    response_model=StatisticsResponse,
    responses=_responses(_STATISTICS_EXAMPLE),
)
def list_statistics(query: Annotated[StatisticsQuery, Query()], reader: ReaderDep) -> Any:
    """Show tries, failures, utilization and delays by worker, host, queue, kind, label, Dag or task.

    All groups but Dags and tasks require the right to see Airflow's jobs.
    """
    dag_ids = reader.require_statistics(query.group_by, query.filters())
    return service.list_statistics(query, dag_ids=dag_ids)


@router.get(
    "/services",
    summary="List services",
    response_model=ServicesResponse,
    responses=_responses(_SERVICES_EXAMPLE),
)
def list_services(query: Annotated[ServiceQuery, Query()], reader: ReaderDep) -> Any:
    """List schedulers, triggerers, Dag processors and workers. Requires the right to see Airflow's jobs."""
    reader.require_workers()
    return service.list_services(query)


@router.get(
    "/health",
    summary="Show the health of recording",
    response_model=HealthResponse,
    responses=_responses(_HEALTH_EXAMPLE),
)
def health(reader: ReaderDep) -> Any:
    """Show the state of the tables, this process's counters of reports, and the latest poll of each worker source.

    Unlike Airflow's own ``/api/v2/monitor/health`` this requires a login: the answer has a version and counters.
    """
    return service.health(may_see_workers=reader.may_see_workers())
