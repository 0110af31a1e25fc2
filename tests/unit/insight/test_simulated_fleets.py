"""A few of the fleets of the benchmark, the small ones: what `make bench ARGS=insight` measures holds in the small."""

from __future__ import annotations

import pytest

from tests.benchmarks.insight import OURS, measure, wrongly_well
from tests.benchmarks.methods import METHODS
from tests.benchmarks.simulation import HEALTHY, SICK, Maker, Scenario, small


def test_same_seed_gives_the_same_fleet() -> None:
    first, again, other = (Maker(small(HEALTHY[3]), seed).make().tries for seed in (1, 1, 2))
    as_rows = [
        [(each.started, each.worker, each.task, each.state) for each in tries] for tries in (first, again, other)
    ]
    assert as_rows[0] == as_rows[1] != as_rows[2]


@pytest.mark.parametrize("scenario", HEALTHY, ids=lambda scenario: scenario.name)
def test_healthy_fleet_has_no_finding(scenario: Scenario) -> None:
    measured = measure((small(scenario), 0, False))
    assert measured.text == []
    assert measured.false == {OURS: 0}


def test_sick_worker_is_found_and_compared_with_other_methods() -> None:
    scenario = next(each for each in SICK if each.name == "fails all, 5 workers")
    measured = measure((scenario, 1, True))
    [(tries, hours)] = measured.found[OURS]
    assert tries <= 15
    assert 0 < hours < 24
    assert set(measured.false) == {OURS, *METHODS}


def test_sick_worker_is_seldom_declared_well() -> None:
    assert wrongly_well(0.18, 0.2, 100, tries=300) <= 0.03
