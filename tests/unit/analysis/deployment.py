"""A deployment whose tries start and end as a script says, and jobs that analyse them by the script's clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, update

from airflow_worker_insight.analysis.job import Job, Limits
from airflow_worker_insight.insight import state
from airflow_worker_insight.insight.detector import Detector
from airflow_worker_insight.insight.events import End, Ended, Started, Worker
from airflow_worker_insight.store.insight_tables import detector_part, job, late_attempt
from airflow_worker_insight.store.tables import worker
from tests.unit.database import a_worker, add_run, add_try, at, change_try, record_start

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_worker_insight.analysis.job import StepResult
    from airflow_worker_insight.domain.attempts import DagRunRef
    from airflow_worker_insight.domain.keys import TryKey
    from tests.unit.database import Database

FAR = 10**7
"""Seconds after all that happens here."""


@dataclass(frozen=True)
class Scripted:
    """A try: when it starts and ends in seconds after noon, where, and how."""

    number: int
    start: float
    end: float
    worker: str
    task: str = "load"
    state: str = "success"
    recorded: float | None = None
    """When its start is recorded; at once if ``None``."""

    @property
    def recorded_at(self) -> float:
        return self.start if self.recorded is None else self.recorded


def steady(*, workers: int = 5, rounds: int = 12, sick: str | None = "w0", pause: float = 10.0) -> list[Scripted]:
    """Return tries of two tasks that all workers run in turn; the sick one fails all it runs."""
    script = []
    for number in range(workers * rounds):
        name = f"w{number % workers}"
        state_ = "failed" if name == sick else "success"
        task = ("load", "store")[number // workers % 2]
        start = number * pause + 1
        script.append(Scripted(number, start, start + 3.5, name, task, state_))
    return script


@dataclass
class Deployment:
    """Airflow and our tables as of a moment that the test sets."""

    database: Database
    script: list[Scripted]
    now: float = 0.0
    behind: float = 0.0
    """Seconds by which the clocks of all hosts are behind the database's."""
    runs: dict[str, DagRunRef] = field(default_factory=dict)
    keys: dict[int, TryKey] = field(default_factory=dict)
    _begun: set[int] = field(default_factory=set)
    _over: set[int] = field(default_factory=set)

    def until(self, seconds: float) -> None:
        """Let time pass: record the starts, and have Airflow write the ends."""
        self.now = seconds
        happened = [(each.recorded_at, 0, each) for each in self.script if each.number not in self._begun]
        happened += [(each.end, 1, each) for each in self.script if each.number not in self._over]
        with self.database.engine.begin() as connection:
            for moment, is_end, each in sorted(happened, key=lambda one: (one[0], one[1], one[2].number)):
                if moment > seconds:
                    continue
                if is_end:
                    self._over.add(each.number)
                    if each.number in self.keys:
                        change_try(connection, self.keys[each.number], state=each.state, end_date=at(each.end))
                    continue
                self._begun.add(each.number)
                run = add_run(connection, "etl", f"run-{each.number}", state="running", ended_at=None)
                has_ended = each.end <= moment
                key = add_try(
                    connection,
                    run,
                    each.task,
                    state=each.state if has_ended else "running",
                    started_at=at(each.start),
                    ended_at=at(each.end) if has_ended else None,
                    queue="default",
                    queued_dttm=at(each.start - 1),
                )
                self.keys[each.number] = key
                record_start(
                    connection,
                    key,
                    a_worker(each.worker, hostname=f"host-{each.worker}", name=each.worker),
                    try_started_at=at(each.start),
                    now=at(moment - self.behind),
                )
            # Nothing is lost here unless a test says so.
            connection.execute(update(worker).where(worker.c.ended_at.is_(None)).values(last_seen_at=at(FAR)))

    def job(self, **others: Any) -> Job:
        """Return a job of another process."""
        return Job(clock=lambda _connection: at(self.now), sleep=lambda _seconds: None, **others)

    def rows(self, table: Any) -> list[dict[str, Any]]:
        with self.database.engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(select(table))]

    @property
    def parts(self) -> dict[str, str]:
        return dict(row["value"].split("\n", 1) for row in self.rows(detector_part))

    @property
    def late(self) -> list[dict[str, Any]]:
        return self.rows(late_attempt)

    @property
    def job_row(self) -> dict[str, Any]:
        (row,) = self.rows(job)
        return row


def run(deployment: Deployment, current: Job, times: Iterable[float]) -> StepResult | None:
    """Have a job step at these times, and at once again while it is behind."""
    result = None
    for moment in times:
        deployment.until(moment)
        result = current.step()
        while result.is_behind:
            result = current.step()
    return result


def every(seconds: float, until: float) -> list[float]:
    """Return the times of steps."""
    return [number * seconds for number in range(1, int(until / seconds) + 1)]


def end_of(script: Iterable[Scripted]) -> float:
    return max(max(each.end, each.recorded_at) for each in script)


def expected_detector(script: Iterable[Scripted], until: float, keys: dict[int, tuple[int, int]]) -> Detector:
    """Return the detector that was told all that happened, in the order of time.

    :param keys: the detector's key, and the digest of the Dag run, by the number of the try
    """
    happened: list[tuple[float, int, int, Started | Ended]] = []
    for each in script:
        key, run_key = keys[each.number]
        on = Worker(each.worker, each.worker, {"host": f"host-{each.worker}", "zone": "a"})
        start, end = at(each.start).timestamp(), at(each.end).timestamp()
        happened.append((start, 0, key, Started(key, ("etl", each.task), run_key, on, start)))
        happened.append((end, 1, key, Ended(key, End(each.state), end)))
    detector = Detector()
    for moment, _, _, event in sorted(happened, key=lambda one: one[:3]):
        if moment <= at(until).timestamp():
            detector.advance_to(moment)
            detector.add(event)
            detector.advance_to(moment)
    detector.advance_to(at(until).timestamp())
    return detector


def dumped(current: Job) -> dict[str, str]:
    """Return the detector's whole state."""
    assert current.memory is not None
    return state.dump(current.memory.detector)


def limits(**others: Any) -> Limits:
    return Limits(**others)
