"""The app as Airflow mounts it, Airflow's own login, and readers with different rights. Airflow 3 only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight import compat
from tests.unit.database import a_worker, add_run, add_try, at, record_start

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi.testclient import TestClient

    from tests.unit.database import Database

READABLE, SECRET = "etl", "secret"


@pytest.fixture
def dags(database: Database) -> Database:
    """Have two Dags in the database."""
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session

    with create_session() as session:
        others = {}
        if compat.airflow_version() >= (3, 1):
            from airflow.models.dagbundle import DagBundleModel

            session.add(DagBundleModel(name="files"))
            session.flush()
            others = {"bundle_name": "files"}
        session.add_all(DagModel(dag_id=dag_id, fileloc="/dags.py", **others) for dag_id in (READABLE, SECRET))
    return database


@pytest.fixture
def auth_manager(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make Airflow's simple auth manager the one in use; whose name says so may see no Dag ``secret`` or no jobs."""
    if not compat.is_airflow_3():
        pytest.skip("Airflow 2.11 serves Flask views instead")
    from airflow.api_fastapi import app as api
    from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

    class Manager(SimpleAuthManager):
        def is_authorized_dag(self, *, user: Any, details: Any = None, **others: Any) -> bool:
            if user.username in ("nobody", "jobs only"):
                return False
            if user.username.startswith("few") and details and details.id == SECRET:
                return False
            return super().is_authorized_dag(user=user, details=details, **others)

        def is_authorized_view(self, *, user: Any, **others: Any) -> bool:
            return user.username not in ("few", "nobody") and super().is_authorized_view(user=user, **others)

        def is_authorized_pool(self, *, user: Any, **others: Any) -> bool:
            return user.username == "admin" and super().is_authorized_pool(user=user, **others)

    manager = Manager()
    if hasattr(api, "_AuthManagerState"):
        monkeypatch.setattr(api._AuthManagerState, "instance", manager)
    else:
        monkeypatch.setattr(api, "auth_manager", manager)
    return manager


@pytest.fixture
def client_of(dags: Database, auth_manager: Any) -> Callable[..., TestClient]:  # noqa: ARG001
    """Return a function that gives a client of the app, mounted as Airflow mounts it, for the reader of a name.

    ``None`` is nobody in particular. "few" may see neither the Dag ``secret`` nor workers, "few jobs" all
    workers, "jobs only" no Dag and "nobody" nothing. Only "admin" may edit pools.
    """
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from airflow_worker_insight.api import database
    from airflow_worker_insight.app import create_app

    database.schema_gate.forget()

    def client(username: str | None = "admin", *, root: str = "", cookie: bool = False) -> TestClient:
        airflow = FastAPI(root_path=root)
        airflow.mount("/worker-insight", create_app())
        headers, cookies = {}, {}
        if username is not None:
            token = auth_manager.generate_jwt(SimpleAuthManagerUser(username=username, role="admin"))
            if cookie:
                cookies = {"_token": token}
            else:
                headers = {"Authorization": f"Bearer {token}"}
        return TestClient(
            airflow, f"http://airflow{root}/worker-insight/", headers=headers, cookies=cookies, follow_redirects=False
        )

    return client


@pytest.fixture
def tries(dags: Database) -> Database:
    """Store two tries of a readable Dag, the second of which runs, and one of a secret one, on two workers."""
    with dags.engine.begin() as connection:
        for dag_id, starts in ((READABLE, (("w2", 2, 20), ("w1", 1, 10))), (SECRET, (("w1", 1, 30),))):
            run = add_run(connection, dag_id, state="running", ended_at=None)
            for worker_id, number, moment in starts:
                has_failed = len(starts) > number
                key = add_try(
                    connection,
                    run,
                    "load",
                    try_number=number,
                    state="failed" if has_failed else "running",
                    started_at=at(moment),
                    ended_at=at(moment + 5) if has_failed else None,
                    history=has_failed,
                )
                record_start(
                    connection, key, a_worker(worker_id), try_started_at=at(moment), state="running", now=at(moment)
                )
    return dags
