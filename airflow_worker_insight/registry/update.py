"""Write what one look says: match it with the lives that are known, judge each, and write what has changed."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_worker_insight.domain.clock import SAME_START
from airflow_worker_insight.domain.states import CELERY, JOBS, LOST, OFFLINE, ONLINE, TRIES
from airflow_worker_insight.domain.workers import NewWorkerInstance
from airflow_worker_insight.registry.liveness import (
    NOT_CONFIGURED,
    Evidence,
    first_verdict,
    is_told_only,
    judge,
    judge_by_tries,
    last_seen,
)
from airflow_worker_insight.registry.matching import Matches, match
from airflow_worker_insight.store import leases
from airflow_worker_insight.store.attempts import running as attempts_running
from airflow_worker_insight.store.workers import instances as store
from airflow_worker_insight.store.workers.instances import FORGOTTEN_AFTER

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.workers import WorkerInstance
    from airflow_worker_insight.registry.liveness import Reached, Timeouts, Verdict
    from airflow_worker_insight.registry.observations import PollResult, WorkerObservation
    from airflow_worker_insight.store.attempts.running import RunningTries

MAX_NEW = 5_000
"""Workers that one look makes known; more would be somebody's play with the broker."""


@dataclass(frozen=True, slots=True)
class Written:
    """What was written."""

    states: Mapping[str | None, int]
    """How many of the workers that the look was about are in which state now."""
    registered: int
    """Workers that nobody knew before."""
    changes: int
    """Workers that came into another state."""


def write_look(
    connection: Connection,
    name: str,
    look: PollResult,
    *,
    known: Collection[int],
    reached: Reached,
    timeouts: Timeouts,
    now: datetime,
) -> Written:
    """Write what an engine said. The caller owns the transaction, and lets nobody else write the same engine's.

    :param name: the engine's
    :param known: the lives (by row ID) that had not ended before the look: it says nothing of what came since
    :param now: by the database's clock
    """
    return _Writing(connection, name, look, reached, timeouts, now).write(known)


def end_forgotten(connection: Connection, name: str, *, timeouts: Timeouts, now: datetime) -> int:
    """End the lives of an engine that no executor is of any more, once they and it are silent; return how many.

    Nothing tells what became of these workers, and nobody will look. An engine that somebody did look at is not looked
    at any more. One that nobody ever looked at, as on 2.11, may still be run by somebody who is configured in another
    way: there its workers end once none of them has run a try for long. One that runs one again comes back, and if the
    engine does, so do all that live.
    """
    engine = leases.find_engine(connection, name)
    looked_at = None if engine is None else engine.looked_at
    if looked_at is not None and now - looked_at <= timeouts.lost:
        return 0
    back = store.seen_after_their_end(connection, name, NOT_CONFIGURED)
    store.write_lives(connection, {ref: {"state": ONLINE, "state_reason": None, "ended_at": None} for ref in back})
    store.add_changes(connection, [(ref, ONLINE, None) for ref in back], now=now)
    lives = store.open_lives(connection, name)
    if looked_at is None:
        silence = max(timeouts.lost, FORGOTTEN_AFTER)
        silent = lives if all(now - last_seen(one, now) > silence for one in lives) else []
    else:
        silent = [one for one in lives if now - last_seen(one, now) > timeouts.lost]
    if not silent:
        return 0
    running = attempts_running.running_tries(connection).counts
    ended = {
        one.ref: {"state": OFFLINE, "state_reason": NOT_CONFIGURED, "ended_at": last_seen(one, now), "running": 0}
        for one in silent
        if one.ref not in running
    }
    store.write_lives(connection, ended)
    store.add_changes(connection, [(ref, OFFLINE, NOT_CONFIGURED) for ref in ended], now=now)
    return len(ended)


class _Bearer(NamedTuple):
    """Who bears a name now."""

    ref: int | None
    started_at: datetime


