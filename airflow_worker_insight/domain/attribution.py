"""Decide what can honestly be said of a try that no worker reported: pure functions, no I/O.

The rule is never to name a wrong worker. A worker's life is named only where Airflow's columns leave no other; else the
host is, as "one of the workers of this host"; else the reason why nothing is known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.names import executor_name
from airflow_worker_insight.domain.states import BACKFILLED, INFERRED, NEVER_STARTED, NOT_ON_A_WORKER, UNKNOWN
from airflow_worker_insight.domain.workers import WorkerRecord

if TYPE_CHECKING:
    from collections.abc import Collection

    from airflow_worker_insight.domain.attempts import AirflowTry


HOST_ID_PREFIX = "host-"
"""How the IDs of whole hosts begin; no worker may call itself so."""

NO_TIME = timedelta(seconds=1)
"""Airflow gives a try that it ends itself a start and an end within the same instant."""

KINDS = {
    "LocalExecutor": "local",
    "CeleryExecutor": "celery",
    "KubernetesExecutor": "kubernetes",
    "EdgeExecutor": "edge",
    "WorkerInsightLocalExecutor": "local",
    "WorkerInsightCeleryExecutor": "celery",
}


@dataclass(frozen=True, slots=True)
class WorkerInstance:
    """One recorded life of a worker and the ID of its row."""

    ref: int
    record: WorkerRecord


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of a try; ``worker`` is a life (then ``ref`` is its row) or a host (then ``ref`` is None)."""

    attribution: str
    worker: WorkerRecord | None = None
    ref: int | None = None


def attribute(
    one: AirflowTry,
    lives: Collection[WorkerInstance],
    *,
    default_executor: str | None = None,
    backfilled: bool = False,
) -> Verdict:
    """Say who ran a try, from what Airflow kept of it.

    :param lives: the recorded lives of workers, at least those on the try's host
    :param default_executor: ``[core] executor``: the first one is that of tries that name none
    :param backfilled: whether the try is older than the installation
    """
    if one.is_lost:
        return Verdict(UNKNOWN)
    kind = kind_of(_spelt_out(one.executor, default_executor))
    found = BACKFILLED if backfilled else INFERRED
    if one.hostname is None:
        return Verdict(_without_host(one))
    if one.ran_in_a_test:
        return Verdict(NOT_ON_A_WORKER)
    life = _only_possible_life(one, kind, lives)
    if life is not None:
        return Verdict(found, life.record, life.ref)
    return Verdict(found, host_worker(one.hostname, kind))


def _only_possible_life(one: AirflowTry, kind: str, lives: Collection[WorkerInstance]) -> WorkerInstance | None:
    """Return the life that ran the try where Airflow's columns leave no other.

    That one was alive at the time on that host is not enough: another one there may not have reported yet.
    """
    here = [life for life in lives if life.record.hostname == one.hostname and life.record.kind == kind]
    if kind == "local":
        # LocalExecutor's worker is the scheduler that queued the try, and a job row is one life of a scheduler.
        possible = [life for life in here if one.queued_by_job_id and life.record.job_id == one.queued_by_job_id]
    else:
        # The host of a pod is the pod, and a pod is one life.
        possible = here if kind == "kubernetes" else []
    return possible[0] if len(possible) == 1 else None


def _without_host(one: AirflowTry) -> str:
    """Say why a try has no host.

    A worker's supervisor writes host and process when it starts the task, so most tries without them never reached
    one. Airflow has also been seen to lose them of tries that did run (apache/airflow#65366, #71150).
    """
    if one.state in ("success", "skipped", "upstream_failed", "removed"):
        return NOT_ON_A_WORKER
    if one.started_at is None:
        return NEVER_STARTED
    if one.ended_at is not None and one.ended_at - one.started_at <= NO_TIME:
        return NEVER_STARTED
    return UNKNOWN


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


def _spelt_out(named: str | None, setting: str | None) -> str | None:
    """Return the executor that a try names, or the default; where it names an alias, that with its path."""
    if not named or not setting:
        return named or setting
    for one in re.split(r"[,;]", setting):
        # Since Airflow 3.2 a team stands in front.
        spelt = one.rpartition("=")[2].strip()
        if spelt.partition(":")[0] == named:
            return spelt
    return named


def has_workers_of(kind: str, *, executor: str | None, setting: str | None) -> bool | None:
    """Return whether tries of an executor run on workers of a kind; ``None`` where that is not known.

    :param executor: the one that a try names
    :param setting: ``[core] executor``: the first one is that of tries that name none
    """
    spelt = _spelt_out(executor, setting) or ""
    # A team's tries that name none are its own first executor's.
    possible = re.split(r"[,;]", spelt) if not executor and "=" in spelt else [spelt]
    kinds = {kind_of(one) for one in possible}
    if kind in kinds:
        return True
    return False if kinds <= set(KINDS.values()) else None


def kind_of(executor: str | None) -> str:
    """Return a worker's kind for an executor as Airflow writes it.

    That may be a class name, a dotted path, an alias (``alias:path``), a team's (``team=…``), or a list of them, of
    which the first is the default.
    """
    name = executor_name(executor)
    return KINDS.get(name, name) or "unknown"
