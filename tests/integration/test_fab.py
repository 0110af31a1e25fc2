"""The Flask-AppBuilder views on Airflow 2.11, and on Airflow 3.3 with FAB's auth manager."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
import requests
from playwright.sync_api import expect

from tests.support.browser import BrowserUser
from tests.support.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser

    from tests.support.environments import Environment

# A standard operator in two Dags, of which one user may read only one.
DAGS = """
from datetime import datetime, timedelta

try:
    from airflow.sdk import DAG
    from airflow.providers.standard.operators.bash import BashOperator
except ImportError:
    from airflow import DAG
    from airflow.operators.bash import BashOperator


def make(dag_id):
    with DAG(dag_id, schedule=None, start_date=datetime(2025, 1, 1)) as dag:
        BashOperator(
            task_id="load", bash_command="exit {{ 2 - ti.try_number }}", retries=1, retry_delay=timedelta(0)
        )
    return dag


sales = make("sales")
secret = make("secret")
"""

# Decoded like a form field, the plus would become a space.
RUN_ID = "manual__2026-01-31T08:00:00+00:00"

ONLY_SALES = [
    ("can_read", "Website"),
    ("can_read", "DAG:sales"),
    ("can_read", "DAG Runs"),
    ("can_read", "Task Instances"),
    ("can_read", "Jobs"),
]


@pytest.fixture(scope="module", params=["2.11.2", "3.3.2"])
def airflow(request: pytest.FixtureRequest, airflow_env: Callable[[str], Environment]) -> Iterator[Deployment]:
    """Run both Dags once, with a base path as behind a proxy."""
    with Deployment(
        airflow_env(request.param),
        auth="fab",
        users={"limited": "sales-only"},
        roles={"sales-only": ONLY_SALES},
        base_path="/team",
        config={"webserver.auth_rate_limited": "False", "fab.auth_rate_limited": "False"},
    ) as deployment:
        deployment.write_dag("two", DAGS)
        deployment.migrate()
        deployment.start_all()
        for dag_id in ("sales", "secret"):
            deployment.trigger(dag_id, run_id=RUN_ID)
        for dag_id in ("sales", "secret"):
            deployment.wait_run(dag_id, RUN_ID, expect="success")
        yield deployment


def panel(airflow: Deployment, dag_id: str, page: str = "panel") -> str:
    """Return the path of a panel, with an unquoted plus in the run ID as of Airflow 3.1."""
    root = "/pluginsv2/workerinsight" if airflow.airflow3 else "/workerinsight"
    return f"{root}/{page}?dag_id={dag_id}&run_id={RUN_ID}&task_id=load&map_index={{MAP_INDEX}}"


def pages(airflow: Deployment) -> str:
    """Return the path of the Flask views below the base URL."""
    return "/pluginsv2/workerinsight" if airflow.airflow3 else "/workerinsight"


def log_in(airflow: Deployment, user: str) -> requests.Session:
    """Return a session with the cookies of a logged-in browser and no other credentials."""
    session = requests.Session()
    session.trust_env = False
    login = f"{airflow.base_url}/auth/login/" if airflow.airflow3 else f"{airflow.base_url}/login/"
    token = re.search(r'name="csrf_token"[^>]* value="([^"]+)"', session.get(login, timeout=30).text)
    assert token is not None
    form = {"username": user, "password": user, "csrf_token": token[1]}
    assert session.post(login, data=form, allow_redirects=False, timeout=30).status_code == 302
    return session


def attempts(airflow: Deployment, user: str, query: str = "") -> requests.Response:
    """Query the REST API, which FastAPI serves on Airflow 3."""
    root = "/worker-insight" if airflow.airflow3 else "/workerinsight"
    return airflow.api("GET", f"{root}/api/v1/attempts{query}", user=user)


def test_reader_sees_only_permitted_dags(airflow: Deployment) -> None:
    limited, viewer = log_in(airflow, "limited"), log_in(airflow, "viewer")
    for page in ("panel", "panel/fragment"):
        seen = limited.get(airflow.base_url + panel(airflow, "sales", page), timeout=30)
        assert seen.status_code == 200
        assert seen.text.count(">Reported</span>") >= 2
        refused = limited.get(airflow.base_url + panel(airflow, "secret", page), timeout=30, allow_redirects=False)
        assert refused.status_code == 403
        assert "Reported" not in refused.text
        assert viewer.get(airflow.base_url + panel(airflow, "secret", page), timeout=30).status_code == 200

    workers = set(re.findall(r'href="(/team/[^"]*/workers/[^"?]+)"', seen.text))
    assert workers
    origin = airflow.base_url.removesuffix("/team")
    for worker in workers:
        shown = limited.get(origin + worker, timeout=30)
        assert shown.status_code == 200
        assert "sales" in shown.text
        assert "secret" not in shown.text
        assert "secret" in viewer.get(origin + worker, timeout=30).text


def test_lists_and_totals_hold_only_permitted_dags(airflow: Deployment) -> None:
    everything = attempts(airflow, "viewer").json()
    assert everything["total_entries"] == 4
    assert {attempt["dag_id"] for attempt in everything["attempts"]} == {"sales", "secret"}
    permitted = attempts(airflow, "limited").json()
    assert permitted["total_entries"] == 2
    assert {attempt["dag_id"] for attempt in permitted["attempts"]} == {"sales"}
    worker_id = everything["attempts"][0]["workers"][0]["worker_id"]
    assert attempts(airflow, "limited", f"?worker_id={worker_id}").json()["total_entries"] == 2
    assert attempts(airflow, "limited", "?dag_id=secret").status_code == 403
    assert attempts(airflow, "limited", "?dag_id=sales&try_number=1").json()["total_entries"] == 1
    root = "/worker-insight" if airflow.airflow3 else "/workerinsight"
    for path in ("attempts", "health"):
        assert airflow.api("GET", f"{root}/api/v1/{path}", user=None).status_code == 401
    assert airflow.api("GET", f"{root}/api/v1/health", user="limited").json()["status"] == "healthy"


def test_anonymous_user_sees_nothing(airflow: Deployment) -> None:
    for path in (panel(airflow, "sales"), panel(airflow, "no-such-dag"), panel(airflow, "sales", "workers/w1")):
        answer = requests.get(airflow.base_url + path, timeout=30, allow_redirects=False)
        assert answer.status_code == 302
        assert "/login" in answer.headers["location"]
    assert requests.get(airflow.base_url + panel(airflow, "sales", "panel/fragment"), timeout=30).status_code == 401
    forged = requests.get(
        airflow.base_url + panel(airflow, "sales"),
        cookies={"_token": "a.b.c", "session": "forged"},
        timeout=30,
        allow_redirects=False,
    )
    assert forged.status_code == 302


def test_the_login_leads_back_to_the_panel(airflow: Deployment, browser: Browser) -> None:
    with BrowserUser(browser, airflow, None) as person:
        page = person.open(panel(airflow, "sales"))
        page.locator("input[name=username]").fill("limited")
        page.locator("input[name=password]").fill("limited")
        page.locator("button[type=submit], input[type=submit]").first.click()
        page.locator("#wi-panel").wait_for()
        assert "dag_id=sales" in page.url
        assert page.locator("#wi-panel tbody").count() == 2


def test_the_link_on_a_standard_operator_leads_to_the_panel(airflow: Deployment, browser: Browser) -> None:
    run_id = quote(RUN_ID, safe="")
    links = airflow.api("GET", f"/dags/sales/dagRuns/{run_id}/taskInstances/load/links").json()
    link = links.get("extra_links", links)["Worker"]
    with BrowserUser(browser, airflow, "admin") as person:
        if not airflow.airflow3:
            # Airflow's own page of the task instance, as a user reaches it.
            person.open(f"/dags/sales/grid?dag_run_id={run_id}&task_id=load")
            button = person.page.get_by_role("link", name="Worker", exact=True)
            assert button.get_attribute("href") == link
        page = person.page
        page.goto(airflow.base_url.removesuffix("/team") + link)
        page.locator("#wi-panel").wait_for()
        assert page.locator("#wi-panel tbody").count() == 2
        assert page.locator("tbody.wi-selected").count() == 1
        assert not person.foreign_requests


def test_the_page_looks_like_airflows_own_in_light_and_dark(airflow: Deployment, browser: Browser) -> None:
    with BrowserUser(browser, airflow, "admin") as person:
        page = person.page
        for theme in ("light", "dark"):
            # 2.11 inverts the whole page: the operating system's dark mode must not invert it again.
            page.emulate_media(color_scheme="dark")
            page.evaluate(f"localStorage.setItem('theme', '{theme}')")
            page.evaluate(f"localStorage.setItem('darkTheme', '{'true' if theme == 'dark' else 'false'}')")
            person.set_theme("dark" if theme == "dark" else "light")
            person.open(panel(airflow, "sales"))
            look = page.evaluate(
                """() => {
                    const style = getComputedStyle(document.querySelector("#wi-panel"));
                    return {
                        scheme: style.colorScheme,
                        size: style.fontSize,
                        inverted: getComputedStyle(document.documentElement).filter,
                        wide: document.documentElement.scrollWidth > document.documentElement.clientWidth,
                    };
                }"""
            )
            assert look["size"] == "14px"
            assert not look["wide"]
            if airflow.airflow3:
                assert look["scheme"] == theme
            else:
                assert look["scheme"] == "light only"
                assert ("invert" in look["inverted"]) == (theme == "dark")
                assert page.get_by_role("link", name="DAGs", exact=True).is_visible()
        assert not person.foreign_requests


def test_times_follow_the_zone_chosen_in_airflow(airflow: Deployment, browser: Browser) -> None:
    with BrowserUser(browser, airflow, "admin") as person:
        page = person.page
        key, value = ("timezone", '"Asia/Tokyo"') if airflow.airflow3 else ("selected-timezone", "Asia/Tokyo")
        page.evaluate("([key, value]) => localStorage.setItem(key, value)", [key, value])
        person.open(panel(airflow, "sales"))
        started = page.locator("#wi-panel .wi-cell-time time").first
        zone = page.locator("#wi-panel [data-wi-zone]")
        assert "GMT+9" in str(started.get_attribute("title"))
        assert zone.inner_text() == "Asia/Tokyo"
        if not airflow.airflow3:
            # Its menu is on the same page: no reload.
            page.evaluate("document.querySelector('#timezone-utc a').click()")
            assert str(started.get_attribute("title")).endswith("UTC")
            assert zone.inner_text() == "UTC"


# --- the fleet ------------------------------------------------------------------------------------------------------


def test_fleet_pages_hold_only_permitted_dags(airflow: Deployment) -> None:
    limited, viewer = log_in(airflow, "limited"), log_in(airflow, "viewer")
    root = airflow.base_url + pages(airflow)
    path = "attempts?window=any"
    listed = limited.get(f"{root}/{path}", timeout=30)
    assert listed.status_code == 200
    assert "sales" in listed.text
    assert "secret" not in listed.text
    assert "secret" in viewer.get(f"{root}/{path}", timeout=30).text
    assert limited.get(f"{root}/workers", timeout=30).status_code == 200
    for path in ["workers", "attempts", "workers/w1"]:
        answer = requests.get(f"{root}/{path}", timeout=30, allow_redirects=False)
        assert answer.status_code == 302
        assert "/login" in answer.headers["location"]


def test_changing_availability_needs_the_right_to_edit_pools(airflow: Deployment, browser: Browser) -> None:
    root = "/worker-insight" if airflow.airflow3 else "/workerinsight"
    (worker, *_) = airflow.api("GET", f"{root}/api/v1/attempts").json()["attempts"][0]["workers"]
    page_of_worker = f"{pages(airflow)}/workers/{worker['worker_id']}"
    limited = log_in(airflow, "limited")
    seen = limited.get(airflow.base_url + page_of_worker, timeout=30).text
    assert "You need permission to edit Airflow’s pools" in seen
    forged = limited.post(
        f"{airflow.base_url}{page_of_worker}/availability",
        data={"availability": "quarantined"},
        headers={"Sec-Fetch-Site": "same-origin"},
        timeout=30,
    )
    assert forged.status_code in (400, 403)
    with BrowserUser(browser, airflow, "admin") as person:
        page = person.open(page_of_worker)
        page.get_by_role("radio", name="Drain").check()
        page.get_by_label("Note").fill("Kernel update")
        page.get_by_role("button", name="Save").click()
        page.locator("#wi-instance .wi-badge-draining").wait_for()
        assert "Kernel update" in page.locator("#wi-history").inner_text()
        assert "by admin" in page.locator("#wi-history").inner_text()
        page.get_by_role("radio", name="Available Gets new tasks.").check()
        page.get_by_role("button", name="Save").click()
        page.locator("#wi-instance .wi-badge-draining").wait_for(state="detached")
        assert not person.foreign_requests


def test_the_menu_of_2_11_leads_to_the_pages(airflow: Deployment, browser: Browser) -> None:
    if airflow.airflow3:
        pytest.skip("Airflow 3 has another navigation, see test_pages.py")
    with BrowserUser(browser, airflow, "viewer") as person:
        page = person.open("/home")
        page.get_by_role("link", name="Browse").hover()
        page.get_by_role("link", name="Workers", exact=True).click()
        page.locator("#wi-workers").wait_for()
        page.get_by_text("Worker states are stale: never checked", exact=True).wait_for()
        airflow.run("airflow-worker-insight", "refresh")
        page.get_by_role("link", name="Show all workers").click()
        expect(page.get_by_text("Worker states are stale")).to_have_count(0)
        page.locator("#wi-list tbody").first.wait_for()
        folder = os.environ.get("WORKER_INSIGHT_PICTURES")
        if folder:
            person.settle()
            person.screenshot(Path(folder) / "workers-2.11.png")
        page.get_by_role("link", name="Browse").hover()
        page.get_by_role("link", name="Attempts", exact=True).first.click()
        page.locator("#wi-attempts tbody").first.wait_for()
        assert not person.foreign_requests
