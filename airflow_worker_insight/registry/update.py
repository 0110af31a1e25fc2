"""Write a poll's result: match it with the known worker instances and save what changed."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_worker_insight.domain.clock import START_TOLERANCE
from airflow_worker_insight.domain.states import SourceName, WorkerState
from airflow_worker_insight.domain.workers import NewWorkerInstance
from airflow_worker_insight.registry.liveness import (
    NOT_CONFIGURED,
    Evidence,
    is_report_only,
    judge,
    judge_by_tries,
    judge_new,
    last_seen,
)
from airflow_worker_insight.registry.matching import Matches, match
from airflow_worker_insight.store import leases
from airflow_worker_insight.store.attempts import running as attempts_running
from airflow_worker_insight.store.workers import instances as store
from airflow_worker_insight.store.workers.instances import ABANDONED_AFTER

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.workers import WorkerInstance
    from airflow_worker_insight.registry.liveness import Judgement, Reachability, Timeouts
    from airflow_worker_insight.registry.observations import PollResult, WorkerObservation
    from airflow_worker_insight.store.attempts.running import RunningTries

MAX_NEW = 5_000
"""Maximum number of workers that one poll registers.

More must have been made up by someone with access to the broker.
"""


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What a poll's result changed."""

    states: Mapping[str | None, int]
    """How many of the polled workers are in which state now."""
    registered: int
    """Number of workers that were unknown before."""
    changes: int
    """Number of workers whose state changed."""


def write_result(
    connection: Connection,
    source_name: str,
    result: PollResult,
    *,
    known: Collection[int],
    reachability: Reachability,
    timeouts: Timeouts,
    now: datetime,
) -> WriteResult:
    """Write the result of polling a source.

    The caller owns the transaction and keeps others from writing the same source's results.

    :param source_name: the source's name
    :param known: row IDs of the instances that were open before the poll: it says nothing about later ones
    :param now: by the database's clock
    """
    return _ResultWriter(connection, source_name, result, reachability, timeouts, now).write(known)


def end_forgotten(connection: Connection, name: str, *, timeouts: Timeouts, now: datetime) -> int:
    """End the silent instances of a source without a configured executor; return how many.

    No later poll can tell what became of these workers, so they end once they are silent. A source that has been polled
    must have gone without a poll for as long, which means that no process has it configured. A source that was never
    polled, as on 2.11, may still run under a process with another configuration: its workers end once none of them has
    run a try for long. A worker that runs a try again comes back; if its source is polled again, so do all live ones.
    """
    source = leases.find_source(connection, name)
    polled_at = None if source is None else source.polled_at
    if polled_at is not None and now - polled_at <= timeouts.lost:
        return 0
    revived_refs = store.refs_seen_after_end(connection, name, NOT_CONFIGURED)
    store.update_instances(
        connection, {ref: {"state": WorkerState.ONLINE, "state_reason": None, "ended_at": None} for ref in revived_refs}
    )
    store.add_changes(connection, [(ref, WorkerState.ONLINE, None) for ref in revived_refs], now=now)
    instances = store.open_instances(connection, name)
    if polled_at is None:
        silence = max(timeouts.lost, ABANDONED_AFTER)
        silent = instances if all(now - last_seen(instance, now) > silence for instance in instances) else []
    else:
        silent = [instance for instance in instances if now - last_seen(instance, now) > timeouts.lost]
    if not silent:
        return 0
    running = attempts_running.running_tries(connection).counts
    ended = {
        instance.ref: {
            "state": WorkerState.OFFLINE,
            "state_reason": NOT_CONFIGURED,
            "ended_at": last_seen(instance, now),
            "running": 0,
        }
        for instance in silent
        if instance.ref not in running
    }
    store.update_instances(connection, ended)
    store.add_changes(connection, [(ref, WorkerState.OFFLINE, NOT_CONFIGURED) for ref in ended], now=now)
    return len(ended)


class _NamedInstance(NamedTuple):
    """A worker instance that has a name now."""

    ref: int | None
    started_at: datetime


