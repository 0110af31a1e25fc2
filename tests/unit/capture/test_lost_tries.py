"""Tries of which Airflow has kept nothing: a later one shows that they were."""

from __future__ import annotations

from datetime import datetime, timezone

from airflow_worker_insight.capture.reconcile import make_plan
from airflow_worker_insight.store.airflow_tries import AirflowTry, lost_tries
from airflow_worker_insight.store.closing import Recorded
from airflow_worker_insight.store.keys import TryKey

START = datetime(2026, 1, 31, 8, tzinfo=timezone.utc)


def key(number: int, task_id: str = "load") -> TryKey:
    return TryKey("sales", "run", task_id, -1, number)


def ended(number: int, task_id: str = "load") -> AirflowTry:
    return AirflowTry(key(number, task_id), state="success", started_at=START, ended_at=START)


def test_the_numbers_below_the_last_one_are_lost_where_no_row_has_them() -> None:
    known = [ended(1), ended(4), ended(1, "other"), ended(0, "skipped")]
    assert [one.key for one in lost_tries(known)] == [key(2), key(3)]
    assert all(one.is_lost and one.state is None for one in lost_tries(known))


def test_a_lost_try_is_added_as_unknown_once() -> None:
    plan = make_plan([ended(2)], {}, [], default_executor="LocalExecutor", installed_at=None)
    assert {one.key.try_number: verdict.attribution for one, verdict in plan.add} == {
        2: "not_on_a_worker",
        1: "unknown",
    }

    known = {key(1): Recorded(None, None, None), key(2): Recorded("success", START, START)}
    plan = make_plan([ended(2)], known, [], default_executor="LocalExecutor", installed_at=None)
    assert (plan.add, plan.close) == ([], [])


def test_a_lost_try_that_was_reported_does_not_run_for_ever() -> None:
    known = {key(1): Recorded("running", START, None), key(2): Recorded("success", START, START)}
    plan = make_plan([ended(2)], known, [], default_executor="LocalExecutor", installed_at=None)
    assert [(one.key, one.state, one.started_at) for one in plan.close] == [(key(1), None, START)]
    assert plan.add == []
