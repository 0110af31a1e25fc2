"""Match observations with worker instances: pure functions, no I/O.

A worker is known by its source and by the reports of its task processes, and either may come first. Both know the
source's name of the worker and its process. The start time tells a new instance from the previous one where both have
the same process ID, as in containers.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.clock import CLOCK_SKEW, START_TOLERANCE
from airflow_worker_insight.domain.names import is_named_local, is_same_host, short_host
from airflow_worker_insight.domain.states import WorkerState
from airflow_worker_insight.registry.observations import WorkerObservation
from airflow_worker_insight.store.workers.names import hostname_may_differ_from_source

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable
    from datetime import datetime

    from airflow_worker_insight.domain.workers import WorkerInstance


@dataclass(slots=True)
class Matches:
    """The pairs of observations and instances."""

    pairs: list[tuple[WorkerObservation, WorkerInstance]] = field(default_factory=list)
    unmatched: list[WorkerObservation] = field(default_factory=list)
    duplicates: list[tuple[WorkerInstance, WorkerInstance]] = field(default_factory=list)
    """An instance that its source knows, with a duplicate row that only reports name."""


def match(observations: Iterable[WorkerObservation], instances: Iterable[WorkerInstance]) -> Matches:
    """Pair observations with instances, each at most once, preferring the latest instance.

    Pairs with the same start come first: two workers with one name, in two containers with the same process IDs, each
    keep their instance. Instances that only reports name come last, and only where process and host agree, because any
    task can have made them up.
    """
    by_key: dict[Hashable, list[WorkerInstance]] = defaultdict(list)
    for instance in instances:
        by_key[_key(instance)].append(instance)
        by_key[instance.ref].append(instance)
    matches = Matches()
    taken: set[int] = set()
    unmatched = _without_repeats(observations)
    hosts = _Hosts(unmatched, (instance for same_key in by_key.values() for instance in same_key))
    for is_same in (_started_together, _is_known_instance, hosts.agree):
        remaining = []
        for observation in unmatched:
            candidates = [
                candidate
                for candidate in by_key[_key(observation)]
                if candidate.ref not in taken and is_same(observation, candidate)
            ]
            if not candidates:
                remaining.append(observation)
                continue
            instance = max(
                candidates, key=lambda candidate: (candidate.ended_at is None, candidate.is_reported, candidate.ref)
            )
            taken.add(instance.ref)
            matches.pairs.append((observation, instance))
        unmatched = remaining
    matches.unmatched = unmatched
    for observation, instance in matches.pairs:
        if observation.is_partial or observation.ref is not None or not instance.is_known_to_source:
            continue
        for duplicate in by_key[_key(observation)]:
            if (
                duplicate.ref not in taken
                and _was_reported_during(observation, duplicate)
                and hosts.agree(observation, duplicate, instance)
            ):
                matches.duplicates.append((instance, duplicate))
                taken.add(duplicate.ref)
    return matches


class _Hosts:
    """The hostnames that sources know, to find that a reported instance is elsewhere."""

    def __init__(self, observations: Iterable[WorkerObservation], instances: Iterable[WorkerInstance]) -> None:
        self._source_hosts = {short_host(observation.hostname) for observation in observations}
        self._source_hosts |= {short_host(instance.hostname) for instance in instances if instance.is_known_to_source}

    def agree(
        self, observation: WorkerObservation, reported: WorkerInstance, known: WorkerInstance | None = None
    ) -> bool:
        """Return whether an instance that only reports name is the observed worker.

        Airflow may name hosts differently from the source. Such a name stands for the observed host, unless it is
        another host's or a report has named this worker's host already.

        :param known: the instance that the observation is paired with already
        """
        if reported.is_known_to_source or reported.ended_at is not None or observation.is_partial:
            return False
        if observation.kind == "celery" and (observation.pid is None or reported.pid is None):
            return False
        if not is_same_instance(observation, reported):
            return False
        hostnames = [observation.hostname, *([known.hostname] if known is not None else [])]
        if any(is_same_host(reported.hostname, hostname) for hostname in hostnames):
            return True
        has_reported_host = known is not None and known.is_reported
        return (
            not has_reported_host
            and hostname_may_differ_from_source(reported.hostname)
            and short_host(reported.hostname) not in self._source_hosts
        )


def _is_known_instance(observation: WorkerObservation, instance: WorkerInstance) -> bool:
    return (observation.ref is not None or instance.is_known_to_source) and is_same_instance(observation, instance)


def _was_reported_during(observation: WorkerObservation, instance: WorkerInstance) -> bool:
    """Return whether an instance was first reported while the observed process ran.

    Otherwise it is the process before.
    """
    return observation.started_at is None or instance.registered_at >= observation.started_at - START_TOLERANCE


def _without_repeats(observations: Iterable[WorkerObservation]) -> list[WorkerObservation]:
    """Drop a process's repeated answers: a second one would look like another process."""
    starts: dict[Hashable, list[datetime | None]] = defaultdict(list)
    unique = []
    for observation in observations:
        earlier_starts = starts[_key(observation), observation.pid, observation.job_id]
        if not observation.is_partial and any(_is_near(start, observation.started_at) for start in earlier_starts):
            continue
        earlier_starts.append(observation.started_at)
        unique.append(observation)
    return unique


