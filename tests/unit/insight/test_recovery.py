"""Well again."""

from __future__ import annotations

import random

import pytest

from airflow_worker_insight.insight.recovery import Recovery, successes_needed


@pytest.mark.parametrize(("rate", "needed"), [(1.0, 5), (0.5, 11), (0.2, 32), (0.07, 116)])
def test_failure_free_tries_that_it_takes(rate: float, needed: int) -> None:
    peers = 0.02
    assert successes_needed(peers, rate - peers) == needed
    recovery = Recovery(peers, rate - peers)
    for number in range(1, needed + 1):
        recovery.add(1, 0)
        assert recovery.is_well == (number == needed)


@pytest.mark.parametrize(("excess", "share", "at_most"), [(0.48, 0.5, 0.06), (0.18, 0.5, 0.06), (0.18, 1.0, 0.01)])
def test_seldom_well_while_the_excess_stays(excess: float, share: float, at_most: float) -> None:
    rng = random.Random(1)
    wrong = 0
    for _ in range(1000):
        recovery = Recovery(0.02, excess)
        for number in range(1, 501):
            failed = rng.random() < 0.02 + share * excess
            recovery.add(int(not failed), int(failed))
            if number % 50 == 0:
                recovery.end_day()
            if recovery.is_well:
                wrong += 1
                break
    # Three standard deviations of 1,000 runs.
    assert wrong / 1000 <= at_most + 3 * (at_most * (1 - at_most) / 1000) ** 0.5


def test_long_sickness_does_not_make_recovery_endless() -> None:
    recovery = Recovery(0.02, 0.98)
    recovery.add(0, 500)
    recovery.end_day()
    recovery.add(14, 0)
    assert recovery.is_well


def test_peers_without_a_failure_do_not_make_the_first_one_final() -> None:
    recovery = Recovery(0.0, 0.5)
    recovery.add(0, 1)
    recovery.add(40, 0)
    assert recovery.is_well


def test_new_instance_begins_on_probation() -> None:
    recovery = Recovery(0.02, 0.98)
    recovery.add(0, 9)
    recovery.begin_probation()
    recovery.add(5, 0)
    assert recovery.is_well
