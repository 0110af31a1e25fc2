"""Tries and the workers that ran them: every statement that reads or writes the attempt table."""

from __future__ import annotations
