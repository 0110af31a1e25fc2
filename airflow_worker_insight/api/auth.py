"""Authentication and authorization of FastAPI requests. Airflow 3 only.

Airflow does not authenticate requests to a plugin's app, so each of our routes depends on :data:`ReaderDep`. Airflow's
own dependencies and its auth manager make every decision.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, HTTPException

from airflow_worker_insight.api.reader import Reader
from airflow_worker_insight.compat import auth as airflow_auth

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.exceptions import HTTPException as AnyHTTPException


class FastApiReader(Reader):
    """The user that Airflow's own dependency has authenticated."""

    is_logged_in = True

    def __init__(self, user: Any) -> None:
        self._user = user

    @property
    def name(self) -> str:
        """The reader's user name in Airflow."""
        return airflow_auth.user_name(self._user)

    def may_see_task_instances(self, dag_id: str | None = None) -> bool:
        """Ask Airflow; see :class:`.Reader`."""
        return _is_allowed(airflow_auth.require_task_instances, self._user, dag_id)

    def may_see_workers(self) -> bool:
        """Ask Airflow; see :class:`.Reader`."""
        return _is_allowed(airflow_auth.require_jobs_view, self._user)

    def may_edit_pools(self) -> bool:
        """Ask Airflow; see :class:`.Reader`."""
        return _is_allowed(airflow_auth.require_pool_edit, self._user)

    def readable_dag_ids(self) -> set[str]:
        """Ask Airflow; see :class:`.Reader`."""
        return airflow_auth.readable_dag_ids(self._user)

    def error(self, status: int, text: str) -> Exception:
        """Return FastAPI's exception."""
        return HTTPException(status, text)


def _is_allowed(check: Callable[..., None], *args: Any) -> bool:
    try:
        check(*args)
    except HTTPException:
        return False
    return True


def _current_reader(user: Annotated[Any, Depends(airflow_auth.current_user())]) -> Reader:
    return FastApiReader(user)


ReaderDep = Annotated[Reader, Depends(_current_reader)]
"""The reader of a request, as a FastAPI dependency; answers 401 without a login."""


def is_login_missing(error: AnyHTTPException) -> bool:
    """Return whether Airflow's HTTP error means "log in first".

    Airflow answers a forged or foreign token with 403 instead of 401.
    """
    has_invalid_token = error.status_code == HTTPStatus.FORBIDDEN and error.detail == "Invalid JWT token"
    return has_invalid_token or error.status_code == HTTPStatus.UNAUTHORIZED
