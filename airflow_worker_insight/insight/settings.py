"""Settings of the detector."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_worker_insight.domain.clock import CLOCK_SKEW


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the detector; a stored state is restored with the same ``groups`` only.

    :param groups: keys of :attr:`.Worker.groups` whose values are judged as groups
    :param alpha: chance of any false finding in 30 days
    :param grace: seconds after the start of a full block's last try until the block may close
    :param longest_try: seconds after which a full block closes although some of its tries have not ended
    :param timeline: latest tries of the fleet that separate failures
    """

    groups: tuple[str, ...] = ("host", "node", "zone", "image")
    alpha: float = 0.05
    grace: float = CLOCK_SKEW.total_seconds()
    longest_try: float = 7 * 86_400.0
    timeline: int = 8192
