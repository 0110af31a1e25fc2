"""The pages as Flask-AppBuilder views, and the REST API on Airflow 2.11.

The pages are for Airflow 2.11, and for Airflow 3 with the FAB auth manager.

Airflow 2.11 embeds them in its own page with its navigation. It has no FastAPI, so the REST API is here too.
Airflow 3 mounts them below ``/pluginsv2`` as standalone pages.

This module imports Flask, so import it only where the views are used.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING
from urllib.parse import quote

from flask import Response, current_app, redirect, request, session
from flask_appbuilder import BaseView, expose
from markupsafe import Markup
from pydantic import ValidationError

from airflow_worker_insight import compat
from airflow_worker_insight.api import queries, responses, service
from airflow_worker_insight.api.csrf import CROSS_ORIGIN_REFUSED, is_json, is_same_origin, passes_csrf_checks
from airflow_worker_insight.api.database import DatabaseBusyError, SchemaNotReadyError
from airflow_worker_insight.compat import auth as airflow_auth
from airflow_worker_insight.compat import fab as airflow_fab
from airflow_worker_insight.compat import links as airflow_links
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.limits import MAX_BODY
from airflow_worker_insight.ui import page_service
from airflow_worker_insight.ui.query_params import (
    InvalidUrlError,
    parse_attempts_params,
    parse_form,
    parse_panel_params,
    parse_waiting_params,
    parse_worker_params,
    parse_workers_params,
)
from airflow_worker_insight.ui.rendering import FAB_TEMPLATES, FRAGMENT, render
from airflow_worker_insight.ui.urls import FLASK_URL_PREFIX, Urls

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any, TypeVar

    from pydantic import BaseModel

    from airflow_worker_insight.ui.query_params import PanelParams

    View = TypeVar("View", bound=Callable[..., Any])
    Query = TypeVar("Query", bound=BaseModel)


MOUNTED_BELOW = "/pluginsv2"
"""The path at which Airflow 3 mounts the Flask app that all plugins share."""

HEADERS = {**page_service.HEADERS, "cache-control": "no-store"}


class AccessDeniedError(Exception):
    """Raised to refuse a request.

    :param status: the HTTP status
    :param text: the reason, for the reader
    """

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text)
        self.status = status


class Reader:
    """The user of the current request, with the permissions from Airflow's auth manager."""

    def __init__(self, user: Any) -> None:
        self._user = user

    def require_task_instances(self, dag_id: str | None = None) -> None:
        """Require permission to see a Dag's task instances.

        :param dag_id: the Dag, or ``None`` for permission to see task instances at all
        :raises AccessDeniedError: 403, or 401 without a login
        """
        if not self.may_see_task_instances(dag_id):
            raise self._denied()

    def require_known(self) -> None:
        """Require a login, or the permissions of a public role, which Airflow 2.11 always has.

        :raises AccessDeniedError: 401
        """
        if not airflow_fab.flask_is_logged_in(self._user) and not self.may_see_task_instances():
            raise self._denied()

    def require_workers(self) -> None:
        """Require permission to see workers.

        :raises AccessDeniedError: 403, or 401 without a login
        """
        if not self.may_see_workers():
            raise self._denied()

    def require_pool_edit(self) -> None:
        """Require permission to change worker availability: that to edit Airflow's pools.

        :raises AccessDeniedError: 403, or 401 without a login
        """
        if not self.may_edit_pools():
            raise self._denied()

    def may_edit_pools(self) -> bool:
        """Return whether the reader may change worker availability."""
        return airflow_fab.flask_may_edit_pools(self._user)

    @property
    def name(self) -> str:
        """The user name that Airflow has for the reader."""
        return airflow_auth.user_name(self._user)

    def may_see_task_instances(self, dag_id: str | None = None) -> bool:
        """Return whether the reader may see the task instances of a Dag, or any at all.

        :param dag_id: the Dag, or ``None`` for task instances at all
        """
        return airflow_fab.flask_may_see_task_instances(self._user, dag_id)

    def may_see_workers(self) -> bool:
        """Return whether the reader may see workers: the permission for Airflow's jobs view."""
        return airflow_fab.flask_may_see_jobs(self._user)

    def readable_dag_ids(self) -> set[str]:
        """Return the IDs of the Dags whose tries the reader may see in lists and totals."""
        return airflow_fab.flask_readable_dag_ids(self._user)

    def _denied(self) -> AccessDeniedError:
        return (
            AccessDeniedError(403, "Forbidden")
            if airflow_fab.flask_is_logged_in(self._user)
            else AccessDeniedError(401, "Not authenticated")
        )


