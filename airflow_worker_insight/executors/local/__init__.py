"""Executor that places tasks on named workers of the scheduler itself.

Users' configurations contain its path.
"""

from __future__ import annotations

from airflow_worker_insight.executors.local.executor import WorkerInsightLocalExecutor

__all__ = ["WorkerInsightLocalExecutor"]
