"""Tests of ``airflow_worker_insight.capture``."""

from __future__ import annotations