class FlaskUrls(Urls):
    """URLs for the templates, below Flask's views.

    :param script_root: the path at which the Flask app is mounted
    :param may_see_workers: whether the reader may open workers' pages
    """

    def __init__(self, script_root: str, *, may_see_workers: bool = False) -> None:
        super().__init__(script_root + FLASK_URL_PREFIX, may_see_workers=may_see_workers)
        self.api_root = script_root.removesuffix(MOUNTED_BELOW) if compat.is_airflow_3() else script_root

    def _task_instance(self, *, params: PanelParams) -> str:
        if compat.is_airflow_3():
            return super()._task_instance(params=params)
        path = airflow_links.grid_path(params.dag_id, params.run_id, params.task_id, params.map_index)
        return f"{self.api_root}{path}"


def route(path: str, *methods: str) -> Callable[[View], View]:
    """Register a view at a path: Flask-AppBuilder's ``expose`` with type hints.

    :param methods: the HTTP methods; ``GET`` if none is given
    """
    decorator: Callable[[View], View] = expose(path, methods=methods or ("GET",))
    return decorator


# --- pages ----------------------------------------------------------------------------------------------------------


def page(view: View) -> View:
    """Decorate a page: render errors as a page, and redirect to the login where it is missing."""

    @wraps(view)
    def answer(self: BaseView, *args: Any, **kwargs: Any) -> Any:
        try:
            return view(self, *args, **kwargs)
        except AccessDeniedError as denied:
            if denied.status == 401:  # noqa: PLR2004
                return _redirect_to_login()
            return _message_page(self, denied.status, str(denied))
        except service.WorkerNotFoundError as error:
            return _message_page(self, 404, str(error))
        except (InvalidUrlError, queries.InvalidRequestError) as error:
            return _message_page(self, 422, str(error))
        except (SchemaNotReadyError, DatabaseBusyError) as error:
            return _message_page(self, 503, str(error))

    return answer  # type: ignore[return-value]


