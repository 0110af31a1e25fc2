"""What a task process does when its task starts."""

from __future__ import annotations

import json
import logging
import sys
import uuid
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest

from airflow_worker_insight import compat
from airflow_worker_insight.capture import direct, listener
from airflow_worker_insight.capture.report import MAX_REPORT_BYTES, REPORT_KEY
from airflow_worker_insight.capture.report_schema import parse_report
from airflow_worker_insight.compat import task_runtime
from tests.unit.capture.reports import airflow_3

if TYPE_CHECKING:
    from pytest_mock import MockerFixture

airflow_2 = pytest.mark.skipif(compat.is_airflow_3(), reason="Airflow 3 records with reports")

TRY_ID = uuid.uuid4()


class CommsDecoder:
    """The channel of a task process, by the name that Airflow's own has."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)


class Broken(CommsDecoder):
    def send(self, message: Any) -> None:
        super().send(message)
        raise BrokenPipeError("the supervisor is gone")


Broken.__name__ = "CommsDecoder"


def a_task_instance(**others: Any) -> SimpleNamespace:
    known = {"id": TRY_ID, "dag_id": "etl", "run_id": "run-1", "task_id": "extract", "map_index": 3}
    return SimpleNamespace(**{**known, "hostname": "host-1", "executor": None, **others})


def in_a_task_process(mocker: MockerFixture, comms: Any) -> Any:
    """Make this process look like one of Airflow 3's task processes."""
    from airflow.sdk.execution_time import task_runner

    mocker.patch.object(task_runner, "SUPERVISOR_COMMS", comms, create=True)
    return comms


@airflow_3
def test_one_message_with_all_the_api_server_needs(mocker: MockerFixture) -> None:
    from airflow.sdk.execution_time.comms import SetXCom

    comms = in_a_task_process(mocker, CommsDecoder())
    listener.on_task_instance_running(a_task_instance())

    (message,) = comms.sent
    assert isinstance(message, SetXCom)
    assert (message.key, message.dag_id, message.run_id, message.task_id, message.map_index) == (
        REPORT_KEY,
        "etl",
        "run-1",
        "extract",
        3,
    )
    as_sent = json.loads(message.model_dump_json())["value"]
    assert len(json.dumps(as_sent)) <= MAX_REPORT_BYTES
    report = parse_report(as_sent)
    assert (report.try_id, report.worker.hostname) == (TRY_ID, "host-1")
    assert set(as_sent["conditions"]) == {"load", "memory_free", "running_beside"}


@airflow_3
@pytest.mark.parametrize(
    "run_id",
    [
        "manual__2026-03-01T12:00:00.5+00:00_x~y",
        "a b",
        "a#b",
        "a?b=c&d",
        "a%2Fb",
        "100%",
        "späti 🐘",
        "x" * 250,
        "%25",
        "a;b,c='d'(e)[f]{g}|h^i`j\\k",
    ],
)
def test_any_run_id_finds_its_way(mocker: MockerFixture, run_id: str) -> None:
    """Through Airflow's own client, as a server decodes the path that it asks for."""
    import httpx
    from airflow.sdk.api.client import Client

    comms = in_a_task_process(mocker, CommsDecoder())
    listener.on_task_instance_running(a_task_instance(run_id=run_id))
    (message,) = comms.sent
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(201, json={})

    client = Client(base_url="http://api/execution/", token="", transport=httpx.MockTransport(answer))
    client.xcoms.set(message.dag_id, message.run_id, message.task_id, message.key, message.value)
    assert unquote(asked[0].url.raw_path.partition(b"?")[0].decode()) == (
        f"/execution/xcoms/etl/{run_id}/extract/{REPORT_KEY}"
    )


@airflow_3
def test_a_run_id_that_no_route_takes_costs_no_warning(mocker: MockerFixture, caplog: pytest.LogCaptureFixture) -> None:
    comms = in_a_task_process(mocker, CommsDecoder())
    listener.on_task_instance_running(a_task_instance(run_id="backfill/2026-03-01"))
    assert (comms.sent, caplog.records) == ([], [])


