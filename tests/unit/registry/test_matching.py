"""Which life a sighting is of."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_worker_insight.domain.states import WorkerState
from airflow_worker_insight.registry.matching import match
from tests.unit.database import NOON, at
from tests.unit.registry.fleets import a_life, a_sighting

if TYPE_CHECKING:
    from airflow_worker_insight.domain.workers import WorkerInstance
    from airflow_worker_insight.registry.observations import WorkerObservation


def matched(sighting: WorkerObservation, *lives: WorkerInstance) -> int | None:
    """Return the row ID of the life that one sighting is of."""
    found = match([sighting], lives)
    return found.pairs[0][1].ref if found.pairs else None


# --- Celery ----------------------------------------------------------------------------------------------------------


def test_the_same_node_process_and_start_is_the_same_life() -> None:
    assert matched(a_sighting(), a_life(1)) == 1


@pytest.mark.parametrize("seconds", [-4, 0, 4])
def test_engines_round(seconds: float) -> None:
    assert matched(a_sighting(started_at=at(-3600 + seconds)), a_life(1)) == 1


@pytest.mark.parametrize("others", [{"pid": 101}, {"engine_name": "w2@host-1"}, {"kind": "edge"}])
def test_another_name_process_or_kind_is_another_worker(others: dict[str, Any]) -> None:
    assert matched(a_sighting(**others), a_life(1)) is None


def test_a_restarted_container_has_the_same_process_id_and_is_a_new_life() -> None:
    assert matched(a_sighting(started_at=at(10)), a_life(1)) is None


@pytest.mark.parametrize("step", [-600, -60, 60, 600])
def test_a_clock_that_is_set_anew_does_not_make_a_new_life(step: float) -> None:
    """The start is worked out from how long the worker says it runs."""
    assert matched(a_sighting(started_at=at(-3600 + step)), a_life(1)) == 1


def test_one_that_only_its_own_processes_told_of_is_known_by_name_and_process() -> None:
    reported = a_life(1, is_reported=True, engine_started_at=None, engine_heartbeat_at=None)
    assert matched(a_sighting(started_at=at(-3600)), reported) == 1
    # The API server's clock may be behind the database's.
    assert matched(a_sighting(started_at=at(-3600 + 600)), reported) == 1
    assert matched(a_sighting(started_at=at(-1800)), reported) is None


def test_of_several_lives_the_latest_is_meant() -> None:
    lives = [
        a_life(ref, is_reported=True, engine_started_at=None, engine_heartbeat_at=None, registered_at=at(-10 + ref))
        for ref in (1, 2)
    ]
    assert matched(a_sighting(started_at=at(-20)), *lives) == 2


def test_one_that_has_ended_may_come_back() -> None:
    assert matched(a_sighting(), a_life(1, state=WorkerState.LOST, ended_at=NOON)) == 1


def test_two_workers_under_one_name_keep_their_own_lives() -> None:
    """Containers have the same process IDs, and a node name may be given twice."""
    lives = [a_life(1, engine_started_at=at(-3600)), a_life(2, engine_started_at=at(-1800))]
    sightings = [a_sighting(started_at=at(-1801)), a_sighting(started_at=at(-3599))]
    found = match(sightings, lives)
    assert {(sighting.started_at, life.ref) for sighting, life in found.pairs} == {(at(-1801), 2), (at(-3599), 1)}
    assert match([*sightings, a_sighting(started_at=at(-100))], lives).unmatched


def test_an_answer_without_a_process_is_of_the_latest_life_of_its_name() -> None:
    partial = a_sighting(pid=None, started_at=None, is_partial=True)
    assert matched(partial, a_life(1, pid=100), a_life(2, pid=200)) == 2
    assert not match([partial], [a_life(1), a_life(2, is_reported=True)]).twins


def test_a_second_answer_of_one_process_is_left_out() -> None:
    found = match([a_sighting(), a_sighting(started_at=at(-3598))], [a_life(1)])
    assert (len(found.pairs), found.unmatched) == (1, [])
    found = match([a_sighting(), a_sighting()], [])
    assert len(found.unmatched) == 1


# --- Edge and LocalExecutor ------------------------------------------------------------------------------------------


def test_an_edge_worker_is_known_by_its_name_and_its_start() -> None:
    edge = {"kind": "edge", "engine_name": "edge-1", "pid": None}
    sighting = a_sighting(**edge)
    assert matched(sighting, a_life(1, **edge)) == 1
    assert matched(sighting, a_life(1, **edge, engine_started_at=at(-7200))) is None
    assert matched(sighting, a_life(1, **edge, engine_started_at=None)) == 1
    assert matched(a_sighting(**edge, started_at=None), a_life(1, **edge, state=WorkerState.LOST, ended_at=NOON)) == 1


def test_an_edge_worker_that_left_in_order_is_another_one_when_it_is_back() -> None:
    edge = {"kind": "edge", "engine_name": "edge-1", "pid": None}
    sighting = a_sighting(**edge, started_at=None)
    assert matched(sighting, a_life(1, **edge, state=WorkerState.OFFLINE, ended_at=NOON)) is None


def test_a_local_worker_is_its_schedulers_job() -> None:
    local = {"kind": "local", "engine_name": "local@host-1", "pid": None}
    sighting = a_sighting(**local, job_id=7)
    assert matched(sighting, a_life(1, **local, job_id=6), a_life(2, **local, job_id=7)) == 2
    assert matched(sighting, a_life(1, **local, job_id=6)) is None
    assert matched(sighting, a_life(1, **local, job_id=None)) == 1
    assert matched(sighting, a_life(1, **local, job_id=None, state=WorkerState.LOST, ended_at=NOON)) is None


def test_several_local_workers_of_one_scheduler_are_not_its_one_worker() -> None:
    local = {"kind": "local", "pid": None, "job_id": 7}
    etl = a_life(1, **local, engine_name="etl@host-1", is_reported=True)
    plain = a_life(2, **local, engine_name="local@host-1")
    sighting = a_sighting(**local, engine_name="local@host-1")
    assert matched(sighting, etl) is None
    assert matched(sighting, etl, plain) == 2
    assert not match([sighting], [etl, plain]).twins
    assert matched(a_sighting(**local, engine_name="etl@host-1", ref=1), etl, plain) == 1


def test_a_sighting_of_a_row_is_of_that_row() -> None:
    assert matched(a_sighting(kind="kubernetes", ref=2), a_life(1), a_life(2, kind="kubernetes")) == 2
    assert matched(a_sighting(kind="kubernetes", ref=3), a_life(1), a_life(2, kind="kubernetes")) is None


# --- two rows of one life --------------------------------------------------------------------------------------------


def test_the_row_that_the_engine_told_of_is_kept_and_the_reported_one_is_its_twin() -> None:
    """Its first try may start in the moment in which its engine makes it known."""
    reported = a_life(1, is_reported=True, engine_started_at=None, engine_heartbeat_at=None, registered_at=at(-10))
    for engines in (a_life(2, engine_started_at=at(-20)), a_life(2, engine_started_at=None)):
        found = match([a_sighting(started_at=at(-20))], [reported, replace(engines, registered_at=at(-9))])
        kept = {life.ref for _, life in found.pairs} | {life.ref for life, _ in found.twins}
        gone = {twin.ref for _, twin in found.twins}
        assert (kept, gone) == ({2}, {1})


@pytest.mark.parametrize(
    "others",
    [
        {"pid": None},
        {"pid": 101},
        {"hostname": "host-2"},
        {"registered_at": at(-3610)},
        {"engine_name": "w2@host-1"},
        {"ended_at": NOON},
    ],
    ids=str,
)
def test_what_a_task_may_have_made_up_is_no_twin_and_no_life(others: dict[str, Any]) -> None:
    known: dict[str, Any] = {"is_reported": True, "engine_started_at": None, "engine_heartbeat_at": None}
    told = a_life(2, **{**known, "registered_at": at(-10), **others})
    other_host = a_sighting(engine_name="w2@host-2", hostname="host-2", pid=200)
    found = match([a_sighting(), other_host], [a_life(1), told])
    assert [life.ref for _, life in found.pairs] == [1]
    assert not found.twins
    if "registered_at" not in others:
        assert match([a_sighting(), other_host], [told]).unmatched == [a_sighting(), other_host]


def test_another_life_is_no_twin() -> None:
    reported = a_life(2, is_reported=True, engine_started_at=at(10), engine_heartbeat_at=at(20))
    found = match([a_sighting(started_at=at(10))], [a_life(1), reported])
    assert [life.ref for _, life in found.pairs] == [2]
    assert not found.twins


starts = st.integers(-7200, 0).map(at)
lives = st.lists(
    st.builds(
        dict,
        pid=st.integers(1, 3),
        is_reported=st.booleans(),
        engine_started_at=st.none() | starts,
        ended_at=st.none() | st.just(NOON),
    ),
    max_size=8,
)
sightings = st.lists(st.builds(dict, pid=st.none() | st.integers(1, 3), started_at=st.none() | starts), max_size=8)


@given(lives, sightings)
def test_each_life_and_each_sighting_is_taken_once(known: list[dict[str, Any]], seen: list[dict[str, Any]]) -> None:
    wanted = [a_sighting(**one) for one in seen]
    found = match(wanted, [a_life(ref, **one) for ref, one in enumerate(known, start=1)])
    taken = [life.ref for _, life in found.pairs]
    assert len(taken) == len(set(taken))
    assert len(found.pairs) + len(found.unmatched) <= len(wanted)
    twins = {twin.ref for _, twin in found.twins}
    assert not twins & set(taken)
    assert all(not twin.is_known_to_source for _, twin in found.twins)
