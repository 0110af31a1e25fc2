"""Who a reader is and what Airflow lets them do, in FastAPI's requests (Airflow 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_worker_insight import compat

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


LOGIN_COOKIE = "_token"
"""The cookie with which a browser brings Airflow 3's login."""


def current_user() -> Callable[..., Any]:
    """Return Airflow's own FastAPI dependency that resolves the reader, or answers 401 (403 for a forged token).

    From 3.1 on it takes a bearer token or the ``_token`` cookie; in 3.0 a bearer token only.
    """
    from airflow.api_fastapi.core_api.security import get_user

    dependency: Callable[..., Any] = get_user
    return dependency


def browser_sends_token() -> bool:
    """Return whether a browser's plain request carries the login.

    In 3.0 it does not: the UI moves the token from its cookie to ``localStorage["token"]`` and sends it as a header.
    """
    return compat.airflow_version() >= (3, 1)


def require_task_instances(user: Any, dag_id: str | None) -> None:
    """Refuse a reader who may not see a Dag's task instances, as Airflow's own dependency does.

    :param dag_id: the Dag, or ``None`` for "task instances at all"
    :raises fastapi.HTTPException: 403
    """
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
    from airflow.api_fastapi.core_api.security import requires_access_dag

    check = requires_access_dag(method="GET", access_entity=DagAccessEntity.TASK_INSTANCE)
    settled(check(_request_about(dag_id), user))


def require_jobs_view(user: Any) -> None:
    """Refuse a reader who may not see Airflow's jobs view (schedulers, triggerers and the like).

    :raises fastapi.HTTPException: 403
    """
    from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
    from airflow.api_fastapi.core_api.security import requires_access_view

    settled(requires_access_view(AccessView.JOBS)(_request_about(None), user))


def require_pool_edit(user: Any) -> None:
    """Refuse a person who may not edit Airflow's pools: the right to decide which worker is given work.

    Airflow's own dependency is a coroutine from 3.2 on, and asks about one pool and its team.

    :raises fastapi.HTTPException: 403
    """
    from airflow.api_fastapi.app import get_auth_manager
    from fastapi import HTTPException

    if not settled(get_auth_manager().is_authorized_pool(method="PUT", user=user)):
        raise HTTPException(403, "Forbidden")


def settled(answer: Any) -> Any:
    """Return what a question about rights comes to, also where Airflow has made it a coroutine.

    It did so from one minor version to the next with its dependencies on pools, connections and variables: one that
    nobody waits for refuses nobody. Our routes run in threads without an event loop; where one runs, this raises.
    """
    import asyncio
    import inspect

    if not inspect.isawaitable(answer):
        return answer

    async def wait() -> Any:
        return await answer

    return asyncio.run(wait())


def user_name(user: Any) -> str:
    """Return what Airflow calls a person, for those who read what they decided."""
    return str(user.get_name())


def readable_dag_ids(user: Any) -> set[str]:
    """Return the IDs of all Dags that a reader may see.

    Airflow's ``ReadableDagsFilterDep`` asks the same of ``request.app.state.auth_manager``, which the app of a plugin
    does not have.
    """
    from airflow.api_fastapi.app import get_auth_manager

    dag_ids: set[str] = get_auth_manager().get_authorized_dag_ids(user=user, method="GET")
    return dag_ids


def _request_about(dag_id: str | None) -> Any:
    """Return a request from which Airflow's dependencies read the Dag's ID, whichever way ours came to us.

    They look at path parameters (all versions) and query parameters (3.1+); the panel's address is read by other
    rules than a query string (see ``ui.query_params``), and what is checked must be what is shown.
    """
    from starlette.requests import Request

    path_params = {} if dag_id is None else {"dag_id": dag_id}
    return Request({"type": "http", "path_params": path_params, "query_string": b"", "headers": []})


def login_url(api_root: str, next_url: str) -> str:
    """Return where a person logs in to come back to ``next_url``.

    :param api_root: the path below which Airflow's API server is, without a slash at the end
    """
    from urllib.parse import quote

    value = quote(next_url, safe="")
    if compat.airflow_version() < (3, 2):
        # 3.0 and 3.1 put the decoded value into the next redirect as it is, which would cut it at its first "&".
        value = quote(value, safe="")
    return f"{api_root}/api/v2/auth/login?next={value}"
