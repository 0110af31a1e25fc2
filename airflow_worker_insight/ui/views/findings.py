"""Findings: what they say, expected against observed, and what can be done.

Tasks of Dags that the user may not read are never named.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from airflow_worker_insight.domain.findings import FindingOutcome, FindingState
from airflow_worker_insight.domain.limits import MAX_NOTE_LENGTH
from airflow_worker_insight.domain.states import WorkerAvailability
from airflow_worker_insight.insight.disclosure import hidden_text, redact
from airflow_worker_insight.insight.findings import from_json
from airflow_worker_insight.insight.lanes import TASK
from airflow_worker_insight.insight.sentences import evidence_text, recovery_text, summary_text, title
from airflow_worker_insight.ui import formatting
from airflow_worker_insight.ui.query_params import ANY, AttemptsParams

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from airflow_worker_insight.domain.findings import FindingEvent, StoredFinding
    from airflow_worker_insight.domain.workers import WorkerRow
    from airflow_worker_insight.insight.findings import Finding, Share

MAX_WORKERS = 10
"""Workers that a finding links to."""

MAX_LOOKUPS = 200
"""Worker instances, the latest, that are looked up for a finding."""

_SCALES = (1, 2, 5, 10, 20, 50, 100)
_ACTIONS = {
    "found": "Found",
    "recovering": "Recovering",
    "open_again": "Open again",
    "closed": "Closed",
    "dismissed": "Dismissed",
    "draining": "Drained",
    "quarantined": "Quarantined",
    "released": "Made available",
    "probe": "Probe",
    "not_quarantined": "Not quarantined",
}
_BAD = {
    FindingOutcome.FAILED: "failed",
    FindingOutcome.LOST: "were lost",
    FindingOutcome.SLOW: "took longer than usual",
}


@dataclass(frozen=True, slots=True)
class Bar:
    """A rate in words, and the length of its bar, ready to print."""

    name: str
    text: str
    width: str


@dataclass(frozen=True, slots=True)
class Picture:
    """Observed and expected share of bad tries as two bars on one scale."""

    observed: Bar
    expected: Bar
    scale: str
    """What the full width stands for."""
    description: str
    """The same in a sentence."""


@dataclass(frozen=True, slots=True)
class WorkerLink:
    """A worker that a finding concerns."""

    row: WorkerRow
    choices: tuple[tuple[str, str], ...]
    """Availabilities that the user may set, each with the text of its button; empty if none."""


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task's part of a finding; of a finding about a task, a worker's part."""

    name: str
    dag_id: str
    own: str
    own_rate: str
    peers: str
    peer_rate: str
    params: AttemptsParams
    """Lists its tries."""


@dataclass(frozen=True, slots=True)
class Event:
    """An entry in the history of a finding."""

    happened_at: datetime
    text: str
    actor: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class FindingCard:
    """A finding as a user may see it."""

    finding_id: int
    title: str
    text: str
    state: str
    outcome: str
    since: datetime
    found_at: datetime
    ended_at: datetime | None
    evidence: str
    recovery: str
    picture: Picture
    workers: tuple[WorkerLink, ...]
    more_workers: str
    may_dismiss: bool
    note: str
    """Note to store with a decision on a worker; it names no Dag, for those who may read it may not read them all."""
    max_note_length: int
    tasks: tuple[TaskRow, ...]
    hidden_tasks: str
    """That there are tasks of Dags that the user may not read; empty if there are none."""
    is_about_task: bool
    events: tuple[Event, ...]

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.state != FindingState.CLOSED


def may_see(stored: StoredFinding, dag_ids: Collection[str]) -> bool:
    """Return whether a user may see a finding at all: one about a task names its Dag."""
    return redact(from_json(stored.data), dag_ids) is not None


