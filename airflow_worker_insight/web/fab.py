"""The pages as Flask-AppBuilder views: on Airflow 2.11, and on Airflow 3 where the auth manager is FAB's.

Airflow 2.11 shows them inside its own page, with its navigation, and has the REST API's ``attempts`` and ``health``
here too, as there is no FastAPI. Airflow 3 mounts them below ``/pluginsv2``, as pages of their own.

This module is imported only where the views are wanted: it imports Flask.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from flask import Blueprint, Response, redirect, request, session
from flask_appbuilder import BaseView, expose
from markupsafe import Markup
from pydantic import ValidationError

from airflow_worker_insight import compat
from airflow_worker_insight.web import content, objects
from airflow_worker_insight.web.address import BadAddress, parse_offset, parse_panel_address
from airflow_worker_insight.web.database import SchemaNotReady
from airflow_worker_insight.web.rendering import STATIC, TEMPLATES, render
from airflow_worker_insight.web.urls import FLASK_URL_PREFIX, Urls

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from pydantic import BaseModel

    from airflow_worker_insight.web.address import PanelAddress
    from airflow_worker_insight.web.view import Panel

    View = TypeVar("View", bound=Callable[..., Any])

MOUNTED_BELOW = "/pluginsv2"
"""Where Airflow 3 mounts the Flask app of all plugins."""

HEADERS = {**content.HEADERS, "cache-control": "no-store"}


class Refused(Exception):  # noqa: N818
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
        if not compat.flask_is_logged_in(self._user) and not self.may_see_task_instances():
            raise self._refused()

    def require_workers(self) -> None:
        """Refuse a reader who may not see what workers are."""
        if not self.may_see_workers():
            raise self._refused()

    def may_see_task_instances(self, dag_id: str | None = None) -> bool:
        """Return whether the reader may see the task instances of a Dag, or any at all."""
        return compat.flask_may_see_task_instances(self._user, dag_id)

    def may_see_workers(self) -> bool:
        """Return whether the reader may see what workers are: the right that Airflow asks for its jobs view."""
        return compat.flask_may_see_jobs(self._user)

    def readable_dag_ids(self) -> set[str]:
        """Return the Dags whose tries the reader may find in lists and totals."""
        return compat.flask_readable_dag_ids(self._user)

    def _refused(self) -> Refused:
        return Refused(403, "Forbidden") if compat.flask_is_logged_in(self._user) else Refused(401, "Not authenticated")


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
        return f"{self.api_root}{compat.grid_path(address.dag_id, address.run_id, address.task_id, address.map_index)}"


def _route(path: str) -> Callable[[View], View]:
    """Flask-AppBuilder's ``expose``, with a type."""
    decorator: Callable[[View], View] = expose(path)
    return decorator


# --- pages ----------------------------------------------------------------------------------------------------------


def _page(view: View) -> View:
    """Answer what goes wrong in a page with a page, and send one who is not logged in to the login."""

    @wraps(view)
    def answer(self: WorkerInsightView, *args: Any, **kwargs: Any) -> Any:
        try:
            return view(self, *args, **kwargs)
        except Refused as refused:
            if refused.status == 401:  # noqa: PLR2004
                return _to_login()
            return self.message(refused.status, str(refused))
        except BadAddress as error:
            return self.message(422, str(error))
        except SchemaNotReady as error:
            return self.message(503, str(error))

    return answer  # type: ignore[return-value]


class WorkerInsightView(BaseView):  # type: ignore[misc]
    """The Worker panel, its refreshing fragment, and one worker."""

    route_base = FLASK_URL_PREFIX
    default_view = "panel"
    template_folder = str(TEMPLATES)

    @_route("/panel")
    @_page
    def panel(self) -> Response:
        """Show which worker ran each try of a task instance."""
        reader = Reader(compat.flask_user())
        panel = _panel(reader)
        return self._show(f"{panel.task_name} · Worker", "panel.html", panel=panel, url=_urls(reader))

    @_route("/panel/fragment")
    @_page
    def panel_fragment(self) -> Response:
        """Return the panel without the page around it, for a page that keeps up with its task."""
        reader = Reader(compat.flask_user())
        panel = _panel(reader)
        return _html(render("panel_fragment.html", panel=panel, url=_urls(reader)))

    @_route("/workers/<worker_id>")
    @_page
    def worker(self, worker_id: str) -> Response:
        """Show who a worker is and the tries that it ran, of those that the reader may see."""
        reader = Reader(compat.flask_user())
        offset = parse_offset(_query())
        reader.require_workers()
        dag_ids = reader.readable_dag_ids() if reader.may_see_task_instances() else set()
        page = content.worker_page(worker_id, dag_ids=dag_ids, offset=offset)
        if page is None:
            raise Refused(404, content.NO_SUCH_WORKER)
        return self._show(f"{page.name} · Worker", "worker.html", page=page, url=_urls(reader))

    def message(self, status: int, text: str) -> Response:
        """Say why there is nothing else to show."""
        notice = content.problem(status, text)
        return self._show(
            f"{notice.title} · Worker Insight",
            "message.html",
            status=status,
            notice_to_show=notice,
            url=FlaskUrls(request.script_root),
        )

    def _show(self, title: str, template: str, *, status: int = 200, url: FlaskUrls, **values: Any) -> Response:
        if compat.is_airflow_3():
            return _html(render(template, url=url, **values), status)
        page = render(template, layout="worker_insight/fab_page.html", url=url, **values)
        # Airflow's page around it; what is put in is finished HTML, escaped by our own templates.
        chrome = self.render_template("worker_insight/fab_chrome.html", title=title, page=Markup(page), url=url)  # noqa: S704
        answer = _html(chrome, status)
        # Airflow's own page has scripts in its markup; who may frame it is still ours to say.
        answer.headers["content-security-policy"] = "frame-ancestors 'self'"
        return answer