@airflow_3
def test_what_an_operator_set_is_reported(monkeypatch: pytest.MonkeyPatch, mocker: MockerFixture) -> None:
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__WORKER_NAME", "etl-large-1")
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__WORKER_LABELS", "region=eu-west-1,zone=a")
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__WORKER_IMAGE", "data/airflow:7")
    comms = in_a_task_process(mocker, CommsDecoder())
    listener.on_task_instance_running(a_task_instance())
    worker = comms.sent[0].value["worker"]
    assert worker["name"] == "etl-large-1"
    assert worker["labels"] == {"region": "eu-west-1", "zone": "a"}
    assert worker["resources"]["image"] == "data/airflow:7"


@airflow_3
def test_a_broken_channel_costs_one_line_and_no_task(mocker: MockerFixture, caplog: pytest.LogCaptureFixture) -> None:
    comms = in_a_task_process(mocker, Broken())
    listener.on_task_instance_running(a_task_instance())
    assert len(comms.sent) == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@airflow_3
def test_a_task_instance_without_what_we_need_costs_no_task(mocker: MockerFixture) -> None:
    in_a_task_process(mocker, CommsDecoder())
    listener.on_task_instance_running(SimpleNamespace())


@airflow_3
def test_switched_off_nothing_is_sent(monkeypatch: pytest.MonkeyPatch, mocker: MockerFixture) -> None:
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__ENABLED", "False")
    comms = in_a_task_process(mocker, CommsDecoder())
    listener.on_task_instance_running(a_task_instance())
    assert comms.sent == []


@airflow_3
def test_under_dag_test_nothing_is_sent(mocker: MockerFixture) -> None:
    class InProcessSupervisorComms(CommsDecoder):
        pass

    comms = in_a_task_process(mocker, InProcessSupervisorComms())
    listener.on_task_instance_running(a_task_instance())
    assert comms.sent == []


def test_where_nothing_runs_tasks_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, mocker: MockerFixture, caplog: pytest.LogCaptureFixture
) -> None:
    """In the API server the same hook tells of a state that a person set."""
    for name in ("airflow.sdk.execution_time.task_runner", "airflow.sdk.execution_time.comms"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    record = mocker.patch.object(direct, "record")
    listener.on_task_instance_running(a_task_instance(job_id=None))
    record.assert_not_called()
    assert caplog.records == []


@airflow_2
def test_on_airflow_2_only_the_process_of_a_job_writes(monkeypatch: pytest.MonkeyPatch, mocker: MockerFixture) -> None:
    written: list[Any] = []
    mocker.patch.object(direct, "record", written.append)
    mine = a_task_instance(job_id=7)
    listener.on_task_instance_running(mine)
    listener.on_task_instance_running(a_task_instance(job_id=None))
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__ENABLED", "False")
    listener.on_task_instance_running(mine)
    assert written == [mine]


@airflow_2
def test_on_airflow_2_a_database_that_refuses_costs_one_line_and_no_task(
    mocker: MockerFixture, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: Any) -> None:
        raise RuntimeError("no such table")

    mocker.patch.object(direct, "record", refuse)
    listener.on_task_instance_running(a_task_instance(job_id=7))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.parametrize("module", ["listener", "run_listener"])
def test_the_hooks_are_airflows(module: str) -> None:
    """Airflow calls a hook by its name and gives it only the arguments that it names: both must be its own."""
    from importlib import import_module

    from airflow.listeners.listener import get_listener_manager

    hooks = import_module(f"airflow_worker_insight.capture.{module}")
    manager = get_listener_manager()
    loaded = not manager.pm.is_registered(hooks)
    if loaded:
        manager.add_listener(hooks)
    try:
        manager.pm.check_pending()
        callers = manager.pm.get_hookcallers(hooks) or []
        assert {caller.name for caller in callers} == {name for name in vars(hooks) if name.startswith("on_")}
        assert callers
    finally:
        if loaded:
            manager.pm.unregister(hooks)


def test_what_is_loaded_by_accident_is_no_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The API server has the same modules and no supervisor above it."""
    runner = ModuleType("airflow.sdk.execution_time.task_runner")
    monkeypatch.setitem(sys.modules, runner.__name__, runner)
    assert task_runtime.task_channel() is None
