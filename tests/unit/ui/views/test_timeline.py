"""A worker's tries in lanes, and what became of them hour by hour."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_worker_insight.store.attempts.by_worker import Outcomes
from airflow_worker_insight.ui.query_params import AttemptsAddress, WorkerAddress
from airflow_worker_insight.ui.views.timeline import (
    CHART_HEIGHT,
    MAX_LANES,
    build_chart,
    build_timeline,
    chart_window,
    window,
)
from tests.unit.database import at
from tests.unit.ui.attempts import a_stay
from tests.unit.ui.workers import a_worker_row

HOUR = 3600
NOW = at(HOUR)
ONE_HOUR = WorkerAddress(hours=1)


def drawn(*stays: Any, address: WorkerAddress = ONE_HOUR, row: Any = None, is_cut: bool = False) -> Any:
    return build_timeline(row or a_worker_row(), stays, address, is_cut=is_cut, now=NOW)


def mine(start: float, end: float | None, number: int = 1, **others: Any) -> Any:
    return a_stay(number, start, end, **others)


# --- lanes ----------------------------------------------------------------------------------------------------------


def test_tries_one_after_another_share_a_lane_and_tries_side_by_side_do_not() -> None:
    found = drawn(mine(0, 1800), mine(1800, 3600, 2), mine(900, 2700, 3))
    assert found.lanes == 2
    assert [(bar.key.try_number, bar.y, bar.x, bar.width) for bar in found.bars] == [
        (1, 0, "0.00%", "50.00%"),
        (3, found.lane_height, "25.00%", "50.00%"),
        (2, 0, "50.00%", "50.00%"),
    ]
    assert found.label == "3 tries, at most 2 side by side"


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(10, 600)), max_size=60))
def test_no_two_tries_of_a_lane_overlap(times: list[tuple[int, int]]) -> None:
    tries = [mine(start, start + length, number) for number, (start, length) in enumerate(times, 1)]
    lanes: dict[int, list[tuple[float, float]]] = {}
    for bar in drawn(*tries).bars:
        start, length = times[bar.key.try_number - 1]
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
    assert bar.title.endswith("from 12:30:00 UTC, 15 min, until the worker was lost")
    noticed = drawn(mine(1800, 3500, state="failed"), row=lost)
    assert noticed.bars[0].width == "25.00%"
    assert noticed.bars[0].title.endswith("15 min, until the worker was lost; Airflow noticed at 12:58:20 UTC")
    assert (noticed.end.x, noticed.end.title) == ("75.00%", "Lost at 12:45:00 UTC")
    # What ended well or before was not cut off.
    assert drawn(mine(1800, 3600), row=lost).bars[0].width == "50.00%"
    assert "lost" not in drawn(mine(1800, 2000, state="failed"), row=lost).bars[0].title


def test_what_still_runs_on_a_worker_that_was_told_to_stop_goes_on() -> None:
    offline = a_worker_row(state="offline", ended_at=at(2700))
    found = drawn(mine(1800, None, state="running"), row=offline)
    assert (found.bars[0].width, found.bars[0].running) == ("50.00%", True)
    assert found.end.title == "Offline at 12:45:00 UTC"


def test_an_end_that_is_not_in_these_hours_is_not_drawn() -> None:
    assert drawn().end is None
    assert drawn(row=a_worker_row(state=None, ended_at=at(2700))).end is None
    lost = a_worker_row(state="lost", ended_at=at(2700))
    assert drawn(row=lost, address=WorkerAddress(hours=1, until=at(2000))).end is None


def test_a_try_that_went_on_elsewhere_ends_here_where_its_last_process_began() -> None:
    (bar,) = drawn(mine(0, 3600, last=900, continued_elsewhere=True)).bars
    assert (bar.x, bar.width) == ("0.00%", "25.00%")
    (bar,) = drawn(mine(1800, 3600, last=2700)).bars
    assert (bar.x, bar.width) == ("50.00%", "50.00%")


def test_a_try_that_waits_is_on_no_worker() -> None:
    (bar,) = drawn(mine(0, None, last=900, state="deferred")).bars
    assert (bar.width, bar.running) == ("25.00%", False)


def test_what_reaches_over_the_edges_is_cut_there() -> None:
    (bar,) = drawn(mine(-HOUR, 2 * HOUR)).bars
    assert (bar.x, bar.width) == ("0.00%", "100.00%")
    assert drawn(mine(-HOUR, -1)).bars == ()


def test_a_short_try_can_still_be_seen() -> None:
    (bar,) = drawn(mine(3600, 3600)).bars
    assert (bar.x, bar.width) == ("99.75%", "0.25%")


def test_what_nobody_could_tell_apart_is_drawn_as_one() -> None:
    seconds = [mine(1800 + 2 * number, 1801 + 2 * number, number) for number in range(1, 50)]
    failed = mine(1850, 1851, 99, state="failed")
    many, one = drawn(*seconds, failed).bars
    assert (many.key, many.state, many.x, many.width) == (None, "success", "50.06%", "2.69%")
    assert many.title.startswith("49 tries: Success; from 12:30:02 UTC")
    assert many.address == AttemptsAddress(worker="celery-1", state="success", since=at(1802), until=at(1899))
    # What failed lies on top, and is never hidden among others.
    assert (one.key.try_number, one.state) == (99, "failed")
    assert drawn(*seconds, failed).label == "50 tries, at most 2 side by side"
    assert len(drawn(mine(0, 60), mine(1800, 1801, 2)).bars) == 2


def test_a_busy_day_stays_a_light_drawing() -> None:
    """Sixteen lanes of tries of ten seconds, one of a hundred failed."""
    stays = [
        mine(
            10 * (number // 16) - 9 * HOUR,
            10 * (number // 16) - 9 * HOUR + 9,
            number,
            state="success" if number % 100 else "failed",
        )
        for number in range(2000)
    ]
    bars = drawn(*stays, address=WorkerAddress(hours=24)).bars
    assert len(bars) < 150
    assert {bar.state for bar in bars} == {"success", "failed"}


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
    assert [(option.text, option.is_chosen, address.hours) for option, address in now.lengths] == [
        ("1 h", True, 1),
        ("6 h", False, 6),
        ("24 h", False, 24),
        ("7 d", False, 168),
    ]


@pytest.mark.parametrize(
    ("began", "ended", "hours"),
    [
        (0, None, 1),
        (-1, None, 6),
        (-5 * HOUR, None, 6),
        (-6 * HOUR, None, 24),
        (-900 * HOUR, None, 24),
        (-1800, -900, 1),
        # The hours end with that in which the worker did.
        (-4500, -900, 6),
        (-900 * HOUR, -899.5 * HOUR, 1),
        # Clocks may differ.
        (9 * HOUR, None, 24),
    ],
)
def test_the_timeline_opens_with_the_hours_that_hold_the_workers_life(
    began: float, ended: float | None, hours: int
) -> None:
    row = a_worker_row(started_at=at(began), ended_at=None if ended is None else at(ended))
    anything = WorkerAddress()
    first, last = window(anything, row, NOW)
    assert last - first == timedelta(hours=hours)
    found = drawn(row=row, address=anything)
    assert [address.hours for option, address in found.lengths if option.is_chosen] == [hours]
    assert found.earlier == WorkerAddress(hours, first)
    # What an address with an end shows does not grow with the worker.
    assert window(WorkerAddress(until=at(0)), row, NOW) == (at(-24 * HOUR), at(0))
    unstarted = a_worker_row(started_at=None, registered_at=at(began), ended_at=row.ended_at)
    assert window(anything, unstarted, NOW) == (first, last)


def test_of_a_host_a_day_is_drawn() -> None:
    first, last = window(WorkerAddress(), a_worker_row(host_only=True, last_seen_at=NOW), NOW)
    assert last - first == timedelta(hours=24)


def test_hours_to_come_are_not_drawn() -> None:
    assert window(WorkerAddress(hours=1, until=at(9 * HOUR)), a_worker_row(), NOW) == (at(0), NOW)
    assert drawn(address=WorkerAddress(hours=1, until=at(9 * HOUR))).ends_now


def test_of_a_worker_that_is_gone_the_last_hours_are_drawn() -> None:
    year = timedelta(days=365)
    gone = a_worker_row(state="lost", ended_at=at(1800) - year)
    assert window(ONE_HOUR, gone, NOW) == (at(0) - year, at(HOUR) - year)
    assert chart_window(ONE_HOUR, gone, NOW) == (at(-23 * HOUR) - year, at(HOUR) - year)
    found = drawn(row=gone)
    assert (found.latest, found.later, found.ends_now) == (None, None, False)
    before = drawn(row=gone, address=found.earlier)
    assert (before.latest, before.latest_text, before.later) == (ONE_HOUR, "Its end", ONE_HOUR)
    assert drawn(row=gone, address=WorkerAddress(hours=1, until=NOW)).later is None
    a_host = a_worker_row(host_only=True, last_seen_at=at(1800) - year)
    assert window(ONE_HOUR, a_host, NOW)[1] == at(HOUR) - year
    just_now = a_worker_row(state="lost", ended_at=NOW - timedelta(seconds=9))
    assert window(ONE_HOUR, just_now, NOW)[1] == NOW


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
    assert chart_window(address, a_worker_row(), now) == (first, last)


def test_outcomes_are_stacked_with_failures_on_top() -> None:
    hours = [Outcomes(at(0), {"failed": 1, "success": 10, None: 1}), Outcomes(at(-HOUR), {"success": 5})]
    chart = build_chart(a_worker_row(), hours, WorkerAddress(), now=at(1800))
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
    chart = build_chart(a_worker_row(), hours, WorkerAddress(), now=at(1800))
    assert chart is not None
    (bar,) = chart.bars
    assert all(piece.height >= 1 and piece.y >= 0 for piece in bar.pieces)
    assert bar.pieces[-1].state == "failed"


def test_hours_outside_of_the_drawing_are_left_out() -> None:
    hours = [Outcomes(at(0), {"success": 1}), Outcomes(at(0) - timedelta(hours=25), {"success": 1})]
    assert build_chart(a_worker_row(), hours, WorkerAddress(until=at(0)), now=at(1800)) is None
    assert build_chart(a_worker_row(), [], WorkerAddress(), now=at(1800)) is None