class _Writing:
    def __init__(
        self, connection: Connection, name: str, look: PollResult, reached: Reached, timeouts: Timeouts, now: datetime
    ) -> None:
        self.connection = connection
        self.name = name
        self.look = look
        self.reached = reached
        self.timeouts = timeouts
        self.now = now
        self.values: dict[int, dict[str, Any]] = defaultdict(dict)
        self.history: list[tuple[int, str | None, str | None]] = []
        self.changes = 0
        self.states: Counter[str | None] = Counter()

    def write(self, known: Collection[int]) -> Written:
        running = attempts_running.running_tries(self.connection)
        lives = store.open_lives(self.connection, self.name)
        if self.name == TRIES:
            seen = {sighting.ref for sighting in self.look.sightings if sighting.ref is not None}
            open_refs = {life.ref for life in lives}
            lives += [one for one in store.lives_by_ref(self.connection, self.name, seen) if one.ref not in open_refs]
        matches = self._match(lives)
        for life, twin in matches.twins:
            store.merge(self.connection, life.ref, twin.ref, now=self.now)
        if matches.twins:
            running = attempts_running.running_tries(self.connection)
        gone = {twin.ref for _, twin in matches.twins}
        sighted = {life.ref: (sighting, life) for sighting, life in matches.pairs}
        revived = [life for _, life in matches.pairs if life.ended_at is not None and life not in lives]
        for ref, values in store.adopted(self.connection, self._adopted(matches)).items():
            self.values[ref].update(values)
        new = self._new(matches.unmatched)
        bearers = self._bearers(matches, new)
        for life in (*lives, *revived):
            if life.ref in gone or (life.ref not in known and life.ref not in sighted):
                continue
            sighting = sighted[life.ref][0] if life.ref in sighted else None
            self._judge(life, sighting, running, bearers)
        store.write_lives(self.connection, self.values)
        store.register(self.connection, new, now=self.now)
        self.states.update(one.state for one in new)
        store.add_changes(self.connection, self.history, now=self.now)
        return Written(dict(self.states), len(new), self.changes)

    def _match(self, lives: Sequence[WorkerInstance]) -> Matches:
        """Pair the sightings with lives; with one that has ended only where none else fits."""
        matches = match(self.look.sightings, lives)
        came_back = [one for one in matches.unmatched if not (one.has_left or one.is_partial)]
        names: dict[str, set[str]] = defaultdict(set)
        for sighting in came_back:
            names[sighting.kind].add(sighting.engine_name)
        ended = [
            life for kind, called in names.items() for life in store.latest_ended_lives(self.connection, kind, called)
        ]
        if ended:
            again = match(came_back, ended)
            matches.pairs += again.pairs
            came_back = again.unmatched
        matches.unmatched = came_back
        return matches

    def _adopted(self, matches: Matches) -> dict[int, NewWorkerInstance]:
        """Return what the engine tells of the workers that only reports told of until now."""
        return {
            life.ref: _new_life(sighting)
            for sighting, life in matches.pairs
            if sighting.ref is None and not life.is_known_to_engine
        }

    def _new(self, unmatched: Sequence[WorkerObservation]) -> list[NewWorkerInstance]:
        """Return the workers that nobody knew and that live: of several answers of one process the first."""
        found: dict[Hashable, NewWorkerInstance] = {}
        for sighting in unmatched:
            verdict = first_verdict(sighting, now=self.now, timeouts=self.timeouts)
            if verdict is None or verdict.state is None or sighting.ref is not None or len(found) >= MAX_NEW:
                continue
            new = _new_life(sighting, state=verdict.state, reason=verdict.reason)
            # Two workers under one name and process ID, in two containers, are told apart by the next look.
            found.setdefault((new.kind, new.engine_name, new.pid, new.job_id), new)
        return list(found.values())

    def _bearers(self, matches: Matches, new: Sequence[NewWorkerInstance]) -> dict[str, list[_Bearer]]:
        """Return the lives that bear each name now; one that is not written yet is later than all others."""
        bearers: dict[str, list[_Bearer]] = defaultdict(list)
        for sighting, life in matches.pairs:
            if not sighting.has_left and not sighting.is_partial:
                started_at = sighting.started_at or life.engine_started_at or life.registered_at
                bearers[sighting.engine_name].append(_Bearer(life.ref, started_at))
        for one in new:
            bearers[one.engine_name].append(_Bearer(None, one.started_at or self.now))
        return bearers

    def _judge(
        self,
        life: WorkerInstance,
        sighting: WorkerObservation | None,
        running: RunningTries,
        bearers: Mapping[str, Sequence[_Bearer]],
    ) -> None:
        runs = running.counts.get(life.ref, 0)
        evidence = Evidence(
            sighting=sighting,
            lost_mailbox=self._lost_mailbox(life),
            is_replaced=sighting is None and self._is_replaced(life, bearers),
            running=runs,
        )
        say = judge_by_tries if self.name == TRIES else judge
        verdict = say(life, evidence, self.reached, now=self.now, timeouts=self.timeouts)
        values = self.values[life.ref]
        if sighting is not None:
            values.update(_facts(life, sighting))
        if verdict is not None:
            self._settle(life, verdict, values)
        elif life.ended_at is None and last_seen(life, self.now) != life.last_seen_at:
            # It was written by a clock that is ahead, and would keep silence from counting.
            values["last_seen_at"] = self.now
        ended_at = life.ended_at if verdict is None else verdict.ended_at
        if (0 if ended_at else runs) != life.running:
            values["running"] = 0 if ended_at else runs
        if life.ended_at is None or verdict is not None:
            self.states[life.state if verdict is None else verdict.state] += 1

    def _settle(self, life: WorkerInstance, verdict: Verdict, values: dict[str, Any]) -> None:
        """Note what a verdict changes in a life's row, and in its history."""
        if verdict.seen:
            values["last_seen_at"] = self.now
        if verdict.reason != life.state_reason:
            values["state_reason"] = verdict.reason
        if verdict.ended_at != life.ended_at:
            values["ended_at"] = verdict.ended_at
        if verdict.state == life.state:
            return
        values["state"] = verdict.state
        self.changes += 1
        if self._is_news(life, verdict):
            self.history.append((life.ref, verdict.state, verdict.reason))

    def _is_news(self, life: WorkerInstance, verdict: Verdict) -> bool:
        """Tell whether a change is kept: not what the history of the worker's tries says as well."""
        states = {life.state, verdict.state}
        if is_told_only(life):
            return False
        if self.name != TRIES or LOST in states:
            return True
        # A pod lives for one try. Any other worker of which only its tries tell is online as long as it runs one.
        return life.kind != "kubernetes" and not states <= {ONLINE, None}

    def _lost_mailbox(self, life: WorkerInstance) -> bool:
        return self.look.mailboxes is not None and life.engine_name not in self.look.mailboxes

    def _is_replaced(self, life: WorkerInstance, bearers: Mapping[str, Sequence[_Bearer]]) -> bool:
        """Tell whether a later life bears this one's name.

        Of Celery two workers may bear one at the same time, and one that did not answer is not replaced by the other: a
        life that replaces it has started after its last answer. Of Edge no two have the same name.
        """
        if life.engine_name is None or self.name in (TRIES, JOBS):
            return False
        later = [one for one in bearers.get(life.engine_name, ()) if one.ref is None or one.ref > life.ref]
        if self.name != CELERY:
            return bool(later)
        answered = life.engine_heartbeat_at or last_seen(life, self.now)
        return any(one.started_at >= answered - SAME_START for one in later)


