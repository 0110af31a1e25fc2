"""The page of findings and the heat map: what is said where nothing was found or the analysis does not run."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from airflow_worker_insight.domain.statistics import HeatMap, HeatMapCell, HeatMapRow
from airflow_worker_insight.store.job import JobRow
from airflow_worker_insight.ui.query_params import InsightParams
from airflow_worker_insight.ui.views.heat_map import HOURS, build_heat_map
from airflow_worker_insight.ui.views.insight import Analysis, Compared, InsightListing, InsightPage, build_insight_page
from tests.unit.database import at

NOW = at(1000)
RUNS = JobRow("api-server", NOW, read_until=NOW - timedelta(seconds=60), stored_at=NOW, stepped_at=NOW)


def page(**others: Any) -> InsightPage:
    known: dict[str, Any] = {
        "open": [],
        "open_total": 0,
        "closed": [],
        "closed_total": 0,
        "analysis": Analysis(RUNS),
        "compared": Compared([5, 30, 500], 4, 17),
    }
    drawn = build_heat_map(InsightParams(), HeatMap([], 0), now=NOW)
    listing = InsightListing(**{**known, **others})
    return build_insight_page(InsightParams(), listing, drawn, now=NOW)


def test_where_nothing_was_found_it_says_what_was_compared_and_what_could_be_found() -> None:
    shown = page()
    assert shown.summary == "Nothing found"
    assert shown.compared == "In the last 30 days 535 tries of 17 tasks on 4 workers were compared."
    assert [(fault.tries, fault.workers) for fault in shown.faults] == [
        ("about 12", "2 of 4"),
        ("about 20", "2 of 4"),
        ("about 60", "1 of 4"),
        ("about 400", "1 of 4"),
    ]


def test_without_tries_nothing_could_be_found() -> None:
    shown = page(compared=Compared([], 0, 0))
    assert shown.compared == "No try has been compared in the last 30 days."
    assert shown.faults == ()


def test_open_findings_are_counted_beyond_those_shown() -> None:
    shown = page(open_total=51, compared=None)
    assert (shown.summary, shown.compared) == ("51 open findings", "")
    assert shown.more_open == "And 51 open findings more."


def test_state_of_the_analysis_is_said() -> None:
    shown = page()
    assert shown.notice is None
    assert shown.job_text == "The analysis last ran just now."


def test_analysis_that_is_behind_says_how_far() -> None:
    behind = JobRow(None, NOW, read_until=NOW - timedelta(hours=2), stepped_at=NOW)
    shown = page(analysis=Analysis(behind))
    expected = "The analysis last ran just now and is behind: it has yet to read the tries of the last 2 h."
    assert shown.job_text == expected


@pytest.mark.parametrize(
    ("job", "title"),
    [
        (None, "The analysis has not run yet"),
        (JobRow(None, NOW), "The analysis has not run yet"),
        (JobRow(None, NOW, stepped_at=at(400 - 3600)), "The analysis does not run: last run 1 h ago"),
        (JobRow(None, NOW, stepped_at=at(940), error="no such table"), "The analysis failed 1 min ago"),
    ],
)
def test_analysis_that_does_not_run_is_said_with_the_reason(job: JobRow | None, title: str) -> None:
    notice = page(analysis=Analysis(job)).notice
    assert notice is not None
    assert (notice.tone, notice.title) == ("warning", title)
    assert notice.text
    assert job is None or job.error is None or notice.text == "no such table"


def test_command_is_named_where_no_server_runs_the_analysis() -> None:
    notice = page(analysis=Analysis(None, runs_by_itself=False)).notice
    assert notice is not None
    assert notice.command == "airflow-worker-insight refresh --every 30"


def test_analysis_that_is_switched_off_names_the_option() -> None:
    notice = page(analysis=Analysis(RUNS, is_enabled=False)).notice
    assert notice is not None
    assert notice.title == "The analysis is switched off"
    assert "insight_enabled" in notice.text


def test_long_interval_is_no_standstill() -> None:
    hour_ago = JobRow(None, NOW, stepped_at=NOW - timedelta(hours=1))
    assert page(analysis=Analysis(hour_ago, interval=timedelta(hours=1))).notice is None


# --- heat map -------------------------------------------------------------------------------------------------------


def cells(measure: str, **values: Any) -> tuple[str, int]:
    """Return text and level of the latest hour of a worker."""
    known: dict[str, Any] = {
        "tries": 10,
        "failed": 0,
        "lost": 0,
        "expected_failed": 0.5,
        "utilization": None,
        "mean_queue_seconds": None,
    }
    hour = NOW.replace(minute=0, second=0, microsecond=0)
    row = HeatMapRow("celery", "w3", "host-1", {hour: HeatMapCell(**{**known, **values})})
    (line,) = build_heat_map(InsightParams(measure=measure), HeatMap([row], 0), now=NOW).lines
    assert len(line.cells) == HOURS
    assert {(cell.text, cell.level) for cell in line.cells[:-1]} == {("", 0)}
    return line.cells[-1].text, line.cells[-1].level


@pytest.mark.parametrize(
    ("measure", "values", "text", "level"),
    [
        ("", {"failed": 0}, "·", 0),
        ("", {"failed": 1}, "1", 1),
        ("", {"failed": 3, "lost": 8}, "11", 4),
        ("", {"tries": 0, "failed": 0}, "", 0),
        ("utilization", {"utilization": 0.0}, "0", 0),
        ("utilization", {"utilization": 0.6}, "60", 3),
        ("utilization", {"utilization": None}, "", 0),
        ("queue", {"mean_queue_seconds": 0.2}, "0s", 0),
        ("queue", {"mean_queue_seconds": 45.0}, "45s", 2),
        ("queue", {"mean_queue_seconds": 400.0}, "7m", 4),
        ("queue", {"mean_queue_seconds": 7200.0}, "2h", 4),
        ("queue", {"mean_queue_seconds": None}, "", 0),
    ],
)
def test_cell_has_its_number_and_a_level(measure: str, values: dict[str, Any], text: str, level: int) -> None:
    assert cells(measure, **values) == (text, level)


def test_map_ends_with_the_current_hour_and_names_how_many_are_left_out() -> None:
    drawn = build_heat_map(InsightParams(), HeatMap([], 1950), now=NOW)
    assert drawn.hours[-1] == NOW.replace(minute=0, second=0, microsecond=0)
    assert drawn.hours[-1] - drawn.hours[0] == timedelta(hours=HOURS - 1)
    assert drawn.more == "And 1,950 workers more."
    assert [(option.text, option.is_chosen) for option, _ in drawn.options] == [
        ("Failures above expectation", True),
        ("Utilization", False),
        ("Queue delay", False),
    ]


def test_pods_are_shown_by_their_node() -> None:
    data = HeatMap([HeatMapRow("kubernetes", None, "node-1", {}), HeatMapRow("kubernetes", None, "", {})], 0)
    lines = build_heat_map(InsightParams(), data, now=NOW).lines
    assert [line.name for line in lines] == ["node-1", "Unknown node"]
