"""URLs of pages, static files and Airflow's own pages, for the templates (Airflow 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_worker_insight import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_worker_insight.ui.query_params import (
        AttemptsParams,
        InsightParams,
        PanelParams,
        WaitingParams,
        WorkerParams,
        WorkersParams,
    )

URL_PREFIX = "/worker-insight"
"""Path below the API server's root at which the plugin mounts the app (Airflow 3)."""

FLASK_URL_PREFIX = "/workerinsight"
"""Path of the Flask-AppBuilder views (Airflow 2.11, and Airflow 3 below ``/pluginsv2``)."""


class Urls:
    """URL builder of the templates, called as ``url(name, **values)``.

    It returns ``None`` for a page that the user may not open.

    :param root: the app's root path, including the path of ``[api] base_url``
    :param may_see_workers: whether the user may open the pages of workers
    """

    def __init__(self, root: str, *, may_see_workers: bool = False) -> None:
        self.root = root
        self.api_root = root.removesuffix(URL_PREFIX)
        self._may_see_workers = may_see_workers

    def __call__(self, name: str, /, **values: Any) -> str | None:
        """Return the URL of the page or file named ``name``."""
        build: Callable[..., str | None] = getattr(self, f"_{name}")
        return build(**values)

    def _static(self, *, file: str) -> str:
        # Each package version has its own URLs, so that browsers never mix cached files of two versions.
        return f"{self.root}/static/{file}?v={__version__}"

    def _openapi(self) -> str:
        return f"{self.root}/openapi.json"

    def _home(self) -> str:
        return f"{self.api_root}/"

    def _workers(self, *, params: WorkersParams | None = None) -> str | None:
        if not self._may_see_workers:
            return None
        return f"{self.root}/workers{params.query() if params else ''}"

    def _worker(self, *, worker_id: str, params: WorkerParams | None = None) -> str | None:
        if not self._may_see_workers:
            return None
        return f"{self.root}/workers/{quote(worker_id, safe='@:')}{params.query() if params else ''}"

    def _availability(self, *, worker_id: str) -> str:
        return f"{self.root}/workers/{quote(worker_id, safe='@:')}/availability"

    def _insight(self, *, params: InsightParams | None = None) -> str | None:
        if not self._may_see_workers:
            return None
        return f"{self.root}/insight{params.query() if params else ''}"

    def _finding(self, *, finding_id: int) -> str | None:
        return f"{self.root}/insight/{finding_id}" if self._may_see_workers else None

    def _dismiss(self, *, finding_id: int) -> str:
        return f"{self.root}/insight/{finding_id}/dismiss"

    def _attempts(self, *, params: AttemptsParams | None = None) -> str:
        return f"{self.root}/attempts{params.query() if params else ''}"

    def _waiting(self, *, params: WaitingParams | None = None) -> str:
        return f"{self.root}/waiting{params.query() if params else ''}"

    def _panel(self, *, dag_id: str, run_id: str, task_id: str, map_index: int, try_number: int | None = None) -> str:
        url = (
            f"{self.root}/panel?dag_id={quote(dag_id, safe='')}&run_id={quote(run_id, safe='')}"
            f"&task_id={quote(task_id, safe='')}&map_index={map_index}"
        )
        return url if try_number is None else f"{url}&try_number={try_number}"

    def _task_instance(self, *, params: PanelParams) -> str:
        """Return the task instance's page in Airflow's UI."""
        mapped = f"/mapped/{params.map_index}" if params.map_index >= 0 else ""
        return (
            f"{self.api_root}/dags/{quote(params.dag_id, safe='')}/runs/{quote(params.run_id, safe='')}"
            f"/tasks/{quote(params.task_id, safe='')}{mapped}"
        )
