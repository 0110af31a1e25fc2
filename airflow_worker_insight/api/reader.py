"""The user or API client of a request, and the permissions that Airflow grants it.

A web server adapts :class:`Reader`: :mod:`.auth` for FastAPI, :mod:`airflow_worker_insight.fab.reader` for Flask.
Nothing is cached: a permission that Airflow revokes is gone with the next request.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.statistics import is_of_tasks, other_filters

if TYPE_CHECKING:
    from airflow_worker_insight.domain.filters import AttemptFilter


class Reader(ABC):
    """The user or API client of a request.

    The ``require_*`` methods raise the web server's own exception: 403, or 401 without a login.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The reader's user name in Airflow."""

    @property
    @abstractmethod
    def is_logged_in(self) -> bool:
        """Whether the reader is a user, as opposed to the public role."""

    @abstractmethod
    def may_see_task_instances(self, dag_id: str | None = None) -> bool:
        """Return whether the reader may see the task instances of a Dag.

        :param dag_id: the Dag, or ``None`` for task instances at all
        """

    @abstractmethod
    def may_see_workers(self) -> bool:
        """Return whether the reader may see workers: Airflow's permission for its jobs view."""

    @abstractmethod
    def may_edit_pools(self) -> bool:
        """Return whether the reader may change worker availability: Airflow's permission to edit pools."""

    @abstractmethod
    def readable_dag_ids(self) -> set[str]:
        """Return the IDs of the Dags whose tries the reader may see in lists and totals."""

    @abstractmethod
    def error(self, status: int, text: str) -> Exception:
        """Return the web server's exception for an HTTP error."""

    def require_task_instances(self, dag_id: str | None = None) -> None:
        """Require :meth:`may_see_task_instances`."""
        self._require(self.may_see_task_instances(dag_id))

    def require_workers(self) -> None:
        """Require :meth:`may_see_workers`."""
        self._require(self.may_see_workers())

    def require_pool_edit(self) -> None:
        """Require :meth:`may_edit_pools`."""
        self._require(self.may_edit_pools())

    def require_dag_ids(self, dag_id: str | None) -> set[str]:
        """Require :meth:`may_see_task_instances` and return the IDs of the Dags that a REST list covers.

        :param dag_id: the Dag of the filter, which may be a deleted one; ``None`` for all Dags
        """
        self.require_task_instances(dag_id)
        return {dag_id} if dag_id is not None else self.readable_dag_ids()

    def require_statistics(self, group_by: str, filters: AttemptFilter) -> set[str]:
        """Require what statistics need, and return the IDs of the Dags whose tries they may read.

        Groups of workers need the right to see workers; their sums are over all Dags. All else needs
        :meth:`require_dag_ids`.
        """
        if not is_of_tasks(group_by):
            self.require_workers()
            if not other_filters(group_by, filters):
                return set()
        return self.require_dag_ids(filters.dag_id)

    def finding_dag_ids(self, dag_id: str | None) -> set[str]:
        """Return the IDs of the Dags that findings may name, and require the right to see the Dag of the filter.

        :param dag_id: the Dag of the filter, which may be a deleted one; ``None`` for all Dags
        """
        if dag_id is not None:
            self.require_task_instances(dag_id)
        return self.readable_dag_ids() | ({dag_id} if dag_id is not None else set())

    def listed_dag_ids(self, dag_id: str) -> set[str]:
        """Return the IDs of the Dags that a page lists.

        They include the Dag that the filter names even if Airflow has deleted it, as long as the reader may see it.

        :param dag_id: the Dag of the filter; empty for none
        """
        dag_ids = self.readable_dag_ids()
        return {*dag_ids, dag_id} if dag_id and self.may_see_task_instances(dag_id) else dag_ids

    def _require(self, is_allowed: bool) -> None:
        if not is_allowed:
            raise self.error(403, "Forbidden") if self.is_logged_in else self.error(401, "Not authenticated")
