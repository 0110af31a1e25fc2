"""Workers: every statement that reads or writes the worker table and its history."""

from __future__ import annotations
