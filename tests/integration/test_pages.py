"""The pages Workers, Worker and Attempts in a real browser, with real Celery workers.

``WORKER_INSIGHT_PICTURES=docs/images`` renews the pictures of the documentation.
"""

from __future__ import annotations

import os
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import expect

from tests.support.browser import PAGE_LIMIT, BrowserUser
from tests.support.deployment import Deployment
from tests.support.fleet import start_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Frame, Page, Route

    from tests.support.browser import Theme
    from tests.support.environments import Environment
    from tests.support.services import Postgres, Redis

DAG = """
import os
import time

from airflow.sdk import dag, task


@dag(schedule=None)
def sales():
    @task(retries=1, retry_delay=0)
    def load(number, ti=None):
        time.sleep(0.5)
        if number == 2 and ti.try_number == 1:
            raise ValueError("not the first time")

    load.expand(number=list(range(6)))


@dag(schedule=None)
def night():
    # Runs until its file appears, so that a test decides for how long.
    @task
    def count(ti=None):
        while not os.path.exists(os.environ["AIRFLOW_HOME"] + "/morning"):
            time.sleep(0.2)

    count()


@dag(schedule=None)
def noon():
    @task
    def ring():
        pass

    ring()


sales()
night()
noon()
"""

WORKERS = "/worker-insight/workers"
ATTEMPTS = "/worker-insight/attempts"


@pytest.fixture(scope="module")
def airflow(airflow_env: Callable[[str], Environment], postgres: Postgres, redis: Redis) -> Iterator[Deployment]:
    """Run an Airflow that polls its workers often; no worker runs yet."""
    with Deployment(
        airflow_env("3.3.2"),
        executor="CeleryExecutor",
        postgres=postgres,
        redis=redis,
        config={
            "worker_insight.refresh_interval": "2",
            # On a busy machine a live worker must not become lost.
            "worker_insight.heartbeat_timeout": "15",
            "worker_insight.lost_timeout": "22",
            "worker_insight.worker_labels": "region=eu-west-1,zone=a",
        },
    ) as deployment:
        deployment.write_dag("sales", DAG)
        deployment.migrate()
        deployment.start_all()
        yield deployment


@pytest.fixture(scope="module")
def fleet(airflow: Deployment) -> dict[str, str]:
    """Start two workers with finished tries and a running one; return their IDs by name."""
    start_workers(airflow, "w1", "w2")
    airflow.run_to_end("sales", tries=7)
    airflow.trigger("night")

    def online() -> dict[str, str]:
        found = airflow.api("GET", "/worker-insight/api/v1/workers?state=online").json()["workers"]
        return {worker["name"].partition("@")[0]: worker["worker_id"] for worker in found}

    return airflow.wait_for(lambda: {"w1", "w2"} <= (found := online()).keys() and found, 120, "both workers")


@pytest.fixture
def person(browser: Browser, airflow: Deployment) -> Iterator[BrowserUser]:
    with BrowserUser(browser, airflow) as user:
        yield user
        assert not user.foreign_requests
        assert not user.uncaught
        assert not [error for error in user.errors if "Content Security Policy" in error]


def picture(person: BrowserUser, name: str, **options: object) -> None:
    folder = os.environ.get("WORKER_INSIGHT_PICTURES")
    if folder:
        person.screenshot(Path(folder) / f"{name}.png", **options)  # type: ignore[arg-type]


def query_params(page: Page | Frame) -> dict[str, str]:
    """Return the query parameters of the URL."""
    return {name: values[-1] for name, values in parse_qs(urlsplit(page.url).query).items()}


def names(page: Page | Frame) -> list[str]:
    return [text.partition("@")[0] for text in page.locator("#wi-list tbody .wi-name").all_inner_texts()]


#: The address of the focused link.
FOCUSED = "document.activeElement.getAttribute('href')"


