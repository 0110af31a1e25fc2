"""The tables, and all modules that read or write them; it imports no layer above it."""

from __future__ import annotations