class WorkerInsightView(BaseView):  # type: ignore[misc]
    """The pages: Worker panel, workers, one worker, attempts, and waiting tries.

    Each page also has a ``/fragment`` URL for refreshing it in place.
    """

    route_base = FLASK_URL_PREFIX
    default_view = "workers"
    template_folder = str(FAB_TEMPLATES)

    @route("/panel")
    @route("/panel/fragment")
    @page
    def panel(self) -> Response:
        """Show which worker ran each try of a task instance."""
        reader = Reader(airflow_fab.flask_user())
        params = parse_panel_params(_query_string())
        reader.require_task_instances(params.dag_id)
        panel = page_service.panel(params, may_see_workers=reader.may_see_workers())
        return _render_page(self, f"{panel.task_name} · Worker", "panel.html", panel=panel, url=urls(reader))

    @route("/workers")
    @route("/workers/fragment")
    @page
    def workers(self) -> Response:
        """Show all workers and their states."""
        reader = Reader(airflow_fab.flask_user())
        reader.require_workers()
        params = parse_workers_params(_query_string())
        return _render_page(self, "Workers", "workers.html", page=page_service.workers_page(params), url=urls(reader))

    @route("/workers/<worker_id>")
    @route("/workers/<worker_id>/fragment")
    @page
    def worker(self, worker_id: str) -> Response:
        """Show a worker instance, and the tries that it ran as far as the reader may see them."""
        reader = Reader(airflow_fab.flask_user())
        reader.require_workers()
        params = parse_worker_params(_query_string())
        dag_ids = reader.readable_dag_ids() if reader.may_see_task_instances() else None
        may_decide = reader.may_edit_pools()
        page = page_service.worker_page(worker_id, params, dag_ids=dag_ids, may_decide=may_decide)
        csrf_token = airflow_fab.flask_csrf_token() if may_decide else ""
        return _render_page(
            self, f"{page.name} · Worker", "worker.html", page=page, csrf_token=csrf_token, url=urls(reader)
        )

    @route("/workers/<worker_id>/availability", "POST")
    @page
    def change_availability(self, worker_id: str) -> Any:
        """Set a worker's availability, and redirect to its page."""
        reader = Reader(airflow_fab.flask_user())
        reader.require_workers()
        reader.require_pool_edit()
        if not is_same_origin(request.headers, base_url=airflow_links.base_url()):
            raise AccessDeniedError(403, CROSS_ORIGIN_REFUSED)
        # Airflow's app has already parsed the form, to check its own CSRF token.
        form = parse_form(request.form.to_dict())
        service.change_availability(worker_id, form.availability, note=form.note, changed_by=reader.name)
        page_url = urls(reader)("worker", worker_id=worker_id)
        assert page_url is not None
        return redirect(page_url, 303)

    @route("/attempts")
    @route("/attempts/fragment")
    @page
    def attempts(self) -> Response:
        """Show the attempts of the Dags that the reader may see."""
        reader = Reader(airflow_fab.flask_user())
        reader.require_task_instances()
        params = parse_attempts_params(_query_string(), states=metadata_database.task_instance_states())
        dag_ids = _listed_dag_ids(reader, params.dag_id)
        page = page_service.attempts_page(params, dag_ids=dag_ids, may_see_workers=reader.may_see_workers())
        return _render_page(self, "Attempts", "attempts.html", page=page, url=urls(reader))

    @route("/waiting")
    @route("/waiting/fragment")
    @page
    def waiting(self) -> Response:
        """Show the waiting tries of the Dags that the reader may see, each with its reason."""
        reader = Reader(airflow_fab.flask_user())
        reader.require_task_instances()
        params = parse_waiting_params(_query_string())
        dag_ids = _listed_dag_ids(reader, params.dag_id)
        page = page_service.waiting_page(params, dag_ids=dag_ids, may_see_workers=reader.may_see_workers())
        return _render_page(self, "Waiting", "waiting.html", page=page, url=urls(reader))


def _listed_dag_ids(reader: Reader, dag_id: str) -> set[str]:
    """Return the IDs of the Dags to list: the readable ones, and ``dag_id`` even if deleted."""
    dag_ids = reader.readable_dag_ids()
    return {*dag_ids, dag_id} if dag_id and reader.may_see_task_instances(dag_id) else dag_ids


def _message_page(view: BaseView, status: int, text: str) -> Response:
    """Return a page with a message only."""
    notice = page_service.error_notice(status, text)
    return _render_page(
        view,
        f"{notice.title} · Worker Insight",
        "message.html",
        status=status,
        notice_to_show=notice,
        url=FlaskUrls(request.script_root),
    )


def _render_page(
    view: BaseView, title: str, template: str, *, status: int = 200, url: FlaskUrls, **values: Any
) -> Response:
    if request.path.endswith("/fragment"):
        return _html_response(render(template, layout=FRAGMENT, url=url, **values), status)
    if compat.is_airflow_3():
        return _html_response(render(template, url=url, **values), status)
    html = render(template, layout="worker_insight/fab_page.html", url=url, **values)
    # Markup, since our own templates have already escaped this HTML.
    return in_airflows_page(view, "fab_chrome.html", status, title=title, page=Markup(html), url=url)  # noqa: S704


def in_airflows_page(view: BaseView, template: str, status: int = 200, **values: Any) -> Response:
    """Render a page with Flask, inside the page of Airflow 2.11."""
    response = _html_response(view.render_template(f"worker_insight/{template}", **values), status)
    # Airflow's page has inline scripts, so restrict framing only.
    response.headers["content-security-policy"] = "frame-ancestors 'self'"
    return response


