"""Views and static files that the plugin registers with Airflow's Flask app."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Blueprint

from airflow_worker_insight.fab.api import WorkerInsightApi
from airflow_worker_insight.fab.pages import WorkerInsightView
from airflow_worker_insight.fab.reader import FlaskAirflow
from airflow_worker_insight.ui.rendering import STATIC
from airflow_worker_insight.ui.urls import FLASK_URL_PREFIX

if TYPE_CHECKING:
    from typing import Any

    from flask import Response


def appbuilder_views(airflow: FlaskAirflow | None = None) -> list[dict[str, Any]]:
    """Return the views as ``appbuilder_views`` of a plugin, without menu entries.

    :param airflow: the Airflow that serves them; this one by default
    """
    airflow = airflow or FlaskAirflow()
    views: list[dict[str, Any]] = [{"view": WorkerInsightView(airflow)}]
    if airflow.renders_pages_with_flask:
        views.append({"view": WorkerInsightApi(airflow)})
    return views


def blueprint() -> Blueprint:
    """Return the blueprint that serves the static files."""
    files = Blueprint(
        "worker_insight", __name__, url_prefix=FLASK_URL_PREFIX, static_folder=str(STATIC), static_url_path="/static"
    )
    files.after_request(_set_headers)
    return files


def _set_headers(response: Response) -> Response:
    # Cacheable, as each version of the package has its own URLs; `private`, as Airflow adds the session cookie.
    response.headers["Cache-Control"] = "private, max-age=3600"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
