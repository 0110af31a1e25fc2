"""Which workers are quarantined automatically, probed and released, and why not others."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_worker_insight.analysis.quarantine import Case, LiveWorker, Plan, decide
from airflow_worker_insight.domain.findings import FindingAction, FindingEvent
from airflow_worker_insight.domain.workers import WorkerRow
from airflow_worker_insight.insight.findings import from_json
from tests.unit.database import NOON, at
from tests.unit.findings import a_finding

if TYPE_CHECKING:
    from datetime import datetime

HOUR = 3600
STRONG = {"evidence": 8000.0, "needed": 800.0, "tries": 10, "failures": 9, "expected": 0.6}


def a_row(number: int, **others: Any) -> WorkerRow:
    known: dict[str, Any] = {
        "ref": number,
        "worker_id": f"w{number}",
        "name": f"w{number}@host-1",
        "engine_name": f"w{number}@host-1",
        "kind": "celery",
        "hostname": "host-1",
        "pid": 100,
        "host_only": False,
        "state": "online",
        "state_reason": None,
        "availability": "available",
        "queues": ("default",),
        "concurrency": 8,
        "running": 0,
        "started_at": NOON,
        "registered_at": NOON,
        "last_seen_at": NOON,
        "ended_at": None,
        "labels": {},
        "resources": {},
        "versions": {},
    }
    return WorkerRow(**{**known, **others})


def a_live(number: int, *, quarantined_at: datetime | None = None, **others: Any) -> LiveWorker:
    if quarantined_at is not None:
        others["availability"] = "quarantined"
    return LiveWorker(a_row(number, **others), quarantined_at)


def fleet(size: int = 5, *, first: LiveWorker | None = None, **others: Any) -> list[LiveWorker]:
    """Return workers 1 to ``size``."""
    return [first or a_live(1, **others), *(a_live(number, **others) for number in range(2, size + 1))]


def a_case(number: int = 1, *events: FindingEvent, **others: Any) -> Case:
    """Return a strong finding about the worker of the same number; its events are given the earliest first."""
    found = a_finding(number, f"w{number}", **{**STRONG, **others})
    return Case(number, from_json(found), tuple(reversed(events)))


def event(action: str, second: float, *, actor: str | None = None, reason: str | None = None) -> FindingEvent:
    return FindingEvent(at(second), FindingAction(action), actor, reason)


def plan(cases: list[Case], workers: list[LiveWorker], *, second: float = 0, started: int = 0) -> Plan:
    return decide(cases, workers, started=lambda _row, _since: started, now=at(second))


def steps(made: Plan) -> list[tuple[str, str]]:
    return [(step.row.worker_id, str(step.action)) for step in made.steps]


def note(made: Plan, number: int = 1) -> str:
    """Return why nothing was done."""
    assert made.steps == []
    return made.notes[number]


def test_a_strong_finding_quarantines_its_worker() -> None:
    made = plan([a_case()], fleet())
    assert steps(made) == [("w1", "quarantined")]
    assert made.notes == {}
    (step,) = made.steps
    assert step.availability == "quarantined"
    assert step.reason == (
        "Finding 1: 9 of its 10 tries failed, 0.6 would have at its peers’ rate. Evidence 8,000 : 1. "
        "It is probed in 30 minutes."
    )
    assert "9 of its 10 tries were lost" in plan([a_case(outcome="lost")], fleet()).steps[0].reason


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ({"dimension": "host"}, "Only single workers"),
        ({"dimension": "zone"}, "Only single workers"),
        ({"dimension": "task"}, "Only single workers"),
        ({"outcome": "slow"}, "Slow workers"),
        ({"evidence": 7999.0}, "evidence is less than 10 times"),
        ({"tries": 100, "failures": 25, "expected": 5.1}, "less than 20 % of its tries"),
        ({"worker_ids": ["gone"], "subject": "gone"}, "No worker source lists"),
        ({"worker_ids": ["w1-before"], "subject": "w1@host-1"}, "restarted"),
    ],
)
def test_what_is_too_weak_or_about_no_worker_quarantines_nothing(others: dict[str, Any], reason: str) -> None:
    assert reason in note(plan([a_case(**others)], fleet()))


def test_an_excess_of_exactly_a_fifth_is_enough() -> None:
    assert plan([a_case(tries=100, failures=25, expected=5.0)], fleet()).steps


@pytest.mark.parametrize("action", ["draining", "quarantined", "released"])
def test_a_worker_that_a_user_has_decided_about_is_left_alone(action: str) -> None:
    case = a_case(1, event("found", 0), event(action, 10, actor="ann"))
    assert "A user has decided" in note(plan([case], fleet(), second=20))
    # What is found later is another matter.
    later = replace(a_case(1), finding_id=2)
    assert steps(plan([case, later], fleet(), second=20)) == [("w1", "quarantined")]


@pytest.mark.parametrize("availability", ["draining", "quarantined"])
def test_a_worker_that_takes_no_work_anyway_is_left_alone(availability: str) -> None:
    workers = fleet(first=a_live(1, availability=availability))
    assert "no new work anyway" in note(plan([a_case()], workers))


def test_a_quarantine_that_would_have_no_effect_is_not_made() -> None:
    workers = fleet(first=replace(a_live(1), obstacle="This is recorded only."))
    assert note(plan([a_case()], workers)) == "This is recorded only."


def test_a_reason_is_given_once() -> None:
    case = a_case(evidence=900.0)
    reason = note(plan([case], fleet()))
    assert plan([replace(case, events=[event("not_quarantined", 1, reason=reason)])], fleet()).notes == {}


# --- queues ----------------------------------------------------------------------------------------------------------


def test_the_last_worker_of_a_queue_stays() -> None:
    workers = fleet(first=a_live(1, queues=("default", "gpu")))
    assert note(plan([a_case()], workers)) == "It is the last available worker of queue gpu."


@pytest.mark.parametrize("other", [{"state": "unresponsive"}, {"availability": "draining"}])
def test_a_worker_that_cannot_take_over_does_not_count(other: dict[str, Any]) -> None:
    assert "last available" in note(plan([a_case()], [a_live(1), a_live(2, **other)]))


def test_two_rows_of_one_worker_are_one() -> None:
    twice = replace(a_row(1), ref=9, worker_id="w1-reported")
    assert "last available" in note(plan([a_case()], [a_live(1), LiveWorker(twice)]))


@pytest.mark.parametrize(("size", "taken"), [(2, 1), (19, 1), (20, 2), (29, 2), (30, 3)])
def test_one_worker_or_a_tenth_of_a_queue_is_taken_those_with_most_evidence(size: int, taken: int) -> None:
    cases = [a_case(number, evidence=8000.0 + number) for number in range(1, 6) if number <= size]
    made = plan(cases, fleet(size))
    assert [worker for worker, _ in steps(made)] == [f"w{number}" for number in range(len(cases), 0, -1)][:taken]
    if size > len(cases):
        assert made.notes[1] == "As many workers of queue default are out already as may be: 1, or 10 % of them."


@pytest.mark.parametrize("availability", ["draining", "quarantined"])
def test_what_users_took_out_counts(availability: str) -> None:
    workers = [*fleet(10), a_live(11, availability=availability)]
    assert "out already" in note(plan([a_case()], workers))


def test_a_worker_that_is_probed_keeps_its_place() -> None:
    probed = a_case(2, event("quarantined", 0), event("probe", 1800))
    made = plan([a_case(1), probed], fleet(10), second=1860)
    assert "out already" in note(made)


def test_a_worker_without_queues_may_serve_any_of_its_kind() -> None:
    workers = [a_live(1), a_live(2, queues=None), a_live(3, kind="edge")]
    assert steps(plan([a_case()], workers)) == [("w1", "quarantined")]
    assert "last available worker of queue default" in note(plan([a_case()], [a_live(1), a_live(3, kind="edge")]))
    no_queues = [a_live(1, kind="local", queues=None), a_live(2, kind="local", queues=None)]
    assert steps(plan([a_case(), a_case(2)], no_queues)) == [("w1", "quarantined")]


_QUEUES = st.lists(st.sampled_from("abc"), max_size=3, unique=True).map(tuple)
_WORKERS = st.lists(
    st.tuples(
        _QUEUES,
        st.sampled_from(["online", "online", "online", "unresponsive"]),
        st.sampled_from(["available", "available", "available", "draining", "quarantined"]),
        st.booleans(),
        st.booleans(),
    ),
    min_size=1,
    max_size=40,
)


@given(_WORKERS)
@settings(max_examples=300, deadline=None)
def test_never_more_than_a_tenth_of_a_queue_and_never_its_last(drawn: list[tuple[Any, ...]]) -> None:
    workers, cases = [], []
    for number, (queues, state, availability, is_sick, is_probed) in enumerate(drawn, 1):
        workers.append(a_live(number, queues=queues or None, state=state, availability=availability))
        history = [event("quarantined", 0), event("probe", 1800)] if is_probed else []
        if is_sick:
            cases.append(a_case(number, *history))
    taken = {step.row.worker_id for step in plan(cases, workers, second=1800 + HOUR).steps}
    named = {queue for each in workers for queue in each.row.queues or ()} or {""}
    for queue in named:
        members = [each.row for each in workers if queue in (each.row.queues or named)]
        if not any(row.worker_id in taken for row in members):
            continue
        out = [row for row in members if row.availability != "available" or row.worker_id in taken]
        assert len(out) <= max(1, len(members) // 10)
        assert any(row not in out and row.state == "online" for row in members)


# --- probes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probes", "pause"),
    [(0, 0.5), (1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 24), (7, 24), (500, 24)],
)
def test_pauses_double_up_to_a_day(probes: int, pause: float) -> None:
    history = []
    for number in range(probes):
        history += [event("quarantined", number * 10), event("probe", number * 10 + 5)]
    begun = probes * 10
    case = a_case(1, *history, event("quarantined", begun))
    workers = fleet(first=a_live(1, quarantined_at=at(begun)))
    assert plan([case], workers, second=begun + pause * HOUR - 1).steps == []
    made = plan([case], workers, second=begun + pause * HOUR)
    assert steps(made) == [("w1", "probe")]
    assert made.steps[0].availability == "available"
    assert made.steps[0].reason.startswith(f"Probe {probes + 1}: it takes work for 5 minutes")


def test_a_restart_does_not_begin_the_pause_anew() -> None:
    case = a_case(1, event("quarantined", 0))
    heir = a_live(1, worker_id="w1-new", quarantined_at=at(1700))
    assert steps(plan([case], fleet(first=heir), second=1800)) == [("w1-new", "probe")]


@pytest.mark.parametrize(
    ("second", "started", "is_over"), [(299, 2, False), (299, 3, True), (300, 0, True), (10, 9, True)]
)
def test_a_probe_ends_after_its_time_or_its_tries(second: float, started: int, is_over: bool) -> None:
    # Weak by now: it stays a finding until it is well again.
    case = a_case(1, event("quarantined", 0), event("probe", 1800), evidence=900.0)
    made = plan([case], fleet(), second=1800 + second, started=started)
    assert steps(made) == ([("w1", "quarantined")] if is_over else [])
    if is_over:
        assert made.steps[0].reason == "The worker is not known to be well yet. The next probe is in 1 hour."


def test_a_user_who_releases_it_during_a_probe_wins() -> None:
    history = event("quarantined", 0), event("probe", 1800), event("released", 1810, actor="ann")
    assert "A user has decided" in note(plan([a_case(1, *history)], fleet(), second=9000))


@pytest.mark.parametrize("others", [None, {"outcome": "slow"}, {"dimension": "host"}])
def test_a_worker_is_released_once_nothing_is_open_that_may_hold_it(others: dict[str, Any] | None) -> None:
    cases = [] if others is None else [a_case(1, event("quarantined", 0), **others)]
    made = plan(cases, fleet(first=a_live(1, quarantined_at=at(0))), second=10)
    assert steps(made) == [("w1", "released")]
    assert made.steps[0].availability == "available"


def test_another_open_finding_keeps_it_out() -> None:
    other = a_case(1, outcome="lost", evidence=900.0)
    workers = fleet(first=a_live(1, quarantined_at=at(0)))
    assert plan([other], workers, second=10).steps == []
    assert steps(plan([other], workers, second=1800)) == [("w1", "probe")]


def test_what_users_quarantined_is_neither_probed_nor_released() -> None:
    workers = fleet(first=a_live(1, availability="quarantined"))
    assert plan([], workers, second=10**6).steps == []
