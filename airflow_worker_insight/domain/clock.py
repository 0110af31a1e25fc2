"""Times: UTC, and how far the clocks of hosts may be apart."""

from __future__ import annotations

from datetime import timedelta, timezone
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


CLOCK_SKEW = timedelta(minutes=15)
"""How far the clocks of two hosts may be apart."""


def utc(value: datetime | None) -> datetime | None:
    """Return an aware time in UTC, as readers get it."""
    return None if value is None else value.astimezone(timezone.utc)


SAME_START = timedelta(seconds=5)
"""How far two tellings of one start may differ: engines round, and messages take their time."""
