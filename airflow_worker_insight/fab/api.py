"""The REST API on Airflow 2.11, which has no FastAPI: a Flask-AppBuilder view.

This module imports Flask, so import it only where the view is used.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING

from flask import Response, current_app, request, session
from flask_appbuilder import BaseView
from pydantic import ValidationError

from airflow_worker_insight.api import queries, responses, service
from airflow_worker_insight.api.csrf import CROSS_ORIGIN_REFUSED, is_json, passes_csrf_checks
from airflow_worker_insight.api.errors import RequestError
from airflow_worker_insight.compat import links as airflow_links
from airflow_worker_insight.domain.limits import MAX_BODY
from airflow_worker_insight.fab.pages import HEADERS, route
from airflow_worker_insight.fab.reader import AccessDeniedError, FlaskAirflow
from airflow_worker_insight.ui.urls import FLASK_URL_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from pydantic import BaseModel

    from airflow_worker_insight.api.queries import DecisionType
    from airflow_worker_insight.api.reader import Reader

    View = TypeVar("View", bound=Callable[..., Any])
    Query = TypeVar("Query", bound=queries.ListQuery)


def _json_endpoint(view: View) -> View:
    """Decorate an endpoint: answer in JSON, also errors, and create no session for the client."""

    @wraps(view)
    def answer(self: WorkerInsightApi, *args: Any, **kwargs: Any) -> Response:
        had_no_session = not session
        try:
            result: BaseModel = view(self, *args, **kwargs)
        except RequestError as error:
            return _json_response({"detail": str(error)}, error.status)
        except _InvalidFieldsError as error:
            return _json_response({"detail": error.details}, 422)
        finally:
            if had_no_session:
                # Basic authentication logs in, so Airflow would store a session in its database per request.
                session.clear()
                session.modified = False
        return Response(result.model_dump_json(by_alias=True), 200, HEADERS, mimetype="application/json")

    return answer  # type: ignore[return-value]


class WorkerInsightApi(BaseView):  # type: ignore[misc]
    """The REST API on Airflow 2.11, behind the authentication of Airflow's own API."""

    route_base = f"{FLASK_URL_PREFIX}/api/v1"
    default_view = "attempts"

    def __init__(self, airflow: FlaskAirflow) -> None:
        super().__init__()
        self._airflow = airflow

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
        reader = self._reader()
        query = _parse_query(queries.AttemptQuery)
        fields = service.list_attempts(
            query, dag_ids=reader.require_dag_ids(query.filters().dag_id), may_see_workers=reader.may_see_workers()
        )
        return responses.AttemptsResponse.model_validate(fields)

    @route("/placements")
    @_json_endpoint
    def placements(self) -> BaseModel:
        """List waiting and placed tries, oldest first."""
        reader = self._reader()
        query = _parse_query(queries.PlacementQuery)
        dag_ids = reader.require_dag_ids(query.filters().dag_id)
        fields = service.list_placements(query, dag_ids=dag_ids, may_see_workers=reader.may_see_workers())
        return responses.PlacementsResponse.model_validate(fields)

    @route("/workers")
    @_json_endpoint
    def workers(self) -> BaseModel:
        """List workers, including those that have ended."""
        reader = self._reader()
        query = _parse_query(queries.WorkerQuery)
        reader.require_workers()
        return responses.WorkersResponse.model_validate(service.list_workers(query))

    @route("/workers/<worker_id>")
    @_json_endpoint
    def worker(self, worker_id: str) -> BaseModel:
        """Show a worker instance and its history."""
        reader = self._reader()
        queries.require_worker_id(worker_id)
        reader.require_workers()
        return responses.WorkerDetailResponse.model_validate(service.get_worker(worker_id))

    @route("/workers/<worker_id>/attempts")
    @_json_endpoint
    def worker_attempts(self, worker_id: str) -> BaseModel:
        """List the attempts that a worker ran, latest start first."""
        reader = self._reader()
        queries.require_worker_id(worker_id)
        query = _parse_query(queries.WorkerAttemptQuery)
        reader.require_workers()
        fields = service.list_worker_attempts(worker_id, query, dag_ids=reader.require_dag_ids(query.filters().dag_id))
        return responses.AttemptsResponse.model_validate(fields)

    @route("/workers/<worker_id>", "PATCH")
    @_json_endpoint
    def change_availability(self, worker_id: str) -> BaseModel:
        """Make a worker available, draining or quarantined.

        A request with a login cookie must come from a page of this server; form tokens are for forms only.
        """
        reader = self._reader()
        queries.require_worker_id(worker_id)
        decision = _checked_decision(queries.Decision, reader)
        fields = service.change_availability(
            worker_id, decision.availability, note=decision.note, changed_by=reader.name
        )
        return responses.WorkerDetailResponse.model_validate(fields)

    @route("/statistics")
    @_json_endpoint
    def statistics(self) -> BaseModel:
        """Show statistics of tries by worker, host, queue, kind, label, Dag or task."""
        reader = self._reader()
        query = _parse_query(queries.StatisticsQuery)
        dag_ids = reader.require_statistics(query.group_by, query.filters())
        return responses.StatisticsResponse.model_validate(service.list_statistics(query, dag_ids=dag_ids))

    @route("/findings")
    @_json_endpoint
    def findings(self) -> BaseModel:
        """List findings: first those that are not closed, then the latest found."""
        reader = self._reader()
        query = _parse_query(queries.FindingQuery)
        reader.require_workers()
        dag_ids = reader.finding_dag_ids(query.filters().dag_id)
        fields = service.list_findings(query, dag_ids=dag_ids, may_see_dag=reader.may_see_task_instances)
        return responses.FindingsResponse.model_validate(fields)

    @route("/findings/<finding_id>")
    @_json_endpoint
    def finding(self, finding_id: str) -> BaseModel:
        """Show a finding and its history."""
        reader = self._reader()
        number = queries.parse_finding_id(finding_id)
        reader.require_workers()
        fields = service.get_finding(
            number, dag_ids=reader.finding_dag_ids(None), may_see_dag=reader.may_see_task_instances
        )
        return responses.FindingDetailResponse.model_validate(fields)

    @route("/findings/<finding_id>", "PATCH")
    @_json_endpoint
    def dismiss_finding(self, finding_id: str) -> BaseModel:
        """Dismiss a finding; the checks are those of :meth:`change_availability`."""
        reader = self._reader()
        number = queries.parse_finding_id(finding_id)
        decision = _checked_decision(queries.FindingDecision, reader)
        fields = service.dismiss_finding(
            number,
            note=decision.note,
            dismissed_by=reader.name,
            dag_ids=reader.finding_dag_ids(None),
            may_see_dag=reader.may_see_task_instances,
        )
        return responses.FindingDetailResponse.model_validate(fields)

    @route("/services")
    @_json_endpoint
    def services(self) -> BaseModel:
        """List schedulers, triggerers, Dag processors and workers."""
        reader = self._reader()
        query = _parse_query(queries.ServiceQuery)
        reader.require_workers()
        return responses.ServicesResponse.model_validate(service.list_services(query))

    @route("/health")
    @_json_endpoint
    def health(self) -> BaseModel:
        """Show the state of the tables, this process's counters and the latest polls."""
        reader = self._reader()
        return responses.HealthResponse.model_validate(service.health(may_see_workers=reader.may_see_workers()))

    def _reader(self) -> Reader:
        """Return the reader: a user, or the public role of Airflow 2.11 if it has permissions."""
        reader = self._airflow.api_reader()
        if reader is None or not (reader.is_logged_in or reader.may_see_task_instances()):
            raise AccessDeniedError(401, "Not authenticated")
        return reader


