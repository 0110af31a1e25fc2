"""Members of the enums are strings for every reader, on each Python."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from airflow_worker_insight.domain.filters import PlacementState
from airflow_worker_insight.domain.reasons import WAITING_REASONS, PlacementReason, PlacementStrategy
from airflow_worker_insight.domain.states import (
    SOURCE_KINDS,
    Attribution,
    SourceName,
    WorkerAvailability,
    WorkerState,
    source_of,
    strictest,
)

if TYPE_CHECKING:
    from airflow_worker_insight.domain.states import StrEnum

ENUMS = (Attribution, PlacementReason, PlacementState, PlacementStrategy, SourceName, WorkerAvailability, WorkerState)


@pytest.mark.parametrize("enum", ENUMS)
def test_members_are_their_values(enum: type[StrEnum]) -> None:
    for member, value in zip(enum, enum.values(), strict=True):
        assert type(value) is str
        assert (str(member), f"{member}", f"{member:>30}", "%s" % member) == (value, value, f"{value:>30}", value)  # noqa: UP031
        assert (member, {value: 1}[member], json.dumps({member: [member]})) == (value, 1, json.dumps({value: [value]}))


def test_strategies_are_reasons() -> None:
    assert set(PlacementStrategy.values()) < set(PlacementReason.values())


def test_reasons_to_wait_are_those_that_say_so() -> None:
    assert {*WAITING_REASONS} == {reason for reason in PlacementReason if reason.startswith("waits_")}


def test_the_strictest_availability_counts() -> None:
    assert strictest("draining", "available") == strictest("available", "draining", "available") == "draining"
    assert strictest(WorkerAvailability.QUARANTINED, "draining") == "quarantined"


def test_each_kind_has_one_source() -> None:
    assert {kind: source_of(kind) for kind in (*SOURCE_KINDS, "kubernetes")} == {
        "celery": "celery",
        "edge": "edge",
        "local": "jobs",
        "kubernetes": "tries",
    }
