"""What can be said of a worker, whether or not anything was found."""

from __future__ import annotations

import pytest

from airflow_worker_insight.insight.assessment import assess, task_share
from tests.unit.insight.streams import DAY, Row, events, feed, rows


def sick(name: str, at: float) -> float:
    return 0.9 if name == "w1" and at > DAY else 0.02


def test_found() -> None:
    said = assess(feed(events(rows(600, days=4.0, rate=sick))), "worker", "w1@1")
    assert (said.status, said.text) == ("found", "w1 fails more than its peers on the same tasks")
    assert said.finding is not None
    assert said.evidence >= said.needed == 320.0


def test_nothing_found() -> None:
    said = assess(feed(events(rows(600, days=4.0, rate=sick))), "worker", "w2@1")
    assert said.status == "nothing_found"
    assert said.text.startswith("w2 fails as its peers do on the same tasks: ")
    assert said.tries > 100


def test_not_enough_yet() -> None:
    said = assess(feed(events(rows(12, workers=4))), "worker", "w2@1")
    assert (said.status, said.text) == ("not_enough", f"Not enough yet: {said.tries} tries.")


def test_only_worker_cannot_be_told() -> None:
    said = assess(feed(events(rows(300, workers=1, rate=lambda _name, _at: 0.5))), "worker", "w0@1")
    assert (said.status, said.text) == ("cannot_be_told", "Cannot be told: no other worker ran these tasks.")
    assert said.evidence == 1.0


def test_worker_with_tasks_of_its_own_cannot_be_told() -> None:
    history = [
        Row(row.key, row.started, row.ended, row.worker, "own" if row.worker == "w1" else row.task, row.end)
        for row in rows(300, rate=sick)
    ]
    detector = feed(events(history))
    assert assess(detector, "worker", "w1@1").status == "cannot_be_told"
    assert not detector.findings()


@pytest.mark.parametrize("outcome", ["lost", "slow"])
def test_other_outcomes_are_told_apart(outcome: str) -> None:
    assert assess(feed(events(rows(600, days=4.0, rate=sick))), "worker", "w1@1", outcome).status == "nothing_found"


def test_latest_tries_of_a_task() -> None:
    history = rows(20, tasks=1, days=0.1, seconds=1.0, rate=lambda name, _at: 1.0 if name == "w1" else 0.0)
    share = task_share(feed(events(history)), "w1", ("d", "t0"))
    own = sum(row.worker == "w1" for row in history)
    assert (share.tries, share.failures, share.peer_tries, share.peer_failures) == (own, own, 20 - own, 0)
