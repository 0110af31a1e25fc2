"""What is shown of a finding: its fields and sentences, without the Dags that a reader may not see.

REST, the pages, the command and the hook show the same.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow_worker_insight.domain.filters import AllDags
from airflow_worker_insight.domain.findings import SubjectKind
from airflow_worker_insight.insight.findings import Finding, from_json
from airflow_worker_insight.insight.lanes import TASK
from airflow_worker_insight.insight.sentences import finding_text, recovery_text, title

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from datetime import tzinfo

    from airflow_worker_insight.domain.findings import StoredFinding


def finding_fields(
    stored: StoredFinding, *, dag_ids: Collection[str] | AllDags, now: datetime, zone: tzinfo = timezone.utc
) -> dict[str, Any] | None:
    """Return what a reader may see of a finding, ``None`` if it is about a task of a Dag that the reader may not see.

    :param dag_ids: the Dags that the reader may see
    :param now: the present: sentences say a time of the last days by its weekday
    :param zone: time zone of the times in sentences
    """
    whole = from_json(stored.data)
    finding = redact(whole, dag_ids)
    if finding is None:
        return None
    hidden = len(whole.shares) - len(finding.shares)
    is_scope_hidden = finding.scope != whole.scope
    texts = [finding_text(finding, zone, now=now.timestamp())]
    if hidden:
        texts.append(hidden_text(hidden, is_scope=is_scope_hidden))
    return {
        "finding_id": stored.finding_id,
        "subject_kind": str(stored.subject_kind),
        "subject": finding.subject,
        "label": finding.dimension if stored.subject_kind == SubjectKind.LABEL else None,
        "outcome": str(stored.outcome),
        "state": str(stored.state),
        "title": title(finding),
        "text": " ".join(texts),
        "recovery": recovery_text(finding) or None,
        "since": datetime.fromtimestamp(finding.since, timezone.utc),
        "found_at": stored.found_at,
        "ended_at": stored.ended_at,
        "ended_reason": None if stored.end_reason is None else str(stored.end_reason),
        "evidence": finding.evidence,
        "needed": finding.needed,
        "tries": finding.tries,
        "failures": finding.failures,
        "expected": finding.expected,
        "peer_tries": finding.peer_tries,
        "peer_failures": finding.peer_failures,
        "scope": _scope(finding, is_hidden=is_scope_hidden),
        "tasks": _tasks(finding),
        "hidden_tasks": hidden,
        "worker_ids": list(finding.worker_ids),
    }


def redact(finding: Finding, dag_ids: Collection[str] | AllDags) -> Finding | None:
    """Return a finding without the tasks of Dags that a reader may not see.

    :return: ``None`` if it is about a task of such a Dag
    """
    if isinstance(dag_ids, AllDags):
        return finding
    if finding.dimension == TASK:
        return finding if _task(finding)[0] in dag_ids else None
    return replace(
        finding,
        shares=[share for share in finding.shares if share.stratum[0] in dag_ids],
        scope=finding.scope if not finding.scope or finding.scope[0] in dag_ids else (),
    )


def named_dag_ids(found: Iterable[StoredFinding]) -> set[str]:
    """Return the IDs of the Dags that findings name."""
    named: set[str] = set()
    for finding in (from_json(stored.data) for stored in found):
        is_task = finding.dimension == TASK
        named.update([_task(finding)[0]] if is_task else (share.stratum[0] for share in finding.shares))
        named.update(finding.scope[:1])
    return named


def _task(finding: Finding) -> tuple[str, str]:
    """Return the Dag ID and the task ID of the task that a finding is about."""
    dag_id, _, task_id = finding.unit.partition("/")
    return dag_id, task_id


def _tasks(finding: Finding) -> list[dict[str, Any]]:
    counted = (
        [(*_task(finding), finding)]
        if finding.dimension == TASK
        else [(share.stratum[0], share.stratum[1], share) for share in finding.shares]
    )
    return [
        {
            "dag_id": dag_id,
            "task_id": task_id,
            **{name: getattr(counts, name) for name in ("tries", "failures", "peer_tries", "peer_failures")},
        }
        for dag_id, task_id, counts in counted
    ]


def _scope(finding: Finding, *, is_hidden: bool) -> dict[str, str | None] | None:
    if is_hidden:
        return {"dag_id": None, "task_id": None}
    if not finding.scope:
        return None
    return {"dag_id": finding.scope[0], "task_id": finding.scope[1] if len(finding.scope) > 1 else None}


def hidden_text(number: int, *, is_scope: bool) -> str:
    """Return how many tasks a reader may not see.

    :param is_scope: whether the finding is about their Dag only
    """
    tasks = f"{number} {'task' if number == 1 else 'tasks'} that you may not see"
    return f"Mainly in {tasks}." if is_scope else f"It also counts {tasks}."
