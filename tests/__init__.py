"""Tests of Airflow Worker Insight."""
