"""What can be said of a failed try, and of a worker against its peers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.store.attempts.first_tries import FirstTry
from airflow_worker_insight.ui.query_params import AttemptsParams
from airflow_worker_insight.ui.views.comparison import (
    BUSY,
    MAX_TASKS,
    Failure,
    build_comparison,
    build_restart,
    build_verdict,
    latest_failure,
    tasks_to_compare,
)
from tests.unit.database import at
from tests.unit.ui.attempts import a_try, on, one_of_the_host
from tests.unit.ui.workers import a_worker_row

NOW = at(1000)


def first_tries(name: str, tries: int, failures: int, task_id: str = "load") -> list[FirstTry]:
    """Return so many first tries on a worker, the failed ones first."""
    return [
        FirstTry(TryKey("etl", f"run-{number}", task_id, -1, 1), name, at(number), has_failed=number < failures)
        for number in range(tries)
    ]


FAILURE = Failure(a_try(1, 0, 9, on("w3", name="w3"), state="failed"), on("w3", name="w3"))


@pytest.mark.parametrize(
    ("own", "others", "text"),
    [
        (
            (6, 5),
            (26, 1),
            "w3 fails more than its peers on `load`: 5 of 6 tries on w3 failed, 1 of 26 elsewhere.",
        ),
        ((6, 5), (26, 20), "`load` fails everywhere: 5 of 6 tries on w3 failed, 20 of 26 elsewhere."),
        ((1, 1), (26, 1), "Not enough yet: 1 try. 1 of 1 try on w3 failed, 1 of 26 elsewhere."),
        ((6, 6), (0, 0), "Cannot be told: no other worker ran these tasks."),
    ],
)
def test_verdict_says_whether_the_task_or_the_worker_fails(
    own: tuple[int, int], others: tuple[int, int], text: str
) -> None:
    tries = [*first_tries("w3", *own), *first_tries("w4", *others)]
    verdict = build_verdict(FAILURE, tries, now=NOW)
    assert verdict.heading == "Is it the worker? Try 1 failed on w3"
    assert verdict.text == text
    assert verdict.basis.startswith(f"Compared: the latest {len(tries)} first tries")


def test_verdict_of_a_busy_database_says_so() -> None:
    verdict = build_verdict(FAILURE, None, now=NOW, findings=[7])
    assert (verdict.text, verdict.basis, verdict.findings) == (BUSY, "", (7,))


def test_old_failure_is_compared_with_what_ran_until_a_day_later() -> None:
    later = at(5 * 86_400)
    assert FAILURE.until(NOW) == NOW
    assert FAILURE.until(later) == at(86_400)
    assert "up to a day after it" in build_verdict(FAILURE, first_tries("w3", 1, 1), now=later).basis


def test_latest_failed_try_is_judged_also_if_a_later_one_succeeded() -> None:
    tries = [
        a_try(1, 0, 9, on("w1"), state="failed"),
        a_try(2, 10, 19, on("w1"), on("w2"), state="failed"),
        a_try(3, 20, 29, on("w1"), state="success"),
    ]
    failure = latest_failure(tries, {})
    assert failure is not None
    assert (failure.attempt.try_number, failure.worker.worker_id) == (2, "w2")


def test_try_that_waits_for_its_retry_has_failed() -> None:
    assert latest_failure([a_try(1, 0, 9, on("w1"), state="up_for_retry")], {}) is not None


@pytest.mark.parametrize("state", ["success", "running", "skipped", "upstream_failed", "queued", None])
def test_nothing_is_said_of_a_try_that_did_not_fail(state: str | None) -> None:
    assert latest_failure([a_try(1, 0, None, on("w1"), state=state)], {"w1": a_worker_row("w1")}) is None


def test_try_on_a_lost_worker_is_judged_as_lost() -> None:
    failure = latest_failure([a_try(1, 0, None, on("w1"), state="running")], {"w1": a_worker_row("w1", state="lost")})
    assert failure is not None
    assert build_verdict(failure, [], now=NOW).heading == "Is it the worker? Try 1 was lost on w1@host-1"


def test_nothing_is_said_where_the_worker_is_unknown() -> None:
    assert latest_failure([a_try(1, 0, 9, state="failed")], {}) is None
    assert latest_failure([a_try(1, 0, 9, one_of_the_host(), state="failed")], {}) is None


def test_worker_is_compared_by_the_tasks_that_failed_on_it_the_largest_excess_first() -> None:
    own = [
        *first_tries("w3", 10, 4, "flaky"),
        *first_tries("w3", 8, 3, "load"),
        *first_tries("w3", 20, 0, "fine"),
    ]
    peers = [
        *first_tries("w4", 20, 8, "flaky"),
        *first_tries("w4", 30, 1, "load"),
        # An earlier instance of its name is no peer.
        *first_tries("w3", 9, 9, "load"),
    ]
    assert set(tasks_to_compare(own)) == {("etl", "flaky"), ("etl", "load")}
    comparison = build_comparison("id-of-w3", own, peers)
    assert comparison.text == (
        "7 of its latest 38 first tries of 3 tasks failed. Only tasks that failed here are compared."
    )
    load, flaky = comparison.lines
    assert (load.task_id, load.own, load.own_rate, load.peers, load.peer_rate) == (
        "load",
        "3 of 8",
        "38 %",
        "1 of 30",
        "3 %",
    )
    assert load.text.startswith("w3 fails more than its peers on `load`: 3 of 8 tries on w3 failed, 1 of 30 elsewhere")
    assert load.params == AttemptsParams(dag_id="etl", task_id="load", worker="id-of-w3", window="any")
    assert flaky.text.startswith("`flaky` fails everywhere")


def test_task_without_peers_is_listed_and_cannot_be_told() -> None:
    (line,) = build_comparison("w3", first_tries("w3", 9, 9), []).lines
    assert (line.peers, line.peer_rate) == ("–", "")
    assert line.text == "Cannot be told: no other worker ran these tasks."


def test_healthy_and_new_and_busy_are_told_apart() -> None:
    assert (
        build_comparison("w3", first_tries("w3", 9, 0), []).text == "Its latest 9 first tries, of 1 task: none failed."
    )
    assert build_comparison("w3", [], []).text == "No first try to compare."
    assert build_comparison("w3", None, []).text == BUSY


def test_restart_is_judged_by_the_latest_tries_before_and_since() -> None:
    restart = build_restart(at(0), first_tries("w3", 120, 99), first_tries("w3", 9, 0))
    assert restart.before == "99 of 100 first tries failed (99 %)"
    assert restart.since == "0 of 9 first tries failed (0 %)"
    assert build_restart(at(0), [], first_tries("w3", 1, 1)).before == "no first try that you may see"


def test_only_some_tasks_are_compared_and_the_rest_is_counted() -> None:
    own = [
        replace(each, key=replace(each.key, task_id=f"t{number}"))
        for number, each in enumerate(first_tries("w3", 25, 25))
    ]
    comparison = build_comparison("w3", own, [])
    assert len(comparison.lines) == MAX_TASKS
    assert comparison.rest == "And 5 tasks more."
