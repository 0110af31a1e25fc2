"""HTML pages of Airflow 3.

The pages are the Worker panel, workers, one worker, attempts, waiting tries and the description of the REST API. Each
page has a ``/fragment`` route that returns it without its surrounding layout: open pages refresh themselves from it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, HTTPException, Request, status
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse

from airflow_worker_insight.api import service
from airflow_worker_insight.api.auth import Reader, ReaderDep  # noqa: TC001  (FastAPI reads the annotations)
from airflow_worker_insight.api.csrf import CROSS_ORIGIN_REFUSED, is_same_origin
from airflow_worker_insight.api.description import parameter_rows
from airflow_worker_insight.api.routes import BodyDep  # noqa: TC001
from airflow_worker_insight.compat import links as airflow_links
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.ui import page_service
from airflow_worker_insight.ui.query_params import (
    parse_attempts_params,
    parse_availability_form,
    parse_panel_params,
    parse_waiting_params,
    parse_worker_params,
    parse_workers_params,
)
from airflow_worker_insight.ui.rendering import FRAGMENT, render
from airflow_worker_insight.ui.urls import Urls

if TYPE_CHECKING:
    from airflow_worker_insight.ui.query_params import AttemptsParams, WaitingParams

router = APIRouter(default_response_class=HTMLResponse, include_in_schema=False)


@router.get("/panel")
@router.get("/panel/fragment")
def panel(request: Request, reader: ReaderDep) -> HTMLResponse:
    """Show which worker ran each try of a task instance."""
    params = parse_panel_params(request.url.query)
    reader.require_task_instances(params.dag_id)
    return _show(
        "panel.html", request, reader, panel=page_service.panel(params, may_see_workers=reader.may_see_workers())
    )


@router.get("/workers")
@router.get("/workers/fragment")
def workers(request: Request, reader: ReaderDep) -> HTMLResponse:
    """List the workers and their states."""
    reader.require_workers()
    params = parse_workers_params(request.url.query)
    return _show("workers.html", request, reader, page=page_service.workers_page(params))


@router.get("/workers/{worker_id}")
@router.get("/workers/{worker_id}/fragment")
def worker(request: Request, worker_id: str, reader: ReaderDep) -> HTMLResponse:
    """Show one worker instance and those of its tries that the user may see."""
    reader.require_workers()
    params = parse_worker_params(request.url.query)
    dag_ids = reader.readable_dag_ids() if reader.may_see_task_instances() else None
    page = page_service.worker_page(worker_id, params, dag_ids=dag_ids, may_decide=reader.may_edit_pools())
    return _show("worker.html", request, reader, page=page)


@router.post("/workers/{worker_id}/availability")
def change_availability(request: Request, worker_id: str, reader: ReaderDep, body: BodyDep) -> RedirectResponse:
    """Set a worker's availability and redirect to its page."""
    reader.require_workers()
    reader.require_pool_edit()
    if not is_same_origin(request.headers, base_url=airflow_links.base_url()):
        raise HTTPException(status.HTTP_403_FORBIDDEN, CROSS_ORIGIN_REFUSED)
    form = parse_availability_form(body)
    service.change_availability(worker_id, form.availability, note=form.note, changed_by=reader.name)
    url = _urls(request, reader)("worker", worker_id=worker_id)
    assert url is not None
    return RedirectResponse(url, status.HTTP_303_SEE_OTHER)


@router.get("/attempts")
@router.get("/attempts/fragment")
def attempts(request: Request, reader: ReaderDep) -> HTMLResponse:
    """List the tries of the Dags that the user may read."""
    reader.require_task_instances()
    params = parse_attempts_params(request.url.query, states=metadata_database.task_instance_states())
    page = page_service.attempts_page(
        params, dag_ids=_dag_ids(reader, params), may_see_workers=reader.may_see_workers()
    )
    return _show("attempts.html", request, reader, page=page)


@router.get("/waiting")
@router.get("/waiting/fragment")
def waiting(request: Request, reader: ReaderDep) -> HTMLResponse:
    """List the waiting tries of the Dags that the user may read, each with its reason."""
    reader.require_task_instances()
    params = parse_waiting_params(request.url.query)
    page = page_service.waiting_page(params, dag_ids=_dag_ids(reader, params), may_see_workers=reader.may_see_workers())
    return _show("waiting.html", request, reader, page=page)


@router.get("/docs")
def api_description(request: Request, reader: ReaderDep) -> HTMLResponse:
    """Describe the REST API.

    Unlike FastAPI's own page, this one loads no script from another host.
    """
    api = request.app.openapi()
    url = _urls(request, reader)
    return HTMLResponse(render("docs.html", api=api, parameter_rows=parameter_rows, dumps=json.dumps, url=url))


@router.get("/openapi.json")
def openapi_document(request: Request, reader: ReaderDep) -> JSONResponse:  # noqa: ARG001
    """Return the REST API's OpenAPI document with the server URL that the user sees."""
    document: dict[str, Any] = request.app.openapi()
    return JSONResponse({**document, "servers": [{"url": request.scope["root_path"] or "/"}]})


def _dag_ids(reader: Reader, params: AttemptsParams | WaitingParams) -> set[str]:
    """Return the Dags whose tries are listed: all that the user may read.

    They include the Dag that the URL names even if Airflow has deleted it, as long as the user may read it.
    """
    dag_ids = reader.readable_dag_ids()
    if params.dag_id and reader.may_see_task_instances(params.dag_id):
        dag_ids = {*dag_ids, params.dag_id}
    return dag_ids


def _show(template: str, request: Request, reader: Reader, **values: Any) -> HTMLResponse:
    if request.url.path.endswith("/fragment"):
        values["layout"] = FRAGMENT
    return HTMLResponse(render(template, url=_urls(request, reader), **values))


def _urls(request: Request, reader: Reader) -> Urls:
    return Urls(request.scope["root_path"], may_see_workers=reader.may_see_workers())
