"""``attempts list`` and ``workers attempts``."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from airflow_worker_insight.store.attempts import queries as attempt_queries
from airflow_worker_insight.store.attempts.search import SearchLimits
from airflow_worker_insight.store.tables import attempt
from tests.unit.cli.fleet import add_worker
from tests.unit.cli.running import Printed, printed, read, refused, run
from tests.unit.database import add_run, add_try, at

if TYPE_CHECKING:
    from pytest_mock import MockerFixture

    from tests.unit.database import Database


@pytest.fixture
def tries(database: Database) -> Database:
    """Have three workers with a try each, an hour apart; of one of them Airflow knows the Dag no more."""
    with database.engine.begin() as connection:
        # First: an attempt belongs to the try that Airflow has when it starts.
        add_try(connection, add_run(connection), "by c-2", state="running", ended_at=None)
    for hour, (worker_id, name) in enumerate([("c-1", "w1"), ("c-2", "w2"), ("c-3", "w1")]):
        add_worker(database, worker_id, name=name, hostname=f"host-{hour}", when=at(hour * 3600))
    with database.engine.begin() as connection:
        connection.execute(
            attempt.update()
            .where(attempt.c.task_id == "by c-1")
            .values(state="failed", ended_at=at(90), try_number=2, map_index=5)
        )
    return database


def tasks(rows: list[dict[str, Any]]) -> list[str]:
    return [row["task_id"] for row in rows]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], ["by c-3", "by c-2", "by c-1"]),
        (["--limit", "1"], ["by c-3"]),
        (["--dag-id", "etl", "--run-id", "run-1"], ["by c-3", "by c-2", "by c-1"]),
        (["--dag-id", "elt"], []),
        (["--run-id", "run-2"], []),
        (["--task-id", "by c-2"], ["by c-2"]),
        (["--map-index", "5"], ["by c-1"]),
        (["--map-index", "-1"], ["by c-3", "by c-2"]),
        (["--try-number", "2"], ["by c-1"]),
        (["--worker-id", "c-3"], ["by c-3"]),
        (["--worker-name", "w1"], ["by c-3", "by c-1"]),
        (["--hostname", "host-1"], ["by c-2"]),
        (["--state", "failed"], ["by c-1"]),
        (["--state", "running"], ["by c-2"]),
        (["--started-at-gte", "2026-03-01T13:00"], ["by c-3", "by c-2"]),
        (["--started-at-lte", "2026-03-01T13:00"], ["by c-2", "by c-1"]),
    ],
    ids=" ".join,
)
def test_tries_are_filtered(tries: Database, capsys: Printed, options: list[str], found: list[str]) -> None:
    del tries
    assert tasks(read(capsys, "attempts", "list", *options)) == found


def test_a_window_that_ends_before_it_begins_is_refused(tries: Database) -> None:
    del tries
    said = refused("attempts", "list", "--started-at-gte", "2026-03-02", "--started-at-lte", "2026-03-01")
    assert "--started-at-gte is later" in said


def test_tries_that_were_not_looked_through_are_said_to_be_left_out(
    tries: Database, capsys: Printed, mocker: MockerFixture
) -> None:
    del tries
    find_attempts = attempt_queries.find_attempts
    for scanned, found, said in ((2, [], True), (3, ["by c-1"], False)):
        find = partial(find_attempts, limits=SearchLimits(scanned=scanned))
        mocker.patch.object(attempt_queries, "find_attempts", find)
        run("attempts", "list", "--state", "failed", "--all", "--output", "json")
        out, err = capsys.readouterr()
        assert tasks(json.loads(out)) == found
        assert ("Older tries were not searched" in err) is said


def test_the_tries_of_one_worker(tries: Database, capsys: Printed) -> None:
    del tries
    assert tasks(read(capsys, "workers", "attempts", "w2")) == ["by c-2"]
    assert tasks(read(capsys, "workers", "attempts", "c-1")) == ["by c-1"]
    assert read(capsys, "workers", "attempts", "c-1", "--state", "success") == []
    assert read(capsys, "workers", "attempts", "c-1", "--started-at-gte", "2026-03-02") == []


def test_a_try_is_printed_with_its_workers(tries: Database, capsys: Printed) -> None:
    del tries
    (row,) = read(capsys, "workers", "attempts", "c-1")
    assert row == {
        "dag_id": "etl",
        "run_id": "run-1",
        "task_id": "by c-1",
        "map_index": 5,
        "try_number": 2,
        "state": "failed",
        "started_at": "2026-03-01T12:00:00Z",
        "ended_at": "2026-03-01T12:01:30Z",
        "duration": 90.0,
        "attribution": "reported",
        "workers": [
            {
                "worker_id": "c-1",
                "name": "w1",
                "kind": "celery",
                "hostname": "host-0",
                "process_count": 1,
                "first_started_at": "2026-03-01T12:00:00Z",
                "last_started_at": "2026-03-01T12:00:00Z",
                "load": None,
                "memory_free": None,
                "running_beside": None,
            }
        ],
        "placement": None,
        "placement_detail": None,
        "deleted": None,
    }
    shown = " ".join(printed(capsys, "workers", "attempts", "c-1").split())
    assert "failed | 2026-03-01 12:00:00 | 2026-03-01 12:01:30 | 90.0 | reported | w1" in shown
