"""Tests of ``airflow_worker_insight.store``."""

from __future__ import annotations
