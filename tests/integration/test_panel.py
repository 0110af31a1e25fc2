"""The Worker panel of a standard operator in a real browser, reached as a user reaches it.

``WORKER_INSIGHT_PICTURES=docs/images`` renews the pictures of the documentation.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.browser import BrowserUser
from tests.support.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, FrameLocator

    from tests.support.environments import Environment
    from tests.support.services import Postgres, Redis

DAG = """
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import dag, task


@dag(schedule=None)
def sales():
    # Fails on its first two tries.
    load = BashOperator(
        task_id="load",
        retries=3,
        retry_delay=0,
        bash_command="sleep $(( {{ ti.try_number }} * 2 )); test {{ ti.try_number }} -ge 3",
    )

    @task.short_circuit
    def go_on():
        return False

    @task
    def publish(): ...

    load >> go_on() >> publish()


sales()
"""


@pytest.fixture(scope="module")
def airflow(airflow_env: Callable[[str], Environment], postgres: Postgres, redis: Redis) -> Iterator[Deployment]:
    with Deployment(airflow_env("3.3.2"), executor="CeleryExecutor", postgres=postgres, redis=redis) as deployment:
        deployment.write_dag("sales", DAG)
        deployment.migrate()
        deployment.start_all(workers=2)
        yield deployment


@pytest.fixture(scope="module")
def run_id(airflow: Deployment) -> str:
    # Three of the first task, one of the next.
    return airflow.run_to_end("sales", tries=4)


@pytest.fixture
def person(browser: Browser, airflow: Deployment) -> Iterator[BrowserUser]:
    with BrowserUser(browser, airflow) as user:
        yield user
        assert not user.foreign_requests


def picture(person: BrowserUser, name: str, **options: object) -> None:
    folder = os.environ.get("WORKER_INSIGHT_PICTURES")
    if folder:
        person.screenshot(Path(folder) / f"{name}.png", **options)  # type: ignore[arg-type]


def assert_shows_three_tries(panel: FrameLocator | object) -> None:
    rows = panel.locator("tbody tr")  # type: ignore[attr-defined]
    rows.nth(2).wait_for()
    texts = [row.inner_text() for row in rows.all()]
    assert [text.split()[0] for text in texts] == ["3", "2", "1"]
    assert ["Success" in text for text in texts] == [True, False, False]
    assert all("w1@" in text or "w2@" in text for text in texts)
    assert all("Reported" in text for text in texts)


def test_tab_of_a_task_instance_shows_its_tries(run_id: str, person: BrowserUser) -> None:
    person.open(f"/dags/sales/runs/{run_id}/tasks/load")
    person.page.get_by_role("tab", name="Worker", exact=True).or_(
        person.page.get_by_role("link", name="Worker", exact=True)
    ).first.click()
    panel = person.page.frame_locator("iframe")
    assert_shows_three_tries(panel)
    picture(person, "tab-light")
    picture(person, "tab-dark", theme="dark")


def test_panel_opened_inside_the_tab_names_its_task(run_id: str, person: BrowserUser) -> None:
    person.open(f"/dags/sales/runs/{run_id}/tasks/load")
    person.page.get_by_role("tab", name="Worker", exact=True).or_(
        person.page.get_by_role("link", name="Worker", exact=True)
    ).first.click()
    panel = person.page.frame_locator("iframe")
    panel.locator("tbody tr").first.wait_for()
    # The page around the tab names its task.
    assert not panel.get_by_role("heading", name="load", exact=True).is_visible()
    panel.locator("tbody tr").first.get_by_role("link").first.click()
    # The table of the worker's peers names the task too, once tries have been compared.
    panel.locator("#wi-tries").get_by_role("link", name="load", exact=True).first.click()
    panel.get_by_role("heading", name="load", exact=True).wait_for()


def test_the_link_of_a_task_leads_to_all_its_tries(run_id: str, person: BrowserUser) -> None:
    person.open(f"/dags/sales/runs/{run_id}/tasks/load/details")
    link = person.page.get_by_role("link", name="Worker", exact=True).and_(
        person.page.locator("[href*='/worker-insight/panel']")
    )
    href = link.first.get_attribute("href")
    link.first.scroll_into_view_if_needed()
    picture(person, "link-light")
    assert href is not None
    person.open(href)
    assert_shows_three_tries(person.page)


def test_the_panel_follows_airflows_colour_mode(run_id: str, person: BrowserUser) -> None:
    person.open(f"/worker-insight/panel?dag_id=sales&run_id={run_id.replace('+', '%2B')}&task_id=load")

    def background() -> str:
        return str(person.page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light = background()
    picture(person, "panel-light")
    person.page.evaluate("localStorage.setItem('theme', 'dark')")
    person.set_theme("dark")
    person.page.reload()
    assert background() != light
    picture(person, "panel-dark")


def test_panel_links_to_the_worker_page(run_id: str, person: BrowserUser) -> None:
    person.open(f"/worker-insight/panel?dag_id=sales&run_id={run_id.replace('+', '%2B')}&task_id=load")
    name = person.page.locator("tbody a").first.inner_text()
    person.page.locator("tbody a").first.click()
    person.settle()
    assert "/worker-insight/workers/celery-" in person.page.url
    person.page.get_by_role("heading", name=name).wait_for()
    person.page.locator("#wi-tries").get_by_role("link", name="load", exact=True).first.wait_for()


def test_skipped_task_says_that_no_worker_ran_it(run_id: str, person: BrowserUser) -> None:
    person.open(f"/worker-insight/panel?dag_id=sales&run_id={run_id.replace('+', '%2B')}&task_id=publish")
    person.page.get_by_text("Never ran on a worker").wait_for()


@pytest.mark.parametrize("path", ["/panel?dag_id=sales&run_id=r&task_id=load", "/workers/celery-abc"])
def test_anonymous_is_sent_to_the_login_and_back(airflow: Deployment, browser: Browser, path: str) -> None:
    with BrowserUser(browser, airflow, None) as stranger:
        stranger.open(f"/worker-insight{path}")
        assert "/auth/login" in stranger.page.url
        stranger.page.locator("input[name=username]").fill("admin")
        stranger.page.locator("input[name=password]").fill("admin")
        stranger.page.locator("button[type=submit]").first.click()
        stranger.page.wait_for_url(f"**/worker-insight{path}")


@pytest.mark.parametrize("path", ["/api/v1/attempts", "/api/v1/health", "/openapi.json"])
def test_anonymous_gets_401_from_the_api(airflow: Deployment, path: str) -> None:
    assert airflow.api("GET", f"/worker-insight{path}", user=None).status_code == 401
