"""Plugin that registers everything with Airflow.

Every process of the deployment imports this module, including task processes. So it imports nothing heavy. Properties
build the heavy parts: Airflow reads plugins' attributes from the instance, and only where it needs them.
"""

from __future__ import annotations

import logging
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any

from airflow_worker_insight.capture import hook_monitoring
from airflow_worker_insight.compat import task_runtime

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)


def _empty_on_error(build: Callable[[Any], list[Any]]) -> Callable[[Any], list[Any]]:
    """Wrap ``build`` so that it returns an empty list if it raises.

    An error here would keep Airflow's whole API server from starting.
    """

    @wraps(build)
    def safe(plugin: Any) -> list[Any]:
        try:
            return build(plugin)
        except Exception:
            log.exception("Airflow Worker Insight could not build its %s; Airflow goes on without", build.__name__)
            return []

    return safe


def _serves_flask_views() -> bool:
    # Imported here: task processes never call this, so they do not load what only these pages need.
    from airflow_worker_insight.compat import fab as airflow_fab

    return airflow_fab.serves_flask_views()


class WorkerInsightPlugin(task_runtime.plugin_base()):  # type: ignore[misc]
    """Airflow plugin of Airflow Worker Insight."""

    name = "worker_insight"

    @property
    def listeners(self) -> list[Any]:
        """Listeners of task and Dag run hooks; each listener manager of a process reads them."""
        return hook_monitoring.listeners()

    @cached_property
    @_empty_on_error
    def fastapi_apps(self) -> list[dict[str, Any]]:
        """Pages and REST API of Airflow 3.

        Only API servers read this, so the claim, the polls of the workers and the analysis are also started from here.
        """
        from airflow_worker_insight.compat import plugins as airflow_plugins

        if not airflow_plugins.serves_fastapi_apps():
            return []
        from airflow_worker_insight.app import create_app, lifespan
        from airflow_worker_insight.capture import claim
        from airflow_worker_insight.ui.urls import URL_PREFIX

        claim.install()
        app = create_app()
        # Airflow enters the lifespan in each serving process, after the fork.
        app.router.lifespan_context = lifespan
        return [{"app": app, "url_prefix": URL_PREFIX, "name": "Airflow Worker Insight"}]

    @cached_property
    @_empty_on_error
    def external_views(self) -> list[dict[str, Any]]:
        """``Worker`` tab of task instances and ``Workers`` in the navigation (Airflow 3.1+)."""
        from airflow_worker_insight.ui import links

        return links.external_views()

    @cached_property
    @_empty_on_error
    def global_operator_extra_links(self) -> list[Any]:
        """``Worker`` link on every task of every operator."""
        from airflow_worker_insight.ui.links import WorkerLink

        return [WorkerLink()]

    @cached_property
    @_empty_on_error
    def appbuilder_views(self) -> list[dict[str, Any]]:
        """Pages of Airflow 2.11, and of Airflow 3 with FAB's auth manager."""
        if not _serves_flask_views():
            return []
        from airflow_worker_insight.fab import registration

        return registration.appbuilder_views()

    @cached_property
    @_empty_on_error
    def appbuilder_menu_items(self) -> list[dict[str, Any]]:
        """Menu entries of Airflow 2.11, and of 3.0 with FAB's auth manager."""
        if not _serves_flask_views():
            return []
        from airflow_worker_insight.ui import links

        return links.menu_items()

    @cached_property
    @_empty_on_error
    def flask_blueprints(self) -> list[Any]:
        """Static files of the Flask pages."""
        if not _serves_flask_views():
            return []
        from airflow_worker_insight.fab import registration

        return [registration.blueprint()]