def _query_string() -> str:
    """Return the raw query string, still percent-encoded."""
    return str(request.query_string.decode("latin-1"))


def urls(reader: Reader) -> FlaskUrls:
    """Return the URLs for a reader's pages; those of workers only with permission."""
    return FlaskUrls(request.script_root, may_see_workers=reader.may_see_workers())


def _html_response(html: str, status: int = 200) -> Response:
    return Response(html, status, HEADERS, mimetype="text/html")


def _redirect_to_login() -> Any:
    if request.path.endswith("/fragment"):
        return _html_response("", 401)
    # No scheme and host: behind a proxy they may differ from the browser's.
    path = request.path.removesuffix("/availability")
    return_url = request.script_root + quote(path) + (f"?{_query_string()}" if request.query_string else "")
    return redirect(airflow_fab.flask_login_url(FlaskUrls(request.script_root).api_root, return_url))


# --- REST (2.11) ----------------------------------------------------------------------------------------------------


def _json_endpoint(view: View) -> View:
    """Decorate an endpoint: answer in JSON, also errors, and create no session for the client."""

    @wraps(view)
    def answer(self: WorkerInsightApi, *args: Any, **kwargs: Any) -> Response:
        had_no_session = not session
        try:
            result: BaseModel = view(self, *args, **kwargs)
        except AccessDeniedError as denied:
            return _json_response({"detail": str(denied)}, denied.status)
        except service.WorkerNotFoundError as error:
            return _json_response({"detail": str(error)}, 404)
        except queries.InvalidRequestError as error:
            return _json_response({"detail": str(error)}, 422)
        except (SchemaNotReadyError, DatabaseBusyError) as error:
            return _json_response({"detail": str(error)}, 503)
        except _InvalidRequestError as invalid:
            return _json_response({"detail": invalid.details}, 422)
        finally:
            if had_no_session:
                # Basic authentication logs in, so Airflow would store a session in its database per request.
                session.clear()
                session.modified = False
        return Response(result.model_dump_json(), 200, HEADERS, mimetype="application/json")

    return answer  # type: ignore[return-value]


