"""The one place where everything is handed to Airflow.

Every process of the deployment imports this module, task processes among them. So it imports nothing heavy, and what is
heavy is built by properties, which Airflow reads only where it needs them (it reads plugins' attributes from the
instance).
"""

from __future__ import annotations

import logging
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any

from airflow_worker_insight import compat
from airflow_worker_insight.capture import hook_monitoring
from airflow_worker_insight.compat import task_runtime

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)


def _or_nothing(build: Callable[[Any], list[Any]]) -> Callable[[Any], list[Any]]:
    """Hand Airflow nothing where building fails: an error here would keep its whole API server from starting."""

    @wraps(build)
    def safe(plugin: Any) -> list[Any]:
        try:
            return build(plugin)
        except Exception:
            log.exception("Airflow Worker Insight could not build its %s; Airflow goes on without", build.__name__)
            return []

    return safe


def _serves_flask_views() -> bool:
    # No task process asks, and what only these pages need is not loaded there.
    from airflow_worker_insight.compat import fab as airflow_fab

    return airflow_fab.serves_flask_views()


class WorkerInsightPlugin(task_runtime.plugin_base()):  # type: ignore[misc]
    """Airflow Worker Insight."""

    name = "worker_insight"

    @property
    def listeners(self) -> list[Any]:
        """What is told of starts and ends; asked for again by each of the listener managers of a process."""
        return hook_monitoring.listeners()

    @cached_property
    @_or_nothing
    def fastapi_apps(self) -> list[dict[str, Any]]:
        """The pages and the REST API; only an API server asks, so here the claim and the looks at workers begin too."""
        if not compat.is_airflow_3():
            return []
        from airflow_worker_insight.app import create_app
        from airflow_worker_insight.capture import claim
        from airflow_worker_insight.registry.background import refreshing
        from airflow_worker_insight.ui.urls import URL_PREFIX

        claim.install()
        app = create_app()
        # Airflow enters it in each process that serves, after it has forked.
        app.router.lifespan_context = refreshing
        return [{"app": app, "url_prefix": URL_PREFIX, "name": "Airflow Worker Insight"}]

    @cached_property
    @_or_nothing
    def external_views(self) -> list[dict[str, Any]]:
        """The ``Worker`` tab of a task instance and ``Workers`` in the navigation (Airflow 3.1 and later)."""
        from airflow_worker_insight.ui import links

        return links.external_views()

    @cached_property
    @_or_nothing
    def global_operator_extra_links(self) -> list[Any]:
        """The ``Worker`` link on every task of every operator."""
        from airflow_worker_insight.ui.links import WorkerLink

        return [WorkerLink()]

    @cached_property
    @_or_nothing
    def appbuilder_views(self) -> list[dict[str, Any]]:
        """The pages of Airflow 2.11, and of Airflow 3 where the auth manager is FAB's."""
        if not _serves_flask_views():
            return []
        from airflow_worker_insight.fab import registration

        return registration.appbuilder_views()

    @cached_property
    @_or_nothing
    def appbuilder_menu_items(self) -> list[dict[str, Any]]:
        """The entries in the menu of Airflow 2.11, and of 3.0 where the auth manager is FAB's."""
        if not _serves_flask_views():
            return []
        from airflow_worker_insight.ui import links

        return links.menu_items()

    @cached_property
    @_or_nothing
    def flask_blueprints(self) -> list[Any]:
        """The static files of these pages."""
        if not _serves_flask_views():
            return []
        from airflow_worker_insight.fab import registration

        return [registration.blueprint()]
