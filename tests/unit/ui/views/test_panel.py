"""The view model of the panel: every state in words."""

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


def test_the_rows_are_the_tries_from_the_latest_on() -> None:
    panel = build_panel(
        HERE, [a_try(1, 0, 100.5, on("w1"), state="failed"), a_try(2, 200, None, on("w2"), state="running")], now=NOW
    )
    assert [row.try_number for row in panel.rows] == [2, 1]
    running, failed = panel.rows
    assert (running.state, running.state_text, running.duration) == ("running", "Running", "13 min 20 s so far")
    assert (failed.state_text, failed.duration) == ("Failed", "1 min 40 s")
    assert failed.started is not None
    assert failed.started.text == "2026-03-01 12:00:00 UTC"
    (cell,) = failed.workers
    assert (cell.worker_id, cell.mark, cell.name, cell.kind, cell.hostname, cell.note) == (
        "w1",
        "A",
        "w1@host-1",
        "Celery",
        "host-1",
        "",
    )
    assert running.workers[0].mark == "B"


def test_a_try_on_several_workers_counts_their_processes() -> None:
    (row,) = build_panel(HERE, [a_try(1, 0, 90, on("w1", 0, process_count=5000), on("w2", 50))], now=NOW).rows
    assert [cell.note for cell in row.workers] == ["5,000 processes", "1 process"]


def test_what_the_machine_was_like_when_a_try_started() -> None:
    busy = on("w1", load=1.234, memory_free=0.356, running_beside=1)
    (row,) = build_panel(HERE, [a_try(1, 0, 90, busy, on("w2", running_beside=0))], now=NOW).rows
    assert [(cell.conditions.text, cell.conditions.title) for cell in row.workers if cell.conditions] == [
        (
            "load 1.2 · 36% free · 1 beside",
            "When the try started here: load 1.23 per CPU, 36% of memory free, 1 try beside it",
        ),
        ("0 beside", "When the try started here: 0 tries beside it"),
    ]
    (row,) = build_panel(HERE, [a_try(1, 0, 90, on("w1"))], now=NOW).rows
    assert row.workers[0].conditions is None


def test_the_try_that_the_reader_came_from_is_marked() -> None:
    panel = build_panel(replace(HERE, try_number=1), [a_try(1, 0, 1, on("w1")), a_try(2, 2, 3, on("w1"))], now=NOW)
    assert [row.is_selected for row in panel.rows] == [False, True]


def test_a_mapped_task_instance_shows_its_index() -> None:
    assert build_panel(HERE, [], now=NOW).task_name == "load"
    assert build_panel(replace(HERE, map_index=3), [], now=NOW).task_name == "load [3]"


# --- attribution ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attribution", "state", "workers", "text", "explanation"),
    [
        ("reported", "success", [on("w1")], "Reported", "The worker itself said"),
        ("inferred", "failed", [on("w1")], "Worked out", "leaves no other worker"),
        ("inferred", "failed", [one_of_the_host()], "Host worked out", "one of the workers of this host"),
        ("inferred", "running", [one_of_the_host()], "Not reported yet", "has not reported yet"),
        ("backfilled", "success", [on("w1")], "From history", "older than the installation"),
        ("backfilled", "success", [one_of_the_host()], "Host from history", "not known which"),
        ("not_on_a_worker", "skipped", [], "Not on a worker", "No worker ran this try"),
        ("never_started", "failed", [], "Never started", "before a worker started its process"),
        ("never_started", "queued", [], "Not started yet", "No worker has started this try so far"),
        ("unknown", "failed", [], "Not known", "Airflow kept no host"),
        ("of_the_future", "failed", [], "of the future", ""),
    ],
)
def test_every_attribution_has_words_and_a_sentence(
    attribution: str, state: str, workers: list[Any], text: str, explanation: str
) -> None:
    panel = build_panel(HERE, [a_try(1, 0, 10, *workers, state=state, attribution=attribution)], now=NOW)
    (row,) = panel.rows
    assert (row.attribution.key, row.attribution.text) == (attribution, text)
    assert explanation in row.attribution.explanation
    assert panel.explanations == (row.attribution,)


def test_a_try_of_a_test_says_so() -> None:
    tested = replace(a_try(1, 0, 10, attribution="not_on_a_worker"), ran_in_a_test=True)
    (row,) = build_panel(HERE, [tested], now=NOW).rows
    assert (row.attribution.key, row.attribution.text) == ("not_on_a_worker", "Run in a test")
    assert "in a test, as dag.test() and airflow dags test do" in row.attribution.explanation


def test_a_host_is_not_passed_off_as_a_worker() -> None:
    (row,) = build_panel(HERE, [a_try(1, 0, 10, one_of_the_host(), attribution="inferred")], now=NOW).rows
    (cell,) = row.workers
    assert (cell.name, cell.hostname, cell.host_only) == ("One of this host’s workers", "host-1", True)


