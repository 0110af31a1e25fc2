"""The page of waiting tries."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert

from airflow_worker_insight.domain.reasons import PlacementReason
from airflow_worker_insight.store import placements
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.placements import Placement
from airflow_worker_insight.store.tables import worker_source
from airflow_worker_insight.store.workers.upsert import upsert_worker
from airflow_worker_insight.ui.query_params import InvalidUrlError, WaitingParams, parse_waiting_params
from tests.unit.database import NOON, a_worker, add_run, add_try
from tests.unit.readers import READABLE, SECRET

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi.testclient import TestClient

    from tests.unit.database import Database

    ClientOf = Callable[..., TestClient]

EXECUTOR = "airflow_worker_insight.executors.celery.WorkerInsightCeleryExecutor"
LEFT_OUT = "no worker of the queue default is available; left out: w1@host-1 (draining)"


def polled(dags: Database, *, ago: timedelta = timedelta(), error: str | None = None) -> None:
    """Have Celery's workers polled."""
    with dags.engine.begin() as connection:
        now = database_now(connection)
        values = {"name": "celery", "due_at": now, "looked_at": now - ago, "error": error}
        connection.execute(insert(worker_source).values(values))


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the executor for Celery's workers configured."""
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", EXECUTOR)


@pytest.fixture
def waiting(dags: Database, places: None) -> Database:  # noqa: ARG001
    """Have waiting tries and a running one in a readable Dag, and a waiting one in a secret Dag."""
    polled(dags)
    with dags.engine.begin() as connection:
        now = database_now(connection)
        ref = upsert_worker(connection, a_worker("w1"), now=NOON)
        for dag_id in (READABLE, SECRET):
            run = add_run(connection, dag_id, state="running", ended_at=None)
            for task_id, state, reason, line, on in (
                ("held", "queued", PlacementReason.NOT_AVAILABLE, f"waits: {LEFT_OUT}", None),
                ("queued", "queued", PlacementReason.LEAST_LOADED, "w1@host-1: least loaded of one worker", ref),
                ("shared", "queued", PlacementReason.SHARED_QUEUE, "sent to the shared queue default", None),
                ("runs", "running", PlacementReason.LEAST_LOADED, "w1@host-1: least loaded of one worker", ref),
            ):
                if dag_id == SECRET and task_id != "held":
                    continue
                key = add_try(connection, run, task_id, state=state, ended_at=None, queue="heavy")
                one = Placement(key, reason, line, on, placed_at=now - timedelta(minutes=3))
                placements.write(connection, [one], now=now)
    return dags


@pytest.mark.usefixtures("waiting")
def test_waiting_tries_are_listed_with_their_reasons(client_of: ClientOf) -> None:
    page = client_of().get("waiting").text
    assert "4 tries" in page
    assert f"N{LEFT_OUT[1:]}" in page
    assert "w1@host-1: least loaded of one worker" in page
    assert 'href="/worker-insight/workers/w1"' in page
    assert "task_id=held&amp;map_index=-1&amp;try_number=1" in page
    assert page.count("3 min ago") == 4
    assert "Not placed yet" in page
    assert "Shared queue" in page
    assert "task_id=runs" not in page
    # It keeps itself up to date.
    assert 'data-wi-refresh="5"' in page
    fragment = client_of().get("waiting/fragment").text
    assert fragment.strip().startswith('<div class="wi" id="wi-waiting"')


@pytest.mark.usefixtures("waiting")
@pytest.mark.parametrize(
    ("query", "tasks"),
    [
        ("", {"held", "queued", "shared"}),
        ("state=waiting", {"held"}),
        ("state=placed", {"queued", "shared"}),
        ("reason=waits_not_available", {"held"}),
        ("worker=w1", {"queued"}),
        ("worker=w1%40host-1", {"queued"}),
        ("worker=w2", set()),
        ("dag_id=etl&run_id=run-1&task_id=shared", {"shared"}),
    ],
)
def test_waiting_tries_are_filtered(client_of: ClientOf, query: str, tasks: set[str]) -> None:
    page = client_of().get(f"waiting?{query}").text
    assert {task for task in ("held", "queued", "shared") if f"task_id={task}&amp;" in page} == tasks
    assert ("No tries found" in page) == (not tasks)


@pytest.mark.usefixtures("waiting")
def test_reasons_to_filter_by_are_given_as_in_the_list(client_of: ClientOf) -> None:
    page = client_of().get("waiting?reason=waits_bad_wish").text
    assert '<option value="waits_bad_wish" selected>Its placement request is invalid</option>' in page
    assert "Reason: Its placement request is invalid" in page


@pytest.mark.usefixtures("waiting")
def test_waiting_tries_of_hidden_dags_are_neither_listed_nor_counted(client_of: ClientOf) -> None:
    page = client_of("few").get("waiting").text
    assert SECRET not in page
    assert "3 tries" in page
    # Of the reasons only that which names no worker.
    assert "left out" not in page
    assert "No worker of its queue is available" in page
    assert 'href="/worker-insight/workers/w1"' not in page
    assert "No tries found" in client_of("few").get(f"waiting?dag_id={SECRET}").text
    assert client_of("nobody").get("waiting").status_code == 403
    assert client_of(None).get("waiting/fragment").status_code == 401


@pytest.mark.usefixtures("places")
def test_empty_list_says_that_no_try_waits(client_of: ClientOf, dags: Database) -> None:
    polled(dags)
    page = client_of().get("waiting").text
    assert "No waiting tries" in page
    assert 'data-wi-refresh="15"' in page


@pytest.mark.usefixtures("dags")
def test_page_says_that_no_placing_executor_is_configured(client_of: ClientOf) -> None:
    page = client_of().get("waiting").text
    assert "No executor of Worker Insight is configured" in page
    assert EXECUTOR in page
    assert "No waiting tries" not in page


@pytest.mark.usefixtures("places")
@pytest.mark.parametrize(
    ("poll", "text"),
    [
        (None, "Celery workers have never been checked."),
        ({"ago": timedelta(minutes=7)}, "Celery workers were last checked 7 min ago."),
        ({"error": "No route to redis."}, "The last check of Celery workers failed: No route to redis."),
    ],
)
def test_page_warns_that_workers_cannot_be_reached(
    client_of: ClientOf, dags: Database, monkeypatch: pytest.MonkeyPatch, poll: dict[str, Any] | None, text: str
) -> None:
    if poll is not None:
        polled(dags, **poll)
    page = client_of().get("waiting").text
    assert "Workers cannot be reached" in page
    assert text in page
    assert "it sends tasks without choosing a worker" in page
    assert "No waiting tries" not in page
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__WHEN_WORKERS_UNSEEN", "hold")
    assert "The executor holds tasks" in client_of().get("waiting").text
    # What went wrong may name hosts.
    assert "No route" not in client_of("few").get("waiting").text


def test_url_is_parsed_as_written() -> None:
    params = WaitingParams("waiting", "etl", "run+1", "load", "w1@host", "waits_full", 50)
    assert parse_waiting_params(params.query().removeprefix("?")) == params
    assert WaitingParams().query() == ""
    for query in ("state=queued", "reason=mood", "colour=red", "offset=10001"):
        with pytest.raises(InvalidUrlError):
            parse_waiting_params(query)
