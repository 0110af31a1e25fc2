"""The strip of the Worker panel: the lane and the position of each bar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from airflow_worker_insight.ui.views.panel import build_panel
from airflow_worker_insight.ui.views.strip import MAX_LANES, Bar, Strip
from tests.unit.database import at
from tests.unit.ui.attempts import HERE, a_try, on, one_of_the_host
from tests.unit.ui.workers import a_worker_row

if TYPE_CHECKING:
    from airflow_worker_insight.domain.attempts import Attempt


def strip_of(*tries: Attempt, now: float = 1000) -> Strip:
    strip = build_panel(HERE, tries, now=at(now)).strip
    assert strip is not None
    return strip


def percent(text: str) -> float:
    return float(text.removesuffix("%"))


def span(bar: Bar) -> tuple[float, float]:
    return percent(bar.x), percent(bar.x) + percent(bar.width)


def test_tries_on_different_workers_are_on_different_lanes() -> None:
    strip = strip_of(
        a_try(1, 0, 100, on("w1"), state="failed"),
        a_try(2, 200, 300, on("w2"), state="failed"),
        a_try(3, 300, 400, on("w1")),
    )
    assert [(lane.mark, lane.name, [bar.label for bar in lane.bars]) for lane in strip.lanes] == [
        ("A", "w1@host-1", ["1", "3"]),
        ("B", "w2@host-1", ["2"]),
    ]
    first, third = strip.lanes[0].bars
    assert (span(first), span(third)) == ((0, 25), (75, 100))
    assert (first.state, third.state, first.is_reported) == ("failed", "success", True)
    assert first.title == "Try 1 on w1@host-1 (Celery); Failed; from 12:00:00 UTC, 1 min 40 s"
    assert (strip.start, strip.end, strip.length) == (at(0), at(400), "6 min 40 s")
    assert strip.notes == ()


def test_try_of_a_lost_worker_ends_when_the_worker_was_lost() -> None:
    instances = {"w1": a_worker_row("w1", state="lost", ended_at=at(400))}
    running = a_try(2, 200, None, on("w1"), state="running")
    strip = build_panel(HERE, [a_try(1, 0, 100, on("w1"), state="failed"), running], instances, now=at(1000)).strip
    assert strip is not None
    before, cut = strip.lanes[0].bars
    assert (span(before), span(cut)) == ((0, 25), (50, 100))
    assert (cut.running, strip.ends_now, strip.end) == (False, False, at(400))
    assert cut.title.endswith("from 12:03:20 UTC, 3 min 20 s, until the worker was lost")
    assert "lost" not in before.title
    # What ended well all the same was not cut off.
    well = build_panel(HERE, [a_try(1, 0, 1000, on("w1"))], instances, now=at(1000)).strip
    assert well is not None
    assert well.end == at(1000)


def test_only_try_fills_the_strip_even_without_duration() -> None:
    for end in (0, 0.001, 5000):
        (lane,) = strip_of(a_try(1, 0, end, on("w1"))).lanes
        assert [span(bar) for bar in lane.bars] == [(0, 100)]


def test_running_try_lasts_until_now() -> None:
    strip = strip_of(a_try(1, 0, 500, on("w1"), state="failed"), a_try(2, 500, None, on("w2"), state="running"))
    (bar,) = strip.lanes[1].bars
    assert (span(bar), bar.running, strip.ends_now) == ((50, 100), True, True)


def test_deferred_try_ends_on_its_worker_with_its_last_process() -> None:
    thread, bar = strip_of(a_try(1, 0, None, on("w1", 0), state="deferred")).lanes[0].bars
    assert (span(thread), thread.is_thread) == ((0, 100), True)
    assert span(bar)[1] < 10
    assert not bar.running


def test_rescheduled_sensor_shows_each_worker_and_its_processes() -> None:
    strip = strip_of(
        a_try(1, 0, 1000, on("w1", 0, 600, process_count=2210), on("w2", 100, 950, process_count=1790), on("w3", 500))
    )
    bars = [lane.bars[1] for lane in strip.lanes]
    assert [lane.bars[0].is_thread for lane in strip.lanes] == [True, True, True]
    assert [span(lane.bars[0]) for lane in strip.lanes] == [(0, 100)] * 3
    assert [bar.state for bar in bars] == ["part", "success", "part"]
    assert [bar.detail for bar in bars] == [" · 2,210 processes", " · 1,790 processes", ""]
    assert span(bars[1])[1] == 100
    assert "2,210 processes" in bars[0].title


def test_try_that_no_worker_reported_is_marked() -> None:
    strip = strip_of(
        a_try(1, 0, 100, one_of_the_host(), state="failed", attribution="inferred"), a_try(2, 100, 200, on("w1"))
    )
    assert strip.lanes[0].name == "a worker on host-1"
    assert [lane.bars[0].is_reported for lane in strip.lanes] == [False, True]
    assert strip.notes == ("Dashed: not reported by the worker.",)


def test_tries_without_a_worker_have_their_own_lanes_below_the_workers() -> None:
    strip = strip_of(
        a_try(1, 0, 10, state="failed", attribution="unknown"),
        a_try(2, 20, 30, state="success", attribution="not_on_a_worker"),
        a_try(3, None, None, state="failed", attribution="never_started"),
        a_try(4, 40, 50, on("w1")),
    )
    assert [(lane.mark, lane.name) for lane in strip.lanes] == [
        ("A", "w1@host-1"),
        ("?", "Unknown worker"),
        ("–", "No worker"),
    ]
    assert strip.lanes[1].bars[0].title.startswith("Try 1 on an unknown worker; Failed")
    assert strip.notes == ("Not shown, because never started: try 3.",)


def test_strip_without_any_worker_is_left_out() -> None:
    for attribution in ("unknown", "not_on_a_worker"):
        assert build_panel(HERE, [a_try(1, 0, 0, state="skipped", attribution=attribution)], now=at(9)).strip is None
    assert build_panel(HERE, [], now=at(9)).strip is None


def test_more_workers_than_lanes_share_the_last_one() -> None:
    strip = strip_of(*(a_try(number, number * 10, number * 10 + 5, on(f"w{number}")) for number in range(1, 31)))
    assert len(strip.lanes) == MAX_LANES + 1
    assert (strip.lanes[-1].name, len(strip.lanes[-1].bars)) == ("18 more workers", 18)
    exactly = strip_of(*(a_try(number, number * 10, None, on(f"w{number}")) for number in range(1, MAX_LANES + 2)))
    assert [len(lane.bars) for lane in exactly.lanes] == [1] * (MAX_LANES + 1)


def test_short_try_after_a_long_one_is_visible() -> None:
    strip = strip_of(
        a_try(1, 0, 36_000, on("w1"), state="failed"),
        a_try(2, 36_000, 36_001, on("w1"), state="failed"),
        a_try(3, 36_001, 36_001.5, on("w2")),
    )
    long, short = strip.lanes[0].bars
    (other,) = strip.lanes[1].bars
    assert percent(short.width) > 5
    assert percent(other.width) > 5
    assert span(long)[1] <= span(short)[0] < span(short)[1] <= span(other)[0] + 0.01


@given(
    st.lists(
        st.tuples(st.floats(0, 1e5), st.floats(0, 1e5), st.sampled_from(["w1", "w2", "w3"])), min_size=1, max_size=30
    )
)
def test_bars_are_inside_in_order_and_visible(lengths: list[tuple[float, float, str]]) -> None:
    tries, clock = [], 0.0
    for number, (pause, length, worker_id) in enumerate(lengths, 1):
        clock += pause
        tries.append(a_try(number, clock, clock + length, on(worker_id)))
        clock += length
    bars = sorted((bar for lane in strip_of(*tries).lanes for bar in lane.bars), key=lambda bar: bar.try_number)
    end_before = 0.0
    for bar in bars:
        start, end = span(bar)
        # Two decimals each for start and width.
        assert end_before <= start + 0.011
        assert start < end <= 100.011
        end_before = end
        assert percent(bar.width) >= min(6, 120 / len(bars)) / 2.25


def test_bars_have_positive_width_if_clocks_disagree() -> None:
    strip = strip_of(
        a_try(1, 100, 90, on("w1"), state="failed"), a_try(2, 80, 200, on("w2", 10, 20), on("w1", 150, 140))
    )
    for lane in strip.lanes:
        for bar in lane.bars:
            assert percent(bar.width) > 0
