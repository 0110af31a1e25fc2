"""The engines that run tasks on workers, each behind an adapter that looks at what the engine already knows.

An adapter is used where its engine is configured. It imports the engine's provider when it is asked to look.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.executors import WORDS, absent_sources, celery_teams, executors
from airflow_worker_insight.domain.states import CELERY, EDGE, JOBS
from airflow_worker_insight.registry.sources.celery import CelerySource
from airflow_worker_insight.registry.sources.edge import EdgeSource
from airflow_worker_insight.registry.sources.jobs import JobsSource
from airflow_worker_insight.registry.sources.tries import TriesSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_worker_insight.registry.observations import WorkerSource


NAMED_LOCAL_EXECUTOR = "WorkerInsightLocalExecutor"
"""The executor of this package that has named workers on the scheduler's machine."""


def configured_sources(setting: str | None) -> Sequence[WorkerSource]:
    """Return the adapters to look with, in this order, for the executors that are configured and installed.

    A subclass of an executor (``WorkerInsightCeleryExecutor``) and the executors of two engines of 2.11
    (``CeleryKubernetesExecutor``) have the engine's name in theirs.
    """
    absent = absent_sources(setting)
    found: list[WorkerSource] = []
    if EDGE not in absent and _is_installed("airflow.providers.edge3"):
        found.append(EdgeSource())
    if JOBS not in absent:
        found.append(JobsSource(has_plain=_has_plain_local(setting)))
    found.append(TriesSource())
    # Last, because its brokers may hang, and the others have nothing to wait for but the database.
    if CELERY not in absent and _is_installed("airflow.providers.celery"):
        found.append(CelerySource(celery_teams(setting)))
    return found


def _has_plain_local(setting: str | None) -> bool:
    """Return whether a local executor is configured whose one worker is the scheduler, and that has no named ones."""
    return any(WORDS[JOBS] in one.name and one.name != NAMED_LOCAL_EXECUTOR for one in executors(setting))


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
