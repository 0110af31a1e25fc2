"""Reports as task processes send them, and what a test does with them."""

from __future__ import annotations

import inspect
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight import compat
from airflow_worker_insight.capture.report import REPORT_KEY
from airflow_worker_insight.compat import metadata_database
from tests.unit.database import Database, add_run, add_try, at, xcoms

if TYPE_CHECKING:
    from airflow_worker_insight.domain.attempts import DagRunRef
    from airflow_worker_insight.domain.keys import TryKey

airflow_3 = pytest.mark.skipif(not compat.is_airflow_3(), reason="Airflow 2.11 records without reports")


def a_report(try_id: uuid.UUID | str, **worker: Any) -> dict[str, Any]:
    """Return a report; ``worker`` replaces what the worker says of itself."""
    return {
        "version": 1,
        "try_id": str(try_id),
        "worker": {
            "worker_id": "celery-1",
            "name": "w1@host-1",
            "kind": "celery",
            "hostname": "host-1",
            "pid": 100,
            "started_at": "2026-03-01T11:00:00+00:00",
            "labels": {"zone": "a"},
            "engine_name": "w1@host-1",
            "resources": {"cpus": 4, "os": "Debian"},
            "versions": {"airflow": "3.3.2"},
            **worker,
        },
        "conditions": {"load": 0.75, "memory_free": 0.5, "running_beside": 2},
    }


@dataclass(frozen=True)
class RunningTry:
    """A try that runs, and the run it belongs to."""

    run: DagRunRef
    key: TryKey
    try_id: uuid.UUID


def a_running_try(database: Database, task_id: str = "extract", map_index: int = -1, **others: Any) -> RunningTry:
    """Store a try that runs, in the Dag run that the first one made."""
    from airflow_worker_insight.store.airflow_history import find_run

    try_id = uuid.uuid4()
    known = {"state": "running", "started_at": at(10), "ended_at": None, **others}
    with database.engine.begin() as connection:
        run = find_run(connection, "etl", "run-1") or add_run(connection, state="running", ended_at=None)
        key = add_try(connection, run, task_id, map_index, try_id=try_id, **known)
    return RunningTry(run, key, try_id)


def push(running_try: RunningTry, value: Any, key: str = REPORT_KEY) -> None:
    """Store an XCom as the API server does on the request of a task process."""
    from airflow.utils.session import create_session

    with create_session() as session:
        push_within(session, running_try, value, key)
    # Soon after the try has begun.
    with metadata_database.engine().begin() as connection:
        table = metadata_database.xcom_model().__table__
        connection.execute(table.update().where(table.c.key == key).values(timestamp=at(11)))


def push_within(session: Any, running_try: RunningTry, value: Any, key: str = REPORT_KEY) -> None:
    """Do the same in a session of the caller's."""
    from airflow.api_fastapi.execution_api.routes.xcoms import set_xcom

    sent = {
        **_names(running_try),
        "key": key,
        "value": value,
        "map_index": running_try.key.map_index,
        "session": session,
    }
    # All that FastAPI would fill in has to be given here.
    others = {"token": None, "mapped_length": None, "dag_result": False}
    known = inspect.signature(set_xcom).parameters
    set_xcom(**sent, **{name: default for name, default in others.items() if name in known})


def store_as_others(session: Any, running_try: RunningTry, value: Any, key: str = REPORT_KEY) -> None:
    """Store an XCom as anybody but a task process has Airflow store it: the public API, its UI, a plugin."""
    model = metadata_database.xcom_model()
    names = _names(running_try)
    as_sent = {"serialize": False} if "serialize" in inspect.signature(model.set).parameters else {}
    model.set(key=key, value=value, map_index=running_try.key.map_index, session=session, **names, **as_sent)


def _names(running_try: RunningTry) -> dict[str, str]:
    return {"dag_id": running_try.key.dag_id, "run_id": running_try.key.run_id, "task_id": running_try.key.task_id}


def stored_xcoms(database: Database) -> list[tuple[str, str, Any]]:
    """Return task, key and value of all stored XComs."""
    with database.engine.connect() as connection:
        return xcoms(connection)
