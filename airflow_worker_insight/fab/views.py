"""The pages as Flask-AppBuilder views: on Airflow 2.11, and on Airflow 3 where the auth manager is FAB's.

Airflow 2.11 shows them inside its own page, with its navigation, and has the REST API here too, as there is no FastAPI.
Airflow 3 mounts them below ``/pluginsv2``, as pages of their own.

This module is imported only where the views are wanted: it imports Flask.
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
from airflow_worker_insight.api import schemas
from airflow_worker_insight.api.csrf import is_from_here, is_json, may_be_made
from airflow_worker_insight.api.database import DatabaseBusyError, SchemaNotReadyError
from airflow_worker_insight.compat import auth as airflow_auth
from airflow_worker_insight.compat import fab as airflow_fab
from airflow_worker_insight.compat import links as airflow_links
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.limits import MAX_BODY
from airflow_worker_insight.ui import page_service
from airflow_worker_insight.ui.query_params import (
    InvalidUrlError,
    decision_of,
    parse_attempts_address,
    parse_panel_address,
    parse_waiting_address,
    parse_worker_address,
    parse_workers_address,
)
from airflow_worker_insight.ui.rendering import FAB_TEMPLATES, FRAGMENT, render
from airflow_worker_insight.ui.urls import FLASK_URL_PREFIX, Urls

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any, TypeVar

    from pydantic import BaseModel

    from airflow_worker_insight.ui.query_params import PanelAddress

    View = TypeVar("View", bound=Callable[..., Any])
    Query = TypeVar("Query", bound=BaseModel)


MOUNTED_BELOW = "/pluginsv2"
"""Where Airflow 3 mounts the Flask app of all plugins."""

HEADERS = {**page_service.HEADERS, "cache-control": "no-store"}


class AccessDeniedError(Exception):
    """A request that is not answered; ``status`` says why, the message says it to a reader."""

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text)
        self.status = status


class Reader:
    """Who sends the request at hand, and what Airflow's auth manager lets them read."""

    def __init__(self, user: Any) -> None:
        self._user = user

    def require_task_instances(self, dag_id: str | None = None) -> None:
        """Refuse a reader who may not see the task instances of a Dag, or none at all when ``dag_id`` is ``None``."""
        if not self.may_see_task_instances(dag_id):
            raise self._refused()

    def require_known(self) -> None:
        """Refuse one who is neither logged in nor given rights by a public role, which Airflow 2.11 always has."""
        if not airflow_fab.flask_is_logged_in(self._user) and not self.may_see_task_instances():
            raise self._refused()

    def require_workers(self) -> None:
        """Refuse a reader who may not see what workers are."""
        if not self.may_see_workers():
            raise self._refused()

    def require_pool_edit(self) -> None:
        """Refuse a reader who may not decide which worker is given work: the right to edit Airflow's pools."""
        if not self.may_edit_pools():
            raise self._refused()

    def may_edit_pools(self) -> bool:
        """Return whether the reader may decide which worker is given work."""
        return airflow_fab.flask_may_edit_pools(self._user)

    @property
    def name(self) -> str:
        """What Airflow calls the reader."""
        return airflow_auth.user_name(self._user)

    def may_see_task_instances(self, dag_id: str | None = None) -> bool:
        """Return whether the reader may see the task instances of a Dag, or any at all."""
        return airflow_fab.flask_may_see_task_instances(self._user, dag_id)

    def may_see_workers(self) -> bool:
        """Return whether the reader may see what workers are: the right that Airflow asks for its jobs view."""
        return airflow_fab.flask_may_see_jobs(self._user)

    def readable_dag_ids(self) -> set[str]:
        """Return the Dags whose tries the reader may find in lists and totals."""
        return airflow_fab.flask_readable_dag_ids(self._user)

    def _refused(self) -> AccessDeniedError:
        return (
            AccessDeniedError(403, "Forbidden")
            if airflow_fab.flask_is_logged_in(self._user)
            else AccessDeniedError(401, "Not authenticated")
        )


class FlaskUrls(Urls):
    """The templates' addresses below Flask's views.

    :param script_root: the path below which the Flask app is
    """

    def __init__(self, script_root: str, *, may_see_workers: bool = False) -> None:
        super().__init__(script_root + FLASK_URL_PREFIX, may_see_workers=may_see_workers)
        self.api_root = script_root.removesuffix(MOUNTED_BELOW) if compat.is_airflow_3() else script_root

    def _task_instance(self, *, address: PanelAddress) -> str:
        if compat.is_airflow_3():
            return super()._task_instance(address=address)
        path = airflow_links.grid_path(address.dag_id, address.run_id, address.task_id, address.map_index)
        return f"{self.api_root}{path}"


