"""The REST API ``/api/v1`` (Airflow 3): the contract's attempts, and the health of this package in this process."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel

from airflow_worker_insight import __version__
from airflow_worker_insight.web import objects
from airflow_worker_insight.web.objects import AttemptQuery, AttemptsResponse, HealthResponse
from airflow_worker_insight.web.security import ReaderDep  # noqa: TC001  (FastAPI reads the annotations)


class Problem(BaseModel):
    """What an answer that is not 200 says."""

    detail: Any


router = APIRouter(
    prefix="/api/v1",
    responses={
        401: {"model": Problem, "description": "Not logged in."},
        403: {"model": Problem, "description": "The reader may not see this."},
        503: {"model": Problem, "description": "The tables are missing or of another version; says what to run."},
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
                }
            ],
        }
    ],
    "total_entries": 1,
}
_HEALTH_EXAMPLE = {
    "status": "healthy",
    "version": __version__,
    "tables": "ready",
    "explanation": "The tables are there and up to date.",
    "counters": {"claimed": 1204},
}


# --- routes ---------------------------------------------------------------------------------------------------------


@router.get(
    "/attempts",
    summary="List attempts",
    response_model=AttemptsResponse,
    responses={200: {"content": {"application/json": {"example": _ATTEMPTS_EXAMPLE}}}},
)
def list_attempts(query: Annotated[AttemptQuery, Query()], reader: ReaderDep) -> Any:
    """List tries and the workers that ran them, the latest start first.

    The reader finds the tries of those Dags whose task instances Airflow lets them see, in the list and in its total.
    """
    reader.require_task_instances(query.dag_id)
    dag_ids = {query.dag_id} if query.dag_id is not None else reader.readable_dag_ids()
    return objects.list_attempts(query, dag_ids=dag_ids)


@router.get(
    "/health",
    summary="Say whether recording works",
    response_model=HealthResponse,
    responses={200: {"content": {"application/json": {"example": _HEALTH_EXAMPLE}}}},
)
def health(reader: ReaderDep) -> Any:  # noqa: ARG001
    """Say whether the tables can be used, and what became of the reports that this process received.

    Unlike Airflow's own ``/api/v2/monitor/health`` this asks for a login: it tells a version and counts.
    """
    return objects.health()
