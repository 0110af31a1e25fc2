"""Attribute tries that no worker reported: pure functions, no I/O.

The rule is never to name a wrong worker. A worker instance is named only if Airflow's columns rule out every other one.
Otherwise the host is named, as "one of the workers of this host"; without a host, the reason why nothing is known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.names import executor_name
from airflow_worker_insight.domain.states import Attribution
from airflow_worker_insight.domain.workers import WorkerRecord

if TYPE_CHECKING:
    from collections.abc import Collection

    from airflow_worker_insight.domain.attempts import AirflowTry


HOST_ID_PREFIX = "host-"
"""Prefix of the IDs of whole hosts; reserved, so that no worker uses it."""

MAX_UNRUN_DURATION = timedelta(seconds=1)
"""Longest duration of a try that never ran.

When Airflow ends a try itself, it writes the same instant as start and end.
"""

KINDS = {
    "LocalExecutor": "local",
    "CeleryExecutor": "celery",
    "KubernetesExecutor": "kubernetes",
    "EdgeExecutor": "edge",
    "WorkerInsightLocalExecutor": "local",
    "WorkerInsightCeleryExecutor": "celery",
}


@dataclass(frozen=True, slots=True)
class RecordedInstance:
    """A recorded worker instance and the ID of its row."""

    ref: int
    record: WorkerRecord


@dataclass(frozen=True, slots=True)
class AttributionResult:
    """Result of the attribution of a try.

    ``worker`` is a worker instance (then ``ref`` is its row ID) or a host (then ``ref`` is ``None``).
    """

    attribution: str
    worker: WorkerRecord | None = None
    ref: int | None = None


def attribute(
    airflow_try: AirflowTry,
    instances: Collection[RecordedInstance],
    *,
    default_executor: str | None = None,
    backfilled: bool = False,
) -> AttributionResult:
    """Determine who ran a try from what Airflow stored of it.

    :param instances: the recorded worker instances, at least those on the try's host
    :param default_executor: ``[core] executor``; tries that name no executor ran on the first one
    :param backfilled: whether the try is older than the installation
    """
    if airflow_try.is_lost:
        return AttributionResult(Attribution.UNKNOWN)
    kind = kind_of(_resolve_executor(airflow_try.executor, default_executor))
    attribution = Attribution.BACKFILLED if backfilled else Attribution.INFERRED
    if airflow_try.hostname is None:
        return AttributionResult(_attribute_without_host(airflow_try))
    if airflow_try.ran_in_a_test:
        return AttributionResult(Attribution.NOT_ON_A_WORKER)
    instance = _only_candidate(airflow_try, kind, instances)
    if instance is not None:
        return AttributionResult(attribution, instance.record, instance.ref)
    return AttributionResult(attribution, host_worker(airflow_try.hostname, kind))


def _only_candidate(
    airflow_try: AirflowTry, kind: str, instances: Collection[RecordedInstance]
) -> RecordedInstance | None:
    """Return the only worker instance that, by Airflow's columns, can have run the try.

    ``None`` if there is none or if there are several. That an instance was alive on that host at that time is not
    enough: another one there may not have reported yet.
    """
    on_host = [
        instance
        for instance in instances
        if instance.record.hostname == airflow_try.hostname and instance.record.kind == kind
    ]
    if kind == "local":
        # LocalExecutor's worker is the scheduler that queued the try, and one job row is one scheduler process.
        candidates = [
            instance
            for instance in on_host
            if airflow_try.queued_by_job_id and instance.record.job_id == airflow_try.queued_by_job_id
        ]
    else:
        # The host of a pod is the pod itself, which is one worker instance.
        candidates = on_host if kind == "kubernetes" else []
    return candidates[0] if len(candidates) == 1 else None


def _attribute_without_host(airflow_try: AirflowTry) -> str:
    """Return the attribution of a try without a host.

    A worker's supervisor writes host and process when it starts the task, so most tries without them never reached a
    worker. Airflow is also known to lose them for tries that did run (apache/airflow#65366, #71150).
    """
    if airflow_try.state in ("success", "skipped", "upstream_failed", "removed"):
        return Attribution.NOT_ON_A_WORKER
    if airflow_try.started_at is None:
        return Attribution.NEVER_STARTED
    if airflow_try.ended_at is not None and airflow_try.ended_at - airflow_try.started_at <= MAX_UNRUN_DURATION:
        return Attribution.NEVER_STARTED
    return Attribution.UNKNOWN


def host_worker(hostname: str, kind: str) -> WorkerRecord:
    """Return the record that stands for "one of the ``kind`` workers of this host"."""
    digest = blake2b(f"{kind}\0{hostname}".encode(), digest_size=12).hexdigest()
    return WorkerRecord(
        worker_id=f"{HOST_ID_PREFIX}{digest}",
        name=hostname[:250],
        kind=kind,
        hostname=hostname[:255],
        host_only=True,
    )


def _resolve_executor(name: str | None, setting: str | None) -> str | None:
    """Return the executor that a try names, or the default; an alias comes with its path."""
    if not name or not setting:
        return name or setting
    for entry in re.split(r"[,;]", setting):
        # Since Airflow 3.2 an entry may start with a team.
        executor = entry.rpartition("=")[2].strip()
        if executor.partition(":")[0] == name:
            return executor
    return name


def has_workers_of(kind: str, *, executor: str | None, setting: str | None) -> bool | None:
    """Return whether tries of an executor run on workers of a kind; ``None`` if unknown.

    :param executor: the executor that a try names
    :param setting: ``[core] executor``; tries that name no executor run on the first one
    """
    resolved = _resolve_executor(executor, setting) or ""
    # If a team's try names no executor, it runs on the team's first one, so all entries are candidates.
    candidates = re.split(r"[,;]", resolved) if not executor and "=" in resolved else [resolved]
    kinds = {kind_of(candidate) for candidate in candidates}
    if kind in kinds:
        return True
    return False if kinds <= set(KINDS.values()) else None


def kind_of(executor: str | None) -> str:
    """Return the worker kind of an executor.

    :param executor: the executor as Airflow writes it: a class name, a dotted path, an alias (``alias:path``), a team's
        (``team=…``), or a list of them, of which the first is the default
    """
    name = executor_name(executor)
    return KINDS.get(name, name) or "unknown"
