"""Links to the pages in Airflow's UI: operator link, task instance tab and navigation."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from airflow_worker_insight.compat import links as airflow_links
from airflow_worker_insight.compat import plugins as airflow_plugins
from airflow_worker_insight.ui.urls import FLASK_URL_PREFIX, URL_PREFIX, Urls

PANEL_TAB = {
    "name": "Worker",
    "href": "/panel?dag_id={DAG_ID}&run_id={RUN_ID}&task_id={TASK_ID}&map_index={MAP_INDEX}",
    "destination": "task_instance",
    "url_route": "worker",
}
"""Tab of every task instance.

Airflow's UI fills in the braces; it leaves ``{MAP_INDEX}`` as is for an unmapped task.
"""

WORKERS_NAV = {
    "name": "Workers",
    "href": "/workers",
    "destination": "nav",
    "url_route": "worker-insight",
    "icon": "/static/workers-light.svg",
    "icon_dark_mode": "/static/workers-dark.svg",
    # Airflow 3.3 and later: not below "Plugins", even if other plugins have pages too.
    "nav_top_level": True,
}
"""Entry in the navigation of Airflow's UI."""

MENU = (
    ("Jobs", "Workers", "WorkerInsightView.workers"),
    ("Jobs", "Insight", "WorkerInsightView.insight"),
    ("Task Instances", "Attempts", "WorkerInsightView.attempts"),
)
"""Menu entries of Airflow 2.11: the name that permissions refer to, the text and the view.

Airflow shows an entry to the roles with the permission for a menu of its name. These entries bear the names of
Airflow's own jobs view and list of task instances, so users see the entries that they may open, and no role has to be
changed.
"""


def external_views() -> list[dict[str, Any]]:
    """Return the plugin's external views for the UI of Airflow 3.1 and later."""
    base = panel_base()
    icons = {name: base + str(WORKERS_NAV[name]) for name in ("icon", "icon_dark_mode")}
    return [
        {**PANEL_TAB, "href": base + PANEL_TAB["href"]},
        {**WORKERS_NAV, **icons, "href": base + str(WORKERS_NAV["href"])},
    ]


def menu_items() -> list[dict[str, Any]]:
    """Return the menu entries for Airflow 2.11 and 3.0.

    The UI of 3.0 offers plugins no other way to add a page. Later versions get no menu entries.
    """
    if not airflow_plugins.serves_fastapi_apps():
        return [{"name": name, "label": text, "category": "Browse", "href": view} for name, text, view in MENU]
    if airflow_plugins.serves_external_views():
        return []
    return [
        {"name": "Workers", "href": f"{panel_base()}/workers"},
        {"name": "Insight", "href": f"{panel_base()}/insight"},
        {"name": "Attempts", "href": f"{panel_base()}/attempts"},
    ]


def panel_base() -> str:
    """Return the path prefix of the pages, including the path of the server's base URL."""
    path = urlsplit(airflow_links.base_url()).path.rstrip("/")
    return path + (URL_PREFIX if airflow_plugins.serves_fastapi_apps() else FLASK_URL_PREFIX)


def panel_url(*, dag_id: str, run_id: str, task_id: str, map_index: int, try_number: int | None = None) -> str:
    """Return the panel's URL for a task instance; IDs may contain any character."""
    url = Urls(panel_base())(
        "panel", dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index, try_number=try_number
    )
    assert url is not None
    return url


class WorkerLink(airflow_links.operator_link_base()):  # type: ignore[misc]
    """Operator link from a task to the panel that shows which worker ran each try."""

    name = "Worker"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002 - Airflow's signature
        """Return the panel's URL for the task instance that ``ti_key`` names."""
        return panel_url(
            dag_id=ti_key.dag_id,
            run_id=ti_key.run_id,
            task_id=ti_key.task_id,
            map_index=ti_key.map_index,
            try_number=ti_key.try_number,
        )