class _ResultWriter:
    def __init__(
        self,
        connection: Connection,
        name: str,
        result: PollResult,
        reachability: Reachability,
        timeouts: Timeouts,
        now: datetime,
    ) -> None:
        self.connection = connection
        self.name = name
        self.result = result
        self.reachability = reachability
        self.timeouts = timeouts
        self.now = now
        self.values: dict[int, dict[str, Any]] = defaultdict(dict)
        self.history: list[tuple[int, str | None, str | None]] = []
        self.changes = 0
        self.states: Counter[str | None] = Counter()

    def write(self, known: Collection[int]) -> WriteResult:
        running = attempts_running.running_tries(self.connection)
        instances = store.open_instances(self.connection, self.name)
        if self.name == SourceName.TRIES:
            seen = {observation.ref for observation in self.result.observations if observation.ref is not None}
            open_refs = {instance.ref for instance in instances}
            instances += [
                candidate
                for candidate in store.instances_by_ref(self.connection, self.name, seen)
                if candidate.ref not in open_refs
            ]
        matches = self._match(instances)
        for instance, duplicate in matches.duplicates:
            store.merge(self.connection, instance.ref, duplicate.ref, now=self.now)
        if matches.duplicates:
            running = attempts_running.running_tries(self.connection)
        gone = {duplicate.ref for _, duplicate in matches.duplicates}
        observed = {instance.ref: (observation, instance) for observation, instance in matches.pairs}
        revived = [
            instance for _, instance in matches.pairs if instance.ended_at is not None and instance not in instances
        ]
        for ref, values in store.updates_for_confirmed(self.connection, self._newly_adopted(matches)).items():
            self.values[ref].update(values)
        new_instances = self._new_instances(matches.unmatched)
        by_name = self._instances_by_name(matches, new_instances)
        for instance in (*instances, *revived):
            if instance.ref in gone or (instance.ref not in known and instance.ref not in observed):
                continue
            observation = observed[instance.ref][0] if instance.ref in observed else None
            self._judge(instance, observation, running, by_name)
        store.update_instances(self.connection, self.values)
        store.register(self.connection, new_instances, now=self.now)
        self.states.update(candidate.state for candidate in new_instances)
        store.add_changes(self.connection, self.history, now=self.now)
        return WriteResult(dict(self.states), len(new_instances), self.changes)

    def _match(self, instances: Sequence[WorkerInstance]) -> Matches:
        """Pair observations with instances; with an ended one only where no other fits."""
        matches = match(self.result.observations, instances)
        came_back = [candidate for candidate in matches.unmatched if not (candidate.has_left or candidate.is_partial)]
        names: dict[str, set[str]] = defaultdict(set)
        for observation in came_back:
            names[observation.kind].add(observation.engine_name)
        ended = [
            instance
            for kind, names_of_kind in names.items()
            for instance in store.latest_ended_instances(self.connection, kind, names_of_kind)
        ]
        if ended:
            again = match(came_back, ended)
            matches.pairs += again.pairs
            came_back = again.unmatched
        matches.unmatched = came_back
        return matches

    def _newly_adopted(self, matches: Matches) -> dict[int, NewWorkerInstance]:
        """Return what the source knows of workers that only reports named until now."""
        return {
            instance.ref: _new_instance(observation)
            for observation, instance in matches.pairs
            if observation.ref is None and not instance.is_known_to_source
        }

    def _new_instances(self, unmatched: Sequence[WorkerObservation]) -> list[NewWorkerInstance]:
        """Return the live workers that were unknown; of a process's several answers, the first."""
        new_instances: dict[Hashable, NewWorkerInstance] = {}
        for observation in unmatched:
            judgement = judge_new(observation, now=self.now, timeouts=self.timeouts)
            if (
                judgement is None
                or judgement.state is None
                or observation.ref is not None
                or len(new_instances) >= MAX_NEW
            ):
                continue
            instance = _new_instance(observation, state=judgement.state, reason=judgement.reason)
            # The next poll tells apart two workers with the same name and process ID, as in two containers.
            new_instances.setdefault((instance.kind, instance.engine_name, instance.pid, instance.job_id), instance)
        return list(new_instances.values())

    def _instances_by_name(
        self, matches: Matches, new_instances: Sequence[NewWorkerInstance]
    ) -> dict[str, list[_NamedInstance]]:
        """Return the instances that have each name now; one without a row yet is the latest."""
        by_name: dict[str, list[_NamedInstance]] = defaultdict(list)
        for observation, instance in matches.pairs:
            if not observation.has_left and not observation.is_partial:
                started_at = observation.started_at or instance.engine_started_at or instance.registered_at
                by_name[observation.engine_name].append(_NamedInstance(instance.ref, started_at))
        for candidate in new_instances:
            by_name[candidate.engine_name].append(_NamedInstance(None, candidate.started_at or self.now))
        return by_name

    def _judge(
        self,
        instance: WorkerInstance,
        observation: WorkerObservation | None,
        running: RunningTries,
        by_name: Mapping[str, Sequence[_NamedInstance]],
    ) -> None:
        runs = running.counts.get(instance.ref, 0)
        evidence = Evidence(
            observation=observation,
            lost_mailbox=self._lost_mailbox(instance),
            is_replaced=observation is None and self._is_replaced(instance, by_name),
            running=runs,
        )
        decide = judge_by_tries if self.name == SourceName.TRIES else judge
        judgement = decide(instance, evidence, self.reachability, now=self.now, timeouts=self.timeouts)
        values = self.values[instance.ref]
        if observation is not None:
            values.update(_changed_columns(instance, observation))
        if judgement is not None:
            self._apply(instance, judgement, values)
        elif instance.ended_at is None and last_seen(instance, self.now) != instance.last_seen_at:
            # A clock that is ahead wrote it, so silence would not count.
            values["last_seen_at"] = self.now
        ended_at = instance.ended_at if judgement is None else judgement.ended_at
        if (0 if ended_at else runs) != instance.running:
            values["running"] = 0 if ended_at else runs
        if instance.ended_at is None or judgement is not None:
            self.states[instance.state if judgement is None else judgement.state] += 1

    def _apply(self, instance: WorkerInstance, judgement: Judgement, values: dict[str, Any]) -> None:
        """Note what a judgement changes in an instance's row and its history."""
        if judgement.seen:
            values["last_seen_at"] = self.now
        if judgement.reason != instance.state_reason:
            values["state_reason"] = judgement.reason
        if judgement.ended_at != instance.ended_at:
            values["ended_at"] = judgement.ended_at
        if judgement.state == instance.state:
            return
        values["state"] = judgement.state
        self.changes += 1
        if self._belongs_in_history(instance, judgement):
            self.history.append((instance.ref, judgement.state, judgement.reason))

    def _belongs_in_history(self, instance: WorkerInstance, judgement: Judgement) -> bool:
        """Return whether to keep a change that the history of the worker's tries does not show."""
        states = {instance.state, judgement.state}
        if is_report_only(instance):
            return False
        if self.name != SourceName.TRIES or WorkerState.LOST in states:
            return True
        # A pod lives for one try. Any other worker known only by its tries is online while it runs one.
        return instance.kind != "kubernetes" and not states <= {WorkerState.ONLINE, None}

    def _lost_mailbox(self, instance: WorkerInstance) -> bool:
        return self.result.mailboxes is not None and instance.engine_name not in self.result.mailboxes

    def _is_replaced(self, instance: WorkerInstance, by_name: Mapping[str, Sequence[_NamedInstance]]) -> bool:
        """Return whether a later instance has this one's name.

        Two Celery workers may share a name, so a worker that did not answer is not replaced by the other: an instance
        that replaces it has started after its last answer. Edge workers' names are unique.
        """
        if instance.engine_name is None or self.name in (SourceName.TRIES, SourceName.JOBS):
            return False
        later = [
            named for named in by_name.get(instance.engine_name, ()) if named.ref is None or named.ref > instance.ref
        ]
        if self.name != SourceName.CELERY:
            return bool(later)
        answered = instance.engine_heartbeat_at or last_seen(instance, self.now)
        return any(named.started_at >= answered - START_TOLERANCE for named in later)


