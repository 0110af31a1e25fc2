"""Sentences about findings: plain text from numbers.

They never say that a worker is broken, only that it fails more than its peers on the same tasks.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

from airflow_worker_insight.insight.lanes import TASK

if TYPE_CHECKING:
    from datetime import tzinfo

    from airflow_worker_insight.insight.findings import Finding, Share

NOT_ENOUGH_BELOW = 5
"""Comparable tries below which nothing is said of a unit."""

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def finding_text(finding: Finding, zone: tzinfo = timezone.utc, *, now: float | None = None) -> str:
    """Return a finding in a few sentences.

    :param zone: time zone of the times in it
    :param now: Unix time in seconds; a time within the week before it is said by its weekday
    """
    since = f"Since {_time(finding.since, zone, finding.found_at if now is None else now)}."
    return " ".join([summary_text(finding), since, evidence_text(finding.evidence, finding.needed)])


def summary_text(finding: Finding) -> str:
    """Return a finding in a few sentences, without its time and evidence."""
    parts = [_counts(finding)]
    if scope := scope_text(finding.scope):
        parts.append(scope)
    if finding.left_out is not None:
        parts.append(
            f"{_subject(finding, capital=True)}, not one worker of it: without {finding.left_out} it is still so."
        )
    return " ".join(parts)


def title(finding: Finding) -> str:
    """Return a finding in one clause, such as ``w3 fails more than its peers on the same tasks``."""
    if finding.dimension == TASK:
        return f"{finding.subject} loses its worker more often than other tasks on the same workers"
    said = {"failed": "fails more", "lost": "loses more tries", "slow": "takes longer"}[finding.outcome]
    return f"{_subject(finding)} {said} than its peers on the same tasks"


def scope_text(scope: tuple[str, ...]) -> str:
    """Return in which tasks only something was found, an empty text for all."""
    if not scope:
        return ""
    return (
        f"Only in tasks of Dag `{scope[0]}`." if len(scope) == 1 else f"Only in task `{scope[1]}` of Dag `{scope[0]}`."
    )


def evidence_text(evidence: float, needed: float) -> str:
    """Return the evidence and how much a finding needs, both rounded to two digits."""
    return f"Evidence {_rounded(evidence)} : 1 ({_rounded(needed)} needed)."


def not_enough_text(tries: int) -> str:
    """Return that too few tries can be compared."""
    return f"Not enough yet: {_number(tries, 'try', 'tries')}."


def cannot_be_told_text() -> str:
    """Return the sentence for a unit without peers."""
    return "Cannot be told: no other worker ran these tasks."


def nothing_found_text(name: str, tries: int, failures: int, expected: float) -> str:
    """Return that a worker fails as its peers do."""
    return (
        f"{name} fails as its peers do on the same tasks: {failures} of {_number(tries, 'try', 'tries')} failed, "
        f"{expected:.1f} expected."
    )


def task_text(worker: str, task: str, share: Share) -> str:
    """Return whether a failure of a task rather belongs to the task or to the worker, by the task's latest tries.

    It claims a difference only where the worker's rate is twice its peers'. Only a finding says that it is no chance.
    """
    if not share.peer_tries:
        return cannot_be_told_text()
    counts = (
        f"{share.failures} of {_number(share.tries, 'try', 'tries')} on {worker} failed, "
        f"{share.peer_failures} of {share.peer_tries} elsewhere."
    )
    if min(share.tries, share.peer_tries) < NOT_ENOUGH_BELOW:
        return f"{not_enough_text(min(share.tries, share.peer_tries))} {counts}"
    rate, peers = share.failures / share.tries, share.peer_failures / share.peer_tries
    if rate >= 2 * peers and rate > 0:
        return f"{worker} fails more than its peers on `{task}`: {counts}"
    if peers > 0:
        return f"`{task}` fails everywhere: {counts}"
    return f"`{task}` fails nowhere more than elsewhere: {counts}"


def recovery_text(finding: Finding) -> str:
    """Return how far a subject is on its way back, an empty text before its first try since it was found."""
    recovery = finding.recovery
    if finding.end_reason == "well":
        return f"{_subject(finding, capital=True)} is well again."
    if recovery is None or not recovery.successes + recovery.failures:
        return f"On probation since its {finding.probation}." if finding.probation else ""
    tries = recovery.successes + recovery.failures
    since = {"restart": "it was restarted", "quarantine": "it was quarantined"}.get(finding.probation, "it was found")
    bad = {"failed": "failed", "lost": "were lost", "slow": "took longer than usual"}[finding.outcome]
    return f"Since {since} {recovery.failures} of {_number(tries, 'try', 'tries')} {bad}."


def _counts(finding: Finding) -> str:
    if finding.outcome == "slow":
        return (
            f"{finding.failures} of {_number(finding.tries, 'try', 'tries')} took longer than usual for the same task "
            f"on {_subject(finding)}; among its peers' {finding.peer_tries} tries {finding.peer_failures} did."
        )
    if finding.dimension == TASK:
        return (
            f"{finding.failures} of {_number(finding.tries, 'try', 'tries')} of `{finding.subject}` were lost with "
            f"their worker; of the {finding.peer_tries} tries of other tasks there {finding.peer_failures} were."
        )
    noun = "losses" if finding.outcome == "lost" else "failures"
    verb = "were lost" if finding.outcome == "lost" else "failed"
    top = finding.shares[0] if finding.shares else None
    if top is not None and top.failures == finding.failures and len(top.stratum) > 1:
        name, own, peers = f" of `{top.stratum[1]}`", (top.tries, top.failures), (top.peer_tries, top.peer_failures)
    else:
        name, own, peers = "", (finding.tries, finding.failures), (finding.peer_tries, finding.peer_failures)
    its = "its" if name else "the"
    whose = "" if name else " of the same tasks"
    return (
        f"{own[1]} of {own[1] + peers[1]} {noun}{name} ran on {_subject(finding)}, which ran {own[0]} of {its} "
        f"{own[0] + peers[0]} tries{whose}; of its peers' {peers[0]} tries {peers[1]} {verb}."
    )


def _subject(finding: Finding, *, capital: bool = False) -> str:
    if finding.subject_kind in {"worker", TASK}:
        return finding.subject
    text = f"{finding.dimension} {finding.subject}"
    return text[:1].upper() + text[1:] if capital else text


def _number(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _rounded(evidence: float) -> str:
    if evidence >= 1e12:  # noqa: PLR2004
        return "over 1,000,000,000,000"
    digits = max(len(str(int(evidence))) - 2, 0)
    return f"{round(evidence / 10**digits) * 10**digits:,}"


def _time(time: float, zone: tzinfo, now: float) -> str:
    at = datetime.fromtimestamp(time, zone)
    is_recent = 0 <= now - time < 6 * 86_400
    return f"{_DAYS[at.weekday()]} {at:%H:%M}" if is_recent else f"{at:%Y-%m-%d %H:%M}"
