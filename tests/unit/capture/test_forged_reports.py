"""What a task can do with forged reports, and what not: each line of that list in docs/explanation/security.md."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, update

from airflow_worker_insight.cli.naming import find_worker
from airflow_worker_insight.domain.filters import WorkerFilter
from airflow_worker_insight.domain.workers import NewWorkerInstance
from airflow_worker_insight.executors.placement.rules import Rules
from airflow_worker_insight.registry import poll as fleet
from airflow_worker_insight.registry.liveness import REPORT_ONLY
from airflow_worker_insight.registry.observations import PollContext, PollResult, WorkerObservation
from airflow_worker_insight.registry.poll import refresh
from airflow_worker_insight.store.attempts import start as attempts_start
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.tables import worker
from airflow_worker_insight.store.workers import availability
from airflow_worker_insight.store.workers import queries as worker_queries
from airflow_worker_insight.store.workers.availability import set_availability
from airflow_worker_insight.store.workers.instances import merge, register
from tests.unit.capture.reports import RunningTry, a_report, a_running_try, airflow_3, push, stored_xcoms
from tests.unit.database import Database, on_both

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_mock import MockerFixture

    from airflow_worker_insight.capture.counters import Counters

pytestmark = [airflow_3, pytest.mark.usefixtures("claimer")]


class Celery:
    """Two Celery workers on two hosts that answer whoever looks."""

    name = "celery"

    def __init__(self, now: datetime) -> None:
        self.started = now - timedelta(hours=1)
        self.workers = {"w1@host-1": 100, "w2@host-2": 200}
        self.mailboxes = None

    def poll(self, view: PollContext) -> PollResult:
        return PollResult(
            tuple(
                WorkerObservation(
                    kind="celery",
                    engine_name=node,
                    hostname=node.partition("@")[2],
                    pid=pid,
                    started_at=self.started,
                    heartbeat_at=view.clock(),
                    queues=("default",),
                    concurrency=4,
                )
                for node, pid in self.workers.items()
            )
        )


@pytest.fixture
def celery(database: Database, mocker: MockerFixture) -> Celery:
    """Have two workers that were looked at."""
    with database.engine.connect() as connection:
        made = Celery(database_now(connection))
    mocker.patch.object(fleet, "configured_sources", return_value=[made])
    refresh(only_if_due=False)
    return made


@pytest.fixture
def report(celery: Celery) -> Callable[..., dict[str, Any]]:
    """Make a report as w1's own processes send it, but for what a task changes."""

    def made(one: RunningTry, **forged: Any) -> dict[str, Any]:
        own = {"worker_id": "celery-w1", "started_at": celery.started.isoformat(), "hostname": "host-1"}
        return a_report(one.try_id, **{**own, **forged})

    return made


def by_w2(celery: Celery, **forged: Any) -> dict[str, Any]:
    """Return what w2's own processes say of it, but for what a task changes."""
    own = {"worker_id": "celery-w2", "name": "w2@host-2", "engine_name": "w2@host-2", "pid": 200, "hostname": "host-2"}
    return {**own, "started_at": celery.started.isoformat(), **forged}


def found(database: Database, node: str) -> dict[str, Any]:
    """Return the engine's row of a node."""
    (row,) = [
        row for row in database.workers() if row["engine_name"] == node and row["engine_heartbeat_at"] is not None
    ]
    return row


def placed_among(database: Database) -> dict[str, str]:
    """Return the workers that an executor chooses among, and what is decided of each."""
    with database.engine.connect() as connection:
        live_workers, unavailable_reason = worker_queries.live_workers(connection, "celery")
        unavailable_workers = worker_queries.unavailable_workers(connection)
    assert unavailable_reason is None
    assert all(unavailable_workers.get(one.ref, "available") == one.availability for one in live_workers)
    return {one.display_name: one.availability for one in live_workers}


