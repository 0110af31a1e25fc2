"""``workers …``: lists, one worker, and what a person decides."""

from __future__ import annotations

import getpass
import json
import re
from argparse import Namespace
from typing import Any

import pytest
from sqlalchemy import select

from airflow_worker_insight.api import service
from airflow_worker_insight.api.queries import AttemptQuery, ServiceQuery, WorkerQuery
from airflow_worker_insight.api.responses import (
    AttemptsResponse,
    ServicesResponse,
    WorkerDetailResponse,
    WorkersResponse,
)
from airflow_worker_insight.cli.common import read_pages
from airflow_worker_insight.store.tables import change
from tests.unit.cli.fleet import add_worker, looked_at
from tests.unit.cli.running import Printed, printed, read, refused, run
from tests.unit.database import Database, a_worker, at

GONE = {"state": "offline", "ended_at": at(9)}


@pytest.fixture
def fleet(database: Database) -> Database:
    """Have four workers, two of which are alive."""
    looked_at(database)
    add_worker(database, "c-1", name="w1@a", hostname="a", queues=["default"], concurrency=4, running=1)
    add_worker(database, "c-0", name="w1@a", hostname="a", queues=["default"], state="lost", ended_at=at(5))
    add_worker(database, "e-1", name="edge-1", kind="edge", hostname="b", state="unresponsive", labels={"zone": "b"})
    add_worker(database, "x-1", name="local@c", kind="local", hostname="c", availability="draining", **GONE)
    return database


def ids(capsys: Printed, *options: str) -> list[str]:
    return sorted(row["worker_id"] for row in read(capsys, "workers", "list", *options))


# --- lists -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], ["c-0", "c-1", "e-1", "x-1"]),
        (["--state", "online"], ["c-1"]),
        (["--state", "online,unresponsive"], ["c-1", "e-1"]),
        (["--state", "unknown"], []),
        (["--kind", "edge"], ["e-1"]),
        (["--name", "w1@a"], ["c-0", "c-1"]),
        (["--hostname", "c"], ["x-1"]),
        (["--label", "zone=b"], ["e-1"]),
        (["--queue", "default"], ["c-0", "c-1"]),
        (["--availability", "draining"], ["x-1"]),
        (["--search", "EDGE"], ["e-1"]),
        (["--kind", "celery", "--state", "lost"], ["c-0"]),
    ],
    ids=" ".join,
)
def test_workers_are_filtered(fleet: Database, capsys: Printed, options: list[str], found: list[str]) -> None:
    del fleet
    assert ids(capsys, *options) == found


def test_a_row_says_how_the_worker_is(fleet: Database, capsys: Printed) -> None:
    del fleet
    (row,) = read(capsys, "workers", "list", "--state", "online")
    now = row.pop("last_seen_at")
    assert re.fullmatch(r"2026-03-01T1[0-9:]+Z", now)
    assert row == {
        "worker_id": "c-1",
        "name": "w1@a",
        "kind": "celery",
        "hostname": "a",
        "pid": 100,
        "state": "online",
        "state_reason": None,
        "availability": "available",
        "availability_note": None,
        "availability_changed_by": None,
        "availability_changed_at": None,
        "enforcement": None,
        "queues": ["default"],
        "concurrency": 4,
        "running": 1,
        "started_at": "2026-03-01T11:00:00Z",
        "registered_at": "2026-03-01T12:00:00Z",
        "ended_at": None,
        "labels": {"zone": "a"},
        "resources": {"cpus": 4},
        "versions": {"airflow": "3"},
    }


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_a_program_gets_what_the_rest_api_gives(fleet: Database, capsys: Printed, output: str) -> None:
    """Numbers are numbers, all times have one form, and who decided what and why is there."""
    del fleet
    run("workers", "quarantine", "c-1", "--note", "disk")
    listed = read(capsys, "workers", "list", output=output)
    workers = WorkersResponse.model_validate(service.list_workers(WorkerQuery()))
    assert listed == workers.model_dump(mode="json")["workers"]
    (decided,) = [row for row in listed if row["worker_id"] == "c-1"]
    assert (decided["availability_note"], decided["availability_changed_by"]) == ("disk", getpass.getuser())
    (shown,) = read(capsys, "workers", "show", "c-1", output=output)
    assert shown.pop("engine_name") is None
    assert shown == WorkerDetailResponse.model_validate(service.get_worker("c-1")).model_dump(mode="json")
    services = read(capsys, "services", "list", output=output)
    found = ServicesResponse.model_validate(service.list_services(ServiceQuery())).model_dump(mode="json")
    assert services == found["services"]
    tries = read(capsys, "attempts", "list", output=output)
    page = service.list_attempts(AttemptQuery(), dag_ids={"etl"}, may_see_workers=True)
    assert tries == AttemptsResponse.model_validate(page).model_dump(mode="json")["attempts"]


