"""What an operator and a Dag's author say of where tasks go: read and checked, no I/O.

A mistake of the operator keeps the scheduler from starting, with a message that says what is wrong. A mistake in a Dag
is that task's own: it waits, and its page says why.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import inf, nan
from typing import TYPE_CHECKING, Any

from airflow_worker_insight import config
from airflow_worker_insight.domain.names import LABEL_VALUE_LENGTH, NAME_LENGTH, clean
from airflow_worker_insight.executors.placement.policy import check_strategy
from airflow_worker_insight.executors.placement.slow_workers import SLOW_FROM

if TYPE_CHECKING:
    from collections.abc import Mapping

WAIT, SHARED_QUEUE = FALLBACKS = ("wait", "shared_queue")

SEND, HOLD = WHEN_UNSEEN = ("send", "hold")

LEAST_BACKLOG = 4
"""How many may wait at a worker at least, where nobody has said otherwise."""

LEAST_SLOW_FROM = 1.5
"""Times as long as the others that a slow worker takes at least: less is what differs from one machine to another."""

MAX_LABELS = 32

OWN_KEY = "worker_insight"
"""What of a task's ``executor_config`` is for us."""

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")


class PlacementConfigError(ValueError):
    """A setting, or what a task asks for, that makes no sense; the message says what, for whoever wrote it."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How tasks are placed."""

    strategy: str
    backlog: int | None = None
    fallback: str = WAIT
    pool_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """What labels a worker must have for tasks of a pool."""
    slow_from: float = SLOW_FROM
    """Times as long as the others, from which on a worker is slow; 0 where none is."""
    when_unseen: str = SEND
    """What becomes of tasks while the workers cannot be seen."""
    worker_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """What labels workers have by an operator's word, by patterns of their engine's names."""
    trusts_reports: bool = False
    """Whether the labels and the name count that a worker's tasks report."""

    def worker_has(self, name: str, told: Mapping[str, str]) -> dict[str, str]:
        """Return the labels that a worker has for placement; where an operator and its tasks differ, the operator's.

        :param name: what its engine calls it
        :param told: what its tasks report
        """
        found = dict(told) if self.trusts_reports else {}
        for pattern, labels in self.worker_labels.items():
            if fnmatchcase(name, pattern):
                found |= labels
        return found

    def capacity(self, concurrency: int) -> int:
        """Return how many tasks a worker may have, running and waiting."""
        return concurrency + (max(LEAST_BACKLOG, concurrency) if self.backlog is None else self.backlog)

    def labels_for(self, pool: str | None, executor_config: Any) -> dict[str, str]:
        """Return the labels that a worker must have for a task; where pool and task differ, the task's count.

        :raises PlacementConfigError: when what the task asks for makes no sense
        """
        return {**self.pool_labels.get(pool or "", {}), **asked_labels(executor_config)}


def read_rules() -> Rules:
    """Return the rules of the configuration.

    :raises ValueError: when a setting makes no sense
    """
    strategy, fallback = config.placement_strategy(), config.placement_fallback()
    check_strategy(strategy)
    if fallback not in FALLBACKS:
        raise PlacementConfigError(
            f"[worker_insight] placement_fallback is one of {', '.join(FALLBACKS)}, not {fallback!r}"
        )
    when_unseen = config.when_workers_unseen()
    if when_unseen not in WHEN_UNSEEN:
        raise PlacementConfigError(
            f"[worker_insight] when_workers_unseen is one of {', '.join(WHEN_UNSEEN)}, not {when_unseen!r}"
        )
    return Rules(
        strategy,
        _backlog(config.placement_backlog()),
        fallback,
        parse_pool_labels(config.placement_labels()),
        _slow_from(config.placement_slow_from()),
        when_unseen,
        parse_pool_labels(config.placement_worker_labels(), "placement_worker_labels", "node"),
        config.placement_trust_reports(),
    )


