"""A worker's tries in lanes, and what became of them hour by hour."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_worker_insight.store.workers import Outcomes
from airflow_worker_insight.web.address import WorkerAddress
from airflow_worker_insight.web.view.timeline import (
    CHART_HEIGHT,
    MAX_LANES,
    build_chart,
    build_timeline,
    chart_window,
    window,
)
from tests.unit.database import at
from tests.unit.web.attempts import a_try, on
from tests.unit.web.workers import a_worker_row

HOUR = 3600
NOW = at(HOUR)
ONE_HOUR = WorkerAddress(hours=1)


def drawn(*tries: Any, address: WorkerAddress = ONE_HOUR, row: Any = None, is_cut: bool = False) -> Any:
    return build_timeline(row or a_worker_row(), tries, address, is_cut=is_cut, now=NOW)


def mine(start: float, end: float | None, number: int = 1, **others: Any) -> Any:
    return a_try(number, start, end, on("celery-1", start), **others)


# --- lanes ----------------------------------------------------------------------------------------------------------


def test_tries_one_after_another_share_a_lane_and_tries_side_by_side_do_not() -> None:
    found = drawn(mine(0, 1800), mine(1800, 3600, 2), mine(900, 2700, 3))
    assert found.lanes == 2
    assert [(bar.try_number, bar.y, bar.x, bar.width) for bar in found.bars] == [
        (1, 0, "0.00%", "50.00%"),
        (3, found.lane_height, "25.00%", "50.00%"),
        (2, 0, "50.00%", "50.00%"),
    ]
    assert found.label == "3 tries, at most 2 side by side"


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 600)), max_size=60))
def test_no_two_tries_of_a_lane_overlap(times: list[tuple[int, int]]) -> None:
    tries = [mine(start, start + length, number) for number, (start, length) in enumerate(times, 1)]
    lanes: dict[int, list[tuple[float, float]]] = {}
    for bar in drawn(*tries).bars:
        start, length = times[bar.try_number - 1]
        lanes.setdefault(bar.y, []).append((start, start + length))
    if len(lanes) < MAX_LANES:
        for stays in lanes.values():
            ordered = sorted(stays)
            assert all(before[1] <= after[0] for before, after in pairwise(ordered))


def test_a_running_try_lasts_until_now_and_moves() -> None:
    (bar,) = drawn(mine(1800, None, state="running")).bars
    assert (bar.x, bar.width, bar.running) == ("50.00%", "50.00%", True)
    assert bar.title == "etl, load, try 1: Running; from 12:30:00 UTC, 30 min so far"


def test_what_ran_on_a_lost_worker_ends_with_it() -> None:
    lost = a_worker_row(state="lost", ended_at=at(2700))
    (bar,) = drawn(mine(1800, None, state="running"), row=lost).bars
    assert (bar.width, bar.running) == ("25.00%", False)


def test_a_try_that_went_on_elsewhere_ends_here_where_its_last_process_began() -> None:
    moved = a_try(1, 0, 3600, on("celery-1", 0, 900), on("celery-2", 1800))
    (bar,) = drawn(moved).bars
    assert (bar.x, bar.width) == ("0.00%", "25.00%")
    back = replace(moved, workers=(on("celery-1", 1800, 2700), on("celery-2", 0, 900)))
    (bar,) = drawn(back).bars
    assert (bar.x, bar.width) == ("50.00%", "50.00%")


def test_a_try_that_waits_is_on_no_worker() -> None:
    (bar,) = drawn(a_try(1, 0, None, on("celery-1", 0, 900), state="deferred")).bars
    assert (bar.width, bar.running) == ("25.00%", False)


def test_what_reaches_over_the_edges_is_cut_there() -> None:
    (bar,) = drawn(mine(-HOUR, 2 * HOUR)).bars
    assert (bar.x, bar.width) == ("0.00%", "100.00%")
    assert drawn(mine(-HOUR, -1)).bars == ()


def test_a_short_try_can_still_be_seen() -> None:
    (bar,) = drawn(mine(3600, 3600)).bars
    assert (bar.x, bar.width) == ("99.75%", "0.25%")


def test_more_tries_than_can_be_drawn_are_said_to_be_left_out() -> None:
    assert "Only the latest 2,000 tries are drawn" in drawn(mine(0, 1), is_cut=True).notes[0]
    many = drawn(*(mine(0, 3600, number) for number in range(1, MAX_LANES + 5)))
    assert many.lanes == MAX_LANES
    assert f"More than {MAX_LANES} tries ran side by side" in many.notes[0]
    assert max(bar.y for bar in many.bars) < many.height


# --- other hours ----------------------------------------------------------------------------------------------------


def test_the_ways_to_other_hours() -> None:
    now = drawn()
    assert (now.later, now.latest, now.ends_now) == (None, None, True)
    assert now.earlier == WorkerAddress(hours=1, until=at(0))
    before = drawn(address=WorkerAddress(hours=1, until=at(-HOUR), offset=25))
    assert (before.earlier, before.later) == (WorkerAddress(1, at(-2 * HOUR)), WorkerAddress(1, at(0)))
    assert before.latest == ONE_HOUR
    assert not before.ends_now
    assert drawn(address=WorkerAddress(hours=1, until=at(0))).later == ONE_HOUR
    assert [(option.text, option.is_chosen, address.hours) for option, address in now.spans] == [
        ("1 h", True, 1),
        ("6 h", False, 6),
        ("24 h", False, 24),
        ("7 d", False, 168),
    ]


def test_hours_to_come_are_not_drawn() -> None:
    assert window(WorkerAddress(hours=1, until=at(9 * HOUR)), NOW) == (at(0), NOW)
    assert drawn(address=WorkerAddress(hours=1, until=at(9 * HOUR))).ends_now


def test_the_times_below() -> None:
    assert [tick.text[11:16] for tick in drawn().ticks] == ["12:00", "12:15", "12:30", "12:45", "13:00"]


# --- outcomes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "now", "first", "last"),
    [
        (WorkerAddress(), at(1800), at(-23 * HOUR), at(1800)),
        (WorkerAddress(hours=1), at(1800), at(-23 * HOUR), at(1800)),
        (WorkerAddress(hours=168), at(1800), at(-167 * HOUR), at(1800)),
        (WorkerAddress(hours=1, until=at(0)), at(1800), at(-24 * HOUR), at(0)),
    ],
)
def test_whole_hours_and_at_least_a_day_of_them(address: WorkerAddress, now: Any, first: Any, last: Any) -> None:
    assert chart_window(address, now) == (first, last)


def test_outcomes_are_stacked_with_failures_on_top() -> None:
    hours = [Outcomes(at(0), {"failed": 1, "success": 10, None: 1}), Outcomes(at(-HOUR), {"success": 5})]
    chart = build_chart(hours, WorkerAddress(), now=at(1800))
    assert chart is not None
    now, before = chart.bars
    assert [piece.state for piece in now.pieces] == ["success", "no_status", "failed"]
    assert [piece.y + piece.height for piece in now.pieces] == [CHART_HEIGHT, now.pieces[0].y, now.pieces[1].y]
    assert before.pieces[0].height < now.pieces[0].height
    assert now.title == "2026-03-01 12:00 to 13:00 UTC: 10 success, 1 no status, 1 failed"
    assert now.address == WorkerAddress(hours=1, until=at(HOUR))
    assert (now.x, before.x) == ("96.25%", "92.08%")
    assert [(entry.text, entry.count) for entry in chart.legend] == [
        ("Success", "15"),
        ("No Status", "1"),
        ("Failed", "1"),
    ]
    assert (chart.highest, chart.label) == ("12", "17 tries: 15 success, 1 no status, 1 failed")


def test_one_failure_among_thousands_can_be_seen_and_nothing_leaves_the_drawing() -> None:
    hours = [Outcomes(at(0), {"failed": 1, "success": 100_000, "skipped": 1, "upstream_failed": 1})]
    chart = build_chart(hours, WorkerAddress(), now=at(1800))
    assert chart is not None
    (bar,) = chart.bars
    assert all(piece.height >= 1 and piece.y >= 0 for piece in bar.pieces)
    assert bar.pieces[-1].state == "failed"


def test_hours_outside_of_the_drawing_are_left_out() -> None:
    hours = [Outcomes(at(0), {"success": 1}), Outcomes(at(0) - timedelta(hours=25), {"success": 1})]
    assert build_chart(hours, WorkerAddress(until=at(0)), now=at(1800)) is None
    assert build_chart([], WorkerAddress(), now=at(1800)) is None
