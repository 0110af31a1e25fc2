"""The HTML of the pages: everything is escaped, nothing comes from elsewhere, and a table stays a table."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_worker_insight.domain.attempts import AttemptPage
from airflow_worker_insight.domain.workers import SourceStatus, WorkerGroup
from airflow_worker_insight.store.attempts.by_worker import Outcomes
from airflow_worker_insight.ui.query_params import AttemptsAddress, PanelAddress, WorkerAddress, WorkersAddress
from airflow_worker_insight.ui.rendering import FRAGMENT, STATIC, render
from airflow_worker_insight.ui.urls import Urls
from airflow_worker_insight.ui.views.attempts import build_attempts_page
from airflow_worker_insight.ui.views.panel import build_panel
from airflow_worker_insight.ui.views.parts import Notice
from airflow_worker_insight.ui.views.worker import build_worker_page
from airflow_worker_insight.ui.views.workers import build_workers_page
from tests.unit.database import at
from tests.unit.ui.attempts import HERE, a_stay, a_try, on, one_of_the_host
from tests.unit.ui.workers import NOW, a_change, a_life, a_listing, a_worker_row

HOSTILE = "\"><img src=x onerror=alert(1)>'&{{7*7}}🦊"
URLS = Urls("/airflow/worker-insight", may_see_workers=True)


class Page(HTMLParser):
    """What a browser would make of a page: its tags with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, name: str, /, **attributes: str | None) -> list[dict[str, str | None]]:
        wanted = attributes.items()
        return [found for tag, found in self.tags if tag == name and wanted <= found.items()]


def panel_page(*tries: Any, address: PanelAddress = HERE, url: Urls = URLS) -> Page:
    return Page(render("panel.html", panel=build_panel(address, tries, now=at(100)), url=url))


