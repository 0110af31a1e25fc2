"""The worker sources: one per executor that knows its workers, and one for all others.

A source is used where its executor is configured. It imports the executor's provider when it is polled.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.executors import EXECUTOR_NAME_PARTS, absent_sources, celery_teams, executors
from airflow_worker_insight.domain.states import SourceName
from airflow_worker_insight.registry.sources.celery import CelerySource
from airflow_worker_insight.registry.sources.edge import EdgeSource
from airflow_worker_insight.registry.sources.jobs import JobsSource
from airflow_worker_insight.registry.sources.tries import TriesSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_worker_insight.registry.observations import WorkerSource


NAMED_LOCAL_EXECUTOR = "WorkerInsightLocalExecutor"
"""This package's executor with named workers on the scheduler's machine."""


def configured_sources(setting: str | None) -> Sequence[WorkerSource]:
    """Return the sources of the configured and installed executors, in polling order.

    A subclass of an executor (``WorkerInsightCeleryExecutor``) and the executors of 2.11 that combine two
    (``CeleryKubernetesExecutor``) have the executor's name in theirs.
    """
    absent = absent_sources(setting)
    sources: list[WorkerSource] = []
    if SourceName.EDGE not in absent and _is_installed("airflow.providers.edge3"):
        sources.append(EdgeSource())
    if SourceName.JOBS not in absent:
        sources.append(JobsSource(has_single=_has_single_local(setting)))
    sources.append(TriesSource())
    # Last, because its brokers may hang, while the others wait for nothing but the database.
    if SourceName.CELERY not in absent and _is_installed("airflow.providers.celery"):
        sources.append(CelerySource(celery_teams(setting)))
    return sources


def _has_single_local(setting: str | None) -> bool:
    """Return whether a local executor without named workers is configured.

    Its one worker is the scheduler.
    """
    return any(
        EXECUTOR_NAME_PARTS[SourceName.JOBS] in executor.name and executor.name != NAMED_LOCAL_EXECUTOR
        for executor in executors(setting)
    )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
