"""The two tables and everything that reads or writes them; it knows nobody above it."""

from __future__ import annotations
