"""The HTML pages (Airflow 3): the Worker panel, workers, one worker, attempts, and the API's description.

Each page has a fragment beside it: the same without what is around it, for a page that keeps itself up to date.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request, status
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse

from airflow_worker_insight.api.auth import Reader, ReaderDep  # noqa: TC001  (FastAPI reads the annotations)
from airflow_worker_insight.api.csrf import is_from_here
from airflow_worker_insight.api.description import describe
from airflow_worker_insight.compat import links as airflow_links
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.limits import MAX_BODY
from airflow_worker_insight.ui import page_service
from airflow_worker_insight.ui.query_params import (
    parse_attempts_address,
    parse_decision,
    parse_panel_address,
    parse_waiting_address,
    parse_worker_address,
    parse_workers_address,
)
from airflow_worker_insight.ui.rendering import FRAGMENT, render
from airflow_worker_insight.ui.urls import Urls

if TYPE_CHECKING:
    from airflow_worker_insight.ui.query_params import AttemptsAddress, WaitingAddress

router = APIRouter(default_response_class=HTMLResponse, include_in_schema=False)


@router.get("/panel")
@router.get("/panel/fragment")
def panel(request: Request, reader: ReaderDep) -> HTMLResponse:
    """Show which worker ran each try of a task instance."""
    address = parse_panel_address(request.url.query)
    reader.require_task_instances(address.dag_id)
    return _show(
        "panel.html", request, reader, panel=page_service.panel(address, sees_workers=reader.may_see_workers())
    )


@router.get("/workers")
@router.get("/workers/fragment")
def workers(request: Request, reader: ReaderDep) -> HTMLResponse:
    """Show the fleet: which workers there are and how they fare."""
    reader.require_workers()
    address = parse_workers_address(request.url.query)
    return _show("workers.html", request, reader, page=page_service.workers_page(address))


@router.get("/workers/{worker_id}")
@router.get("/workers/{worker_id}/fragment")
def worker(request: Request, worker_id: str, reader: ReaderDep) -> HTMLResponse:
    """Show a worker's life and the tries that it ran, of those that the reader may see."""
    reader.require_workers()
    address = parse_worker_address(request.url.query)
    dag_ids = reader.readable_dag_ids() if reader.may_see_task_instances() else None
    page = page_service.worker_page(worker_id, address, dag_ids=dag_ids, may_decide=reader.may_edit_pools())
    if page is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, page_service.NO_SUCH_WORKER)
    return _show("worker.html", request, reader, page=page)


async def _body(request: Request) -> bytes:
    """Return what a form posted, or as much of it as tells that it is too long."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            break
    return body


@router.post("/workers/{worker_id}/availability")
def decide(
    request: Request, worker_id: str, reader: ReaderDep, body: Annotated[bytes, Depends(_body)]
) -> RedirectResponse:
    """Write what a person decided of a worker, and show its page again."""
    reader.require_workers()
    reader.require_pool_edit()
    if not is_from_here(request.headers, base_url=airflow_links.base_url()):
        raise HTTPException(status.HTTP_403_FORBIDDEN, page_service.NOT_FROM_HERE)
    if not page_service.decide(worker_id, parse_decision(body), changed_by=reader.name):
        raise HTTPException(status.HTTP_404_NOT_FOUND, page_service.NO_SUCH_WORKER)
    page = _urls(request, reader)("worker", worker_id=worker_id)
    assert page is not None
    return RedirectResponse(page, status.HTTP_303_SEE_OTHER)


@router.get("/attempts")
@router.get("/attempts/fragment")
def attempts(request: Request, reader: ReaderDep) -> HTMLResponse:
    """Show every try of the Dags that the reader may read."""
    reader.require_task_instances()
    address = parse_attempts_address(request.url.query, states=metadata_database.task_instance_states())
    page = page_service.attempts_page(address, dag_ids=_dag_ids(reader, address), sees_workers=reader.may_see_workers())
    return _show("attempts.html", request, reader, page=page)


@router.get("/waiting")
@router.get("/waiting/fragment")
def waiting(request: Request, reader: ReaderDep) -> HTMLResponse:
    """Show every try that waits, of the Dags that the reader may read, and why."""
    reader.require_task_instances()
    address = parse_waiting_address(request.url.query)
    page = page_service.waiting_page(address, dag_ids=_dag_ids(reader, address), sees_workers=reader.may_see_workers())
    return _show("waiting.html", request, reader, page=page)


@router.get("/docs")
def api_description(request: Request, reader: ReaderDep) -> HTMLResponse:
    """Describe the REST API, without the script from another host that FastAPI's own page loads."""
    api = describe(request.app.openapi(), root=request.scope["root_path"])
    return HTMLResponse(render("docs.html", api=api, url=_urls(request, reader)))


@router.get("/openapi.json")
def openapi_document(request: Request, reader: ReaderDep) -> JSONResponse:  # noqa: ARG001
    """Return the REST API's OpenAPI document, with the address that the server has for the reader."""
    document: dict[str, Any] = request.app.openapi()
    return JSONResponse({**document, "servers": [{"url": request.scope["root_path"] or "/"}]})


def _dag_ids(reader: Reader, address: AttemptsAddress | WaitingAddress) -> set[str]:
    """Return the Dags whose tries are listed: all that the reader may read, also one that Airflow has deleted."""
    dag_ids = reader.readable_dag_ids()
    if address.dag_id and reader.may_see_task_instances(address.dag_id):
        dag_ids = {*dag_ids, address.dag_id}
    return dag_ids


def _show(template: str, request: Request, reader: Reader, **values: Any) -> HTMLResponse:
    if request.url.path.endswith("/fragment"):
        values["layout"] = FRAGMENT
    return HTMLResponse(render(template, url=_urls(request, reader), **values))


def _urls(request: Request, reader: Reader) -> Urls:
    return Urls(request.scope["root_path"], may_see_workers=reader.may_see_workers())