def _backlog(setting: str | None) -> int | None:
    if setting is None:
        return None
    if not setting.strip().isdecimal():
        raise PlacementConfigError(
            f"[worker_insight] placement_backlog is a whole number, 0 or more, or empty, not {setting!r}"
        )
    return int(setting)


def _slow_from(setting: str) -> float:
    try:
        found = float(setting)
    except ValueError:
        found = nan
    if not (found == 0 or LEAST_SLOW_FROM <= found < inf):
        raise PlacementConfigError(
            f"[worker_insight] placement_slow_from is a number of {LEAST_SLOW_FROM:g} or more, or 0, not {setting!r}"
        )
    return found


def parse_pool_labels(
    setting: str | None, option: str = "placement_labels", whose: str = "pool"
) -> dict[str, dict[str, str]]:
    """Read ``pool:key=value,pool:key=value``, or the same as JSON.

    :param option: the setting's name
    :param whose: what the labels are of
    :raises PlacementConfigError: for anything else
    """
    if setting is None or not setting.strip():
        return {}
    where = f"[worker_insight] {option}"
    if setting.lstrip().startswith("{"):
        try:
            given = json.loads(setting)
        except (ValueError, RecursionError) as error:
            raise PlacementConfigError(f"{where} is no JSON: {error}") from None
        return {pool: _labels(labels, f"{where}, {whose} {pool!r},") for pool, labels in given.items()}
    found: dict[str, dict[str, str]] = {}
    for item in filter(None, (part.strip() for part in re.split(r"[,\n]", setting))):
        # A pool's name may hold a colon, a label's key does not.
        pool, colon, label = item.rpartition(":")
        key, equals, value = label.partition("=")
        if not (pool and colon and equals):
            raise PlacementConfigError(f"{where} is a list of {whose}:key=value, and {item!r} is none")
        found.setdefault(pool.strip(), {}).update(_labels({key.strip(): value.strip()}, f"{where}, {item!r}:"))
    return found


def asked_labels(executor_config: Any) -> dict[str, str]:
    """Return the labels that a task asks for in its ``executor_config``: ``{"worker_insight": {"labels": {…}}}``.

    :raises PlacementConfigError: when it asks for something that there is not
    """
    return _labels(_own(executor_config).get("labels", {}), f'in its executor_config["{OWN_KEY}"]')


def asked_worker(executor_config: Any) -> str | None:
    """Return the name of the worker that a task asks for: ``{"worker_insight": {"worker": "…"}}``.

    :raises PlacementConfigError: when it asks for something that there is not
    """
    name = _own(executor_config).get("worker")
    if name is not None and (not isinstance(name, str) or not name or clean(name, NAME_LENGTH) != name):
        raise PlacementConfigError(f'in its executor_config["{OWN_KEY}"] the worker {clean(repr(name), 80)} is no name')
    return name


def _own(executor_config: Any) -> Mapping[str, Any]:
    if not isinstance(executor_config, dict) or OWN_KEY not in executor_config:
        return {}
    own = executor_config[OWN_KEY]
    if not isinstance(own, dict):
        raise PlacementConfigError(f'its executor_config["{OWN_KEY}"] is no mapping with "labels", "worker", or both')
    for name in own.keys() - {"labels", "worker"}:
        raise PlacementConfigError(
            f'its executor_config["{OWN_KEY}"] has {clean(repr(name), 80)}: there are "labels" and "worker" only'
        )
    return own


def _labels(given: Any, where: str) -> dict[str, str]:
    if not isinstance(given, dict) or len(given) > MAX_LABELS:
        raise PlacementConfigError(f"{where} the labels are no mapping of at most {MAX_LABELS} keys to texts")
    for key, value in given.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise PlacementConfigError(f"{where} {clean(repr(key), 80)} is no key of a label")
        if not isinstance(value, str) or not value or clean(value, LABEL_VALUE_LENGTH) != value:
            raise PlacementConfigError(f"{where} {key}={clean(repr(value), 80)} is no label: its value is a text")
    return dict(given)
