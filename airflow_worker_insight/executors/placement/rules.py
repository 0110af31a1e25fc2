"""Placement rules of the configuration and of Dags: parsing and validation, no I/O.

An invalid setting keeps the scheduler from starting, with a message that says what is wrong. An invalid request in a
Dag affects only that task: it waits, and its page says why.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import inf, nan
from typing import TYPE_CHECKING, Any

from airflow_worker_insight import config
from airflow_worker_insight.domain.names import LABEL_VALUE_LENGTH, MAX_LABELS, NAME_LENGTH, clean
from airflow_worker_insight.executors.placement.policy import check_strategy
from airflow_worker_insight.executors.placement.slow_workers import DEFAULT_SLOW_FROM

if TYPE_CHECKING:
    from collections.abc import Mapping

WAIT, SHARED_QUEUE = FALLBACKS = ("wait", "shared_queue")

SEND, HOLD = WHEN_WORKERS_UNSEEN = ("send", "hold")

MIN_BACKLOG = 4
"""Minimum backlog of a worker (tasks that may wait there) if none is configured."""

MIN_SLOW_FROM = 1.5
"""Lowest setting of how many times as long as others a slow worker takes.

Smaller factors are normal differences between machines.
"""

CONFIG_KEY = "worker_insight"
"""Key of this provider's part of a task's ``executor_config``."""

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")


class PlacementConfigError(ValueError):
    """Invalid setting or task request; the message tells its author what is wrong."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules by which tasks are placed."""

    strategy: str
    backlog: int | None = None
    fallback: str = WAIT
    pool_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Labels that a worker must have for tasks of a pool, by pool."""
    slow_from: float = DEFAULT_SLOW_FROM
    """How many times as long as others a slow worker takes at least; 0 if none counts as slow."""
    when_workers_unseen: str = SEND
    """What happens to tasks while workers are unavailable: one of :data:`WHEN_WORKERS_UNSEEN`."""
    worker_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Labels that operators assign to workers, by patterns of the worker source's names."""
    trusts_reports: bool = False
    """Whether to use the labels and the name that a worker's tasks report."""

    def labels_of_worker(self, name: str, reported: Mapping[str, str]) -> dict[str, str]:
        """Return a worker's labels for placement; those of operators override reported ones.

        :param name: the worker source's name for the worker
        :param reported: the labels that its tasks report
        """
        merged = dict(reported) if self.trusts_reports else {}
        for pattern, labels in self.worker_labels.items():
            if fnmatchcase(name, pattern):
                merged |= labels
        return merged

    def capacity(self, concurrency: int) -> int:
        """Return how many tasks a worker may have, running and waiting.

        :param concurrency: how many tasks it can run at once
        """
        return concurrency + (max(MIN_BACKLOG, concurrency) if self.backlog is None else self.backlog)

    def labels_for_task(self, pool: str | None, executor_config: Any) -> dict[str, str]:
        """Return the labels that a worker must have for a task; the task's override its pool's.

        :raises PlacementConfigError: when the task's request is invalid
        """
        return {**self.pool_labels.get(pool or "", {}), **requested_labels(executor_config)}


def read_rules() -> Rules:
    """Return the placement rules of the configuration.

    :raises ValueError: when a setting is invalid
    """
    strategy, fallback = config.placement_strategy(), config.placement_fallback()
    check_strategy(strategy)
    if fallback not in FALLBACKS:
        raise PlacementConfigError(
            f"[worker_insight] placement_fallback must be one of {', '.join(FALLBACKS)}, not {fallback!r}"
        )
    when_workers_unseen = config.when_workers_unseen()
    if when_workers_unseen not in WHEN_WORKERS_UNSEEN:
        raise PlacementConfigError(
            f"[worker_insight] when_workers_unseen must be one of {', '.join(WHEN_WORKERS_UNSEEN)}, not "
            f"{when_workers_unseen!r}"
        )
    return Rules(
        strategy,
        _backlog(config.placement_backlog()),
        fallback,
        parse_labels(config.placement_labels()),
        _slow_from(config.placement_slow_from()),
        when_workers_unseen,
        parse_labels(config.placement_worker_labels(), "placement_worker_labels", "node"),
        config.placement_trust_reports(),
    )


