"""E-values of one block."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_worker_insight.insight.evidence import CAP, ODDS, SCALE, SLOW_ODDS, block_evidence, mean_evidence, restart
from tests.unit.insight.streams import e_value


def values(tries: int, failures: int, own_tries: int, own_failures: int) -> list[float]:
    return [math.exp(log / SCALE) for log in block_evidence(tries, failures, own_tries, own_failures, ODDS)]


def test_own_failure_in_a_block_multiplies_as_documented() -> None:
    assert values(32, 1, 2, 1) == pytest.approx([2.7, 6.4, 10.7, 13.9], abs=0.05)


def test_failure_of_a_peer_multiplies_as_documented() -> None:
    assert values(32, 1, 2, 0) == pytest.approx([0.89, 0.64, 0.36, 0.14], abs=0.005)


@pytest.mark.parametrize(("tries", "failures", "own_tries"), [(32, 0, 5), (32, 7, 32), (32, 7, 0), (1, 1, 1)])
def test_block_without_failures_or_without_peers_says_nothing(tries: int, failures: int, own_tries: int) -> None:
    assert block_evidence(tries, failures, own_tries, min(failures, own_tries), ODDS) == (0, 0, 0, 0)


blocks = st.integers(2, 32).flatmap(
    lambda tries: st.tuples(st.just(tries), st.integers(1, tries), st.integers(1, tries - 1))
)


@given(blocks)
def test_mean_over_all_ways_to_place_the_failures_is_one(block: tuple[int, int, int]) -> None:
    tries, failures, own = block
    for odds in (ODDS, SLOW_ODDS):
        means = [0.0] * len(odds)
        for x in range(max(0, failures - tries + own), min(own, failures) + 1):
            chance = math.comb(own, x) * math.comb(tries - own, failures - x) / math.comb(tries, failures)
            for index, log in enumerate(block_evidence(tries, failures, own, x, odds)):
                means[index] += chance * math.exp(log / SCALE)
        assert means == pytest.approx([1.0] * len(odds), rel=1e-5)


@given(blocks, st.integers(0, 32))
def test_matches_the_definition(block: tuple[int, int, int], own_failures: int) -> None:
    tries, failures, own = block
    x = min(max(own_failures, failures - tries + own, 0), own, failures)
    assert values(tries, failures, own, x) == pytest.approx(
        [e_value(tries, failures, own, x, t) for t in ODDS], rel=1e-5
    )


@pytest.mark.parametrize("evidence", [1e-9, 0.5, 1.0, 100.0])
def test_each_day_a_thirtieth_starts_anew(evidence: float) -> None:
    assert math.exp(restart(round(math.log(evidence) * SCALE)) / SCALE) == pytest.approx(
        29 / 30 * evidence + 1 / 30, rel=1e-5
    )


def test_evidence_is_capped() -> None:
    assert restart(10 * CAP) == CAP
    assert mean_evidence([10 * CAP] * 4) == pytest.approx(1e12, rel=1e-6)
