"""Authentication and authorization of Flask requests.

Used on 2.11, and on Airflow 3 with FAB's auth manager.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from airflow_worker_insight import compat
from airflow_worker_insight.compat.auth import (
    LOGIN_COOKIE,
    login_url,
    readable_dag_ids,
    require_jobs_view,
    require_pool_edit,
    require_task_instances,
    resolve_awaitable,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def serves_flask_views() -> bool:
    """Return whether a plugin's Flask views work: on 2.11 or with FAB's auth manager.

    Elsewhere on Airflow 3 the API server would refuse to start (no FAB provider), or each view would answer 500
    (another auth manager).
    """
    if not compat.is_airflow_3():
        return True
    from airflow.api_fastapi.app import get_auth_manager_cls

    # Compare by name: importing FAB's auth manager would cost a server with another one a second.
    fab = ("airflow.providers.fab.auth_manager.fab_auth_manager", "FabAuthManager")
    return fab in {(class_.__module__, class_.__qualname__) for class_ in get_auth_manager_cls().__mro__}


def flask_user() -> Any:
    """Return the user of the current Flask request, else the anonymous user.

    The anonymous user may have rights too.
    """
    from flask import current_app, request

    manager = _flask_auth_manager()
    if not compat.is_airflow_3():
        return manager.get_user()
    token = request.cookies.get(LOGIN_COOKIE)
    user = None if token is None else _user_from_token(manager, token)
    if user is not None:
        return user
    if compat.airflow_version() < (3, 1):
        # 3.0's UI moves the token out of the cookie, but plugins' views share the session of the login there.
        return manager.get_user()
    # From 3.1 on plugins' views do not share that session: they cannot read one stored in the database (the default),
    # and one stored in a cookie outlives the login.
    app: Any = current_app
    return app.login_manager.anonymous_user()


def flask_is_logged_in(user: Any) -> bool:
    """Return whether a user from :func:`flask_user` is logged in."""
    return not user.is_anonymous if compat.is_airflow_3() else bool(_flask_auth_manager().is_logged_in())


def flask_may_see_task_instances(user: Any, dag_id: str | None) -> bool:
    """Return whether a user may view a Dag's task instances.

    ``None`` as ``dag_id`` stands for task instances in general. Airflow's decorator ``has_access_dag`` does not fit: it
    reads the Dag's ID from the query string by other rules than the panel, and it redirects a logged-in user without
    the right to the home page instead of answering 403.
    """
    if compat.is_airflow_3():
        return _is_allowed(require_task_instances, user, dag_id)
    from airflow.auth.managers.models.resource_details import DagAccessEntity, DagDetails

    details = None if dag_id is None else DagDetails(id=dag_id)
    entity = DagAccessEntity.TASK_INSTANCE
    manager = _flask_auth_manager()
    return bool(
        resolve_awaitable(manager.is_authorized_dag(method="GET", access_entity=entity, details=details, user=user))
    )


def flask_may_see_jobs(user: Any) -> bool:
    """Return whether a user may view Airflow's jobs."""
    if compat.is_airflow_3():
        return _is_allowed(require_jobs_view, user)
    from airflow.auth.managers.models.resource_details import AccessView

    return bool(resolve_awaitable(_flask_auth_manager().is_authorized_view(access_view=AccessView.JOBS, user=user)))


def flask_may_edit_pools(user: Any) -> bool:
    """Return whether a user may edit Airflow's pools."""
    if compat.is_airflow_3():
        return _is_allowed(require_pool_edit, user)
    return bool(resolve_awaitable(_flask_auth_manager().is_authorized_pool(method="PUT", user=user)))


def flask_csrf_token() -> str:
    """Return the CSRF token that Airflow's Flask app requires in forms that change something."""
    return str(import_module("flask_wtf.csrf").generate_csrf())


def flask_readable_dag_ids(user: Any) -> set[str]:
    """Return the IDs of all Dags that a user may view."""
    if compat.is_airflow_3():
        return readable_dag_ids(user)
    dag_ids: set[str] = _flask_auth_manager().get_permitted_dag_ids(methods=["GET"], user=user)
    return dag_ids


def flask_login_url(api_root: str, next_url: str) -> str:
    """Return the URL of the login page that leads back to ``next_url``.

    :param api_root: as for :func:`login_url`
    """
    if compat.is_airflow_3():
        return login_url(api_root, next_url)
    return str(_flask_auth_manager().get_url_login(next_url=next_url))


def flask_api_user() -> Any | None:
    """Return the user of a REST API request on 2.11, or ``None`` if the answer must be 401.

    The rules are those of Airflow's own REST API: ``[api] auth_backends`` decides, for example by the browser's session
    or by basic authentication.
    """
    from airflow.api_connexion.exceptions import Unauthenticated
    from airflow.api_connexion.security import check_authentication

    try:
        check_authentication()
    except Unauthenticated:
        return None
    return _flask_auth_manager().get_user()


def _flask_auth_manager() -> Any:
    module = "airflow.api_fastapi.app" if compat.is_airflow_3() else "airflow.www.extensions.init_auth_manager"
    return import_module(module).get_auth_manager()


def _user_from_token(manager: Any, token: str) -> Any | None:
    """Return the user of Airflow 3's token, verified by Airflow; ``None`` if it is invalid."""
    from asgiref.sync import async_to_sync
    from jwt import InvalidTokenError

    try:
        return async_to_sync(manager.get_user_from_token)(token)
    except InvalidTokenError:
        return None


def _is_allowed(check: Callable[..., None], *args: Any) -> bool:
    """Return whether one of the ``require_*`` checks allows access, that is, does not raise."""
    from fastapi import HTTPException

    try:
        check(*args)
    except HTTPException:
        return False
    return True
