"""Well again: whether a worker with a finding has stopped failing more than its peers.

The test is one of two rates. Null: the worker still has at least half of the excess that was found. With ``peers`` the
peers' rate and r = peers + excess / 2 each success multiplies by (1 - peers) / (1 - r) and each failure by peers / r,
the likelihood ratio of two Bernoulli rates, whose mean is at most 1 under the null (Ville's inequality bounds the
chance of a wrong declaration at 1/20).

Logarithms are integers, as those of :mod:`.evidence` are: the order of tries does not change their sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from airflow_worker_insight.insight.evidence import SCALE

WELL = 20.0
"""Evidence from which a worker is well again."""

RECOVERING = 2.0
"""Evidence from which a finding is called recovering."""

LOWEST_RATE, HIGHEST_RATE = 0.005, 0.98
"""Bounds of the peers' rate: the first failure of a worker whose peers had none must not decide for ever."""

LATE_START = 1 / 300
"""Weight that starts anew each day: a worker that failed for long must not need as long to prove that it is well."""


def _log(value: float) -> int:
    return round(math.log(value) * SCALE)


_WELL_LOG, _RECOVERING_LOG, _LATE_START_LOG = _log(WELL), _log(RECOVERING), _log(LATE_START)


@dataclass(slots=True)
class Recovery:
    """Evidence that a unit is well again.

    :param peers: rate of failures of its peers, 0 to 1
    :param excess: how much higher its own rate was, 0 to 1
    """

    peers: float
    excess: float
    log: int = 0
    """Natural logarithm of the evidence in steps of 1/:data:`.SCALE`."""
    successes: int = 0
    failures: int = 0

    def __post_init__(self) -> None:
        self.peers = min(max(self.peers, LOWEST_RATE), HIGHEST_RATE)

    @property
    def rate(self) -> float:
        """Rate r of the null: the peers' and half of the excess that was found."""
        return min(self.peers + self.excess / 2, 0.99)

    @property
    def evidence(self) -> float:
        """Evidence for being well: how many to 1."""
        return math.exp(min(self.log / SCALE, 50.0))

    @property
    def steps(self) -> tuple[int, int]:
        """What a success, and a failure, add to the logarithm."""
        return _log((1 - self.peers) / (1 - self.rate)), _log(self.peers / self.rate)

    def add(self, successes: int, failures: int) -> None:
        """Add tries that started after the unit was found."""
        self.successes += successes
        self.failures += failures
        of_success, of_failure = self.steps
        self.log += successes * of_success + failures * of_failure

    def end_day(self) -> None:
        """Let a small weight start anew."""
        high, low = max(self.log, _LATE_START_LOG), min(self.log, _LATE_START_LOG)
        self.log = high + round(math.log1p(math.exp((low - high) / SCALE)) * SCALE)

    def begin_probation(self) -> None:
        """Start anew: the worker was restarted, repaired or released."""
        self.log, self.successes, self.failures = 0, 0, 0

    @property
    def is_well(self) -> bool:
        """Whether the unit is well again."""
        return self.log >= _WELL_LOG

    @property
    def is_recovering(self) -> bool:
        """Whether it rather looks well than not."""
        return self.log >= _RECOVERING_LOG


def successes_needed(peers: float, excess: float) -> int:
    """Return how many tries in a row must not fail until a unit is well again.

    :param peers: rate of failures of its peers, 0 to 1
    :param excess: how much higher its own rate was, 0 to 1
    """
    of_success, _ = Recovery(peers, excess).steps
    return -(-_WELL_LOG // of_success)
