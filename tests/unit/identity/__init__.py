"""Tests of ``airflow_worker_insight.identity``."""
