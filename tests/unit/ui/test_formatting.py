"""Format numbers, times and states."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_worker_insight.ui import formatting


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (0, "0 s"),
        (0.004, "0 s"),
        (0.42, "0.42 s"),
        (7.53, "7.5 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (125, "2 min 5 s"),
        (3600, "1 h"),
        (5430, "1 h 30 min"),
        (90_000, "1 d 1 h"),
        (86_400 * 400, "400 d"),
    ],
)
def test_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert formatting.duration(seconds) == text


@given(st.floats(0, 1e9))
def test_duration_has_at_most_two_units(seconds: float) -> None:
    assert len(formatting.duration(seconds).split()) in (2, 4)


def test_times_are_in_utc_and_for_programs_to_the_millisecond() -> None:
    two_hours_east = timezone(timedelta(hours=2))
    time = datetime(2026, 1, 31, 10, 0, 1, 234567, tzinfo=two_hours_east)
    assert formatting.iso_time(time) == "2026-01-31T08:00:01.234Z"
    assert formatting.utc_time(time) == "2026-01-31 08:00:01 UTC"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "just now"),
        (0.4, "just now"),
        (1, "1 s ago"),
        (59.9, "59 s ago"),
        (60, "1 min ago"),
        (7199, "1 h ago"),
        (86_400, "1 d ago"),
        (86_400 * 40, "40 d ago"),
    ],
)
def test_ago_is_in_the_largest_unit(seconds: float, text: str) -> None:
    now = datetime(2026, 1, 31, 8, tzinfo=timezone.utc)
    assert formatting.ago(now - timedelta(seconds=seconds), now) == text


def test_terms_are_those_of_airflows_ui() -> None:
    assert (formatting.worker_state("lost"), formatting.worker_state(None)) == ("Lost", "Unknown")
    assert formatting.count(1, "try", "tries") == "1 try"
    assert formatting.count(5000, "process", "processes") == "5,000 processes"
    assert formatting.state("up_for_retry") == "Up For Retry"
    assert formatting.state(None) == "No Status"
    assert (formatting.kind("celery"), formatting.kind("BatchExecutor")) == ("Celery", "BatchExecutor")
    assert (formatting.size(512), formatting.size(16 * 1024**3), formatting.size(2.0**62)) == (
        "512 B",
        "16.0 GiB",
        "4096.0 PiB",
    )
