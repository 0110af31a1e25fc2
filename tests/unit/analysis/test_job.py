"""The job from recorded attempts and Airflow's task instances to what the detector finds."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, insert, update
from sqlalchemy.exc import OperationalError

from airflow_worker_insight.analysis.feed import event_key
from airflow_worker_insight.analysis.job import Job, Limits, Sinks
from airflow_worker_insight.analysis.rollup import Rollup
from airflow_worker_insight.capture.counters import snapshot
from airflow_worker_insight.compat import metadata_database
from airflow_worker_insight.domain.filters import AllDags, FindingFilter
from airflow_worker_insight.domain.tries import TryOutcome
from airflow_worker_insight.insight import state
from airflow_worker_insight.insight.blocks import EXCLUDED
from airflow_worker_insight.insight.events import End
from airflow_worker_insight.store import findings, session, statistics, tries
from airflow_worker_insight.store.insight_tables import detector_part, worker_hour
from airflow_worker_insight.store.job import LeaseLostError
from airflow_worker_insight.store.session import Bounds
from airflow_worker_insight.store.tables import attempt, start_slot, worker
from tests.unit.analysis.deployment import (
    Deployment,
    Scripted,
    dumped,
    end_of,
    every,
    expected_detector,
    limits,
    run,
    steady,
)
from tests.unit.database import a_worker, at, locked, on_both

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_mock import MockerFixture

    from airflow_worker_insight.domain.tries import AnalyzedTry
    from airflow_worker_insight.insight.detector import Detector
    from tests.unit.database import Database


def keys_of(deployment: Deployment) -> dict[int, tuple[int, int]]:
    """Return the detector's key and the run's digest of each try."""
    by_run = {row["run_id"]: row for row in deployment.database.attempts()}
    found = {}
    for number, key in deployment.keys.items():
        row = by_run[key.run_id]
        row_key = (row["run_key"], row["task_key"], row["try_number"])
        found[number] = (event_key(row_key), row["run_key"])
    return found


def expected(deployment: Deployment, until: float) -> Detector:
    return expected_detector(deployment.script, until, keys_of(deployment))


@on_both
def test_a_worker_that_fails_all_it_runs_is_found(database: Database) -> None:
    deployment = Deployment(database, steady())
    job = deployment.job()
    end = end_of(deployment.script) + 60
    run(deployment, job, every(30, end))
    (finding,) = job.memory.detector.open_findings()
    assert (finding.subject, finding.outcome, finding.failures) == ("w0", "failed", finding.tries)
    last = every(30, end)[-1]
    assert dumped(job) == state.dump(expected(deployment, last))
    # What was found is stored at once.
    (stored,) = json.loads(deployment.parts["findings"])
    assert stored["subject"] == "w0"


@on_both
def test_a_restart_comes_to_the_same_result(database: Database) -> None:
    check_restarts(database, 400, 600)


@pytest.mark.parametrize("crashes", [(100,), (130, 490, 520, 700)])
def test_restarts_at_any_time_come_to_the_same_result(database: Database, crashes: tuple[float, ...]) -> None:
    check_restarts(database, *crashes)


def check_restarts(database: Database, *crashes: float) -> None:
    deployment = Deployment(database, steady())
    job = deployment.job()
    times = every(30, end_of(deployment.script) + 240)
    for moment in times:
        if any(moment - 30 < crash <= moment for crash in crashes):
            # Its lease ends by itself.
            job = deployment.job()
        run(deployment, job, [moment])
    assert dumped(job) == state.dump(expected(deployment, times[-1]))
    # What is stored is what it knows.
    job.finish()
    again = deployment.job()
    again.step()
    assert dumped(again) == state.dump(expected(deployment, times[-1]))


def alternating(number: int, *, pause: float = 10.0, **others: Any) -> list[Scripted]:
    """Return tries of one task on two workers in turn."""
    return [Scripted(each, each * pause + 1, each * pause + 4, f"w{each % 2}", **others) for each in range(number)]


def counted(job: Job) -> int:
    """Return the tries that the detector has counted."""
    assert job.memory is not None
    return sum(stratum.total for key, stratum in job.memory.detector.strata.items() if key[0] == "task")


class Counts:
    """A rollup that keeps what it is given, and the store that it goes to."""

    def __init__(self) -> None:
        self.stored: list[AnalyzedTry] = []
        self.rollups = 0

    def make(self) -> Counts.Rollup:
        self.rollups += 1
        return Counts.Rollup()

    def add(self, _connection: object, tries: list[AnalyzedTry]) -> None:
        self.stored += tries

    @property
    def sinks(self) -> Sinks:
        return Sinks(new_rollup=self.make, add_statistics=self.add)

    class Rollup:
        def __init__(self) -> None:
            self.tries: list[AnalyzedTry] = []
            self.slots: list[tuple[Any, ...]] = []

        @property
        def is_empty(self) -> bool:
            return not self.tries

        def add(self, each: AnalyzedTry, *, expected_failure: float) -> None:
            assert 0 <= expected_failure <= 1
            self.tries.append(each)

        def add_slots(self, *given: Any) -> None:
            self.slots.append(given)

        def take(self) -> list[AnalyzedTry]:
            taken, self.tries = self.tries, []
            return taken


@on_both
def test_each_try_is_counted_once_however_often_a_process_dies(database: Database) -> None:
    deployment, counts = Deployment(database, alternating(60)), Counts()
    for moment in every(30, 900):
        if moment in {120, 330, 510, 690} or moment == 30:
            job = deployment.job(sinks=counts.sinks)
        run(deployment, job, [moment])
    job.finish()
    assert sorted(each.key.run_id for each in counts.stored) == sorted(f"run-{number}" for number in range(60))
    assert {(each.outcome, each.queue) for each in counts.stored} == {("success", "default")}
    assert {each.started_at - each.queued_at for each in counts.stored if each.queued_at} == {timedelta(seconds=1)}


@on_both
def test_a_try_that_is_recorded_late_is_read_once(database: Database) -> None:
    script = alternating(12)
    # Reported after their starts have been read: by long, and by so little that they are read with the others too.
    script[3] = replace(script[3], recorded=script[3].start + 1400)
    script[5] = replace(script[5], recorded=script[5].start + 61)
    deployment, counts = Deployment(database, script), Counts()
    job = deployment.job(sinks=counts.sinks)
    run(deployment, job, every(30, 420))
    assert counted(job) == 11
    assert len(deployment.late) == 0
    run(deployment, job, every(60, 1500)[7:])
    assert counted(job) == 12
    job.finish()
    assert len(counts.stored) == 12
    assert deployment.late == []


@on_both
def test_one_process_works_and_another_takes_over_when_it_has_died(database: Database) -> None:
    deployment = Deployment(database, alternating(60))
    first, second = deployment.job(), deployment.job()
    deployment.until(30)
    assert first.step().has_lease
    assert not second.step().has_lease
    assert second.memory is None
    deployment.until(60)
    assert first.step().has_lease
    deployment.until(119)
    assert not second.step().has_lease
    # The first one is stuck for longer than its lease.
    deployment.until(121)
    assert second.step().has_lease
    before = deployment.parts, deployment.job_row
    assert not first.step().has_lease
    assert first.memory is None
    assert (deployment.parts, deployment.job_row) == before


@on_both
def test_who_has_lost_its_lease_in_the_middle_of_a_step_stores_nothing(database: Database) -> None:
    deployment = Deployment(database, alternating(60))
    first, second = deployment.job(), deployment.job()
    run(deployment, first, [30, 60])
    deployment.until(130)
    assert second.step().has_lease
    second.finish()
    before = deployment.parts, deployment.job_row
    with pytest.raises(LeaseLostError):
        first.finish()
    assert first.memory is None
    assert (deployment.parts, deployment.job_row) == before
    # It goes on from what the other one has stored.
    run(deployment, first, every(30, 900)[5:])
    assert dumped(first) == state.dump(expected(deployment, 900))


@pytest.mark.parametrize("ahead", [-600, -60, 60, 600])
@on_both
def test_a_worker_whose_clock_is_wrong_is_read_all_the_same(database: Database, ahead: float) -> None:
    script = [
        replace(each, start=each.start + ahead, recorded=each.start, end=each.end + ahead)
        if each.worker == "w0"
        else each
        for each in alternating(40)
    ]
    deployment, counts = Deployment(database, script), Counts()
    job = deployment.job(sinks=counts.sinks)
    run(deployment, job, every(30, 1200))
    assert counted(job) == 40
    job.finish()
    assert len(counts.stored) == 40


@pytest.mark.parametrize("behind", [180, 840])
@on_both
def test_all_is_read_where_the_clocks_of_hosts_are_behind(database: Database, behind: float) -> None:
    script = [replace(each, recorded=each.start + behind) for each in steady()]
    deployment, counts = Deployment(database, script, behind=behind), Counts()
    job = deployment.job(sinks=counts.sinks)
    for moment in every(60, end_of(script) + 120):
        # A restart reads no more and no less.
        job = deployment.job(sinks=counts.sinks) if moment % 480 == 0 else job
        run(deployment, job, [moment])
        assert job.memory is None or all(start >= job.memory.read_until for start in job.memory.seen.values())
    assert counted(job) == 60
    # What is read again is forgotten in time.
    run(deployment, job, [end_of(script) + 2000, end_of(script) + 2030])
    job.finish()
    assert deployment.parts["job:seen"] == "[]"
    assert len(counts.stored) == 60


@pytest.mark.parametrize("restarts", [False, True])
@on_both
def test_after_a_jump_of_the_databases_clock_it_goes_on(database: Database, restarts: bool) -> None:
    deployment, counts = Deployment(database, steady()), Counts()
    job = deployment.job(sinks=counts.sinks)
    run(deployment, job, every(30, 120))
    deployment.now = 86_400
    job.step()
    if restarts:
        job.finish()
        job = deployment.job(sinks=counts.sinks)
    run(deployment, job, every(30, 720)[4:])
    assert dumped(job) == state.dump(expected(deployment, 720))
    job.finish()
    # Whether those that ended during the jump were counted cannot be known.
    known = [f"run-{number}" for number in range(60) if number not in {12, 13, 14}]
    assert sorted(each.key.run_id for each in counts.stored) == sorted(known)


def test_without_history_there_is_nothing_to_do(database: Database) -> None:
    deployment = Deployment(database, [])
    job = deployment.job()
    result = run(deployment, job, [30, 60, 3600, 90_000])
    assert result is not None
    assert (result.has_lease, result.started, result.lag) == (True, 0, 0)
    assert deployment.job_row["read_until"] == at(90_000 - 1020)


def test_of_a_single_worker_nothing_is_found(database: Database) -> None:
    script = [replace(each, worker="w0", state="failed") for each in alternating(60)]
    deployment = Deployment(database, script)
    job = deployment.job()
    run(deployment, job, every(30, 660))
    assert counted(job) == 60
    assert job.memory is not None
    assert job.memory.detector.findings() == []


@on_both
def test_a_dag_that_is_deleted_in_between_leaves_nothing_open(database: Database) -> None:
    script = [replace(each, end=10_000) for each in alternating(10)]
    deployment, counts = Deployment(database, script), Counts()
    job = deployment.job(sinks=counts.sinks)
    run(deployment, job, every(30, 150))
    assert job.memory is not None
    assert len(job.memory.open) == 10
    with database.engine.begin() as connection:
        connection.execute(delete(metadata_database.task_instance_table()))
        # Of another one its attempts are gone too.
        connection.execute(delete(attempt).where(attempt.c.run_id.in_(["run-1", "run-2"])))
    job.finish()
    job = deployment.job(sinks=counts.sinks)
    run(deployment, job, [180, 210])
    assert job.memory is not None
    assert job.memory.open == {}
    assert {each.status for each in job.memory.detector.tries.values()} == {EXCLUDED}
    job.finish()
    assert [each.outcome for each in counts.stored] == [TryOutcome.OTHER] * 8
    assert [name for name in deployment.parts if name.startswith("job:open")] == []


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_locked_tables_are_said_and_the_next_step_makes_up_for_it(database: Database) -> None:
    deployment, counts = Deployment(database, steady()), Counts()
    bounds = Bounds(lock=0.05, statement=5)
    job = deployment.job(sinks=counts.sinks, bounds=bounds)
    times = every(30, 720)
    run(deployment, job, times[:7])
    deployment.until(times[12])
    with locked(database, "worker_insight_detector_part"), pytest.raises(OperationalError):
        job.step()
    assert "lock timeout" in deployment.job_row["error"]
    run(deployment, job, [moment for moment in times if moment > deployment.now])
    assert deployment.job_row["error"] is None
    assert dumped(job) == state.dump(expected(deployment, times[-1]))
    job.finish()
    assert len(counts.stored) == 60


class Dismissing:
    """A store of findings in which a user dismisses the first one."""

    def __init__(self) -> None:
        self.found: list[list[Mapping[str, Any]]] = []
        self.told: list[object] = []
        self.dismissed: frozenset[int] = frozenset()
        self.quarantined: frozenset[int] = frozenset()

    def sync(self, _connection: object, found: Sequence[Mapping[str, Any]], *, now: datetime) -> Dismissing:
        assert now
        self.found.append([*found])
        return self


def test_a_dismissed_finding_is_closed(database: Database) -> None:
    deployment, findings = Deployment(database, steady()), Dismissing()
    job = deployment.job(sinks=Sinks(sync_findings=findings.sync, on_findings=findings.told.append))
    times = every(30, end_of(deployment.script))
    while not (findings.found and findings.found[-1]):
        run(deployment, job, [times.pop(0)])
    # It is stored in the step in which it is found.
    assert job.memory is not None
    (finding,) = job.memory.detector.open_findings()
    (stored,) = findings.found[-1]
    assert (stored["number"], stored["state"], stored["subject"]) == (1, "open", "w0")
    assert findings.told
    findings.dismissed = frozenset({1})
    run(deployment, job, times[:5])
    assert (finding.state, finding.end_reason) == ("closed", "dismissed")
    assert json.loads(deployment.parts["findings"])[0]["end_reason"] == "dismissed"


def test_quarantines_are_decided_once_all_is_read(database: Database) -> None:
    decided: list[datetime] = []
    deployment = Deployment(database, steady())
    sinks = Sinks(quarantine=lambda _connection, now: decided.append(now))
    job = deployment.job(sinks=sinks, limits=limits(new_tries=5))
    deployment.until(200)
    while job.step().is_behind:
        assert decided == []
    assert decided == [at(200)]
    # Another process has no say.
    assert not deployment.job(sinks=sinks).step().has_lease
    assert len(decided) == 1


def test_a_quarantine_that_fails_fails_no_step(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_connection: object, _now: datetime) -> None:
        raise ValueError("no such worker")

    deployment = Deployment(database, steady())
    job = deployment.job(sinks=Sinks(quarantine=fail))
    before = snapshot().get("insight.quarantine.failed", 0)
    result = run(deployment, job, every(30, 90))
    assert result is not None
    assert result.has_lease
    assert snapshot()["insight.quarantine.failed"] == before + 3
    assert caplog.text.count("could not decide about quarantines: no such worker") == 1


@on_both
def test_a_failure_is_held_back_until_its_worker_is_known_to_live(database: Database) -> None:
    script = [Scripted(0, 1, 20, "w0", state="failed"), Scripted(1, 2, 21, "w1", state="failed")]
    deployment, counts = Deployment(database, script), Counts()
    job = deployment.job(sinks=counts.sinks)

    def step(moment: float, **seen: Any) -> list[str | None]:
        deployment.until(moment)
        with database.engine.begin() as connection:
            connection.execute(update(worker).values(last_seen_at=at(1)))
            for name, values in seen.items():
                connection.execute(update(worker).where(worker.c.name == name).values(values))
        job.step()
        assert job.memory is not None
        return sorted(each.analyzed.worker.name for each in job.memory.open.values())

    assert step(30) == ["w0", "w1"]
    assert step(60, w0={"last_seen_at": at(40)}) == ["w1"]
    lost = {"state": "lost", "ended_at": at(60), "last_seen_at": at(10)}
    assert step(90, w1=lost) == []
    job.finish()
    assert [(each.worker.name, each.outcome) for each in counts.stored] == [("w0", "failed"), ("w1", "lost")]


def test_a_failure_is_held_back_for_a_quarter_of_an_hour_at_most(database: Database) -> None:
    deployment = Deployment(database, [Scripted(0, 1, 20, "w0", state="failed")])
    job = deployment.job()
    for moment in [30, 60, 900, 930]:
        deployment.until(moment)
        with database.engine.begin() as connection:
            connection.execute(update(worker).values(last_seen_at=at(1)))
        job.step()
        assert job.memory is not None
        assert len(job.memory.open) == (moment < 920)


@on_both
def test_state_of_another_version_is_computed_anew(database: Database) -> None:
    deployment, counts = Deployment(database, steady()), Counts()
    job = deployment.job(sinks=counts.sinks)
    run(deployment, job, every(30, 480))
    job.finish()
    with database.engine.begin() as connection:
        for name, text in deployment.parts.items():
            if name == "clock":
                old = f"{name}\n{json.dumps({**json.loads(text), 'version': 0})}"
                connection.execute(
                    update(detector_part).where(detector_part.c.value == f"{name}\n{text}").values(value=old)
                )
    again = deployment.job(sinks=counts.sinks, limits=Limits(new_tries=7))
    run(deployment, again, every(30, 720)[16:])
    assert dumped(again) == state.dump(expected(deployment, 720))
    again.finish()
    # Statistics have those that had ended already.
    assert len(counts.stored) == 60


@pytest.mark.parametrize("times", [1, 2, 3])
@on_both
def test_statistics_have_each_try_once_although_a_state_is_replaced_while_it_is_behind(
    database: Database, times: int
) -> None:
    script = [
        *steady(),
        Scripted(60, 5, 1000, "w1"),
        # This one fails before the state is replaced, and it is not known then whether it was lost.
        Scripted(61, 6, 300, "w2", state="failed"),
        Scripted(62, 50, 60, "w3", recorded=1150),
    ]
    deployment, counts = Deployment(database, script), Counts()
    deployment.until(900)
    with database.engine.begin() as connection:
        connection.execute(update(worker).where(worker.c.name == "w2").values(last_seen_at=at(250)))
    job = deployment.job(sinks=counts.sinks, limits=Limits(new_tries=40))
    assert job.step().is_behind
    job.finish()
    for number in range(times):
        deployment.until(1200 + number)
        job = deployment.job(sinks=counts.sinks, limits=Limits(new_tries=(25, 50, 40)[number]))
        job.recompute()
        assert job.step().is_behind
        if number < times - 1:
            job.finish()
    run(deployment, job, [1230, 1260])
    # The whole history anew adds nothing.
    job.recompute()
    run(deployment, job, [1290])
    job.finish()
    assert sorted(each.key.run_id for each in counts.stored) == sorted(f"run-{number}" for number in range(63))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("job:times", "7"),
        ("job:times", "[7, 7, 7, 7]"),
        ("job:seen", "[null]"),
        ("clock", "{"),
        ("clock", "null"),
        ("findings", '{"a": 1}'),
        ("findings", None),
    ],
)
def test_a_damaged_state_is_computed_anew(
    database: Database, name: str, text: str | None, mocker: MockerFixture
) -> None:
    warned = mocker.patch("airflow_worker_insight.analysis.job.warn_once")
    deployment, counts = Deployment(database, steady()), Counts()
    job = deployment.job(sinks=counts.sinks)
    run(deployment, job, every(30, 480))
    job.finish()
    with database.engine.begin() as connection:
        stored = detector_part.c.value == f"{name}\n{deployment.parts[name]}"
        value = "gibberish" if text is None else f"{name}\n{text}"
        connection.execute(update(detector_part).where(stored).values(value=value))
    again = deployment.job(sinks=counts.sinks)
    run(deployment, again, every(30, 720)[16:])
    assert dumped(again) == state.dump(expected(deployment, 720))
    again.finish()
    assert len(counts.stored) == 60
    assert warned.call_count == 1


def test_a_try_that_is_deleted_during_a_restart_does_not_move_the_detectors_time(database: Database) -> None:
    deployment = Deployment(database, [*steady(), Scripted(60, 1.5, 10**6, "w1")])
    job = deployment.job()
    run(deployment, job, every(30, 300))
    job.finish()
    of_deleted = keys_of(deployment)[60]
    del deployment.keys[60]
    with database.engine.begin() as connection:
        connection.execute(delete(attempt).where(attempt.c.run_id == "run-60"))
    # What starts in between is told after it.
    deployment.until(900)
    keys = {**keys_of(deployment), 60: of_deleted}
    job = deployment.job()
    run(deployment, job, [900])
    deleted = Scripted(60, 1.5, 300, "w1", state=str(End.EXCLUDED.value))
    assert dumped(job) == state.dump(expected_detector([*steady(), deleted], 900, keys))


def test_more_open_tries_than_a_step_asks_for_leave_it_a_pause(database: Database, mocker: MockerFixture) -> None:
    deployment = Deployment(database, [Scripted(number, 1, 10_000, f"w{number}") for number in range(15)])
    job = deployment.job(limits=Limits(asked_tries=5))
    asked = mocker.spy(tries, "in_airflow")
    deployment.until(60)
    # Steps of many tries take seconds.
    behind = []
    for moment in (60, 66, 72, 78, 84):
        deployment.now = moment
        behind.append(job.step().is_behind)
    assert behind == [True, True, False, False, False]
    assert asked.call_count == 3
    run(deployment, job, [90])
    assert asked.call_count == 4


def test_it_sleeps_outside_of_transactions(database: Database, mocker: MockerFixture) -> None:
    deployment = Deployment(database, steady())
    open_ones: list[object] = []
    used = iter(range(10**6))

    def watched(name: str) -> None:
        begin = getattr(session, name)

        @contextmanager
        def transaction(bounds: Bounds) -> Iterator[Any]:
            with begin(bounds) as connection:
                open_ones.append(connection)
                yield connection
            open_ones.remove(connection)

        mocker.patch.object(session, name, transaction)

    watched("reading")
    watched("writing")
    slept: list[int] = []
    job = Job(
        clock=lambda _connection: at(deployment.now),
        cpu_clock=lambda: next(used),
        sleep=lambda _seconds: slept.append(len(open_ones)),
    )
    run(deployment, job, every(30, 120))
    assert slept
    assert set(slept) == {0}


@on_both
def test_the_lease_outlasts_the_interval(database: Database) -> None:
    deployment = Deployment(database, alternating(10))
    first, second = deployment.job(interval=600), deployment.job()
    for moment in (0, 600, 1200):
        deployment.until(moment)
        assert first.step().has_lease
        memory = first.memory
        for later in (60, 300, 590):
            deployment.until(moment + later)
            assert not second.step().has_lease
    assert first.memory is memory
    deployment.until(2401)
    assert second.step().has_lease


def test_recomputing_takes_the_job_over(database: Database) -> None:
    deployment = Deployment(database, steady())
    server, command = deployment.job(), deployment.job()
    run(deployment, server, every(30, 720))
    command.recompute()
    while command.step().is_behind:
        pass
    assert not server.step().has_lease
    assert dumped(command) == state.dump(expected(deployment, 720))
    command.finish()
    assert server.step().has_lease
    assert dumped(server) == state.dump(expected(deployment, 720))


def test_ten_thousand_workers_of_one_try_each(database: Database) -> None:
    """All start in the same moment, and Airflow has deleted the Dag: what was recorded at its end remains."""
    numbers = range(1, 10_001)
    now = at(-3600)
    known = a_worker("pod")
    with database.engine.begin() as connection:
        common = {**known.description(), "registered_at": now, "last_seen_at": now, "fingerprint": "-"}
        connection.execute(
            insert(worker),
            [
                {**common, "id": each, "worker_id": f"p{each}", "name": f"p{each}", "hostname": f"p{each}"}
                for each in numbers
            ],
        )
        connection.execute(
            insert(attempt),
            [
                {
                    "run_key": 1,
                    "task_key": each,
                    "try_number": 1,
                    "worker_ref": each,
                    "map_index": -1,
                    "process_count": 1,
                    "ordinal": 0,
                    "started_at": now,
                    "ended_at": at(-3000),
                    "start_slot": start_slot(now),
                    "state": "success",
                    "attribution": "reported",
                    "dag_id": "etl",
                    "run_id": "r",
                    "task_id": "load",
                }
                for each in numbers
            ],
        )
    deployment, counts = Deployment(database, []), Counts()
    job = deployment.job(sinks=counts.sinks)
    run(deployment, job, [0.5])
    assert job.memory is not None
    assert len(job.memory.detector.population.workers) == 10_000
    job.finish()
    assert len(counts.stored) == 10_000
    assert {each.outcome for each in counts.stored} == {TryOutcome.SUCCESS}


def test_a_rescheduled_try_is_not_read_again_when_its_run_ends(database: Database) -> None:
    script = alternating(2)
    deployment, counts = Deployment(database, script), Counts()
    job = deployment.job(sinks=counts.sinks)
    run(deployment, job, every(30, 1200))
    with database.engine.begin() as connection:
        # Its run ends, and Airflow has the start of its last process.
        late = {"first_started_at": at(1), "started_at": at(1190), "start_slot": start_slot(at(1190))}
        connection.execute(update(attempt).where(attempt.c.run_id == "run-0").values(late))
    run(deployment, job, [1230, 1260])
    job.finish()
    assert len(counts.stored) == 2


def test_a_retry_is_followed_but_tells_the_detector_nothing(database: Database) -> None:
    deployment, counts = Deployment(database, alternating(4)), Counts()
    job = deployment.job(sinks=counts.sinks)
    deployment.until(60)
    with database.engine.begin() as connection:
        connection.execute(update(attempt).where(attempt.c.run_id == "run-0").values(try_number=2))
        connection.execute(
            update(metadata_database.task_instance_table())
            .where(metadata_database.task_instance_table().c.run_id == "run-0")
            .values(try_number=2)
        )
    run(deployment, job, [90])
    assert counted(job) == 3
    job.finish()
    assert sorted(each.key.try_number for each in counts.stored) == [1, 1, 1, 2]


def test_a_step_that_fails_while_it_reads_loses_nothing(database: Database, mocker: MockerFixture) -> None:
    deployment, counts = Deployment(database, alternating(30)), Counts()
    job = deployment.job(sinks=counts.sinks)
    run(deployment, job, every(30, 180))
    for name in ("load", "in_airflow", "starts"):
        broken = mocker.patch.object(tries, name, side_effect=OperationalError("SELECT", {}, Exception("it went away")))
        deployment.until(deployment.now + 30)
        with pytest.raises(OperationalError):
            job.step()
        assert deployment.job_row["error"] == "it went away"
        mocker.stop(broken)
    run(deployment, job, every(30, 450)[9:])
    job.finish()
    assert sorted(each.key.run_id for each in counts.stored) == sorted(f"run-{number}" for number in range(30))


@on_both
def test_what_is_found_and_counted_is_stored_once_however_often_a_process_dies(database: Database) -> None:
    deployment = Deployment(database, steady())
    sinks = Sinks(sync_findings=findings.sync, new_rollup=Rollup, add_statistics=statistics.add)
    job = deployment.job(sinks=sinks)
    for moment in every(30, 720):
        if moment in {300, 510}:
            job = deployment.job(sinks=sinks)
        run(deployment, job, [moment])
    job.finish()
    with database.engine.connect() as connection:
        stored, total = findings.list_findings(connection, FindingFilter(), limit=10, offset=0, dag_ids=AllDags())
        history = findings.events(connection, [each.finding_id for each in stored])
    assert total == 1
    assert (stored[0].data["subject"], stored[0].outcome, stored[0].state) == ("w0", "failed", "open")
    assert [each.action for each in history[stored[0].finding_id]] == ["found"]
    by_worker = {
        row["unit_digest"]: (row["tries"], row["failed"]) for row in deployment.rows(worker_hour) if row["tries"]
    }
    assert sorted(by_worker.values()) == [(12, 0)] * 4 + [(12, 12)]
