"""``GET statistics`` on Airflow 3: what programs are told, who may ask for what, and what bad requests are told."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.analysis.rollup import Rollup
from airflow_worker_insight.domain.statistics import HOURS_KEPT
from airflow_worker_insight.domain.tries import TryOutcome
from airflow_worker_insight.store import statistics
from airflow_worker_insight.store.clock import database_now
from tests.unit.analysis.tries import a_try, a_worker
from tests.unit.database import NOON
from tests.unit.readers import READABLE, SECRET

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi.testclient import TestClient

    from tests.unit.database import Database

    ClientOf = Callable[..., TestClient]

WINDOW = "from=2026-03-01T12:00:00Z&to=2026-03-01T13:00:00Z"


@pytest.fixture
def rolled(dags: Database) -> Database:
    """Store statistics: of a readable Dag a failed try on w2, and two tries of a secret one on w1."""
    rollup = Rollup()
    rollup.add(
        a_try(0, 60, worker=a_worker("w2"), outcome=TryOutcome.FAILED, queued=-3, dag_id=READABLE), expected_failure=0.1
    )
    for _ in range(2):
        rollup.add(a_try(0, 10, dag_id=SECRET), expected_failure=0)
    rollup.add_slots(a_worker("w2"), 2, NOON, NOON + timedelta(seconds=60))
    with dags.engine.begin() as connection:
        statistics.add(connection, rollup.take())
    return dags


def tries(client: TestClient, query: str) -> dict[str | None, int]:
    answer = client.get(f"api/v1/statistics?{query}")
    assert answer.status_code == 200, answer.text
    return {row["group"]: row["tries"] for row in answer.json()["statistics"]}


@pytest.mark.usefixtures("rolled")
def test_statistics_are_what_the_contract_says(client_of: ClientOf) -> None:
    answer = client_of().get(f"api/v1/statistics?group_by=worker&bucket=hour&worker_name=w2&{WINDOW}")
    assert answer.json() == {
        "statistics": [
            {
                "group": "w2",
                "bucket": "2026-03-01T12:00:00Z",
                "tries": 1,
                "failed": 1,
                "lost": 0,
                "busy_seconds": 60.0,
                "utilization": 0.5,
                "mean_duration": 60.0,
                "mean_queue_seconds": 3.0,
            }
        ],
        "total_entries": 1,
        "total_is_exact": True,
        "from": "2026-03-01T12:00:00Z",
        "to": "2026-03-01T13:00:00Z",
    }


@pytest.mark.usefixtures("rolled")
def test_groups_of_tasks_are_of_readable_dags_and_those_of_workers_of_all(client_of: ClientOf) -> None:
    for name in ("few", "few jobs"):
        few = client_of(name)
        assert tries(few, f"group_by=dag&{WINDOW}") == {READABLE: 1}
        assert tries(few, f"group_by=task&{WINDOW}") == {f"{READABLE}.load": 1}
        assert few.get(f"api/v1/statistics?group_by=task&dag_id={SECRET}").status_code == 403
    assert tries(client_of(), f"group_by=dag&{WINDOW}") == {SECRET: 2, READABLE: 1}
    for group_by, found in (("worker", {"w1": 2, "w2": 1}), ("queue", {"default": 3}), ("label:zone", {None: 3})):
        assert tries(client_of("few jobs"), f"group_by={group_by}&{WINDOW}") == found
        assert tries(client_of("jobs only"), f"group_by={group_by}&{WINDOW}") == found
        assert client_of("few").get(f"api/v1/statistics?group_by={group_by}").status_code == 403


@pytest.mark.usefixtures("rolled")
def test_who_may_not_ask(client_of: ClientOf) -> None:
    for query in ("", "?group_by=dag", "?group_by=worker&state=failed"):
        assert client_of(None).get(f"api/v1/statistics{query}").status_code == 401
        assert client_of("nobody").get(f"api/v1/statistics{query}").status_code == 403
    # What is counted from tries is of Dags that the reader may see.
    assert client_of("jobs only").get("api/v1/statistics?group_by=worker&state=failed").status_code == 403
    assert client_of("few jobs").get(f"api/v1/statistics?group_by=worker&dag_id={SECRET}").status_code == 403


def test_the_window_is_that_of_the_last_24_hours_and_never_the_future(client_of: ClientOf, rolled: Database) -> None:
    with rolled.engine.connect() as connection:
        now = database_now(connection)
    for query in ("", "?to=9999-12-31T23:59:59Z"):
        answer = client_of().get(f"api/v1/statistics{query}").json()
        since, until = (datetime.fromisoformat(answer[name].replace("Z", "+00:00")) for name in ("from", "to"))
        assert now <= until <= now + timedelta(hours=1, minutes=10)
        assert timedelta(hours=24) <= until - since <= timedelta(hours=25)
    for query in ("to=0001-01-01T00:00:00Z", "from=9999-12-31T23:59:59Z", "from=0001-01-01T00:00:00Z&group_by=dag"):
        assert client_of().get(f"api/v1/statistics?{query}").status_code == 200


def test_hours_that_are_not_kept_are_refused(client_of: ClientOf, rolled: Database) -> None:
    with rolled.engine.begin() as connection:
        while statistics.merge_days(connection, NOON + timedelta(days=1)):
            pass
    old = (NOON - timedelta(hours=HOURS_KEPT)).astimezone(timezone.utc)
    answer = client_of().get(f"api/v1/statistics?bucket=hour&from={old:%Y-%m-%dT%H:%M:%SZ}")
    assert answer.status_code == 422
    assert answer.json() == {
        "detail": "Statistics by hour are kept for 14 days: ask for a from of 2026-02-16T00:00:00Z or later, or for "
        "bucket=day."
    }


@pytest.mark.usefixtures("dags")
@pytest.mark.parametrize(
    ("query", "where", "complaint"),
    [
        ("group_by=colour", ["query", "group_by"], "must be worker, host, queue, kind, dag, task, or label:"),
        ("group_by=label:", ["query", "group_by"], "a label's key, such as label:zone"),
        ("group_by=label:a%22b", ["query", "group_by"], "a label's key"),
        ("group_by=worker%0A", ["query", "group_by"], "must be worker"),
        ("bucket=week", ["query", "bucket"], "'hour', 'day' or 'none'"),
        ("from=yesterday", ["query", "from"], "ISO 8601"),
        ("to=1700000000", ["query", "to"], "ISO 8601"),
        ("since=2026-01-01T00:00:00Z", ["query", "since"], "Extra inputs are not permitted"),
        ("from=2026-01-01T00:00:00Z&to=2026-01-01T00:00:00Z", ["query"], "from must be earlier than to"),
        ("limit=1001", ["query", "limit"], "less than or equal to 1000"),
        ("group_by=queue&dag_id=etl&task_id=load", None, "leave out dag_id and task_id, or group otherwise"),
        ("state=running", None, "state must be success or failed"),
    ],
)
def test_what_is_wrong_is_said(client_of: ClientOf, query: str, where: list[str] | None, complaint: str) -> None:
    answer = client_of().get(f"api/v1/statistics?{query}")
    assert answer.status_code == 422
    detail: Any = answer.json()["detail"]
    if where is None:
        assert complaint in detail
    else:
        assert [problem["loc"] for problem in detail] == [where]
        assert complaint in detail[0]["msg"]
