"""Executors that ``[core] executor`` names, and worker sources that none of them uses.

Pure functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from airflow_worker_insight.domain.names import executor_name
from airflow_worker_insight.domain.states import SourceName

if TYPE_CHECKING:
    from collections.abc import Sequence


EXECUTOR_NAME_PARTS = {SourceName.CELERY: "Celery", SourceName.EDGE: "Edge", SourceName.JOBS: "Local"}
"""Word that the class names of a worker source's executors contain."""


class Executor(NamedTuple):
    """One executor that ``[core] executor`` names."""

    name: str
    team: str | None = None


def executors(setting: str | None) -> list[Executor]:
    """Parse ``[core] executor``: a list of executors, since Airflow 3.2 one for each team.

    ``LocalExecutor,CeleryExecutor;billing=path.to.CeleryExecutor`` names three.
    """
    parsed = []
    for group in (setting or "").split(";"):
        team, _, names = group.rpartition("=")
        parsed += [Executor(executor_name(name.strip()), team.strip() or None) for name in names.split(",")]
    return [executor for executor in parsed if executor.name]


def absent_sources(setting: str | None) -> Sequence[str]:
    """Return the worker sources that no executor of the setting uses.

    What is installed in this process does not matter.
    """
    configured = executors(setting)
    return [
        source
        for source, word in EXECUTOR_NAME_PARTS.items()
        if not any(word in executor.name for executor in configured)
    ]


def celery_teams(setting: str | None) -> tuple[str | None, ...]:
    """Return the teams that have Celery executors; ``None`` stands for all other teams.

    Each team may have its own broker.
    """
    return tuple(
        dict.fromkeys(
            executor.team for executor in executors(setting) if EXECUTOR_NAME_PARTS[SourceName.CELERY] in executor.name
        )
    )