def test_a_state_that_nobody_has_looked_at_is_unknown(
    database: Database, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    add_worker(database, "c-1")
    (row,) = read(capsys, "workers", "list")
    assert row["state"] is None
    assert "airflow-worker-insight refresh" in row["state_reason"]
    assert " unknown " in printed(capsys, "workers", "list")
    shown = printed(capsys, "workers", "show", "c-1")
    assert "airflow-worker-insight refresh" in shown


def test_lists_are_short_unless_all_is_asked_for(database: Database, capsys: Printed) -> None:
    for number in range(3):
        add_worker(database, f"c-{number}")
    assert ids(capsys, "--limit", "2") == ["c-1", "c-2"]
    run("workers", "list", "--limit", "2")
    assert "2 of 3 workers shown: use --limit or --all" in capsys.readouterr().err
    run("workers", "list", "--limit", "3")
    assert capsys.readouterr().err == ""
    assert ids(capsys, "--limit", "1", "--all") == ["c-0", "c-1", "c-2"]


@pytest.mark.parametrize(
    ("limit", "all_rows", "found", "queries"),
    [(50, True, 5, [(2, 0), (2, 2), (2, 4)]), (3, False, 3, [(2, 0), (1, 2)]), (9, False, 5, [(2, 0), (2, 2), (2, 4)])],
)
def test_rows_are_read_page_by_page(limit: int, all_rows: bool, found: int, queries: list[tuple[int, int]]) -> None:
    asked: list[tuple[int, int]] = []

    def read_page(limit: int, offset: int) -> tuple[list[int], int]:
        asked.append((limit, offset))
        return list(range(5))[offset : offset + limit], 5

    arguments = Namespace(limit=limit, all=all_rows)
    assert read_pages(read_page, arguments, page_size=2) == (list(range(found)), 5)
    assert asked == queries


def test_an_empty_installation_has_no_workers(database: Database, capsys: Printed) -> None:
    del database
    assert read(capsys, "workers", "list") == []
    assert printed(capsys, "workers", "list") == "No data found\n"


# --- how it is printed -----------------------------------------------------------------------------------------------

NASTY = "[red]w1[/] :bomb: [/nope] 'quoted' <b>"


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_a_name_is_printed_as_it_is(database: Database, capsys: Printed, output: str) -> None:
    """Airflow's own console would read markup in it, and fail at some."""
    add_worker(database, "c-1", name=NASTY, labels={"note": "x" * 240})
    (row,) = read(capsys, "workers", "list", output=output)
    assert row["name"] == NASTY
    (row,) = read(capsys, "workers", "show", "c-1", output=output)
    assert row["labels"] == {"note": "x" * 240}


@pytest.mark.parametrize("output", ["table", "plain"])
def test_a_table_has_a_name_as_it_is(database: Database, capsys: Printed, output: str) -> None:
    add_worker(database, "c-1", name=NASTY)
    shown = printed(capsys, "workers", "list", "--output", output)
    assert "[red]w1[/] :bomb: [/nope]" in " ".join(shown.split())
    assert "None" not in shown
    assert shown.split()[0] == "worker_id"


# --- one worker ------------------------------------------------------------------------------------------------------


def test_a_worker_is_shown_with_all_that_is_known(fleet: Database, capsys: Printed) -> None:
    del fleet
    run("workers", "quarantine", "e-1", "--note", "disk is full")
    (row,) = read(capsys, "workers", "show", "e-1")
    assert row["labels"] == {"zone": "b"}
    assert row["versions"] == a_worker().versions
    assert row["resources"] == {"cpus": 4}
    assert (row["state"], row["availability"], row["pid"]) == ("unresponsive", "quarantined", 100)
    (entry,) = row["changes"]
    del entry["changed_at"]
    decision = {"state": None, "availability": "quarantined", "reason": "disk is full"}
    assert entry == {**decision, "changed_by": getpass.getuser()}

    shown = " ".join(printed(capsys, "workers", "show", "e-1").split())
    for part in ("availability | quarantined", "labels | zone=b", "disk is full", getpass.getuser()):
        assert part in shown


def test_a_worker_is_named_by_its_id_or_by_a_name_that_only_one_living_worker_has(
    fleet: Database, capsys: Printed
) -> None:
    def meant(named: str) -> Any:
        return read(capsys, "workers", "show", named)[0]["worker_id"]

    assert (meant("c-0"), meant("c-1"), meant("x-1")) == ("c-0", "c-1", "x-1")
    assert (meant("w1@a"), meant("edge-1")) == ("c-1", "e-1")
    add_worker(fleet, "c-2", name="other", engine_name="w9@a")
    assert meant("w9@a") == "c-2"


def test_a_name_that_several_living_workers_have_is_refused(fleet: Database) -> None:
    add_worker(fleet, "c-2", name="w1@a", hostname="z")
    for command in ("show", "attempts", "drain", "quarantine", "release"):
        said = refused("workers", command, "w1@a").splitlines()
        assert said[0].startswith("2 living workers have the name 'w1@a'")
        assert [line.split() for line in said[1:]] == [
            ["c-2", "w1@a", "celery", "z", "online"],
            ["c-1", "w1@a", "celery", "a", "online"],
        ]
    assert {row["availability"] for row in fleet.workers()} == {"available", "draining"}


def test_a_name_that_no_living_worker_has_is_refused_with_those_that_had_it(fleet: Database) -> None:
    del fleet
    said = refused("workers", "drain", "local@c")
    assert said.startswith("No living worker has the name 'local@c'")
    assert "x-1  local@c  local  c  offline" in said


def test_what_only_reads_takes_the_latest_life_of_a_name_and_says_so(fleet: Database, capsys: Printed) -> None:
    add_worker(fleet, "x-2", name="local@c", kind="local", hostname="c", pid=7, state="lost", ended_at=at(12))
    for command, shown in (("show", "worker_id"), ("attempts", "task_id")):
        run("workers", command, "local@c", "--output", "json")
        said = capsys.readouterr()
        assert json.loads(said.out)[0][shown].endswith("x-2")
        assert said.err == "No living worker has the name 'local@c': this is its latest instance, x-2 (lost).\n"
    # That of an ID needs no word.
    run("workers", "show", "x-1")
    assert capsys.readouterr().err == ""
    for command in ("drain", "quarantine", "release"):
        said = refused("workers", command, "local@c")
        assert said.startswith("No living worker has the name 'local@c'; ended instances:")


def test_a_worker_that_is_not_known_is_refused_with_those_that_are_like_it(fleet: Database) -> None:
    del fleet
    said = refused("workers", "show", "edge")
    assert said.startswith("No worker 'edge' was found")
    assert "e-1  edge-1" in said
    assert "workers list" in refused("workers", "show", "nobody")


def test_an_error_names_some_and_not_thousands(fleet: Database) -> None:
    for number in range(20):
        add_worker(fleet, f"pod-{number}", name="same")
    said = refused("workers", "show", "same").splitlines()
    assert said[0].startswith("20 living workers")
    assert (len(said), said[-1].strip()) == (12, "…")


# --- decisions -------------------------------------------------------------------------------------------------------


def history(database: Database) -> list[tuple[str, str | None, str]]:
    with database.engine.connect() as connection:
        rows = connection.execute(select(change.c.availability, change.c.reason, change.c.changed_by))
        return [tuple(row) for row in rows]


def test_a_decision_is_kept_with_its_note_and_author(fleet: Database, capsys: Printed) -> None:
    assert printed(capsys, "workers", "drain", "w1@a", "--note", " new kernel ") == "w1@a (c-1) is draining now.\n"
    assert printed(capsys, "workers", "quarantine", "c-1") == "w1@a (c-1) is quarantined now.\n"
    assert printed(capsys, "workers", "release", "c-1") == "w1@a (c-1) is available now.\n"
    me = getpass.getuser()
    assert history(fleet) == [("draining", "new kernel", me), ("quarantined", None, me), ("available", None, me)]


def test_help_says_who_heeds_a_decision(capsys: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "2000")
    for command in ("drain", "quarantine"):
        with pytest.raises(SystemExit):
            run("workers", command, "--help")
        said = " ".join(capsys.readouterr().out.split())
        for part in (
            "stops consuming its queues",
            "maintenance mode",
            "With other executors nothing keeps work off it",
        ):
            assert part in said
    with pytest.raises(SystemExit):
        run("workers", "--help")
    assert "Give a worker" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("is_enforced", "said"), [(True, "stops consuming its queues"), (False, "enforce_availability is off")]
)
def test_a_decision_says_what_it_does(
    fleet: Database, capsys: Printed, monkeypatch: pytest.MonkeyPatch, is_enforced: bool, said: str
) -> None:
    del fleet
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__ENFORCE_AVAILABILITY", str(is_enforced))
    for command in ("drain", "quarantine"):
        run("workers", command, "c-1")
        printed = capsys.readouterr()
        assert printed.out.endswith(" now.\n")
        assert said in printed.err
    run("workers", "release", "c-1")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("answer", ["", "n", None], indirect=True)