def named(database: Database) -> dict[str, list[str]]:
    """Return for each task the workers that its try names, by their engine's names, or ``made up``."""
    by_id = {row["worker_id"]: row for row in database.workers()}
    told: dict[str, list[str]] = {}
    for row in database.attempts():
        its = by_id[row["worker_id"]]
        told.setdefault(row["task_id"], []).append(
            its["engine_name"] if its["engine_heartbeat_at"] is not None else "made up"
        )
    return told


# --- what a task can still do ----------------------------------------------------------------------------------------


@on_both
def test_it_can_add_a_made_up_worker_to_its_own_try(database: Database, report: Callable[..., dict[str, Any]]) -> None:
    one = a_running_try(database)
    push(one, report(one))
    push(one, report(one, worker_id="x", name="x", engine_name="x", pid=7))
    assert named(database) == {"extract": ["w1@host-1", "made up"]}
    refresh(only_if_due=False)
    (made_up,) = [row for row in database.workers() if row["worker_id"] == "x"]
    assert (made_up["state"], made_up["state_reason"]) == (None, REPORT_ONLY)


def test_it_can_add_one_to_another_try_while_it_knows_that_ones_id(
    database: Database, report: Callable[..., dict[str, Any]]
) -> None:
    other = a_running_try(database, "other")
    push(other, report(other, worker_id="x", name="x", engine_name="x", pid=7))
    assert named(database) == {"other": ["made up"]}


def test_it_can_add_another_worker_of_that_trys_host_to_another_try(
    database: Database, celery: Celery, report: Callable[..., dict[str, Any]]
) -> None:
    celery.workers["w3@host-1"] = 300
    refresh(only_if_due=False)
    other = a_running_try(database, "other")
    push(other, report(other))
    push(other, report(other, worker_id="celery-w3", name="w3", engine_name="w3@host-1", pid=300))
    assert named(database) == {"other": ["w1@host-1", "w3@host-1"]}


def test_it_can_say_that_its_try_also_ran_on_another_worker_of_its_host(
    database: Database, celery: Celery, report: Callable[..., dict[str, Any]]
) -> None:
    celery.workers["w3@host-1"] = 300
    refresh(only_if_due=False)
    one = a_running_try(database)
    push(one, report(one))
    push(one, report(one, worker_id="celery-w3", name="w3", engine_name="w3@host-1", pid=300))
    assert named(database) == {"extract": ["w1@host-1", "w3@host-1"]}


def test_it_can_describe_the_worker_that_runs_it_where_its_report_is_the_first(
    database: Database, report: Callable[..., dict[str, Any]]
) -> None:
    one = a_running_try(database)
    push(one, report(one, name="etl-large", labels={"zone": "secure"}))
    row = found(database, "w1@host-1")
    assert (row["name"], row["labels"], row["engine_name"], row["pid"]) == (
        "etl-large",
        {"zone": "secure"},
        "w1@host-1",
        100,
    )


def test_it_can_describe_anew_a_worker_of_its_host_that_no_source_knows(database: Database) -> None:
    """Its name stays: decisions go by it."""
    one = a_running_try(database)
    push(one, a_report(one.try_id))
    push(one, a_report(one.try_id, name="renamed", labels={}))
    assert [(row["name"], row["labels"]) for row in database.workers()] == [("w1@host-1", {})]


def test_it_can_rename_a_worker_of_its_host_that_no_source_can_know(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "acme.AcmeExecutor")
    one = a_running_try(database)
    for name in ("a1", "renamed"):
        push(one, a_report(one.try_id, kind="AcmeExecutor", engine_name=None, name=name))
    assert [row["name"] for row in database.workers()] == ["renamed"]


@on_both
def test_it_can_say_on_a_host_that_no_worker_has_by_address_that_it_is_a_worker_without_one(
    database: Database, celery: Celery, report: Callable[..., dict[str, Any]]
) -> None:
    """Where Airflow calls hosts by address, nothing tells whose one is until a report of a worker has told it."""
    forging = a_running_try(database, "forging", hostname="10.0.0.9")
    push(forging, report(forging, **by_w2(celery, name="evil", labels={"zone": "secure"})))
    assert named(database) == {"forging": ["w2@host-2"]}
    row = found(database, "w2@host-2")
    assert (row["name"], row["labels"], row["state"]) == ("w2@host-2", {}, "online")


