"""Airflow 2.11: the task process writes its own row."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from airflow_worker_insight import compat, identity
from airflow_worker_insight.capture import direct
from airflow_worker_insight.capture.report_schema import worker_record
from airflow_worker_insight.identity import Worker
from tests.unit.database import Database, at

if TYPE_CHECKING:
    from pytest_mock import MockerFixture

pytestmark = pytest.mark.skipif(compat.is_airflow_3(), reason="Airflow 3 records with reports")


def a_task_instance(**others: Any) -> SimpleNamespace:
    known = {"dag_id": "etl", "run_id": "run-1", "task_id": "extract", "map_index": 3, "try_number": 2}
    times = {"start_date": at(10), "hostname": "host-1", "executor": "LocalExecutor"}
    queued = {"queued_dttm": at(5), "queued_by_job_id": 7, "external_executor_id": None}
    dag_run = SimpleNamespace(id=1, execution_date=at(0))
    return SimpleNamespace(**{**known, **times, **queued, "dag_run": dag_run, **others})


def a_worker_of(mocker: MockerFixture, kind: str, **others: Any) -> None:
    """Have this process belong to a worker of this kind."""
    known: dict[str, Any] = {"worker_id": f"{kind}-1", "name": "w1", "hostname": "host-1", "engine_name": "w1@host-1"}
    started = {"pid": 100, "started_at": "2026-03-01T11:00:00+00:00"}
    described = {"labels": {"zone": "a"}, "resources": {"cpus": 0.5}, "versions": {"airflow": "2.11.2"}}
    worker = Worker(kind=kind, **{**known, **started, **described, **others})
    mocker.patch.object(identity, "whoami", return_value=worker)


def test_a_start_is_written(database: Database) -> None:
    direct.record(a_task_instance())
    direct.record(a_task_instance())
    (row,) = database.attempts()
    assert (row["dag_id"], row["run_id"], row["task_id"], row["map_index"], row["try_number"]) == (
        "etl",
        "run-1",
        "extract",
        3,
        2,
    )
    assert (row["attribution"], row["state"], row["started_at"], row["process_count"]) == (
        "reported",
        "running",
        at(10),
        1,
    )
    assert row["load"] >= 0
    assert 0 < row["memory_free"] <= 1000
    assert database.workers()[0]["hostname"] == "host-1"


@pytest.mark.parametrize(("kind", "job_id"), [("local", 7), ("celery", None)])
def test_the_worker_is_written_as_it_describes_itself(
    database: Database, mocker: MockerFixture, kind: str, job_id: int | None
) -> None:
    a_worker_of(mocker, kind)
    direct.record(a_task_instance(queued_by_job_id=7))
    (row,) = database.workers()
    told = {"name": "w1", "kind": kind, "hostname": "host-1", "engine_name": "w1@host-1", "pid": 100, "job_id": job_id}
    assert {name: row[name] for name in told} == told
    assert (row["worker_id"], row["started_at"]) == (f"{kind}-1", at(-3600))
    assert (row["labels"], row["resources"], row["versions"]) == ({"zone": "a"}, {"cpus": 0.5}, {"airflow": "2.11.2"})


def test_a_worker_without_a_main_process(database: Database, mocker: MockerFixture) -> None:
    a_worker_of(mocker, "unknown", pid=None, started_at=None, engine_name=None)
    direct.record(a_task_instance())
    (row,) = database.workers()
    assert (row["pid"], row["started_at"], row["engine_name"]) == (None, None, None)
    assert database.attempts()[0]["running_beside"] is None


@pytest.mark.parametrize(
    ("kind", "left", "is_written"),
    [
        ("local", {}, False),  # dag.test(use_executor=True) with LocalExecutor
        ("CeleryExecutor", {}, False),  # `airflow tasks run --local` by hand
        ("celery", {}, True),
        ("edge", {}, True),
        ("kubernetes", {}, True),
        ("local", {"queued_dttm": at(5)}, True),
        ("local", {"queued_by_job_id": 7}, True),
        ("AwsEcsExecutor", {"external_executor_id": "arn:1"}, True),
    ],
)
def test_a_process_of_whoever_ran_the_task_is_no_worker(
    database: Database, mocker: MockerFixture, kind: str, left: dict[str, Any], is_written: bool
) -> None:
    a_worker_of(mocker, kind)
    unqueued = {"queued_dttm": None, "queued_by_job_id": None, "external_executor_id": None}
    direct.record(a_task_instance(**{**unqueued, **left}))
    assert [row["kind"] for row in database.workers()] == ([kind] if is_written else [])
    assert len(database.attempts()) == is_written


def test_both_ways_of_recording_write_the_same_worker(mocker: MockerFixture) -> None:
    """An Airflow that is upgraded keeps its workers."""
    a_worker_of(mocker, "celery")
    reported = worker_record(identity.whoami().as_dict(), job_id=7)
    assert direct.worker_record(identity.whoami(), job_id=7) == reported


def test_without_tables_it_says_what_to_run(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("DROP TABLE worker_insight_attempt"))
    with pytest.raises(RuntimeError, match=r"no such table.*`airflow-worker-insight db migrate`"):
        direct.record(a_task_instance())