class WorkerInsightApi(BaseView):  # type: ignore[misc]
    """The REST API on Airflow 2.11, behind the authentication of Airflow's own API."""

    route_base = f"{FLASK_URL_PREFIX}/api/v1"
    default_view = "attempts"

    def create_blueprint(self, appbuilder: Any, *args: Any, **kwargs: Any) -> Any:
        """Exempt the API from Airflow's form token check, like its own API; see :meth:`change_availability`."""
        blueprint = super().create_blueprint(appbuilder, *args, **kwargs)
        protection = appbuilder.app.extensions.get("csrf")
        if protection is not None:
            protection.exempt(blueprint)
        return blueprint

    @route("/attempts")
    @_json_endpoint
    def attempts(self) -> BaseModel:
        """List attempts and the workers that ran them, latest start first."""
        reader = _api_reader()
        query = _parse_query(queries.AttemptQuery)
        fields = service.list_attempts(
            query, dag_ids=_visible_dag_ids(reader, query.filters().dag_id), may_see_workers=reader.may_see_workers()
        )
        return responses.AttemptsResponse.model_validate(fields)

    @route("/placements")
    @_json_endpoint
    def placements(self) -> BaseModel:
        """List waiting and placed tries, oldest first."""
        reader = _api_reader()
        query = _parse_query(queries.PlacementQuery)
        dag_ids = _visible_dag_ids(reader, query.filters().dag_id)
        fields = service.list_placements(query, dag_ids=dag_ids, may_see_workers=reader.may_see_workers())
        return responses.PlacementsResponse.model_validate(fields)

    @route("/workers")
    @_json_endpoint
    def workers(self) -> BaseModel:
        """List workers, including those that have ended."""
        reader = _api_reader()
        query = _parse_query(queries.WorkerQuery)
        reader.require_workers()
        return responses.WorkersResponse.model_validate(service.list_workers(query))

    @route("/workers/<worker_id>")
    @_json_endpoint
    def worker(self, worker_id: str) -> BaseModel:
        """Show a worker instance and its history."""
        reader = _api_reader()
        queries.require_worker_id(worker_id)
        reader.require_workers()
        return responses.WorkerDetailResponse.model_validate(service.get_worker(worker_id))

    @route("/workers/<worker_id>/attempts")
    @_json_endpoint
    def worker_attempts(self, worker_id: str) -> BaseModel:
        """List the attempts that a worker ran, latest start first."""
        reader = _api_reader()
        queries.require_worker_id(worker_id)
        query = _parse_query(queries.WorkerAttemptQuery)
        reader.require_workers()
        fields = service.list_worker_attempts(
            worker_id, query, dag_ids=_visible_dag_ids(reader, query.filters().dag_id)
        )
        return responses.AttemptsResponse.model_validate(fields)

    @route("/workers/<worker_id>", "PATCH")
    @_json_endpoint
    def change_availability(self, worker_id: str) -> BaseModel:
        """Make a worker available, draining or quarantined.

        A request with a login cookie must come from a page of this server; form tokens are for forms only.
        """
        reader = _api_reader()
        queries.require_worker_id(worker_id)
        reader.require_workers()
        reader.require_pool_edit()
        if not passes_csrf_checks(
            request.headers, has_login_cookie=_has_login_cookie(), base_url=airflow_links.base_url()
        ):
            raise AccessDeniedError(403, CROSS_ORIGIN_REFUSED)
        body = request.stream.read(MAX_BODY + 1)
        try:
            decision = queries.parse_decision(body, is_json=is_json(request.headers))
        except ValidationError as error:
            raise _InvalidRequestError(error, "body") from None
        fields = service.change_availability(
            worker_id, decision.availability, note=decision.note, changed_by=reader.name
        )
        return responses.WorkerDetailResponse.model_validate(fields)

    @route("/services")
    @_json_endpoint
    def services(self) -> BaseModel:
        """List schedulers, triggerers, Dag processors and workers."""
        reader = _api_reader()
        query = _parse_query(queries.ServiceQuery)
        reader.require_workers()
        return responses.ServicesResponse.model_validate(service.list_services(query))

    @route("/health")
    @_json_endpoint
    def health(self) -> BaseModel:
        """Show the state of the tables, this process's counters and the latest polls."""
        reader = _api_reader()
        return responses.HealthResponse.model_validate(service.health(may_see_workers=reader.may_see_workers()))


def _api_reader() -> Reader:
    user = airflow_fab.flask_api_user()
    if user is None:
        raise AccessDeniedError(401, "Not authenticated")
    reader = Reader(user)
    reader.require_known()
    return reader


def _has_login_cookie() -> bool:
    """Return whether the request has a session cookie or Flask-Login's "remember me" cookie."""
    names = {"SESSION_COOKIE_NAME": "session", "REMEMBER_COOKIE_NAME": "remember_token"}
    return any(current_app.config.get(option, name) in request.cookies for option, name in names.items())


class _InvalidRequestError(Exception):
    """Raised when a query string or a body is invalid."""

    def __init__(self, error: ValidationError, location: str) -> None:
        super().__init__(str(error))
        self.details = queries.error_details(error, location)


def _parse_query(query: type[Query]) -> Query:
    """Parse the query string; the last value of a repeated parameter counts, as with FastAPI."""
    try:
        return query.model_validate({name: values[-1] for name, values in request.args.lists()})
    except ValidationError as error:
        raise _InvalidRequestError(error, "query") from None


def _visible_dag_ids(reader: Reader, dag_id: str | None) -> Collection[str]:
    reader.require_task_instances(dag_id)
    return {dag_id} if dag_id is not None else reader.readable_dag_ids()


def _json_response(value: Any, status: int) -> Response:
    from flask import json

    return Response(json.dumps(value), status, HEADERS, mimetype="application/json")
