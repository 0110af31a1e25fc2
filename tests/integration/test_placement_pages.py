"""Placement reasons and waiting tasks in a real browser.

``WORKER_INSIGHT_PICTURES=docs/images`` renews the pictures of the documentation.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from playwright.sync_api import expect

from tests.integration.placing import wait_consuming
from tests.support.browser import BrowserUser
from tests.support.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser

    from tests.support.environments import Environment
    from tests.support.services import Postgres, Redis

EXECUTOR = "airflow_worker_insight.executors.celery.WorkerInsightCeleryExecutor"

DAG = """
import os
import time

from airflow.sdk import dag, task


@dag(schedule=None)
def sales():
    @task(retries=1, retry_delay=0)
    def load(ti=None):
        # Runs until its file appears, so that the test decides how long.
        while not os.path.exists(os.environ["AIRFLOW_HOME"] + f"/try-{ti.try_number}"):
            time.sleep(0.2)
        if ti.try_number == 1:
            raise ValueError("not the first time")

    load()


@dag(schedule=None)
def night():
    @task
    def count(number):
        while not os.path.exists(os.environ["AIRFLOW_HOME"] + "/morning"):
            time.sleep(0.2)

    count.expand(number=list(range(12)))


@dag(schedule=None)
def gpu():
    @task(executor_config={"worker_insight": {"labels": {"gpu": "yes"}}})
    def train(): ...

    train()


sales()
night()
gpu()
"""


@pytest.fixture(scope="module")
def airflow(airflow_env: Callable[[str], Environment], postgres: Postgres, redis: Redis) -> Iterator[Deployment]:
    with Deployment(
        airflow_env("3.3.2"),
        executor=EXECUTOR,
        postgres=postgres,
        redis=redis,
        config={
            "worker_insight.refresh_interval": "2",
            "worker_insight.placement_backlog": "4",
            "core.parallelism": "32",
        },
    ) as deployment:
        deployment.write_dag("sales", DAG)
        deployment.migrate()
        deployment.start_all(workers=2)
        wait_consuming(deployment, "w1", "w2")
        yield deployment


@pytest.fixture
def person(browser: Browser, airflow: Deployment) -> Iterator[BrowserUser]:
    with BrowserUser(browser, airflow) as user:
        yield user
        assert not user.foreign_requests
        assert not user.uncaught


def pictures(person: BrowserUser, name: str) -> None:
    folder = os.environ.get("WORKER_INSIGHT_PICTURES")
    if folder:
        person.screenshot(Path(folder) / f"{name}-light.png")
        person.screenshot(Path(folder) / f"{name}-dark.png", theme="dark")
        person.set_theme("light")


def open_panel(person: BrowserUser, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> None:
    address = f"dag_id={dag_id}&run_id={quote(run_id, safe='')}&task_id={task_id}&map_index={map_index}"
    person.open(f"/worker-insight/panel?{address}")


def states(airflow: Deployment, dag_id: str, run_id: str) -> list[str]:
    return sorted(str(row["state"]) for row in airflow.task_instances(dag_id, run_id))


def both_are_known(airflow: Deployment) -> bool:
    rows = airflow.sql("SELECT 1 FROM worker_insight_worker WHERE ended_at IS NULL AND engine_name LIKE 'w%'")
    return len(rows) == 2


def test_panel_says_which_worker_a_retry_avoids(airflow: Deployment, person: BrowserUser) -> None:
    airflow.wait_for(lambda: both_are_known(airflow), 60, "both workers to be known")
    run_id = airflow.trigger("sales")
    (airflow.home / "try-1").touch()
    query = "SELECT 1 FROM worker_insight_attempt WHERE run_id = :run_id AND try_number = 2"
    airflow.wait_for(lambda: airflow.sql(query, run_id=run_id), 120, "the second try to run")
    open_panel(person, "sales", run_id, "load")
    second, first = person.page.locator("tbody tr").nth(0), person.page.locator("tbody tr").nth(1)
    failed_on = "w1" if "w1@" in second.inner_text().replace("avoids w1@", "") else "w2"
    expect(first).to_contain_text("Placed: ")
    expect(first).to_contain_text("least loaded")
    expect(second).to_contain_text("retry on another worker")
    expect(second).to_contain_text("avoids")
    assert f"avoids {failed_on}" not in second.inner_text()
    pictures(person, "panel-placed")
    (airflow.home / "try-2").touch()
    airflow.wait_run("sales", run_id, expect="success")


def test_waiting_task_says_what_it_waits_for(airflow: Deployment, person: BrowserUser) -> None:
    run_id = airflow.trigger("gpu")
    query = "SELECT 1 FROM worker_insight_placement WHERE run_id = :run_id"
    airflow.wait_for(lambda: airflow.sql(query, run_id=run_id), 60, "the reason to be written")
    open_panel(person, "gpu", run_id, "train")
    row = person.page.locator("tbody tr").first
    expect(row).to_contain_text("Not placed yet: no available worker of the queue default has the requested labels")
    expect(row).to_contain_text("lacks gpu=yes")
    pictures(person, "panel-waits")
    person.page.get_by_role("link", name="Waiting", exact=True).click()
    waiting = person.page.locator(".wi-waiting tbody tr").filter(has_text="train")
    expect(waiting).to_contain_text("No available worker of the queue default has the requested labels")
    expect(waiting).to_contain_text("ago")
    pictures(person, "waiting")
    waiting.get_by_role("link", name="train").click()
    expect(person.page.locator("h1")).to_have_text("train")


def test_worker_page_lists_placed_tasks_and_says_when_a_drained_worker_is_empty(
    airflow: Deployment, person: BrowserUser
) -> None:
    run_id = airflow.trigger("night")
    # Two run and four wait at each.
    airflow.wait_for(
        lambda: states(airflow, "night", run_id) == ["queued"] * 8 + ["running"] * 4, 120, "both workers to be full"
    )
    query = "SELECT 1 FROM worker_insight_placement WHERE run_id = :run_id AND worker_ref IS NOT NULL"
    airflow.wait_for(lambda: len(airflow.sql(query, run_id=run_id)) == 12, 60, "all to be placed")
    (worker_id,) = (
        row["worker_id"]
        for row in airflow.sql("SELECT worker_id, engine_name FROM worker_insight_worker WHERE engine_name LIKE 'w1@%'")
    )
    person.open(f"/worker-insight/workers/{worker_id}")
    placed = person.page.locator("#wi-placed")
    expect(placed.locator("tbody tr")).to_have_count(4)
    expect(placed).to_contain_text("count")
    placed.scroll_into_view_if_needed()
    pictures(person, "worker-placed")
    person.page.set_viewport_size({"width": 390, "height": 844})
    placed.scroll_into_view_if_needed()
    pictures(person, "worker-placed-narrow")
    answer = airflow.api(
        "PATCH", f"/worker-insight/api/v1/workers/{worker_id}", json={"availability": "draining", "note": "patches"}
    )
    assert answer.ok, answer.text
    # The other worker has no free slot yet: the waiting tasks move to it once its own end.
    (airflow.home / "morning").touch()
    airflow.wait_run("night", run_id, expect="success")
    person.page.get_by_text("The worker is empty").first.wait_for()
