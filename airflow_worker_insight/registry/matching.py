"""Find the life that a sighting is of: pure functions, no I/O.

A worker is known by its engine and by what its own task processes report, and either may come first. What both know is
the engine's name of it and its process; when it started tells a new life from the one before where both have the same
process ID, as in containers.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.clock import CLOCK_SKEW, SAME_START
from airflow_worker_insight.domain.names import are_one_host, is_named_local, short_host
from airflow_worker_insight.domain.states import OFFLINE
from airflow_worker_insight.registry.observations import WorkerObservation
from airflow_worker_insight.store.workers.names import may_be_unlike_the_engines

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable
    from datetime import datetime

    from airflow_worker_insight.domain.workers import WorkerInstance


@dataclass(slots=True)
class Matches:
    """Which sighting is of which life."""

    pairs: list[tuple[WorkerObservation, WorkerInstance]] = field(default_factory=list)
    unmatched: list[WorkerObservation] = field(default_factory=list)
    twins: list[tuple[WorkerInstance, WorkerInstance]] = field(default_factory=list)
    """A life that its engine knows, and a second row of it that only reports tell of."""


def match(sightings: Iterable[WorkerObservation], lives: Iterable[WorkerInstance]) -> Matches:
    """Pair sightings with lives, each at most once; of the lives that one may be of, the latest.

    Those that started together are paired first: of two workers under one name, in two containers with the same
    process IDs, each is to keep its own life. A life that only reports tell of comes last, and only where its process
    and its host agree: anybody's task can have made it up.
    """
    by_key: dict[Hashable, list[WorkerInstance]] = defaultdict(list)
    for life in lives:
        by_key[_key(life)].append(life)
        by_key[life.ref].append(life)
    found = Matches()
    taken: set[int] = set()
    waiting = _each_once(sightings)
    hosts = _Hosts(waiting, (life for known in by_key.values() for life in known))
    for is_same in (_started_together, _is_known_life, hosts.agree):
        left = []
        for sighting in waiting:
            possible = [one for one in by_key[_key(sighting)] if one.ref not in taken and is_same(sighting, one)]
            if not possible:
                left.append(sighting)
                continue
            life = max(possible, key=lambda one: (one.ended_at is None, one.is_reported, one.ref))
            taken.add(life.ref)
            found.pairs.append((sighting, life))
        waiting = left
    found.unmatched = waiting
    for sighting, life in found.pairs:
        if sighting.is_partial or sighting.ref is not None or not life.is_known_to_engine:
            continue
        for other in by_key[_key(sighting)]:
            if other.ref not in taken and _came_after(sighting, other) and hosts.agree(sighting, other, life):
                found.twins.append((life, other))
                taken.add(other.ref)
    return found


class _Hosts:
    """The hosts of which engines tell, by which a life that only reports tell of is found to be elsewhere."""

    def __init__(self, sightings: Iterable[WorkerObservation], lives: Iterable[WorkerInstance]) -> None:
        self._known = {short_host(one.hostname) for one in sightings}
        self._known |= {short_host(one.hostname) for one in lives if one.is_known_to_engine}

    def agree(self, sighting: WorkerObservation, told: WorkerInstance, known: WorkerInstance | None = None) -> bool:
        """Tell whether a life that only reports tell of is that of a sighting, of which a life may be known already.

        Airflow may call hosts by names that are unlike the engine's: such a name is that of the sighting's host unless
        it is another's, or a report has told the host already.
        """
        if told.is_known_to_engine or told.ended_at is not None or sighting.is_partial:
            return False
        if sighting.kind == "celery" and (sighting.pid is None or told.pid is None):
            return False
        if not is_same_life(sighting, told):
            return False
        its = [sighting.hostname, *([known.hostname] if known is not None else [])]
        if any(are_one_host(told.hostname, one) for one in its):
            return True
        is_told = known is not None and known.is_reported
        return not is_told and may_be_unlike_the_engines(told.hostname) and short_host(told.hostname) not in self._known


def _is_known_life(sighting: WorkerObservation, life: WorkerInstance) -> bool:
    return (sighting.ref is not None or life.is_known_to_engine) and is_same_life(sighting, life)


def _came_after(sighting: WorkerObservation, life: WorkerInstance) -> bool:
    """Tell whether a life was first told of when the process of a sighting ran: else it is of the process before."""
    return sighting.started_at is None or life.registered_at >= sighting.started_at - SAME_START


def _each_once(sightings: Iterable[WorkerObservation]) -> list[WorkerObservation]:
    """Leave out the answers that a process gave before: a second one would seem to be another process."""
    starts: dict[Hashable, list[datetime | None]] = defaultdict(list)
    found = []
    for sighting in sightings:
        known = starts[_key(sighting), sighting.pid, sighting.job_id]
        if not sighting.is_partial and any(_is_near(start, sighting.started_at) for start in known):
            continue
        known.append(sighting.started_at)
        found.append(sighting)
    return found


def _is_near(one: datetime | None, other: datetime | None) -> bool:
    return one is other if one is None or other is None else abs(one - other) <= SAME_START


def _key(one: WorkerObservation | WorkerInstance) -> Hashable:
    """Return what a sighting and the lives that it may be of have in common."""
    if isinstance(one, WorkerObservation) and one.ref is not None:
        return one.ref
    # A scheduler is known by its job, and where a worker does not know its job by their host.
    is_by_host = one.kind == "local" and not is_named_local(one.kind, one.engine_name)
    return (one.kind, "on", one.hostname) if is_by_host else (one.kind, one.engine_name)


def _started_together(sighting: WorkerObservation, life: WorkerInstance) -> bool:
    """Tell a life that is certain: its engine gave it the same start before."""
    is_known = sighting.started_at is not None and _is_known_life(sighting, life)
    return is_known and _is_near(sighting.started_at, life.engine_started_at)


def is_same_life(sighting: WorkerObservation, life: WorkerInstance) -> bool:
    """Return whether a sighting may be of a life; their names are the same already."""
    if sighting.ref is not None:
        return sighting.ref == life.ref
    if sighting.kind == "local":
        # A job is one life of a scheduler. A worker that does not know its job has the scheduler's host.
        return life.job_id == sighting.job_id if life.job_id is not None else life.ended_at is None
    if sighting.kind == "edge":
        return _is_same_edge_worker(sighting, life)
    if sighting.pid is not None and life.pid is not None and sighting.pid != life.pid:
        return False
    return not _began_later(sighting, life)


def _is_same_edge_worker(sighting: WorkerObservation, life: WorkerInstance) -> bool:
    if life.state == OFFLINE:
        # It has left in order, so its process is gone: who bears its name now is another.
        return False
    if sighting.started_at is None or life.engine_started_at is None:
        return True
    return _is_near(sighting.started_at, life.engine_started_at)


def _began_later(sighting: WorkerObservation, life: WorkerInstance) -> bool:
    """Tell whether a process with a known name and ID is a later one: it started after the known one had been seen.

    The start is worked out from how long the worker says that it runs. A worker whose clock is set anew seems to start
    at another time, but never after it was seen.
    """
    if sighting.started_at is None:
        return False
    if life.engine_started_at is None:
        # Only its own processes have told of it, and when that was is by a clock that may be wrong.
        return life.registered_at < sighting.started_at - CLOCK_SKEW
    if sighting.started_at <= life.engine_started_at + SAME_START:
        return False
    return life.engine_heartbeat_at is None or sighting.started_at >= life.engine_heartbeat_at - SAME_START