def route(path: str, *methods: str) -> Callable[[View], View]:
    """Flask-AppBuilder's ``expose``, with a type."""
    decorator: Callable[[View], View] = expose(path, methods=methods or ("GET",))
    return decorator


# --- pages ----------------------------------------------------------------------------------------------------------


def page(view: View) -> View:
    """Answer what goes wrong in a page with a page, and send one who is not logged in to the login."""

    @wraps(view)
    def answer(self: BaseView, *args: Any, **kwargs: Any) -> Any:
        try:
            return view(self, *args, **kwargs)
        except AccessDeniedError as refused:
            if refused.status == 401:  # noqa: PLR2004
                return _to_login()
            return _message(self, refused.status, str(refused))
        except InvalidUrlError as error:
            return _message(self, 422, str(error))
        except (SchemaNotReadyError, DatabaseBusyError) as error:
            return _message(self, 503, str(error))

    return answer  # type: ignore[return-value]


class WorkerInsightView(BaseView):  # type: ignore[misc]
    """The Worker panel, workers, one worker and attempts, each with the fragment that refreshes it."""

    route_base = FLASK_URL_PREFIX
    default_view = "workers"
    template_folder = str(FAB_TEMPLATES)

    @route("/panel")
    @route("/panel/fragment")
    @page
    def panel(self) -> Response:
        """Show which worker ran each try of a task instance."""
        reader = Reader(airflow_fab.flask_user())
        address = parse_panel_address(_query())
        reader.require_task_instances(address.dag_id)
        panel = page_service.panel(address, sees_workers=reader.may_see_workers())
        return _show(self, f"{panel.task_name} · Worker", "panel.html", panel=panel, url=urls(reader))

    @route("/workers")
    @route("/workers/fragment")
    @page
    def workers(self) -> Response:
        """Show the fleet: which workers there are and how they fare."""
        reader = Reader(airflow_fab.flask_user())
        reader.require_workers()
        address = parse_workers_address(_query())
        return _show(self, "Workers", "workers.html", page=page_service.workers_page(address), url=urls(reader))

    @route("/workers/<worker_id>")
    @route("/workers/<worker_id>/fragment")
    @page
    def worker(self, worker_id: str) -> Response:
        """Show a worker's life and the tries that it ran, of those that the reader may see."""
        reader = Reader(airflow_fab.flask_user())
        reader.require_workers()
        address = parse_worker_address(_query())
        dag_ids = reader.readable_dag_ids() if reader.may_see_task_instances() else None
        may_decide = reader.may_edit_pools()
        page = page_service.worker_page(worker_id, address, dag_ids=dag_ids, may_decide=may_decide)
        if page is None:
            raise AccessDeniedError(404, page_service.NO_SUCH_WORKER)
        csrf_token = airflow_fab.flask_csrf_token() if may_decide else ""
        return _show(self, f"{page.name} · Worker", "worker.html", page=page, csrf_token=csrf_token, url=urls(reader))

    @route("/workers/<worker_id>/availability", "POST")
    @page
    def decide(self, worker_id: str) -> Any:
        """Write what a person decided of a worker, and show its page again."""
        reader = Reader(airflow_fab.flask_user())
        reader.require_workers()
        reader.require_pool_edit()
        if not is_from_here(request.headers, base_url=airflow_links.base_url()):
            raise AccessDeniedError(403, page_service.NOT_FROM_HERE)
        # Airflow's app has read the form already, to find its own token in it.
        decision = decision_of(request.form.to_dict())
        if not page_service.decide(worker_id, decision, changed_by=reader.name):
            raise AccessDeniedError(404, page_service.NO_SUCH_WORKER)
        page = urls(reader)("worker", worker_id=worker_id)
        assert page is not None
        return redirect(page, 303)

    @route("/attempts")
    @route("/attempts/fragment")
    @page
    def attempts(self) -> Response:
        """Show every try of the Dags that the reader may read."""
        reader = Reader(airflow_fab.flask_user())
        reader.require_task_instances()
        address = parse_attempts_address(_query(), states=metadata_database.task_instance_states())
        dag_ids = _dag_ids(reader, address.dag_id)
        page = page_service.attempts_page(address, dag_ids=dag_ids, sees_workers=reader.may_see_workers())
        return _show(self, "Attempts", "attempts.html", page=page, url=urls(reader))

    @route("/waiting")
    @route("/waiting/fragment")
    @page
    def waiting(self) -> Response:
        """Show every try that waits, of the Dags that the reader may read, and why."""
        reader = Reader(airflow_fab.flask_user())
        reader.require_task_instances()
        address = parse_waiting_address(_query())
        dag_ids = _dag_ids(reader, address.dag_id)
        page = page_service.waiting_page(address, dag_ids=dag_ids, sees_workers=reader.may_see_workers())
        return _show(self, "Waiting", "waiting.html", page=page, url=urls(reader))


