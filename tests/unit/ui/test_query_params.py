"""URLs are parsed and written, and invalid ones are refused."""

from __future__ import annotations

from datetime import datetime, timezone
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_worker_insight.ui.query_params import (
    AttemptsParams,
    AvailabilityForm,
    InvalidUrlError,
    PanelParams,
    WorkerParams,
    WorkersParams,
    parse_attempts_params,
    parse_availability_form,
    parse_panel_params,
    parse_worker_params,
    parse_workers_params,
)
from airflow_worker_insight.ui.urls import Urls

IDS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=250)


def test_what_airflow_3_1_leaves_unencoded_is_read_as_written() -> None:
    found = parse_panel_params("dag_id=etl&run_id=scheduled__2026-01-31T08:00:00+00:00&task_id=load&map_index=3")
    assert found == PanelParams("etl", "scheduled__2026-01-31T08:00:00+00:00", "load", 3)


@pytest.mark.parametrize("map_index", ["", "{MAP_INDEX}", "%7BMAP_INDEX%7D", "-1"])
def test_a_task_that_is_not_mapped_has_no_index(map_index: str) -> None:
    assert parse_panel_params(f"dag_id=d&run_id=r&task_id=t&map_index={map_index}").map_index == -1


def test_other_parameters_and_a_try_are_fine() -> None:
    found = parse_panel_params("dag_id=d&run_id=r&task_id=t&try_number=2&theme=dark&")
    assert (found.map_index, found.try_number) == (-1, 2)


@given(dag_id=IDS, run_id=IDS, task_id=IDS, map_index=st.integers(-1, 2**31 - 1))
def test_every_id_survives_its_way_through_a_url(dag_id: str, run_id: str, task_id: str, map_index: int) -> None:
    url = Urls("/worker-insight")("panel", dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index)
    assert url is not None
    try:
        found = parse_panel_params(url.partition("?")[2])
    except InvalidUrlError:
        # An ID that is what Airflow's UI leaves unfilled.
        assert any(one.startswith("{") and one.endswith("}") for one in (dag_id, run_id, task_id))
    else:
        assert found == PanelParams(dag_id, run_id, task_id, map_index)


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("", "URL has no dag_id"),
        ("dag_id=d&run_id=r", "URL has no task_id"),
        ("dag_id=%7BDAG_ID%7D&run_id=r&task_id=t", "URL has no dag_id"),
        (f"dag_id={'d' * 251}&run_id=r&task_id=t", "longer than 250"),
        ("dag_id=d%00&run_id=r&task_id=t", "NUL"),
        ("dag_id=%ff&run_id=r&task_id=t", "UTF-8"),
        ("dag_id=d&dag_id=e&run_id=r&task_id=t", "URL has dag_id twice"),
        ("dag_id=d&run_id=r&task_id=t&map_index=one", "map_index in the URL is not a whole number"),
        ("dag_id=d&run_id=r&task_id=t&map_index=-2", "map_index in the URL is not a whole number"),
        ("dag_id=d&run_id=r&task_id=t&map_index=9999999999", "map_index in the URL is not a whole number"),
        ("dag_id=d&run_id=r&task_id=t&map_index=" + "9" * 100_000, "map_index in the URL is not a whole number"),
        ("dag_id=d&run_id=r&task_id=t&map_index=%D9%A1", "map_index in the URL is not a whole number"),
        ("dag_id=d&run_id=r&task_id=t&try_number=1.5", "try_number in the URL is not a whole number"),
    ],
)
def test_a_url_that_names_nothing_says_why(query: str, complaint: str) -> None:
    with pytest.raises(InvalidUrlError, match=complaint):
        parse_panel_params(query)


def test_250_characters_are_not_too_many_whatever_they_are() -> None:
    dag_id = "🦊" * 250
    assert parse_panel_params(f"dag_id={quote(dag_id)}&run_id=r&task_id=t").dag_id == dag_id


# --- lists ----------------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=250).map(str.strip)
MOMENTS = st.integers(365 * 86_400, 250_000_000_000).map(lambda second: datetime.fromtimestamp(second, tz=timezone.utc))


@given(search=TEXTS, queue=TEXTS, key=TEXTS.filter(bool), offset=st.integers(0, 10_000))
def test_the_state_of_the_list_of_workers_survives_its_way_through_a_url(
    search: str, queue: str, key: str, offset: int
) -> None:
    params = WorkersParams(
        state="lost", seen="7d", search=search, queue=queue, group=f"label:{key}"[:250], order="-running", offset=offset
    )
    if not params.group.isprintable():
        # A label cannot be written over several lines.
        return
    assert parse_workers_params(params.query().removeprefix("?")) == params


@given(dag_id=TEXTS, worker=TEXTS, since=MOMENTS)
def test_the_state_of_the_list_of_tries_survives_its_way_through_a_url(
    dag_id: str, worker: str, since: datetime
) -> None:
    params = AttemptsParams(dag_id=dag_id, worker=worker, window="7d", since=since)
    assert parse_attempts_params(params.query().removeprefix("?"), states=()) == params


