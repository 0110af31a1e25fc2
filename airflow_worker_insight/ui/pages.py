"""Answer the request for each page: check the reader's permissions, parse the URL, and build the view model.

It knows no web server: :mod:`.routes` (FastAPI) and :mod:`airflow_worker_insight.fab.pages` (Flask) translate requests
and responses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_worker_insight.api import service
from airflow_worker_insight.api.csrf import CROSS_ORIGIN_REFUSED, is_same_origin
from airflow_worker_insight.compat import links as airflow_links
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.ui import page_service
from airflow_worker_insight.ui.query_params import (
    parse_attempts_params,
    parse_insight_params,
    parse_panel_params,
    parse_waiting_params,
    parse_worker_params,
    parse_workers_params,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow_worker_insight.api.csrf import Headers
    from airflow_worker_insight.api.reader import Reader
    from airflow_worker_insight.ui.query_params import AvailabilityForm


@dataclass(frozen=True, slots=True)
class Page:
    """Page to render: its title, its template and the template's variables."""

    title: str
    template: str
    values: Mapping[str, Any]


def panel(reader: Reader, query: str) -> Page:
    """Show which worker ran each try of a task instance.

    :param query: the query string of the URL, still percent-encoded
    """
    params = parse_panel_params(query)
    reader.require_task_instances(params.dag_id)
    panel = page_service.panel(params, may_see_workers=reader.may_see_workers())
    return Page(f"{panel.task_name} · Worker", "panel.html", {"panel": panel})


def workers(reader: Reader, query: str) -> Page:
    """List the workers and their states."""
    reader.require_workers()
    page = page_service.workers_page(parse_workers_params(query))
    return Page("Workers", "workers.html", {"page": page})


def worker(reader: Reader, query: str, worker_id: str) -> Page:
    """Show one worker instance and those of its tries that the reader may see."""
    reader.require_workers()
    params = parse_worker_params(query)
    dag_ids = reader.readable_dag_ids() if reader.may_see_task_instances() else None
    page = page_service.worker_page(worker_id, params, dag_ids=dag_ids, may_decide=reader.may_edit_pools())
    return Page(f"{page.name} · Worker", "worker.html", {"page": page})


def change_availability(
    reader: Reader, worker_id: str, headers: Headers, read_form: Callable[[], AvailabilityForm]
) -> None:
    """Set a worker's availability.

    :param headers: the headers of the request, which must come from a page of this server
    :param read_form: returns the posted form
    """
    reader.require_workers()
    reader.require_pool_edit()
    if not is_same_origin(headers, base_url=airflow_links.base_url()):
        raise reader.error(403, CROSS_ORIGIN_REFUSED)
    form = read_form()
    service.change_availability(worker_id, form.availability, note=form.note, changed_by=reader.name)


def insight(reader: Reader, query: str) -> Page:
    """Show findings and the heat map of the workers."""
    reader.require_workers()
    params = parse_insight_params(query)
    page = page_service.insight_page(params, dag_ids=_read_dag_ids(reader), may_decide=reader.may_edit_pools())
    return Page("Insight", "insight.html", {"page": page})


def finding(reader: Reader, finding_id: str) -> Page:
    """Show one finding and its history."""
    reader.require_workers()
    card, now = page_service.finding_page(finding_id, dag_ids=_read_dag_ids(reader), may_decide=reader.may_edit_pools())
    return Page(f"{card.title} · Insight", "finding.html", {"finding": card, "now": now})


def dismiss_finding(reader: Reader, finding_id: str, headers: Headers, read_note: Callable[[], str]) -> int:
    """Dismiss a finding and return its ID.

    :param headers: as for :func:`change_availability`
    :param read_note: returns the note of the posted form
    """
    reader.require_workers()
    reader.require_pool_edit()
    if not is_same_origin(headers, base_url=airflow_links.base_url()):
        raise reader.error(403, CROSS_ORIGIN_REFUSED)
    note = read_note()
    return page_service.dismiss_finding(finding_id, dag_ids=_read_dag_ids(reader), note=note, actor=reader.name)


def _read_dag_ids(reader: Reader) -> set[str]:
    """Return the Dags whose tasks a page of workers may name."""
    return set(reader.readable_dag_ids()) if reader.may_see_task_instances() else set()


def attempts(reader: Reader, query: str) -> Page:
    """List the tries of the Dags that the reader may see."""
    reader.require_task_instances()
    params = parse_attempts_params(query, states=metadata_database.task_instance_states())
    dag_ids = reader.listed_dag_ids(params.dag_id)
    page = page_service.attempts_page(params, dag_ids=dag_ids, may_see_workers=reader.may_see_workers())
    return Page("Attempts", "attempts.html", {"page": page})


def waiting(reader: Reader, query: str) -> Page:
    """List the waiting tries of the Dags that the reader may see, each with its reason."""
    reader.require_task_instances()
    params = parse_waiting_params(query)
    dag_ids = reader.listed_dag_ids(params.dag_id)
    page = page_service.waiting_page(params, dag_ids=dag_ids, may_see_workers=reader.may_see_workers())
    return Page("Waiting", "waiting.html", {"page": page})
