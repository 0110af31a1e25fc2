"""The ``Worker`` link of every task and the ``Worker`` tab of every task instance: where the panel is."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlsplit

from airflow_worker_insight import compat
from airflow_worker_insight.web.urls import FLASK_URL_PREFIX, URL_PREFIX

PANEL_TAB = {
    "name": "Worker",
    "href": "/panel?dag_id={DAG_ID}&run_id={RUN_ID}&task_id={TASK_ID}&map_index={MAP_INDEX}",
    "destination": "task_instance",
    "url_route": "worker",
}
"""Airflow's UI fills in the braces; ``{MAP_INDEX}`` stays as it is for an unmapped task."""


def panel_base() -> str:
    """Return the path below which the panel is, with a path of the server's base URL in front."""
    path = urlsplit(compat.base_url()).path.rstrip("/")
    return path + (URL_PREFIX if compat.is_airflow_3() else FLASK_URL_PREFIX)


def panel_url(*, dag_id: str, run_id: str, task_id: str, map_index: int, try_number: int | None = None) -> str:
    """Return the panel's URL for a task instance; IDs may hold any character."""
    url = (
        f"{panel_base()}/panel?dag_id={quote(dag_id, safe='')}&run_id={quote(run_id, safe='')}"
        f"&task_id={quote(task_id, safe='')}&map_index={map_index}"
    )
    return url if try_number is None else f"{url}&try_number={try_number}"


class WorkerLink(compat.operator_link_base()):  # type: ignore[misc]
    """Leads from a task to the panel that shows which worker ran each of its tries."""

    name = "Worker"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002
        """Return the panel's URL for the task instance that ``ti_key`` names."""
        return panel_url(
            dag_id=ti_key.dag_id,
            run_id=ti_key.run_id,
            task_id=ti_key.task_id,
            map_index=ti_key.map_index,
            try_number=ti_key.try_number,
        )
