"""The REST API on Airflow 2.11, which has no FastAPI: a Flask-AppBuilder view.

This module imports Flask, so import it only where the view is used.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING

from flask import Response, current_app, request, session
from flask_appbuilder import BaseView
from pydantic import ValidationError

from airflow_worker_insight.api import schemas
from airflow_worker_insight.api.csrf import is_json, may_be_made
from airflow_worker_insight.api.database import DatabaseBusyError, SchemaNotReadyError
from airflow_worker_insight.compat import links as airflow_links
from airflow_worker_insight.domain.limits import MAX_BODY
from airflow_worker_insight.fab.pages import HEADERS, route
from airflow_worker_insight.fab.reader import FlaskAirflow, RequestError
from airflow_worker_insight.ui.urls import FLASK_URL_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any, TypeVar

    from pydantic import BaseModel

    from airflow_worker_insight.api.reader import Reader

    View = TypeVar("View", bound=Callable[..., Any])
    Query = TypeVar("Query", bound=BaseModel)


def _json_endpoint(view: View) -> View:
    """Decorate an endpoint: answer in JSON, also errors, and create no session for the client."""

    @wraps(view)
    def answer(self: WorkerInsightApi, *args: Any, **kwargs: Any) -> Response:
        had_no_session = not session
        try:
            result: BaseModel = view(self, *args, **kwargs)
        except RequestError as error:
            return _json_response({"detail": str(error)}, error.status)
        except schemas.WorkerNotFoundError as error:
            return _json_response({"detail": str(error)}, 404)
        except schemas.InvalidChangeError as error:
            return _json_response({"detail": str(error)}, 422)
        except (SchemaNotReadyError, DatabaseBusyError) as error:
            return _json_response({"detail": str(error)}, 503)
        except _InvalidRequestError as invalid:
            return _json_response({"detail": invalid.problems}, 422)
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

    def __init__(self, airflow: FlaskAirflow) -> None:
        super().__init__()
        self._airflow = airflow

    def create_blueprint(self, appbuilder: Any, *args: Any, **kwargs: Any) -> Any:
        """Exempt the API from Airflow's form token check, like its own API; see :meth:`decide`."""
        blueprint = super().create_blueprint(appbuilder, *args, **kwargs)
        protection = appbuilder.app.extensions.get("csrf")
        if protection is not None:
            protection.exempt(blueprint)
        return blueprint

    @route("/attempts")
    @_json_endpoint
    def attempts(self) -> BaseModel:
        """List attempts and the workers that ran them, latest start first."""
        reader = self._reader()
        query = _parse_query(schemas.AttemptQuery)
        fields = schemas.list_attempts(
            query, dag_ids=_visible_dag_ids(reader, query), sees_workers=reader.may_see_workers()
        )
        return schemas.AttemptsResponse.model_validate(fields)

    @route("/placements")
    @_json_endpoint
    def placements(self) -> BaseModel:
        """List waiting and placed tries, oldest first."""
        reader = self._reader()
        query = _parse_query(schemas.PlacementQuery)
        dag_ids = _visible_dag_ids(reader, query)
        fields = schemas.list_placements(query, dag_ids=dag_ids, sees_workers=reader.may_see_workers())
        return schemas.PlacementsResponse.model_validate(fields)

    @route("/workers")
    @_json_endpoint
    def workers(self) -> BaseModel:
        """List workers, including those that have ended."""
        reader = self._reader()
        query = _parse_query(schemas.WorkerQuery)
        reader.require_workers()
        return schemas.WorkersResponse.model_validate(schemas.list_workers(query))

    @route("/workers/<worker_id>")
    @_json_endpoint
    def worker(self, worker_id: str) -> BaseModel:
        """Show a worker instance and its history."""
        reader = self._reader()
        schemas.require_worker_id(worker_id)
        reader.require_workers()
        return schemas.OneWorkerResponse.model_validate(schemas.one_worker(worker_id))

    @route("/workers/<worker_id>/attempts")
    @_json_endpoint
    def worker_attempts(self, worker_id: str) -> BaseModel:
        """List the attempts that a worker ran, latest start first."""
        reader = self._reader()
        schemas.require_worker_id(worker_id)
        query = _parse_query(schemas.WorkerAttemptQuery)
        reader.require_workers()
        fields = schemas.list_worker_attempts(worker_id, query, dag_ids=_visible_dag_ids(reader, query))
        return schemas.AttemptsResponse.model_validate(fields)

    @route("/workers/<worker_id>", "PATCH")
    @_json_endpoint
    def decide(self, worker_id: str) -> BaseModel:
        """Make a worker available, draining or quarantined.

        A request with a login cookie must come from a page of this server; form tokens are for forms only.
        """
        reader = self._reader()
        schemas.require_worker_id(worker_id)
        reader.require_workers()
        reader.require_pool_edit()
        if not may_be_made(request.headers, has_login_cookie=_has_login_cookie(), base_url=airflow_links.base_url()):
            raise RequestError(403, schemas.NOT_FROM_HERE)
        body = request.stream.read(MAX_BODY + 1)
        try:
            decision = schemas.parse_decision(body, is_json=is_json(request.headers))
        except ValidationError as error:
            raise _InvalidRequestError(error, "body") from None
        fields = schemas.decide(worker_id, decision, changed_by=reader.name)
        return schemas.OneWorkerResponse.model_validate(fields)

    @route("/services")
    @_json_endpoint
    def services(self) -> BaseModel:
        """List schedulers, triggerers, Dag processors and workers."""
        reader = self._reader()
        query = _parse_query(schemas.ServiceQuery)
        reader.require_workers()
        return schemas.ServicesResponse.model_validate(schemas.list_services(query))

    @route("/health")
    @_json_endpoint
    def health(self) -> BaseModel:
        """Show the state of the tables, this process's counters and the latest polls."""
        reader = self._reader()
        return schemas.HealthResponse.model_validate(schemas.health(with_engines=reader.may_see_workers()))

    def _reader(self) -> Reader:
        """Return the reader: a user, or the public role of Airflow 2.11 if it has permissions."""
        reader = self._airflow.api_reader()
        if reader is None or not (reader.is_logged_in or reader.may_see_task_instances()):
            raise RequestError(401, "Not authenticated")
        return reader


def _has_login_cookie() -> bool:
    """Return whether the request has a session cookie or Flask-Login's "remember me" cookie."""
    names = {"SESSION_COOKIE_NAME": "session", "REMEMBER_COOKIE_NAME": "remember_token"}
    return any(current_app.config.get(option, name) in request.cookies for option, name in names.items())


class _InvalidRequestError(Exception):
    """Raised when a query string or a body is invalid."""

    def __init__(self, error: ValidationError, location: str) -> None:
        super().__init__(str(error))
        self.problems = schemas.problems(error, location)


def _parse_query(query: type[Query]) -> Query:
    """Parse the query string; the last value of a repeated parameter counts, as with FastAPI."""
    try:
        return query.model_validate({name: values[-1] for name, values in request.args.lists()})
    except ValidationError as error:
        raise _InvalidRequestError(error, "query") from None


def _visible_dag_ids(reader: Reader, query: schemas.WorkerAttemptQuery | schemas.PlacementQuery) -> Collection[str]:
    reader.require_task_instances(query.dag_id)
    return {query.dag_id} if query.dag_id is not None else reader.readable_dag_ids()


def _json_response(value: Any, status: int) -> Response:
    from flask import json

    return Response(json.dumps(value), status, HEADERS, mimetype="application/json")