def test_a_quarantine_is_not_weakened_unasked(fleet: Database, answer: list[str]) -> None:
    run("workers", "quarantine", "c-1", "--note", "disk")
    assert refused("workers", "drain", "c-1") == "Nothing was changed. Use --yes to drain it without confirmation."
    assert f"was quarantined by {getpass.getuser()}: disk. A drain is weaker" in answer[0]
    assert history(fleet) == [("quarantined", "disk", getpass.getuser())]


@pytest.mark.parametrize("answer", ["y"], indirect=True)
def test_a_quarantine_is_weakened_after_a_yes(fleet: Database, answer: list[str], capsys: Printed) -> None:
    del answer
    run("workers", "quarantine", "c-1")
    assert "is draining now" in printed(capsys, "workers", "drain", "c-1")
    assert fleet.workers()[0]["availability"] == "draining"


def test_a_quarantine_is_weakened_with_yes(fleet: Database, capsys: Printed) -> None:
    run("workers", "quarantine", "c-1")
    assert "is draining now" in printed(capsys, "workers", "drain", "c-1", "--yes")
    assert fleet.workers()[0]["availability"] == "draining"


def test_nothing_is_decided_of_a_whole_host(database: Database) -> None:
    from airflow_worker_insight.store.attempts.close import ensure_hosts

    with database.engine.begin() as connection:
        ensure_hosts(connection, [a_worker("host-1", host_only=True)], now=at(0))
    assert "all workers of a host" in refused("workers", "drain", "host-1")
    assert history(database) == []


def test_a_life_that_is_over_is_not_decided_of_but_named_with_the_one_that_is_meant(fleet: Database) -> None:
    assert "draining ends with it" in refused("workers", "drain", "x-1")
    assert history(fleet) == []
    run("workers", "quarantine", "x-1", "--note", "memory fails")
    add_worker(fleet, "x-2", name="local@c", kind="local", hostname="c", pid=7)
    assert fleet.workers()[-1]["availability"] == "quarantined"
    for command in ("drain", "quarantine"):
        said = refused("workers", command, "x-1", "--note", "more")
        assert said == "x-1 has ended: change x-2 instead, the current instance of its name."
    assert fleet.workers()[-2]["availability"] == "quarantined"


def test_json_is_all_that_is_printed(fleet: Database, capsys: Printed) -> None:
    del fleet
    run("workers", "list", "-o", "json")
    assert len(json.loads(capsys.readouterr().out)) == 4