def _panel(reader: Reader) -> Panel:
    address = parse_panel_address(_query())
    reader.require_task_instances(address.dag_id)
    return content.panel(address)


def _query() -> str:
    """Return the query string as it came, still percent-encoded."""
    return str(request.query_string.decode("latin-1"))


def _urls(reader: Reader) -> FlaskUrls:
    return FlaskUrls(request.script_root, may_see_workers=reader.may_see_workers())


def _html(html: str, status: int = 200) -> Response:
    return Response(html, status, HEADERS, mimetype="text/html")


def _to_login() -> Any:
    if request.path.endswith("/fragment"):
        return _html("", 401)
    # Without scheme and host: behind a proxy they may be others than the browser's.
    here = request.script_root + quote(request.path) + (f"?{_query()}" if request.query_string else "")
    return redirect(compat.flask_login_url(FlaskUrls(request.script_root).api_root, here))


# --- REST (2.11) ----------------------------------------------------------------------------------------------------


def _program(view: View) -> View:
    """Answer a program in JSON, also what goes wrong, and leave no session behind where it brought none."""

    @wraps(view)
    def answer(self: WorkerInsightApi) -> Response:
        came_without_session = not session
        try:
            result: BaseModel = view(self)
        except Refused as refused:
            return _json({"detail": str(refused)}, refused.status)
        except SchemaNotReady as error:
            return _json({"detail": str(error)}, 503)
        except ValidationError as error:
            return _json({"detail": _problems(error)}, 422)
        finally:
            if came_without_session:
                # Basic authentication logs in: Airflow would keep a session in its database for each request.
                session.clear()
                session.modified = False
        return Response(result.model_dump_json(), 200, HEADERS, mimetype="application/json")

    return answer  # type: ignore[return-value]


class WorkerInsightApi(BaseView):  # type: ignore[misc]
    """The REST API's ``attempts`` and ``health`` on Airflow 2.11, behind Airflow's own authentication of its API."""

    route_base = f"{FLASK_URL_PREFIX}/api/v1"
    default_view = "attempts"

    @_route("/attempts")
    @_program
    def attempts(self) -> BaseModel:
        """List tries and the workers that ran them, the latest start first."""
        reader = _api_reader()
        query = objects.AttemptQuery.model_validate({name: values[-1] for name, values in request.args.lists()})
        reader.require_task_instances(query.dag_id)
        dag_ids = {query.dag_id} if query.dag_id is not None else reader.readable_dag_ids()
        return objects.AttemptsResponse.model_validate(objects.list_attempts(query, dag_ids=dag_ids))

    @_route("/health")
    @_program
    def health(self) -> BaseModel:
        """Say whether the tables can be used, and what became of the reports that this process received."""
        _api_reader()
        return objects.HealthResponse.model_validate(objects.health())


def _api_reader() -> Reader:
    user = compat.flask_api_user()
    if user is None:
        raise Refused(401, "Not authenticated")
    reader = Reader(user)
    reader.require_known()
    return reader


def _problems(error: ValidationError) -> list[dict[str, Any]]:
    """Return what is wrong with a query, in the form in which FastAPI says it."""
    found = error.errors(include_url=False, include_context=False)
    return [{**one, "loc": ("query", *one["loc"])} for one in found]


def _json(value: Any, status: int) -> Response:
    from flask import json

    return Response(json.dumps(value), status, HEADERS, mimetype="application/json")


# --- what the plugin hands over -------------------------------------------------------------------------------------


def appbuilder_views() -> list[dict[str, Any]]:
    """Return the views, without places in the menu."""
    views: list[dict[str, Any]] = [{"view": WorkerInsightView()}]
    if not compat.is_airflow_3():
        views.append({"view": WorkerInsightApi()})
    return views


def blueprint() -> Blueprint:
    """Return the blueprint that serves the static files."""
    files = Blueprint(
        "worker_insight", __name__, url_prefix=FLASK_URL_PREFIX, static_folder=str(STATIC), static_url_path="/static"
    )
    files.after_request(_cacheable)
    return files


def _cacheable(response: Response) -> Response:
    # A new version of the package has new addresses. Not in shared caches: Airflow adds the reader's session cookie.
    response.headers["Cache-Control"] = "private, max-age=3600"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
