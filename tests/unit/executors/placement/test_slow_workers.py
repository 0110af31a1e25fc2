"""How many times as long as the others a worker takes, from tries of the same tasks."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight.executors.placement.slow_workers import TaskRun, slowness

if TYPE_CHECKING:
    from collections.abc import Iterable


def ran(ref: int, *seconds: float, task: str = "load", has_ended: bool = True) -> list[TaskRun]:
    return [TaskRun(ref, ("etl", task), duration, has_ended) for duration in seconds]


def rounded(tries: Iterable[TaskRun]) -> dict[int, float]:
    return {ref: round(factor, 1) for ref, factor in slowness(tries).items()}


def test_workers_are_compared_by_the_same_task() -> None:
    found = rounded([*ran(1, 10, 11, 9, 10), *ran(2, 10, 10, 12, 10), *ran(3, 100, 102, 98, 100)])
    assert found == {1: 1.0, 2: 1.0, 3: 10.0}


def test_worker_that_ran_the_long_tasks_is_not_slow() -> None:
    tries = [
        *ran(1, 600, 600, 600, 600, task="train"),
        *ran(1, 10, 10, 10, 10),
        *ran(2, 10, 10, 10, 10),
        *ran(2, 600, task="train"),
    ]
    assert rounded(tries) == {1: 1.0, 2: 1.0}


def test_running_try_counts_once_it_takes_longer_than_elsewhere() -> None:
    elsewhere = [*ran(1, 10, 10), *ran(2, 10, 10)]
    assert rounded([*elsewhere, *ran(3, 40, 41, 42, 43, has_ended=False)])[3] == 4.1
    # Of those that have only just passed the usual time nothing is known.
    assert rounded([*elsewhere, *ran(3, 15, 16, has_ended=False), *ran(3, *[100] * 4)])[3] == 10.0
    # Up to now it is as fast as any.
    assert 3 not in slowness([*elsewhere, *ran(3, 4, 5, 6, 7, has_ended=False)])


def test_one_try_of_usual_length_shows_that_a_worker_is_not_slow() -> None:
    assert rounded([*ran(1, 10, 10, 10), *ran(2, 500, 500, 10, 500, 500)])[2] == 1.0
    # Three long ones alone say nothing.
    assert 2 not in slowness([*ran(1, 10, 10, 10), *ran(2, 500, 500, 500)])


def test_widely_varying_durations_make_no_worker_slow() -> None:
    chance = Random(4)
    called_slow = 0
    for _ in range(100):
        # One in twenty takes more than ten times the usual time.
        tries = [
            task_run for ref in range(10) for task_run in ran(ref, *(chance.lognormvariate(3, 1.5) for _ in range(20)))
        ]
        called_slow += sum(factor > 1 for factor in slowness(tries).values())
    assert called_slow < 0.005 * 100 * 10


def test_operator_sets_the_factor() -> None:
    tries = [*ran(1, 10, 10, 10, 10), *ran(2, 40, 40, 40, 40)]
    assert slowness(tries) == {1: 1.0, 2: 4.0}
    assert slowness(tries, slow_from=5.0) == {1: 1.0, 2: 1.0}


def test_only_the_latest_tries_count() -> None:
    elsewhere = ran(1, *[10] * 20)
    assert rounded([*ran(2, *[100] * 5, has_ended=False), *ran(2, *[10] * 20), *elsewhere])[2] == 10.0
    assert rounded([*ran(2, 10), *ran(2, *[100] * 20), *elsewhere])[2] == 1.0


def test_latest_tries_are_those_of_all_tasks() -> None:
    elsewhere = [*ran(1, *[10] * 5), *ran(1, *[10] * 5, task="other")]
    slow_before = [*ran(2, *[10] * 5, task="other"), *ran(2, *[100] * 5)]
    # In another order of the tasks it is the same.
    for order in ([*slow_before, *elsewhere], [*slow_before, *reversed(elsewhere)]):
        assert rounded(order)[2] == 1.0
    assert rounded([*ran(2, *[100] * 5), *ran(2, *[10] * 5, task="other"), *elsewhere])[2] == 10.0
    assert rounded([*ran(2, *[100] * 3), *ran(2, 100, 100, task="other"), *ran(2, 10), *elsewhere])[2] == 10.0


def test_worker_that_ran_most_tries_does_not_set_the_usual_duration() -> None:
    tries = [*ran(1, *[100] * 50), *(task_run for ref in (2, 3, 4) for task_run in ran(ref, *[10] * 4))]
    assert rounded(tries) == {1: 10.0, 2: 1.0, 3: 1.0, 4: 1.0}


@pytest.mark.parametrize(
    "tries",
    [
        [],
        ran(1, 10, 10, 10),
        [*ran(1, 10), *ran(2, 100, 100)],
        [*ran(1, 10, 10, 10, has_ended=False), *ran(2, 100, 100, has_ended=False)],
    ],
)
def test_too_few_tries_make_no_worker_slow(tries: list[TaskRun]) -> None:
    assert all(factor == 1 for factor in slowness(tries).values())


def test_noise_of_starting_a_process_is_not_slowness() -> None:
    assert rounded([*ran(1, *[0.1] * 4), *ran(2, *[0.9] * 4), *ran(3, *[0.0] * 4)]) == {1: 1.0, 2: 1.0, 3: 1.0}