# --- what it cannot --------------------------------------------------------------------------------------------------


@on_both
def test_it_cannot_remove_or_change_what_its_own_worker_reported(
    database: Database, report: Callable[..., dict[str, Any]]
) -> None:
    one = a_running_try(database)
    push(one, report(one))
    before = found(database, "w1@host-1")
    for forged in (
        {"name": "evil", "labels": {"zone": "secure"}, "versions": {}, "resources": {"cpus": 1000}},
        {"engine_name": "other@host-1"},
        {"pid": 101},
        {"pid": None},
        {"kind": "edge"},
        {"hostname": "host-2"},
    ):
        push(one, report(one, **forged))
    after = found(database, "w1@host-1")
    changed = {name for name in before if before[name] != after[name]} - {"fingerprint"}
    assert changed == set()
    assert named(database)["extract"][0] == "w1@host-1"


@on_both
@pytest.mark.parametrize("recorded", ["host-2", "host-2.example.org", "pod-1", "10.0.0.2"])
def test_it_cannot_name_a_worker_of_another_host(
    database: Database, report: Callable[..., dict[str, Any]], recorded: str
) -> None:
    """All that w1 says of itself can be read by whoever may see workers."""
    if recorded == "10.0.0.2":
        real = a_running_try(database, "real", hostname="10.0.0.1")
        push(real, report(real, worker_id="w1"))
    before = found(database, "w1@host-1")
    one = a_running_try(database, hostname=recorded)
    push(one, report(one, name="evil", labels={"zone": "secure"}))
    refresh(only_if_due=False)
    refresh(only_if_due=False)
    assert named(database)["extract"] == ["made up"]
    after = found(database, "w1@host-1")
    for name in ("id", "name", "hostname", "labels", "reported_id", "state"):
        assert after[name] == before[name], name
    (row,) = [row for row in database.workers() if row["worker_id"] == "celery-w1"]
    assert row["hostname"] == recorded


@on_both
@pytest.mark.parametrize("pid", [None, 100, 7])
@pytest.mark.parametrize(("node", "host"), [("w1@host-1", "host-2"), ("w2@host-2", "host-2"), ("w1@host-1", "pod-1")])
def test_it_cannot_take_over_a_worker_that_has_run_nothing_yet(
    database: Database, celery: Celery, report: Callable[..., dict[str, Any]], pid: int | None, node: str, host: str
) -> None:
    before = found(database, node)
    forging = a_running_try(database, "forging", hostname=host)
    push(forging, report(forging, worker_id="x", name="evil", engine_name=node, pid=pid, labels={"zone": "secure"}))
    refresh(only_if_due=False)
    refresh(only_if_due=False)
    after = found(database, node)
    for name in ("id", "worker_id", "name", "engine_name", "pid", "labels", "engine_started_at", "state"):
        assert after[name] == before[name], name
    assert placed_among(database) == {"w1@host-1": "available", "w2@host-2": "available"}
    # The worker's own report is of that worker.
    one = a_running_try(database, "real", hostname=node.partition("@")[2])
    own = {} if node.startswith("w1") else by_w2(celery)
    push(one, report(one, **own))
    assert named(database) == {"forging": ["made up"], "real": [node]}


