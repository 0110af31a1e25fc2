"""What the Edge provider's table says of its workers."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from airflow_worker_insight.api import service
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.registry.observations import PollContext, SourceUnavailableError, WorkerObservation
from airflow_worker_insight.registry.poll import refresh
from airflow_worker_insight.registry.sources.edge import COMMENT, EdgeSource
from airflow_worker_insight.store.clock import database_now
from tests.unit.database import NOON, Database, at, on_both

if TYPE_CHECKING:
    from sqlalchemy import Table

edge_models = pytest.importorskip("airflow.providers.edge3.models.edge_worker")


@pytest.fixture
def table(database: Database) -> Table:
    """Return the provider's table, made where the installed version leaves that to the executor."""
    found: Table = edge_models.EdgeWorkerModel.__table__
    found.create(database.engine, checkfirst=True)
    return found


def write(database: Database, table: Table, name: str = "edge-1", **others: Any) -> None:
    known: dict[str, Any] = {
        "worker_name": name,
        "state": "idle",
        "queues": "['default', 'large']",
        "first_online": at(-3600),
        "last_update": NOON,
        "jobs_active": 0,
        "jobs_taken": 0,
        "jobs_success": 0,
        "jobs_failed": 0,
        "concurrency": None,
        "sysinfo": {"airflow_version": "3.3.2", "edge_provider_version": "4.3.2", "concurrency": 4},
        **others,
    }
    if table.c.sysinfo.type.python_type is str and not isinstance(known["sysinfo"], str):
        known["sysinfo"] = json.dumps(known["sysinfo"])
    row = {column: value for column, value in known.items() if column in table.c}
    with database.engine.begin() as connection:
        connection.execute(table.delete().where(table.c.worker_name == name))
        connection.execute(table.insert().values(row))


def poll() -> tuple[WorkerObservation, ...]:
    view = PollContext(lambda: NOON, NOON, None, timedelta(seconds=30), (), metadata_database.engine().connect)
    return EdgeSource().poll(view).observations


@on_both
def test_an_edge_worker_is_seen_with_what_it_says_of_itself(database: Database, table: Table) -> None:
    write(database, table)
    (observation,) = poll()
    assert observation == WorkerObservation(
        kind="edge",
        engine_name="edge-1",
        hostname="edge-1",
        heartbeat_at=NOON,
        queues=("default", "large"),
        concurrency=4,
        versions={"airflow": "3.3.2", "edge_provider": "4.3.2"},
    )


def test_its_start_tells_instances_apart(database: Database, table: Table) -> None:
    told = {"worker_start_time": "2026-03-01T11:00:00.123456", "python_version": "3.11.2 (main, Jan 2026) [GCC]"}
    write(database, table, sysinfo=told)
    (observation,) = poll()
    assert observation.started_at == at(-3600) + timedelta(microseconds=123456)
    assert observation.versions == {"python": "3.11.2"}


@pytest.mark.parametrize(
    ("state", "has_left", "is_unavailable"),
    [
        ("starting", False, False),
        ("running", False, False),
        ("unknown", False, False),
        ("terminating", False, False),
        ("maintenance mode", False, True),
        ("offline", True, False),
        ("offline maintenance", True, True),
    ],
)
def test_states_of_the_provider(
    database: Database, table: Table, state: str, has_left: bool, is_unavailable: bool
) -> None:
    write(database, table, state=state)
    (observation,) = poll()
    assert (observation.has_left, bool(observation.unavailable_reason)) == (has_left, is_unavailable)


@pytest.mark.parametrize("queues", [None, "", "default", "[", "{'a': 1}", "__import__('os')", "[" * 5000])
@pytest.mark.parametrize("sysinfo", [{}, {"concurrency": -1, "worker_start_time": 7}, {"concurrency": "many"}])
def test_nonsense_is_left_out(database: Database, table: Table, queues: str | None, sysinfo: Any) -> None:
    write(database, table, queues=queues, sysinfo=sysinfo)
    (observation,) = poll()
    assert (observation.queues, observation.concurrency, observation.started_at) == (None, None, None)


def test_markup_and_control_characters_in_queues_are_only_text(database: Database, table: Table) -> None:
    write(database, table, queues=str(["<b>", "a\x00b", "", "x" * 300]))
    (observation,) = poll()
    assert observation.queues == ("<b>", "a b", "x" * 256)


@pytest.mark.parametrize("number", [121, 2_000])
def test_of_many_queues_all_are_known(database: Database, table: Table, number: int) -> None:
    queues = sorted(f"queue-{each}" for each in range(number))
    write(database, table, queues=str(queues))
    (observation,) = poll()
    assert list(observation.queues) == queues


def test_without_its_table_the_source_says_what_to_do(database: Database, table: Table) -> None:
    table.drop(database.engine)
    with pytest.raises(SourceUnavailableError, match="airflow db migrate"):
        poll()