def refresh(page: Page) -> None:
    """Make the page refresh itself now, as when a user returns to it."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def is_wider_than_the_window(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


# --- an empty installation ------------------------------------------------------------------------------------------


def test_empty_installation_says_why_and_updates_itself(airflow: Deployment, person: BrowserUser) -> None:
    page = person.open(WORKERS)
    expect(page.get_by_text("No workers yet")).to_be_visible()
    person.open(f"{ATTEMPTS}?window=any")
    expect(page.get_by_text("No tries yet")).to_be_visible()
    person.open(WORKERS)
    page.evaluate("window.sameDocument = true")
    airflow.start("celery worker", name="w0")
    try:
        expect(page.locator("#wi-list")).to_contain_text("w0@")
        assert page.evaluate("window.sameDocument")
    finally:
        airflow.stop("w0")
    expect(page.locator(".wi-chip", has_text="Offline").locator("b")).to_have_text("1")


# --- the list of workers --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fleet")
def test_the_navigation_leads_to_the_workers(person: BrowserUser) -> None:
    person.open("/")
    person.page.get_by_role("link", name="Workers", exact=True).first.click()
    workers = person.page.frame_locator("iframe")
    expect(workers.get_by_role("heading", name="Workers")).to_be_visible()
    expect(workers.locator("#wi-list tbody")).to_have_count(2)
    expect(workers.locator(".wi-home")).to_be_hidden()
    picture(person, "workers-light")
    picture(person, "workers-dark", theme="dark")
    workers.locator("#wi-list .wi-name").first.click()
    expect(workers.get_by_role("heading", name="Timeline")).to_be_visible()


@pytest.mark.usefixtures("fleet")
def test_url_holds_filters_and_order(person: BrowserUser) -> None:
    page = person.open(WORKERS)
    page.get_by_label("Search").fill("W2@")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator("#wi-list tbody")).to_have_count(1)
    assert query_params(page) == {"search": "W2@"}
    page.get_by_role("link", name="Online").click()
    page.wait_for_url("**state=online**")
    assert query_params(page) == {"search": "W2@", "state": "online"}
    # The URL alone shows the same.
    person.open(f"{WORKERS}?{urlsplit(page.url).query}")
    assert names(page) == ["w2"]
    page.get_by_role("link", name="Contains").click()
    page.wait_for_url(lambda url: "search" not in url)
    expect(page.locator("#wi-list tbody")).to_have_count(2)
    assert names(page) == ["w1", "w2"]
    page.get_by_role("link", name="Worker", exact=True).click()
    page.wait_for_url("**order=-name**")
    assert names(page) == ["w2", "w1"]
    expect(page.locator("th[aria-sort=descending]")).to_have_text("Worker")
    page.go_back()
    expect(page.locator("th[aria-sort=ascending]")).to_have_text("Worker")
    # A select submits itself.
    page.locator("[name=kind]").select_option("edge")
    page.wait_for_url("**kind=edge**")
    expect(page.get_by_text("No workers found", exact=True)).to_be_visible()


@pytest.mark.usefixtures("fleet")
def test_workers_are_grouped_by_label(person: BrowserUser) -> None:
    page = person.open(WORKERS)
    page.get_by_label("Group by").select_option(label="Label zone")
    page.wait_for_url("**group=label**")
    expect(page.locator("#wi-list tbody")).to_contain_text("2 workers")
    picture(person, "workers-grouped")
    page.locator("#wi-list tbody a").click()
    page.wait_for_url("**label=zone**")
    assert names(page) == ["w1", "w2"]


@pytest.mark.usefixtures("fleet")
def test_the_list_works_without_scripts_and_with_the_keyboard(browser: Browser, airflow: Deployment) -> None:
    with BrowserUser(browser, airflow) as person:
        cookies = person.context.cookies()
    context = browser.new_context(base_url=airflow.base_url, java_script_enabled=False)
    try:
        context.add_cookies(cookies)  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(airflow.base_url + WORKERS)
        page.get_by_label("Search").fill("w1@")
        page.keyboard.press("Enter")
        page.wait_for_url("**search=w1**")
        assert names(page) == ["w1"]
        page.locator("#wi-list .wi-name").focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/workers/celery-*")
    finally:
        context.close()


# --- one worker -----------------------------------------------------------------------------------------------------


def test_worker_page_updates_itself(airflow: Deployment, fleet: dict[str, str], person: BrowserUser) -> None:
    page = person.page

    def runs_on() -> str | None:
        for worker_id in fleet.values():
            person.open(f"{WORKERS}/{worker_id}")
            if page.locator("#wi-running-now tbody").count():
                return worker_id
        return None

    worker_id = airflow.wait_for(runs_on, 60, "the worker of the running try")
    expect(page.locator("#wi-instance")).to_contain_text("Online")
    expect(page.locator("#wi-timeline .wi-bar.wi-running")).to_have_count(1)
    expect(page.locator("#wi-chart")).to_contain_text("Success")
    expect(page.locator("#wi-tries")).to_contain_text("sales")
    expect(page.locator(".wi-facts")).to_contain_text("zone a")
    person.open(f"{WORKERS}/{worker_id}?hours=1")
    picture(person, "worker-light", full_page=True)
    page.evaluate("window.sameDocument = true")
    # A note that a user is writing survives the refresh.
    page.get_by_label("Note").fill("half of a sentence")
    (airflow.home / "morning").touch()
    expect(page.locator("#wi-running-now")).to_contain_text("No try is running.")
    expect(page.locator("#wi-timeline .wi-running")).to_have_count(0)
    expect(page.get_by_label("Note")).to_have_value("half of a sentence")
    assert page.evaluate("window.sameDocument")
    person.open(f"{WORKERS}/{worker_id}")
    page.locator("#wi-timeline").get_by_role("link", name="1 h").click()
    page.wait_for_url("**hours=1**")
    page.locator("#wi-timeline").get_by_role("link", name="Earlier").click()
    page.wait_for_url("**until=**")
    page.locator("#wi-timeline").get_by_role("link", name="Now").click()
    page.wait_for_url(lambda url: "until" not in url)
    # The last bar is on top: others may lie below their neighbours.
    page.locator("#wi-timeline a .wi-bar").last.click()
    page.wait_for_url("**/panel?**")


def test_worker_is_drained_with_a_note_and_made_available_again(fleet: dict[str, str], person: BrowserUser) -> None:
    page = person.open(f"{WORKERS}/{fleet['w1']}")
    expect(page.locator("#wi-availability")).to_contain_text("The worker stops consuming its queues")
    page.get_by_role("radio", name="Drain").check()
    page.get_by_label("Note").fill("Kernel update <b>at noon</b>")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#wi-instance")).to_contain_text("Draining")
    expect(page.locator("#wi-history")).to_contain_text("Kernel update <b>at noon</b>")
    expect(page.locator("#wi-history")).to_contain_text("by admin")
    person.open(f"{WORKERS}?availability=draining")
    assert names(page) == ["w1"]
    expect(page.locator("#wi-list")).to_contain_text("Kernel update <b>at noon</b>")
    person.open(f"{WORKERS}/{fleet['w1']}")
    page.get_by_role("radio", name="Available Gets new tasks.").check()
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#wi-instance")).not_to_contain_text("Draining")


def test_viewer_cannot_change_availability(airflow: Deployment, fleet: dict[str, str], browser: Browser) -> None:
    with BrowserUser(browser, airflow, "viewer") as viewer:
        page = viewer.open(f"{WORKERS}/{fleet['w1']}")
        expect(page.get_by_text("You need permission to edit Airflow’s pools")).to_be_visible()
        expect(page.get_by_role("button", name="Save")).to_have_count(0)
        answer = viewer.context.request.post(
            f"{airflow.base_url}{WORKERS}/{fleet['w1']}/availability",
            form={"availability": "quarantined"},
            headers={"Origin": airflow.base_url, "Sec-Fetch-Site": "same-origin"},
        )
        assert answer.status == 403
    with BrowserUser(browser, airflow, "admin") as admin:
        # The same cookie, sent by a foreign page.
        forged = admin.context.request.post(
            f"{airflow.base_url}{WORKERS}/{fleet['w1']}/availability",
            form={"availability": "quarantined"},
            headers={"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        )
        assert forged.status == 403
        admin.open(f"{WORKERS}?availability=quarantined")
        expect(admin.page.get_by_text("No workers found", exact=True)).to_be_visible()


# --- attempts -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fleet")
def test_attempts_are_filtered_by_the_url(person: BrowserUser) -> None:
    page = person.open(f"{ATTEMPTS}?dag_id=sales")
    rows = page.locator("#wi-list tbody")
    expect(rows).to_have_count(7)
    picture(person, "attempts-light")
    page.get_by_label("State").select_option("failed")
    page.wait_for_url("**state=failed**")
    expect(rows).to_have_count(1)
    assert query_params(page) == {"dag_id": "sales", "state": "failed"}
    rows.locator("a").first.click()
    page.wait_for_url("**/panel?**")
    expect(page.locator("#wi-panel tbody")).to_have_count(2)
    person.open(f"{ATTEMPTS}?dag_id=sales&state=failed")
    rows.locator(".wi-cell-worker a").click()
    page.wait_for_url("**/workers/celery-*")
    person.open(ATTEMPTS)
    page.get_by_label("Until (UTC)").fill("2020-01-01T00:00")
    page.get_by_role("button", name="Apply").click()
    expect(page.get_by_text("No try that you can see matches these filters.")).to_be_visible()
    # The fields are in the zone of the page, the address is in UTC.
    page.evaluate("localStorage.setItem('timezone', '\"Asia/Tokyo\"')")
    page.reload()
    field = page.get_by_label("Until (Asia/Tokyo)")
    expect(field).to_have_value("2020-01-01T09:00")
    field.fill("2020-01-01T10:30")
    page.get_by_role("button", name="Apply").click()
    page.wait_for_url(lambda url: "until=2020-01-01T01%3A30" in url)
    page.evaluate("localStorage.removeItem('timezone')")


@pytest.mark.usefixtures("fleet")
def test_attempts_page_updates_itself_after_an_idle_time(airflow: Deployment, person: BrowserUser) -> None:
    page = person.open(f"{ATTEMPTS}?dag_id=noon")
    expect(page.get_by_text("No try that you can see matches these filters.")).to_be_visible()
    page.evaluate("window.sameDocument = true")
    rows = page.locator("#wi-list tbody")
    for number in (1, 2):
        airflow.wait_run("noon", airflow.trigger("noon"), expect="success")
        expect(rows).to_have_count(number)
        # All listed tries end before the next starts.
        expect(rows.filter(has_text="Success")).to_have_count(number)
        if number == 1:
            rows.first.locator("a").first.focus()
            focused = page.evaluate(FOCUSED)
    assert page.evaluate("window.sameDocument")
    # The focused row has moved down and kept the focus.
    assert page.evaluate(FOCUSED) == focused == rows.last.locator("a").first.get_attribute("href")


@pytest.mark.usefixtures("fleet")
def test_the_keyboard_goes_to_no_other_row_when_its_own_is_gone(person: BrowserUser) -> None:
    page = person.open(f"{ATTEMPTS}?dag_id=sales&state=success")
    link = page.locator("#wi-list tbody .wi-name").first
    href = link.get_attribute("href")
    assert href is not None

    def without_it(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text().replace(escape(href), "#gone"))

    page.route("**/attempts/fragment?*", without_it)
    link.focus()
    refresh(page)
    expect(page.locator("#wi-list a[href='#gone']").first).to_be_visible()
    assert page.evaluate(FOCUSED) is None


@pytest.mark.usefixtures("fleet")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_page_that_cannot_be_refreshed_says_since_when(person: BrowserUser, theme: Theme) -> None:
    person.set_theme(theme)
    page = person.open(f"{ATTEMPTS}?dag_id=sales")
    stale = page.get_by_role("status")
    fragments = "**/attempts/fragment?*"
    asked_for: list[str] = []
    page.on("request", lambda request: asked_for.append(request.url) if "/fragment" in request.url else None)

    def answer(status: int) -> None:
        page.route(fragments, lambda route: route.fulfill(status=status, body="of no use"))

    def refresh_once() -> None:
        with page.expect_response(fragments):
            refresh(page)

    answer(502)
    refresh_once()
    expect(stale).to_have_text("")
    refresh_once()
    expect(stale).to_have_text(re.compile(r"^Not updated since \d\d:\d\d:\d\d UTC$"))
    expect(stale).to_be_in_viewport()
    expect(page.locator("#wi-list tbody")).to_have_count(7)
    page.unroute(fragments)
    refresh_once()
    expect(stale).to_have_text("")
    # An answer that is another page, such as a proxy's, does not count.
    answer(200)
    refresh_once()
    refresh_once()
    expect(stale).to_contain_text("Not updated since")
    page.unroute(fragments)
    refresh_once()
    expect(stale).to_have_text("")
    # A page that is gone is not requested again.
    answer(404)
    refresh_once()
    expect(stale).to_contain_text("Not updated since")
    asked_for.clear()
    refresh(page)
    page.wait_for_timeout(1000)
    assert asked_for == []


# --- colour modes and phones ----------------------------------------------------------------------------------------


def test_every_page_fits_a_phone_and_follows_the_colour_mode(
    airflow: Deployment, fleet: dict[str, str], browser: Browser
) -> None:
    backgrounds = set()
    for theme in ("light", "dark"):
        with BrowserUser(browser, airflow, theme=theme, width=360, height=780) as person:  # type: ignore[arg-type]
            for path in (WORKERS, f"{WORKERS}?group=queue", f"{WORKERS}/{fleet['w1']}", ATTEMPTS):
                person.open(path)
                assert not is_wider_than_the_window(person.page), path
            backgrounds.add(person.page.evaluate("getComputedStyle(document.body).backgroundColor"))
            person.open(WORKERS)
            if theme == "light":
                picture(person, "workers-phone")
    assert len(backgrounds) == 2


# --- many workers ---------------------------------------------------------------------------------------------------

# Seen tomorrow, so that no poll finds them silent.
MANY = """
INSERT INTO worker_insight_worker (
    worker_id, name, engine_name, kind, hostname, host_only, registered_at, last_seen_at, state, availability,
    queues, concurrency, running, labels, resources, versions, fingerprint
)
SELECT 'many-' || n, 'many-' || n, 'many-' || n, 'celery', 'host-' || mod(n, 50), false, now(),
    now() + interval '1 day', 1, 1, '["bulk"]', 16, mod(n, 17), '{"zone": "b"}', '{}', '{}', ''
