"""HTML pages of Airflow 3.

The pages are the Worker panel, workers, one worker, findings, one finding, attempts, waiting tries and the description
of the REST API. Each page has a ``/fragment`` route that returns it without its surrounding layout: open pages refresh
themselves from it.
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request, status
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse

from airflow_worker_insight.api.auth import ReaderDep  # noqa: TC001  (FastAPI reads the annotations)
from airflow_worker_insight.api.description import parameter_rows
from airflow_worker_insight.api.reader import Reader  # noqa: TC001  (FastAPI reads the annotations)
from airflow_worker_insight.api.routes import BodyDep  # noqa: TC001  (FastAPI reads the annotations)
from airflow_worker_insight.ui import pages
from airflow_worker_insight.ui.query_params import parse_availability_form, parse_note_form
from airflow_worker_insight.ui.rendering import FRAGMENT, render
from airflow_worker_insight.ui.urls import Urls

router = APIRouter(default_response_class=HTMLResponse, include_in_schema=False)


@router.get("/panel")
@router.get("/panel/fragment")
def panel(request: Request, reader: ReaderDep) -> HTMLResponse:
    """Show which worker ran each try of a task instance."""
    return _show(pages.panel(reader, request.url.query), request, reader)


@router.get("/workers")
@router.get("/workers/fragment")
def workers(request: Request, reader: ReaderDep) -> HTMLResponse:
    """List the workers and their states."""
    return _show(pages.workers(reader, request.url.query), request, reader)


@router.get("/workers/{worker_id}")
@router.get("/workers/{worker_id}/fragment")
def worker(request: Request, worker_id: str, reader: ReaderDep) -> HTMLResponse:
    """Show one worker instance and those of its tries that the user may see."""
    return _show(pages.worker(reader, request.url.query, worker_id), request, reader)


@router.post("/workers/{worker_id}/availability")
def change_availability(request: Request, worker_id: str, reader: ReaderDep, body: BodyDep) -> RedirectResponse:
    """Set a worker's availability and redirect to its page."""
    pages.change_availability(reader, worker_id, request.headers, lambda: parse_availability_form(body))
    url = _urls(request, reader)("worker", worker_id=worker_id)
    assert url is not None
    return RedirectResponse(url, status.HTTP_303_SEE_OTHER)


@router.get("/insight")
@router.get("/insight/fragment")
def insight(request: Request, reader: ReaderDep) -> HTMLResponse:
    """Show findings and the heat map of the workers."""
    return _show(pages.insight(reader, request.url.query), request, reader)


@router.get("/insight/{finding_id}")
@router.get("/insight/{finding_id}/fragment")
def finding(request: Request, finding_id: str, reader: ReaderDep) -> HTMLResponse:
    """Show one finding and its history."""
    return _show(pages.finding(reader, finding_id), request, reader)


@router.post("/insight/{finding_id}/dismiss")
def dismiss_finding(request: Request, finding_id: str, reader: ReaderDep, body: BodyDep) -> RedirectResponse:
    """Dismiss a finding and redirect to its page."""
    finding_row = pages.dismiss_finding(reader, finding_id, request.headers, lambda: parse_note_form(body))
    url = _urls(request, reader)("finding", finding_id=finding_row)
    assert url is not None
    return RedirectResponse(url, status.HTTP_303_SEE_OTHER)


@router.get("/attempts")
@router.get("/attempts/fragment")
def attempts(request: Request, reader: ReaderDep) -> HTMLResponse:
    """List the tries of the Dags that the user may read."""
    return _show(pages.attempts(reader, request.url.query), request, reader)


@router.get("/waiting")
@router.get("/waiting/fragment")
def waiting(request: Request, reader: ReaderDep) -> HTMLResponse:
    """List the waiting tries of the Dags that the user may read, each with its reason."""
    return _show(pages.waiting(reader, request.url.query), request, reader)


@router.get("/docs")
def api_description(request: Request, reader: ReaderDep) -> HTMLResponse:
    """Describe the REST API.

    Unlike FastAPI's own page, this one loads no script from another host.
    """
    api = request.app.openapi()
    url = _urls(request, reader)
    return HTMLResponse(render("docs.html", api=api, parameter_rows=parameter_rows, dumps=json.dumps, url=url))


@router.get("/openapi.json")
def openapi_document(request: Request, reader: ReaderDep) -> JSONResponse:  # noqa: ARG001 - requires a login
    """Return the REST API's OpenAPI document with the server URL that the user sees."""
    document: dict[str, Any] = request.app.openapi()
    return JSONResponse({**document, "servers": [{"url": request.scope["root_path"] or "/"}]})


def _show(page: pages.Page, request: Request, reader: Reader) -> HTMLResponse:
    layout = {"layout": FRAGMENT} if request.url.path.endswith("/fragment") else {}
    return HTMLResponse(render(page.template, url=_urls(request, reader), **layout, **page.values))


def _urls(request: Request, reader: Reader) -> Urls:
    return Urls(request.scope["root_path"], may_see_workers=reader.may_see_workers())