@on_both
@pytest.mark.parametrize("kind", ["edge", "local"])
def test_it_cannot_take_over_a_worker_of_another_source(database: Database, kind: str) -> None:
    """Edge's table tells no process and perhaps no start; a scheduler is known by the job that queued any try of it."""
    names = {"edge": ("e1", "e2"), "local": ("local@host-1", "local@host-2")}[kind]
    hosts = {"edge": ("e1", "e2"), "local": ("host-1", "host-2")}[kind]
    with database.engine.begin() as connection:
        now = database_now(connection)
        register(
            connection,
            [
                NewWorkerInstance(
                    kind, name, host, "online", job_id=7 + number if kind == "local" else None, heartbeat_at=now
                )
                for number, (name, host) in enumerate(zip(names, hosts, strict=True))
            ],
            now=now,
        )
    before = database.workers()[0]
    forged = {"kind": kind, "engine_name": names[0], "name": "evil", "labels": {"zone": "secure"}}
    sent_by = {"executor": "EdgeExecutor" if kind == "edge" else "LocalExecutor"}
    forging = a_running_try(database, "forging", hostname=hosts[1], queued_by_job_id=7, **sent_by)
    for pid in (None, 7):
        push(forging, a_report(forging.try_id, worker_id=f"x{pid}", pid=pid, **forged))
    assert database.workers()[0] == before
    assert named(database) == {"forging": ["made up", "made up"]}
    real = a_running_try(database, "real", hostname=hosts[0], queued_by_job_id=7, **sent_by)
    push(real, a_report(real.try_id, worker_id="real", kind=kind, engine_name=names[0], name=names[0]))
    assert named(database)["real"] == [names[0]]


@on_both
def test_it_cannot_silence_a_worker_by_giving_its_id_first(
    database: Database, report: Callable[..., dict[str, Any]]
) -> None:
    forging = a_running_try(database, "forging", hostname="host-2")
    push(forging, report(forging))
    for number in range(3):
        real = a_running_try(database, f"real-{number}")
        push(real, report(real))
        push(forging, report(forging))
    assert named(database) == {"forging": ["made up"], **{f"real-{number}": ["w1@host-1"] for number in range(3)}}
    with database.engine.connect() as connection:
        one = worker_queries.get_worker(connection, "celery-w1")
    assert one is not None
    assert one.engine_name == "w1@host-1"
    assert len(database.workers()) == 3


@on_both
def test_it_cannot_silence_a_worker_that_no_source_knows(database: Database, counters: Counters) -> None:
    forging = a_running_try(database, "forging", hostname="host-2")
    push(forging, a_report(forging.try_id))
    real = a_running_try(database, "real")
    for _ in range(2):
        push(real, a_report(real.try_id))
    hosts = {row["worker_id"]: row["hostname"] for row in database.workers()}
    assert [(row["task_id"], hosts[row["worker_id"]]) for row in database.attempts()] == [
        ("forging", "host-2"),
        ("real", "host-1"),
    ]
    assert counters.snapshot()["reports.contradicting"] >= 1


@on_both
def test_it_cannot_give_a_drained_worker_new_work(
    database: Database, celery: Celery, report: Callable[..., dict[str, Any]]
) -> None:
    with database.engine.begin() as connection:
        set_availability(
            connection,
            found(database, "w1@host-1")["worker_id"],
            "draining",
            note=None,
            changed_by="ada",
            now=database_now(connection),
        )
    for number, start in enumerate((0, -10, 10, 600, None)):
        one = a_running_try(database, f"task-{number}")
        told = None if start is None else (celery.started + timedelta(seconds=start)).isoformat()
        push(one, report(one, worker_id=f"x{number}", started_at=told, pid=100 if number else 7))
        assert placed_among(database)["w1@host-1"] == "draining"
        refresh(only_if_due=False)
        assert placed_among(database)["w1@host-1"] == "draining"


QUARANTINED_BEFORE = "old@host-1"


def a_life_in_quarantine(database: Database, *, has_ended: bool) -> None:
    """Have a worker that its engine told of, and that a person has put into quarantine."""
    with database.engine.begin() as connection:
        now = database_now(connection)
        before = NewWorkerInstance("celery", QUARANTINED_BEFORE, "host-1", "online", pid=5, heartbeat_at=now)
        register(connection, [before], now=now)
        its_id = connection.execute(
            select(worker.c.worker_id).where(worker.c.engine_name == QUARANTINED_BEFORE)
        ).scalar_one()
        set_availability(connection, its_id, "quarantined", note="disk", changed_by="ada", now=now)
        if has_ended:
            connection.execute(update(worker).where(worker.c.worker_id == its_id).values(state="offline", ended_at=now))


