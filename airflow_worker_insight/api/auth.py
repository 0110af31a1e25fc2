"""Authentication and authorization of FastAPI requests. Airflow 3 only.

Airflow does not authenticate requests to a plugin's app, so each of our routes depends on :data:`ReaderDep`. Airflow's
own dependencies and its auth manager make every decision. Nothing is cached: a permission that Airflow revokes is gone
with the next request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, HTTPException

from airflow_worker_insight.compat import auth as airflow_auth

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.exceptions import HTTPException as AnyHTTPException


class Reader:
    """An authenticated user or API client, with the permissions that Airflow grants it."""

    def __init__(self, user: Any) -> None:
        self._user = user

    def require_task_instances(self, dag_id: str | None = None) -> None:
        """Require permission to see a Dag's task instances.

        :param dag_id: the Dag, or ``None`` for permission to see task instances at all
        :raises fastapi.HTTPException: 403
        """
        airflow_auth.require_task_instances(self._user, dag_id)

    def require_workers(self) -> None:
        """Require permission to see workers: that for Airflow's jobs view.

        :raises fastapi.HTTPException: 403
        """
        airflow_auth.require_jobs_view(self._user)

    def require_pool_edit(self) -> None:
        """Require permission to change worker availability: that to edit Airflow's pools.

        :raises fastapi.HTTPException: 403
        """
        airflow_auth.require_pool_edit(self._user)

    def may_edit_pools(self) -> bool:
        """Return whether :meth:`require_pool_edit` passes."""
        return _is_allowed(self.require_pool_edit)

    @property
    def name(self) -> str:
        """The user name that Airflow has for the reader."""
        return airflow_auth.user_name(self._user)

    def may_see_workers(self) -> bool:
        """Return whether :meth:`require_workers` passes."""
        return _is_allowed(self.require_workers)

    def may_see_task_instances(self, dag_id: str | None = None) -> bool:
        """Return whether :meth:`require_task_instances` passes."""
        return _is_allowed(lambda: self.require_task_instances(dag_id))

    def readable_dag_ids(self) -> set[str]:
        """Return the IDs of the Dags whose tries the reader may see in lists and totals."""
        return airflow_auth.readable_dag_ids(self._user)


def _is_allowed(check: Callable[[], None]) -> bool:
    try:
        check()
    except HTTPException:
        return False
    return True


def _current_reader(user: Annotated[Any, Depends(airflow_auth.current_user())]) -> Reader:
    return Reader(user)


ReaderDep = Annotated[Reader, Depends(_current_reader)]
"""The reader of a request, as a FastAPI dependency; answers 401 without a login."""


def is_login_missing(error: AnyHTTPException) -> bool:
    """Return whether Airflow's HTTP error means "log in first".

    Airflow answers a forged or foreign token with 403 instead of 401.
    """
    return error.status_code == 401 or (error.status_code == 403 and error.detail == "Invalid JWT token")  # noqa: PLR2004
