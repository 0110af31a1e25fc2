"""Which instance an observation is of."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_worker_insight.domain.states import WorkerState
from airflow_worker_insight.registry.matching import match
from tests.unit.database import NOON, at
from tests.unit.registry.fleets import an_instance, an_observation

if TYPE_CHECKING:
    from airflow_worker_insight.domain.workers import WorkerInstance
    from airflow_worker_insight.registry.observations import WorkerObservation


def matched(observation: WorkerObservation, *instances: WorkerInstance) -> int | None:
    """Return the row ID of the instance that one observation is of."""
    found = match([observation], instances)
    return found.pairs[0][1].ref if found.pairs else None


# --- Celery ----------------------------------------------------------------------------------------------------------


def test_the_same_node_process_and_start_is_the_same_instance() -> None:
    assert matched(an_observation(), an_instance(1)) == 1


@pytest.mark.parametrize("seconds", [-4, 0, 4])
def test_engines_round(seconds: float) -> None:
    assert matched(an_observation(started_at=at(-3600 + seconds)), an_instance(1)) == 1


@pytest.mark.parametrize("others", [{"pid": 101}, {"engine_name": "w2@host-1"}, {"kind": "edge"}])
def test_another_name_process_or_kind_is_another_worker(others: dict[str, Any]) -> None:
    assert matched(an_observation(**others), an_instance(1)) is None


def test_a_restarted_container_has_the_same_process_id_and_is_a_new_instance() -> None:
    assert matched(an_observation(started_at=at(10)), an_instance(1)) is None


@pytest.mark.parametrize("step", [-600, -60, 60, 600])
def test_a_clock_that_is_set_anew_does_not_make_a_new_instance(step: float) -> None:
    """The start is worked out from how long the worker says it runs."""
    assert matched(an_observation(started_at=at(-3600 + step)), an_instance(1)) == 1


def test_a_reported_instance_is_matched_by_name_and_process() -> None:
    reported = an_instance(1, is_reported=True, engine_started_at=None, engine_heartbeat_at=None)
    assert matched(an_observation(started_at=at(-3600)), reported) == 1
    # The API server's clock may be behind the database's.
    assert matched(an_observation(started_at=at(-3600 + 600)), reported) == 1
    assert matched(an_observation(started_at=at(-1800)), reported) is None


def test_of_several_instances_the_latest_is_matched() -> None:
    instances = [
        an_instance(
            ref, is_reported=True, engine_started_at=None, engine_heartbeat_at=None, registered_at=at(-10 + ref)
        )
        for ref in (1, 2)
    ]
    assert matched(an_observation(started_at=at(-20)), *instances) == 2


def test_one_that_has_ended_may_come_back() -> None:
    assert matched(an_observation(), an_instance(1, state=WorkerState.LOST, ended_at=NOON)) == 1


def test_two_workers_with_one_name_keep_their_instances() -> None:
    """Containers have the same process IDs, and a node name may be given twice."""
    instances = [an_instance(1, engine_started_at=at(-3600)), an_instance(2, engine_started_at=at(-1800))]
    observations = [an_observation(started_at=at(-1801)), an_observation(started_at=at(-3599))]
    found = match(observations, instances)
    assert {(observation.started_at, instance.ref) for observation, instance in found.pairs} == {
        (at(-1801), 2),
        (at(-3599), 1),
    }
    assert match([*observations, an_observation(started_at=at(-100))], instances).unmatched


def test_an_answer_without_a_process_is_of_the_latest_instance_of_its_name() -> None:
    partial = an_observation(pid=None, started_at=None, is_partial=True)
    assert matched(partial, an_instance(1, pid=100), an_instance(2, pid=200)) == 2
    assert not match([partial], [an_instance(1), an_instance(2, is_reported=True)]).duplicates


def test_a_second_answer_of_one_process_is_left_out() -> None:
    found = match([an_observation(), an_observation(started_at=at(-3598))], [an_instance(1)])
    assert (len(found.pairs), found.unmatched) == (1, [])
    found = match([an_observation(), an_observation()], [])
    assert len(found.unmatched) == 1


# --- Edge and LocalExecutor ------------------------------------------------------------------------------------------


def test_an_edge_worker_is_known_by_its_name_and_its_start() -> None:
    edge = {"kind": "edge", "engine_name": "edge-1", "pid": None}
    observation = an_observation(**edge)
    assert matched(observation, an_instance(1, **edge)) == 1
    assert matched(observation, an_instance(1, **edge, engine_started_at=at(-7200))) is None
    assert matched(observation, an_instance(1, **edge, engine_started_at=None)) == 1
    assert (
        matched(an_observation(**edge, started_at=None), an_instance(1, **edge, state=WorkerState.LOST, ended_at=NOON))
        == 1
    )


def test_an_edge_worker_that_left_in_order_is_another_one_when_it_is_back() -> None:
    edge = {"kind": "edge", "engine_name": "edge-1", "pid": None}
    observation = an_observation(**edge, started_at=None)
    assert matched(observation, an_instance(1, **edge, state=WorkerState.OFFLINE, ended_at=NOON)) is None


def test_a_local_worker_is_its_schedulers_job() -> None:
    local = {"kind": "local", "engine_name": "local@host-1", "pid": None}
    observation = an_observation(**local, job_id=7)
    assert matched(observation, an_instance(1, **local, job_id=6), an_instance(2, **local, job_id=7)) == 2
    assert matched(observation, an_instance(1, **local, job_id=6)) is None
    assert matched(observation, an_instance(1, **local, job_id=None)) == 1
    assert matched(observation, an_instance(1, **local, job_id=None, state=WorkerState.LOST, ended_at=NOON)) is None


def test_several_local_workers_of_one_scheduler_are_not_its_one_worker() -> None:
    local = {"kind": "local", "pid": None, "job_id": 7}
    etl = an_instance(1, **local, engine_name="etl@host-1", is_reported=True)
    plain = an_instance(2, **local, engine_name="local@host-1")
    observation = an_observation(**local, engine_name="local@host-1")
    assert matched(observation, etl) is None
    assert matched(observation, etl, plain) == 2
    assert not match([observation], [etl, plain]).duplicates
    assert matched(an_observation(**local, engine_name="etl@host-1", ref=1), etl, plain) == 1


def test_an_observation_of_a_row_is_of_that_row() -> None:
    assert matched(an_observation(kind="kubernetes", ref=2), an_instance(1), an_instance(2, kind="kubernetes")) == 2
    assert matched(an_observation(kind="kubernetes", ref=3), an_instance(1), an_instance(2, kind="kubernetes")) is None


# --- two rows of one instance ----------------------------------------------------------------------------------------


def test_the_row_that_the_source_knows_is_kept_and_the_reported_one_is_its_duplicate() -> None:
    """Its first try may start in the moment in which its source makes it known."""
    reported = an_instance(1, is_reported=True, engine_started_at=None, engine_heartbeat_at=None, registered_at=at(-10))
    for sources in (an_instance(2, engine_started_at=at(-20)), an_instance(2, engine_started_at=None)):
        found = match([an_observation(started_at=at(-20))], [reported, replace(sources, registered_at=at(-9))])
        kept = {instance.ref for _, instance in found.pairs} | {instance.ref for instance, _ in found.duplicates}
        gone = {twin.ref for _, twin in found.duplicates}
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
def test_what_a_task_may_have_made_up_is_no_duplicate_and_no_instance(others: dict[str, Any]) -> None:
    known: dict[str, Any] = {"is_reported": True, "engine_started_at": None, "engine_heartbeat_at": None}
    reported = an_instance(2, **{**known, "registered_at": at(-10), **others})
    other_host = an_observation(engine_name="w2@host-2", hostname="host-2", pid=200)
    found = match([an_observation(), other_host], [an_instance(1), reported])
    assert [instance.ref for _, instance in found.pairs] == [1]
    assert not found.duplicates
    if "registered_at" not in others:
        assert match([an_observation(), other_host], [reported]).unmatched == [an_observation(), other_host]


def test_another_instance_is_no_duplicate() -> None:
    reported = an_instance(2, is_reported=True, engine_started_at=at(10), engine_heartbeat_at=at(20))
    found = match([an_observation(started_at=at(10))], [an_instance(1), reported])
    assert [instance.ref for _, instance in found.pairs] == [2]
    assert not found.duplicates


starts = st.integers(-7200, 0).map(at)
instances = st.lists(
    st.builds(
        dict,
        pid=st.integers(1, 3),
        is_reported=st.booleans(),
        engine_started_at=st.none() | starts,
        ended_at=st.none() | st.just(NOON),
    ),
    max_size=8,
)
observations = st.lists(st.builds(dict, pid=st.none() | st.integers(1, 3), started_at=st.none() | starts), max_size=8)


@given(instances, observations)
def test_each_instance_and_each_observation_is_matched_once(
    known: list[dict[str, Any]], seen: list[dict[str, Any]]
) -> None:
    wanted = [an_observation(**one) for one in seen]
    found = match(wanted, [an_instance(ref, **one) for ref, one in enumerate(known, start=1)])
    taken = [instance.ref for _, instance in found.pairs]
    assert len(taken) == len(set(taken))
    assert len(found.pairs) + len(found.unmatched) <= len(wanted)
    duplicates = {twin.ref for _, twin in found.duplicates}
    assert not duplicates & set(taken)
    assert all(not twin.is_known_to_source for _, twin in found.duplicates)