@on_both
@pytest.mark.parametrize("has_ended", [True, False])
def test_it_cannot_take_workers_out_of_work_by_the_quarantine_of_another_one(
    database: Database, report: Callable[..., dict[str, Any]], has_ended: bool
) -> None:
    a_life_in_quarantine(database, has_ended=has_ended)
    one = a_running_try(database)
    for number, node in enumerate(("w1@host-1", "w2@host-2")):
        forged = {"worker_id": f"x{number}", "pid": 7 + number}
        push(one, report(one, **forged, name=QUARANTINED_BEFORE, engine_name=QUARANTINED_BEFORE))
        push(one, report(one, **forged, name="z", engine_name=node))
        push(one, report(one, **{**forged, "worker_id": f"y{number}"}, name=QUARANTINED_BEFORE, engine_name=node))
        push(one, report(one, **{**forged, "worker_id": f"z{number}"}, name=QUARANTINED_BEFORE, engine_name=None))
        push(one, report(one, **{**forged, "worker_id": f"z{number}"}, name=QUARANTINED_BEFORE, engine_name=node))
    for _ in range(2):
        assert {name: placed_among(database)[name] for name in ("w1@host-1", "w2@host-2")} == {
            "w1@host-1": "available",
            "w2@host-2": "available",
        }
        with database.engine.connect() as connection:
            listed, _ = worker_queries.list_workers(connection, WorkerFilter(), limit=50, offset=0)
            read = worker_queries.get_worker(connection, found(database, "w1@host-1")["worker_id"])
        told = {row.engine_name: row.availability for row in listed if not row.is_report_only}
        assert (told["w1@host-1"], told["w2@host-2"]) == ("available", "available")
        assert read is not None
        assert read.availability == "available"
        refresh(only_if_due=False)


@on_both
@pytest.mark.parametrize("is_same_process", [True, False])
def test_it_cannot_have_a_worker_begin_with_the_quarantine_of_another_one(
    database: Database, celery: Celery, report: Callable[..., dict[str, Any]], is_same_process: bool
) -> None:
    """It knows the name of a worker that is to start, or that runs beside it and that no look has seen yet."""
    a_life_in_quarantine(database, has_ended=True)
    one = a_running_try(database)
    names = (QUARANTINED_BEFORE, "w3@host-1")
    for number, (name, engine_name) in enumerate([names, names[::-1]]):
        pid = 300 if is_same_process else 301
        push(one, report(one, worker_id=f"x{number}", pid=pid, name=name, engine_name=engine_name))
    celery.workers["w3@host-1"] = 300
    refresh(only_if_due=False)
    assert placed_among(database)["w3@host-1"] == "available"


@on_both
def test_it_cannot_hide_the_quarantine_of_a_worker_that_has_ended(
    database: Database, report: Callable[..., dict[str, Any]]
) -> None:
    a_life_in_quarantine(database, has_ended=True)
    one = a_running_try(database)
    push(one, report(one, worker_id="x", pid=7, name=QUARANTINED_BEFORE, engine_name=QUARANTINED_BEFORE))
    with database.engine.connect() as connection:
        listed, _ = worker_queries.list_workers(
            connection, WorkerFilter(availability="quarantined"), limit=50, offset=0
        )
    assert [row.engine_name for row in listed if not row.is_report_only] == [QUARANTINED_BEFORE]


@on_both
@pytest.mark.parametrize("skew", [0, 100], ids=["at once", "by the next look"])
def test_it_cannot_give_its_worker_the_name_of_another_one(
    database: Database, celery: Celery, report: Callable[..., dict[str, Any]], skew: int
) -> None:
    one = a_running_try(database)
    push(one, report(one, name="w2@host-2", started_at=(celery.started - timedelta(seconds=skew)).isoformat()))
    refresh(only_if_due=False)
    assert named(database) == {"extract": ["w1@host-1"]}
    assert found(database, "w1@host-1")["name"] == "w1@host-1"