def _new_instance(
    observation: WorkerObservation, *, state: str = WorkerState.ONLINE, reason: str | None = None
) -> NewWorkerInstance:
    return NewWorkerInstance(
        kind=observation.kind,
        engine_name=observation.engine_name,
        hostname=observation.hostname,
        state=state,
        state_reason=reason,
        pid=observation.pid,
        job_id=observation.job_id,
        started_at=observation.started_at,
        heartbeat_at=observation.heartbeat_at,
        queues=observation.queues,
        concurrency=observation.concurrency,
        resources=observation.resources,
        versions=observation.versions,
    )


def _changed_columns(instance: WorkerInstance, observation: WorkerObservation) -> dict[str, Any]:
    """Return the columns that a source's observation changes."""
    columns: dict[str, Any] = {}
    if observation.heartbeat_at is not None and observation.heartbeat_at != instance.engine_heartbeat_at:
        columns["engine_heartbeat_at"] = observation.heartbeat_at
    if instance.engine_started_at is None and observation.started_at is not None:
        columns["engine_started_at"] = observation.started_at
    if instance.job_id is None and observation.job_id is not None:
        columns["job_id"] = observation.job_id
    if observation.queues is not None and observation.queues != instance.queues:
        columns["queues"] = list(observation.queues)
    if observation.concurrency is not None and observation.concurrency != instance.concurrency:
        columns["concurrency"] = observation.concurrency
    return columns
