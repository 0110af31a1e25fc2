"""The lists of Flask-AppBuilder's own: what its filters, order and paging make of the store, and for whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from flask_appbuilder.widgets import ListWidget
from flask_babel import Babel
from sqlalchemy import update

from airflow_worker_insight.api import database as web_database
from airflow_worker_insight.compat import fab as airflow_fab
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.store.tables import worker
from airflow_worker_insight.ui import formatting
from tests.unit.database import a_worker, at, record_start

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.database import Database

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(airflow_fab, "flask_list_widget", lambda: ListWidget)
    from airflow_worker_insight.fab import lists as fab_lists

    return fab_lists


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Be somebody who may see jobs and read the Dags of this set."""
    dag_ids = {"etl"}
    monkeypatch.setattr(airflow_fab, "flask_user", object)
    monkeypatch.setattr(airflow_fab, "flask_may_see_jobs", lambda _: True)
    monkeypatch.setattr(airflow_fab, "flask_readable_dag_ids", lambda _: dag_ids)
    web_database.schema_check.forget()
    app = Flask("airflow")
    Babel(app)
    with app.test_request_context("/"):
        yield dag_ids


@pytest.fixture
def fleet(database: Database) -> Database:
    with database.engine.begin() as connection:
        for number, dag_id in enumerate(("etl", "etl", "secret"), 1):
            key = TryKey(dag_id, "run-1", HOSTILE, -1, number)
            one = a_worker(f"w{number % 2 + 1}", name=f"w{number % 2 + 1}{HOSTILE}")
            record_start(connection, key, one, try_started_at=at(number), state="running", now=at(number))
        connection.execute(update(worker).values(state="lost", ended_at=at(60), queues=["q"], running=1, concurrency=4))
        connection.execute(update(worker).where(worker.c.worker_id == "w2").values(availability="draining"))
    return database


def found(datamodel: Any, column: str, *filters: tuple[str, str, Any], **options: Any) -> tuple[int, list[str]]:
    """Ask as Flask-AppBuilder does, by the names that its filters have on the page."""
    chosen = datamodel.get_filters(datamodel.get_columns_list())
    for name, text, value in filters:
        (kind,) = [one for one in chosen.get_search_filters()[name] if str(one.name) == text]
        chosen.add_filter(name, type(kind), value)
    total, rows = datamodel.query(chosen, **options)
    return total, [str(getattr(row, column)) for row in rows]


@pytest.mark.parametrize(
    ("filters", "hosts"),
    [
        ([], 2),
        ([("name", "Contains", "W1")], 1),
        ([("state", "Equal to", "lost")], 2),
        ([("state", "Equal to", "Lost")], 2),
        ([("state", "Equal to", "online")], 0),
        ([("state", "Equal to", "")], 0),
        ([("state", "Equal to", "of the future")], 0),
        ([("availability", "Equal to", "draining")], 1),
        ([("availability", "Equal to", "Draining")], 1),
        ([("availability", "Equal to", "of the future")], 0),
        ([("queue", "Equal to", "q")], 2),
        ([("label", "Equal to", "zone=a")], 2),
        ([("label", "Equal to", "zone=b")], 0),
        ([("kind", "Equal to", "celery"), ("hostname", "Equal to", "host-1")], 2),
        ([("kind", "Equal to", "Celery")], 2),
        ([("kind", "Equal to", "BatchExecutor")], 0),
        ([("kind", "Equal to", "celery"), ("kind", "Equal to", "edge")], 0),
        ([("last_seen_at", "Greater than", "2026-03-01 11:00:00")], 2),
        ([("last_seen_at", "Greater than", "2026-03-02 11:00:00")], 0),
        ([("last_seen_at", "Greater than", "yesterday")], 2),
        ([("last_seen_at", "Greater than", "0001-01-01T00:00:00+14:00")], 2),
        ([("last_seen_at", "Smaller than", "2026-03-01 11:00:00")], 0),
        ([("last_seen_at", "Smaller than", "2026-03-02 11:00:00")], 2),
    ],
)
@pytest.mark.usefixtures("fleet", "reader")
def test_filters_of_workers(lists: Any, filters: list[Any], hosts: int) -> None:
    assert found(lists.Workers(), "hostname", *filters) == (hosts, ["host-1"] * hosts)


@pytest.mark.parametrize(
    ("filters", "found_ids"),
    [
        ([("Greater than", "2026-03-01 12:00:03")], ["w2"]),
        ([("Smaller than", "2026-03-01 12:00:02")], ["w1"]),
        ([("Greater than", "2026-03-01 12:00:02"), ("Smaller than", "2026-03-01 12:00:02")], ["w1"]),
        ([("Greater than", "2026-03-01 11:00:00"), ("Greater than", "2026-03-01 12:00:03")], ["w2"]),
        ([("Greater than", "2026-03-01 12:00:03"), ("Greater than", "2026-03-01 11:00:00")], ["w2"]),
        ([("Smaller than", "2026-03-01 12:00:02"), ("Smaller than", "2026-03-02 12:00:00")], ["w1"]),
    ],
)
@pytest.mark.usefixtures("reader")
def test_when_workers_were_last_seen_counts_whatever_their_state(
    lists: Any, fleet: Database, filters: list[tuple[str, str]], found_ids: list[str]
) -> None:
    with fleet.engine.begin() as connection:
        connection.execute(update(worker).values(state="online", ended_at=None))
        for worker_id, second in (("w1", 2), ("w2", 3)):
            connection.execute(update(worker).where(worker.c.worker_id == worker_id).values(last_seen_at=at(second)))
    chosen = [("last_seen_at", *one) for one in filters]
    assert found(lists.Workers(), "pk", *chosen) == (len(found_ids), found_ids)


