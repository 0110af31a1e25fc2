"""The pages as Flask-AppBuilder views: for Airflow 2.11, and for Airflow 3 with the FAB auth manager.

Airflow 2.11 embeds them in its own page with its navigation. Airflow 3 mounts them below ``/pluginsv2`` as standalone
pages. This module imports Flask, so import it only where the views are used.
"""

from __future__ import annotations

from functools import wraps
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote

from flask import Response, redirect, request
from flask_appbuilder import BaseView, expose
from markupsafe import Markup

from airflow_worker_insight.api.errors import RequestError
from airflow_worker_insight.compat import links as airflow_links
from airflow_worker_insight.compat.plugins import FLASK_MOUNT_PATH
from airflow_worker_insight.ui import page_service, pages
from airflow_worker_insight.ui.query_params import InvalidUrlError, parse_form, parse_note
from airflow_worker_insight.ui.rendering import FAB_TEMPLATES, FRAGMENT, render
from airflow_worker_insight.ui.urls import FLASK_URL_PREFIX, Urls

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from airflow_worker_insight.api.reader import Reader
    from airflow_worker_insight.fab.reader import FlaskAirflow
    from airflow_worker_insight.ui.query_params import PanelParams

    View = TypeVar("View", bound=Callable[..., Any])


HEADERS = {**page_service.HEADERS, "cache-control": "no-store"}


class FlaskUrls(Urls):
    """URLs for the templates, below Flask's views.

    :param script_root: the path at which the Flask app is mounted
    :param renders_pages_with_flask: whether Airflow renders its own pages with Flask
    :param may_see_workers: whether the reader may open workers' pages
    """

    def __init__(self, script_root: str, *, renders_pages_with_flask: bool, may_see_workers: bool = False) -> None:
        super().__init__(script_root + FLASK_URL_PREFIX, may_see_workers=may_see_workers)
        self.api_root = script_root if renders_pages_with_flask else script_root.removesuffix(FLASK_MOUNT_PATH)
        self._renders_pages_with_flask = renders_pages_with_flask

    def _task_instance(self, *, params: PanelParams) -> str:
        if not self._renders_pages_with_flask:
            return super()._task_instance(params=params)
        path = airflow_links.grid_path(params.dag_id, params.run_id, params.task_id, params.map_index)
        return f"{self.api_root}{path}"


def route(path: str, *methods: str) -> Callable[[View], View]:
    """Register a view at a path: Flask-AppBuilder's ``expose`` with type hints.

    :param methods: the HTTP methods; ``GET`` if none is given
    """
    decorator: Callable[[View], View] = expose(path, methods=methods or ("GET",))
    return decorator


def answers_errors(view: View) -> View:
    """Decorate a view: render errors as a page, and redirect to the login where it is missing."""

    @wraps(view)
    def answer(self: WorkerInsightView, *args: Any, **kwargs: Any) -> Any:
        try:
            return view(self, *args, **kwargs)
        except RequestError as error:
            if error.status == HTTPStatus.UNAUTHORIZED:
                return self.redirect_to_login()
            return self.show_error(error.status, error)
        except InvalidUrlError as error:
            return self.show_error(422, error)

    return answer  # type: ignore[return-value]