def _has_login_cookie() -> bool:
    """Return whether the request has a session cookie or Flask-Login's "remember me" cookie."""
    names = {"SESSION_COOKIE_NAME": "session", "REMEMBER_COOKIE_NAME": "remember_token"}
    return any(current_app.config.get(option, name) in request.cookies for option, name in names.items())


def _checked_decision(model: type[DecisionType], reader: Reader) -> DecisionType:
    """Check the rights to decide and where the request comes from, and return its body."""
    reader.require_workers()
    reader.require_pool_edit()
    if not passes_csrf_checks(request.headers, has_login_cookie=_has_login_cookie(), base_url=airflow_links.base_url()):
        raise AccessDeniedError(403, CROSS_ORIGIN_REFUSED)
    body = request.stream.read(MAX_BODY + 1)
    try:
        return queries.parse_decision(model, body, is_json=is_json(request.headers))
    except ValidationError as error:
        raise _InvalidFieldsError(error, "body") from None


class _InvalidFieldsError(Exception):
    """Raised when a query string or a body is invalid."""

    def __init__(self, error: ValidationError, location: str) -> None:
        super().__init__(str(error))
        self.details = queries.error_details(error, location)


def _parse_query(query: type[Query]) -> Query:
    """Parse the query string as FastAPI does: the last value of a repeated parameter counts, or all of them."""
    given = {name: values if name in query.repeatable else values[-1] for name, values in request.args.lists()}
    try:
        return query.model_validate(given)
    except ValidationError as error:
        raise _InvalidFieldsError(error, "query") from None


def _json_response(value: Any, status: int) -> Response:
    from flask import json

    return Response(json.dumps(value), status, HEADERS, mimetype="application/json")
