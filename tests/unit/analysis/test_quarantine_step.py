"""The automatic quarantine through the database: what is stored, and that it goes on from there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, update

from airflow_worker_insight import config
from airflow_worker_insight.analysis import quarantine_step, thread
from airflow_worker_insight.analysis.job import Sinks
from airflow_worker_insight.domain.enforcement import Enforcement
from airflow_worker_insight.domain.filters import AllDags, FindingFilter
from airflow_worker_insight.domain.states import ANALYSIS
from airflow_worker_insight.store import enforcement, findings
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.store.tables import worker, worker_source
from airflow_worker_insight.store.workers import queries
from airflow_worker_insight.store.workers.availability import set_availability
from airflow_worker_insight.store.workers.upsert import upsert_worker
from tests.unit.analysis.deployment import Deployment, Scripted, run
from tests.unit.database import NOON, a_worker, add_run, add_try, at, on_both, record_start
from tests.unit.findings import a_finding, ended

if TYPE_CHECKING:
    from airflow_worker_insight.domain.workers import WorkerRow
    from tests.unit.database import Database

MINUTE = 60
DAY = 24 * 60


class Fleet:
    """Three Celery workers, of which w1 fails; times are minutes after noon."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.tries = 0
        with database.engine.begin() as connection:
            for name in ("w1", "w2", "w3"):
                upsert_worker(connection, a_worker(name, engine_name=f"{name}@host-1", labels={}), now=NOON)
        go_online(database)

    def find(self, *found: dict[str, Any], minute: float) -> list[int]:
        with self.database.engine.begin() as connection:
            changes = findings.sync(connection, found, now=at(minute * MINUTE))
        return [each.finding_id for each in changes.new]

    def decide(self, minute: float) -> str:
        """Let the analysis decide; return the availability of w1."""
        with self.database.engine.begin() as connection:
            quarantine_step.quarantine(connection, at(minute * MINUTE))
        return self.w1.availability

    def order(self, availability: str, *, minute: float, note: str | None = None) -> None:
        """Set the availability of w1 as a user does."""
        with self.database.engine.begin() as connection:
            set_availability(connection, "w1", availability, note=note, changed_by="ann", now=at(minute * MINUTE))

    def start(self, number: int, *, minute: float) -> None:
        """Have so many tries start on w1."""
        with self.database.engine.begin() as connection:
            for _ in range(number):
                self.tries += 1
                run = add_run(connection, "etl", f"run-{self.tries}", state="running", ended_at=None)
                began = at(minute * MINUTE)
                key = add_try(connection, run, "load", state="running", started_at=began, ended_at=None)
                known = a_worker("w1", engine_name="w1@host-1", labels={})
                record_start(connection, key, known, try_started_at=began, now=began)

    @property
    def w1(self) -> WorkerRow:
        with self.database.engine.connect() as connection:
            row = queries.get_worker(connection, "w1")
        assert row is not None
        return row

    @property
    def authors(self) -> list[tuple[str | None, str | None]]:
        with self.database.engine.connect() as connection:
            entries = queries.changes(connection, self.w1, limit=20)
        return [(entry.availability, entry.changed_by) for entry in reversed(entries) if entry.availability]

    def history(self, finding_id: int) -> list[tuple[str, str | None]]:
        with self.database.engine.connect() as connection:
            entries = findings.events(connection, [finding_id])[finding_id]
        return [(str(entry.action), entry.actor) for entry in reversed(entries)]


def strong(**others: Any) -> dict[str, Any]:
    return a_finding(1, "w1", **{"evidence": 9000.0, **others})


@on_both
def test_found_quarantined_probed_quarantined_again_well_released(database: Database) -> None:
    fleet = Fleet(database)
    (finding_id,) = fleet.find(strong(evidence=4000.0), minute=11)
    assert fleet.decide(11) == fleet.decide(12) == "available"
    fleet.find(strong(), minute=13)
    assert fleet.decide(13) == fleet.decide(42) == "quarantined"
    # It starts nothing before the probe.
    assert fleet.decide(43) == "available"
    fleet.start(2, minute=44)
    assert fleet.decide(44.5) == "available"
    fleet.start(1, minute=45)
    assert fleet.decide(45) == fleet.decide(104) == "quarantined"
    assert fleet.decide(105) == fleet.decide(109.9) == "available"
    assert fleet.decide(110) == "quarantined"
    fleet.find(ended(strong(), second=115 * MINUTE), minute=115)
    assert fleet.decide(116) == fleet.decide(1000) == "available"
    assert fleet.history(finding_id) == [
        ("found", None),
        ("not_quarantined", None),
        ("quarantined", None),
        ("probe", None),
        ("quarantined", None),
        ("probe", None),
        ("quarantined", None),
        ("closed", None),
        ("released", None),
    ]
    turns = ["quarantined", "available"] * 3
    assert fleet.authors == [(availability, ANALYSIS) for availability in turns]


@on_both
def test_well_during_a_probe_it_stays_available(database: Database) -> None:
    fleet = Fleet(database)
    (finding_id,) = fleet.find(strong(), minute=11)
    assert [fleet.decide(minute) for minute in (11, 41)] == ["quarantined", "available"]
    fleet.find(ended(strong(), second=44 * MINUTE), minute=44)
    assert fleet.decide(60) == "available"
    assert fleet.history(finding_id)[-1] == ("closed", None)


