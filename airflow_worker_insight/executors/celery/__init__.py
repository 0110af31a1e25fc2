"""The executor that places tasks on Celery workers; its path is in users' configurations."""

from __future__ import annotations

from airflow_worker_insight.executors.celery.executor import WorkerInsightCeleryExecutor

__all__ = ["WorkerInsightCeleryExecutor"]
