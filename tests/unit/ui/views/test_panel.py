"""The view model of the Worker panel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airflow_worker_insight.ui.query_params import PanelParams
from airflow_worker_insight.ui.views.panel import REFRESH_SECONDS, build_panel
from tests.unit.database import at
from tests.unit.ui.attempts import HERE, a_try, on, one_of_the_host
from tests.unit.ui.workers import a_worker_row

NOW = at(1000)

# --- rows -----------------------------------------------------------------------------------------------------------


def test_rows_are_the_tries_latest_first() -> None:
    panel = build_panel(
        HERE, [a_try(1, 0, 100.5, on("w1"), state="failed"), a_try(2, 200, None, on("w2"), state="running")], now=NOW
    )
    assert [row.attempt.try_number for row in panel.rows] == [2, 1]
    running, failed = panel.rows
    assert (running.attempt.state, running.duration) == ("running", "13 min 20 s so far")
    assert (failed.attempt.state, failed.duration) == ("failed", "1 min 40 s")
    (cell,) = failed.workers
    assert (cell.worker.worker_id, cell.mark, cell.name, cell.note) == ("w1", "A", "w1@host-1", "")
    assert running.workers[0].mark == "B"


def test_try_on_several_workers_counts_their_processes() -> None:
    (row,) = build_panel(HERE, [a_try(1, 0, 90, on("w1", 0, process_count=5000), on("w2", 50))], now=NOW).rows
    assert [cell.note for cell in row.workers] == ["5,000 processes", "1 process"]


def test_cell_has_the_machines_conditions_at_the_start() -> None:
    busy = on("w1", load=1.234, memory_free=0.356, running_beside=1)
    (row,) = build_panel(HERE, [a_try(1, 0, 90, busy, on("w2", running_beside=0))], now=NOW).rows
    assert [(cell.conditions.text, cell.conditions.title) for cell in row.workers if cell.conditions] == [
        (
            "load 1.2 · 36% free · 1 other try",
            "When the try started: load 1.23 per CPU, 36% of memory free, 1 other try running",
        ),
        ("0 other tries", "When the try started: 0 other tries running"),
    ]
    (row,) = build_panel(HERE, [a_try(1, 0, 90, on("w1"))], now=NOW).rows
    assert row.workers[0].conditions is None


def test_try_of_the_url_is_selected() -> None:
    panel = build_panel(replace(HERE, try_number=1), [a_try(1, 0, 1, on("w1")), a_try(2, 2, 3, on("w1"))], now=NOW)
    assert [row.is_selected for row in panel.rows] == [False, True]


def test_mapped_task_instance_shows_its_index() -> None:
    assert build_panel(HERE, [], now=NOW).task_name == "load"
    assert build_panel(replace(HERE, map_index=3), [], now=NOW).task_name == "load [3]"


# --- attribution ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attribution", "state", "workers", "text", "explanation"),
    [
        ("reported", "success", [on("w1")], "Reported", "reported this try while running it"),
        ("inferred", "failed", [on("w1")], "Inferred", "match only this worker"),
        ("inferred", "failed", [one_of_the_host()], "Host inferred", "may have several workers"),
        ("inferred", "running", [one_of_the_host()], "Not reported yet", "has not been reported yet"),
        ("backfilled", "success", [on("w1")], "Backfilled", "older than the installation"),
        ("backfilled", "success", [one_of_the_host()], "Host backfilled", "may have several workers"),
        ("not_on_a_worker", "skipped", [], "Not on a worker", "No worker ran this try"),
        ("never_started", "failed", [], "Never started", "before a worker started it"),
        ("never_started", "queued", [], "Not started yet", "No worker has started this try yet"),
        ("unknown", "failed", [], "Unknown", "did not record its host"),
        ("of_the_future", "failed", [], "of the future", ""),
    ],
)
def test_each_attribution_has_a_label_and_an_explanation(
    attribution: str, state: str, workers: list[Any], text: str, explanation: str
) -> None:
    panel = build_panel(HERE, [a_try(1, 0, 10, *workers, state=state, attribution=attribution)], now=NOW)
    (row,) = panel.rows
    assert (row.attribution.key, row.attribution.text) == (attribution, text)
    assert explanation in row.attribution.explanation
    assert panel.explanations == (row.attribution,)


def test_try_of_a_test_is_labelled() -> None:
    tested = replace(a_try(1, 0, 10, attribution="not_on_a_worker"), ran_in_a_test=True)
    (row,) = build_panel(HERE, [tested], now=NOW).rows
    assert (row.attribution.key, row.attribution.text) == ("not_on_a_worker", "Test run")
    assert "in the process of a test, such as dag.test() or airflow dags test" in row.attribution.explanation


def test_host_is_not_shown_as_a_worker() -> None:
    (row,) = build_panel(HERE, [a_try(1, 0, 10, one_of_the_host(), attribution="inferred")], now=NOW).rows
    (cell,) = row.workers
    assert (cell.name, cell.worker.hostname, cell.worker.host_only) == ("A worker on this host", "host-1", True)


@pytest.mark.parametrize(
    ("attribution", "state", "text"),
    [
        ("unknown", "failed", "Unknown"),
        ("never_started", "failed", "None"),
        ("not_on_a_worker", "skipped", "None"),
        ("never_started", "queued", "None yet"),
    ],
)
def test_try_without_worker_says_why(attribution: str, state: str, text: str) -> None:
    (row,) = build_panel(HERE, [a_try(1, 0, 0, state=state, attribution=attribution)], now=NOW).rows
    assert row.no_worker_text == text


# --- summary --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tries", "summary"),
    [
        ([a_try(1, 0, 9, on("w1"))], "The only try so far succeeded on w1@host-1."),
        ([a_try(1, 0, None, on("w1"), state="running")], "The only try so far is running on w1@host-1."),
        (
            [a_try(1, 0, None, on("w1"), state="up_for_retry")],
            "The only try so far failed on w1@host-1 and waits for its retry.",
        ),
        (
            [a_try(1, 0, None, on("w1"), state="deferred")],
            "The only try so far started on w1@host-1 and is deferred to the triggerer.",
        ),
        ([a_try(1, 0, 9, on("w1"), on("w2"))], "The only try so far succeeded after 2 workers worked on it."),
        ([a_try(1, 0, 9, one_of_the_host())], "The only try so far succeeded on a worker of host-1."),
        ([a_try(1, 0, 0, state="skipped")], "The only try so far was skipped."),
        ([a_try(1, 0, 0, state="brand_new")], "The only try so far is in the state brand new."),
        (
            [a_try(1, 0, 1, on("w1"), state="failed"), a_try(2, 2, 3, on("w1"))],
            "2 tries, all on the same worker; the last one succeeded on w1@host-1.",
        ),
        (
            [a_try(1, 0, 1, on("w1"), state="failed"), a_try(2, 2, 3, on("w2"), state="failed")],
            "2 tries on 2 workers; the last one failed on w2@host-1.",
        ),
        (
            [a_try(1, 0, 1, one_of_the_host(), state="failed"), a_try(2, 2, 3, on("w2"))],
            "2 tries, 1 of them on 1 known worker; the last one succeeded on w2@host-1.",
        ),
        (
            [a_try(1, 0, 1, one_of_the_host(), state="failed"), a_try(2, 2, 3, one_of_the_host())],
            "2 tries, all on the same host; the last one succeeded on a worker of host-1.",
        ),
        (
            [a_try(1, 0, 1, one_of_the_host("a"), state="failed"), a_try(2, 2, 3, one_of_the_host("b"))],
            "2 tries, all on 2 hosts; the last one succeeded on a worker of b.",
        ),
        (
            [a_try(1, 0, 1, state="failed"), a_try(2, 2, 3, one_of_the_host())],
            "2 tries, some on a known host; the last one succeeded on a worker of host-1.",
        ),
        (
            [a_try(1, 0, 1, state="failed"), a_try(2, 2, 3, state="failed")],
            "2 tries, on no known worker; the last one failed.",
        ),
    ],
)
def test_summary_counts_tries_and_tells_the_last_outcome(tries: list[Any], summary: str) -> None:
    panel = build_panel(HERE, tries, now=NOW)
    assert panel.summary == summary
    if panel.strip:
        assert panel.strip.label == summary


# --- lost workers --------------------------------------------------------------------------------------------------


def test_panel_warns_of_a_try_running_on_a_lost_worker() -> None:
    tries = [a_try(1, 0, 9, on("w1"), state="failed"), a_try(2, 20, None, on("w2"), state="running")]
    lost = a_worker_row("w2", state="lost", ended_at=at(120), state_reason="Silent.")
    panel = build_panel(HERE, tries, {"w1": a_worker_row("w1"), "w2": lost}, now=NOW)
    assert panel.warning is not None
    assert panel.warning.text == "Airflow still counts it as running, but w2@host-1 has been lost"
    assert panel.warning.since == at(120)
    assert [row.workers[0].instance for row in panel.rows] == [lost, None]
    assert build_panel(HERE, tries, now=NOW).warning is None
    assert build_panel(HERE, tries[:1], {"w1": replace(lost, worker_id="w1")}, now=NOW).warning is None


@pytest.mark.parametrize(
    ("state", "is_shown"), [("unresponsive", True), ("offline", True), ("online", False), (None, False)]
)
def test_cell_has_the_instance_of_a_worker_that_is_not_online(state: str | None, is_shown: bool) -> None:
    instance = a_worker_row("w1", state=state)
    panel = build_panel(HERE, [a_try(1, 0, None, on("w1"), state="running")], {"w1": instance}, now=NOW)
    assert panel.rows[0].workers[0].instance == (instance if is_shown else None)
    assert panel.warning is None


# --- notices and refreshing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tries", "title", "text"),
    [
        ([], "Task instance not found", "no such task instance"),
        ([a_try(0, state=None, attribution="never_started")], "No tries yet", "has not been scheduled"),
        ([a_try(1, state="scheduled", attribution="never_started")], "No tries yet", "waits for a worker"),
        ([a_try(1, state="queued", attribution="never_started")], "No tries yet", "a worker consumes its queue"),
        ([a_try(1, state="deferred", attribution="never_started")], "No tries yet", "deferred to the triggerer"),
        ([a_try(0, 0, 0, state="skipped", attribution="not_on_a_worker")], "Never ran on a worker", "was skipped"),
        ([a_try(1, 0, 0, state="skipped", attribution="not_on_a_worker")], "Never ran on a worker", "was skipped"),
        (
            [a_try(0, 0, 0, state="upstream_failed", attribution="not_on_a_worker")],
            "Never ran on a worker",
            "An upstream task failed",
        ),
        ([a_try(0, state="removed", attribution="not_on_a_worker")], "Never ran on a worker", "removed from its Dag"),
        ([a_try(1, 0, 9, attribution="unknown", is_recorded=False)], "Not recorded", "older than the installation"),
    ],
)
def test_notice_says_what_is_missing_and_what_to_do(tries: list[Any], title: str, text: str) -> None:
    (notice,) = build_panel(HERE, tries, now=NOW).notices
    assert notice.title == title
    assert text in notice.text
    assert notice.command == ("airflow-worker-insight backfill" if title == "Not recorded" else "")


@pytest.mark.parametrize(
    "tries",
    [
        [a_try(1, 0, 9, on("w1"))],
        [a_try(1, 0, 9, state="failed", attribution="never_started")],
        [a_try(1, 0, 9, state="failed", attribution="unknown"), a_try(2, 10, 20, on("w1"))],
        [a_try(1, 0, 9, on("w1"), state="skipped")],
        [a_try(1, 0, 9, on("w1"), state="failed"), a_try(2, state="queued", attribution="never_started")],
    ],
)
def test_panel_with_tries_has_no_notice(tries: list[Any]) -> None:
    assert build_panel(HERE, tries, now=NOW).notices == ()


@pytest.mark.parametrize(
    ("state", "refreshes"),
    [
        (None, True),
        ("queued", True),
        ("running", True),
        ("deferred", True),
        ("up_for_retry", True),
        ("up_for_reschedule", True),
        ("success", False),
        ("failed", False),
        ("skipped", False),
    ],
)
def test_panel_refreshes_until_the_task_has_ended(state: str | None, refreshes: bool) -> None:
    panel = build_panel(HERE, [a_try(1, 0, None, on("w1"), state=state)], now=NOW)
    assert panel.refresh_seconds == (REFRESH_SECONDS if refreshes else 0)


def test_letters_continue_with_two_after_z() -> None:
    tries = [a_try(number, number, number + 1, on(f"w{number}")) for number in range(1, 54)]
    marks = [row.workers[0].mark for row in reversed(build_panel(HERE, tries, now=NOW).rows)]
    assert (marks[0], marks[25], marks[26], marks[51], marks[52]) == ("A", "Z", "AA", "AZ", "BA")


def test_panel_keeps_its_url() -> None:
    params = PanelParams("<d>", "r", "t", 1, 2)
    assert build_panel(params, [], now=NOW).params is params
