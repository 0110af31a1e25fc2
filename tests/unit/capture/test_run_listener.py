"""What a scheduler or an API server does when a Dag run ends or a person sets a state."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight.capture import run_listener
from tests.unit.capture.reports import airflow_3
from tests.unit.capture.test_listener import CommsDecoder, in_a_task_process

if TYPE_CHECKING:
    from pytest_mock import MockerFixture

# The module, which its package's attribute of the same name hides nowhere: the queue in it is what is replaced.
queue_module = importlib.import_module("airflow_worker_insight.capture.queue")

SERVERS = ("airflow.jobs.scheduler_job_runner", "airflow.api_fastapi.core_api.app")
RUN = SimpleNamespace(dag_id="etl", run_id="run-1")


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch, mocker: MockerFixture) -> list[tuple[str, str]]:
    """Return what is put into the queue, in a process that is no server."""
    runs: list[tuple[str, str]] = []
    mocker.patch.object(queue_module, "queue", SimpleNamespace(put=lambda *names: runs.append(names)))
    for name in SERVERS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return runs


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process look like a scheduler, then like an API server."""
    request.getfixturevalue("put")
    monkeypatch.setitem(sys.modules, request.param, ModuleType(request.param))


@pytest.mark.usefixtures("server")
def test_ended_run_is_queued(put: list[tuple[str, str]]) -> None:
    run_listener.on_dag_run_success(RUN)
    run_listener.on_dag_run_failed(RUN)
    assert put == [("etl", "run-1")] * 2


@airflow_3
@pytest.mark.usefixtures("server")
def test_run_of_a_state_set_by_a_user_is_queued(put: list[tuple[str, str]]) -> None:
    run_listener.on_task_instance_success(RUN)
    run_listener.on_task_instance_failed(RUN)
    assert put == [("etl", "run-1")] * 2


@airflow_3
@pytest.mark.usefixtures("server")
def test_end_of_a_task_in_its_own_process_queues_nothing(put: list[tuple[str, str]], mocker: MockerFixture) -> None:
    """Under LocalExecutor a task process is a fork of the scheduler: it has all of its modules, and must not wait."""
    in_a_task_process(mocker, CommsDecoder())
    run_listener.on_task_instance_success(RUN)
    run_listener.on_task_instance_failed(RUN)
    assert put == []


def test_process_of_a_user_reconciles_nothing(put: list[tuple[str, str]]) -> None:
    """``dag.test()`` calls the same hooks."""
    run_listener.on_dag_run_success(RUN)
    run_listener.on_task_instance_success(RUN)
    assert put == []


@pytest.mark.usefixtures("server")
def test_nothing_is_queued_when_disabled(put: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__ENABLED", "False")
    run_listener.on_dag_run_success(RUN)
    assert put == []


@pytest.mark.usefixtures("server")
def test_errors_do_not_reach_the_scheduler(mocker: MockerFixture, caplog: pytest.LogCaptureFixture) -> None:
    def full(*_: str) -> None:
        raise RuntimeError("can't start new thread")

    mocker.patch.object(queue_module, "queue", SimpleNamespace(put=full))
    run_listener.on_dag_run_failed(RUN)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
