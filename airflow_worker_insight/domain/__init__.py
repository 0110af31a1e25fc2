"""The vocabulary of all other rooms. It does no I/O and imports no other room."""

from __future__ import annotations
