"""What is read from Airflow's own tables."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight import compat
from airflow_worker_insight.domain.states import FINISHED, FINISHED_RUN
from airflow_worker_insight.store import airflow_history
from tests.unit.database import Database, add_run, add_try, at, on_both

if TYPE_CHECKING:
    from airflow_worker_insight.domain.attempts import DagRunRef
    from airflow_worker_insight.domain.keys import TryKey

airflow_3 = pytest.mark.skipif(not compat.is_airflow_3(), reason="Airflow 2.11 has no IDs of tries")


def test_the_final_states_are_airflows() -> None:
    from airflow.utils.state import State

    assert {state.value for state in State.finished} == FINISHED
    assert {state.value for state in State.finished_dr_states} == set(FINISHED_RUN)


@on_both
def test_all_tries_of_a_run_with_what_airflow_keeps(database: Database) -> None:
    with database.engine.begin() as connection:
        run, other = add_run(connection), add_run(connection, run_id="run-2")
        last = add_try(
            connection, run, try_number=2, pid=42, queued_dttm=at(1), executor="CeleryExecutor", queued_by_job_id=7
        )
        first = add_try(connection, run, try_number=1, state="failed", hostname="host-2", history=True)
        mapped = add_try(connection, run, "load", map_index=3, hostname=None, started_at=None, ended_at=None)
        add_try(connection, other)

        found = airflow_history.tries_of_runs(connection, [run])

    assert [one.key for one in found] == [first, last, mapped]
    assert (found[0].state, found[0].hostname) == ("failed", "host-2")
    assert (found[1].pid, found[1].queued_at, found[1].executor, found[1].queued_by_job_id) == (
        42,
        at(1),
        "CeleryExecutor",
        7,
    )
    assert (found[1].started_at, found[1].ended_at) == (at(10), at(20))
    assert (found[2].hostname, found[2].started_at, found[2].ended_at) == (None, None, None)


@on_both
def test_where_both_tables_hold_a_try_the_history_is_final(database: Database) -> None:
    """Between clearing a task and its next try, the task instance keeps the number of the try that ended."""
    with database.engine.begin() as connection:
        run = add_run(connection)
        key = add_try(connection, run, state=None, hostname=None, started_at=None, ended_at=None)
        add_try(connection, run, state="failed", hostname="host-2", history=True)
        (one,) = airflow_history.tries_of_runs(connection, [run])
    assert (one.key, one.state, one.hostname, one.is_finished) == (key, "failed", "host-2", True)


def test_tries_of_one_task_instance_and_of_keys(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection)
        second = add_try(connection, run, map_index=0, try_number=2)
        first = add_try(connection, run, map_index=0, try_number=1, history=True)
        neighbour = add_try(connection, run, map_index=1)
        of_one = airflow_history.tries_of_task_instance(
            connection, dag_id="etl", run_id="run-1", task_id="extract", map_index=0
        )
        unknown: TryKey = replace(first, try_number=9)
        of_keys = airflow_history.tries_of_task_instances(connection, [first, neighbour, unknown])
        of_nothing = airflow_history.tries_of_task_instances(connection, [])
    assert [one.key for one in of_one] == [first, second]
    assert of_keys.keys() == {first, neighbour}
    assert of_nothing == {}


@airflow_3
@on_both
@pytest.mark.parametrize("history", [False, True])
def test_a_try_is_found_by_its_id_also_after_it_ended(database: Database, *, history: bool) -> None:
    try_id = uuid.uuid4()
    with database.engine.begin() as connection:
        run = add_run(connection)
        if history:
            add_try(connection, run, try_number=2, state="queued")
        key = add_try(
            connection, run, try_number=1, state="failed" if history else "running", try_id=try_id, history=history
        )
        found = airflow_history.try_by_id(connection, try_id)
        assert airflow_history.try_by_id(connection, uuid.uuid4()) is None
    assert found is not None
    assert (found.key, found.state, found.started_at) == (key, "failed" if history else "running", at(10))


@airflow_3
def test_a_try_without_a_state_runs_because_its_process_says_so(database: Database) -> None:
    try_id = uuid.uuid4()
    with database.engine.begin() as connection:
        add_try(connection, add_run(connection), state=None, try_id=try_id)
        found = airflow_history.try_by_id(connection, try_id)
    assert found is not None
    assert found.state == "running"


def test_finished_runs_in_the_order_of_their_rows(database: Database) -> None:
    with database.engine.begin() as connection:
        one = add_run(connection, run_id="run-1", ended_at=at(100))
        add_run(connection, run_id="run-2", state="running", ended_at=None)
        three = add_run(connection, run_id="run-3", state="failed", ended_at=at(50))
        four = add_run(connection, "other", "run-4", ended_at=at(200))
        add_run(connection, "other", "run-5", state="queued", ended_at=None)

        def found(**selection: object) -> list[DagRunRef]:
            runs = airflow_history.finished_runs(connection, limit=10, **selection)  # type: ignore[arg-type]
            counted = airflow_history.count_finished_runs(connection, **selection)  # type: ignore[arg-type]
            assert counted == len(runs)
            return runs

        assert found() == [one, three, four]
        assert found(dag_id="etl") == [one, three]
        assert found(ended_since=at(100)) == [one, four]
        assert found(after_row_id=one.row_id) == [three, four]
        assert found(dag_id="nothing") == []
        assert airflow_history.finished_runs(connection, limit=2) == [one, three]


def test_a_run_is_found_by_its_names(database: Database) -> None:
    with database.engine.begin() as connection:
        run = add_run(connection)
        assert airflow_history.find_run(connection, "etl", "run-1") == run
        assert airflow_history.find_run(connection, "etl", "run-2") is None
        assert airflow_history.find_run(connection, "other", "run-1") is None
