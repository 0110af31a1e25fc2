"""Slow tries: successes that took longer than the median of the task's previous block."""

from __future__ import annotations

from statistics import median_low
from typing import TYPE_CHECKING

from airflow_worker_insight.insight.blocks import SUCCEEDED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_worker_insight.insight.blocks import Judged, Try

LEAST = 8
"""Successes of a block from which its median says how long the task usually takes."""


def usual_duration(tries: Sequence[Try], before: int | None) -> int | None:
    """Return the median duration of a block's successes in milliseconds.

    :param before: that of the block before, which stays where too few succeeded
    """
    durations = [each.duration for each in tries if each.status == SUCCEEDED and each.duration is not None]
    return median_low(durations) if len(durations) >= LEAST else before


def judge_slow(tries: Sequence[Try], usual: int | None) -> Judged:
    """Return the successes of a closed block, each with whether it took longer than usual.

    :param usual: usual duration in milliseconds, ``None`` if the task has no closed block yet: then none counts
    """
    if usual is None:
        return []
    return [(each, each.duration > usual) for each in tries if each.status == SUCCEEDED and each.duration is not None]