@pytest.mark.usefixtures("fleet", "reader")
def test_order_and_pages_of_workers(lists: Any) -> None:
    down = found(lists.Workers(), "pk", order_column="name", order_direction="desc", page_size=1)
    assert down == (2, ["w2"])
    assert found(lists.Workers(), "pk", order_column="name", order_direction="asc", page=1, page_size=1) == (2, ["w2"])


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({"page": -1}, ["w1", "w2"]),
        ({"page": 10**30}, []),
        ({"page_size": -1}, ["w1"]),
        ({"page_size": 10**30}, ["w1", "w2"]),
    ],
)
@pytest.mark.usefixtures("fleet", "reader")
def test_pages_that_there_are_not_are_brought_to_those_that_there_are(
    lists: Any, options: dict[str, int], ids: list[str]
) -> None:
    assert found(lists.Workers(), "pk", order_column="name", **options) == (2, ids)


@pytest.mark.usefixtures("fleet", "reader")
def test_what_nothing_can_be_finds_nothing(lists: Any) -> None:
    nothing: tuple[int, list[str]] = (0, [])
    for order in ("password", "-name", "queue", "name desc"):
        assert found(lists.Workers(), "pk", order_column=order, order_direction="asc") == nothing
        assert found(lists.Attempts(), "pk", order_column=order, order_direction="desc") == nothing
    for column in ("hostname", "queue", "label", "kind", "state", "availability"):
        assert found(lists.Workers(), "pk", (column, "Equal to", "a\0")) == nothing
    assert found(lists.Workers(), "pk", ("name", "Contains", "\0")) == nothing
    for column in ("dag_id", "run_id", "task_id", "worker_name", "hostname", "state", "try_number"):
        assert found(lists.Attempts(), "pk", (column, "Equal to", "\0")) == nothing


@pytest.mark.usefixtures("fleet", "reader")
def test_names_are_links_and_never_markup(lists: Any) -> None:
    _, names = found(lists.Workers(), "name")
    assert names[0] == ('<a href="/workerinsight/workers/w1">w1&lt;script&gt;alert(1)&lt;/script&gt;</a>')
    _, tasks = found(lists.Attempts(), "task_id")
    assert all("<script>" not in task and "/workerinsight/panel?dag_id=etl&amp;" in task for task in tasks)


@pytest.mark.parametrize(
    ("filters", "tries"),
    [
        ([], ["2", "1"]),
        ([("dag_id", "Equal to", "etl")], ["2", "1"]),
        ([("dag_id", "Equal to", "secret")], []),
        ([("try_number", "Equal to", "1")], ["1"]),
        ([("try_number", "Equal to", "first")], []),
        ([("try_number", "Equal to", "9" * 30)], []),
        ([("worker_name", "Equal to", f"w1{HOSTILE}")], ["2"]),
        ([("state", "Equal to", "of the future")], []),
        ([("started_at", "Greater than", "2026-03-01 12:00:02")], ["2"]),
        ([("started_at", "Smaller than", "2026-03-01 12:00:01")], ["1"]),
    ],
)
@pytest.mark.usefixtures("fleet", "reader")
def test_filters_of_tries_and_the_dags_that_may_be_read(lists: Any, filters: list[Any], tries: list[str]) -> None:
    assert found(lists.Attempts(), "try_number", *filters) == (len(tries), tries)


@pytest.mark.usefixtures("fleet")
def test_a_reader_of_no_dag_finds_no_try(lists: Any, reader: set[str]) -> None:
    reader.clear()
    assert found(lists.Attempts(), "try_number") == (0, [])


@pytest.mark.usefixtures("tries", "reader")
def test_the_state_of_a_try_is_taken_as_it_is_shown(lists: Any) -> None:
    for written in ("failed", "Failed"):
        assert found(lists.Attempts(), "try_number", ("state", "Equal to", written)) == (1, ["1"])


def test_a_word_is_taken_as_it_is_shown_and_as_it_is_stored(lists: Any) -> None:
    states = ("success", "up_for_retry")
    for written in ("up_for_retry", "Up For Retry", " up for retry "):
        assert lists._stored(written, states, formatting.state) == "up_for_retry"
    # An executor's own name is no word of ours.
    assert lists._stored("BatchExecutor", formatting.KINDS, formatting.kind) == "BatchExecutor"
    assert lists._stored(None, states, formatting.state) is None
