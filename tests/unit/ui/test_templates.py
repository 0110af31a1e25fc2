"""The HTML of the pages: escaped, accessible, and without anything from other hosts."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_worker_insight.domain.attempts import AttemptPage
from airflow_worker_insight.domain.findings import (
    FindingAction,
    FindingEvent,
    FindingOutcome,
    FindingState,
    StoredFinding,
    SubjectKind,
)
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.domain.statistics import HeatMap, HeatMapRow
from airflow_worker_insight.domain.workers import SourceStatus, WorkerGroup
from airflow_worker_insight.insight.findings import Share
from airflow_worker_insight.store.attempts.by_worker import Outcomes
from airflow_worker_insight.store.attempts.first_tries import FirstTry
from airflow_worker_insight.store.job import JobRow
from airflow_worker_insight.ui.query_params import (
    AttemptsParams,
    InsightParams,
    PanelParams,
    WorkerParams,
    WorkersParams,
)
from airflow_worker_insight.ui.rendering import FRAGMENT, STATIC, render
from airflow_worker_insight.ui.urls import Urls
from airflow_worker_insight.ui.views.attempts import build_attempts_page
from airflow_worker_insight.ui.views.comparison import Failure, build_comparison, build_verdict
from airflow_worker_insight.ui.views.findings import build_card
from airflow_worker_insight.ui.views.heat_map import build_heat_map
from airflow_worker_insight.ui.views.insight import Analysis, Compared, InsightListing, build_insight_page
from airflow_worker_insight.ui.views.panel import build_panel
from airflow_worker_insight.ui.views.parts import Notice
from airflow_worker_insight.ui.views.worker import build_worker_page
from airflow_worker_insight.ui.views.workers import build_workers_page
from tests.unit.database import at
from tests.unit.findings import a_finding
from tests.unit.ui.attempts import HERE, a_stay, a_try, on, one_of_the_host
from tests.unit.ui.workers import NOW, a_change, a_listing, a_worker_row, an_instance

HOSTILE = "\"><img src=x onerror=alert(1)>'&{{7*7}}🦊"
URLS = Urls("/airflow/worker-insight", may_see_workers=True)


class Page(HTMLParser):
    """Parsed page: its tags with their attributes, and its text."""

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


def panel_page(*tries: Any, params: PanelParams = HERE, url: Urls = URLS) -> Page:
    return Page(render("panel.html", panel=build_panel(params, tries, now=at(100)), url=url))


def hostile_pages() -> list[Page]:
    params = PanelParams(HOSTILE, HOSTILE, HOSTILE, 1, 1)
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
    sources = [SourceStatus(HOSTILE, NOW, is_current=True, error=HOSTILE)]
    listing = a_listing(row, decisions={1: decided}, label_keys=[HOSTILE], total=300, sources=sources)
    filtered = WorkersParams(
        search=HOSTILE, kind=HOSTILE, queue=HOSTILE, label=f"{HOSTILE}={HOSTILE}", hostname=HOSTILE, offset=100
    )
    grouped = a_listing(groups=[WorkerGroup(HOSTILE, {"online": 1}, 0, 1)], any_worker=True)
    tries = ([one], 30)
    instance = an_instance(
        row,
        changes=[decided, a_change(1, state="lost", reason=HOSTILE)],
        decision=decided,
        others=[replace(row, ref=2)],
        running=tries,
        lost_tries=tries,
        stays=[
            a_stay(1, 0, 9, dag_id=HOSTILE, run_id=HOSTILE, task_id=HOSTILE),
            *(a_stay(number, 900, 901, state="failed", dag_id=HOSTILE) for number in (2, 3)),
        ],
        outcomes=[Outcomes(at(0), {"success": 1})],
        attempts=AttemptPage([one], 30, total_is_exact=True),
    )
    asked = AttemptsParams(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, offset=50)
    page_of = {
        "workers.html": build_workers_page(filtered, listing, now=NOW),
        "worker.html": build_worker_page(instance, WorkerParams(offset=25), may_read=True, may_decide=True, now=NOW),
        "attempts.html": build_attempts_page(
            asked, AttemptPage([one], 90, total_is_exact=False), dag_ids=[HOSTILE], states=["success"], now=NOW
        ),
    }
    data = a_finding(
        dimension=HOSTILE,
        unit=HOSTILE,
        subject=HOSTILE,
        left_out=HOSTILE,
        scope=[HOSTILE],
        shares=[Share((HOSTILE, HOSTILE), 9, 9, 9, 0, 9.0)],
    )
    stored = StoredFinding(1, FindingState.OPEN, SubjectKind.LABEL, FindingOutcome.FAILED, at(0), None, None, data)
    history = [FindingEvent(at(0), FindingAction.QUARANTINED, HOSTILE, HOSTILE)]
    living = {"w3": replace(row, ended_at=None)}
    finding = build_card(stored, dag_ids={HOSTILE}, workers=living, may_decide=True, events=history)
    closed = replace(finding, state="closed", ended_at=at(9))
    own = [FirstTry(TryKey(HOSTILE, HOSTILE, HOSTILE, -1, 1), HOSTILE, at(0), has_failed=True)]
    compared = replace(instance, findings=[finding, closed], comparison=build_comparison(HOSTILE, own, []))
    compared_page = build_worker_page(compared, WorkerParams(), may_read=True, may_decide=True, now=NOW)
    failed = replace(one, state="failed", workers=(worker,))
    verdict = build_verdict(Failure(failed, worker), own, now=NOW, findings=[1, 2])
    found_page = build_insight_page(
        InsightParams(offset=10),
        InsightListing(
            [finding],
            2,
            [closed],
            30,
            Analysis(JobRow(HOSTILE, NOW, stepped_at=NOW, error=HOSTILE)),
            Compared([30], 1, 1),
        ),
        build_heat_map(InsightParams(), HeatMap([HeatMapRow("celery", HOSTILE, HOSTILE, {})], 1), now=NOW),
        now=NOW,
    )
    by_label = WorkersParams(group=f"label:{HOSTILE}")
    return [
        panel_page(one, params=params),
        Page(render("panel.html", panel=build_panel(params, [failed], now=at(100), verdict=verdict), url=URLS)),
        Page(render("insight.html", page=found_page, csrf_token=HOSTILE, url=URLS)),
        Page(render("finding.html", finding=finding, now=NOW, url=URLS)),
        Page(render("worker.html", page=compared_page, url=URLS)),
        *(Page(render(template, page=page, url=URLS)) for template, page in page_of.items()),
        Page(render("workers.html", page=build_workers_page(by_label, grouped, now=NOW), url=URLS)),
        Page(render("worker.html", page=page_of["worker.html"], csrf_token=HOSTILE, url=URLS)),
        Page(render("message.html", notice_to_show=Notice("warning", HOSTILE, HOSTILE, HOSTILE), url=URLS)),
        Page(render("sign_in.html", login_url=HOSTILE, url=URLS)),
    ]


def test_hostile_values_are_escaped() -> None:
    for page in hostile_pages():
        assert not page.all("img")
        assert "onerror=alert(1)" in page.text + str(page.tags)
        assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_pages_comply_with_the_content_security_policy() -> None:
    for page in hostile_pages():
        for tag, attributes in page.tags:
            assert "style" not in attributes
            assert tag not in ("style", "base")
            for name in ("src", "href", "action"):
                link = attributes.get(name)
                assert link is None or link.startswith(("/airflow/", "#")) or link == HOSTILE
        assert all("src" in attributes for attributes in page.all("script"))
    for path in STATIC.iterdir():
        written = path.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?://|@import|url\(", written), path


@given(st.text(max_size=40))
def test_any_text_is_printed_unchanged(text: str) -> None:
    # HTML has no way to write these.
    text = re.sub("[\x00\r\ud800-\udfff]", "", text)
    html = render("message.html", notice_to_show=Notice("info", "", f"[{text}]"), url=URLS)
    assert f"[{text}]" in Page(html).text


def test_table_and_strip_are_accessible() -> None:
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


def test_panel_shows_worker_ids_as_tooltips_only() -> None:
    page = panel_page(
        a_try(1, 0, 10, on("w1-of-its-own", name="w1")), a_try(2, 0, 10, on("w2", name="w2"), is_recorded=False)
    )
    assert "w1-of-its-own" not in page.text
    assert page.all("a", title="w1-of-its-own")
    assert page.all("span", title="w2")


def test_column_of_times_names_the_zone_once() -> None:
    one = a_try(1, 0, 10, on("w1"))
    lists = AttemptPage([one], 1, total_is_exact=True)
    attempts = build_attempts_page(AttemptsParams(), lists, dag_ids=["etl"], states=["success"], now=NOW)
    pages = [
        panel_page(one),
        worker_page(an_instance(attempts=lists)),
        Page(render("attempts.html", page=attempts, url=URLS)),
    ]
    for page in pages:
        (time,) = page.all("time", title="2026-03-01 12:00:00 UTC", **{"data-wi-bare": None})
        assert time["datetime"] == "2026-03-01T12:00:00.000Z"
        assert len(page.all("span", **{"class": "wi-zone", "data-wi-zone": None})) == 1
        assert "Started UTC" in " ".join(page.text.split())


def test_time_fields_name_their_zone_and_have_utc_values() -> None:
    found = AttemptPage([], 0, total_is_exact=True)
    params = AttemptsParams(since=at(0))
    attempts = build_attempts_page(params, found, dag_ids=["etl"], states=["success"], now=NOW)
    page = Page(render("attempts.html", page=attempts, url=URLS))
    assert page.all("input", name="since", value="2026-03-01T12:00", **{"data-wi-utc": "2026-03-01T12:00"})
    assert page.all("input", name="until", value="", **{"data-wi-utc": ""})
    assert "From (UTC)" in page.text
    assert "Until (UTC)" in page.text


def test_each_cell_has_a_place_in_the_card_of_a_phone() -> None:
    css = (STATIC / "worker-insight.css").read_text()
    narrow = css[css.index("@container (max-width: 40rem)") :]
    lists = AttemptPage([a_try(1, 0, 10, on("w1", load=1.0))], 1, total_is_exact=True)
    page = worker_page(an_instance(attempts=lists))
    assert page.all("table", **{"class": "wi-table wi-tries"})
    assert panel_page(a_try(1, 0, 10, on("w1"))).all("table", **{"class": "wi-table wi-tries"})
    # A cell without a place in the card would be anywhere.
    for cell in (*page.all("td"), *page.all("th", scope="row")):
        assert f".wi-tries .{cell['class']}" in narrow


def test_worker_is_linked_only_with_permission() -> None:
    one = a_try(1, 0, 10, on("w:1@x"))
    assert panel_page(one).all("a", href="/airflow/worker-insight/workers/w:1@x")
    for_few = panel_page(one, url=Urls("/worker-insight"))
    assert not [link for link in for_few.all("a") if "workers/" in (link["href"] or "")]
    assert "w:1@x@host-1" in for_few.text


def test_panel_links_to_the_task_instance_in_airflow() -> None:
    params = PanelParams("a b", "r+1/2", "t", 3)
    assert panel_page(params=params).all("a", href="/airflow/dags/a%20b/runs/r%2B1%2F2/tasks/t/mapped/3")
    assert panel_page().all("a", href="/airflow/dags/etl/runs/run-1/tasks/load")


def test_fragment_is_the_page_without_its_layout() -> None:
    panel = build_panel(HERE, [a_try(1, 0, 1, on("w1"))], now=at(9))
    page = Page(render("panel.html", layout=FRAGMENT, panel=panel, url=URLS))
    assert page.tags[0] == ("div", {"class": "wi", "id": "wi-panel", "data-wi-live": None, "data-wi-refresh": "0"})
    assert not page.all("html")


def workers_page(*rows: Any, params: WorkersParams = WorkersParams(), **others: Any) -> Page:  # noqa: B008
    page = build_workers_page(params, a_listing(*rows, **others), now=NOW)
    return Page(render("workers.html", page=page, url=URLS))


def test_navigation_links_the_pages() -> None:
    page = workers_page(a_worker_row())
    (here,) = page.all("a", **{"aria-current": "page"})
    assert here["href"] == "/airflow/worker-insight/workers"
    assert page.all("a", href="/airflow/worker-insight/attempts")
    assert page.all("a", href="/airflow/", **{"class": "wi-home"})
    of_few = panel_page(a_try(1, 0, 1), url=Urls("/worker-insight"))
    assert not of_few.all("a", href="/worker-insight/workers")
    assert of_few.all("a", href="/worker-insight/attempts")


def test_form_keeps_the_filters_that_have_no_field() -> None:
    params = WorkersParams(state="lost", order="-running", search="w1", offset=100)
    page = workers_page(a_worker_row(), params=params, total=300)
    (form,) = page.all("form", method="get")
    assert form["action"] == "/airflow/worker-insight/workers"
    hidden = {one["name"]: one["value"] for one in page.all("input", type="hidden")}
    assert hidden == {"state": "lost", "order": "-running"}
    assert page.all("input", name="search", value="w1")
    assert page.all("a", href="/airflow/worker-insight/workers?state=lost&search=w1&order=-running&offset=101")


def test_sorted_column_is_announced() -> None:
    page = workers_page(a_worker_row(), params=WorkersParams(order="-running"))
    (sorted_by,) = page.all("th", **{"aria-sort": "descending"})
    assert page.all("a", **{"class": "wi-sort", "href": "/airflow/worker-insight/workers?order=running"})
    assert page.all(
        "a",
        **{
            "class": "wi-chip wi-instance-online",
            "href": "/airflow/worker-insight/workers?state=online&order=-running",
        },
    )
    assert sorted_by["scope"] == "col"


def worker_page(instance: Any = None, **others: Any) -> Page:
    known: dict[str, Any] = {"may_read": True, "may_decide": True}
    page = build_worker_page(instance or an_instance(), WorkerParams(), **{**known, **others}, now=NOW)
    return Page(render("worker.html", page=page, url=URLS))


def test_list_prints_each_worker_with_its_state_kind_and_last_sign_of_life() -> None:
    page = workers_page(a_worker_row(), a_worker_row("w2", ref=2, state=None, state_reason="Never polled."))
    assert page.all("a", title="celery-1", href="/airflow/worker-insight/workers/celery-1")
    for text in ("w1@host-1", "Celery", "host-1", "Online", "Unknown", "Never polled.", "14 min ago"):
        assert text in page.text
    assert page.all("span", **{"class": "wi-instance wi-instance-unknown"})
    assert page.all("time", title="2026-03-01 12:02:00 UTC", **{"class": "wi-ago"})


def test_list_prints_an_unavailable_worker_with_note_and_author() -> None:
    latest = a_change(0, availability="draining", reason="Disk fails", changed_by="alice")
    page = workers_page(a_worker_row(availability="draining"), decisions={1: latest})
    assert page.all("span", title="Draining by alice: Disk fails")
    assert page.all("span", **{"class": "wi-badge wi-badge-draining"})
    assert "Disk fails" in page.text
    assert workers_page(a_worker_row(availability="quarantined")).all("span", title="Quarantined")


def test_page_of_a_worker_prints_state_labels_queues_history_and_other_instances() -> None:
    page = worker_page(
        an_instance(
            a_worker_row(state="lost", ended_at=at(120), state_reason="No answer for 3 min.", availability="draining"),
            decision=a_change(0, availability="draining", reason="Old disk", changed_by="bob"),
            changes=[
                a_change(940, availability="quarantined", reason="Disk fails", changed_by="alice"),
                a_change(100, state="online", reason="Celery reports it."),
            ],
            others=[a_worker_row("celery-0", state="offline", started_at=None)],
        )
    )
    text = " ".join(page.text.split())
    assert "Lost since 2026-03-01 12:02:00 UTC (14 min ago)Draining No answer for 3 min." in text
    assert "Queuesdefault Labelsregion eu zone a" in text
    assert "Draining by bob, 2026-03-01 12:00:00 UTC Old disk" in text
    assert "Quarantined 2026-03-01 12:15:40 UTC, by aliceDisk fails" in text
    assert "Online 2026-03-01 12:01:40 UTCCelery reports it." in text
    assert "celery-0 Offline from 2026-03-01 12:01:00 UTC, last seen 14 min ago" in text


def test_panel_prints_the_state_of_a_worker_that_is_not_online() -> None:
    lost = a_worker_row("w1", state="lost", ended_at=at(120), state_reason="Silent.")
    panel = build_panel(HERE, [a_try(1, 0, 100, on("w1"), state="up_for_retry")], {"w1": lost}, now=NOW)
    page = Page(render("panel.html", panel=panel, url=URLS))
    assert page.all("span", title="Silent.")
    for text in ("Up For Retry", "w1@host-1", "Lost", "Celery", "2026-03-01 12:00:00"):
        assert text in page.text


def test_form_needs_permission() -> None:
    instance = an_instance(effect="The worker stops consuming its queues.")
    page = worker_page(instance)
    (form,) = page.all("form", method="post")
    assert form["action"] == "/airflow/worker-insight/workers/celery-1/availability"
    assert [one["value"] for one in page.all("input", type="radio")] == ["available", "draining", "quarantined"]
    assert "The worker stops consuming its queues" in page.text
    without = worker_page(instance, may_decide=False)
    assert not without.all("form", method="post")
    assert "You need permission to edit Airflow’s pools" in without.text
    assert "The worker stops consuming its queues" in without.text


def test_drawings_are_accessible() -> None:
    instance = an_instance(stays=[a_stay(1, 0, 900)], outcomes=[Outcomes(at(0), {"success": 1})])
    page = worker_page(instance)
    (lanes,) = page.all("svg", role="img")
    assert lanes["aria-label"] == "1 try, at most 1 in parallel"
    # What a drawing hides from those who hear it must not be stopped at.
    (bar,) = [link for link in page.all("a") if "panel?" in (link["href"] or "") and "class" not in link]
    assert bar["tabindex"] == "-1"
    assert page.all("svg", role="group", **{"aria-label": "1 try: 1 success"})
    name = "2026-03-01 12:00 to 13:00 UTC: 1 success"
    (hour,) = page.all("a", **{"aria-label": name})
    assert "tabindex" not in hour
    week = build_worker_page(instance, WorkerParams(hours=168), may_read=True, may_decide=True, now=NOW)
    (hour,) = Page(render("worker.html", page=week, url=URLS)).all("a", **{"aria-label": name})
    assert hour["tabindex"] == "-1"


@pytest.mark.parametrize("state", ["online", "unresponsive", "lost", "offline", "unknown"])
def test_each_worker_state_has_a_style(state: str) -> None:
    css = (STATIC / "worker-insight.css").read_text()
    row = a_worker_row(state=None if state == "unknown" else state)
    assert workers_page(row).all("span", **{"class": f"wi-instance wi-instance-{state}"})
    assert f".wi-instance-{state}" in css
    assert f".wi-fill-{state}" in css


def test_worker_states_have_different_icons() -> None:
    html = render("workers.html", page=build_workers_page(WorkersParams(), a_listing(), now=NOW), url=URLS)
    chips = re.findall(r'class="wi-chip.*?<svg[^>]*>(.*?)</svg>', html, re.DOTALL)
    assert len(chips) == len(set(chips)) == 5


@pytest.mark.parametrize("state", ["success", "failed", "running", "up_for_retry", "queued", "skipped", "deferred"])
def test_each_task_state_has_a_style(state: str) -> None:
    css = (STATIC / "worker-insight.css").read_text()
    assert panel_page(a_try(1, 0, None, on("w1"), state=state)).all("span", **{"class": f"wi-state wi-state-{state}"})
    assert f".wi-state-{state} " in css
    assert f".wi-fill-{state} " in css
