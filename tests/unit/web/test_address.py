"""What the panel's address is read as, and which addresses are refused."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_worker_insight.web.address import BadAddress, PanelAddress, parse_offset, parse_panel_address
from airflow_worker_insight.web.urls import Urls

IDS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=250)


def test_what_airflow_3_1_leaves_unencoded_is_read_as_written() -> None:
    found = parse_panel_address("dag_id=etl&run_id=scheduled__2026-01-31T08:00:00+00:00&task_id=load&map_index=3")
    assert found == PanelAddress("etl", "scheduled__2026-01-31T08:00:00+00:00", "load", 3)


@pytest.mark.parametrize("map_index", ["", "{MAP_INDEX}", "%7BMAP_INDEX%7D", "-1"])
def test_a_task_that_is_not_mapped_has_no_index(map_index: str) -> None:
    assert parse_panel_address(f"dag_id=d&run_id=r&task_id=t&map_index={map_index}").map_index == -1


def test_other_parameters_and_a_try_are_fine() -> None:
    found = parse_panel_address("dag_id=d&run_id=r&task_id=t&try_number=2&theme=dark&")
    assert (found.map_index, found.try_number) == (-1, 2)


@given(dag_id=IDS, run_id=IDS, task_id=IDS, map_index=st.integers(-1, 2**31 - 1))
def test_every_id_survives_its_way_through_an_address(dag_id: str, run_id: str, task_id: str, map_index: int) -> None:
    url = Urls("/worker-insight")("panel", dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index)
    assert url is not None
    try:
        found = parse_panel_address(url.partition("?")[2])
    except BadAddress:
        # An ID that is what Airflow's UI leaves unfilled.
        assert any(one.startswith("{") and one.endswith("}") for one in (dag_id, run_id, task_id))
    else:
        assert found == PanelAddress(dag_id, run_id, task_id, map_index)


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("", "does not say which dag_id"),
        ("dag_id=d&run_id=r", "does not say which task_id"),
        ("dag_id=%7BDAG_ID%7D&run_id=r&task_id=t", "does not say which dag_id"),
        (f"dag_id={'d' * 251}&run_id=r&task_id=t", "longer than 250"),
        ("dag_id=d%00&run_id=r&task_id=t", "NUL"),
        ("dag_id=%ff&run_id=r&task_id=t", "UTF-8"),
        ("dag_id=d&dag_id=e&run_id=r&task_id=t", "gives dag_id twice"),
        ("dag_id=d&run_id=r&task_id=t&map_index=one", "map_index in the address is not a whole number"),
        ("dag_id=d&run_id=r&task_id=t&map_index=-2", "map_index in the address is not a whole number"),
        ("dag_id=d&run_id=r&task_id=t&map_index=9999999999", "map_index in the address is not a whole number"),
        ("dag_id=d&run_id=r&task_id=t&map_index=" + "9" * 100_000, "map_index in the address is not a whole number"),
        ("dag_id=d&run_id=r&task_id=t&map_index=%D9%A1", "map_index in the address is not a whole number"),
        ("dag_id=d&run_id=r&task_id=t&try_number=1.5", "try_number in the address is not a whole number"),
    ],
)
def test_an_address_that_names_nothing_says_why(query: str, complaint: str) -> None:
    with pytest.raises(BadAddress, match=complaint):
        parse_panel_address(query)


def test_250_characters_are_not_too_many_whatever_they_are() -> None:
    dag_id = "🦊" * 250
    assert parse_panel_address(f"dag_id={quote(dag_id)}&run_id=r&task_id=t").dag_id == dag_id


def test_where_a_list_begins() -> None:
    assert (parse_offset(""), parse_offset("offset=25"), parse_offset("x=1")) == (0, 25, 0)
    with pytest.raises(BadAddress, match="offset"):
        parse_offset("offset=-1")
