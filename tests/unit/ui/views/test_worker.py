"""The view model of a worker's page: what it is, what it runs, what it took with it, and what was decided of it."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_worker_insight.domain.attempts import AttemptPage
from airflow_worker_insight.ui.query_params import WorkerParams
from airflow_worker_insight.ui.views.worker import REFRESH_BUSY_SECONDS, REFRESH_IDLE_SECONDS, build_worker_page
from tests.unit.database import at
from tests.unit.ui.attempts import a_try, on
from tests.unit.ui.workers import NOW, a_change, a_life, a_worker_row


def a_page(
    row: Any = None,
    params: WorkerParams | None = None,
    *,
    may_read: bool = True,
    may_decide: bool = True,
    **life: Any,
) -> Any:
    return build_worker_page(
        a_life(row, **life), params or WorkerParams(), may_read=may_read, may_decide=may_decide, now=NOW
    )


def test_a_worker_says_what_it_is() -> None:
    page = a_page()
    facts = {fact.name: fact.text or (fact.moment.text if fact.moment else "") for fact in page.facts}
    assert facts == {
        "Kind": "Celery",
        "Host": "host-1",
        "Process": "4711",
        "Concurrency": "8",
        "Started": "2026-03-01 12:00:00 UTC",
        "First seen": "2026-03-01 12:01:00 UTC",
        "Last seen": "2026-03-01 12:02:00 UTC",
        "CPUs": "4",
        "Memory": "8.0 GiB",
        "System": "Debian",
        "swap": "1.0 KiB",
        "Worker Insight": "0.1.0",
        "Python": "3.11.7",
        "something else": "1",
        "Worker ID": "celery-1",
    }
    assert page.labels == (("region", "eu"), ("zone", "a"))
    assert page.queues == ("default",)
    assert page.empty_text == "No try of this worker was recorded."


def test_only_who_may_not_read_all_is_told_of_what_they_may_see() -> None:
    page = a_page(is_whole=False)
    assert page.empty_text == "No try of this worker was recorded in a Dag that you may read."
    assert page.running.text == "Nothing that you may see runs on it now."
    lost = a_page(a_worker_row(state="lost", ended_at=at(120)), is_whole=False)
    assert lost.struck.text == "No try that you may see was running on it when it was last seen."


def test_a_name_that_an_operator_gave_stands_beside_that_of_the_executor() -> None:
    page = a_page(a_worker_row(name="etl-large-1", engine_name="celery@host-1"))
    assert {fact.name: fact.text for fact in page.facts}["Its executor’s name"] == "celery@host-1"


def test_a_host_says_that_it_is_no_worker() -> None:
    nothing: Any = {"resources": {}, "versions": {}, "labels": {}, "queues": None, "concurrency": None}
    row = a_worker_row(host_only=True, pid=None, started_at=None, state=None, engine_name=None, running=None, **nothing)
    page = a_page(row)
    assert page.name == "A Celery worker on host-1"
    assert "one of the workers of this host" in page.introduction
    assert [fact.name for fact in page.facts] == ["Kind", "Host", "First seen", "Last seen", "Worker ID"]
    assert (page.state, page.since, page.availability, page.running, page.struck) == (None, None, None, None, None)


# --- its life -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "since"),
    [
        ([a_change(400, state="online"), a_change(300, state="unresponsive")], "2026-03-01 12:06:40 UTC"),
        ([a_change(900, availability="draining"), a_change(400, state="online")], "2026-03-01 12:06:40 UTC"),
        ([], "2026-03-01 12:01:00 UTC"),
    ],
)
def test_a_worker_says_since_when_it_is_in_its_state(changes: list[Any], since: str) -> None:
    assert a_page(changes=changes).since.moment.text == since


def test_a_lost_worker_says_since_when_and_what_it_took_with_it() -> None:
    lost = a_worker_row(state="lost", ended_at=at(120), state_reason="No answer for 3 min.")
    page = a_page(lost, struck=([a_try(1, 0, None, on("celery-1"), state="running")], 3))
    assert (page.state.text, page.state.reason) == ("Lost", "No answer for 3 min.")
    assert page.since.moment.text == "2026-03-01 12:02:00 UTC"
    assert page.struck.text == (
        "3 tries had not ended when it was last seen, and went with it. Airflow says that they run until its own "
        "heartbeat of tasks times out."
    )
    noticed = a_page(lost, struck=([a_try(1, 0, 90, on("celery-1"), state="failed")], 1))
    assert noticed.struck.text == "1 try had not ended when it was last seen, and went with it."
    assert (len(page.struck.rows), page.struck.rest) == (1, "And 2 more.")
    assert (page.running, page.load) == (None, None)
    nothing = a_page(lost).struck
    assert nothing.text == "No try was running on it when it was last seen."
    assert a_page().struck is None


def test_nothing_is_claimed_of_a_worker_of_which_nothing_tells() -> None:
    page = a_page(a_worker_row(state=None, state_reason="Nobody looks."))
    assert (page.state.text, page.state.reason, page.since) == ("Unknown", "Nobody looks.", None)


def test_history_and_other_lives() -> None:
    page = a_page(
        changes=[
            a_change(940, availability="quarantined", reason="Disk fails", changed_by="alice"),
            a_change(100, state="online", reason="Celery tells of it."),
        ],
        others=[a_worker_row("celery-0", state="offline", started_at=None)],
    )
    decided, seen = page.history
    assert (decided.state, decided.availability, decided.text, decided.reason, decided.changed_by) == (
        None,
        "quarantined",
        "Quarantined",
        "Disk fails",
        "alice",
    )
    assert decided.changed.text == "1 min ago"
    assert (seen.state.text, seen.reason, seen.changed_by) == ("Online", "Celery tells of it.", "")
    (other,) = page.others
    assert (other.worker_id, other.state.text, other.began.text) == ("celery-0", "Offline", "2026-03-01 12:01:00 UTC")


# --- what it runs ---------------------------------------------------------------------------------------------------


def test_what_runs_now_is_listed_and_counted() -> None:
    running = [a_try(number, 0, None, on("celery-1"), state="running") for number in (1, 2)]
    page = a_page(running=(running, 2))
    assert page.running.text == "2 tries run on it now."
    assert [row.duration for row in page.running.rows] == ["16 min 40 s so far"] * 2
    assert a_page().running.text == "Nothing runs on it now."


@pytest.mark.parametrize(("total", "text"), [(1, "1 try still runs on it."), (2, "2 tries still run on it.")])
def test_a_worker_that_was_told_to_stop_shows_what_still_runs_on_it(total: int, text: str) -> None:
    offline = a_worker_row(state="offline", ended_at=at(900))
    running = [a_try(number, 0, None, on("celery-1"), state="running") for number in range(1, total + 1)]
    page = a_page(offline, running=(running, total))
    assert page.running.text == f"It was told to stop; {text}"
    assert len(page.running.rows) == total
    assert page.refresh_seconds == REFRESH_BUSY_SECONDS
    assert a_page(offline).running is None


def test_tries_tell_what_this_worker_was_like_when_they_started() -> None:
    one = a_try(1, 0, 1, on("celery-0", load=9.0), on("celery-1", load=0.5))
    page = a_page(attempts=AttemptPage([one], 1, total_is_exact=True))
    assert page.rows[0].conditions.title == "When the try started here: load 0.50 per CPU"


@pytest.mark.parametrize(
    ("state", "last_seen", "running", "seconds"),
    [
        ("online", 900, 0, REFRESH_IDLE_SECONDS),
        ("online", 900, 1, REFRESH_BUSY_SECONDS),
        ("unresponsive", -90_000, 0, REFRESH_IDLE_SECONDS),
        (None, -90_000, 1, REFRESH_BUSY_SECONDS),
        (None, 900, 0, REFRESH_IDLE_SECONDS),
        (None, -90_000, 0, 0),
        ("offline", 900, 0, 0),
        ("lost", 900, 1, REFRESH_IDLE_SECONDS),
        ("lost", -90_000, 0, 0),
    ],
)
def test_the_page_keeps_up_while_something_may_change(
    state: str | None, last_seen: float, running: int, seconds: int
) -> None:
    tries = [a_try(1, 0, None, on("celery-1"), state="running")][:running]
    row = a_worker_row(state=state, last_seen_at=at(last_seen))
    assert a_page(row, running=(tries, running)).refresh_seconds == seconds


def test_a_reader_of_no_dag_is_told_why_there_are_no_tries() -> None:
    page = a_page(a_worker_row(state="lost", ended_at=at(120)), may_read=False)
    assert page.notice.text.startswith("Airflow lets you see no task instances")
    assert (page.running, page.struck, page.timeline, page.chart, page.rows) == (None, None, None, None, ())
    assert page.facts


@pytest.mark.parametrize(
    ("shown", "total", "offset", "text", "previous", "following"),
    [
        (3, 3, 0, "3 tries", None, None),
        (25, 60, 0, "1 to 25 of 60 tries", None, 25),
        (25, 60, 25, "26 to 50 of 60 tries", 0, 50),
        (10, 60, 50, "51 to 60 of 60 tries", 25, None),
        (25, 60, 10, "11 to 35 of 60 tries", 0, 35),
        (0, 60, 1000, "", 59, None),
        (0, 0, 25, "", 0, None),
    ],
)
def test_pages_of_tries(
    shown: int, total: int, offset: int, text: str, previous: int | None, following: int | None
) -> None:
    tries = [a_try(number, number, number + 1, on("celery-1")) for number in range(1, shown + 1)]
    here = WorkerParams(hours=6, until=at(500), offset=offset)
    page = a_page(params=here, attempts=AttemptPage(tries, total, total_is_exact=True))
    assert page.pages.range_text == text
    assert page.pages.previous == (None if previous is None else WorkerParams(6, at(500), previous))
    assert page.pages.following == (None if following is None else WorkerParams(6, at(500), following))
    if total and not shown:
        assert page.empty_text == "There are no more tries here."


# --- what was decided -----------------------------------------------------------------------------------------------


def test_a_decision_in_force_and_what_may_be_decided() -> None:
    latest = a_change(0, availability="draining", reason="Disk fails", changed_by="alice")
    found = a_page(a_worker_row(availability="draining"), decision=latest).availability
    assert (found.decision.text, found.decision.note, found.decision.changed_by) == ("Draining", "Disk fails", "alice")
    assert [(choice.value, choice.is_chosen) for choice in found.choices] == [
        ("available", False),
        ("draining", True),
        ("quarantined", False),
    ]
    assert found.may_decide
    assert not a_page(may_decide=False).availability.may_decide


def test_the_page_says_that_a_decision_alone_keeps_no_work_away() -> None:
    assert "does not keep Airflow from giving the worker work" in a_page().availability.effect
    assert "gives the worker work accordingly" in a_page(places=True).availability.effect


def test_the_note_of_another_decision_is_not_passed_off_as_this_ones() -> None:
    latest = a_change(0, availability="draining", reason="Disk fails", changed_by="alice")
    found = a_page(a_worker_row(availability="available"), decision=latest).availability.decision
    assert (found.text, found.note, found.changed_by, found.changed) == ("Available", "", "", None)
