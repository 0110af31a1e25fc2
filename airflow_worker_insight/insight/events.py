"""Input of the detector: workers, and starts and ends of tries."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

TaskId: TypeAlias = tuple[str, str]
"""Dag ID and task ID."""


class End(str, Enum):
    """How a try ended."""

    SUCCESS = "success"
    FAILED = "failed"
    LOST = "lost"
    """It ended with its worker."""
    EXCLUDED = "excluded"
    """It says nothing of its worker: skipped, or a person set its state."""


@dataclass(frozen=True, slots=True)
class Worker:
    """An instance of a worker: one process lifetime.

    :param worker_id: names the instance; new after each restart
    :param name: what an operator calls it; outlives restarts
    :param groups: what it shares with others, such as ``{"host": "h1", "zone": "b"}``; the detector uses those of
        :attr:`.Settings.groups`
    :param is_single_try: whether it runs one try only, as a Kubernetes pod does: its groups are judged, not it
    """

    worker_id: str
    name: str
    groups: Mapping[str, str] = field(default_factory=dict)
    is_single_try: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    """A try that a worker has started.

    :param key: identifies the try, never reused (``domain.keys.instance_key``)
    :param task: Dag ID and task ID
    :param run: identifies the Dag run (``domain.keys.run_key``)
    :param worker: the first worker that ran it
    :param started_at: Unix time in seconds
    :param try_number: only first tries count, because retries would count one bad task many times
    :param is_mapped: whether it is a mapped instance: of those in one run on one worker only the first counts
    """

    key: int
    task: TaskId
    run: int
    worker: Worker
    started_at: float
    try_number: int = 1
    is_mapped: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a try that has been added as :class:`Started`.

    :param key: as in :class:`Started`
    :param end: how it ended
    :param ended_at: Unix time in seconds
    """

    key: int
    end: End
    ended_at: float
