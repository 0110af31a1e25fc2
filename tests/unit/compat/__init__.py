"""Tests of ``airflow_worker_insight.compat``."""