def hostile_pages() -> list[Page]:
    address = PanelAddress(HOSTILE, HOSTILE, HOSTILE, 1, 1)
    worker = on("w1", name=HOSTILE, hostname=HOSTILE, kind=HOSTILE)
    nameless = replace(one_of_the_host(HOSTILE), kind=HOSTILE)
    one = replace(a_try(1, 0, 9, worker, nameless, state=HOSTILE, attribution=HOSTILE), dag_id=HOSTILE, run_id=HOSTILE)
    one = replace(one, task_id=HOSTILE)
    row = a_worker_row(
        name=HOSTILE,
        engine_name=HOSTILE + "2",
        hostname=HOSTILE,
        kind=HOSTILE,
        state="lost",
        state_reason=HOSTILE,
        availability="draining",
        ended_at=at(9),
        queues=(HOSTILE, HOSTILE, HOSTILE, HOSTILE),
        labels={HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
    )
    decided = a_change(3, availability="draining", reason=HOSTILE, changed_by=HOSTILE)
    engines = [SourceStatus(HOSTILE, NOW, is_current=True, error=HOSTILE)]
    listing = a_listing(row, decisions={1: decided}, label_keys=[HOSTILE], total=300, engines=engines)
    filtered = WorkersAddress(
        search=HOSTILE, kind=HOSTILE, queue=HOSTILE, label=f"{HOSTILE}={HOSTILE}", hostname=HOSTILE, offset=100
    )
    grouped = a_listing(groups=[WorkerGroup(HOSTILE, {"online": 1}, 0, 1)], any_worker=True)
    tries = ([one], 30)
    life = a_life(
        row,
        changes=[decided, a_change(1, state="lost", reason=HOSTILE)],
        decision=decided,
        others=[replace(row, ref=2)],
        running=tries,
        struck=tries,
        drawn=[
            a_stay(1, 0, 9, dag_id=HOSTILE, run_id=HOSTILE, task_id=HOSTILE),
            *(a_stay(number, 900, 901, state="failed", dag_id=HOSTILE) for number in (2, 3)),
        ],
        outcomes=[Outcomes(at(0), {"success": 1})],
        attempts=AttemptPage([one], 30, total_is_exact=True),
    )
    asked = AttemptsAddress(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, offset=50)
    page_of = {
        "workers.html": build_workers_page(filtered, listing, now=NOW),
        "worker.html": build_worker_page(life, WorkerAddress(offset=25), may_read=True, may_decide=True, now=NOW),
        "attempts.html": build_attempts_page(
            asked, AttemptPage([one], 90, total_is_exact=False), dag_ids=[HOSTILE], states=["success"], now=NOW
        ),
    }
    by_label = WorkersAddress(group=f"label:{HOSTILE}")
    return [
        panel_page(one, address=address),
        *(Page(render(template, page=page, url=URLS)) for template, page in page_of.items()),
        Page(render("workers.html", page=build_workers_page(by_label, grouped, now=NOW), url=URLS)),
        Page(render("worker.html", page=page_of["worker.html"], csrf_token=HOSTILE, url=URLS)),
        Page(render("message.html", notice_to_show=Notice("warning", HOSTILE, HOSTILE, HOSTILE), url=URLS)),
        Page(render("sign_in.html", login_url=HOSTILE, url=URLS)),
    ]


def test_nothing_hostile_becomes_markup() -> None:
    for page in hostile_pages():
        assert not page.all("img")
        assert "onerror=alert(1)" in page.text + str(page.tags)
        assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_pages_need_nothing_from_elsewhere_and_nothing_that_the_policy_forbids() -> None:
    for page in hostile_pages():
        for tag, attributes in page.tags:
            assert "style" not in attributes
            assert tag not in ("style", "base")
            for name in ("src", "href", "action"):
                address = attributes.get(name)
                assert address is None or address.startswith(("/airflow/", "#")) or address == HOSTILE
        assert all("src" in attributes for attributes in page.all("script"))
    for path in STATIC.iterdir():
        written = path.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?://|@import|url\(", written), path


@given(st.text(max_size=40))
def test_any_text_comes_out_as_the_same_text(text: str) -> None:
    # HTML has no way to write these.
    text = re.sub("[\x00\r\ud800-\udfff]", "", text)
    html = render("message.html", notice_to_show=Notice("info", "", f"[{text}]"), url=URLS)
    assert f"[{text}]" in Page(html).text


def test_the_table_and_the_strip_can_be_heard() -> None:
    page = panel_page(
        a_try(1, 0, 10, on("w1"), on("w2", 5), state="failed"), a_try(2, 20, None, on("w2"), state="running")
    )
    assert len(page.all("th", scope="col", role="columnheader")) == 7
    headers = page.all("th", scope="rowgroup")
    assert [header["rowspan"] for header in headers] == ["1", "2"]
    assert page.all("div", role="group")[0]["aria-label"] == (
        "2 tries on 2 workers; the last one is running on w2@host-1."
    )
    # A link in an item of a list: one that is the item itself is not heard as a link.
    inside = zip(page.tags, page.tags[1:], strict=False)
    links = [link for (_, item), (tag, link) in inside if item.get("role") == "listitem" and tag == "a"]
    assert [link["href"] for link in links] == ["#wi-try-1", "#wi-try-1", "#wi-try-2"]
    assert not page.all("a", role="listitem")
    assert all(link["aria-label"] for link in links)
    targets = {f"#{body['id']}" for body in page.all("tbody")}
    assert {link["href"] for link in links} <= targets
    assert page.all("div", id="wi-panel")[0]["data-wi-refresh"] == "5"


def test_a_row_of_the_panel_leaves_the_workers_id_to_its_page() -> None:
    page = panel_page(
        a_try(1, 0, 10, on("w1-of-its-own", name="w1")), a_try(2, 0, 10, on("w2", name="w2"), is_recorded=False)
    )
    assert "w1-of-its-own" not in page.text
    assert page.all("a", title="w1-of-its-own")
    assert page.all("span", title="w2")


def test_a_column_of_times_names_their_zone_once() -> None:
    one = a_try(1, 0, 10, on("w1"))
    lists = AttemptPage([one], 1, total_is_exact=True)
    attempts = build_attempts_page(AttemptsAddress(), lists, dag_ids=["etl"], states=["success"], now=NOW)
    pages = [
        panel_page(one),
        worker_page(a_life(attempts=lists)),
        Page(render("attempts.html", page=attempts, url=URLS)),
    ]
    for page in pages:
        (time,) = page.all("time", title="2026-03-01 12:00:00 UTC", **{"data-wi-bare": None})
        assert time["datetime"] == "2026-03-01T12:00:00.000Z"
        assert len(page.all("span", **{"class": "wi-zone", "data-wi-zone": None})) == 1
        assert "Started UTC" in " ".join(page.text.split())


def test_the_fields_of_times_say_their_zone_and_know_utc() -> None:
    found = AttemptPage([], 0, total_is_exact=True)
    address = AttemptsAddress(since=at(0))
    attempts = build_attempts_page(address, found, dag_ids=["etl"], states=["success"], now=NOW)
    page = Page(render("attempts.html", page=attempts, url=URLS))
    assert page.all("input", name="since", value="2026-03-01T12:00", **{"data-wi-utc": "2026-03-01T12:00"})
    assert page.all("input", name="until", value="", **{"data-wi-utc": ""})
    assert "From (UTC)" in page.text
    assert "Until (UTC)" in page.text


def test_a_try_on_a_phone_is_a_card_of_its_own() -> None:
    css = (STATIC / "worker-insight.css").read_text()
    narrow = css[css.index("@container (max-width: 40rem)") :]
    lists = AttemptPage([a_try(1, 0, 10, on("w1", load=1.0))], 1, total_is_exact=True)
    page = worker_page(a_life(attempts=lists))
    assert page.all("table", **{"class": "wi-table wi-tries"})
    assert panel_page(a_try(1, 0, 10, on("w1"))).all("table", **{"class": "wi-table wi-tries"})
    # A cell without a place in the card would be anywhere.
    for cell in (*page.all("td"), *page.all("th", scope="row")):
        assert f".wi-tries .{cell['class']}" in narrow


def test_a_worker_is_linked_only_for_those_who_may_open_its_page() -> None:
    one = a_try(1, 0, 10, on("w:1@x"))
    assert panel_page(one).all("a", href="/airflow/worker-insight/workers/w:1@x")
    for_few = panel_page(one, url=Urls("/worker-insight"))
    assert not [link for link in for_few.all("a") if "workers/" in (link["href"] or "")]
    assert "w:1@x@host-1" in for_few.text


def test_a_page_leads_to_the_task_instance_in_airflow() -> None:
    address = PanelAddress("a b", "r+1/2", "t", 3)
    assert panel_page(address=address).all("a", href="/airflow/dags/a%20b/runs/r%2B1%2F2/tasks/t/mapped/3")
    assert panel_page().all("a", href="/airflow/dags/etl/runs/run-1/tasks/load")


def test_a_fragment_is_the_page_without_what_is_around_it() -> None:
    panel = build_panel(HERE, [a_try(1, 0, 1, on("w1"))], now=at(9))
    page = Page(render("panel.html", layout=FRAGMENT, panel=panel, url=URLS))
    assert page.tags[0] == ("div", {"class": "wi", "id": "wi-panel", "data-wi-live": None, "data-wi-refresh": "0"})
    assert not page.all("html")


def workers_page(*rows: Any, address: WorkersAddress = WorkersAddress(), **others: Any) -> Page:  # noqa: B008
    page = build_workers_page(address, a_listing(*rows, **others), now=NOW)
    return Page(render("workers.html", page=page, url=URLS))


def test_the_way_between_the_pages() -> None:
    page = workers_page(a_worker_row())
    (here,) = page.all("a", **{"aria-current": "page"})
    assert here["href"] == "/airflow/worker-insight/workers"
    assert page.all("a", href="/airflow/worker-insight/attempts")
    assert page.all("a", href="/airflow/", **{"class": "wi-home"})
    of_few = panel_page(a_try(1, 0, 1), url=Urls("/worker-insight"))
    assert not of_few.all("a", href="/worker-insight/workers")
    assert of_few.all("a", href="/worker-insight/attempts")


def test_a_form_leads_to_the_same_list_and_keeps_what_it_does_not_ask() -> None:
    address = WorkersAddress(state="lost", order="-running", search="w1", offset=100)
    page = workers_page(a_worker_row(), address=address, total=300)
    (form,) = page.all("form", method="get")
    assert form["action"] == "/airflow/worker-insight/workers"
    hidden = {one["name"]: one["value"] for one in page.all("input", type="hidden")}
    assert hidden == {"state": "lost", "order": "-running"}
    assert page.all("input", name="search", value="w1")
    assert page.all("a", href="/airflow/worker-insight/workers?state=lost&search=w1&order=-running&offset=101")


def test_which_column_sorts_can_be_heard() -> None:
    page = workers_page(a_worker_row(), address=WorkersAddress(order="-running"))
    (sorted_by,) = page.all("th", **{"aria-sort": "descending"})
    assert page.all("a", **{"class": "wi-sort", "href": "/airflow/worker-insight/workers?order=running"})
    assert page.all(
        "a",
        **{"class": "wi-chip wi-life-online", "href": "/airflow/worker-insight/workers?state=online&order=-running"},
    )
    assert sorted_by["scope"] == "col"


def worker_page(life: Any = None, **others: Any) -> Page:
    known: dict[str, Any] = {"may_read": True, "may_decide": True}
    page = build_worker_page(life or a_life(), WorkerAddress(), **{**known, **others}, now=NOW)
    return Page(render("worker.html", page=page, url=URLS))


def test_only_who_may_decide_gets_the_form() -> None:
    page = worker_page()
    (form,) = page.all("form", method="post")
    assert form["action"] == "/airflow/worker-insight/workers/celery-1/availability"
    assert [one["value"] for one in page.all("input", type="radio")] == ["available", "draining", "quarantined"]
    assert "does not keep Airflow from giving the worker work" in page.text
    without = worker_page(may_decide=False)
    assert not without.all("form", method="post")
    assert "the right to edit Airflow’s pools is needed" in without.text
    assert "does not keep Airflow from giving the worker work" in without.text


def test_what_is_drawn_can_be_heard() -> None:
    life = a_life(drawn=[a_stay(1, 0, 900)], outcomes=[Outcomes(at(0), {"success": 1})])
    page = worker_page(life)
    (lanes,) = page.all("svg", role="img")
    assert lanes["aria-label"] == "1 try, at most 1 side by side"
    # What a drawing hides from those who hear it must not be stopped at.
    (bar,) = [link for link in page.all("a") if "panel?" in (link["href"] or "") and "class" not in link]
    assert bar["tabindex"] == "-1"
    assert page.all("svg", role="group", **{"aria-label": "1 try: 1 success"})
    name = "2026-03-01 12:00 to 13:00 UTC: 1 success"
    (hour,) = page.all("a", **{"aria-label": name})
    assert "tabindex" not in hour
    week = build_worker_page(life, WorkerAddress(hours=168), may_read=True, may_decide=True, now=NOW)
    (hour,) = Page(render("worker.html", page=week, url=URLS)).all("a", **{"aria-label": name})
    assert hour["tabindex"] == "-1"


@pytest.mark.parametrize("state", ["online", "unresponsive", "lost", "offline", "unknown"])
def test_each_state_of_a_worker_has_a_shape_and_a_look(state: str) -> None:
    css = (STATIC / "worker-insight.css").read_text()
    row = a_worker_row(state=None if state == "unknown" else state)
    assert workers_page(row).all("span", **{"class": f"wi-life wi-life-{state}"})
    assert f".wi-life-{state}" in css
    assert f".wi-fill-{state}" in css


def test_no_two_states_of_a_worker_differ_in_colour_alone() -> None:
    html = render("workers.html", page=build_workers_page(WorkersAddress(), a_listing(), now=NOW), url=URLS)
    chips = re.findall(r'class="wi-chip.*?<svg[^>]*>(.*?)</svg>', html, re.DOTALL)
    assert len(chips) == len(set(chips)) == 5


@pytest.mark.parametrize("state", ["success", "failed", "running", "up_for_retry", "queued", "skipped", "deferred"])
def test_each_state_has_a_look_in_the_style_sheet(state: str) -> None:
    css = (STATIC / "worker-insight.css").read_text()
    assert panel_page(a_try(1, 0, None, on("w1"), state=state)).all("span", **{"class": f"wi-state wi-state-{state}"})
    assert f".wi-state-{state} " in css
    assert f".wi-fill-{state} " in css
