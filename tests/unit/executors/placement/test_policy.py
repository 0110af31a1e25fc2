"""Placement policy: the rules before every strategy, the strategies, and the texts of decisions."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from airflow_worker_insight.domain.limits import TEXT_LENGTH
from airflow_worker_insight.domain.reasons import PlacementReason, PlacementStrategy
from airflow_worker_insight.executors.placement.policy import (
    SLOW_WORKER_DELAY,
    Candidate,
    Placer,
    Task,
    UnknownStrategyError,
)
from airflow_worker_insight.executors.placement.slow_workers import DEFAULT_SLOW_FROM

each_strategy = pytest.mark.parametrize("strategy", PlacementStrategy.values())


def a_task(task_id: str = "extract", **others: Any) -> Task:
    known: dict[str, Any] = {"dag_id": "etl", "run_id": "run-1", "map_index": -1, "try_number": 1, "queue": "default"}
    return Task(task_id=task_id, **{**known, **others})


def workers(number: int, **others: Any) -> list[Candidate]:
    known: dict[str, Any] = {"queues": frozenset({"default"}), "concurrency": 4, "capacity": 6}
    return [
        Candidate(ref=ref, worker_id=f"id-{ref}", name=f"w{ref}@etl-1", **{**known, **others})
        for ref in range(1, number + 1)
    ]


def names(placer: Placer, tasks: list[Task]) -> list[str | None]:
    return [decision.worker.name if decision.worker else None for decision in map(placer.place, tasks)]


def many(number: int, **others: Any) -> list[Task]:
    return [a_task(f"task-{n}", **others) for n in range(number)]


# --- rules before every strategy -------------------------------------------------------------------------------------


@each_strategy
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"queues": frozenset({"other"})}, PlacementReason.NO_WORKER),
        ({"state": "unresponsive"}, PlacementReason.NOT_AVAILABLE),
        ({"state": "lost"}, PlacementReason.NOT_AVAILABLE),
        ({"state": None}, PlacementReason.NOT_AVAILABLE),
        ({"availability": "draining"}, PlacementReason.NOT_AVAILABLE),
        ({"availability": "quarantined"}, PlacementReason.NOT_AVAILABLE),
        ({"unavailable_reason": "does not consume its dedicated queue yet"}, PlacementReason.NOT_AVAILABLE),
        ({"load": 6}, PlacementReason.FULL),
    ],
)
def test_worker_that_is_not_eligible_gets_no_task(strategy: str, changed: dict[str, Any], reason: str) -> None:
    out, fits = workers(2)
    out = replace(out, **changed)
    assert set(names(Placer(strategy, [out, fits]), many(6))) == {"w2@etl-1"}
    decision = Placer(strategy, [out]).place(a_task())
    assert (decision.worker, decision.reason) == (None, reason)


@each_strategy
def test_no_worker_exceeds_its_capacity(strategy: str) -> None:
    placer = Placer(strategy, [replace(worker, load=worker.ref) for worker in workers(3)])
    placed = Counter(names(placer, many(20)))
    assert placed == {"w1@etl-1": 5, "w2@etl-1": 4, "w3@etl-1": 3, None: 8}


@each_strategy
def test_chosen_worker_has_the_requested_labels(strategy: str) -> None:
    unlabelled, zoned, both = workers(3)
    zoned, both = replace(zoned, labels={"zone": "a"}), replace(both, labels={"zone": "a", "gpu": "yes"})
    placer = Placer(strategy, [unlabelled, zoned, both])
    assert set(names(placer, many(4, labels={"zone": "a"}))) <= {"w2@etl-1", "w3@etl-1"}
    assert placer.place(a_task(labels={"gpu": "yes", "zone": "a"})).worker == both
    decision = placer.place(a_task(labels={"zone": "b"}))
    assert (decision.worker, decision.reason) == (None, PlacementReason.NO_LABEL)
    assert "lacks zone=b" in decision.text


def test_task_with_an_invalid_request_waits() -> None:
    decision = Placer(PlacementStrategy.LEAST_LOADED, workers(1)).place(
        a_task(invalid_reason="its labels are no mapping")
    )
    assert (decision.worker, decision.reason) == (None, PlacementReason.INVALID_REQUEST)
    assert decision.text == "waits: its labels are no mapping"


@each_strategy
@pytest.mark.parametrize("requested", ["w2@etl-1", "reports"])
def test_task_may_request_a_worker_by_name_or_alias(strategy: str, requested: str) -> None:
    worker, other = workers(2)
    other = replace(other, alias="reports")
    placer = Placer(strategy, [worker, other])
    assert set(names(placer, many(6, worker=requested))) == {"w2@etl-1"}
    full = placer.place(a_task(worker=requested))
    assert (full.worker, full.reason) == (None, PlacementReason.FULL)
    away = Placer(strategy, [worker, replace(other, availability="draining")]).place(a_task(worker=requested))
    assert (away.worker, away.reason) == (None, PlacementReason.NOT_AVAILABLE)


@each_strategy
def test_decision_names_a_requested_worker_that_does_not_exist(strategy: str) -> None:
    decision = Placer(strategy, workers(2)).place(a_task(worker="w7@etl-1"))
    assert (decision.worker, decision.reason) == (None, PlacementReason.NO_SUCH_WORKER)
    assert decision.text == "waits: no worker of the queue default is named w7@etl-1"


@pytest.mark.parametrize("strategy", ["", "fastest", "LEAST_LOADED"])
def test_unknown_strategy_is_rejected(strategy: str) -> None:
    with pytest.raises(UnknownStrategyError, match="least_loaded, round_robin, sticky"):
        Placer(strategy, [])


# --- retries ---------------------------------------------------------------------------------------------------------


@each_strategy
def test_retry_avoids_the_workers_that_failed_it(strategy: str) -> None:
    failed = frozenset({"w1@etl-1", "w3@etl-1"})
    for task in many(30, try_number=2, avoid=failed):
        decision = Placer(strategy, workers(4)).place(task)
        assert decision.worker is not None
        assert decision.worker.name in {"w2@etl-1", "w4@etl-1"}
        assert decision.reason == PlacementReason.RETRY_ELSEWHERE
        assert "avoids w1@etl-1, w3@etl-1" in decision.text


@each_strategy
def test_retry_waits_for_other_workers_that_are_full(strategy: str) -> None:
    failed, other = workers(2)
    decision = Placer(strategy, [failed, replace(other, load=6)]).place(a_task(avoid=frozenset({failed.name})))
    assert (decision.worker, decision.reason) == (None, PlacementReason.OTHERS_FULL)


@each_strategy
@pytest.mark.parametrize("changed", [{"unavailable_reason": "does not answer"}, {"state": "unresponsive"}])
def test_retry_waits_for_other_workers_that_may_return(strategy: str, changed: dict[str, Any]) -> None:
    failed, other = workers(2)
    decision = Placer(strategy, [failed, replace(other, **changed)]).place(a_task(avoid=frozenset({failed.name})))
    assert (decision.worker, decision.reason) == (None, PlacementReason.OTHERS_FULL)


@each_strategy
def test_retry_goes_to_the_same_worker_if_no_other_is_eligible(strategy: str) -> None:
    failed, other = workers(2)
    gone = replace(other, availability="quarantined")
    decision = Placer(strategy, [failed, gone]).place(a_task(avoid=frozenset({failed.name})))
    assert (decision.worker, decision.reason) == (failed, PlacementReason.RETRY_AGAIN)
    assert "has failed this task before" in decision.text
    assert f"{other.name} (quarantined)" in decision.text


@each_strategy
def test_avoided_worker_is_free_for_the_next_task(strategy: str) -> None:
    placer = Placer(strategy, workers(2))
    assert placer.place(a_task(avoid=frozenset({"w1@etl-1"}))).worker == workers(2)[1]
    assert placer.place(a_task(avoid=frozenset({"w2@etl-1"}))).worker == workers(2)[0]


# --- slow workers ----------------------------------------------------------------------------------------------------


@each_strategy
def test_slow_worker_gets_no_task_while_faster_ones_get_some(strategy: str) -> None:
    slow, fast = workers(2)
    slow = replace(slow, slowness=10.2)
    history: dict[int, float] = {}
    placer = Placer(strategy, [slow, fast], history, now=100.0)
    assert set(names(placer, many(6))) == {fast.name}
    # The other one is full, and has just been given something.
    decision = placer.place(a_task())
    assert (decision.worker, decision.reason) == (None, PlacementReason.FULL)
    assert f"{slow.name} (takes 10 times as long as others)" in decision.text
    full = [slow, replace(fast, load=6)]
    assert Placer(strategy, full, history, now=100.0 + SLOW_WORKER_DELAY - 1).place(a_task()).worker is None


@each_strategy
def test_slow_worker_is_used_once_faster_ones_get_no_more_tasks(strategy: str) -> None:
    slow, fast = workers(2)
    full = [replace(slow, slowness=DEFAULT_SLOW_FROM), replace(fast, load=6)]
    for history, now in (({}, 0.0), ({fast.ref: 100.0}, 101.0 + SLOW_WORKER_DELAY)):
        decision = Placer(strategy, full, history, now=now).place(a_task())
        assert decision.worker == full[0]
        assert decision.reason == PlacementReason.SLOW
    assert Placer(strategy, full[:1]).place(a_task()).reason == PlacementReason.SLOW


@each_strategy
def test_slow_worker_is_used_if_waiting_for_faster_ones_takes_longer(strategy: str) -> None:
    slow, fast = workers(2, capacity=4)
    slow = replace(slow, slowness=4.0)
    # The other one does four at once: it would come to the twelfth after three times four.
    placed = names(Placer(strategy, [slow, fast], now=100.0), many(4 + 12 + 6))
    assert placed == [fast.name] * 4 + [None] * 12 + [slow.name] * 4 + [None] * 2


@each_strategy
def test_retry_does_not_wait_for_a_worker_that_will_not_return(strategy: str) -> None:
    failed, silent = workers(2)
    silent = replace(silent, unavailable_reason="does not answer", may_return=False)
    decision = Placer(strategy, [failed, silent]).place(a_task(avoid=frozenset({failed.name})))
    assert (decision.worker, decision.reason) == (failed, PlacementReason.RETRY_AGAIN)


@each_strategy
def test_retry_prefers_a_slow_worker_to_the_one_that_failed_it(strategy: str) -> None:
    slow, failed = workers(2)
    slow = replace(slow, slowness=5.0)
    placer = Placer(strategy, [slow, failed], {failed.ref: 100.0}, now=100.0)
    decision = placer.place(a_task(avoid=frozenset({failed.name})))
    assert (decision.worker, decision.reason) == (slow, PlacementReason.RETRY_ELSEWHERE)


# --- strategies ------------------------------------------------------------------------------------------------------


def test_load_is_relative_to_concurrency() -> None:
    small, large = workers(2)
    large = replace(large, concurrency=16, capacity=18, load=12)
    placer = Placer(PlacementStrategy.LEAST_LOADED, [replace(small, load=3), large])
    # 3 of 4 and 12 of 16 are equal; from there on four of the large one's go with one of the small one's.
    assert Counter(names(placer, many(5))) == {"w1@etl-1": 1, "w2@etl-1": 4}


@pytest.mark.parametrize("strategy", [PlacementStrategy.LEAST_LOADED, PlacementStrategy.ROUND_ROBIN])
def test_equal_workers_take_turns_across_batches(strategy: str) -> None:
    history: dict[int, float] = {}
    placed = [
        decision.worker.name
        for task in many(40)
        # Each task ends before the next is placed.
        if (decision := Placer(strategy, workers(4), history).place(task)).worker
    ]
    assert set(Counter(placed).values()) == {10}
    assert placed[:4] == placed[4:8]


def test_round_robin_ignores_loads() -> None:
    worker, other = workers(2)
    placer = Placer(PlacementStrategy.ROUND_ROBIN, [replace(worker, load=4), other])
    assert Counter(names(placer, many(4))) == {"w1@etl-1": 2, "w2@etl-1": 2}


def test_order_of_candidates_does_not_matter() -> None:
    first = names(Placer(PlacementStrategy.LEAST_LOADED, workers(7)), many(30))
    assert first == names(Placer(PlacementStrategy.LEAST_LOADED, list(reversed(workers(7)))), many(30))


def test_task_sticks_to_its_worker_when_others_come_and_go() -> None:
    ten = workers(10, capacity=1000)
    tasks = many(500)
    before = names(Placer(PlacementStrategy.STICKY, ten), tasks)
    assert before == names(Placer(PlacementStrategy.STICKY, ten), tasks)
    assert max(Counter(before).values()) < 2 * 500 / 10
    after = names(Placer(PlacementStrategy.STICKY, ten[1:]), tasks)
    assert all(old == new for old, new in zip(before, after, strict=True) if old != "w1@etl-1")
    restarted = [replace(worker, ref=worker.ref + 100, worker_id=f"new-{worker.ref}") for worker in ten]
    assert before == names(Placer(PlacementStrategy.STICKY, restarted), tasks)


def test_sticky_task_goes_to_its_next_worker_if_the_first_is_full() -> None:
    three = workers(3)
    first = Placer(PlacementStrategy.STICKY, three).place(a_task())
    assert first.worker is not None
    assert first.reason == PlacementStrategy.STICKY
    full = [replace(worker, load=6) if worker == first.worker else worker for worker in three]
    second = Placer(PlacementStrategy.STICKY, full).place(a_task())
    assert second.worker is not None
    assert second.worker != first.worker
    assert second.reason == PlacementReason.STICKY_NEXT
    # All other mapped tasks of it stay together too.
    assert set(names(Placer(PlacementStrategy.STICKY, three), [a_task(map_index=n) for n in range(5)])) == {
        first.worker.name
    }


# --- texts of decisions ----------------------------------------------------------------------------------------------


def test_decision_text_is_one_line() -> None:
    worker, drained, lost = workers(3)
    candidates = [
        replace(worker, load=2),
        replace(drained, availability="draining"),
        replace(lost, state="lost"),
    ]
    assert Placer(PlacementStrategy.LEAST_LOADED, candidates).place(a_task()).text == (
        "w1@etl-1: least loaded of one worker, 2 of 6 slots taken; left out: w2@etl-1 (draining); w3@etl-1 (lost)"
    )


def test_decision_text_is_short_however_many_workers_are_left_out() -> None:
    text = (
        Placer(
            PlacementStrategy.LEAST_LOADED,
            [replace(worker, name=worker.name * 30) for worker in workers(50, state="lost")],
        )
        .place(a_task())
        .text
    )
    assert len(text) <= TEXT_LENGTH
    text = Placer(PlacementStrategy.LEAST_LOADED, workers(50, state="lost")).place(a_task()).text
    assert text.endswith("left out: w1@etl-1, w2@etl-1, w3@etl-1 and 47 more (lost)")


# --- whatever the fleet is like --------------------------------------------------------------------------------------


@each_strategy
@pytest.mark.parametrize("seed", range(40))
def test_rules_hold_for_random_workers(strategy: str, seed: int) -> None:
    chance = random.Random(seed)
    fleet = [
        replace(
            worker,
            queues=frozenset(chance.sample(["default", "gpu"], chance.randint(0, 2))),
            labels={"zone": chance.choice("ab")},
            concurrency=chance.randint(1, 8),
            capacity=chance.randint(1, 12),
            load=chance.randint(0, 12),
            state=chance.choice(["online", "online", "online", "lost", None]),
            availability=chance.choice(["available", "available", "draining"]),
            slowness=chance.choice([1.0, 1.0, 1.0, 9.0]),
        )
        for worker in workers(chance.randint(0, 12))
    ]
    placer = Placer(strategy, fleet, now=1000.0)
    loads = {worker.ref: worker.load for worker in fleet}
    for number in range(60):
        task = a_task(
            f"task-{number}",
            queue=chance.choice(["default", "gpu", "none"]),
            labels=chance.choice([{}, {"zone": "a"}]),
            avoid=frozenset(worker.name for worker in fleet if chance.random() < 0.2),
        )
        decision = placer.place(task)
        assert decision.reason in PlacementReason.values()
        assert 0 < len(decision.text) <= TEXT_LENGTH
        assert "\n" not in decision.text
        fits = [
            worker
            for worker in fleet
            if task.queue in worker.queues
            and worker.state == "online"
            and worker.availability == "available"
            and task.labels.items() <= worker.labels.items()
        ]
        free = [worker for worker in fits if loads[worker.ref] < worker.capacity]
        others = [worker for worker in free if worker.name not in task.avoid]
        if decision.worker is None:
            left = others if any(worker.name not in task.avoid for worker in fits) else free
            # Faster ones have just been given something.
            assert all(worker.slowness >= DEFAULT_SLOW_FROM for worker in left)
            continue
        assert decision.worker in free
        if decision.worker.slowness >= DEFAULT_SLOW_FROM:
            assert not [worker for worker in (others or free) if worker.slowness < DEFAULT_SLOW_FROM]
        assert decision.worker in others or all(worker.name in task.avoid for worker in fits)
        if strategy == PlacementStrategy.LEAST_LOADED:
            allowed = others or free
            allowed = [worker for worker in allowed if worker.slowness < DEFAULT_SLOW_FROM] or allowed
            least = min(loads[worker.ref] / worker.concurrency for worker in allowed)
            assert loads[decision.worker.ref] / decision.worker.concurrency == least
        loads[decision.worker.ref] += 1