@on_both
def test_the_states_of_an_edge_worker(database: Database, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only workers that are there become known; one that shuts down gracefully and comes back is a new instance."""
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "EdgeExecutor")
    with database.engine.connect() as connection:
        now = database_now(connection)
    write(database, table, last_update=now)
    write(database, table, "long gone", last_update=now - timedelta(days=30), state="offline")
    write(database, table, "forgotten", last_update=now - timedelta(days=30), state="unknown")
    steps = [
        ("idle", 0, ["online"]),
        ("idle", 1, ["online"]),
        ("offline", 2, ["offline"]),
        ("offline", 2, ["offline"]),
        ("starting", 3, ["offline", "online"]),
        ("running", 4, ["offline", "online"]),
    ]
    for state, seconds, expected in steps:
        write(database, table, state=state, last_update=now + timedelta(seconds=seconds))
        refresh(only_if_due=False)
        assert [row["state"] for row in database.workers()] == expected, (state, seconds)
    (first, second) = database.workers()
    assert first["name"] == second["name"] == "edge-1"
    assert first["worker_id"] != second["worker_id"]
    assert second["queues"] == ["default", "large"]


def edge_state(database: Database, table: Table) -> tuple[str, str | None]:
    with database.engine.connect() as connection:
        row = connection.execute(select(table.c.state, table.c.maintenance_comment)).one()
    return str(getattr(row.state, "value", row.state)), row.maintenance_comment


def enforcement_of(worker_id: str) -> tuple[str, str] | None:
    found = service.get_worker(worker_id)["enforcement"]
    return None if found is None else (found.state.value, found.text)


@on_both
def test_quarantined_edge_worker_is_in_maintenance_until_it_is_released(
    database: Database, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "EdgeExecutor")
    with database.engine.connect() as connection:
        now = database_now(connection)
    write(database, table, last_update=now)
    refresh(only_if_due=False)
    ((worker_id,),) = ((row["worker_id"],) for row in database.workers())
    assert enforcement_of(worker_id) is None

    service.change_availability(worker_id, "quarantined", note="disk", changed_by="ann")
    assert enforcement_of(worker_id) == ("requested", "The worker has not confirmed yet that it takes no new work.")
    refresh(only_if_due=False)
    assert edge_state(database, table) == ("maintenance request", COMMENT)
    assert enforcement_of(worker_id) == ("requested", "The worker has not confirmed yet that it takes no new work.")
    # What the worker does with its next heartbeat.
    write(database, table, state="maintenance pending", maintenance_comment=COMMENT, last_update=now)
    refresh(only_if_due=False)
    assert enforcement_of(worker_id) == ("in_effect", "The worker is in maintenance mode.")

    service.change_availability(worker_id, "available", note=None, changed_by="ann")
    refresh(only_if_due=False)
    assert edge_state(database, table) == ("maintenance exit", None)
    write(database, table, state="running", last_update=now)
    refresh(only_if_due=False)
    assert enforcement_of(worker_id) is None


@on_both
def test_maintenance_of_the_providers_own_page_is_left_alone(
    database: Database, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "EdgeExecutor")
    with database.engine.connect() as connection:
        now = database_now(connection)
    write(database, table, state="maintenance mode", maintenance_comment="new disk", last_update=now)
    refresh(only_if_due=False)
    (row,) = database.workers()
    assert "maintenance mode" in row["state_reason"]
    for availability in ("quarantined", "available"):
        service.change_availability(row["worker_id"], availability, note=None, changed_by="ann")
        refresh(only_if_due=False)
    assert edge_state(database, table) == ("maintenance mode", "new disk")
    assert enforcement_of(row["worker_id"]) is None


@on_both
def test_what_was_enforced_is_undone_when_that_is_switched_off(
    database: Database, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "EdgeExecutor")
    with database.engine.connect() as connection:
        now = database_now(connection)
    write(database, table, last_update=now)
    refresh(only_if_due=False)
    (row,) = database.workers()
    service.change_availability(row["worker_id"], "draining", note=None, changed_by="ann")
    refresh(only_if_due=False)
    assert edge_state(database, table) == ("maintenance request", COMMENT)
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__ENFORCE_AVAILABILITY", "False")
    refresh(only_if_due=False)
    assert edge_state(database, table) == ("maintenance exit", None)
    found = enforcement_of(row["worker_id"])
    assert found is not None
    assert found[0] == "not_enforced"


@on_both
def test_drained_edge_worker_works_again_after_its_restart(
    database: Database, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider asks a worker that was stopped in maintenance to go into maintenance again when it starts."""
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "EdgeExecutor")
    with database.engine.connect() as connection:
        now = database_now(connection)
    write(database, table, last_update=now)
    refresh(only_if_due=False)
    (row,) = database.workers()
    service.change_availability(row["worker_id"], "draining", note=None, changed_by="ann")
    for second, state in enumerate(("maintenance mode", "offline maintenance", "maintenance request")):
        seen = now + timedelta(seconds=second)
        write(database, table, state=state, maintenance_comment=COMMENT, last_update=seen)
        refresh(only_if_due=False)
    assert edge_state(database, table) == ("maintenance exit", None)
