"""Where the pages are in Airflow's own: the link of every task, the tab of every task instance, the navigation."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlsplit

from airflow_worker_insight import compat
from airflow_worker_insight.compat import links as airflow_links
from airflow_worker_insight.ui.urls import FLASK_URL_PREFIX, URL_PREFIX

PANEL_TAB = {
    "name": "Worker",
    "href": "/panel?dag_id={DAG_ID}&run_id={RUN_ID}&task_id={TASK_ID}&map_index={MAP_INDEX}",
    "destination": "task_instance",
    "url_route": "worker",
}
"""Airflow's UI fills in the braces; ``{MAP_INDEX}`` stays as it is for an unmapped task."""

WORKERS_NAV = {
    "name": "Workers",
    "href": "/workers",
    "destination": "nav",
    "url_route": "worker-insight",
    "icon": "/static/workers-light.svg",
    "icon_dark_mode": "/static/workers-dark.svg",
    # From 3.3 on: not below "Plugins" where other plugins have pages too.
    "nav_top_level": True,
}
"""The page in the navigation of Airflow's UI."""

MENU = (
    ("Jobs", "Workers", "WorkerInsightView.workers"),
    ("Task Instances", "Attempts", "WorkerInsightView.attempts"),
)
"""Entries in the menu of 2.11: what Airflow asks the right for, the text, and where it leads.

Airflow shows an entry to the roles that have the right to a menu of its name. With the names of its own jobs view and
list of task instances, those see ours who may open them, and no role must be changed.
"""


def external_views() -> list[dict[str, Any]]:
    """Return the places in the UI of Airflow 3.1 and later."""
    base = panel_base()
    icons = {name: base + str(WORKERS_NAV[name]) for name in ("icon", "icon_dark_mode")}
    return [
        {**PANEL_TAB, "href": base + PANEL_TAB["href"]},
        {**WORKERS_NAV, **icons, "href": base + str(WORKERS_NAV["href"])},
    ]


def menu_items() -> list[dict[str, Any]]:
    """Return the entries of the menu: on 2.11, and on 3.0, whose UI has no other place for a plugin's page."""
    if not compat.is_airflow_3():
        return [{"name": name, "label": text, "category": "Browse", "href": view} for name, text, view in MENU]
    if compat.airflow_version() < (3, 1):
        return [
            {"name": "Workers", "href": f"{panel_base()}/workers"},
            {"name": "Attempts", "href": f"{panel_base()}/attempts"},
        ]
    return []


def panel_base() -> str:
    """Return the path below which the panel is, with a path of the server's base URL in front."""
    path = urlsplit(airflow_links.base_url()).path.rstrip("/")
    return path + (URL_PREFIX if compat.is_airflow_3() else FLASK_URL_PREFIX)


def panel_url(*, dag_id: str, run_id: str, task_id: str, map_index: int, try_number: int | None = None) -> str:
    """Return the panel's URL for a task instance; IDs may hold any character."""
    url = (
        f"{panel_base()}/panel?dag_id={quote(dag_id, safe='')}&run_id={quote(run_id, safe='')}"
        f"&task_id={quote(task_id, safe='')}&map_index={map_index}"
    )
    return url if try_number is None else f"{url}&try_number={try_number}"


class WorkerLink(airflow_links.operator_link_base()):  # type: ignore[misc]
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