@on_both
def test_a_decision_on_a_made_up_worker_is_of_no_other_one(
    database: Database, report: Callable[..., dict[str, Any]]
) -> None:
    """What bears the name of a worker without its process is not that worker."""
    one = a_running_try(database)
    push(one, report(one, worker_id="x", name="evil", pid=7))
    with database.engine.begin() as connection:
        decided = set_availability(
            connection, "x", "quarantined", note=None, changed_by="ada", now=database_now(connection)
        )
    assert decided is not None
    assert decided.availability == "quarantined"
    assert placed_among(database)["w1@host-1"] == "available"
    refresh(only_if_due=False)
    assert placed_among(database)["w1@host-1"] == "available"


@on_both
@pytest.mark.parametrize("executor", ["KubernetesExecutor", "LocalExecutor", "acme.AcmeExecutor"])
@pytest.mark.parametrize("hostname", ["host-2", "pod-1", "10.0.0.9"])
def test_a_try_of_another_executor_does_not_run_on_a_worker_of_celery(
    database: Database, celery: Celery, report: Callable[..., dict[str, Any]], executor: str, hostname: str
) -> None:
    before = found(database, "w2@host-2")
    one = a_running_try(database, hostname=hostname, executor=executor)
    for _ in range(2):
        push(one, report(one, **by_w2(celery, name="evil", labels={"zone": "secure"})))
        refresh(only_if_due=False)
    is_possible = executor.startswith("acme") and hostname == "host-2"
    assert named(database) == {"extract": ["w2@host-2" if is_possible else "made up"]}
    after = found(database, "w2@host-2")
    if not is_possible:
        for name in ("name", "hostname", "labels", "reported_id"):
            assert after[name] == before[name], name
    # The worker's own reports are of it, whatever was said before.
    real = a_running_try(database, "real", hostname="host-2")
    push(real, report(real, **by_w2(celery)))
    assert named(database)["real"] == ["w2@host-2"]


@on_both
def test_a_try_of_another_executor_does_not_run_on_a_scheduler(database: Database) -> None:
    with database.engine.begin() as connection:
        now = database_now(connection)
        scheduler = NewWorkerInstance("local", "local@host-1", "host-1", "online", job_id=7, heartbeat_at=now)
        register(connection, [scheduler], now=now)
    one = a_running_try(database, queued_by_job_id=7, executor="CeleryExecutor")
    push(one, a_report(one.try_id, kind="local", engine_name="local@host-1", name="local@host-1"))
    assert named(database) == {"extract": ["made up"]}


@on_both
def test_a_drain_of_a_second_entry_counts_for_its_worker(
    database: Database, celery: Celery, report: Callable[..., dict[str, Any]]
) -> None:
    """Clocks 10 s apart give a worker two entries until the next look, and a person may drain either."""
    one = a_running_try(database)
    push(one, report(one, started_at=(celery.started - timedelta(seconds=100)).isoformat()))
    assert named(database) == {"extract": ["made up"]}
    with database.engine.begin() as connection:
        set_availability(connection, "celery-w1", "draining", note=None, changed_by="ada", now=database_now(connection))
    assert placed_among(database)["w1@host-1"] == "draining"
    refresh(only_if_due=False)
    assert named(database) == {"extract": ["w1@host-1"]}
    assert placed_among(database) == {"w1@host-1": "draining", "w2@host-2": "available"}
    with database.engine.begin() as connection:
        freed = set_availability(
            connection, "celery-w1", "available", note=None, changed_by="ada", now=database_now(connection)
        )
    assert freed is not None
    assert (freed.engine_name, freed.availability, freed.labels) == ("w1@host-1", "available", {"zone": "a"})
    push(one, report(one, started_at=(celery.started - timedelta(seconds=100)).isoformat()))
    assert named(database) == {"extract": ["w1@host-1"]}


