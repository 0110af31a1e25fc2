"""``placements list``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight.domain.reasons import PlacementReason
from airflow_worker_insight.store import placements
from airflow_worker_insight.store.placements import Placement
from airflow_worker_insight.store.workers.upsert import upsert_worker
from tests.unit.cli.running import Printed, printed, read, run
from tests.unit.database import NOON, a_worker, add_run, add_try, at

if TYPE_CHECKING:
    from tests.unit.database import Database


@pytest.fixture
def placed(database: Database) -> Database:
    """Have a try that waits and one that is placed."""
    with database.engine.begin() as connection:
        ref = upsert_worker(connection, a_worker("c-1", name="w1"), now=NOON)
        dag_run = add_run(connection, state="running", ended_at=None)
        waits, queued = (
            add_try(connection, dag_run, task_id, state="queued", ended_at=None, queue="heavy")
            for task_id in ("waits", "placed")
        )
        placements.write(connection, [Placement(waits, PlacementReason.FULL, "waits: all are full")], now=NOON)
        placements.write(
            connection, [Placement(queued, PlacementReason.LEAST_LOADED, "w1: least loaded", ref)], now=at(1)
        )
    return database


@pytest.mark.usefixtures("placed")
@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], ["waits", "placed"]),
        (["--limit", "1"], ["waits"]),
        (["--all"], ["waits", "placed"]),
        (["--state", "waiting"], ["waits"]),
        (["--state", "placed"], ["placed"]),
        (["--dag-id", "etl", "--run-id", "run-1", "--task-id", "placed"], ["placed"]),
        (["--dag-id", "sales"], []),
        (["--worker-id", "c-1"], ["placed"]),
        (["--reason", "waits_full"], ["waits"]),
    ],
    ids=" ".join,
)
def test_what_is_listed(capsys: Printed, options: list[str], found: list[str]) -> None:
    assert [row["task_id"] for row in read(capsys, "placements", "list", *options)] == found


@pytest.mark.usefixtures("placed")
def test_a_program_is_told_what_rest_tells(capsys: Printed) -> None:
    for output in ("json", "yaml"):
        waits, queued = read(capsys, "placements", "list", output=output)
        assert (waits["state"], waits["worker"], waits["detail"]) == ("waiting", None, "all are full")
        assert (waits["since"], waits["queue"], waits["reason"]) == ("2026-03-01T12:00:00Z", "heavy", "waits_full")
        assert queued["worker"] == {"worker_id": "c-1", "name": "w1"}


@pytest.mark.usefixtures("placed")
def test_a_person_is_told_why(capsys: Printed) -> None:
    (line,) = [line for line in printed(capsys, "placements", "list", "-o", "plain").splitlines() if "full" in line]
    assert "waits" in line
    assert "2026-03-01 12:00:00" in line


@pytest.mark.usefixtures("database")
def test_without_an_executor_that_places_it_says_so(capsys: Printed) -> None:
    run("placements", "list")
    assert "no executor of this package" in capsys.readouterr().err


@pytest.mark.usefixtures("database")
def test_a_reason_that_there_is_not(capsys: Printed) -> None:
    with pytest.raises(SystemExit) as ended:
        run("placements", "list", "--reason", "mood")
    assert ended.value.code == 2
    assert "waits_full" in capsys.readouterr().err