def _new_life(sighting: WorkerObservation, *, state: str = ONLINE, reason: str | None = None) -> NewWorkerInstance:
    return NewWorkerInstance(
        kind=sighting.kind,
        engine_name=sighting.engine_name,
        hostname=sighting.hostname,
        state=state,
        state_reason=reason,
        pid=sighting.pid,
        job_id=sighting.job_id,
        started_at=sighting.started_at,
        heartbeat_at=sighting.heartbeat_at,
        queues=sighting.queues,
        concurrency=sighting.concurrency,
        resources=sighting.resources,
        versions=sighting.versions,
    )


def _facts(life: WorkerInstance, sighting: WorkerObservation) -> dict[str, Any]:
    """Return the columns that an engine's sighting changes."""
    facts: dict[str, Any] = {}
    if sighting.heartbeat_at is not None and sighting.heartbeat_at != life.engine_heartbeat_at:
        facts["engine_heartbeat_at"] = sighting.heartbeat_at
    if life.engine_started_at is None and sighting.started_at is not None:
        facts["engine_started_at"] = sighting.started_at
    if life.job_id is None and sighting.job_id is not None:
        facts["job_id"] = sighting.job_id
    if sighting.queues is not None and sighting.queues != life.queues:
        facts["queues"] = list(sighting.queues)
    if sighting.concurrency is not None and sighting.concurrency != life.concurrency:
        facts["concurrency"] = sighting.concurrency
    return facts
