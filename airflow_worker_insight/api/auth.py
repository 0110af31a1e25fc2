"""Who is reading, and what Airflow lets them read. Airflow 3 only.

Airflow does not authenticate the app of a plugin, so each route here depends on :data:`ReaderDep`, and everything is
asked of Airflow's own dependencies and its auth manager. Nothing is decided here and nothing is remembered: a right
that Airflow takes away is gone with the next request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, HTTPException

from airflow_worker_insight.compat import auth as airflow_auth

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.exceptions import HTTPException as AnyHTTPException


class Reader:
    """A person or a program whom Airflow has let in."""

    def __init__(self, user: Any) -> None:
        self._user = user

    def require_task_instances(self, dag_id: str | None = None) -> None:
        """Refuse a reader who may not see the task instances of a Dag, or none at all when ``dag_id`` is ``None``.

        :raises fastapi.HTTPException: 403
        """
        airflow_auth.require_task_instances(self._user, dag_id)

    def require_workers(self) -> None:
        """Refuse a reader who may not see what workers are: the right that Airflow asks for its jobs view.

        :raises fastapi.HTTPException: 403
        """
        airflow_auth.require_jobs_view(self._user)

    def require_pool_edit(self) -> None:
        """Refuse a reader who may not decide which worker is given work: the right to edit Airflow's pools.

        :raises fastapi.HTTPException: 403
        """
        airflow_auth.require_pool_edit(self._user)

    def may_edit_pools(self) -> bool:
        """Return whether :meth:`require_pool_edit` would let the reader pass."""
        return _passes(self.require_pool_edit)

    @property
    def name(self) -> str:
        """What Airflow calls the reader."""
        return airflow_auth.user_name(self._user)

    def may_see_workers(self) -> bool:
        """Return whether :meth:`require_workers` would let the reader pass."""
        return _passes(self.require_workers)

    def may_see_task_instances(self, dag_id: str | None = None) -> bool:
        """Return whether the reader may see the task instances of a Dag, or any at all."""
        return _passes(lambda: self.require_task_instances(dag_id))

    def readable_dag_ids(self) -> set[str]:
        """Return the Dags whose tries the reader may find in lists and totals."""
        return airflow_auth.readable_dag_ids(self._user)


def _passes(check: Callable[[], None]) -> bool:
    try:
        check()
    except HTTPException:
        return False
    return True


def _reader(user: Annotated[Any, Depends(airflow_auth.current_user())]) -> Reader:
    return Reader(user)


ReaderDep = Annotated[Reader, Depends(_reader)]
"""The reader of a request; 401 for one who is not logged in."""


def is_login_missing(error: AnyHTTPException) -> bool:
    """Return whether an HTTP error of Airflow's says "log in first" (a forged or foreign token is answered 403)."""
    return error.status_code == 401 or (error.status_code == 403 and error.detail == "Invalid JWT token")  # noqa: PLR2004
