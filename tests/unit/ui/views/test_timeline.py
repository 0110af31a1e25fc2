"""A worker's tries in lanes, and their outcomes per hour."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_worker_insight.store.attempts.by_worker import Outcomes
from airflow_worker_insight.ui.query_params import AttemptsParams, WorkerParams
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
ONE_HOUR = WorkerParams(hours=1)


def drawn(*stays: Any, params: WorkerParams = ONE_HOUR, row: Any = None, is_truncated: bool = False) -> Any:
    return build_timeline(row or a_worker_row(), stays, params, is_truncated=is_truncated, now=NOW)


def mine(start: float, end: float | None, number: int = 1, **others: Any) -> Any:
    return a_stay(number, start, end, **others)


# --- lanes ----------------------------------------------------------------------------------------------------------


def test_only_consecutive_tries_share_a_lane() -> None:
    found = drawn(mine(0, 1800), mine(1800, 3600, 2), mine(900, 2700, 3))
    assert found.lanes == 2
    assert [(bar.key.try_number, bar.y, bar.x, bar.width) for bar in found.bars] == [
        (1, 0, "0.00%", "50.00%"),
        (3, found.lane_height, "25.00%", "50.00%"),
        (2, 0, "50.00%", "50.00%"),
    ]
    assert found.label == "3 tries, at most 2 in parallel"


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(10, 600)), max_size=60))
def test_tries_of_a_lane_do_not_overlap(times: list[tuple[int, int]]) -> None:
    tries = [mine(start, start + length, number) for number, (start, length) in enumerate(times, 1)]
    lanes: dict[int, list[tuple[float, float]]] = {}
    for bar in drawn(*tries).bars:
        start, length = times[bar.key.try_number - 1]
        lanes.setdefault(bar.y, []).append((start, start + length))
    if len(lanes) < MAX_LANES:
        for stays in lanes.values():
            ordered = sorted(stays)
            assert all(before[1] <= after[0] for before, after in pairwise(ordered))


def test_running_try_lasts_until_now_and_moves() -> None:
    (bar,) = drawn(mine(1800, None, state="running")).bars
    assert (bar.x, bar.width, bar.running) == ("50.00%", "50.00%", True)
    assert bar.title == "etl, load, try 1: Running; from 12:30:00 UTC, 30 min so far"


def test_try_of_a_lost_worker_ends_when_the_worker_was_lost() -> None:
    lost = a_worker_row(state="lost", ended_at=at(2700))
    (bar,) = drawn(mine(1800, None, state="running"), row=lost).bars
    assert (bar.width, bar.running) == ("25.00%", False)
    assert bar.title.endswith("from 12:30:00 UTC, 15 min, until the worker was lost")
    noticed = drawn(mine(1800, 3500, state="failed"), row=lost)
    assert noticed.bars[0].width == "25.00%"
    assert noticed.bars[0].title.endswith("15 min, until the worker was lost; Airflow detected it at 12:58:20 UTC")
    assert (noticed.end.x, noticed.end.title) == ("75.00%", "Lost at 12:45:00 UTC")
    # What ended well or before was not cut off.
    assert drawn(mine(1800, 3600), row=lost).bars[0].width == "50.00%"
    assert "lost" not in drawn(mine(1800, 2000, state="failed"), row=lost).bars[0].title


def test_try_on_an_offline_worker_continues() -> None:
    offline = a_worker_row(state="offline", ended_at=at(2700))
    found = drawn(mine(1800, None, state="running"), row=offline)
    assert (found.bars[0].width, found.bars[0].running) == ("50.00%", True)
    assert found.end.title == "Offline at 12:45:00 UTC"


def test_end_of_the_worker_is_drawn_only_in_its_hours() -> None:
    assert drawn().end is None
    assert drawn(row=a_worker_row(state=None, ended_at=at(2700))).end is None
    lost = a_worker_row(state="lost", ended_at=at(2700))
    assert drawn(row=lost, params=WorkerParams(hours=1, until=at(2000))).end is None


def test_try_that_continued_elsewhere_ends_with_its_last_process() -> None:
    (bar,) = drawn(mine(0, 3600, last=900, continued_elsewhere=True)).bars
    assert (bar.x, bar.width) == ("0.00%", "25.00%")
    (bar,) = drawn(mine(1800, 3600, last=2700)).bars
    assert (bar.x, bar.width) == ("50.00%", "50.00%")


def test_deferred_try_ends_with_its_last_process() -> None:
    (bar,) = drawn(mine(0, None, last=900, state="deferred")).bars
    assert (bar.width, bar.running) == ("25.00%", False)


def test_bars_are_clipped_at_the_edges() -> None:
    (bar,) = drawn(mine(-HOUR, 2 * HOUR)).bars
    assert (bar.x, bar.width) == ("0.00%", "100.00%")
    assert drawn(mine(-HOUR, -1)).bars == ()


def test_short_try_is_visible() -> None:
    (bar,) = drawn(mine(3600, 3600)).bars
    assert (bar.x, bar.width) == ("99.75%", "0.25%")


def test_short_consecutive_tries_are_merged() -> None:
    seconds = [mine(1800 + 2 * number, 1801 + 2 * number, number) for number in range(1, 50)]
    failed = mine(1850, 1851, 99, state="failed")
    many, one = drawn(*seconds, failed).bars
    assert (many.key, many.state, many.x, many.width) == (None, "success", "50.06%", "2.69%")
    assert many.title.startswith("49 tries: Success; from 12:30:02 UTC")
    assert many.params == AttemptsParams(worker="celery-1", state="success", since=at(1802), until=at(1899))
    # What failed lies on top, and is never hidden among others.
    assert (one.key.try_number, one.state) == (99, "failed")
    assert drawn(*seconds, failed).label == "50 tries, at most 2 in parallel"
    assert len(drawn(mine(0, 60), mine(1800, 1801, 2)).bars) == 2


def test_busy_day_has_few_bars() -> None:
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
    bars = drawn(*stays, params=WorkerParams(hours=24)).bars
    assert len(bars) < 150
    assert {bar.state for bar in bars} == {"success", "failed"}


def test_notes_say_that_tries_are_left_out() -> None:
    assert "Only the latest 2,000 tries are shown" in drawn(mine(0, 1), is_truncated=True).notes[0]
    many = drawn(*(mine(0, 3600, number) for number in range(1, MAX_LANES + 5)))
    assert many.lanes == MAX_LANES
    assert f"More than {MAX_LANES} tries ran in parallel" in many.notes[0]
    assert max(bar.y for bar in many.bars) < many.height


# --- other hours ----------------------------------------------------------------------------------------------------


def test_links_lead_to_other_hours() -> None:
    now = drawn()
    assert (now.later, now.latest, now.ends_now) == (None, None, True)
    assert now.earlier == WorkerParams(hours=1, until=at(0))
    before = drawn(params=WorkerParams(hours=1, until=at(-HOUR), offset=25))
    assert (before.earlier, before.later) == (WorkerParams(1, at(-2 * HOUR)), WorkerParams(1, at(0)))
    assert before.latest == ONE_HOUR
    assert not before.ends_now
    assert drawn(params=WorkerParams(hours=1, until=at(0))).later == ONE_HOUR
    assert [(option.text, option.is_chosen, params.hours) for option, params in now.lengths] == [
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
def test_timeline_opens_with_the_hours_of_the_worker_instance(began: float, ended: float | None, hours: int) -> None:
    row = a_worker_row(started_at=at(began), ended_at=None if ended is None else at(ended))
    anything = WorkerParams()
    first, last = window(anything, row, NOW)
    assert last - first == timedelta(hours=hours)
    found = drawn(row=row, params=anything)
    assert [params.hours for option, params in found.lengths if option.is_chosen] == [hours]
    assert found.earlier == WorkerParams(hours, first)
    # What an address with an end shows does not grow with the worker.
    assert window(WorkerParams(until=at(0)), row, NOW) == (at(-24 * HOUR), at(0))
    unstarted = a_worker_row(started_at=None, registered_at=at(began), ended_at=row.ended_at)
    assert window(anything, unstarted, NOW) == (first, last)


def test_timeline_of_a_host_shows_a_day() -> None:
    first, last = window(WorkerParams(), a_worker_row(host_only=True, last_seen_at=NOW), NOW)
    assert last - first == timedelta(hours=24)


def test_timeline_ends_now() -> None:
    assert window(WorkerParams(hours=1, until=at(9 * HOUR)), a_worker_row(), NOW) == (at(0), NOW)
    assert drawn(params=WorkerParams(hours=1, until=at(9 * HOUR))).ends_now


def test_timeline_of_an_ended_worker_shows_its_last_hours() -> None:
    year = timedelta(days=365)
    gone = a_worker_row(state="lost", ended_at=at(1800) - year)
    assert window(ONE_HOUR, gone, NOW) == (at(0) - year, at(HOUR) - year)
    assert chart_window(ONE_HOUR, gone, NOW) == (at(-23 * HOUR) - year, at(HOUR) - year)
    found = drawn(row=gone)
    assert (found.latest, found.later, found.ends_now) == (None, None, False)
    before = drawn(row=gone, params=found.earlier)
    assert (before.latest, before.latest_text, before.later) == (ONE_HOUR, "End", ONE_HOUR)
    assert drawn(row=gone, params=WorkerParams(hours=1, until=NOW)).later is None
    a_host = a_worker_row(host_only=True, last_seen_at=at(1800) - year)
    assert window(ONE_HOUR, a_host, NOW)[1] == at(HOUR) - year
    just_now = a_worker_row(state="lost", ended_at=NOW - timedelta(seconds=9))
    assert window(ONE_HOUR, just_now, NOW)[1] == NOW


def test_ticks_divide_the_hours() -> None:
    assert list(drawn().ticks) == [at(0), at(900), at(1800), at(2700), at(3600)]


# --- outcomes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "now", "first", "last"),
    [
        (WorkerParams(), at(1800), at(-23 * HOUR), at(1800)),
        (WorkerParams(hours=1), at(1800), at(-23 * HOUR), at(1800)),
        (WorkerParams(hours=168), at(1800), at(-167 * HOUR), at(1800)),
        (WorkerParams(hours=1, until=at(0)), at(1800), at(-24 * HOUR), at(0)),
    ],
)
def test_chart_shows_whole_hours_and_at_least_a_day(params: WorkerParams, now: Any, first: Any, last: Any) -> None:
    assert chart_window(params, a_worker_row(), now) == (first, last)


def test_outcomes_are_stacked_with_failures_on_top() -> None:
    hours = [Outcomes(at(0), {"failed": 1, "success": 10, None: 1}), Outcomes(at(-HOUR), {"success": 5})]
    chart = build_chart(a_worker_row(), hours, WorkerParams(), now=at(1800))
    assert chart is not None
    now, before = chart.bars
    assert [piece.state for piece in now.pieces] == ["success", "no_status", "failed"]
    assert [piece.y + piece.height for piece in now.pieces] == [CHART_HEIGHT, now.pieces[0].y, now.pieces[1].y]
    assert before.pieces[0].height < now.pieces[0].height
    assert now.title == "2026-03-01 12:00 to 13:00 UTC: 10 success, 1 no status, 1 failed"
    assert now.params == WorkerParams(hours=1, until=at(HOUR))
    assert (now.x, before.x) == ("96.25%", "92.08%")
    assert chart.legend == (("success", "15"), ("no_status", "1"), ("failed", "1"))
    assert (chart.highest, chart.label) == ("12", "17 tries: 15 success, 1 no status, 1 failed")


def test_one_failure_among_thousands_is_visible() -> None:
    hours = [Outcomes(at(0), {"failed": 1, "success": 100_000, "skipped": 1, "upstream_failed": 1})]
    chart = build_chart(a_worker_row(), hours, WorkerParams(), now=at(1800))
    assert chart is not None
    (bar,) = chart.bars
    assert all(piece.height >= 1 and piece.y >= 0 for piece in bar.pieces)
    assert bar.pieces[-1].state == "failed"


def test_hours_outside_of_the_chart_are_left_out() -> None:
    hours = [Outcomes(at(0), {"success": 1}), Outcomes(at(0) - timedelta(hours=25), {"success": 1})]
    assert build_chart(a_worker_row(), hours, WorkerParams(until=at(0)), now=at(1800)) is None
    assert build_chart(a_worker_row(), [], WorkerParams(), now=at(1800)) is None
