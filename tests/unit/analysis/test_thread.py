"""The thread that analyses tries in an API server."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight.analysis.job import StepResult
from airflow_worker_insight.analysis.thread import AnalysisThread, analysis_lifespan
from airflow_worker_insight.periodic_thread import STOP_SECONDS
from airflow_worker_insight.store.migrate import Schema
from airflow_worker_insight.store.schema_gate import SchemaGate
from tests.support.processes import wait_for

if TYPE_CHECKING:
    from tests.unit.database import Database

pytestmark = pytest.mark.usefixtures("database")


class Steps:
    """A job that does what the test says, the last again and again."""

    def __init__(self, *results: StepResult | Exception) -> None:
        self.results = [*results]
        self.steps = 0
        self.finished = 0

    def step(self) -> StepResult:
        self.steps += 1
        result = self.results.pop(0) if len(self.results) > 1 else self.results[0]
        if isinstance(result, Exception):
            raise result
        return result

    def finish(self) -> None:
        # No step runs meanwhile.
        assert threading.current_thread().name == "worker-insight-analysis"
        self.finished += 1


IDLE, BUSY = StepResult(has_lease=True), StepResult(has_lease=True, is_behind=True)


def thread_of(job: Steps, schema: Schema = Schema.READY, *, stop_timeout: float = STOP_SECONDS) -> AnalysisThread:
    gate = SchemaGate(recheck_seconds=0, check=lambda _connection: schema)
    return AnalysisThread(
        job=job,  # type: ignore[arg-type]
        schema_gate=gate,
        jitter=lambda: 0.0,
        busy_seconds=0.01,
        stop_timeout=stop_timeout,
    )


def test_behind_the_next_step_follows_at_once_and_else_after_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__WORKER_INSIGHT__INSIGHT_INTERVAL", "17")
    thread = thread_of(Steps(BUSY, IDLE, StepResult(has_lease=False)))
    assert [thread.run_once() for _ in range(3)] == [0.01, 17, 17]


def test_it_waits_for_the_tables() -> None:
    job = Steps(IDLE)
    assert thread_of(job, Schema.MISSING).run_once() == 30
    assert job.steps == 0


def test_a_server_analyses_while_it_runs_and_hands_the_job_over() -> None:
    job = Steps(BUSY)

    async def serve() -> None:
        async with analysis_lifespan(None, thread_of(job)):
            await asyncio.to_thread(wait_for, lambda: job.steps >= 3, 30, "the thread")

    asyncio.run(serve())
    assert job.finished == 1


def test_a_server_stops_although_the_database_hangs_at_the_end() -> None:
    hangs, goes_on = threading.Event(), threading.Event()
    job = Steps(BUSY)

    def hang() -> None:
        hangs.set()
        goes_on.wait(60)

    job.finish = hang  # type: ignore[method-assign]
    thread = thread_of(job, stop_timeout=0.01)
    thread.start()
    thread.stop()
    assert hangs.wait(30)
    assert not goes_on.is_set()
    (abandoned,) = [other for other in threading.enumerate() if other.name == "worker-insight-analysis"]
    assert abandoned.daemon
    goes_on.set()
    abandoned.join(30)


@pytest.mark.parametrize("option", ["ENABLED", "INSIGHT_ENABLED"])
def test_switched_off_it_does_nothing(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    monkeypatch.setenv(f"AIRFLOW__WORKER_INSIGHT__{option}", "False")
    job = Steps(IDLE)
    thread = thread_of(job)
    thread.start()
    thread.stop()
    assert (job.steps, job.finished) == (0, 0)


def test_an_error_makes_it_look_at_the_tables_again(database: Database) -> None:
    del database
    schemas = [Schema.READY, Schema.MISSING]
    gate = SchemaGate(recheck_seconds=0, check=lambda _connection: schemas.pop(0))
    job = Steps(RuntimeError("it is gone"))
    thread = AnalysisThread(job=job, schema_gate=gate, jitter=lambda: 0.0)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="it is gone"):
        thread.run_once()
    assert thread.run_once() == 30
    assert job.steps == 1
