"""Tries of which Airflow has kept nothing: a later one shows that they were."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from airflow_worker_insight.capture.reconcile import Plan, make_plan
from airflow_worker_insight.domain.attempts import AirflowTry, DagRunRef, lost_tries
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.store.attempts.close import RecordedTry

START = datetime(2026, 1, 31, 8, tzinfo=timezone.utc)


def key(number: int, task_id: str = "load") -> TryKey:
    return TryKey("sales", "run", task_id, -1, number)


def ended(number: int, task_id: str = "load") -> AirflowTry:
    # As Airflow 3 has them: each try has an ID of its own, which a lost one has left to the next.
    return AirflowTry(key(number, task_id), (number,), state="success", started_at=START, ended_at=START)


def recorded(number: int, instance: int, state: str | None = None, ended_at: datetime | None = None) -> RecordedTry:
    started_at = None if state is None else START
    return RecordedTry((key(number).run_key, instance, number), key(number), state, started_at, ended_at)


def planned(known: list[RecordedTry], *, began_at: datetime = START) -> Plan:
    runs = [DagRunRef(1, "sales", "run", "success", began_at)]
    return make_plan(runs, [ended(2)], known, [], default_executor="LocalExecutor", installed_at=None)


def test_the_numbers_below_the_last_one_are_lost_where_no_row_has_them() -> None:
    known = [ended(1), ended(4), ended(1, "other"), ended(0, "skipped")]
    assert {one.key for one in lost_tries(known)} == {key(2), key(3)}
    assert all(one.is_lost and one.state is None and one.instance_keys == (4,) for one in lost_tries(known))


def test_a_lost_try_is_added_as_unknown_once() -> None:
    assert {one.key.try_number: verdict.attribution for one, verdict in planned([]).add} == {
        2: "not_on_a_worker",
        1: "unknown",
    }
    plan = planned([recorded(1, 2), recorded(2, 2, "success", START)])
    assert (plan.add, plan.close) == ([], [])


def test_a_lost_try_that_was_reported_does_not_run_for_ever() -> None:
    plan = planned([recorded(1, 2, "running"), recorded(2, 2, "success", START)])
    assert [(one.key, one.state, one.started_at) for _, one in plan.close] == [(key(1), None, START)]
    assert plan.add == []


def test_a_try_whose_history_airflow_has_removed_is_known_all_the_same() -> None:
    known = [recorded(1, 1, "failed", START), recorded(2, 2, "success", START)]
    assert (planned(known).add, planned(known).close) == ([], [])
    # The Dag run began after that: it was a try of another one with this name.
    (added,) = planned(known, began_at=START + timedelta(seconds=1)).add
    assert (added[0].key, added[1].attribution) == (key(1), "unknown")