@on_both
@pytest.mark.parametrize("minute", [20, 42])
def test_a_user_who_releases_it_wins(database: Database, minute: float) -> None:
    fleet = Fleet(database)
    (finding_id,) = fleet.find(strong(), minute=11)
    assert fleet.decide(11) == "quarantined"
    was = fleet.decide(minute - 1)
    assert was == ("available" if minute == 42 else "quarantined")
    fleet.order("available", minute=minute)
    assert fleet.decide(minute + 1) == fleet.decide(10_000) == "available"
    assert fleet.history(finding_id)[-2:] == [("released", "ann"), ("not_quarantined", None)]


@on_both
def test_a_user_who_quarantines_it_too_keeps_it(database: Database) -> None:
    fleet = Fleet(database)
    fleet.find(strong(), minute=11)
    assert fleet.decide(11) == "quarantined"
    fleet.order("quarantined", minute=12)
    assert fleet.decide(10_000) == "quarantined"
    fleet.find(ended(strong()), minute=10_001)
    assert fleet.decide(10_002) == "quarantined"
    assert fleet.authors == [("quarantined", ANALYSIS), ("quarantined", "ann")]


@on_both
def test_a_dismissed_finding_holds_nobody(database: Database) -> None:
    fleet = Fleet(database)
    (finding_id,) = fleet.find(strong(), minute=11)
    assert fleet.decide(11) == "quarantined"
    with database.engine.begin() as connection:
        findings.dismiss(connection, finding_id, actor="ann", reason=None, now=at(12 * MINUTE))
    assert fleet.decide(13) == "available"
    assert fleet.history(finding_id)[-1] == ("released", None)


def test_a_worker_that_is_kept_off_its_queues_still_counts_there(database: Database) -> None:
    fleet = Fleet(database)
    fleet.find(strong(), a_finding(2, "w2", evidence=9000.0), minute=11)
    assert fleet.decide(11) == "quarantined"
    with database.engine.begin() as connection:
        connection.execute(update(worker).where(worker.c.worker_id == "w1").values(queues=[]))
        connection.execute(update(worker).where(worker.c.worker_id != "w1").values(queues=["default", "gpu"]))
        enforcement.change(connection, {fleet.w1.ref: lambda _known: Enforcement(("default",), at(0))})
    fleet.decide(12)
    with database.engine.connect() as connection:
        assert list(queries.unavailable_workers(connection)) == [fleet.w1.ref]


def test_nothing_is_decided_while_the_source_is_not_polled(database: Database) -> None:
    fleet = Fleet(database)
    fleet.find(strong(), minute=11)
    assert fleet.decide(11) == "quarantined"
    fleet.find(ended(strong()), minute=12)
    with database.engine.begin() as connection:
        connection.execute(update(worker_source).values(looked_at=at(-(10**9))))
    assert fleet.decide(13) == "quarantined"


def test_without_enforcement_nobody_is_quarantined(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__ENFORCE_AVAILABILITY", "False")
    fleet = Fleet(database)
    (finding_id,) = fleet.find(strong(), minute=11)
    assert fleet.decide(11) == "available"
    assert fleet.history(finding_id)[-1] == ("not_quarantined", None)


@pytest.mark.usefixtures("database")
def test_it_is_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not config.auto_quarantine()
    assert thread.make_job(interval=30.0)._sinks.quarantine is None
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__AUTO_QUARANTINE", "True")
    assert thread.make_job(interval=30.0)._sinks.quarantine is quarantine_step.quarantine


@on_both
def test_the_job_quarantines_what_it_finds_and_the_recovery_test_releases_it(database: Database) -> None:
    deployment = Deployment(database, [])
    sinks = Sinks(sync_findings=findings.sync, quarantine=quarantine_step.quarantine)
    minute, availability, turns = 0, "available", ["available"]
    while minute < 3 * DAY and "closed" not in (actions := history_of_one(database)):
        # Each minute every worker runs a try; w0 is repaired after ten. While it is out nothing happens for long.
        for number in range(6) if availability == "available" else ():
            start = minute * MINUTE + number * 5 + 1
            outcome = "failed" if number == 0 and minute < 10 else "success"
            deployment.script.append(Scripted(len(deployment.script), start, start + 3, f"w{number}", state=outcome))
        moment = minute * MINUTE + 50
        deployment.until(moment)
        if minute == 0:
            go_online(database)
        # What is stored suffices to go on.
        job = deployment.job(sinks=sinks)
        run(deployment, job, [moment])
        job.finish()
        with database.engine.connect() as connection:
            w0 = queries.get_worker(connection, "w0")
        assert w0 is not None
        if w0.availability != availability:
            availability = w0.availability
            turns.append(availability)
        minute += 1 if availability == "available" else 30
    assert actions[:4] == ["found", "not_quarantined", "quarantined", "probe"]
    assert actions[-1] == "closed"
    assert turns[-1] == "available"
    # Five good tries say that a worker is well that failed all it ran; a probe gives it three.
    assert actions.count("probe") == 2


def go_online(database: Database) -> None:
    """Have Celery's source see all workers."""
    with database.engine.begin() as connection:
        polled = database_now(connection)
        connection.execute(insert(worker_source).values(name="celery", due_at=polled, looked_at=polled))
        connection.execute(update(worker).values(state="online", engine_heartbeat_at=NOON, queues=["default"]))


def history_of_one(database: Database) -> list[str]:
    """Return what has happened to the only finding, the earliest first."""
    with database.engine.connect() as connection:
        stored, _ = findings.list_findings(connection, FindingFilter(), limit=9, offset=0, dag_ids=AllDags())
        assert len(stored) <= 1
        ids = [each.finding_id for each in stored]
        entries = [entry for each in findings.events(connection, ids).values() for entry in each]
    return [str(entry.action) for entry in reversed(entries)]