@on_both
def test_a_worker_does_not_escape_a_quarantine_by_a_new_name(
    database: Database, celery: Celery, report: Callable[..., dict[str, Any]]
) -> None:
    one = a_running_try(database)
    push(one, report(one))
    with database.engine.begin() as connection:
        set_availability(
            connection, "celery-w1", "quarantined", note=None, changed_by="ada", now=database_now(connection)
        )
    push(one, report(one, name="fresh", engine_name="fresh@host-1"))
    push(one, report(one, worker_id="x", name="w1@host-1", engine_name="fresh@host-1", pid=101))
    # It is started again.
    celery.started += timedelta(hours=1, minutes=30)
    celery.workers["w1@host-1"] = 101
    refresh(only_if_due=False)
    assert placed_among(database)["w1@host-1"] == "quarantined"


@on_both
def test_it_cannot_make_a_worker_be_chosen_for_a_label(
    database: Database, report: Callable[..., dict[str, Any]]
) -> None:
    one = a_running_try(database)
    push(one, report(one, labels={"zone": "secure"}))
    told = found(database, "w1@host-1")["labels"]
    assert Rules("least_loaded").labels_of_worker("w1@host-1", told) == {}
    assert Rules("least_loaded", trusts_reports=True).labels_of_worker("w1@host-1", told) == {"zone": "secure"}
    by_operator = Rules("least_loaded", worker_labels={"*@host-1": {"zone": "a"}}, trusts_reports=True)
    assert by_operator.labels_of_worker("w1@host-1", told) == {"zone": "a"}
    assert by_operator.labels_of_worker("w2@host-2", {}) == {}


def test_it_cannot_make_workers_up_without_end(database: Database, counters: Counters, mocker: MockerFixture) -> None:
    mocker.patch.object(attempts_start, "MAX_NEW_ON_A_HOST", 8)
    for number in range(4):
        one = a_running_try(database, f"task-{number}")
        for worker_number in range(9):
            name = f"w{number}-{worker_number}"
            push(one, a_report(one.try_id, worker_id=name, name=name, engine_name=name, pid=worker_number))
    assert len(database.workers()) == 8
    assert counters.snapshot() == {"reports.claimed": 8, "reports.dropped.too_many_workers": 28}
    assert stored_xcoms(database) == []


def test_a_dag_run_may_have_as_many_pods_as_tries(database: Database) -> None:
    for number in range(120):
        one = a_running_try(database, "mapped", number, hostname=f"pod-{number}")
        push(one, a_report(one.try_id, worker_id=f"pod-{number}", kind="kubernetes", engine_name=None))
    assert len(database.workers()) == 120


@pytest.mark.parametrize("part", ["labels", "resources", "versions"])
def test_it_cannot_describe_a_worker_at_length(database: Database, counters: Counters, part: str) -> None:
    one = a_running_try(database)
    push(one, a_report(one.try_id, **{part: {f"k{number}": "v" * 100 for number in range(12)}}))
    assert database.workers() == []
    assert counters.snapshot() == {"reports.dropped.malformed": 1}


@pytest.mark.parametrize("character", ["\u202e", "\u2066", "\u200b", "\ufeff", "\u0007", "\u2028"])
@pytest.mark.parametrize("field", ["name", "hostname", "engine_name", "kind", "labels", "versions"])
def test_it_cannot_use_a_name_that_looks_like_another(
    database: Database, counters: Counters, character: str, field: str
) -> None:
    one = a_running_try(database)
    name = f"w1{character}x"
    push(one, a_report(one.try_id, **{field: {"zone": name} if field in ("labels", "versions") else name}))
    assert database.workers() == []
    assert counters.snapshot() == {"reports.dropped.malformed": 1}


@pytest.mark.parametrize(
    "forged",
    [
        {"worker_id": "w1@host-1", "name": "x", "engine_name": None, "pid": 7},
        {"worker_id": "w1@host-1", "name": "x", "engine_name": None, "kind": "kubernetes"},
        {"worker_id": "x", "name": "w1@host-1", "engine_name": None, "pid": 7},
        {"worker_id": "x", "name": "x", "engine_name": "w1@host-1", "pid": 7},
    ],
    ids=str,
)
def test_it_cannot_make_a_command_mean_a_made_up_worker(
    database: Database, report: Callable[..., dict[str, Any]], forged: dict[str, Any]
) -> None:
    one = a_running_try(database)
    push(one, report(one, **forged))
    assert len(database.workers()) == 3
    with database.engine.connect() as connection:
        meant = find_worker(connection, "w1@host-1")
    assert meant.worker_id == found(database, "w1@host-1")["worker_id"]


