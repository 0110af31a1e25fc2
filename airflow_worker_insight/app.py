"""FastAPI app that the plugin mounts at ``/worker-insight`` of Airflow 3's API server."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from fastapi import FastAPI, Request, status
from fastapi.exception_handlers import http_exception_handler, request_validation_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from airflow_worker_insight import __version__
from airflow_worker_insight.analysis.thread import analysis_lifespan
from airflow_worker_insight.api import routes as api_routes
from airflow_worker_insight.api.auth import is_login_missing
from airflow_worker_insight.api.errors import RequestError
from airflow_worker_insight.compat import auth as airflow_auth
from airflow_worker_insight.registry.background import poll_lifespan
from airflow_worker_insight.ui import page_service
from airflow_worker_insight.ui import routes as ui_routes
from airflow_worker_insight.ui.query_params import InvalidUrlError
from airflow_worker_insight.ui.rendering import STATIC, render
from airflow_worker_insight.ui.urls import Urls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

DESCRIPTION = (
    "Which worker ran each try of each task. Every route requires a login to Airflow: a bearer token, as for Airflow's "
    "own API, or the browser's session. Times are ISO 8601 in UTC."
)

MAX_REQUESTS = 8
"""Maximum concurrent requests per process.

It exceeds the number that may use the database, so that some can be refused.
"""

HEADERS = {name.encode(): value.encode() for name, value in page_service.HEADERS.items()}


def create_app() -> FastAPI:
    """Return the app: pages, REST API, static files and error handlers.

    Programs get errors as JSON, browsers as pages.
    """
    app = FastAPI(
        title="Airflow Worker Insight",
        description=DESCRIPTION,
        version=__version__,
        # The app has its own API docs, which require a login and load nothing from other hosts.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.include_router(api_routes.router)
    app.include_router(ui_routes.router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_middleware(_ConcurrencyLimit)
    app.add_middleware(_SecurityHeaders)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(InvalidUrlError, _on_invalid_url)
    return app


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Poll the workers and analyse their tries while a process of the API server runs."""
    async with poll_lifespan(app), analysis_lifespan(app):
        yield


class _SecurityHeaders:
    """Middleware that adds :data:`HEADERS` and keeps personal data out of shared caches."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_static = _path(scope).startswith("/static/")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), *HEADERS.items()]
                headers.append((b"cache-control", b"public, max-age=3600" if is_static else b"no-store"))
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_with_headers)


class _ConcurrencyLimit:
    """Middleware that limits concurrent requests; others wait without blocking a thread.

    All apps of an API server share 40 threads, and a request of this app occupies one while it waits for the database.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        # One per event loop: tests may use several.
        self._limits: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _path(scope).startswith("/static/"):
            await self._app(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        async with self._limits.setdefault(loop, asyncio.Semaphore(MAX_REQUESTS)):
            await self._app(scope, receive, send)


def _path(scope: Scope) -> str:
    """Return the path relative to the root of this app."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _expects_json(request: Request) -> bool:
    path = _path(request.scope)
    # Routing appends the mount point to the root path of requests for static files.
    is_static = request.scope.get("root_path", "").endswith("/static")
    return is_static or path.startswith("/api/") or path == "/openapi.json"


# --- errors ---------------------------------------------------------------------------------------------------------


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if _expects_json(request):
        return await http_exception_handler(request, error)
    if is_login_missing(error):
        return _redirect_to_login(request)
    return _message(request, error.status_code, error.detail)


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    if _expects_json(request):
        return await request_validation_exception_handler(request, error)
    return _message(request, 422, "The URL has an invalid value.")


async def _on_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    if _expects_json(request):
        return JSONResponse({"detail": str(error)}, error.status)
    return _message(request, error.status, str(error))


async def _on_invalid_url(request: Request, error: Exception) -> Response:
    return _message(request, 422, str(error))


def _redirect_to_login(request: Request) -> Response:
    urls = Urls(request.scope["root_path"])
    query = request.url.query
    # Return to the whole page after the login: fragments and form targets are not pages.
    path = urls.root + _path(request.scope).removesuffix("/fragment").removesuffix("/availability").removesuffix(
        "/dismiss"
    )
    login_url = airflow_auth.login_url(urls.api_root, f"{path}?{query}" if query else path)
    if _path(request.scope).endswith("/fragment"):
        return HTMLResponse("", status.HTTP_401_UNAUTHORIZED)
    if airflow_auth.browser_sends_token():
        # 303 makes the browser use GET: the login page takes no POST.
        status_code = status.HTTP_307_TEMPORARY_REDIRECT if request.method == "GET" else status.HTTP_303_SEE_OTHER
        return RedirectResponse(login_url, status_code)
    return HTMLResponse(
        render("sign_in.html", login_url=login_url, url=urls),
        status.HTTP_401_UNAUTHORIZED,
    )


def _message(request: Request, status_code: int, text: str) -> HTMLResponse:
    html = render(
        "message.html",
        notice_to_show=page_service.error_notice(status_code, text),
        url=Urls(request.scope["root_path"]),
    )
    return HTMLResponse(html, status_code)