FROM generate_series(1, 2000) AS n RETURNING id
"""


@pytest.mark.usefixtures("fleet")
def test_two_thousand_workers_stay_usable(airflow: Deployment, person: BrowserUser) -> None:
    airflow.sql(MANY)
    try:
        page = person.open(f"{WORKERS}?queue=bulk&order=-running")
        rows = page.locator("#wi-list tbody")
        expect(rows).to_have_count(100)
        expect(page.locator(".wi-chip", has_text="Online").locator("b")).to_have_text("2,000")
        expect(page.locator(".wi-pager")).to_contain_text("1 to 100 of 2,000 workers")
        expect(rows.first).to_contain_text("16 / 16")
        picture(person, "workers-many")
        page.get_by_role("link", name="Next").click()
        expect(page.locator(".wi-pager")).to_contain_text("101 to 200 of 2,000 workers")
        page.get_by_label("Search").fill("many-1999")
        page.keyboard.press("Enter")
        expect(rows).to_have_count(1)
        page.get_by_label("Group by").select_option("hostname")
        expect(rows).to_have_count(1)
        person.open(f"{WORKERS}?queue=bulk&group=hostname")
        expect(rows).to_have_count(50)
        expect(rows.first).to_contain_text("40 workers")
    finally:
        airflow.sql("DELETE FROM worker_insight_worker WHERE starts_with(worker_id, 'many-') RETURNING id")


# --- the end of a worker --------------------------------------------------------------------------------------------


def test_lost_worker_shows_its_lost_tries(airflow: Deployment, fleet: dict[str, str], person: BrowserUser) -> None:
    (airflow.home / "morning").unlink(missing_ok=True)
    airflow.stop("w1")
    airflow.trigger("night")
    page = person.open(f"{WORKERS}/{fleet['w2']}")
    expect(page.locator("#wi-running-now")).to_contain_text("count")
    page.evaluate("window.sameDocument = true")
    airflow.kill("w2", descendants=True)
    expect(page.locator("#wi-instance")).to_contain_text("Lost", timeout=2 * PAGE_LIMIT)
    expect(page.locator("#wi-lost-tries")).to_contain_text("count")
    assert page.evaluate("window.sameDocument")
    picture(person, "worker-lost")
    person.open(f"{WORKERS}?state=lost")
    assert names(page) == ["w2"]
    person.open(f"{WORKERS}?state=offline")
    assert "w1" in names(page)
