"""Automatic quarantine: which workers to take out, which to probe or release, and why not others.

It is pure. What was done before is read from the histories of the findings, so it goes on after a restart. A
quarantined worker gets no tries that could show that it is well again: so it is probed, which is released for a short
time, at pauses that double each time.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.findings import FindingAction, FindingOutcome, SubjectKind
from airflow_worker_insight.domain.states import WorkerAvailability, WorkerState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from airflow_worker_insight.domain.findings import FindingEvent
    from airflow_worker_insight.domain.workers import WorkerRow
    from airflow_worker_insight.insight.findings import Finding

EVIDENCE = 10
"""How many times as much evidence a quarantine needs as a finding: 20K/α, with K units tested."""

EXCESS = 0.20
"""Least share of its tries by which a worker must fail or lose more than its peers would."""

ONE_IN = 10
"""One worker in so many of a queue may be out, and always one."""

FIRST_PAUSE, LONGEST_PAUSE = timedelta(minutes=30), timedelta(hours=24)
"""Pauses before the first probe, and at most."""

PROBE = timedelta(minutes=5)
"""How long a probe takes at most."""

PROBE_TRIES = 3
"""Tries whose start ends a probe."""

_DECISIONS = frozenset({FindingAction.DRAINING, FindingAction.QUARANTINED, FindingAction.RELEASED})
_STEPS = frozenset({FindingAction.QUARANTINED, FindingAction.PROBE})

Identity = tuple[str, str]
"""Kind and name of a worker: for a moment two rows may be one worker."""


@dataclass(frozen=True, slots=True)
class Case:
    """An open finding with its history."""

    finding_id: int
    found: Finding
    events: Sequence[FindingEvent]

    @property
    def exclusion(self) -> str | None:
        """Why it quarantines nothing, however strong it is."""
        if self.found.subject_kind != SubjectKind.WORKER:
            return "Only single workers are quarantined automatically."
        if self.found.outcome == FindingOutcome.SLOW:
            return "Slow workers are not quarantined automatically."
        if any(event.actor is not None and event.action in _DECISIONS for event in self.events):
            return "A user has decided about the worker since it was found."
        return None

    @property
    def weakness(self) -> str | None:
        """Why it is not strong enough for a quarantine."""
        found = self.found
        if found.evidence < EVIDENCE * found.needed:
            return f"The evidence is less than {EVIDENCE} times what a finding needs."
        if found.failures - found.expected < EXCESS * found.tries:
            return f"It is less than {100 * EXCESS:.0f} % of its tries by which the worker differs from its peers."
        return None

    def is_about(self, row: WorkerRow) -> bool:
        """Return whether it is about a worker, or about an earlier instance of its name."""
        return row.worker_id in self.found.worker_ids or row.name == self.found.subject


@dataclass(frozen=True, slots=True)
class LiveWorker:
    """A worker that its source lists as live.

    :param row: with the queues that it consumes when it is available
    :param quarantined_at: when the analysis quarantined it; ``None`` unless that is in force
    :param obstacle: why a quarantine would have no effect
    """

    row: WorkerRow
    quarantined_at: datetime | None = None
    obstacle: str | None = None

    @property
    def identity(self) -> Identity:
        """Kind and name."""
        return self.row.kind, self.row.engine_name or self.row.worker_id

    @property
    def is_available(self) -> bool:
        """Whether it takes work."""
        return self.row.availability == WorkerAvailability.AVAILABLE


@dataclass(frozen=True, slots=True)
class Step:
    """What to do with a worker."""

    row: WorkerRow
    action: FindingAction
    """Quarantined, probe or released."""
    reason: str

    @property
    def availability(self) -> WorkerAvailability:
        """What to set."""
        is_out = self.action == FindingAction.QUARANTINED
        return WorkerAvailability.QUARANTINED if is_out else WorkerAvailability.AVAILABLE


@dataclass(slots=True)
class Plan:
    """What to do, and what to note in findings by their ID: why nothing is done."""

    steps: list[Step] = field(default_factory=list)
    notes: dict[int, str] = field(default_factory=dict)


def decide(
    cases: Sequence[Case],
    workers: Sequence[LiveWorker],
    *,
    started: Callable[[WorkerRow, datetime], int],
    now: datetime,
) -> Plan:
    """Return what to do with workers now.

    :param cases: all open findings
    :param workers: all live workers
    :param started: returns how many tries have started on a worker since a time; it need not count beyond
        :data:`PROBE_TRIES`
    :param now: by the clock of the histories
    """
    planner = _Planner(cases, workers, started, now)
    for worker in workers:
        if worker.quarantined_at is not None:
            planner.go_on(worker, worker.quarantined_at)
    for case in sorted(cases, key=lambda each: (-each.found.evidence / each.found.needed, each.finding_id)):
        reason = case.exclusion or planner.begin(case)
        if reason is not None and all(event.reason != reason for event in case.events):
            planner.plan.notes[case.finding_id] = reason
    return planner.plan


class _Planner:
    def __init__(
        self,
        cases: Sequence[Case],
        workers: Sequence[LiveWorker],
        started: Callable[[WorkerRow, datetime], int],
        now: datetime,
    ) -> None:
        self.plan = Plan()
        self._workers = workers
        self._started = started
        self._now = now
        self._able = [case for case in cases if case.exclusion is None]
        self._history = {worker.row.ref: _steps(self._able, worker.row) for worker in workers}
        # A worker that is probed takes work only to be judged: its place among those that are out stays its own.
        self._fleet = _Fleet(
            workers,
            {each.identity for each in workers if not each.is_available or _is_probed(self._history[each.row.ref])},
        )

    def go_on(self, worker: LiveWorker, since: datetime) -> None:
        """Probe a worker that the analysis quarantined once its pause is over; release it once no finding is left."""
        steps = self._history[worker.row.ref]
        if steps and not _is_probed(steps):
            # A later instance has inherited it since.
            since = steps[-1].happened_at
        if not any(case.is_about(worker.row) for case in self._able):
            reason = "No finding of failed or lost tries is left open."
            self.plan.steps.append(Step(worker.row, FindingAction.RELEASED, reason))
        elif self._now - since >= _pause(steps):
            reason = (
                f"Probe {_probes(steps) + 1}: it takes work for {PROBE // timedelta(minutes=1)} minutes, or until "
                f"{PROBE_TRIES} tries have started."
            )
            self.plan.steps.append(Step(worker.row, FindingAction.PROBE, reason))

    def begin(self, case: Case) -> str | None:
        """Quarantine the workers that a finding is about, also after a probe; return why not, if there is a reason."""
        about = [worker for worker in self._workers if case.is_about(worker.row)]
        if not about:
            return "No worker source lists the worker as live."
        reasons = [self._begin(case, worker) for worker in about]
        return next((reason for reason in reasons if reason is not None), None)

    def _begin(self, case: Case, worker: LiveWorker) -> str | None:
        steps = self._history[worker.row.ref]
        is_planned = any(step.row.ref == worker.row.ref for step in self.plan.steps)
        if is_planned or worker.quarantined_at is not None or self._is_probe_open(worker, steps):
            return None
        obstacle = self._obstacle(case, worker, is_first=not steps)
        if obstacle is None:
            self.plan.steps.append(Step(worker.row, FindingAction.QUARANTINED, _reason(case, steps)))
            self._fleet.out.add(worker.identity)
        return obstacle

    def _is_probe_open(self, worker: LiveWorker, steps: Sequence[FindingEvent]) -> bool:
        if not _is_probed(steps):
            return False
        since = steps[-1].happened_at
        return self._now - since < PROBE and self._started(worker.row, since) < PROBE_TRIES

    def _obstacle(self, case: Case, worker: LiveWorker, *, is_first: bool) -> str | None:
        if not worker.is_available:
            return "The worker takes no new work anyway."
        if is_first and worker.row.worker_id not in case.found.worker_ids:
            return "The worker was restarted since: its new instance is judged by its own tries."
        return (is_first and case.weakness) or worker.obstacle or self._fleet.obstacle(worker)


class _Fleet:
    """Live workers by queue. A worker that tells no queues may serve any queue of its kind."""

    def __init__(self, workers: Sequence[LiveWorker], out: set[Identity]) -> None:
        self.out = out
        self._online = {each.identity for each in workers if each.row.state == WorkerState.ONLINE}
        named: dict[str, set[str]] = defaultdict(set)
        for each in workers:
            named[each.row.kind].update(each.row.queues or ())
        self._named: Mapping[str, set[str]] = named
        self._members: dict[tuple[str, str], set[Identity]] = defaultdict(set)
        for each in workers:
            for queue in self._queues(each):
                self._members[each.row.kind, queue].add(each.identity)

    def _queues(self, worker: LiveWorker) -> Iterable[str]:
        return worker.row.queues or self._named[worker.row.kind] or ("",)

    def obstacle(self, worker: LiveWorker) -> str | None:
        """Return why the queues of a worker cannot spare it."""
        for queue in sorted(self._queues(worker)):
            members = self._members[worker.row.kind, queue]
            of_queue = f" of queue {queue}" if queue else ""
            others = members - {worker.identity}
            if not (others & self._online) - self.out:
                return f"It is the last available worker{of_queue}."
            if len(others & self.out) >= max(1, len(members) // ONE_IN):
                return f"As many workers{of_queue} are out already as may be: 1, or {100 // ONE_IN} % of them."
        return None


def _steps(cases: Iterable[Case], row: WorkerRow) -> list[FindingEvent]:
    """Return what the analysis has done with a worker for what is still open, the earliest first."""
    steps = {
        event.happened_at: event
        for case in cases
        if case.is_about(row)
        for event in case.events
        if event.actor is None and event.action in _STEPS
    }
    return [event for _, event in sorted(steps.items())]


def _is_probed(steps: Sequence[FindingEvent]) -> bool:
    return bool(steps) and steps[-1].action == FindingAction.PROBE


def _probes(steps: Iterable[FindingEvent]) -> int:
    return sum(step.action == FindingAction.PROBE for step in steps)


def _pause(steps: Iterable[FindingEvent]) -> timedelta:
    """Return how long a quarantine lasts until the next probe."""
    return min(FIRST_PAUSE * (1 << min(_probes(steps), 10)), LONGEST_PAUSE)


def _reason(case: Case, steps: Sequence[FindingEvent]) -> str:
    hours = _pause(steps) // timedelta(hours=1)
    pause = f"{hours} hours" if hours > 1 else "1 hour" if hours else "30 minutes"
    if steps:
        return f"The worker is not known to be well yet. The next probe is in {pause}."
    found = case.found
    bad = "were lost" if found.outcome == FindingOutcome.LOST else "failed"
    return (
        f"Finding {case.finding_id}: {found.failures} of its {found.tries} tries {bad}, {found.expected:.1f} would "
        f"have at its peers’ rate. Evidence {found.evidence:,.0f} : 1. It is probed in {pause}."
    )
