"""Answer the request for each page: check the reader's permissions, parse the URL, and build the view model.

It knows no web server: :mod:`.routes` (FastAPI) and :mod:`airflow_worker_insight.fab.pages` (Flask) translate requests
and responses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_worker_insight.api.csrf import is_from_here
from airflow_worker_insight.compat import links as airflow_links
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.ui import page_service
from airflow_worker_insight.ui.query_params import (
    parse_attempts_address,
    parse_panel_address,
    parse_waiting_address,
    parse_worker_address,
    parse_workers_address,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow_worker_insight.api.csrf import Headers
    from airflow_worker_insight.api.reader import Reader
    from airflow_worker_insight.ui.query_params import WrittenDecision


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
    address = parse_panel_address(query)
    reader.require_task_instances(address.dag_id)
    panel = page_service.panel(address, sees_workers=reader.may_see_workers())
    return Page(f"{panel.task_name} · Worker", "panel.html", {"panel": panel})


def workers(reader: Reader, query: str) -> Page:
    """List the workers and their states."""
    reader.require_workers()
    page = page_service.workers_page(parse_workers_address(query))
    return Page("Workers", "workers.html", {"page": page})


def worker(reader: Reader, query: str, worker_id: str) -> Page:
    """Show one worker instance and those of its tries that the reader may see."""
    reader.require_workers()
    address = parse_worker_address(query)
    dag_ids = reader.readable_dag_ids() if reader.may_see_task_instances() else None
    page = page_service.worker_page(worker_id, address, dag_ids=dag_ids, may_decide=reader.may_edit_pools())
    if page is None:
        raise reader.error(404, page_service.NO_SUCH_WORKER)
    return Page(f"{page.name} · Worker", "worker.html", {"page": page})


def decide(reader: Reader, worker_id: str, headers: Headers, read_form: Callable[[], WrittenDecision]) -> None:
    """Record the reader's decision on a worker's availability.

    :param headers: the headers of the request, which must come from a page of this server
    :param read_form: returns the posted form
    """
    reader.require_workers()
    reader.require_pool_edit()
    if not is_from_here(headers, base_url=airflow_links.base_url()):
        raise reader.error(403, page_service.NOT_FROM_HERE)
    if not page_service.decide(worker_id, read_form(), changed_by=reader.name):
        raise reader.error(404, page_service.NO_SUCH_WORKER)


def attempts(reader: Reader, query: str) -> Page:
    """List the tries of the Dags that the reader may see."""
    reader.require_task_instances()
    address = parse_attempts_address(query, states=metadata_database.task_instance_states())
    dag_ids = reader.listed_dag_ids(address.dag_id)
    page = page_service.attempts_page(address, dag_ids=dag_ids, sees_workers=reader.may_see_workers())
    return Page("Attempts", "attempts.html", {"page": page})


def waiting(reader: Reader, query: str) -> Page:
    """List the waiting tries of the Dags that the reader may see, each with its reason."""
    reader.require_task_instances()
    address = parse_waiting_address(query)
    dag_ids = reader.listed_dag_ids(address.dag_id)
    page = page_service.waiting_page(address, dag_ids=dag_ids, sees_workers=reader.may_see_workers())
    return Page("Waiting", "waiting.html", {"page": page})
