"""Limits that several rooms share."""

from __future__ import annotations

MAX_TOTAL = 10_000
"""How far a list counts: exact totals of millions of attempts would take seconds, for a number that nobody pages to."""

MAX_SCANNED = 50_000
"""How many tries are looked through for those that fit a filter without an index of its own."""

TEXT_LENGTH = 300
"""Characters of a line at most: as many as the database keeps."""

MAX_NOTE_LENGTH = 500
"""As many characters as the database keeps of a note."""


REASON_LENGTH = 500
"""Characters of a reason: why a worker is in its state, or an engine cannot be asked."""

MAX_ID_LENGTH = 250
"""As long as Airflow's own IDs may be."""

MAX_INTEGER = 2**31 - 1
"""What the databases' integer columns hold."""


MAX_BODY = 16 * 1024
"""No form of these pages posts more bytes."""
