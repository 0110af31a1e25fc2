"""Serve the Flask views with an Airflow that grants the permissions of a test."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight.fab.reader import FlaskAirflow, FlaskReader
from tests.unit.fab.app import flask_app
from tests.unit.readers import auth_manager, client_of, dags, tries

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask.testing import FlaskClient

    from airflow_worker_insight.api.reader import Reader

__all__ = ["auth_manager", "client_of", "dags", "tries"]


@dataclass
class Permissions:
    """What Airflow grants the user of all requests, and for which Dags it was asked."""

    dag_ids: set[str] = field(default_factory=set)
    jobs: bool = False
    pools: bool = False
    is_logged_in: bool = True
    is_authenticated: bool = True
    """Whether Airflow accepts the credentials of a REST request."""
    checked_dag_ids: list[str | None] = field(default_factory=list)


class FakeReader(FlaskReader):
    """The user alice, who has these permissions."""

    name = "alice"

    def __init__(self, permissions: Permissions) -> None:
        self._granted = permissions

    @property
    def is_logged_in(self) -> bool:
        return self._granted.is_logged_in

    def may_see_task_instances(self, dag_id: str | None = None) -> bool:
        self._granted.checked_dag_ids.append(dag_id)
        return bool(self._granted.dag_ids) if dag_id is None else dag_id in self._granted.dag_ids

    def may_see_workers(self) -> bool:
        return self._granted.jobs

    def may_edit_pools(self) -> bool:
        return self._granted.pools

    def readable_dag_ids(self) -> set[str]:
        return self._granted.dag_ids


class FakeAirflow(FlaskAirflow):
    """An Airflow of this major version with one user."""

    def __init__(self, version: int, permissions: Permissions, log_in: Callable[[], None]) -> None:
        self.renders_pages_with_flask = version == 2
        self._permissions = permissions
        self._log_in = log_in

    def page_reader(self) -> Reader:
        return FakeReader(self._permissions)

    def api_reader(self) -> Reader | None:
        self._log_in()
        return FakeReader(self._permissions) if self._permissions.is_authenticated else None

    def csrf_token(self) -> str:
        return "of-airflow"

    def login_url(self, api_root: str, next_url: str) -> str:
        return f"{api_root}/login?next={next_url}"


@pytest.fixture
def permissions() -> Permissions:
    return Permissions()


@pytest.fixture
def serve(permissions: Permissions) -> Callable[..., FlaskClient]:
    """Return a function that serves the views as an Airflow of this major version does.

    With ``csrf`` it requires a form's token for each change, as Airflow 2 does. ``log_in`` is called when a REST
    request is authenticated.
    """

    def client(version: int, *, csrf: bool = False, log_in: Callable[[], None] = lambda: None) -> FlaskClient:
        app = flask_app(FakeAirflow(version, permissions, log_in), root="/deep", csrf=csrf)
        test_client: FlaskClient = app.test_client()
        return test_client

    return client