def _dag_ids(reader: Reader, dag_id: str) -> set[str]:
    """Return the Dags whose tries are listed: all that the reader may read, also one that Airflow has deleted."""
    dag_ids = reader.readable_dag_ids()
    return {*dag_ids, dag_id} if dag_id and reader.may_see_task_instances(dag_id) else dag_ids


def _message(view: BaseView, status: int, text: str) -> Response:
    """Say why there is nothing else to show."""
    notice = page_service.problem(status, text)
    return _show(
        view,
        f"{notice.title} · Worker Insight",
        "message.html",
        status=status,
        notice_to_show=notice,
        url=FlaskUrls(request.script_root),
    )


def _show(view: BaseView, title: str, template: str, *, status: int = 200, url: FlaskUrls, **values: Any) -> Response:
    if request.path.endswith("/fragment"):
        return _html(render(template, layout=FRAGMENT, url=url, **values), status)
    if compat.is_airflow_3():
        return _html(render(template, url=url, **values), status)
    html = render(template, layout="worker_insight/fab_page.html", url=url, **values)
    # What is put into Airflow's page is finished HTML, escaped by our own templates.
    return in_airflows_page(view, "fab_chrome.html", status, title=title, page=Markup(html), url=url)  # noqa: S704


def in_airflows_page(view: BaseView, template: str, status: int = 200, **values: Any) -> Response:
    """Return a page of 2.11, which Flask renders."""
    answer = _html(view.render_template(f"worker_insight/{template}", **values), status)
    # Airflow's own page has scripts in its markup; who may frame it is still ours to say.
    answer.headers["content-security-policy"] = "frame-ancestors 'self'"
    return answer


def _query() -> str:
    """Return the query string as it came, still percent-encoded."""
    return str(request.query_string.decode("latin-1"))


def urls(reader: Reader) -> FlaskUrls:
    """Return the addresses of a reader's pages."""
    return FlaskUrls(request.script_root, may_see_workers=reader.may_see_workers())


def _html(html: str, status: int = 200) -> Response:
    return Response(html, status, HEADERS, mimetype="text/html")


def _to_login() -> Any:
    if request.path.endswith("/fragment"):
        return _html("", 401)
    # Without scheme and host: behind a proxy they may be others than the browser's.
    page = request.path.removesuffix("/availability")
    here = request.script_root + quote(page) + (f"?{_query()}" if request.query_string else "")
    return redirect(airflow_fab.flask_login_url(FlaskUrls(request.script_root).api_root, here))


# --- REST (2.11) ----------------------------------------------------------------------------------------------------


def _program(view: View) -> View:
    """Answer a program in JSON, also what goes wrong, and leave no session behind where it brought none."""

    @wraps(view)
    def answer(self: WorkerInsightApi, *args: Any, **kwargs: Any) -> Response:
        came_without_session = not session
        try:
            result: BaseModel = view(self, *args, **kwargs)
        except AccessDeniedError as refused:
            return _json({"detail": str(refused)}, refused.status)
        except schemas.WorkerNotFoundError as error:
            return _json({"detail": str(error)}, 404)
        except schemas.InvalidChangeError as error:
            return _json({"detail": str(error)}, 422)
        except (SchemaNotReadyError, DatabaseBusyError) as error:
            return _json({"detail": str(error)}, 503)
        except _InvalidRequestError as invalid:
            return _json({"detail": invalid.problems}, 422)
        finally:
            if came_without_session:
                # Basic authentication logs in: Airflow would keep a session in its database for each request.
                session.clear()
                session.modified = False
        return Response(result.model_dump_json(), 200, HEADERS, mimetype="application/json")

    return answer  # type: ignore[return-value]


