"""Find the life that a sighting is of: pure functions, no I/O.

A worker is known by its engine and by what its own task processes report, and either may come first. What both know is
the engine's name of it and its process; when it started tells a new life from the one before where both have the same
process ID, as in containers.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_worker_insight.fleet.sighting import Sighting
from airflow_worker_insight.identity.engines import is_named_local
from airflow_worker_insight.store.recording import OFFLINE, SAME_START

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable
    from datetime import datetime

    from airflow_worker_insight.store.lives import Life

SKEW = timedelta(minutes=15)
"""How far the clocks of hosts may be apart."""


@dataclass(slots=True)
class Matches:
    """Which sighting is of which life."""

    pairs: list[tuple[Sighting, Life]] = field(default_factory=list)
    unmatched: list[Sighting] = field(default_factory=list)
    twins: list[tuple[Life, Life]] = field(default_factory=list)
    """A life and a second row of it: the engine and the worker itself told of it at the same time."""


def match(sightings: Iterable[Sighting], lives: Iterable[Life]) -> Matches:
    """Pair sightings with lives, each at most once; of the lives that one may be of, the latest.

    Those that started together are paired first: of two workers under one name, in two containers with the same
    process IDs, each is to keep its own life.
    """
    by_key: dict[Hashable, list[Life]] = defaultdict(list)
    for life in lives:
        by_key[_key(life)].append(life)
        by_key[life.ref].append(life)
    found = Matches()
    taken: set[int] = set()
    waiting = _each_once(sightings)
    for is_same in (_started_together, is_same_life):
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
    for index, (sighting, life) in enumerate(found.pairs):
        others = [] if sighting.is_partial else _others(sighting, by_key[_key(sighting)], taken)
        if life.is_reported:
            twins = [other for other in others if not other.is_reported]
            found.twins += [(life, twin) for twin in twins]
            taken.update(twin.ref for twin in twins)
        elif reported := [other for other in others if other.is_reported]:
            # Tries may name the one that its own processes told of.
            found.pairs[index] = (sighting, reported[-1])
            found.twins.append((reported[-1], life))
            taken.add(reported[-1].ref)
    return found


def _others(sighting: Sighting, lives: Iterable[Life], taken: set[int]) -> list[Life]:
    """Return the other lives, in the order of their rows, that a sighting may be of as well."""
    return [life for life in lives if life.ref not in taken and life.ended_at is None and is_same_life(sighting, life)]


def _each_once(sightings: Iterable[Sighting]) -> list[Sighting]:
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


def _key(one: Sighting | Life) -> Hashable:
    """Return what a sighting and the lives that it may be of have in common."""
    if isinstance(one, Sighting) and one.ref is not None:
        return one.ref
    # A scheduler is known by its job, and where a worker does not know its job by their host.
    is_by_host = one.kind == "local" and not is_named_local(one.kind, one.engine_name)
    return (one.kind, "on", one.hostname) if is_by_host else (one.kind, one.engine_name)


def _started_together(sighting: Sighting, life: Life) -> bool:
    """Tell a life that is certain: its engine gave it the same start before."""
    is_known = sighting.started_at is not None and is_same_life(sighting, life)
    return is_known and _is_near(sighting.started_at, life.engine_started_at)


def is_same_life(sighting: Sighting, life: Life) -> bool:
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


def _is_same_edge_worker(sighting: Sighting, life: Life) -> bool:
    if life.state == OFFLINE:
        # It has left in order, so its process is gone: who bears its name now is another.
        return False
    if sighting.started_at is None or life.engine_started_at is None:
        return True
    return _is_near(sighting.started_at, life.engine_started_at)


def _began_later(sighting: Sighting, life: Life) -> bool:
    """Tell whether a process with a known name and ID is a later one: it started after the known one had been seen.

    The start is worked out from how long the worker says that it runs. A worker whose clock is set anew seems to start
    at another time, but never after it was seen.
    """
    if sighting.started_at is None:
        return False
    if life.engine_started_at is None:
        # Only its own processes have told of it, and when that was is by a clock that may be wrong.
        return life.registered_at < sighting.started_at - SKEW
    if sighting.started_at <= life.engine_started_at + SAME_START:
        return False
    return life.engine_heartbeat_at is None or sighting.started_at >= life.engine_heartbeat_at - SAME_START
