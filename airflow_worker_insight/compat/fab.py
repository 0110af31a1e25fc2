"""Who a reader is and what Airflow lets them do, in Flask's requests: on 2.11, and where the auth manager is FAB's."""

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
    settled,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def serves_flask_views() -> bool:
    """Return whether a plugin's Flask views work here: on 2.11, and on Airflow 3 where the auth manager is FAB's.

    Elsewhere on Airflow 3 the API server would refuse to start (no FAB provider), or each view would answer 500
    (another auth manager).
    """
    if not compat.is_airflow_3():
        return True
    from airflow.api_fastapi.app import get_auth_manager_cls

    # By name: importing FAB's to compare with would cost a server with another auth manager a second.
    fab = ("airflow.providers.fab.auth_manager.fab_auth_manager", "FabAuthManager")
    return fab in {(base.__module__, base.__qualname__) for base in get_auth_manager_cls().__mro__}


def flask_user() -> Any:
    """Return who sends the Flask request at hand; the anonymous user, who may have rights too, for nobody known."""
    from flask import current_app, request

    manager = _flask_auth_manager()
    if not compat.is_airflow_3():
        return manager.get_user()
    token = request.cookies.get(LOGIN_COOKIE)
    user = None if token is None else _user_from_token(manager, token)
    if user is not None:
        return user
    if compat.airflow_version() < (3, 1):
        # Its UI moves the token out of the cookie, but plugins' views share the session of the login there.
        return manager.get_user()
    # From 3.1 on they do not: they cannot read a session kept in the database (the default), and one kept in a cookie
    # outlives what the login allows it.
    app: Any = current_app
    return app.login_manager.anonymous_user()


def flask_is_logged_in(user: Any) -> bool:
    """Return whether a user of :func:`flask_user` is a known one."""
    return not user.is_anonymous if compat.is_airflow_3() else bool(_flask_auth_manager().is_logged_in())


def flask_may_see_task_instances(user: Any, dag_id: str | None) -> bool:
    """Return whether a user may see the task instances of a Dag, or any at all when ``dag_id`` is ``None``.

    Airflow's decorator ``has_access_dag`` reads the Dag's ID from the query string by other rules than the panel, and
    sends one who is logged in and has no right to the home page instead of answering 403.
    """
    if compat.is_airflow_3():
        return _passes(require_task_instances, user, dag_id)
    from airflow.auth.managers.models.resource_details import DagAccessEntity, DagDetails

    details = None if dag_id is None else DagDetails(id=dag_id)
    entity = DagAccessEntity.TASK_INSTANCE
    manager = _flask_auth_manager()
    return bool(settled(manager.is_authorized_dag(method="GET", access_entity=entity, details=details, user=user)))


def flask_may_see_jobs(user: Any) -> bool:
    """Return whether a user may see Airflow's jobs view."""
    if compat.is_airflow_3():
        return _passes(require_jobs_view, user)
    from airflow.auth.managers.models.resource_details import AccessView

    return bool(settled(_flask_auth_manager().is_authorized_view(access_view=AccessView.JOBS, user=user)))


def flask_may_edit_pools(user: Any) -> bool:
    """Return whether a user may edit Airflow's pools."""
    if compat.is_airflow_3():
        return _passes(require_pool_edit, user)
    return bool(settled(_flask_auth_manager().is_authorized_pool(method="PUT", user=user)))


def flask_csrf_token() -> str:
    """Return the token that Airflow's Flask app asks for in forms that change something."""
    return str(import_module("flask_wtf.csrf").generate_csrf())


def flask_readable_dag_ids(user: Any) -> set[str]:
    """Return the IDs of all Dags that a user may see."""
    if compat.is_airflow_3():
        return readable_dag_ids(user)
    dag_ids: set[str] = _flask_auth_manager().get_permitted_dag_ids(methods=["GET"], user=user)
    return dag_ids


def flask_login_url(api_root: str, next_url: str) -> str:
    """Return where a person logs in to come back to ``next_url``; ``api_root`` as for :func:`login_url`."""
    if compat.is_airflow_3():
        return login_url(api_root, next_url)
    return str(_flask_auth_manager().get_url_login(next_url=next_url))


def flask_api_user() -> Any | None:
    """Return who sends the request to the REST API on 2.11 by the rules of Airflow's own, or ``None``: answer 401.

    Airflow's ``[api] auth_backends`` decide: the browser's session, basic authentication and the like.
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
    """Return the user of Airflow 3's token, checked by Airflow; ``None`` for one that does not hold."""
    from asgiref.sync import async_to_sync
    from jwt import InvalidTokenError

    try:
        return async_to_sync(manager.get_user_from_token)(token)
    except InvalidTokenError:
        return None


def _passes(check: Callable[..., None], *args: Any) -> bool:
    """Return whether one of the checks above, which raise for those who may not, lets pass."""
    from fastapi import HTTPException

    try:
        check(*args)
    except HTTPException:
        return False
    return True