class WorkerInsightApi(BaseView):  # type: ignore[misc]
    """The REST API on Airflow 2.11, behind Airflow's own authentication of its API."""

    route_base = f"{FLASK_URL_PREFIX}/api/v1"
    default_view = "attempts"

    def create_blueprint(self, appbuilder: Any, *args: Any, **kwargs: Any) -> Any:
        """Take the API out of what Airflow asks a form's token of, as Airflow's own is; see :meth:`decide`."""
        blueprint = super().create_blueprint(appbuilder, *args, **kwargs)
        protection = appbuilder.app.extensions.get("csrf")
        if protection is not None:
            protection.exempt(blueprint)
        return blueprint

    @route("/attempts")
    @_program
    def attempts(self) -> BaseModel:
        """List tries and the workers that ran them, the latest start first."""
        reader = _api_reader()
        query = _given(schemas.AttemptQuery)
        found = schemas.list_attempts(query, dag_ids=_listed_dags(reader, query), sees_workers=reader.may_see_workers())
        return schemas.AttemptsResponse.model_validate(found)

    @route("/placements")
    @_program
    def placements(self) -> BaseModel:
        """List what waits for a worker and what is placed, the earliest first."""
        reader = _api_reader()
        query = _given(schemas.PlacementQuery)
        dag_ids = _listed_dags(reader, query)
        found = schemas.list_placements(query, dag_ids=dag_ids, sees_workers=reader.may_see_workers())
        return schemas.PlacementsResponse.model_validate(found)

    @route("/workers")
    @_program
    def workers(self) -> BaseModel:
        """List workers, those that are gone too."""
        reader = _api_reader()
        query = _given(schemas.WorkerQuery)
        reader.require_workers()
        return schemas.WorkersResponse.model_validate(schemas.list_workers(query))

    @route("/workers/<worker_id>")
    @_program
    def worker(self, worker_id: str) -> BaseModel:
        """Show one life of a worker and its history."""
        reader = _api_reader()
        schemas.require_worker_id(worker_id)
        reader.require_workers()
        return schemas.OneWorkerResponse.model_validate(schemas.one_worker(worker_id))

    @route("/workers/<worker_id>/attempts")
    @_program
    def worker_attempts(self, worker_id: str) -> BaseModel:
        """List the tries that a worker ran, the latest start first."""
        reader = _api_reader()
        schemas.require_worker_id(worker_id)
        query = _given(schemas.WorkerAttemptQuery)
        reader.require_workers()
        found = schemas.list_worker_attempts(worker_id, query, dag_ids=_listed_dags(reader, query))
        return schemas.AttemptsResponse.model_validate(found)

    @route("/workers/<worker_id>", "PATCH")
    @_program
    def decide(self, worker_id: str) -> BaseModel:
        """Make a worker available, draining or quarantined.

        A request that carries a login's cookie must come from a page of this server; a form's token is for forms.
        """
        reader = _api_reader()
        schemas.require_worker_id(worker_id)
        reader.require_workers()
        reader.require_pool_edit()
        if not may_be_made(request.headers, has_login_cookie=_has_login_cookie(), base_url=airflow_links.base_url()):
            raise AccessDeniedError(403, schemas.NOT_FROM_HERE)
        body = request.stream.read(MAX_BODY + 1)
        try:
            decision = schemas.parse_decision(body, is_json=is_json(request.headers))
        except ValidationError as error:
            raise _InvalidRequestError(error, "body") from None
        found = schemas.decide(worker_id, decision, changed_by=reader.name)
        return schemas.OneWorkerResponse.model_validate(found)

    @route("/services")
    @_program
    def services(self) -> BaseModel:
        """List schedulers, triggerers, Dag processors and workers."""
        reader = _api_reader()
        query = _given(schemas.ServiceQuery)
        reader.require_workers()
        return schemas.ServicesResponse.model_validate(schemas.list_services(query))

    @route("/health")
    @_program
    def health(self) -> BaseModel:
        """Say whether the tables can be used, what became of the reports that this process received, and who looks."""
        reader = _api_reader()
        return schemas.HealthResponse.model_validate(schemas.health(with_engines=reader.may_see_workers()))


def _api_reader() -> Reader:
    user = airflow_fab.flask_api_user()
    if user is None:
        raise AccessDeniedError(401, "Not authenticated")
    reader = Reader(user)
    reader.require_known()
    return reader


def _has_login_cookie() -> bool:
    """Return whether a browser brought a session, or what Flask-Login remembers a person by."""
    names = {"SESSION_COOKIE_NAME": "session", "REMEMBER_COOKIE_NAME": "remember_token"}
    return any(current_app.config.get(option, name) in request.cookies for option, name in names.items())


class _InvalidRequestError(Exception):
    """A query string or a body that does not fit."""

    def __init__(self, error: ValidationError, place: str) -> None:
        super().__init__(str(error))
        self.problems = schemas.problems(error, place)


def _given(query: type[Query]) -> Query:
    """Read the query string; of what is given twice the last counts, as with FastAPI."""
    try:
        return query.model_validate({name: values[-1] for name, values in request.args.lists()})
    except ValidationError as error:
        raise _InvalidRequestError(error, "query") from None


def _listed_dags(reader: Reader, query: schemas.WorkerAttemptQuery | schemas.PlacementQuery) -> Collection[str]:
    reader.require_task_instances(query.dag_id)
    return {query.dag_id} if query.dag_id is not None else reader.readable_dag_ids()


def _json(value: Any, status: int) -> Response:
    from flask import json

    return Response(json.dumps(value), status, HEADERS, mimetype="application/json")
