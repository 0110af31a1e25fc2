"""E-values of stratified counts: how much a block of tries speaks against one unit.

An e-value is a bet against "which tries fail does not depend on the unit". Its mean is at most 1 if that is true, so a
product of e-values that reaches 1,000 happens with a probability of at most 1/1,000, however often the evidence is read
(Ville's inequality; Turner, Ly and Grünwald, arXiv 2106.02693, with the counts of a block held fixed).

Logarithms are integers in steps of 2⁻²⁴: sums are exact, so neither the order of events nor a restart changes them.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

Logs: TypeAlias = tuple[int, ...]
"""Natural logarithms of e-values, one for each odds ratio, in steps of 1/:data:`SCALE`."""

SCALE = 1 << 24
CAP = round(math.log(1e12) * SCALE)
"""Largest logarithm that a day ends with, and that is reported."""

ODDS = (3.0, 10.0, 30.0, 100.0)
"""Odds ratios θ that are tested for failed and lost tries."""

SLOW_ODDS = (1.5, 2.5, 5.0, 15.0)
"""Odds ratios θ that are tested for slow tries, of which half are slow everywhere."""

RESTART = 1 / 30
"""Share of evidence that starts anew each day, so that an old good record hides no new fault."""

_KEPT, _FRESH = math.log1p(-RESTART), math.log(RESTART)


@lru_cache(maxsize=1 << 17)
def block_evidence(tries: int, failures: int, own_tries: int, own_failures: int, odds: tuple[float, ...]) -> Logs:
    """Return the logarithms of a unit's e-values in one block.

    With N tries, m failures, n own tries and x own failures, x is hypergeometric unless failing depends on the unit:
    e(θ) = θ^x / Σ_y [C(n,y) C(N-n,m-y) / C(N,m)] θ^y (Turner and Grünwald, arXiv 2302.11401, conditional form).

    :param tries: N
    :param failures: m
    :param own_tries: n
    :param own_failures: x
    :param odds: the odds ratios θ
    :return: ln e(θ) in steps of 1/:data:`SCALE`; all 0 if nothing failed or no other unit ran a try
    """
    peers = tries - own_tries
    if not failures or not peers or not own_tries:
        return (0,) * len(odds)
    ways = math.comb(tries, failures)
    shares = [
        (y, math.comb(own_tries, y) * math.comb(peers, failures - y) / ways)
        for y in range(max(0, failures - peers), min(own_tries, failures) + 1)
    ]
    logs = (own_failures * math.log(theta) - math.log(sum(share * theta**y for y, share in shares)) for theta in odds)
    return tuple(round(log * SCALE) for log in logs)


def restart(log: int) -> int:
    """Let a share of the evidence start anew: E becomes 29/30 E + 1/30, capped.

    With evidence E = M O of closed and open blocks this is M ← 29/30 M + 1/30 / O (an e-detector of Shiryaev-Roberts
    type: Shin, Ramdas and Rinaldo, arXiv 2203.03532).

    :param log: ln E in steps of 1/:data:`SCALE`
    :return: the same of the new E
    """
    kept, fresh = log / SCALE + _KEPT, _FRESH
    high, low = max(kept, fresh), min(kept, fresh)
    return min(CAP, round((high + math.log1p(math.exp(low - high))) * SCALE))


def mean_evidence(logs: Sequence[int]) -> float:
    """Return the evidence E: the mean over the odds ratios, at most 10¹²."""
    return sum(math.exp(min(log, CAP) / SCALE) for log in logs) / len(logs)
