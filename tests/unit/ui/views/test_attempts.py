"""The view model of the list of tries."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_worker_insight.domain.attempts import AttemptPage
from airflow_worker_insight.ui.query_params import AttemptsParams
from airflow_worker_insight.ui.views.attempts import REFRESH_IDLE_SECONDS, REFRESH_SECONDS, build_attempts_page
from tests.unit.database import at
from tests.unit.ui.attempts import a_try, on
from tests.unit.ui.workers import NOW

HERE = AttemptsParams()


def a_page(
    *tries: Any,
    params: AttemptsParams = HERE,
    total: int | None = None,
    is_exact: bool = True,
    dag_ids: Any = ("etl",),
) -> Any:
    return build_attempts_page(
        params,
        AttemptPage(list(tries), len(tries) if total is None else total, is_exact),
        dag_ids=dag_ids,
        states={"success", "failed", "up_for_retry"},
        now=NOW,
    )


def test_rows_have_task_and_worker() -> None:
    (row,) = a_page(a_try(1, 0, 10, on("w1"))).rows
    assert (row.attempt.task_id, row.workers[0].name) == ("load", "w1@host-1")
    assert row.workers[0].mark == ""


def test_time_window_is_a_removable_filter() -> None:
    (one,) = a_page().filters
    assert (one.text, one.without) == ("Started in the last 24 hours", AttemptsParams(window="any"))
    assert a_page(params=AttemptsParams(window="any")).filters == ()
    (one,) = a_page(params=AttemptsParams(since=at(0), until=at(60), window="7d")).filters
    assert one.text == "Started from 2026-03-01 12:00 until 2026-03-01 12:01 UTC"
    assert one.without == AttemptsParams(window="any")


def test_each_filter_can_be_removed() -> None:
    params = AttemptsParams(
        dag_id="d", run_id="r", task_id="t", worker="w", hostname="h", state="up_for_retry", window="any", offset=50
    )
    filters = a_page(params=params).filters
    assert [one.text for one in filters] == ["Dag d", "Run r", "Task t", "Worker w", "Host h", "State Up For Retry"]
    assert filters[0].without == AttemptsParams(
        run_id="r", task_id="t", worker="w", hostname="h", state="up_for_retry", window="any"
    )


def test_windows_replace_other_times() -> None:
    page = a_page(params=AttemptsParams(dag_id="d", since=at(0), offset=50))
    assert not any(option.is_chosen for option, _ in page.windows)
    assert page.windows[0][1] == AttemptsParams(dag_id="d", window="1h")
    assert page.since == "2026-03-01T12:00"
    assert [option.text for option, _ in a_page().windows if option.is_chosen] == ["24 h"]


@pytest.mark.parametrize(
    ("params", "total", "dag_ids", "text"),
    [
        # An installation without a Dag: whoever may see no task instances at all does not come here.
        (HERE, 0, (), "A try of a Dag that you can read is listed here"),
        (AttemptsParams(dag_id="gone"), 0, (), "A try of a Dag that you can read is listed here"),
        (HERE, 0, ("etl",), "No try that you can see matches these filters."),
        (
            AttemptsParams(window="any"),
            0,
            ("etl",),
            "A try of a Dag that you can read is listed here",
        ),
        (AttemptsParams(offset=5000), 60, ("etl",), "No more tries."),
    ],
)
def test_empty_list_says_why(params: AttemptsParams, total: int, dag_ids: Any, text: str) -> None:
    assert a_page(params=params, total=total, dag_ids=dag_ids).notice.text.startswith(text)


def test_pages_of_fifty() -> None:
    tries = [a_try(number, number, number + 1, on("w1")) for number in range(1, 51)]
    pages = a_page(*tries, total=10_000, is_exact=False, params=AttemptsParams(dag_id="d", offset=50)).pages
    assert pages.range_text == "51 to 100 of at least 10,000 tries"
    assert (pages.previous, pages.following) == (AttemptsParams(dag_id="d"), AttemptsParams(dag_id="d", offset=100))


def test_page_says_that_not_all_tries_were_searched() -> None:
    page = a_page(a_try(1, 0, 1, on("w1")), is_exact=False)
    assert page.pages.range_text == "at least 1 try"
    assert page.note.startswith("Only the latest 50,000 tries of this period were searched.")
    assert a_page(a_try(1, 0, 1, on("w1"))).note == ""


def test_first_page_refreshes_faster_while_tries_run() -> None:
    running, done = a_try(1, 0, None, on("w1"), state="running"), a_try(1, 0, 1, on("w1"))
    assert a_page(running, done).refresh_seconds == REFRESH_SECONDS
    # Between two tasks nothing runs; the next one starts without anybody loading the page again.
    assert a_page(done).refresh_seconds == a_page().refresh_seconds == REFRESH_IDLE_SECONDS
    assert a_page(running, params=AttemptsParams(offset=50), total=51).refresh_seconds == 0


def test_past_window_is_not_refreshed() -> None:
    running, done = a_try(1, 0, None, on("w1"), state="running"), a_try(1, 0, 1, on("w1"))
    assert a_page(done, params=AttemptsParams(until=at(999))).refresh_seconds == 0
    assert a_page(running, params=AttemptsParams(until=at(999))).refresh_seconds == REFRESH_SECONDS
    assert a_page(done, params=AttemptsParams(until=at(2000))).refresh_seconds == REFRESH_IDLE_SECONDS
    assert a_page(done, params=AttemptsParams(since=at(0))).refresh_seconds == REFRESH_IDLE_SECONDS


def test_dag_suggestions_are_limited() -> None:
    assert a_page(dag_ids=[f"dag-{number:04}" for number in range(2000)]).dag_ids[-1] == "dag-0499"
