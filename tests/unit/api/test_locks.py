"""Others' locks on our tables: pages and REST say so in time and leave Airflow's connections to Airflow."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text

from airflow_worker_insight import compat
from airflow_worker_insight.api import database as web_database
from airflow_worker_insight.api.database import BREAKER_OPEN_SECONDS, MAX_CONNECTIONS, DatabaseBusyError
from airflow_worker_insight.store.session import CircuitBreaker
from airflow_worker_insight.store.tables import VERSION_TABLE, attempt, worker
from tests.unit.database import locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi.testclient import TestClient
    from pytest_mock import MockerFixture

    from tests.unit.database import Database

    ClientOf = Callable[..., TestClient]

pytestmark = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
airflow_3 = pytest.mark.skipif(not compat.is_airflow_3(), reason="Airflow 2.11 has FAB's views")

BURST = 50


@pytest.fixture(autouse=True)
def closed_breaker() -> Iterator[None]:
    web_database.breaker.close()
    yield
    web_database.breaker.close()


@airflow_3
@pytest.mark.parametrize(
    ("table", "path"),
    [
        (attempt.name, "panel?dag_id=etl&run_id=run-1&task_id=load&map_index=-1"),
        (worker.name, "workers"),
        (worker.name, "workers/w1"),
        (attempt.name, "attempts"),
        (attempt.name, "api/v1/attempts"),
        (worker.name, "api/v1/workers"),
        (VERSION_TABLE, "api/v1/workers"),
        (VERSION_TABLE, "api/v1/health"),
    ],
)
def test_a_locked_table_is_said_in_plain_words(database: Database, client_of: ClientOf, table: str, path: str) -> None:
    client = client_of()
    web_database.schema_gate.forget()
    with locked(database, table):
        answer = client.get(path)
    assert answer.status_code == 503
    assert "Try again in a few seconds" in answer.text
    if path.startswith("api"):
        assert answer.json()["detail"] == str(DatabaseBusyError())
    web_database.breaker.close()
    assert client.get(path).status_code in {200, 404}


@airflow_3
def test_a_decision_does_not_wait_either(database: Database, client_of: ClientOf) -> None:
    client = client_of()
    with locked(database, worker.name):
        answer = client.patch("api/v1/workers/w1", json={"availability": "draining"})
    assert (answer.status_code, answer.json()) == (503, {"detail": str(DatabaseBusyError())})


def test_after_a_time_out_no_request_takes_a_connection_for_a_while(database: Database, mocker: MockerFixture) -> None:
    now = [100.0]
    mocker.patch.object(web_database, "breaker", CircuitBreaker(BREAKER_OPEN_SECONDS, clock=lambda: now[0]))
    taken: list[Any] = []
    with locked(database, attempt.name):
        event.listen(database.engine, "checkout", lambda *arguments: taken.append(arguments))
        for _ in range(3):
            with pytest.raises(DatabaseBusyError), web_database.reading() as connection:
                connection.execute(text(f"SELECT count(*) FROM {attempt.name}"))
        assert len(taken) == 1
    now[0] += BREAKER_OPEN_SECONDS
    for _ in range(2):
        with web_database.reading() as connection:
            connection.execute(text(f"SELECT count(*) FROM {attempt.name}"))


def test_a_burst_of_requests_leaves_airflows_connections_to_airflow(database: Database) -> None:
    held = most = 0

    def count_one(*_: Any) -> None:
        nonlocal held, most
        held += 1
        most = max(most, held)

    def discount_one(*_: Any) -> None:
        nonlocal held
        held -= 1

    def ask(_: int) -> str:
        try:
            with web_database.reading() as connection:
                connection.execute(text(f"SELECT count(*) FROM {attempt.name}"))
        except DatabaseBusyError:
            return "busy"
        return "answered"

    with locked(database, attempt.name):
        event.listen(database.engine, "checkout", count_one)
        event.listen(database.engine, "checkin", discount_one)
        with ThreadPoolExecutor(BURST) as pool:
            assert set(pool.map(ask, range(BURST))) == {"busy"}
        assert 1 <= most <= MAX_CONNECTIONS
