"""Authentication and authorization of FastAPI requests (Airflow 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_worker_insight import compat

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


LOGIN_COOKIE = "_token"
"""Cookie in which a browser sends Airflow 3's login token."""


def current_user() -> Callable[..., Any]:
    """Return Airflow's own FastAPI dependency that resolves the user.

    It answers 401 without a login and 403 for a forged token. From 3.1 on it takes a bearer token or the ``_token``
    cookie; in 3.0 a bearer token only.
    """
    from airflow.api_fastapi.core_api.security import get_user

    dependency: Callable[..., Any] = get_user
    return dependency


def browser_sends_token() -> bool:
    """Return whether a browser's normal page request carries the login.

    In 3.0 it does not: the UI moves the token from its cookie to ``localStorage["token"]`` and sends it as a header.
    """
    return compat.airflow_version() >= (3, 1)


def require_task_instances(user: Any, dag_id: str | None) -> None:
    """Raise unless a user may view a Dag's task instances, as Airflow's own dependency does.

    :param dag_id: the Dag, or ``None`` for task instances in general
    :raises fastapi.HTTPException: 403
    """
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
    from airflow.api_fastapi.core_api.security import requires_access_dag

    check = requires_access_dag(method="GET", access_entity=DagAccessEntity.TASK_INSTANCE)
    resolve_awaitable(check(_request_for(dag_id), user))


def require_jobs_view(user: Any) -> None:
    """Raise unless a user may view Airflow's jobs (schedulers, triggerers and the like).

    :raises fastapi.HTTPException: 403
    """
    from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
    from airflow.api_fastapi.core_api.security import requires_access_view

    resolve_awaitable(requires_access_view(AccessView.JOBS)(_request_for(None), user))


def require_pool_edit(user: Any) -> None:
    """Raise unless a user may edit Airflow's pools, the right to set workers' availability.

    Airflow's own dependency is a coroutine from 3.2 on, and checks one pool and its team.

    :raises fastapi.HTTPException: 403
    """
    from airflow.api_fastapi.app import get_auth_manager
    from fastapi import HTTPException

    if not resolve_awaitable(get_auth_manager().is_authorized_pool(method="PUT", user=user)):
        raise HTTPException(403, "Forbidden")


def resolve_awaitable(result: Any) -> Any:
    """Return the result of an authorization check, which may be a coroutine in some versions.

    Airflow made its dependencies for pools, connections and variables coroutines in a minor version; an unawaited check
    would refuse no request. The routes of this package run in threads without an event loop.

    :raises RuntimeError: if the check is a coroutine and an event loop runs in this thread
    """
    import asyncio
    import inspect

    if not inspect.isawaitable(result):
        return result

    async def wait() -> Any:
        return await result

    return asyncio.run(wait())


def user_name(user: Any) -> str:
    """Return Airflow's name of a user, to be shown with the user's changes."""
    return str(user.get_name())


def readable_dag_ids(user: Any) -> set[str]:
    """Return the IDs of all Dags that a user may view.

    Airflow's ``ReadableDagsFilterDep`` calls the same on ``request.app.state.auth_manager``, which a plugin's app does
    not have.
    """
    from airflow.api_fastapi.app import get_auth_manager

    dag_ids: set[str] = get_auth_manager().get_authorized_dag_ids(user=user, method="GET")
    return dag_ids


def _request_for(dag_id: str | None) -> Any:
    """Return a request with only the Dag's ID, for Airflow's dependencies.

    They read path parameters (all versions) and query parameters (3.1+). The panel parses its URL by other rules than a
    query string (see ``ui.query_params``), and the checked Dag must be the Dag that is shown.
    """
    from starlette.requests import Request

    path_params = {} if dag_id is None else {"dag_id": dag_id}
    return Request({"type": "http", "path_params": path_params, "query_string": b"", "headers": []})


def login_url(api_root: str, next_url: str) -> str:
    """Return the URL of the login page that leads back to ``next_url``.

    :param api_root: the root path of Airflow's API server, without a trailing slash
    """
    from urllib.parse import quote

    encoded_next_url = quote(next_url, safe="")
    if compat.airflow_version() < (3, 2):
        # 3.0 and 3.1 put the decoded value into the next redirect unescaped, which would cut it at its first "&".
        encoded_next_url = quote(encoded_next_url, safe="")
    return f"{api_root}/api/v2/auth/login?next={encoded_next_url}"