class WorkerInsightView(BaseView):  # type: ignore[misc]
    """The pages. Each also has a ``/fragment`` URL, from which an open page refreshes itself."""

    route_base = FLASK_URL_PREFIX
    default_view = "workers"
    template_folder = str(FAB_TEMPLATES)

    def __init__(self, airflow: FlaskAirflow) -> None:
        super().__init__()
        self._airflow = airflow

    @route("/panel")
    @route("/panel/fragment")
    @answers_errors
    def panel(self) -> Response:
        """Show which worker ran each try of a task instance."""
        return self._show(pages.panel)

    @route("/workers")
    @route("/workers/fragment")
    @answers_errors
    def workers(self) -> Response:
        """List the workers and their states."""
        return self._show(pages.workers)

    @route("/workers/<worker_id>")
    @route("/workers/<worker_id>/fragment")
    @answers_errors
    def worker(self, worker_id: str) -> Response:
        """Show one worker instance and those of its tries that the reader may see."""
        return self._show(lambda reader, query: pages.worker(reader, query, worker_id), has_forms=True)

    @route("/workers/<worker_id>/availability", "POST")
    @answers_errors
    def change_availability(self, worker_id: str) -> Any:
        """Set a worker's availability and redirect to its page."""
        reader = self._airflow.page_reader()
        # Airflow's app has already parsed the form, to check its own CSRF token.
        pages.change_availability(reader, worker_id, request.headers, lambda: parse_form(request.form.to_dict()))
        page_url = self._link_builder(reader)("worker", worker_id=worker_id)
        assert page_url is not None
        return redirect(page_url, 303)

    @route("/insight")
    @route("/insight/fragment")
    @answers_errors
    def insight(self) -> Response:
        """Show findings and the heat map of the workers."""
        return self._show(pages.insight, has_forms=True)

    @route("/insight/<finding_id>")
    @route("/insight/<finding_id>/fragment")
    @answers_errors
    def finding(self, finding_id: str) -> Response:
        """Show one finding and its history."""
        return self._show(lambda reader, _: pages.finding(reader, finding_id), has_forms=True)

    @route("/insight/<finding_id>/dismiss", "POST")
    @answers_errors
    def dismiss_finding(self, finding_id: str) -> Any:
        """Dismiss a finding and redirect to its page."""
        reader = self._airflow.page_reader()
        row = pages.dismiss_finding(reader, finding_id, request.headers, lambda: parse_note(request.form.to_dict()))
        page_url = self._link_builder(reader)("finding", finding_id=row)
        assert page_url is not None
        return redirect(page_url, 303)

    @route("/attempts")
    @route("/attempts/fragment")
    @answers_errors
    def attempts(self) -> Response:
        """List the tries of the Dags that the reader may see."""
        return self._show(pages.attempts)

    @route("/waiting")
    @route("/waiting/fragment")
    @answers_errors
    def waiting(self) -> Response:
        """List the waiting tries of the Dags that the reader may see, each with its reason."""
        return self._show(pages.waiting)

    def _show(self, build: Callable[[Reader, str], pages.Page], *, has_forms: bool = False) -> Response:
        reader = self._airflow.page_reader()
        page = build(reader, _query_string())
        token = self._airflow.csrf_token() if has_forms and reader.may_edit_pools() else ""
        return self._render(page, self._link_builder(reader), csrf_token=token)

    def show_error(self, status: int, error: Exception) -> Response:
        """Return a page with a message only."""
        notice = page_service.error_notice(status, str(error))
        page = pages.Page(f"{notice.title} · Worker Insight", "message.html", {"notice_to_show": notice})
        return self._render(page, self._link_builder(), status)

    def redirect_to_login(self) -> Any:
        """Redirect to the login, which leads back to the page."""
        if request.path.endswith("/fragment"):
            return _html_response("", 401)
        # No scheme and host: behind a proxy they may differ from the browser's.
        path = request.path.removesuffix("/availability").removesuffix("/dismiss")
        return_url = request.script_root + quote(path) + (f"?{_query_string()}" if request.query_string else "")
        return redirect(self._airflow.login_url(self._link_builder().api_root, return_url))

    def _render(self, page: pages.Page, url: FlaskUrls, status: int = 200, **values: Any) -> Response:
        values = {**page.values, **values, "url": url}
        if request.path.endswith("/fragment"):
            return _html_response(render(page.template, layout=FRAGMENT, **values), status)
        if not self._airflow.renders_pages_with_flask:
            return _html_response(render(page.template, **values), status)
        html = render(page.template, layout="worker_insight/fab_page.html", **values)
        # Markup, since our own templates have already escaped this HTML.
        chrome = {"title": page.title, "page": Markup(html), "url": url}  # noqa: S704 - escaped
        response = _html_response(self.render_template("worker_insight/fab_chrome.html", **chrome), status)
        # Airflow's page has inline scripts, so restrict framing only.
        response.headers["content-security-policy"] = "frame-ancestors 'self'"
        return response

    def _link_builder(self, reader: Reader | None = None) -> FlaskUrls:
        """Return the URLs for a reader's pages; those of workers only with permission."""
        may_see_workers = reader is not None and reader.may_see_workers()
        return FlaskUrls(
            request.script_root,
            renders_pages_with_flask=self._airflow.renders_pages_with_flask,
            may_see_workers=may_see_workers,
        )


def _query_string() -> str:
    """Return the raw query string, still percent-encoded."""
    return str(request.query_string.decode("latin-1"))


def _html_response(html: str, status: int = 200) -> Response:
    return Response(html, status, HEADERS, mimetype="text/html")
