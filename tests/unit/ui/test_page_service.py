"""What the pages about findings read, on each database."""

from __future__ import annotations

import pytest

from airflow_worker_insight.api import database as web_database
from airflow_worker_insight.api.errors import FindingNotFoundError
from airflow_worker_insight.domain.statistics import Deltas, Sums, Unit, hour_of
from airflow_worker_insight.store import findings, statistics
from airflow_worker_insight.store.clock import database_now
from airflow_worker_insight.ui import page_service
from airflow_worker_insight.ui.query_params import InsightParams, PanelParams, WorkerParams, WorkersParams
from tests.unit.database import Database, a_worker, add_run, add_try, on_both, record_start
from tests.unit.findings import a_finding, a_share

pytestmark = on_both

SECRET = "secret"


@pytest.fixture
def found(database: Database) -> int:
    """Have w1 fail 5 of 6 tries of a task, w2 1 of 6, sums of the latest hour, and a finding; return its ID."""
    web_database.schema_gate.forget()
    with database.engine.begin() as connection:
        now = database_now(connection)
        for number in range(6):
            run = add_run(connection, run_id=f"daily-{number}", state="running", ended_at=None)
            for index, worker_id in enumerate(("w1", "w2")):
                state = "failed" if number < (5, 1)[index] else "success"
                key = add_try(connection, run, "load", index, state=state, started_at=now, ended_at=now)
                record_start(connection, key, a_worker(worker_id), try_started_at=now, now=now)
        sums = Sums(tries=40, failed=13, expected_failed=1.2)
        hour = hour_of(now)
        unit = Unit("celery", "w1@host-1", "host-1")
        statistics.add(connection, Deltas({(hour, unit): sums}, {}, {(hour, "etl", "load"): sums}))
        data = a_finding(worker="w1", shares=[a_share(SECRET, "payroll"), a_share("etl", "load")])
        (stored,) = findings.sync(connection, [data], now=now).new
    return stored.finding_id


def test_panel_has_the_verdict_and_the_finding(found: int) -> None:
    panel = page_service.panel(PanelParams("etl", "daily-1", "load", 0), may_see_workers=True)
    assert panel.verdict is not None
    assert panel.verdict.text.startswith("w1@host-1 fails more than its peers on `load`: 5 of 6 tries")
    assert panel.verdict.findings == (found,)
    assert page_service.panel(PanelParams("etl", "daily-1", "load", 1), may_see_workers=True).verdict is None


def test_worker_has_its_findings_and_its_comparison(found: int) -> None:
    page = page_service.worker_page("w1", WorkerParams(), dag_ids={"etl"}, may_decide=True)
    assert [card.finding_id for card in page.open_findings] == [found]
    assert page.comparison is not None
    assert [(line.own, line.peers) for line in page.comparison.lines] == [("5 of 6", "1 of 6")]
    hidden = page_service.worker_page("w1", WorkerParams(), dag_ids={"other"}, may_decide=True).comparison
    assert hidden is not None
    assert hidden.text == "No first try to compare."
    assert page_service.worker_page("w1", WorkerParams(), dag_ids=None, may_decide=True).comparison is None


def test_list_of_workers_has_marks_and_a_filter(found: int) -> None:
    lines = page_service.workers_page(WorkersParams(seen="any", state="any")).lines
    assert {line.row.worker_id: line.findings for line in lines} == {"w1": (found,), "w2": ()}
    listed = page_service.workers_page(WorkersParams(seen="any", state="any", findings="open"))
    assert [line.row.worker_id for line in listed.lines] == ["w1"]


def test_finding_is_dismissed_and_then_nothing_is_open(found: int) -> None:
    page = page_service.insight_page(InsightParams(), dag_ids={"etl"}, may_decide=True)
    assert [card.finding_id for card in page.open] == [found]
    assert "payroll" not in repr(page)
    assert page.heat_map.lines[0].cells[-1].text == "12"
    assert page_service.dismiss_finding(str(found), dag_ids={"etl"}, note="Known", actor="admin") == found
    card, _ = page_service.finding_page(str(found), dag_ids={"etl"}, may_decide=True)
    assert (card.state, card.events[0].text, card.events[0].reason) == ("closed", "Dismissed", "Known")
    page = page_service.insight_page(InsightParams(), dag_ids={"etl"}, may_decide=True)
    assert (page.open, [card.finding_id for card in page.closed]) == ((), [found])
    assert page.compared == "In the last 30 days 40 tries of 1 task on 1 worker were compared."


@pytest.mark.usefixtures("found")
def test_unknown_finding_is_refused() -> None:
    for finding_id in ("999", "x", "9" * 30):
        with pytest.raises(FindingNotFoundError):
            page_service.finding_page(finding_id, dag_ids={"etl"}, may_decide=True)
