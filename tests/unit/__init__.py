"""Tests of one piece at a time, in a Python that has Airflow."""

from __future__ import annotations
