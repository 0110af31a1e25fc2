"""Limits that several subpackages share."""

from __future__ import annotations

MAX_TOTAL = 10_000
"""Number up to which a list counts its rows.

Exact totals of millions of attempts would take seconds, and users do not page that far.
"""

MAX_SCANNED = 50_000
"""Number of tries that a search scans for a filter without an index."""

TEXT_LENGTH = 300
"""Maximum length of a line of text in characters: the size of the database column."""

MAX_NOTE_LENGTH = 500
"""Maximum length of a note in characters: the size of the database column."""


REASON_LENGTH = 500
"""Maximum length of a reason in characters.

It says why a worker is in its state or why a worker source is unavailable.
"""

MAX_ID_LENGTH = 250
"""Maximum length of Airflow's own IDs in characters."""

MAX_INTEGER = 2**31 - 1
"""Largest value of the databases' integer columns."""


MAX_BODY = 16 * 1024
"""Maximum size of a request body in bytes; the forms of the pages post less."""
