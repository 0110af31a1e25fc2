"""Executor that places tasks on Celery workers; users' configurations contain its path."""

from __future__ import annotations

from airflow_worker_insight.executors.celery.executor import WorkerInsightCeleryExecutor

__all__ = ["WorkerInsightCeleryExecutor"]
