"""``findings …``: lists, one finding, and dismissing it."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight.store import findings
from airflow_worker_insight.store.clock import database_now
from tests.unit.cli.running import Printed, printed, read, refused, run
from tests.unit.findings import a_finding, ended

if TYPE_CHECKING:
    from tests.unit.database import Database


@pytest.fixture
def ids(database: Database) -> list[int]:
    """Have a finding about a worker, one about a task and one that has ended."""
    found = [
        a_finding(1),
        a_finding(2, dimension="task", unit="etl/eat", subject="etl.eat", outcome="lost", shares=[], worker_ids=[]),
        ended(a_finding(3, "w9")),
    ]
    with database.engine.begin() as connection:
        return [new.finding_id for new in findings.sync(connection, found, now=database_now(connection)).new]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], [1, 0, 2]),
        (["--limit", "1"], [1]),
        (["--state", "open,recovering"], [1, 0]),
        (["--state", "closed"], [2]),
        (["--subject-kind", "worker"], [0, 2]),
        (["--outcome", "lost"], [1]),
        (["--worker-id", "w9"], [2]),
        (["--dag-id", "etl", "--subject-kind", "task"], [1]),
        (["--dag-id", "sales"], []),
    ],
)
def test_what_is_listed(capsys: Printed, ids: list[int], options: list[str], found: list[int]) -> None:
    listed = [row["finding_id"] for row in read(capsys, "findings", "list", *options)]
    # Two were found at the same time.
    assert listed == [ids[position] for position in found]


def test_a_program_is_told_what_rest_tells(capsys: Printed, ids: list[int]) -> None:
    for output in ("json", "yaml"):
        (row,) = read(capsys, "findings", "list", "--worker-id", "w3", output=output)
        assert (row["found_at"], row["tasks"][0]["task_id"]) == ("2026-03-01T12:10:00Z", "load")
        (shown,) = read(capsys, "findings", "show", str(ids[0]), output=output)
        assert [entry["action"] for entry in shown.pop("history")] == ["found"]
        assert shown == row


def test_a_person_is_told_in_sentences(capsys: Printed, ids: list[int]) -> None:
    assert "w3@host-1" in printed(capsys, "findings", "list")
    shown = printed(capsys, "findings", "show", str(ids[2]), "-o", "plain")
    assert "w9@host-1 fails more than its peers on the same tasks" in shown
    assert "etl.load (9 of 10)" in shown
    assert "Well again" in shown


def test_a_finding_is_dismissed_once(capsys: Printed, ids: list[int]) -> None:
    said = printed(capsys, "findings", "dismiss", str(ids[0]), "--note", "disk replaced")
    assert "is closed now" in said
    (shown,) = read(capsys, "findings", "show", str(ids[0]))
    latest = shown["history"][0]
    assert (latest["action"], latest["actor"], latest["reason"]) == ("dismissed", getpass.getuser(), "disk replaced")
    assert "is closed already. A user dismissed it." in refused("findings", "dismiss", str(ids[0]))
    assert "Well again" in refused("findings", "dismiss", str(ids[2]))


@pytest.mark.usefixtures("ids")
def test_a_finding_that_there_is_not(capsys: Printed) -> None:
    for command in ("show", "dismiss"):
        assert "No finding has the ID 999" in refused("findings", command, "999")
        with pytest.raises(SystemExit):
            run("findings", command, "x")
    assert "whole number" in capsys.readouterr().err