def _is_near(first: datetime | None, second: datetime | None) -> bool:
    return first is second if first is None or second is None else abs(first - second) <= START_TOLERANCE


def _key(worker: WorkerObservation | WorkerInstance) -> Hashable:
    """Return what an observation and its candidate instances have in common."""
    if isinstance(worker, WorkerObservation) and worker.ref is not None:
        return worker.ref
    # A scheduler is known by its job, or by its host where a worker does not know its job.
    is_by_host = worker.kind == "local" and not is_named_local(worker.kind, worker.engine_name)
    return (worker.kind, "on", worker.hostname) if is_by_host else (worker.kind, worker.engine_name)


def _started_together(observation: WorkerObservation, instance: WorkerInstance) -> bool:
    """Return whether the match is certain: the source gave the instance the same start before."""
    is_known = observation.started_at is not None and _is_known_instance(observation, instance)
    return is_known and _is_near(observation.started_at, instance.engine_started_at)


def is_same_instance(observation: WorkerObservation, instance: WorkerInstance) -> bool:
    """Return whether an observation may be of an instance with the same name."""
    if observation.ref is not None:
        return observation.ref == instance.ref
    if observation.kind == "local":
        # A job is one instance of a scheduler. A worker that does not know its job is matched by the scheduler's host.
        return instance.job_id == observation.job_id if instance.job_id is not None else instance.ended_at is None
    if observation.kind == "edge":
        return _is_same_edge_worker(observation, instance)
    if observation.pid is not None and instance.pid is not None and observation.pid != instance.pid:
        return False
    return not _started_later(observation, instance)


def _is_same_edge_worker(observation: WorkerObservation, instance: WorkerInstance) -> bool:
    if instance.state == WorkerState.OFFLINE:
        # It shut down gracefully, so the process with its name is another.
        return False
    if observation.started_at is None or instance.engine_started_at is None:
        return True
    return _is_near(observation.started_at, instance.engine_started_at)


def _started_later(observation: WorkerObservation, instance: WorkerInstance) -> bool:
    """Return whether a process with a known name and ID is a later one.

    A later process started after the known one was last seen. The start is computed from the worker's uptime: when the
    worker's clock is set, the start moves, but never to a time after the worker was seen.
    """
    if observation.started_at is None:
        return False
    if instance.engine_started_at is None:
        # Only its own processes have reported it, at a time by a clock that may be wrong.
        return instance.registered_at < observation.started_at - CLOCK_SKEW
    if observation.started_at <= instance.engine_started_at + START_TOLERANCE:
        return False
    return (
        instance.engine_heartbeat_at is None or observation.started_at >= instance.engine_heartbeat_at - START_TOLERANCE
    )
