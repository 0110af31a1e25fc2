"""URLs of Airflow's own pages, and the base class of links on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_worker_insight import compat

if TYPE_CHECKING:
    from typing import Any


def operator_link_base() -> type[Any]:
    """Return the base class of operator extra links."""
    module = "airflow.sdk" if compat.is_airflow_3() else "airflow.models.baseoperatorlink"
    return compat.import_class(module, "BaseOperatorLink")


def base_url() -> str:
    """Return the public URL of the API server (Airflow 3) or the webserver (2.11)."""
    from airflow.configuration import conf

    section = "api" if compat.is_airflow_3() else "webserver"
    return str(conf.get(section, "base_url", fallback="") or "")


def grid_path(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """Return the path of a task instance in the grid view of 2.11."""
    from urllib.parse import quote

    map_index_parameter = f"&map_index={map_index}" if map_index >= 0 else ""
    return (
        f"/dags/{quote(dag_id, safe='')}/grid?dag_run_id={quote(run_id, safe='')}"
        f"&task_id={quote(task_id, safe='')}{map_index_parameter}"
    )