def build_card(
    stored: StoredFinding,
    *,
    dag_ids: Collection[str],
    workers: Mapping[str, WorkerRow],
    may_decide: bool,
    events: Sequence[FindingEvent] = (),
) -> FindingCard:
    """Return a finding as a user may see it.

    :param stored: a finding that the user may see: see :func:`may_see`
    :param dag_ids: the Dags that the user may read
    :param workers: the worker instances that it concerns and that are known, by worker ID
    :param may_decide: whether the user may change availabilities and dismiss findings
    """
    whole = from_json(stored.data)
    finding = redact(whole, dag_ids)
    assert finding is not None
    hidden = len(whole.shares) - len(finding.shares)
    texts = [summary_text(finding)]
    if hidden:
        texts.append(hidden_text(hidden, is_scope=finding.scope != whole.scope))
    concerned = _concerned(finding, workers)
    is_open = stored.state != FindingState.CLOSED
    is_about_task = finding.dimension == TASK
    # A task ends its workers: without one of them it would end others.
    may_take_out = may_decide and is_open and not is_about_task
    return FindingCard(
        finding_id=stored.finding_id,
        title=_title(finding),
        text=" ".join(texts),
        state=stored.state,
        outcome=stored.outcome,
        since=_time(finding.since),
        found_at=stored.found_at,
        ended_at=stored.ended_at,
        evidence=evidence_text(finding.evidence, finding.needed),
        recovery=recovery_text(finding),
        picture=_picture(finding, stored.outcome),
        workers=tuple(WorkerLink(row, _choices(row) if may_take_out else ()) for row in concerned[:MAX_WORKERS]),
        more_workers=f"and {len(concerned) - MAX_WORKERS:,} more" if len(concerned) > MAX_WORKERS else "",
        may_dismiss=may_decide and is_open,
        note=f"Finding {stored.finding_id}",
        max_note_length=MAX_NOTE_LENGTH,
        tasks=tuple(_task(share, finding) for share in finding.shares),
        hidden_tasks=f"{formatting.count(hidden, 'task', 'tasks')} that you may not see." if hidden else "",
        is_about_task=is_about_task,
        events=tuple(
            Event(event.happened_at, _ACTIONS.get(event.action, event.action), event.actor, event.reason)
            for event in events
        ),
    )


def _title(finding: Finding) -> str:
    """Return the title; it may begin with the name of a label, but not with that of a worker, in upper case."""
    text = title(finding)
    return text if finding.subject_kind in {"worker", "task"} else text[:1].upper() + text[1:]


def _concerned(finding: Finding, workers: Mapping[str, WorkerRow]) -> list[WorkerRow]:
    """Return the workers that a finding concerns: those that live, else the latest instance; the latest first."""
    rows = sorted(
        (workers[worker_id] for worker_id in finding.worker_ids if worker_id in workers), key=lambda row: -row.ref
    )
    return [row for row in rows if row.ended_at is None] or rows[:1]


def _choices(row: WorkerRow) -> tuple[tuple[str, str], ...]:
    if row.host_only or row.availability == WorkerAvailability.QUARANTINED:
        return ()
    quarantine = (WorkerAvailability.QUARANTINED.value, "Quarantine")
    may_drain = row.ended_at is None and row.availability == WorkerAvailability.AVAILABLE
    return (quarantine, (WorkerAvailability.DRAINING.value, "Drain")) if may_drain else (quarantine,)


def _picture(finding: Finding, outcome: str) -> Picture:
    rate = finding.failures / finding.tries if finding.tries else 0.0
    expected = finding.expected / finding.tries if finding.tries else 0.0
    scale = next((scale for scale in _SCALES if max(rate, expected) * 100 <= scale), 100)
    observed_text = f"{finding.failures:,} of {finding.tries:,}, {formatting.percent(finding.failures, finding.tries)}"
    expected_text = f"{finding.expected:.1f}, {formatting.percent(finding.expected, finding.tries)}"
    bad = _BAD.get(FindingOutcome(outcome), "failed")
    return Picture(
        observed=Bar("Observed", observed_text, f"{100 * rate * 100 / scale:.1f}%"),
        expected=Bar("Expected", expected_text, f"{100 * expected * 100 / scale:.1f}%"),
        scale=f"{scale} %",
        description=(
            f"{finding.failures:,} of {formatting.count(finding.tries, 'try', 'tries')} {bad}; at the rate of its "
            f"peers on the same tasks it would be {finding.expected:.1f}."
        ),
    )


def _task(share: Share, finding: Finding) -> TaskRow:
    if finding.dimension == TASK:
        name, dag_id, params = share.stratum[0], "", AttemptsParams(worker=share.stratum[0], window=ANY)
    else:
        dag_id, name = share.stratum[0], share.stratum[-1]
        worker = finding.subject if finding.subject_kind == "worker" else ""
        params = AttemptsParams(dag_id=dag_id, task_id=name, worker=worker, window=ANY)
    return TaskRow(
        name=name,
        dag_id=dag_id,
        own=f"{share.failures:,} of {share.tries:,}",
        own_rate=formatting.percent(share.failures, share.tries),
        peers=f"{share.peer_failures:,} of {share.peer_tries:,}",
        peer_rate=formatting.percent(share.peer_failures, share.peer_tries),
        params=params,
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=timezone.utc)
