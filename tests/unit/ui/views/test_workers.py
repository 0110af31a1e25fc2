"""The view model of the list of workers: the fleet at a glance, and what is said where there is nothing to see."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_worker_insight.domain.workers import SourceStatus, WorkerGroup
from airflow_worker_insight.ui.query_params import WorkersAddress
from airflow_worker_insight.ui.views.workers import (
    LISTED,
    REFRESH_IDLE_SECONDS,
    REFRESH_SECONDS,
    build_workers_page,
    listed_states,
)
from tests.unit.database import at
from tests.unit.ui.workers import NOW, a_change, a_listing, a_worker_row

HERE = WorkersAddress()


def a_page(*rows: Any, address: WorkersAddress = HERE, looks_by_itself: bool = True, **others: Any) -> Any:
    return build_workers_page(address, a_listing(*rows, **others), now=NOW, looks_by_itself=looks_by_itself)


# --- rows -----------------------------------------------------------------------------------------------------------


def test_a_worker_in_a_row() -> None:
    (line,) = a_page(a_worker_row()).lines
    assert (line.worker_id, line.name, line.kind, line.hostname) == ("celery-1", "w1@host-1", "Celery", "host-1")
    assert (line.state.key, line.state.text) == ("online", "Online")
    assert (line.load.text, line.load.share, line.load.is_full) == ("2 / 8", "25.0%", False)
    assert (line.last_seen.text, line.last_seen.moment.text) == ("14 min ago", "2026-03-01 12:02:00 UTC")
    assert line.decision is None


@pytest.mark.parametrize(
    ("given", "text", "share", "is_full"),
    [
        ({"running": 8}, "8 / 8", "100.0%", True),
        ({"running": 9}, "9 / 8", "100.0%", True),
        ({"running": 1200, "concurrency": 4000}, "1,200 / 4,000", "30.0%", False),
        ({"concurrency": None}, "2", "", False),
        ({"concurrency": 0}, "2", "", False),
    ],
)
def test_how_busy_a_worker_is(given: dict[str, Any], text: str, share: str, is_full: bool) -> None:
    (line,) = a_page(a_worker_row(**given)).lines
    assert (line.load.text, line.load.share, line.load.is_full) == (text, share, is_full)


@pytest.mark.parametrize("given", [{"running": None}, {"state": "lost"}, {"state": "offline"}])
def test_nothing_is_said_of_what_a_worker_runs_that_is_gone_or_does_not_tell(given: dict[str, Any]) -> None:
    (line,) = a_page(a_worker_row(**given)).lines
    assert line.load is None


def test_a_worker_of_which_nothing_tells_is_unknown_and_says_why() -> None:
    (line,) = a_page(a_worker_row(state=None, state_reason="Nobody looks.")).lines
    assert (line.state.key, line.state.text, line.state.reason) == ("unknown", "Unknown", "Nobody looks.")


def test_many_queues_are_counted() -> None:
    (line,) = a_page(a_worker_row(queues=("a", "b", "c", "d", "e"))).lines
    assert (line.queues, line.more_queues) == (("a", "b", "c"), "and 2 more")
    (line,) = a_page(a_worker_row(queues=None)).lines
    assert (line.queues, line.more_queues) == ((), "")


def test_a_decision_stands_beside_the_worker_with_its_note_and_author() -> None:
    latest = a_change(0, availability="draining", reason="Disk fails", changed_by="alice")
    (line,) = a_page(a_worker_row(availability="draining"), decisions={1: latest}).lines
    assert (line.decision.key, line.decision.text, line.decision.note) == ("draining", "Draining", "Disk fails")
    assert line.decision.title == "Draining by alice: Disk fails"
    (line,) = a_page(a_worker_row(availability="quarantined")).lines
    assert (line.decision.title, line.decision.changed) == ("Quarantined", None)


# --- states at a glance ---------------------------------------------------------------------------------------------


def test_each_state_has_a_chip_that_leads_to_its_workers() -> None:
    page = a_page(a_worker_row(), counts={"online": 1234, "lost": 2, None: 1}, address=HERE.changed(queue="q"))
    assert [(chip.text, chip.count) for chip in page.chips] == [
        ("Online", "1,234"),
        ("Unresponsive", "0"),
        ("Lost", "2"),
        ("Unknown", "1"),
        ("Offline", "0"),
    ]
    assert page.chips[2].address == WorkersAddress(state="lost", queue="q")
    assert not any(chip.is_chosen for chip in page.chips)


def test_the_chip_of_the_state_that_is_listed_leads_back() -> None:
    page = a_page(a_worker_row(), address=WorkersAddress(state="lost", offset=100))
    (chosen,) = [chip for chip in page.chips if chip.is_chosen]
    assert (chosen.key, chosen.address) == ("lost", WorkersAddress())


@pytest.mark.parametrize(
    ("state", "states"),
    [("", LISTED), ("any", None), ("offline", frozenset({"offline"})), ("unknown", frozenset({"unknown"}))],
)
def test_which_states_are_listed(state: str, states: frozenset[str] | None) -> None:
    assert listed_states(WorkersAddress(state=state)) == states


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        (
            HERE,
            (
                "Workers that live, and those that were lost and last seen in the last 24 hours. "
                "Not those that left in order."
            ),
        ),
        (WorkersAddress(state="any", seen="any"), "All workers that were ever seen."),
        (WorkersAddress(state="any"), "All workers that were seen in the last 24 hours."),
        (WorkersAddress(state="online"), "Workers that are online now."),
        (WorkersAddress(state="lost", seen="7d"), "Workers that are lost, last seen in the last 7 days."),
        (
            WorkersAddress(state="unknown", seen="any"),
            "Workers of which nothing tells whether they live, last seen at any time.",
        ),
    ],
)
def test_the_page_says_which_workers_it_lists(address: WorkersAddress, sentence: str) -> None:
    assert a_page(a_worker_row(), address=address).sentence == sentence


def test_all_workers_are_one_click_away() -> None:
    page = a_page(a_worker_row(), address=WorkersAddress(queue="q", order="-running", offset=100))
    assert page.everything == WorkersAddress(state="any", seen="any", order="-running")
    assert a_page(a_worker_row(), address=page.everything).everything is None


# --- filters, order and pages ---------------------------------------------------------------------------------------


def test_each_filter_in_force_can_be_removed() -> None:
    address = WorkersAddress(
        search="w1", kind="edge", queue="q", label="a=b", hostname="h", availability="draining", offset=100
    )
    filters = a_page(a_worker_row(), address=address).filters
    assert [one.text for one in filters] == [
        "Contains “w1”",
        "Kind Edge",
        "Queue q",
        "Label a=b",
        "Host h",
        "Availability draining",
    ]
    assert filters[1].without == WorkersAddress(
        search="w1", queue="q", label="a=b", hostname="h", availability="draining"
    )


def test_a_kind_that_is_an_executors_own_name_can_be_chosen() -> None:
    page = a_page(a_worker_row(), address=WorkersAddress(kind="BatchExecutor"))
    assert [one.value for one in page.kind_options if one.is_chosen] == ["BatchExecutor"]
    assert not [one for one in a_page(a_worker_row()).kind_options if one.value == "BatchExecutor"]


def test_columns_sort_both_ways() -> None:
    def column(text: str, order: str) -> Any:
        columns = a_page(a_worker_row(), address=WorkersAddress(order=order, offset=100)).columns
        return next(one for one in columns if one.text == text)

    assert (column("Host", "name").direction, column("Host", "name").address.order) == ("", "hostname")
    assert (column("Host", "hostname").direction, column("Host", "hostname").address.order) == (
        "ascending",
        "-hostname",
    )
    assert (column("Host", "-hostname").direction, column("Host", "-hostname").address.order) == (
        "descending",
        "hostname",
    )
    assert column("Running", "name").address == WorkersAddress(order="-running")
    assert column("Queues", "name").address is None


def test_pages_of_a_hundred() -> None:
    rows = [a_worker_row(f"w{number}", ref=number) for number in range(100)]
    pages = a_page(*rows, total=2000, address=WorkersAddress(offset=100)).pages
    assert pages.range_text == "101 to 200 of 2,000 workers"
    assert (pages.previous, pages.following) == (WorkersAddress(), WorkersAddress(offset=200))
    assert a_page(*rows, total=10_000).pages.range_text == "1 to 100 of at least 10,000 workers"
    assert a_page(a_worker_row()).pages.range_text == "1 worker"


# --- groups ---------------------------------------------------------------------------------------------------------


def test_groups_show_their_states_and_lead_to_their_workers() -> None:
    groups = [WorkerGroup("etl", {"online": 6, "lost": 1, None: 1}, 4, 16), WorkerGroup("", {"online": 2}, 0, 0)]
    page = a_page(address=WorkersAddress(group="queue", kind="celery"), groups=groups, any_worker=True)
    etl, rest = page.groups
    assert page.group_name == "Queue"
    assert (etl.name, etl.count, etl.text) == ("etl", "8 workers", "6 online, 1 lost, 1 unknown")
    assert [(share.key, share.x, share.width) for share in etl.shares] == [
        ("online", "0.00%", "75.00%"),
        ("lost", "75.00%", "12.50%"),
        ("unknown", "87.50%", "12.50%"),
    ]
    assert etl.load.text == "4 / 16"
    assert etl.address == WorkersAddress(queue="etl", kind="celery")
    assert (rest.name, rest.address, rest.load) == ("Not known", None, None)
    assert (page.pages.range_text, page.notice) == ("2 groups", None)


def test_workers_can_be_grouped_by_every_label_that_there_is() -> None:
    page = a_page(
        address=WorkersAddress(group="label:zone"),
        label_keys=["region", "zone"],
        groups=[WorkerGroup("a", {"online": 1}, 0, 0)],
    )
    assert [one.value for one in page.group_options] == ["", "queue", "hostname", "kind", "label:region", "label:zone"]
    assert [one.text for one in page.group_options if one.is_chosen] == ["Label zone"]
    assert page.group_name == "Label zone"
    assert page.groups[0].address == WorkersAddress(label="zone=a")


# --- where there is nothing to show ---------------------------------------------------------------------------------


def test_an_empty_installation_says_why_and_what_to_do() -> None:
    page = a_page()
    assert page.notice.title == "No worker is known yet"
    assert "when it starts its first try" in page.notice.text
    assert page.notice.command == ""
    assert (page.sentence, page.troubles, page.refresh_seconds) == ("", (), REFRESH_SECONDS)
    of_2_11 = a_page(looks_by_itself=False).notice
    assert of_2_11.command == "airflow-worker-insight refresh"
    assert "looked at by a command" in of_2_11.text


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (WorkersAddress(queue="q"), "No worker fits all of these filters."),
        (WorkersAddress(state="lost"), "No worker is in this state now."),
        (WorkersAddress(offset=5000), "There are no more workers here."),
        (WorkersAddress(group="queue"), "None of these workers is in such a group."),
        (WorkersAddress(group="queue", offset=200), "There are no more groups here."),
    ],
)
def test_a_list_without_workers_says_why(address: WorkersAddress, text: str) -> None:
    notice = a_page(address=address, counts={"online": 1}, any_worker=True).notice
    assert notice.text.startswith(text)


def test_an_engine_that_cannot_be_asked_is_named_with_the_reason() -> None:
    edge = SourceStatus("edge", NOW, is_current=True, error=None)
    celery = SourceStatus("celery", NOW, is_current=True, error="Connection refused")
    (unavailable_reason,) = a_page(a_worker_row(), engines=[celery, edge]).troubles
    assert (unavailable_reason.title, unavailable_reason.text) == (
        "Celery’s workers cannot be asked",
        "Connection refused",
    )
    assert a_page(a_worker_row(), engines=[edge]).troubles == ()


@pytest.mark.parametrize(
    ("engines", "when"),
    [
        ([], "was never looked at"),
        ([SourceStatus("celery", at(400), is_current=False, error="old")], "was last looked at 10 min ago"),
    ],
)
def test_states_that_nobody_looks_at_are_said_to_be_so(engines: Any, when: str) -> None:
    (unavailable_reason,) = a_page(a_worker_row(), engines=engines).troubles
    assert when in unavailable_reason.text
    assert unavailable_reason.command == "airflow-worker-insight refresh"


def test_pages_of_two_hundred_groups() -> None:
    def pages(offset: int, total: int, **others: Any) -> Any:
        groups = [WorkerGroup(f"host-{number:04}", {"online": 1}, 0, 1) for number in range(200)]
        address = WorkersAddress(group="hostname", offset=offset)
        return a_page(address=address, groups=groups, total=total, any_worker=True, **others).pages

    found = pages(200, 1500, counts={"online": 1500, "offline": 20_000})
    assert found.range_text == "201 to 400 of 1,500 groups"
    assert found.previous == WorkersAddress(group="hostname")
    assert found.following == WorkersAddress(group="hostname", offset=400)
    # Of more workers not all were grouped.
    assert pages(0, 900, counts={"online": 10_000}).range_text == "1 to 200 of at least 900 groups"
    # Workers of many queues: what cannot be skipped to is not led to.
    last = pages(9800, 12_000, counts={"online": 900})
    assert (last.range_text, last.following) == ("9,801 to 10,000 of at least 10,000 groups", None)


def test_the_list_keeps_up_while_a_worker_lives_and_waits_for_those_that_come_back() -> None:
    assert a_page(a_worker_row()).refresh_seconds == REFRESH_SECONDS
    assert a_page(a_worker_row(state="unresponsive")).refresh_seconds == REFRESH_SECONDS
    gone = a_worker_row(state="offline", ended_at=at(0))
    assert a_page(gone).refresh_seconds == REFRESH_IDLE_SECONDS
    nobody_fits = a_page(address=WorkersAddress(queue="q"), counts={}, any_worker=True)
    assert nobody_fits.refresh_seconds == REFRESH_IDLE_SECONDS
