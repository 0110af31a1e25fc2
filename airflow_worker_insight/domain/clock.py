"""UTC times and the tolerated difference between the clocks of hosts."""

from __future__ import annotations

from datetime import timedelta, timezone
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


STORABLE_YEARS = range(2000, 9001)
"""Years of reported times that every database can store in any time zone."""

CLOCK_SKEW = timedelta(minutes=15)
"""Largest tolerated difference between the clocks of two hosts."""


def utc(value: datetime | None) -> datetime | None:
    """Return an aware time converted to UTC, ``None`` for ``None``."""
    return None if value is None else value.astimezone(timezone.utc)


START_TOLERANCE = timedelta(seconds=5)
"""Largest difference between two reports of the same start.

Worker sources round times, and messages take time to arrive.
"""
