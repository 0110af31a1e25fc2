"""Which executors ``[core] executor`` names, and which engines none of them is of: pure functions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from airflow_worker_insight.domain.names import executor_name
from airflow_worker_insight.domain.states import CELERY, EDGE, JOBS

if TYPE_CHECKING:
    from collections.abc import Sequence


WORDS = {CELERY: "Celery", EDGE: "Edge", JOBS: "Local"}
"""What the names of an engine's executors have in them."""


class Executor(NamedTuple):
    """One of the executors that ``[core] executor`` names."""

    name: str
    team: str | None = None


def executors(setting: str | None) -> list[Executor]:
    """Read ``[core] executor``: a list of executors, and since Airflow 3.2 one for each team.

    ``LocalExecutor,CeleryExecutor;billing=path.to.CeleryExecutor`` names three.
    """
    found = []
    for group in (setting or "").split(";"):
        team, _, names = group.rpartition("=")
        found += [Executor(executor_name(name.strip()), team.strip() or None) for name in re.split(r",", names)]
    return [one for one in found if one.name]


def absent_sources(setting: str | None) -> Sequence[str]:
    """Return the names of the engines that no executor of the setting is of, whatever is installed here."""
    known = executors(setting)
    return [name for name, word in WORDS.items() if not any(word in one.name for one in known)]


def celery_teams(setting: str | None) -> tuple[str | None, ...]:
    """Return the teams that have Celery executors, each perhaps with its own broker; ``None`` is all the others."""
    return tuple(dict.fromkeys(one.team for one in executors(setting) if WORDS[CELERY] in one.name))
