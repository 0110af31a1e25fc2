"""Tests on real Airflow deployments, made by the harness in ``tests.support``."""
