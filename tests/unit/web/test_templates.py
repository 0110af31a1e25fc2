"""The HTML of the pages: everything is escaped, nothing comes from elsewhere, and a table stays a table."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_worker_insight.web.address import PanelAddress
from airflow_worker_insight.web.rendering import STATIC, render
from airflow_worker_insight.web.urls import Urls
from airflow_worker_insight.web.view import Notice, build_panel, build_worker_page
from tests.unit.database import at
from tests.unit.web.attempts import HERE, a_try, on, one_of_the_host
from tests.unit.web.test_view import a_worker_row

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

    def all(self, name: str, **attributes: str) -> list[dict[str, str | None]]:
        wanted = attributes.items()
        return [found for tag, found in self.tags if tag == name and wanted <= found.items()]


def panel_page(*tries: Any, address: PanelAddress = HERE, url: Urls = URLS) -> Page:
    return Page(render("panel.html", panel=build_panel(address, tries, now=at(100)), url=url))


def hostile_pages() -> list[Page]:
    address = PanelAddress(HOSTILE, HOSTILE, HOSTILE, 1, 1)
    worker = on("w1", name=HOSTILE, hostname=HOSTILE, kind=HOSTILE)
    nameless = replace(one_of_the_host(HOSTILE), kind=HOSTILE)
    one = replace(a_try(1, 0, 9, worker, nameless, state=HOSTILE, attribution=HOSTILE), dag_id=HOSTILE, run_id=HOSTILE)
    row = a_worker_row(name=HOSTILE, hostname=HOSTILE, labels={HOSTILE: HOSTILE}, versions={HOSTILE: HOSTILE})
    page = build_worker_page(row, [replace(one, task_id=HOSTILE)], total=90, offset=25, now=at(9))
    return [
        panel_page(one, address=address),
        Page(render("worker.html", page=page, url=URLS)),
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
            for name in ("src", "href"):
                address = attributes.get(name)
                assert address is None or address.startswith(("/airflow/", "#")) or address == HOSTILE
        assert all("src" in attributes for attributes in page.all("script"))
    for path in STATIC.iterdir():
        assert not re.search(r"https?://|@import|url\(", path.read_text()), path


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
    links = page.all("a", role="listitem")
    assert [link["href"] for link in links] == ["#wi-try-1", "#wi-try-1", "#wi-try-2"]
    assert all(link["aria-label"] for link in links)
    targets = {f"#{body['id']}" for body in page.all("tbody")}
    assert {link["href"] for link in links} <= targets
    assert page.all("div", id="wi-panel")[0]["data-wi-refresh"] == "5"


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


def test_the_fragment_is_the_panel_and_nothing_else() -> None:
    html = render("panel_fragment.html", panel=build_panel(HERE, [a_try(1, 0, 1, on("w1"))], now=at(9)), url=URLS)
    page = Page(html)
    assert page.tags[0] == ("div", {"class": "wi", "id": "wi-panel", "data-wi-refresh": "0"})
    assert not page.all("html")


@pytest.mark.parametrize("state", ["success", "failed", "running", "up_for_retry", "queued", "skipped", "deferred"])
def test_each_state_has_a_look_in_the_style_sheet(state: str) -> None:
    css = (STATIC / "worker-insight.css").read_text()
    assert panel_page(a_try(1, 0, None, on("w1"), state=state)).all("span", **{"class": f"wi-state wi-state-{state}"})
    assert f".wi-state-{state} " in css
    assert f".wi-fill-{state} " in css
