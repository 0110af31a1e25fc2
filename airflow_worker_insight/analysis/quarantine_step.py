"""Carry out the automatic quarantine: read findings and workers, decide, and write what is decided."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from airflow_worker_insight import config
from airflow_worker_insight.analysis.quarantine import PROBE_TRIES, Case, LiveWorker, Step, decide
from airflow_worker_insight.domain.enforcement import ENFORCED_KINDS, effect
from airflow_worker_insight.domain.filters import AllDags, FindingFilter
from airflow_worker_insight.domain.findings import FindingAction, FindingState, SubjectKind
from airflow_worker_insight.domain.states import ANALYSIS, SOURCE_KINDS, WorkerAvailability
from airflow_worker_insight.insight.findings import from_json
from airflow_worker_insight.store import enforcement, findings, tries
from airflow_worker_insight.store.workers import queries
from airflow_worker_insight.store.workers.availability import set_availability

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from airflow_worker_insight.domain.workers import WorkerRow

MAX_FINDINGS = 1_000
"""Open findings that are looked at, the latest."""

MAX_STEPS = 20
"""Decisions that one transaction writes; the rest is decided again by the next one."""

_OPEN = FindingFilter(state=frozenset({FindingState.OPEN, FindingState.RECOVERING}))


def quarantine(connection: Connection, now: datetime) -> None:
    """Quarantine, probe and release workers as the stored findings say, within the caller's transaction.

    :param now: by the database's clock
    """
    stored, _ = findings.list_findings(connection, _OPEN, limit=MAX_FINDINGS, offset=0, dag_ids=AllDags())
    if not stored and not queries.unavailable_workers(connection):
        return
    events = findings.events(connection, [each.finding_id for each in stored])
    cases = [Case(each.finding_id, from_json(each.data), events[each.finding_id]) for each in stored]

    def started(row: WorkerRow, since: datetime) -> int:
        return tries.count_started(connection, row.ref, since, limit=PROBE_TRIES)

    plan = decide(cases, _live_workers(connection), started=started, now=now)
    for step in plan.steps[:MAX_STEPS]:
        set_availability(
            connection,
            step.row.worker_id,
            step.availability,
            note=step.reason,
            changed_by=ANALYSIS,
            now=now,
            of_analysis=step.action,
        )
        if step.action == FindingAction.RELEASED:
            _note_release(connection, step, now)
    for finding_id, reason in plan.notes.items():
        findings.add_event(connection, finding_id, FindingAction.NOT_QUARANTINED, actor=None, reason=reason, now=now)


def _live_workers(connection: Connection) -> list[LiveWorker]:
    rows = [row for kind in SOURCE_KINDS for row in queries.live_workers(connection, kind)[0]]
    # A Celery worker that is kept off its queues names none.
    known = enforcement.find(connection, [row.ref for row in rows if not row.queues])
    rows = [row if row.queues or row.ref not in known else replace(row, queues=known[row.ref].queues) for row in rows]
    decisions = queries.decisions(
        connection, [row for row in rows if row.availability == WorkerAvailability.QUARANTINED]
    )
    since = {
        ref: each.changed_at
        for ref, each in decisions.items()
        if each.changed_by == ANALYSIS and each.availability == WorkerAvailability.QUARANTINED
    }
    places, enforces = config.places_tasks(), config.enforce_availability()

    def obstacle(kind: str) -> str | None:
        has_effect = places or (enforces and kind in ENFORCED_KINDS)
        return None if has_effect else effect(kind, places=places, enforces=enforces)

    return [LiveWorker(row, since.get(row.ref), obstacle(row.kind)) for row in rows]


def _note_release(connection: Connection, step: Step, now: datetime) -> None:
    """Note a release in the finding whose end it follows, which is no longer among the open ones."""
    ended = FindingFilter(
        state=frozenset({FindingState.CLOSED}), subject_kind=SubjectKind.WORKER, worker_id=step.row.worker_id
    )
    for each in findings.list_findings(connection, ended, limit=1, offset=0, dag_ids=AllDags())[0]:
        findings.add_event(connection, each.finding_id, step.action, actor=None, reason=step.reason, now=now)
