"""The view model of the list of workers."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_worker_insight.domain.workers import SourceStatus, WorkerGroup
from airflow_worker_insight.ui.query_params import WorkersParams
from airflow_worker_insight.ui.views.workers import (
    LISTED,
    REFRESH_IDLE_SECONDS,
    REFRESH_SECONDS,
    build_workers_page,
    listed_states,
)
from tests.unit.database import at
from tests.unit.ui.workers import NOW, a_change, a_listing, a_worker_row

HERE = WorkersParams()


def a_page(*rows: Any, params: WorkersParams = HERE, polls_by_itself: bool = True, **others: Any) -> Any:
    return build_workers_page(params, a_listing(*rows, **others), now=NOW, polls_by_itself=polls_by_itself)


# --- rows -----------------------------------------------------------------------------------------------------------


def test_line_has_the_worker_and_its_load() -> None:
    row = a_worker_row()
    (line,) = a_page(row).lines
    assert line.row is row
    assert (line.load.text, line.load.share, line.load.is_full) == ("2 / 8", "25.0%", False)
    assert line.change is None


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
def test_load_is_running_of_concurrency(given: dict[str, Any], text: str, share: str, is_full: bool) -> None:
    (line,) = a_page(a_worker_row(**given)).lines
    assert (line.load.text, line.load.share, line.load.is_full) == (text, share, is_full)


@pytest.mark.parametrize("given", [{"running": None}, {"state": "lost"}, {"state": "offline"}])
def test_ended_worker_has_no_load(given: dict[str, Any]) -> None:
    (line,) = a_page(a_worker_row(**given)).lines
    assert line.load is None


def test_further_queues_are_counted() -> None:
    (line,) = a_page(a_worker_row(queues=("a", "b", "c", "d", "e"))).lines
    assert (line.queues, line.more_queues) == (("a", "b", "c"), "and 2 more")
    (line,) = a_page(a_worker_row(queues=None)).lines
    assert (line.queues, line.more_queues) == ((), "")


def test_line_has_the_change_that_made_the_worker_unavailable() -> None:
    latest = a_change(0, availability="draining", reason="Disk fails", changed_by="alice")
    (line,) = a_page(a_worker_row(availability="draining"), decisions={1: latest}).lines
    assert line.change is latest
    (line,) = a_page(a_worker_row(availability="quarantined"), decisions={1: latest}).lines
    assert line.change is None


# --- state chips ----------------------------------------------------------------------------------------------------


def test_chips_filter_by_state() -> None:
    page = a_page(a_worker_row(), counts={"online": 1234, "lost": 2, None: 1}, params=HERE.changed(queue="q"))
    assert [(chip.text, chip.count) for chip in page.chips] == [
        ("Online", "1,234"),
        ("Unresponsive", "0"),
        ("Lost", "2"),
        ("Unknown", "1"),
        ("Offline", "0"),
    ]
    assert page.chips[2].params == WorkersParams(state="lost", queue="q")
    assert not any(chip.is_chosen for chip in page.chips)


def test_chosen_chip_clears_the_filter() -> None:
    page = a_page(a_worker_row(), params=WorkersParams(state="lost", offset=100))
    (chosen,) = [chip for chip in page.chips if chip.is_chosen]
    assert (chosen.key, chosen.params) == ("lost", WorkersParams())


@pytest.mark.parametrize(
    ("state", "states"),
    [("", LISTED), ("any", None), ("offline", frozenset({"offline"})), ("unknown", frozenset({"unknown"}))],
)
def test_listed_states_exclude_offline_by_default(state: str, states: frozenset[str] | None) -> None:
    assert listed_states(WorkersParams(state=state)) == states


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        (
            HERE,
            "Current workers, and lost ones last seen in the last 24 hours. Offline workers are hidden.",
        ),
        (WorkersParams(state="any", seen="any"), "All workers ever seen."),
        (WorkersParams(state="any"), "All workers seen in the last 24 hours."),
        (WorkersParams(state="online"), "Online workers."),
        (WorkersParams(state="lost", seen="7d"), "Lost workers, last seen in the last 7 days."),
        (
            WorkersParams(state="unknown", seen="any"),
            "Workers of unknown state, last seen at any time.",
        ),
    ],
)
def test_sentence_says_which_workers_are_listed(params: WorkersParams, sentence: str) -> None:
    assert a_page(a_worker_row(), params=params).sentence == sentence


def test_unfiltered_list_is_linked() -> None:
    page = a_page(a_worker_row(), params=WorkersParams(queue="q", order="-running", offset=100))
    assert page.unfiltered == WorkersParams(state="any", seen="any", order="-running")
    assert a_page(a_worker_row(), params=page.unfiltered).unfiltered is None


# --- filters, order and pages ---------------------------------------------------------------------------------------


def test_each_filter_can_be_removed() -> None:
    params = WorkersParams(
        search="w1", kind="edge", queue="q", label="a=b", hostname="h", availability="draining", offset=100
    )
    filters = a_page(a_worker_row(), params=params).filters
    assert [one.text for one in filters] == [
        "Contains “w1”",
        "Kind Edge",
        "Queue q",
        "Label a=b",
        "Host h",
        "Availability draining",
    ]
    assert filters[1].without == WorkersParams(
        search="w1", queue="q", label="a=b", hostname="h", availability="draining"
    )


def test_kind_with_an_executors_name_is_an_option() -> None:
    page = a_page(a_worker_row(), params=WorkersParams(kind="BatchExecutor"))
    assert [one.value for one in page.kind_options if one.is_chosen] == ["BatchExecutor"]
    assert not [one for one in a_page(a_worker_row()).kind_options if one.value == "BatchExecutor"]


def test_columns_sort_both_ways() -> None:
    def column(text: str, order: str) -> Any:
        columns = a_page(a_worker_row(), params=WorkersParams(order=order, offset=100)).columns
        return next(one for one in columns if one.text == text)

    assert (column("Host", "name").direction, column("Host", "name").params.order) == ("", "hostname")
    assert (column("Host", "hostname").direction, column("Host", "hostname").params.order) == (
        "ascending",
        "-hostname",
    )
    assert (column("Host", "-hostname").direction, column("Host", "-hostname").params.order) == (
        "descending",
        "hostname",
    )
    assert column("Running", "name").params == WorkersParams(order="-running")
    assert column("Queues", "name").params is None


def test_page_has_a_hundred_workers() -> None:
    rows = [a_worker_row(f"w{number}", ref=number) for number in range(100)]
    pages = a_page(*rows, total=2000, params=WorkersParams(offset=100)).pages
    assert pages.range_text == "101 to 200 of 2,000 workers"
    assert (pages.previous, pages.following) == (WorkersParams(), WorkersParams(offset=200))
    assert a_page(*rows, total=10_000).pages.range_text == "1 to 100 of at least 10,000 workers"
    assert a_page(a_worker_row()).pages.range_text == "1 worker"


# --- groups ---------------------------------------------------------------------------------------------------------


def test_groups_show_states_and_link_their_workers() -> None:
    groups = [WorkerGroup("etl", {"online": 6, "lost": 1, None: 1}, 4, 16), WorkerGroup("", {"online": 2}, 0, 0)]
    page = a_page(params=WorkersParams(group="queue", kind="celery"), groups=groups, any_worker=True)
    etl, rest = page.groups
    assert page.group_name == "Queue"
    assert (etl.name, etl.count, etl.text) == ("etl", "8 workers", "6 online, 1 lost, 1 unknown")
    assert [(share.key, share.x, share.width) for share in etl.shares] == [
        ("online", "0.00%", "75.00%"),
        ("lost", "75.00%", "12.50%"),
        ("unknown", "87.50%", "12.50%"),
    ]
    assert etl.load.text == "4 / 16"
    assert etl.params == WorkersParams(queue="etl", kind="celery")
    assert (rest.name, rest.params, rest.load) == ("Unknown", None, None)
    assert (page.pages.range_text, page.notice) == ("2 groups", None)


def test_group_has_the_findings_about_it() -> None:
    groups = [WorkerGroup("a", {"online": 1}, 0, 0), WorkerGroup("b", {"online": 1}, 0, 0)]
    page = a_page(params=WorkersParams(group="label:zone"), groups=groups, group_findings={"b": [7, 9]})
    assert [group.findings for group in page.groups] == [(), (7, 9)]


def test_each_label_is_a_group_option() -> None:
    page = a_page(
        params=WorkersParams(group="label:zone"),
        label_keys=["region", "zone"],
        groups=[WorkerGroup("a", {"online": 1}, 0, 0)],
    )
    assert [one.value for one in page.group_options] == ["", "queue", "hostname", "kind", "label:region", "label:zone"]
    assert [one.text for one in page.group_options if one.is_chosen] == ["Label zone"]
    assert page.group_name == "Label zone"
    assert page.groups[0].params == WorkersParams(label="zone=a")


# --- notices and refreshing ------------------------------------------------------------------------------------------


def test_empty_installation_says_what_to_do() -> None:
    page = a_page()
    assert page.notice.title == "No workers yet"
    assert "when it starts its first try" in page.notice.text
    assert page.notice.command == ""
    assert (page.sentence, page.warnings, page.refresh_seconds) == ("", (), REFRESH_SECONDS)
    of_2_11 = a_page(polls_by_itself=False).notice
    assert of_2_11.command == "airflow-worker-insight refresh"
    assert "run this command every minute" in of_2_11.text


@pytest.mark.parametrize(
    ("params", "text"),
    [
        (WorkersParams(queue="q"), "No worker matches these filters."),
        (WorkersParams(state="lost"), "No worker is in this state."),
        (WorkersParams(offset=5000), "No more workers."),
        (WorkersParams(group="queue"), "None of these workers has a value to group by."),
        (WorkersParams(group="queue", offset=200), "No more groups."),
    ],
)
def test_empty_list_of_workers_says_why(params: WorkersParams, text: str) -> None:
    notice = a_page(params=params, counts={"online": 1}, any_worker=True).notice
    assert notice.text.startswith(text)


def test_page_names_the_source_that_cannot_be_reached_with_the_reason() -> None:
    edge = SourceStatus("edge", NOW, is_current=True, error=None)
    celery = SourceStatus("celery", NOW, is_current=True, error="Connection refused")
    (warning,) = a_page(a_worker_row(), sources=[celery, edge]).warnings
    assert (warning.title, warning.text) == ("Celery workers cannot be reached", "Connection refused")
    assert a_page(a_worker_row(), sources=[edge]).warnings == ()


@pytest.mark.parametrize(
    ("sources", "when"),
    [
        ([], "never checked"),
        ([SourceStatus("celery", at(400), is_current=False, error="old")], "last checked 10 min ago"),
    ],
)
def test_page_warns_that_unpolled_worker_states_are_stale(sources: Any, when: str) -> None:
    (warning,) = a_page(a_worker_row(), sources=sources).warnings
    assert warning.title == f"Worker states are stale: {when}"
    assert warning.command == "airflow-worker-insight refresh"


def test_page_has_two_hundred_groups() -> None:
    def pages(offset: int, total: int, **others: Any) -> Any:
        groups = [WorkerGroup(f"host-{number:04}", {"online": 1}, 0, 1) for number in range(200)]
        params = WorkersParams(group="hostname", offset=offset)
        return a_page(params=params, groups=groups, total=total, any_worker=True, **others).pages

    found = pages(200, 1500, counts={"online": 1500, "offline": 20_000})
    assert found.range_text == "201 to 400 of 1,500 groups"
    assert found.previous == WorkersParams(group="hostname")
    assert found.following == WorkersParams(group="hostname", offset=400)
    # Of more workers not all were grouped.
    assert pages(0, 900, counts={"online": 10_000}).range_text == "1 to 200 of at least 900 groups"
    # Workers of many queues: what cannot be skipped to is not led to.
    last = pages(9800, 12_000, counts={"online": 900})
    assert (last.range_text, last.following) == ("9,801 to 10,000 of at least 10,000 groups", None)


def test_list_refreshes_faster_while_a_worker_is_alive() -> None:
    assert a_page(a_worker_row()).refresh_seconds == REFRESH_SECONDS
    assert a_page(a_worker_row(state="unresponsive")).refresh_seconds == REFRESH_SECONDS
    gone = a_worker_row(state="offline", ended_at=at(0))
    assert a_page(gone).refresh_seconds == REFRESH_IDLE_SECONDS
    nobody_fits = a_page(params=WorkersParams(queue="q"), counts={}, any_worker=True)
    assert nobody_fits.refresh_seconds == REFRESH_IDLE_SECONDS
