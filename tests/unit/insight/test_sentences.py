"""Each sentence, from its numbers."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from airflow_worker_insight.insight import sentences
from airflow_worker_insight.insight.findings import Finding, Share
from airflow_worker_insight.insight.recovery import Recovery

FOUND = datetime(2026, 12, 3, 9, 0, tzinfo=timezone.utc).timestamp()
TUESDAY = datetime(2026, 12, 1, 14, 0, tzinfo=timezone.utc).timestamp()


def finding(**changes: Any) -> Finding:
    values: dict[str, Any] = {
        "number": 1,
        "dimension": "worker",
        "unit": "w3@1",
        "subject": "w3",
        "outcome": "failed",
        "state": "open",
        "since": TUESDAY,
        "found_at": FOUND,
        "evidence": 4_123.0,
        "needed": 800.0,
        "tries": 10,
        "failures": 9,
        "expected": 0.6,
        "peer_tries": 50,
        "peer_failures": 3,
        "shares": [Share(("sales", "load"), 10, 9, 50, 3, 8.4)],
        "worker_ids": ["w3@1"],
    }
    return Finding(**{**values, **changes})


def test_failures_of_one_task() -> None:
    assert sentences.finding_text(finding()) == (
        "9 of 12 failures of `load` ran on w3, which ran 10 of its 60 tries; of its peers' 50 tries 3 failed. "
        "Since Tue 14:00. Evidence 4,100 : 1 (800 needed)."
    )


def test_failures_of_several_tasks() -> None:
    shares = [Share(("sales", "load"), 6, 6, 20, 1, 5.7), Share(("sales", "clean"), 4, 3, 30, 2, 2.7)]
    assert sentences.finding_text(finding(shares=shares, scope=("sales",))).startswith(
        "9 of 12 failures ran on w3, which ran 10 of the 60 tries of the same tasks; of its peers' 50 tries 3 failed. "
        "Only in tasks of Dag `sales`. Since"
    )


def test_scope_of_one_task() -> None:
    assert sentences.scope_text(("sales", "load")) == "Only in task `load` of Dag `sales`."


def test_zone_is_told_from_its_worst_worker() -> None:
    text = sentences.finding_text(finding(dimension="zone", subject="b", unit="b", left_out="w7"))
    assert "ran on zone b, which" in text
    assert "Zone b, not one worker of it: without w7 it is still so." in text


def test_slow_tries() -> None:
    text = sentences.finding_text(finding(outcome="slow", tries=41, failures=37, peer_tries=200, peer_failures=96))
    assert text.startswith(
        "37 of 41 tries took longer than usual for the same task on w3; among its peers' 200 tries 96 did."
    )


def test_lost_tries() -> None:
    assert "9 of 12 losses of `load` ran on w3" in sentences.finding_text(finding(outcome="lost"))
    assert "of its peers' 50 tries 3 were lost." in sentences.finding_text(finding(outcome="lost"))


def test_task_that_kills_workers() -> None:
    killer = finding(dimension="task", subject="sales.load", outcome="lost", shares=[])
    assert sentences.finding_text(killer).startswith(
        "9 of 10 tries of `sales.load` were lost with their worker; of the 50 tries of other tasks there 3 were."
    )
    assert sentences.title(killer) == "sales.load loses its worker more often than other tasks on the same workers"


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("failed", "w3 fails more than its peers on the same tasks"),
        ("lost", "w3 loses more tries than its peers on the same tasks"),
        ("slow", "w3 takes longer than its peers on the same tasks"),
    ],
)
def test_title_never_calls_a_worker_broken(outcome: str, expected: str) -> None:
    assert sentences.title(finding(outcome=outcome)) == expected


def test_old_times_have_a_date_and_times_their_zone() -> None:
    zone = timezone(timedelta(hours=2))
    assert "Since 2026-12-01 16:00." in sentences.finding_text(finding(), zone, now=FOUND + 30 * 86_400)


@pytest.mark.parametrize(
    ("evidence", "text"),
    [(4_123.0, "4,100"), (0.2, "0"), (87.4, "87"), (98_765.0, "99,000"), (1e12, "over 1,000,000,000,000")],
)
def test_evidence_has_two_digits(evidence: float, text: str) -> None:
    assert sentences.evidence_text(evidence, 800.0) == f"Evidence {text} : 1 (800 needed)."


def test_what_is_not_found() -> None:
    assert sentences.not_enough_text(3) == "Not enough yet: 3 tries."
    assert sentences.not_enough_text(1) == "Not enough yet: 1 try."
    assert sentences.cannot_be_told_text() == "Cannot be told: no other worker ran these tasks."
    assert sentences.nothing_found_text("w3", 40, 2, 1.84) == (
        "w3 fails as its peers do on the same tasks: 2 of 40 tries failed, 1.8 expected."
    )


@pytest.mark.parametrize(
    ("own", "peers", "text"),
    [
        ((10, 9), (50, 3), "w3 fails more than its peers on `load`: 9 of 10 tries on w3 failed, 3 of 50 elsewhere."),
        ((10, 5), (50, 24), "`load` fails everywhere: 5 of 10 tries on w3 failed, 24 of 50 elsewhere."),
        ((2, 1), (50, 3), "Not enough yet: 2 tries. 1 of 2 tries on w3 failed, 3 of 50 elsewhere."),
        ((10, 9), (0, 0), "Cannot be told: no other worker ran these tasks."),
        ((10, 0), (50, 0), "`load` fails nowhere more than elsewhere: 0 of 10 tries on w3 failed, 0 of 50 elsewhere."),
    ],
)
def test_failed_try_is_explained(own: tuple[int, int], peers: tuple[int, int], text: str) -> None:
    assert sentences.task_text("w3", "load", Share(("sales", "load"), *own, *peers, 0.0)) == text


def test_way_back() -> None:
    recovery = Recovery(0.02, 0.5, successes=4, failures=1)
    assert sentences.recovery_text(finding()) == ""
    assert sentences.recovery_text(finding(recovery=recovery)) == "Since it was found 1 of 5 tries failed."
    assert sentences.recovery_text(finding(recovery=recovery, probation="restart")) == (
        "Since it was restarted 1 of 5 tries failed."
    )
    assert sentences.recovery_text(finding(recovery=recovery, probation="quarantine")) == (
        "Since it was quarantined 1 of 5 tries failed."
    )
    assert sentences.recovery_text(finding(probation="restart")) == "On probation since its restart."
    assert sentences.recovery_text(finding(state="closed", end_reason="well")) == "w3 is well again."
