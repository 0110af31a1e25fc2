"""Tries and their workers: every statement that reads or writes the attempt table."""

from __future__ import annotations
