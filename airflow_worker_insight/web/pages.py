"""The HTML pages (Airflow 3): the Worker panel, its refreshing fragment, one worker, and the API's description."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, HTTPException, Request, status
from fastapi.responses import HTMLResponse, JSONResponse

from airflow_worker_insight.web import content
from airflow_worker_insight.web.address import PanelAddress, parse_offset, parse_panel_address
from airflow_worker_insight.web.description import describe
from airflow_worker_insight.web.rendering import render
from airflow_worker_insight.web.security import Reader, ReaderDep  # noqa: TC001  (FastAPI reads the annotations)
from airflow_worker_insight.web.urls import Urls

if TYPE_CHECKING:
    from airflow_worker_insight.web.view import Panel

router = APIRouter(default_response_class=HTMLResponse, include_in_schema=False)


@router.get("/panel")
def panel_page(request: Request, reader: ReaderDep) -> HTMLResponse:
    """Show which worker ran each try of a task instance."""
    panel = _panel(request, reader)
    return HTMLResponse(render("panel.html", panel=panel, url=_urls(request, reader)))


@router.get("/panel/fragment")
def panel_fragment(request: Request, reader: ReaderDep) -> HTMLResponse:
    """Return the panel without the page around it, for a page that keeps up with its task."""
    panel = _panel(request, reader)
    return HTMLResponse(render("panel_fragment.html", panel=panel, url=_urls(request, reader)))


@router.get("/workers/{worker_id}")
def worker_page(request: Request, worker_id: str, reader: ReaderDep) -> HTMLResponse:
    """Show who a worker is and the tries that it ran, of those that the reader may see."""
    offset = parse_offset(request.url.query)
    reader.require_workers()
    dag_ids = reader.readable_dag_ids() if reader.may_see_task_instances() else set()
    page = content.worker_page(worker_id, dag_ids=dag_ids, offset=offset)
    if page is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, content.NO_SUCH_WORKER)
    return HTMLResponse(render("worker.html", page=page, url=_urls(request, reader)))


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


def _panel(request: Request, reader: Reader) -> Panel:
    address: PanelAddress = parse_panel_address(request.url.query)
    reader.require_task_instances(address.dag_id)
    return content.panel(address)


def _urls(request: Request, reader: Reader) -> Urls:
    return Urls(request.scope["root_path"], may_see_workers=reader.may_see_workers())