def _backlog(setting: str | None) -> int | None:
    if setting is None:
        return None
    if not setting.strip().isdecimal():
        raise PlacementConfigError(
            f"[worker_insight] placement_backlog must be a whole number, 0 or more, or empty, not {setting!r}"
        )
    return int(setting)


def _slow_from(setting: str) -> float:
    try:
        factor = float(setting)
    except ValueError:
        factor = nan
    if not (factor == 0 or MIN_SLOW_FROM <= factor < inf):
        raise PlacementConfigError(
            f"[worker_insight] placement_slow_from must be {MIN_SLOW_FROM:g} or more, or 0, not {setting!r}"
        )
    return factor


def parse_labels(
    setting: str | None, option: str = "placement_labels", owner: str = "pool"
) -> dict[str, dict[str, str]]:
    """Parse ``pool:key=value,pool:key=value``, or the same as JSON.

    :param option: the setting's name, for messages
    :param owner: what the labels belong to, for messages
    :return: the labels by owner
    :raises PlacementConfigError: when the setting is anything else
    """
    if setting is None or not setting.strip():
        return {}
    where = f"[worker_insight] {option}"
    if setting.lstrip().startswith("{"):
        try:
            parsed = json.loads(setting)
        except (ValueError, RecursionError) as error:
            raise PlacementConfigError(f"{where} is not valid JSON: {error}") from None
        return {pool: _labels(labels, f"{where}, {owner} {pool!r},") for pool, labels in parsed.items()}
    by_pool: dict[str, dict[str, str]] = {}
    for item in filter(None, (part.strip() for part in re.split(r"[,\n]", setting))):
        # A pool's name may contain a colon; a label's key may not.
        pool, colon, label = item.rpartition(":")
        key, equals, value = label.partition("=")
        if not (pool and colon and equals):
            raise PlacementConfigError(f"{where} must be a list of {owner}:key=value, and {item!r} is not of that form")
        by_pool.setdefault(pool.strip(), {}).update(_labels({key.strip(): value.strip()}, f"{where}, {item!r}:"))
    return by_pool


def requested_labels(executor_config: Any) -> dict[str, str]:
    """Return the labels that a task requests in its ``executor_config``.

    The form is ``{"worker_insight": {"labels": {…}}}``.

    :raises PlacementConfigError: when the request is invalid
    """
    return _labels(_config_part(executor_config).get("labels", {}), f'in its executor_config["{CONFIG_KEY}"]')


def requested_worker(executor_config: Any) -> str | None:
    """Return the name of the worker that a task requests in its ``executor_config``, if any.

    The form is ``{"worker_insight": {"worker": "…"}}``.

    :raises PlacementConfigError: when the request is invalid
    """
    name = _config_part(executor_config).get("worker")
    if name is not None and (not isinstance(name, str) or not name or clean(name, NAME_LENGTH) != name):
        raise PlacementConfigError(
            f'in its executor_config["{CONFIG_KEY}"] the worker {clean(repr(name), 80)} is not a valid name'
        )
    return name


def _config_part(executor_config: Any) -> Mapping[str, Any]:
    if not isinstance(executor_config, dict) or CONFIG_KEY not in executor_config:
        return {}
    own_part = executor_config[CONFIG_KEY]
    if not isinstance(own_part, dict):
        raise PlacementConfigError(
            f'its executor_config["{CONFIG_KEY}"] must be a mapping with "labels", "worker", or both'
        )
    for name in own_part.keys() - {"labels", "worker"}:
        raise PlacementConfigError(
            f'its executor_config["{CONFIG_KEY}"] has the unknown key {clean(repr(name), 80)}: use "labels" and '
            '"worker" only'
        )
    return own_part


def _labels(labels: Any, where: str) -> dict[str, str]:
    if not isinstance(labels, dict) or len(labels) > MAX_LABELS:
        raise PlacementConfigError(f"{where} the labels must be a mapping of at most {MAX_LABELS} keys to texts")
    for key, value in labels.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise PlacementConfigError(f"{where} {clean(repr(key), 80)} is not a valid label key")
        if not isinstance(value, str) or not value or clean(value, LABEL_VALUE_LENGTH) != value:
            raise PlacementConfigError(
                f"{where} {key}={clean(repr(value), 80)} is not a valid label: the value must be a text"
            )
    return dict(labels)
