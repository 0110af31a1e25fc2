"""The digests that stand for Dag runs and task instances."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from airflow_worker_insight.domain.keys import TaskInstanceKey, TryKey, run_key, task_key

# What Airflow and its databases take as an ID: any text without NUL that is valid Unicode.
ids = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)


def test_they_never_change() -> None:
    """Rows that are stored are found by these numbers: a change would lose all of them."""
    assert run_key("etl", "manual__2026-03-01T12:00:00+00:00") == -5994865063502667407
    assert task_key("extract", -1) == 6204905169058860761
    assert task_key("extract", 3) == -1326468268886194319


@given(ids, ids, st.integers(-1, 10_000))
def test_every_id_has_a_signed_64_bit_key(first: str, second: str, map_index: int) -> None:
    for key in (run_key(first, second), task_key(first, map_index)):
        assert -(2**63) <= key < 2**63


@given(ids, ids, ids, ids)
def test_different_runs_differ(dag_id: str, run_id: str, other_dag_id: str, other_run_id: str) -> None:
    assume((dag_id, run_id) != (other_dag_id, other_run_id))
    assert run_key(dag_id, run_id) != run_key(other_dag_id, other_run_id)


@given(st.lists(ids, min_size=3, max_size=3))
def test_it_matters_where_one_id_ends(parts: list[str]) -> None:
    one, two, three = parts
    assert run_key(one + two, three) != run_key(one, two + three)


@given(ids, st.integers(-1, 10_000), st.integers(-1, 10_000))
def test_different_map_indexes_differ(task_id: str, one: int, other: int) -> None:
    assume(one != other)
    assert task_key(task_id, one) != task_key(task_id, other)


def test_a_try_knows_its_task_instance_and_keys() -> None:
    key = TryKey("etl", "run-1", "extract", 2, 3)
    assert key.task_instance == TaskInstanceKey("etl", "run-1", "extract", 2)
    assert (key.run_key, key.task_key) == (run_key("etl", "run-1"), task_key("extract", 2))
