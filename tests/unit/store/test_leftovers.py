"""What Airflow leaves of one try on the next: it must not name the host of the try before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airflow_worker_insight.domain.attempts import AirflowTry
from airflow_worker_insight.domain.attribution import attribute
from airflow_worker_insight.domain.keys import TryKey
from airflow_worker_insight.store.airflow_history import _without_leftovers
from tests.unit.database import at

FIRST = AirflowTry(
    TryKey("etl", "run", "load", -1, 1),
    state="failed",
    started_at=at(10),
    ended_at=at(20),
    hostname="host-1",
    pid=4711,
    executor="CeleryExecutor",
)


def second(**others: Any) -> AirflowTry:
    return replace(FIRST, **{"key": replace(FIRST.key, try_number=2), **others})


@pytest.mark.parametrize(
    ("state", "attribution"), [("failed", "never_started"), ("success", "not_on_a_worker"), ("queued", "never_started")]
)
def test_a_retry_that_ended_while_it_waited_ran_nowhere(state: str, attribution: str) -> None:
    first, retry = _without_leftovers([FIRST, second(state=state, ended_at=at(99))])
    assert (first.hostname, first.pid, first.started_at) == ("host-1", 4711, at(10))
    assert (retry.hostname, retry.pid, retry.started_at) == (None, None, None)
    assert attribute(retry, []).attribution == attribution


@pytest.mark.parametrize("state", ["scheduled", "queued", None])
def test_one_that_waits_has_no_host_though_its_history_is_gone(state: str | None) -> None:
    (waiting,) = _without_leftovers([second(state=state)])
    assert waiting.hostname is None


def test_a_retry_on_the_same_host_keeps_it() -> None:
    _, retry = _without_leftovers([FIRST, second(pid=4712, started_at=at(30))])
    assert retry.hostname == "host-1"


def test_another_task_instance_is_another_matter() -> None:
    other = replace(FIRST, key=replace(FIRST.key, map_index=3))
    assert [one.hostname for one in _without_leftovers([FIRST, other])] == ["host-1", "host-1"]


def test_a_deferred_one_keeps_its_host() -> None:
    (deferred,) = _without_leftovers([replace(FIRST, state="deferred")])
    assert deferred.hostname == "host-1"
