"""Tries that have ended are summed up by hour, worker, queue and task."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_worker_insight.analysis.rollup import Rollup
from airflow_worker_insight.domain.statistics import COUNTS, HOUR, MAX_SPLIT_HOURS, Sums, hour_of, split_hours, unit_of
from airflow_worker_insight.domain.tries import TryOutcome, TryWorker
from tests.unit.analysis.tries import a_try, a_worker, any_try
from tests.unit.database import NOON, at

if TYPE_CHECKING:
    from airflow_worker_insight.domain.tries import AnalyzedTry

NOON_HOUR = hour_of(NOON)


def rolled(*tries: AnalyzedTry, expected_failure: float = 0.0) -> dict[tuple[int, str], Sums]:
    """Return the sums by hour and queue."""
    rollup = Rollup()
    for each in tries:
        rollup.add(each, expected_failure=expected_failure)
    return dict(rollup.take().queues)


def test_seconds_count_where_they_passed_and_the_rest_where_the_try_ended() -> None:
    found = rolled(a_try(-90, HOUR + 30, queued=-100), expected_failure=0.25)
    assert found == {
        (NOON_HOUR - 1, "default"): Sums(busy_seconds=90),
        (NOON_HOUR, "default"): Sums(busy_seconds=HOUR),
        (NOON_HOUR + 1, "default"): Sums(
            tries=1,
            expected_failed=0.25,
            busy_seconds=30,
            duration_seconds=HOUR + 120,
            queue_seconds=10,
            queued_tries=1,
        ),
    }


@pytest.mark.parametrize(
    ("outcome", "counted"),
    [
        (TryOutcome.SUCCESS, (1, 0, 0)),
        (TryOutcome.FAILED, (1, 1, 0)),
        (TryOutcome.LOST, (1, 0, 1)),
        (TryOutcome.OTHER, (0, 0, 0)),
    ],
)
def test_outcomes(outcome: TryOutcome, counted: tuple[int, int, int]) -> None:
    (sums,) = rolled(a_try(0, 10, outcome=outcome)).values()
    assert (sums.tries, sums.failed, sums.lost) == counted
    assert sums.busy_seconds == 10
    assert sums.duration_seconds == 10 * counted[0]


def test_times_that_contradict_each_other_count_as_nothing() -> None:
    (sums,) = rolled(a_try(20, 10, queued=30)).values()
    assert (sums.tries, sums.queued_tries) == (1, 1)
    assert (sums.busy_seconds, sums.duration_seconds, sums.queue_seconds) == (0, 0, 0)


def test_a_wrong_clock_makes_no_rows_for_decades() -> None:
    found = rolled(replace(a_try(0, 10), started_at=NOON - timedelta(days=20_000)))
    assert len(found) == MAX_SPLIT_HOURS
    assert sum(sums.tries for sums in found.values()) == 1


def test_a_try_that_runs_is_refused() -> None:
    with pytest.raises(ValueError, match="has not ended"):
        Rollup().add(replace(a_try(0, 10), outcome=None, ended_at=None), expected_failure=0)


def test_a_try_without_a_queue_is_kept_apart() -> None:
    assert set(rolled(replace(a_try(0, 10), queue=None))) == {(NOON_HOUR, "")}


def test_slots_are_split_over_hours() -> None:
    rollup = Rollup()
    rollup.add_slots(a_worker(), 4, at(HOUR - 10), at(HOUR + 20))
    rollup.add_slots(a_worker(), 2, at(HOUR + 20), at(HOUR + 30))
    assert {hour: sums for (hour, _), sums in rollup.take().units.items()} == {
        NOON_HOUR: Sums(slot_seconds=40),
        NOON_HOUR + 1: Sums(slot_seconds=100),
    }


def test_what_was_taken_is_forgotten() -> None:
    rollup = Rollup()
    assert rollup.is_empty
    rollup.add(a_try(0, 10), expected_failure=0)
    assert not rollup.is_empty
    assert len(rollup.take().tasks) == 1
    assert rollup.is_empty
    assert not rollup.take().tasks


def test_pods_of_one_try_each_are_one_unit_by_node_image_and_labels() -> None:
    def pod(number: int, **others: Any) -> TryWorker:
        return a_worker(
            f"pod-{number}", kind="kubernetes", hostname=f"pod-{number}", node="n1", is_single_try=True, **others
        )

    assert len({unit_of(pod(number)) for number in range(10_000)}) == 1
    unit = unit_of(pod(1, image="etl:2", labels={"team": "a"}))
    assert (unit.name, unit.hostname) == (None, "n1")
    assert dict(unit.labels) == {"image": "etl:2", "node": "n1", "team": "a"}
    assert unit.digest != unit_of(pod(1, image="etl:3", labels={"team": "a"})).digest
    # Without a node nothing tells their hosts apart from pods.
    assert unit_of(replace(pod(1), node=None)) == unit_of(replace(pod(2), node=None))


def test_a_named_worker_is_a_unit_by_name_host_and_labels() -> None:
    units = [
        a_worker("w1"),
        a_worker("w2"),
        a_worker("w1", hostname="other"),
        a_worker("w1", labels={"zone": "b"}),
        a_worker("w1", kind="edge"),
    ]
    assert len({unit_of(worker).digest for worker in units}) == len(units)
    # Another instance of the same name is the same unit.
    assert unit_of(replace(a_worker("w1"), ref=2, worker_id="other")) == unit_of(a_worker("w1"))


@given(st.lists(any_try(), max_size=30))
def test_sums_are_those_of_the_tries(tries: list[AnalyzedTry]) -> None:
    rollup = Rollup()
    for each in tries:
        rollup.add(each, expected_failure=0.5)
    deltas = rollup.take()
    counted = [each for each in tries if each.outcome != TryOutcome.OTHER]
    for grouped in (deltas.units, deltas.queues, deltas.tasks):
        total = Sums()
        for sums in grouped.values():
            total.add(sums)
        assert total.tries == len(counted)
        assert total.failed == sum(each.outcome == TryOutcome.FAILED for each in tries)
        assert total.lost == sum(each.outcome == TryOutcome.LOST for each in tries)
        assert total.expected_failed == pytest.approx(0.5 * len(counted))
        spans = [(each.ended_at - each.started_at).total_seconds() for each in tries if each.ended_at is not None]
        assert total.busy_seconds == pytest.approx(sum(max(0, span) for span in spans))
        for (hour, *_), sums in grouped.items():
            ended = [each for each in counted if each.ended_at is not None and hour_of(each.ended_at) == hour]
            assert sums.tries <= len(ended)
            assert 0 <= sums.busy_seconds <= HOUR * len(tries)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_an_interval_is_split_without_gaps(since: float, length: float) -> None:
    begin, end = at(since), at(since + length)
    parts = dict(split_hours(begin, end))
    assert sum(parts.values()) == pytest.approx((end - begin).total_seconds(), abs=1e-5)
    assert all(0 < seconds <= HOUR for seconds in parts.values())
    assert list(parts) == list(range(min(parts, default=0), max(parts, default=-1) + 1))


def test_all_counts_are_added() -> None:
    one = Sums(**{name: number for number, name in enumerate(COUNTS, 1)}, slot_seconds=5.0)  # type: ignore[arg-type]
    total = Sums()
    total.add(one)
    assert total == one
    total.add(Sums())
    assert total == one