# --- without malice --------------------------------------------------------------------------------------------------


@on_both
def test_a_dns_lookup_that_failed_once_makes_no_other_worker(
    database: Database, counters: Counters, caplog: pytest.LogCaptureFixture, report: Callable[..., dict[str, Any]]
) -> None:
    for number, hostname in enumerate(["host-1", "host-1.example.org", "host-1"]):
        one = a_running_try(database, f"task-{number}", hostname=hostname)
        push(one, report(one, hostname=hostname))
        assert found(database, "w1@host-1")["hostname"] == hostname
        bare = a_running_try(database, f"bare-{number}", hostname=hostname, executor="EdgeExecutor")
        push(bare, report(bare, worker_id="edge-1", kind="edge", engine_name="none", hostname=hostname))
    assert len(database.workers()) == 3
    assert counters.snapshot() == {"reports.claimed": 6}
    assert caplog.messages == []


def test_what_differs_is_said_once_and_the_key_is_not_blamed(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    for hostname in ("host-1", "host-2", "host-3"):
        one = a_running_try(database, hostname, hostname=hostname)
        push(one, a_report(one.try_id))
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "hostname host-1 before, host-2 now" in message
    assert "reserved" not in message


@on_both
def test_id_that_the_source_gave_a_worker_is_accepted_for_that_worker(
    database: Database, counters: Counters, report: Callable[..., dict[str, Any]]
) -> None:
    its_id = found(database, "w1@host-1")["worker_id"]
    other = a_running_try(database, "other", hostname="host-2")
    push(other, report(other, worker_id=its_id))
    assert counters.snapshot() == {"reports.dropped.contradicting": 1}
    one = a_running_try(database)
    push(one, report(one, worker_id=its_id))
    assert named(database) == {"extract": ["w1@host-1"]}
    assert stored_xcoms(database) == []


@on_both
def test_where_airflow_calls_hosts_otherwise_reports_are_of_their_workers(
    database: Database, celery: Celery, report: Callable[..., dict[str, Any]]
) -> None:
    """``[core] hostname_callable`` may return addresses."""
    one, other = (a_running_try(database, name, hostname=f"10.0.0.{name[-1]}") for name in ("t1", "t2"))
    push(other, report(other, **by_w2(celery)))
    push(one, report(one))
    forging = a_running_try(database, "forging", hostname="10.0.0.2")
    push(forging, report(forging))
    assert named(database) == {"forging": ["made up"], "t1": ["w1@host-1"], "t2": ["w2@host-2"]}


@on_both
def test_a_decision_on_an_entry_that_is_made_one_with_another_is_of_that_one(
    database: Database, celery: Celery, report: Callable[..., dict[str, Any]], mocker: MockerFixture
) -> None:
    one = a_running_try(database)
    push(one, report(one, started_at=(celery.started - timedelta(seconds=100)).isoformat()))
    read = availability.get_worker
    looks: list[Any] = []

    def look_meanwhile(connection: Any, worker_id: str) -> Any:
        row = read(connection, worker_id)
        if not looks:
            looks.append(row)
            with database.engine.begin() as other:
                rows = {row["worker_id"]: row["id"] for row in database.workers()}
                merge(other, found(database, "w1@host-1")["id"], rows["celery-w1"], now=database_now(other))
        return row

    mocker.patch.object(availability, "get_worker", side_effect=look_meanwhile)
    with database.engine.connect() as connection:
        decided = set_availability(
            connection, "celery-w1", "draining", note="disk", changed_by="ada", now=database_now(connection)
        )
    assert looks
    assert decided is not None
    assert (decided.engine_name, decided.availability) == ("w1@host-1", "draining")
