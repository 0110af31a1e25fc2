"""What is asked of workers that were drained, quarantined or released, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from airflow_worker_insight.domain.enforcement import (
    MAX_QUEUES,
    NO_ANSWER,
    Answer,
    EnforcedWorker,
    Enforcement,
    after,
    effect,
    request_for,
    status,
    with_queues,
)
from tests.unit.database import NOON, at

HELD = EnforcedWorker(1, "w1@host", "quarantined")
IN_EFFECT = Enforcement(("default",), NOON, in_effect_at=NOON, fetched=2)
RELEASED = EnforcedWorker(1, "w1@host", "available", IN_EFFECT)


def test_strictest_decision_on_a_name_is_asked_for() -> None:
    other = EnforcedWorker(2, "w2@host", "available", Enforcement(("etl",), NOON))
    done = EnforcedWorker(4, "w4@host", "available", Enforcement(("gpu",), NOON, released_at=NOON))
    request = request_for([HELD, replace(RELEASED, ref=3), other, done])
    assert request.hold == {"w1@host"}
    assert (request.release, request.released) == ({"w2@host": ("etl",)}, {"w4@host": ("gpu",)})


def test_decision_is_requested_until_the_worker_confirms_it() -> None:
    remembered = with_queues(None, ["default"], now=NOON)
    asked = after(HELD, remembered, Answer(takes_work=True, error="It still consumes a queue."), error=None, now=NOON)
    assert asked == Enforcement(("default",), NOON, error="It still consumes a queue.")
    confirmed = after(HELD, asked, Answer(takes_work=False, fetched=2), error=None, now=at(30))
    assert confirmed == Enforcement(("default",), NOON, in_effect_at=at(30), fetched=2)
    later = after(HELD, confirmed, Answer(takes_work=False, fetched=0), error=None, now=at(60))
    assert later == confirmed, "since when it holds, and what it had fetched then, stays"


def test_decision_that_no_longer_holds_is_requested_again() -> None:
    known = after(HELD, IN_EFFECT, Answer(takes_work=True), error=None, now=at(60))
    assert known is not None
    assert (known.in_effect_at, known.queues) == (None, ("default",))


@pytest.mark.parametrize(("error", "said"), [(None, NO_ANSWER), ("broker is down", "broker is down")])
def test_what_keeps_it_from_being_asked_is_kept_and_its_queues_too(error: str | None, said: str) -> None:
    for worker in (HELD, RELEASED):
        assert after(worker, IN_EFFECT, None, error=error, now=at(60)) == replace(IN_EFFECT, error=said)


def test_released_worker_is_remembered_with_its_queues() -> None:
    done = after(RELEASED, IN_EFFECT, Answer(takes_work=True), error=None, now=at(60))
    assert done == Enforcement(("default",), NOON, released_at=at(60))
    assert after(RELEASED, done, None, error=None, now=at(90)) == done, "its silence means nothing any more"
    lost = after(RELEASED, done, Answer(takes_work=False, error="no"), error=None, now=at(90))
    assert lost == Enforcement(("default",), NOON, error="no")


def test_new_decision_begins_anew_with_the_queues_of_the_last_one() -> None:
    done = Enforcement(("default",), NOON, released_at=at(60))
    assert with_queues(done, ["etl"], now=at(90)) == Enforcement(("default", "etl"), at(90))


def test_made_up_queues_do_not_grow_without_a_bound() -> None:
    known = with_queues(IN_EFFECT, [f"queue-{number:05}" for number in range(5_000)], now=NOON)
    assert (len(known.queues), known.queues[0]) == (MAX_QUEUES, "default")


def said(
    availability: str = "quarantined",
    known: Enforcement | None = None,
    *,
    kind: str = "celery",
    places: bool = False,
    enforces: bool = True,
) -> tuple[str, str] | None:
    found = status(kind, availability, known, places=places, enforces=enforces)
    return None if found is None else (found.state.value, found.text)


def test_what_is_said_of_a_decision() -> None:
    assert said("available") is None
    assert said() == ("requested", "The worker has not confirmed yet that it takes no new work.")
    assert said(known=IN_EFFECT) == (
        "in_effect",
        "The worker consumes none of its queues (default). It had fetched 2 tries before and still ran them.",
    )
    assert said(known=replace(IN_EFFECT, error="No route.")) == (
        "failed",
        "No route. The worker is asked again at each poll.",
    )
    assert said("available", IN_EFFECT) == (
        "requested",
        "The worker has not confirmed yet that it takes work again.",
    )
    assert said(kind="edge", known=IN_EFFECT) == ("in_effect", "The worker is in maintenance mode.")


@pytest.mark.parametrize(
    ("kind", "places", "enforces", "state", "text"),
    [
        ("kubernetes", False, True, "not_enforced", "kubectl cordon NODE"),
        ("local", False, True, "not_enforced", "WorkerInsightLocalExecutor"),
        ("local", True, True, "in_effect", "gives the worker no new tasks"),
        ("celery", False, False, "not_enforced", "enforce_availability is off"),
        ("celery", True, False, "in_effect", "gives the worker no new tasks"),
        ("path.to.OtherExecutor", False, True, "not_enforced", "nothing is known"),
    ],
)
def test_where_no_source_keeps_work_off_it_the_page_says_so(
    kind: str, places: bool, enforces: bool, state: str, text: str
) -> None:
    found = said(kind=kind, places=places, enforces=enforces)
    assert found is not None
    assert found[0] == state
    assert text in found[1]
    assert text in effect(kind, places=places, enforces=enforces)


def test_command_names_the_node_where_it_is_known() -> None:
    assert "kubectl cordon node-7" in effect("kubernetes", places=False, enforces=True, node="node-7")
