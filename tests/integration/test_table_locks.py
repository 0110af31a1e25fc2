"""Airflow's API server answers and no try is lost while one of our tables is locked.

As a script it holds each of our tables for a minute, and prints how long Airflow's health took to answer:
``python -m tests.integration.test_table_locks [seconds [table …]]``.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import TYPE_CHECKING

import pytest
import requests

from airflow_worker_insight.store import insight_tables
from airflow_worker_insight.store.tables import VERSION_TABLE, attempt
from tests.integration.accounting import REPORT_KEY, airflow_tries, attempts, left_in_xcom
from tests.support import environments
from tests.support.deployment import Deployment
from tests.support.services import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.environments import Environment

TABLES = [*(table.name for table in insight_tables.metadata.sorted_tables), VERSION_TABLE]
TASKS = 20
HOLD_AT_MOST = 120

TWENTY = f"""
from airflow.sdk import dag, task


@dag(schedule=None, max_active_tasks=64)
def twenty():
    @task(retries=1, retry_delay=0)
    def short(number):
        return number

    short.expand(number=list(range({TASKS})))


twenty()
"""


class HealthProbe:
    """Requests Airflow's health twice a second, and keeps the durations and the failures."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ended = Event()
        self.times: list[float] = []
        self.failures: list[str] = []

    @contextmanager
    def watched(self) -> Iterator[HealthProbe]:
        """Request health until the block ends."""
        thread = Thread(target=self._work, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join(60)

    def _work(self) -> None:
        while not self._ended.wait(0.5):
            began = time.monotonic()
            try:
                answer = requests.get(self._url, timeout=60)
                if not answer.ok:
                    self.failures.append(f"{answer.status_code} {answer.text}")
            except requests.RequestException as error:
                self.failures.append(str(error))
            self.times.append(time.monotonic() - began)


@contextmanager
def concurrent_users(airflow: Deployment, *, people: int = 10) -> Iterator[None]:
    """Send requests of many users: the API server looks up each token in its event loop."""
    ended = Event()
    headers = {"Authorization": f"Bearer {airflow.token('admin')}"}

    def use() -> None:
        while not ended.wait(0.5):
            with suppress(requests.RequestException):
                requests.get(f"{airflow.base_url}/api/v2/dags?limit=1", headers=headers, timeout=60)

    threads = [Thread(target=use, daemon=True) for _ in range(people)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(90)


@contextmanager
def deployed(environment: Environment, postgres: Postgres) -> Iterator[Deployment]:
    """Run Airflow on PostgreSQL with its default connection pool."""
    with Deployment(environment, postgres=postgres, config={"core.parallelism": TASKS}) as airflow:
        airflow.write_dag("twenty", TWENTY)
        airflow.migrate()
        airflow.start_all()
        yield airflow


def run_while_locked(airflow: Deployment, table: str, *, seconds: float = 0) -> tuple[str, HealthProbe]:
    """Run twenty tasks while a table is locked; return the run and the health."""
    health = HealthProbe(f"{airflow.base_url}/api/v2/monitor/health")
    with airflow.connected() as connection, connection.cursor() as cursor, health.watched(), concurrent_users(airflow):
        cursor.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        until = time.monotonic() + seconds
        run_id = airflow.trigger("twenty")
        airflow.wait_run("twenty", run_id, HOLD_AT_MOST)
        while time.monotonic() < until:
            time.sleep(0.1)
        connection.rollback()
    return run_id, health


def assert_first_tries_succeeded(airflow: Deployment, run_id: str) -> None:
    """Check that every try is the first of its task, succeeded, and is accounted for."""
    tries = airflow_tries(airflow, "twenty", run_id)
    assert {(key.try_number, row["state"]) for key, row in tries.items()} == {(1, "success")}
    assert len(tries) == TASKS

    def accounted() -> bool:
        known = attempts(airflow, "twenty", run_id)
        return known.keys() == tries.keys() and all(each.closed for each in known.values())

    airflow.wait_for(accounted, 180, "every try to be accounted for")
    known = attempts(airflow, "twenty", run_id)
    assert {each.attribution for each in known.values()} == {"reported"}
    assert REPORT_KEY not in {row["key"] for row in left_in_xcom(airflow, "twenty", run_id)}


def test_lock_on_the_attempts_fails_no_request_and_no_try(
    airflow_env: Callable[[str], Environment], postgres: Postgres
) -> None:
    with deployed(airflow_env("3.3.2"), postgres) as airflow:
        run_id, health = run_while_locked(airflow, attempt.name)
        assert health.failures == []
        assert health.times
        # A blocked request would wait for the lock, or for the pool's time-out of 30 seconds.
        assert max(health.times) < 20
        assert_first_tries_succeeded(airflow, run_id)


if __name__ == "__main__":
    held = float(sys.argv[1]) if len(sys.argv) > 1 else 60
    with Postgres() as server, deployed(environments.installed("3.3.2", package=environments.wheel()), server) as found:
        for name in sys.argv[2:] or TABLES:
            run, asked = run_while_locked(found, name, seconds=held)
            worst = max(asked.times)
            print(f"{name}: {len(asked.times)} answers, the worst after {worst:.2f} s, failures {asked.failures}")
            try:
                assert_first_tries_succeeded(found, run)
            except (AssertionError, TimeoutError, pytest.fail.Exception) as error:
                print(f"  {error}")
            else:
                print("  no try failed or was retried, every one is accounted for")