def test_what_is_as_by_default_is_not_written() -> None:
    assert (WorkersParams().query(), WorkerParams().query(), AttemptsParams().query()) == ("", "", "")
    assert WorkerParams(6, datetime(2026, 1, 31, 8, tzinfo=timezone.utc), 25).query() == (
        "?hours=6&until=2026-01-31T08%3A00%3A00Z&offset=25"
    )


def test_an_ampersand_too_many_says_nothing() -> None:
    assert parse_workers_params("&&state=lost&") == WorkersParams(state="lost")


def test_what_a_form_sends_is_read_as_a_form_means_it() -> None:
    found = parse_attempts_params("dag_id=a+b%2Bc&run_id=&task_id=+load+&since=2026-01-31T08%3A00", states=())
    assert found == AttemptsParams("a b+c", "", "load", since=datetime(2026, 1, 31, 8, tzinfo=timezone.utc))


def test_a_time_with_an_offset_is_brought_to_utc() -> None:
    for written in ("2026-01-31T10:00%2B02:00", "2026-01-31T10:00+02:00", "2026-01-31T08:00Z"):
        assert parse_worker_params(f"until={written}").until == datetime(2026, 1, 31, 8, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("state=sick", "state in the URL is not one of any, lost, offline, online, unknown, unresponsive"),
        ("seen=1y", "seen in the URL is not one of 30d, 7d, any"),
        ("availability=off", "availability in the URL is not one of"),
        ("order=pid", "order in the URL is not one of"),
        ("group=pid", "group in the URL is not one of"),
        ("group=label:", "group in the URL is not one of"),
        ("label==a", "label in the URL is not a label as key=value"),
        ("offset=-1", "offset in the URL is not a whole number from 0 on"),
        (f"offset={10**30}", "offset in the URL is not a whole number"),
        ("offset=10001", "offset in the URL is larger than 10,000"),
        ("worker=w1", "“worker” is not a filter of this page; the filters are state, seen, search, kind, "),
        ("=lost", "“” is not a filter of this page"),
        ("search=%00", "search in the URL contains a NUL character"),
        (f"hostname={'h' * 256}", "hostname in the URL is longer than 255"),
        ("queue=a&queue=b", "URL has queue twice"),
        ("queue=%ff", "not valid UTF-8"),
    ],
)
def test_a_list_of_workers_that_there_is_not_says_why(query: str, complaint: str) -> None:
    with pytest.raises(InvalidUrlError, match=complaint):
        parse_workers_params(query)


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("state=sick", "state in the URL is not one of failed, success"),
        ("window=1y", "window in the URL is not one of"),
        ("since=yesterday", "since in the URL is not a date and time"),
        ("until=9999-12-31T00:00Z", "until in the URL is not within the years 1971 to 9998"),
        ("since=0001-01-01T00:00%2B14:00", "since in the URL is not a date and time"),
        ("since=2026-01-02&until=2026-01-01", "time window in the URL ends before it begins"),
        (
            "worker_id=w1",
            "“worker_id” is not a filter of this page; the filters are dag_id, run_id",
        ),
        ("state=failed&" + "x" * 99 + "=1", f"“{'x' * 40}” is not a filter of this page"),
        ("offset=10001", "offset in the URL is larger than 10,000"),
        (f"task_id={'t' * 251}", "task_id in the URL is longer than 250"),
    ],
)
def test_a_list_of_tries_that_there_is_not_says_why(query: str, complaint: str) -> None:
    with pytest.raises(InvalidUrlError, match=complaint):
        parse_attempts_params(query, states=("failed", "success"))


@pytest.mark.parametrize(
    "query",
    ["hours=2", "hours=0", "hours=x", "until=x", "until=0001-01-01", "offset=x", "offset=10001", "state=failed"],
)
def test_hours_that_cannot_be_drawn_are_refused(query: str) -> None:
    with pytest.raises(InvalidUrlError, match=query.partition("=")[0]):
        parse_worker_params(query)


# --- what a form posts ----------------------------------------------------------------------------------------------


def test_a_decision_as_a_form_posts_it() -> None:
    assert parse_availability_form(
        b"availability=draining&note=Disk+fails%0D%0A%C3%A4&csrf_token=x"
    ) == AvailabilityForm("draining", "Disk fails  ä")
    assert parse_availability_form(b"availability=available&note=") == AvailabilityForm("available", "")


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "available, draining or quarantined"),
        (b"availability=off", "available, draining or quarantined"),
        (b"availability=draining&availability=available", "twice"),
        (b"availability=draining&note=" + b"n" * 501, "longer than 500"),
        (b"availability=draining&note=%ff", "UTF-8"),
        (b"availability=draining&other=" + b"n" * 20_000, "longer than 16384 bytes"),
        (b"\xff\x00", "available, draining or quarantined"),
    ],
)
def test_a_form_that_no_page_of_ours_posts_is_refused(body: bytes, complaint: str) -> None:
    with pytest.raises(InvalidUrlError, match=complaint):
        parse_availability_form(body)
