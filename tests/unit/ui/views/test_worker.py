"""The view model of a worker's page."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_worker_insight.domain.attempts import AttemptPage
from airflow_worker_insight.domain.enforcement import EnforcementState, EnforcementStatus
from airflow_worker_insight.ui.query_params import WorkerParams
from airflow_worker_insight.ui.views.worker import REFRESH_BUSY_SECONDS, REFRESH_IDLE_SECONDS, build_worker_page
from tests.unit.database import at
from tests.unit.ui.attempts import a_try, on
from tests.unit.ui.workers import NOW, a_change, a_worker_row, an_instance


def a_page(
    row: Any = None,
    params: WorkerParams | None = None,
    *,
    may_read: bool = True,
    may_decide: bool = True,
    **instance: Any,
) -> Any:
    return build_worker_page(
        an_instance(row, **instance), params or WorkerParams(), may_read=may_read, may_decide=may_decide, now=NOW
    )


def test_facts_describe_the_worker() -> None:
    page = a_page()
    facts = {fact.name: fact.text or fact.time for fact in page.facts}
    assert facts == {
        "Kind": "Celery",
        "Host": "host-1",
        "Process ID": "4711",
        "Concurrency": "8",
        "Started": at(0),
        "First seen": at(60),
        "Last seen": at(120),
        "CPUs": "4",
        "Memory": "8.0 GiB",
        "Operating system": "Debian",
        "swap": "1.0 KiB",
        "Worker Insight": "0.1.0",
        "Python": "3.11.7",
        "something else": "1",
        "Worker ID": "celery-1",
    }
    assert page.empty_text == "No tries recorded for this worker."


def test_texts_mention_permissions_only_if_some_dags_are_hidden() -> None:
    page = a_page(sees_all_dags=False)
    assert page.empty_text == "No tries recorded for this worker in Dags that you can read."
    assert page.running.text == "No try that you can see is running."
    lost = a_page(a_worker_row(state="lost", ended_at=at(120)), sees_all_dags=False)
    assert lost.lost_tries.text == "No try that you can see was running when the worker was last seen."


def test_facts_have_the_name_in_the_executor_if_it_differs() -> None:
    page = a_page(a_worker_row(name="etl-large-1", engine_name="celery@host-1"))
    assert {fact.name: fact.text for fact in page.facts}["Name in its executor"] == "celery@host-1"


def test_page_of_a_host_says_that_it_stands_for_all_workers() -> None:
    nothing: Any = {"resources": {}, "versions": {}, "labels": {}, "queues": None, "concurrency": None}
    row = a_worker_row(host_only=True, pid=None, started_at=None, state=None, engine_name=None, running=None, **nothing)
    page = a_page(row)
    assert page.name == "A Celery worker on host-1"
    assert "each ran on one of its workers" in page.introduction
    assert [fact.name for fact in page.facts] == ["Kind", "Host", "First seen", "Last seen", "Worker ID"]
    assert (page.since, page.availability, page.running, page.lost_tries) == (None, None, None, None)


# --- state ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "since"),
    [
        ([a_change(400, state="online"), a_change(300, state="unresponsive")], at(400)),
        ([a_change(900, availability="draining"), a_change(400, state="online")], at(400)),
        ([], at(60)),
    ],
)
def test_state_has_its_start(changes: list[Any], since: Any) -> None:
    assert a_page(changes=changes).since == since


def test_lost_worker_has_start_and_lost_tries() -> None:
    lost = a_worker_row(state="lost", ended_at=at(120), state_reason="No answer for 3 min.")
    page = a_page(lost, lost_tries=([a_try(1, 0, None, on("celery-1"), state="running")], 3))
    assert page.since == at(120)
    assert page.lost_tries.text == (
        "3 tries had not ended when the worker was last seen. A lost try counts as running in Airflow until its "
        "heartbeat times out."
    )
    noticed = a_page(lost, lost_tries=([a_try(1, 0, 90, on("celery-1"), state="failed")], 1))
    assert noticed.lost_tries.text == "1 try had not ended when the worker was last seen."
    assert (len(page.lost_tries.rows), page.lost_tries.rest) == (1, "And 2 more.")
    assert (page.running, page.load) == (None, None)
    nothing = a_page(lost).lost_tries
    assert nothing.text == "No try was running when the worker was last seen."
    assert a_page().lost_tries is None


def test_worker_of_unknown_state_has_no_start_of_that_state() -> None:
    assert a_page(a_worker_row(state=None, state_reason="Nobody looks.")).since is None


def test_history_and_other_instances_are_those_of_the_store() -> None:
    changes, others = [a_change(100, state="online")], [a_worker_row("celery-0", state="offline")]
    page = a_page(changes=changes, others=others)
    assert (page.history, page.others) == (changes, others)


# --- tries ----------------------------------------------------------------------------------------------------------


def test_running_tries_are_listed_and_counted() -> None:
    running = [a_try(number, 0, None, on("celery-1"), state="running") for number in (1, 2)]
    page = a_page(running=(running, 2))
    assert page.running.text == "2 tries are running."
    assert [row.duration for row in page.running.rows] == ["16 min 40 s so far"] * 2
    assert a_page().running.text == "No try is running."


@pytest.mark.parametrize(("total", "text"), [(1, "1 try is still running."), (2, "2 tries are still running.")])
def test_offline_worker_lists_tries_that_still_run(total: int, text: str) -> None:
    offline = a_worker_row(state="offline", ended_at=at(900))
    running = [a_try(number, 0, None, on("celery-1"), state="running") for number in range(1, total + 1)]
    page = a_page(offline, running=(running, total))
    assert page.running.text == f"Shutting down: {text}"
    assert len(page.running.rows) == total
    assert page.refresh_seconds == REFRESH_BUSY_SECONDS
    assert a_page(offline).running is None


def test_rows_have_the_conditions_of_this_worker() -> None:
    one = a_try(1, 0, 1, on("celery-0", load=9.0), on("celery-1", load=0.5))
    page = a_page(attempts=AttemptPage([one], 1, total_is_exact=True))
    assert page.rows[0].conditions.title == "When the try started: load 0.50 per CPU"


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
def test_page_refreshes_while_something_may_change(
    state: str | None, last_seen: float, running: int, seconds: int
) -> None:
    tries = [a_try(1, 0, None, on("celery-1"), state="running")][:running]
    row = a_worker_row(state=state, last_seen_at=at(last_seen))
    assert a_page(row, running=(tries, running)).refresh_seconds == seconds


def test_notice_says_why_a_reader_of_no_dag_sees_no_tries() -> None:
    page = a_page(a_worker_row(state="lost", ended_at=at(120)), may_read=False)
    assert page.notice.text.startswith("You do not have permission to view task instances")
    assert (page.running, page.lost_tries, page.timeline, page.chart, page.rows) == (None, None, None, None, ())
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
def test_tries_are_paginated(
    shown: int, total: int, offset: int, text: str, previous: int | None, following: int | None
) -> None:
    tries = [a_try(number, number, number + 1, on("celery-1")) for number in range(1, shown + 1)]
    here = WorkerParams(hours=6, until=at(500), offset=offset)
    page = a_page(params=here, attempts=AttemptPage(tries, total, total_is_exact=True))
    assert page.pages.range_text == text
    assert page.pages.previous == (None if previous is None else WorkerParams(6, at(500), previous))
    assert page.pages.following == (None if following is None else WorkerParams(6, at(500), following))
    if total and not shown:
        assert page.empty_text == "No more tries."


# --- availability ---------------------------------------------------------------------------------------------------


def test_availability_has_the_change_and_the_options() -> None:
    latest = a_change(0, availability="draining", reason="Disk fails", changed_by="alice")
    found = a_page(a_worker_row(availability="draining"), decision=latest).availability
    assert (found.current, found.change) == ("draining", latest)
    assert [(option.value, option.is_chosen) for option in found.options] == [
        ("available", False),
        ("draining", True),
        ("quarantined", False),
    ]
    assert found.may_decide
    assert not a_page(may_decide=False).availability.may_decide


def test_page_says_what_a_decision_does_and_whether_it_holds() -> None:
    holds = EnforcementStatus(EnforcementState.IN_EFFECT, NOW, "The worker is in maintenance mode.")
    found = a_page(effect="It stops.", enforcement=holds).availability
    assert (found.effect, found.status) == ("It stops.", holds)
    ended = a_page(a_worker_row(ended_at=NOW), enforcement=holds).availability
    assert ended.status is None, "nothing is to be enforced any more"


def test_change_of_another_availability_is_not_shown() -> None:
    latest = a_change(0, availability="draining", reason="Disk fails", changed_by="alice")
    found = a_page(a_worker_row(availability="available"), decision=latest).availability
    assert (found.current, found.change) == ("available", None)