@pytest.mark.parametrize(
    ("attribution", "state", "text"),
    [
        ("unknown", "failed", "Not known"),
        ("never_started", "failed", "None"),
        ("not_on_a_worker", "skipped", "None"),
        ("never_started", "queued", "None so far"),
    ],
)
def test_no_worker_is_said_in_words(attribution: str, state: str, text: str) -> None:
    (row,) = build_panel(HERE, [a_try(1, 0, 0, state=state, attribution=attribution)], now=NOW).rows
    assert row.no_worker_text == text


# --- the sentence above ---------------------------------------------------------------------------------------------


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
            "The only try so far began on w1@host-1 and is deferred to the triggerer.",
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
def test_the_summary(tries: list[Any], summary: str) -> None:
    panel = build_panel(HERE, tries, now=NOW)
    assert panel.summary == summary
    if panel.strip:
        assert panel.strip.label == summary


# --- workers that are gone ------------------------------------------------------------------------------------------


def test_a_try_that_runs_on_a_lost_worker_is_doubted() -> None:
    tries = [a_try(1, 0, 9, on("w1"), state="failed"), a_try(2, 20, None, on("w2"), state="running")]
    lost = a_worker_row("w2", state="lost", ended_at=at(120), state_reason="Silent.")
    panel = build_panel(HERE, tries, {"w1": a_worker_row("w1"), "w2": lost}, now=NOW)
    assert panel.doubt is not None
    assert panel.doubt.text == "Airflow still counts it as running, but w2@host-1 has been lost"
    assert panel.doubt.since.text == "2026-03-01 12:02:00 UTC"
    of_lost, of_online = (row.workers[0].state for row in panel.rows)
    assert of_lost is not None
    assert (of_lost.text, of_lost.reason, of_online) == ("Lost", "Silent.", None)
    assert build_panel(HERE, tries, now=NOW).doubt is None
    assert build_panel(HERE, tries[:1], {"w1": replace(lost, worker_id="w1")}, now=NOW).doubt is None


@pytest.mark.parametrize(
    ("state", "text"), [("unresponsive", "Unresponsive"), ("offline", "Offline"), ("online", None), (None, None)]
)
def test_a_worker_says_what_became_of_it(state: str | None, text: str | None) -> None:
    panel = build_panel(
        HERE, [a_try(1, 0, None, on("w1"), state="running")], {"w1": a_worker_row("w1", state=state)}, now=NOW
    )
    shown = panel.rows[0].workers[0].state
    assert (shown.text if shown else None) == text
    assert panel.doubt is None


# --- where there is nothing to show ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tries", "title", "text"),
    [
        ([], "No such task instance", "no task instance of this name"),
        ([a_try(0, state=None, attribution="never_started")], "No try yet", "has not been scheduled"),
        ([a_try(1, state="scheduled", attribution="never_started")], "No try yet", "waits for a worker"),
        ([a_try(1, state="queued", attribution="never_started")], "No try yet", "a worker of its queue is running"),
        ([a_try(1, state="deferred", attribution="never_started")], "No try yet", "waits in the triggerer"),
        ([a_try(0, 0, 0, state="skipped", attribution="not_on_a_worker")], "Never ran on a worker", "was skipped"),
        ([a_try(1, 0, 0, state="skipped", attribution="not_on_a_worker")], "Never ran on a worker", "was skipped"),
        (
            [a_try(0, 0, 0, state="upstream_failed", attribution="not_on_a_worker")],
            "Never ran on a worker",
            "A task before this one failed",
        ),
        ([a_try(0, state="removed", attribution="not_on_a_worker")], "Never ran on a worker", "removed from its Dag"),
        ([a_try(1, 0, 9, attribution="unknown", is_recorded=False)], "Not recorded", "older than the installation"),
    ],
)
def test_what_is_not_there_has_a_reason_and_an_advice(tries: list[Any], title: str, text: str) -> None:
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
def test_nothing_is_said_where_there_is_something_to_see(tries: list[Any]) -> None:
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
def test_a_panel_keeps_up_until_its_task_has_ended(state: str | None, refreshes: bool) -> None:
    panel = build_panel(HERE, [a_try(1, 0, None, on("w1"), state=state)], now=NOW)
    assert panel.refresh_seconds == (REFRESH_SECONDS if refreshes else 0)


def test_letters_go_on_after_z() -> None:
    tries = [a_try(number, number, number + 1, on(f"w{number}")) for number in range(1, 54)]
    marks = [row.workers[0].mark for row in reversed(build_panel(HERE, tries, now=NOW).rows)]
    assert (marks[0], marks[25], marks[26], marks[51], marks[52]) == ("A", "Z", "AA", "AZ", "BA")


def test_an_address_is_kept_as_it_was_asked() -> None:
    params = PanelParams("<d>", "r", "t", 1, 2)
    assert build_panel(params, [], now=NOW).params is params
